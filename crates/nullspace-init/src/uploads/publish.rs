//! Publishing an upload at its target.
//!
//! ```text
//!   file:  as the user: is the target free or writable? an empty file beside it      (the kernel judges)
//!          as root:     the data take its place, with owner and mode
//!          as the user: renamed to the target
//! ```
//! Root follows no path that a user of the guest could change: it works within directories that the user's thread has opened.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use nullspace_guest::message::Failure;
use nullspace_guest::upload::{UploadConflict, UploadReason, UploadSpec};

use super::record::Upload;
use super::{Stop, extract, refuse_path};
use crate::files::failure;
use crate::user_thread;
use crate::users::Account;

/// Permissions of a new file.
const FILE_MODE: u32 = 0o644;
/// Permissions of directories that are made on the way.
const FOLDER_MODE: u32 = 0o755;

/// What is at a target. Links are followed where they lead to something.
#[derive(Debug)]
pub(super) enum Present {
    Nothing(PathBuf),
    File(PathBuf),
    Dir(PathBuf),
    Other,
}

pub(super) fn present(target: &Path) -> Result<Present, Stop> {
    let real = match fs::canonicalize(target) {
        Ok(real) => real,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Present::Nothing(target.to_owned())),
        Err(error) => return Err(failure(&error, "It cannot be looked at", target).into()),
    };
    let meta = fs::symlink_metadata(&real).map_err(|error| failure(&error, "It cannot be looked at", &real))?;
    Ok(match meta.file_type() {
        kind if kind.is_file() => Present::File(real),
        kind if kind.is_dir() => Present::Dir(real),
        _ => Present::Other,
    })
}

fn conflict(target: &Path, what: &str) -> Stop {
    refuse_path(UploadReason::Conflict, target, format!("`{}` {what}.", target.display()))
}

/// Refuses a target that is in the way, as the user's thread sees it.
pub(super) fn check_target(spec: &UploadSpec, target: &Path) -> Result<(), Stop> {
    let found = present(target)?;
    match (&found, spec.archive) {
        (Present::Nothing(_), _) => Ok(()),
        (Present::Dir(_), false) => Err(conflict(target, "is a directory, and a file is to be put there")),
        (Present::File(_), true) => Err(conflict(target, "is a file, and a directory is to be put there")),
        (Present::Other, _) => Err(conflict(target, "is neither a file nor a directory")),
        _ if spec.conflict == UploadConflict::Error => {
            Err(conflict(target, "exists already; `conflict` says that it is to be left alone"))
        }
        _ => Ok(()),
    }
}

/// Publishes it. Returns the bytes of files, and how many they are.
pub(super) fn publish(upload: &Upload, data: File) -> Result<(u64, u64), Stop> {
    let account = user_thread::account(upload.spec.user.as_deref())?;
    if upload.spec.archive {
        return user_thread::run(&account, || extract::extract(upload, &data));
    }
    file(upload, data, &account)?;
    Ok((upload.spec.bytes, 1))
}

/// The place of a file: a directory that the user has opened, the final name in it, and an empty file of the user's there.
struct Spot {
    folder: OwnedFd,
    name: PathBuf,
    temporary: PathBuf,
    empty: File,
    /// User, group and permissions of the file that is overwritten.
    before: Option<(u32, u32, u32)>,
}

fn file(upload: &Upload, data: File, account: &Account) -> Result<(), Stop> {
    let target = Path::new(&upload.spec.target);
    let spot = user_thread::run(account, || spot(upload, target))?;
    let kept = spot.before.filter(|_| upload.spec.keep_owner);
    let (uid, gid, mode) = kept.unwrap_or((account.uid, account.gid, FILE_MODE));
    let cannot = |error: io::Error| Stop::from(failure(&error, "It cannot be written", target));
    // A file that the user could write may not become a program with another user's rights: the bits of set-user-id are not kept.
    let owned = |file: &File| {
        fchown(file, Some(uid), Some(gid))?;
        file.set_permissions(fs::Permissions::from_mode(mode & 0o777))
    };
    let staged = upload.path("data");
    let taken = owned(&data)
        .and_then(|()| renameat(AT_FDCWD, &staged, spot.folder.as_fd(), &spot.temporary).map_err(io::Error::from));
    let moved = match taken {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let copied = copy(&data, &spot.empty).and_then(|()| owned(&spot.empty));
            if let Err(error) = copied {
                let _ = unlinkat(spot.folder.as_fd(), &spot.temporary, UnlinkatFlags::NoRemoveDir);
                return Err(cannot(error));
            }
            false
        }
        Err(error) => {
            let _ = unlinkat(spot.folder.as_fd(), &spot.temporary, UnlinkatFlags::NoRemoveDir);
            return Err(cannot(error));
        }
    };
    let named: Result<(), Failure> = user_thread::run(account, || {
        renameat(spot.folder.as_fd(), &spot.temporary, spot.folder.as_fd(), &spot.name)
            .map_err(|error| failure(&error.into(), "It cannot be put there", target))
    });
    named.map_err(|failure| {
        // The upload stays complete, and may be tried again.
        let _ = match moved {
            true => renameat(spot.folder.as_fd(), &spot.temporary, AT_FDCWD, &staged),
            false => unlinkat(spot.folder.as_fd(), &spot.temporary, UnlinkatFlags::NoRemoveDir),
        };
        Stop::from(failure)
    })
}

fn copy(mut from: &File, mut to: &File) -> io::Result<()> {
    from.rewind()?;
    io::copy(&mut from, &mut to).map(drop)
}

/// Finds the place for a file, as the user.
fn spot(upload: &Upload, target: &Path) -> Result<Spot, Stop> {
    check_target(&upload.spec, target)?;
    let (real, before) = match present(target)? {
        Present::File(real) => {
            // Whoever may replace an entry of a directory may not always write the file.
            let file = fs::OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&real);
            let file = file.map_err(|error| failure(&error, "It cannot be overwritten", &real))?;
            let meta = file.metadata().map_err(|error| failure(&error, "It cannot be looked at", &real))?;
            (real, Some((meta.uid(), meta.gid(), meta.mode())))
        }
        Present::Nothing(path) => (path, None),
        Present::Dir(_) | Present::Other => return Err(conflict(target, "has changed meanwhile")),
    };
    let (folder, name) = split(&real)?;
    let temporary = temporary(upload, &name);
    let _ = unlinkat(folder.as_fd(), &temporary, UnlinkatFlags::NoRemoveDir);
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let empty = openat(folder.as_fd(), &temporary, flags, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|error| failure(&error.into(), "It cannot be made", &real))?;
    Ok(Spot { folder, name, temporary, empty: File::from(empty), before })
}

/// The directory of a path, opened and made if it is missing, and the name in it.
pub(super) fn split(path: &Path) -> Result<(OwnedFd, PathBuf), Stop> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(conflict(path, "is no place for an upload"));
    };
    fs::DirBuilder::new()
        .recursive(true)
        .mode(FOLDER_MODE)
        .create(above)
        .map_err(|error| failure(&error, "The directory cannot be made", above))?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder = openat(AT_FDCWD, above, flags, Mode::empty())
        .map_err(|error| failure(&error.into(), "The directory cannot be opened", above))?;
    Ok((folder, PathBuf::from(name)))
}

/// A name beside the target that nothing else uses.
pub(super) fn temporary(upload: &Upload, name: &Path) -> PathBuf {
    // A name has at most 255 bytes.
    let shown: String = name.to_string_lossy().chars().take(40).collect();
    PathBuf::from(format!(".{shown}.{}", upload.id))
}
