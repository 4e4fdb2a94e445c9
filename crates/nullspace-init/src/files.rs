//! File operations, as one of the guest's users.
//!
//! ```text
//!  worker thread ── account from /etc/passwd ──> thread of its own: groups, gid, uid set for it alone
//!                                                  └─ the operation; the kernel judges it; the thread ends
//! ```
//! Linux keeps credentials per thread; only the C library makes them look per process. So the system calls are made
//! directly, on a thread that ends with the operation: no other thread is ever seen with the wrong user, and nothing
//! has to be taken back. Without uid 0 the thread has no capability either.

#![allow(unsafe_code, reason = "a thread takes on the ids of a user by raw system calls")]

mod copy;
mod entry;
mod find;
mod own;
mod replace;
mod shell;
mod transfer;
mod walk;

use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nullspace_guest::file::{FileCall, FileEntry, FileOp, HOME};
use nullspace_guest::message::{Failure, FailureKind, Outcome};

use self::entry::Names;
use crate::process::prepare::accounts;
use crate::session::Channel;
use crate::users::{Account, Accounts};

/// Permissions of folders that an operation makes on its way.
const FOLDER_MODE: u32 = 0o755;
/// The longest path that Linux takes, its NUL included.
const MAX_PATH: usize = 4096;

/// Why an operation ended without its answer.
enum Stop {
    Failed(Failure),
    /// Nobody waits for the answer.
    Cancelled,
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

/// Does it; data goes over the channel, the answer is returned.
pub(crate) fn serve(call: &FileCall, channel: &Channel) -> Outcome {
    let known = match accounts() {
        Ok(known) => known,
        Err(failure) => return Outcome::Failed(failure),
    };
    let account = match known.resolve(call.user.as_deref().unwrap_or_default()) {
        Ok(account) => account,
        Err(failure) => return Outcome::Failed(failure),
    };
    let names = Names::new(&known);
    let cwd = if call.cwd.as_deref() == Some(HOME) { Some(account.home.as_str()) } else { call.cwd.as_deref() };
    if let FileOp::WriteOwn { path } = &call.action {
        let found = as_user(&account, || Ok(own::spot(&place(cwd, path)?)));
        // Where nothing can be handed over, the kernel says below whether the user may write nevertheless.
        if let Ok(Some(spot)) = found
            && let Err(error) = own::hand_over(&spot, &account)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Outcome::Failed(failure(&error, "It cannot be given to its user", Path::new(path)));
        }
    }
    match as_user(&account, || perform(call, cwd, channel, &known, &names)) {
        Ok(outcome) => outcome,
        Err(Stop::Failed(failure)) => Outcome::Failed(failure),
        Err(Stop::Cancelled) => Outcome::Done,
    }
}

/// Does the work on a thread of its own that has taken the user on.
fn as_user<T: Send>(account: &Account, work: impl FnOnce() -> Result<T, Stop> + Send) -> Result<T, Stop> {
    let done = std::thread::scope(|scope| {
        let work = || {
            become_user(account).map_err(|error| failure(&error, "The user cannot be taken on", Path::new("/")))?;
            work()
        };
        let thread = std::thread::Builder::new().name("files".into()).spawn_scoped(scope, work);
        thread.map(|thread| thread.join())
    });
    let (kind, message) = match done {
        Ok(Ok(done)) => return done,
        Ok(Err(_)) => (FailureKind::Internal, "The agent failed while it worked on files.".into()),
        Err(error) => (FailureKind::Limit, format!("The agent can start no thread: {error}.")),
    };
    Err(Failure { kind, message }.into())
}

/// Gives the calling thread, and only it, the account's groups and ids for the rest of its life.
pub(crate) fn become_user(account: &Account) -> io::Result<()> {
    let called = |result: libc::c_long| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    let (uid, gid, groups) = (account.uid, account.gid, &account.groups);
    // SAFETY: system calls on numbers and on a list that outlives the call. Direct, so that they hold for this thread only.
    unsafe {
        called(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        called(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        called(libc::syscall(libc::SYS_setresuid, uid, uid, uid))
    }
}

fn perform(
    call: &FileCall,
    cwd: Option<&str>,
    channel: &Channel,
    known: &Accounts,
    names: &Names,
) -> Result<Outcome, Stop> {
    let place = |path: &str| place(cwd, path);
    let entry = |path: &Path| -> Result<FileEntry, Stop> {
        entry::of(path, names).map_err(|error| failure(&error, "It cannot be looked at", path).into())
    };
    let outcome = match &call.action {
        FileOp::Read { path } => transfer::read(&place(path)?, None, names, channel)?,
        FileOp::ReadPart { path, part } => transfer::read(&place(path)?, Some(*part), names, channel)?,
        FileOp::Write { path } | FileOp::WriteOwn { path } => {
            let path = place(path)?;
            transfer::write(&path, channel)?;
            Outcome::File { entry: entry(&path)? }
        }
        FileOp::List { path, depth } => {
            transfer::list(&place(path)?, *depth, names, channel)?;
            Outcome::Done
        }
        FileOp::Info { path } => Outcome::File { entry: entry(&place(path)?)? },
        FileOp::MakeDir { path } => {
            let path = place(path)?;
            make_folders(&path)?;
            Outcome::File { entry: entry(&path)? }
        }
        FileOp::Remove { path } => {
            let path = place(path)?;
            if path.parent().is_none() {
                return Err(invalid("The root directory cannot be removed.".into()).into());
            }
            remove(&path).map_err(|error| failure(&error, "It cannot be removed", &path))?;
            Outcome::Done
        }
        FileOp::Rename { from, to } => {
            let (from, to) = (place(from)?, place(to)?);
            // Before anything is made for it.
            entry(&from)?;
            make_folders(to.parent().unwrap_or(Path::new("/")))?;
            std::fs::rename(&from, &to)
                .map_err(|error| failure(&error, &format!("It cannot be renamed to `{}`", to.display()), &from))?;
            Outcome::File { entry: entry(&to)? }
        }
        FileOp::SetMode { path, mode } => {
            let path = place(path)?;
            if *mode > 0o7777 {
                return Err(invalid(format!("Mode {mode:o} has more than permission bits.")).into());
            }
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode))
                .map_err(|error| failure(&error, "Its permissions cannot be set", &path))?;
            Outcome::Done
        }
        FileOp::MakeDirFor { path, owner } => {
            let owner = known.resolve(owner)?;
            copy::make_folders(&place(path)?, (owner.uid, owner.gid))?;
            Outcome::Done
        }
        FileOp::MakeSymlink { target, path } => {
            shell::link(target, &place(path)?)?;
            Outcome::Done
        }
        FileOp::Unlink { path, recursive, force } => {
            shell::remove(&place(path)?, *recursive, *force)?;
            Outcome::Done
        }
        FileOp::Move { from, to } => {
            shell::rename(&place(from)?, &place(to)?)?;
            Outcome::Done
        }
        FileOp::Copy(to) => {
            copy::receive(&place(&to.dst)?, to, known, channel)?;
            Outcome::Done
        }
        FileOp::FindLines { path, pattern } => find::lines(&place(path)?, pattern, channel)?,
        FileOp::FindNames { path, pattern } => find::names(&place(path)?, pattern, channel)?,
        FileOp::Replace(request) => replace::replace(request, place, channel)?,
        FileOp::Space { path } => {
            let path = place(path)?;
            let stat = nix::sys::statvfs::statvfs(&path)
                .map_err(|error| failure(&error.into(), "Its filesystem cannot be looked at", &path))?;
            Outcome::Space {
                free_bytes: stat.blocks_available().saturating_mul(stat.fragment_size()),
                free_inodes: stat.files_available(),
            }
        }
    };
    Ok(outcome)
}

/// The absolute path that is meant, without `.` and doubled slashes. `..` stays: only the kernel knows where it leads.
pub(crate) fn place(cwd: Option<&str>, path: &str) -> Result<PathBuf, Failure> {
    let cwd = cwd.filter(|cwd| !cwd.is_empty()).unwrap_or("/");
    if path.is_empty() {
        return Err(invalid("The path is empty.".into()));
    }
    if path.contains('\0') || cwd.contains('\0') {
        return Err(invalid("The path contains a NUL byte.".into()));
    }
    let whole = Path::new(cwd).join(path);
    if !whole.is_absolute() {
        return Err(invalid(format!("Working directory `{cwd}` is not an absolute path.")));
    }
    if whole.as_os_str().len() >= MAX_PATH {
        return Err(invalid(format!("The path is longer than {} bytes.", MAX_PATH - 1)));
    }
    Ok(whole.components().filter(|part| *part != Component::CurDir).collect())
}

fn make_folders(path: &Path) -> Result<(), Failure> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(path)
        .map_err(|error| failure(&error, "The directory cannot be made", path))
}

fn remove(path: &Path) -> io::Result<()> {
    if std::fs::symlink_metadata(path)?.is_dir() {
        // Does not follow links, whoever swaps them in meanwhile.
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    }
}

fn invalid(message: String) -> Failure {
    Failure { kind: FailureKind::Invalid, message }
}

/// The system's answer as the user should read it.
pub(crate) fn failure(error: &io::Error, what: &str, path: &Path) -> Failure {
    use io::ErrorKind as E;
    let shown = path.display();
    let (kind, message) = match error.kind() {
        E::NotFound => (FailureKind::FileNotFound, format!("`{shown}` does not exist.")),
        E::PermissionDenied | E::ReadOnlyFilesystem => {
            (FailureKind::PermissionDenied, format!("`{shown}`: {what}: permission denied."))
        }
        E::AlreadyExists | E::DirectoryNotEmpty => {
            (FailureKind::FileExists, format!("`{shown}`: {what}: something else is there."))
        }
        E::StorageFull | E::QuotaExceeded | E::FileTooLarge => (
            FailureKind::DiskFull,
            format!("`{shown}`: {what}: the disk is full; build_config.disk_mb of the template sets its size."),
        ),
        E::NotADirectory | E::IsADirectory | E::InvalidFilename | E::CrossesDevices => {
            (FailureKind::Invalid, format!("`{shown}`: {what}: {error}."))
        }
        _ if error.raw_os_error() == Some(libc::ELOOP) => {
            (FailureKind::Invalid, format!("`{shown}`: {what}: too many symbolic links."))
        }
        _ => (FailureKind::Internal, format!("`{shown}`: {what}: {error}.")),
    };
    Failure { kind, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_start_at_the_working_directory_and_are_tidied() {
        let cases: &[(Option<&str>, &str, Option<&str>)] = &[
            (None, "/a//b/./c/", Some("/a/b/c")),
            (None, "a", Some("/a")),
            (Some("/workspace"), "a/../b", Some("/workspace/a/../b")),
            (Some("/workspace"), "/etc", Some("/etc")),
            (Some("/workspace"), ".", Some("/workspace")),
            (Some(""), "x", Some("/x")),
            (Some("relative"), "x", None),
            (None, "", None),
            (None, "a\0b", None),
        ];
        for (cwd, path, expected) in cases {
            let got = place(*cwd, path).ok();
            assert_eq!(got.as_deref(), expected.map(Path::new), "{cwd:?} {path}");
        }
        assert!(place(None, &"x".repeat(MAX_PATH)).is_err());
    }

    #[test]
    fn a_thread_takes_a_user_on_and_the_others_do_not() {
        // SAFETY: asks for a number.
        let uid = || unsafe { libc::syscall(libc::SYS_getuid) };
        if uid() != 0 {
            eprintln!("skipped: needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        std::fs::write(folder.path().join("secret"), "x").unwrap();
        std::fs::set_permissions(folder.path().join("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let account = Account { uid: 4321, gid: 8765, groups: vec![99], name: "4321".into(), home: "/".into() };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                become_user(&account).unwrap();
                assert_eq!(uid(), 4321);
                std::fs::write(&path, "own").unwrap();
                let refused = std::fs::read(folder.path().join("secret")).unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            });
        });
        assert_eq!(uid(), 0);
        let meta = std::fs::metadata(&path).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((meta.uid(), meta.gid()), (4321, 8765));
    }
}
