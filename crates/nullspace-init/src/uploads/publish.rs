//! Publishing an upload at its target.
//!
//! ```text
//!   file:  as the user: is the target free or writable? an empty file beside it      (the kernel judges)
//!          as root:     owner and mode of the data; a second name for them beside the target
//!          as the user: that name renamed to the target
//!          at a failure: the data still have their first name, which no user can reach
//! ```
//! Root follows no path that a user of the guest could change. It works within directories that the user's thread has opened, and
//! on files that are open. A name in such a directory is never taken back: by then it may be another file's.

use std::fs::{self, File};
use std::io::{self, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use nullspace_guest::message::Failure;
use nullspace_guest::upload::{UploadConflict, UploadReason, UploadSpec};

use super::record::Upload;
use super::{Stop, discard, extract, refuse_path};
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
    Nothing,
    File(Found),
    Dir(Found),
    Other,
}

/// An entry that is there, open by `O_PATH`.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) entry: OwnedFd,
    /// Its path without links.
    path: PathBuf,
}

/// The path that opens what a descriptor is open for.
fn by_descriptor(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// The path of an entry of an open directory.
pub(super) fn within(folder: impl AsFd, name: &Path) -> PathBuf {
    by_descriptor(folder).join(name)
}

impl Found {
    /// Opens its directory, without a link on the way. Returns it with the entry's name there.
    pub(super) fn place(&self, target: &Path) -> Result<(OwnedFd, PathBuf), Stop> {
        let (Some(above), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Err(conflict(target, "is no place for an upload"));
        };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let moved = || conflict(target, "has changed meanwhile");
        let folder = openat2(AT_FDCWD, above, how).map_err(|error| match error {
            Errno::ELOOP | Errno::ENOENT | Errno::ENOTDIR => moved(),
            error => failure(&error.into(), "The directory cannot be opened", above).into(),
        })?;
        let same = is_same(folder.as_fd(), Path::new(name), &self.entry);
        if same { Ok((folder, PathBuf::from(name))) } else { Err(moved()) }
    }

    /// Owner and mode of the entry.
    pub(super) fn stat(&self) -> Result<nix::sys::stat::FileStat, Stop> {
        fstat(&self.entry).map_err(|error| failure(&error.into(), "It cannot be looked at", &self.path).into())
    }
}

/// Whether the entry of this name is the file that is open.
fn is_same(folder: impl AsFd, name: &Path, open: impl AsFd) -> bool {
    match (fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW), fstat(open)) {
        (Ok(named), Ok(open)) => (named.st_dev, named.st_ino) == (open.st_dev, open.st_ino),
        _ => false,
    }
}

/// Looks at a target as the calling thread's user. The kernel follows the links, so that its rules for links of others hold
/// (`fs.protected_symlinks`).
fn present(target: &Path) -> Result<Present, Stop> {
    let cannot = |error: io::Error| Stop::from(failure(&error, "It cannot be looked at", target));
    let entry = match openat(AT_FDCWD, target, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        Ok(entry) => entry,
        Err(Errno::ENOENT) => return Ok(Present::Nothing),
        Err(error) => return Err(cannot(error.into())),
    };
    let kind = fstat(&entry).map_err(|error| cannot(error.into()))?.st_mode & SFlag::S_IFMT.bits();
    let path = fs::read_link(by_descriptor(&entry)).map_err(cannot)?;
    Ok(match kind {
        kind if kind == SFlag::S_IFREG.bits() => Present::File(Found { entry, path }),
        kind if kind == SFlag::S_IFDIR.bits() => Present::Dir(Found { entry, path }),
        _ => Present::Other,
    })
}

pub(super) fn conflict(target: &Path, what: &str) -> Stop {
    refuse_path(UploadReason::Conflict, target, format!("`{}` {what}.", target.display()))
}

/// Looks at a target as the calling thread's user, and refuses one that is in the way.
pub(super) fn check_target(spec: &UploadSpec, target: &Path) -> Result<Present, Stop> {
    let found = present(target)?;
    match (&found, spec.archive) {
        (Present::Nothing, _) => Ok(found),
        (Present::Dir(_), false) => Err(conflict(target, "is a directory, and a file is to be put there")),
        (Present::File(_), true) => Err(conflict(target, "is a file, and a directory is to be put there")),
        (Present::Other, _) => Err(conflict(target, "is neither a file nor a directory")),
        _ if spec.conflict == UploadConflict::Error => {
            Err(conflict(target, "exists already; `conflict` says that it is to be left alone"))
        }
        _ => Ok(found),
    }
}

/// Publishes it. Returns the bytes of files, and how many they are.
pub(super) fn publish(upload: &Upload, data: &File) -> Result<(u64, u64), Stop> {
    let account = user_thread::account(upload.spec.user.as_deref())?;
    if upload.spec.archive {
        return user_thread::run(&account, || extract::extract(upload, data));
    }
    file(upload, data, &account)?;
    Ok((upload.spec.bytes, 1))
}

/// Removes what a publication that was cut off has left beside the target. What cannot be removed stays.
pub(super) fn sweep(upload: &Upload) {
    let target = Path::new(&upload.spec.target);
    let sweep = || -> Result<(), Stop> {
        let (folder, name) = match present(target)? {
            Present::File(found) | Present::Dir(found) => found.place(target)?,
            Present::Nothing | Present::Other => open_above(target)?,
        };
        for left in [temporary(upload, &name), second(upload, &name)] {
            discard(&within(&folder, &left));
        }
        Ok(())
    };
    if let Ok(account) = user_thread::account(upload.spec.user.as_deref()) {
        let _ = user_thread::run(&account, sweep);
    }
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

fn file(upload: &Upload, data: &File, account: &Account) -> Result<(), Stop> {
    let target = Path::new(&upload.spec.target);
    let cannot = |error: io::Error| Stop::from(failure(&error, "It cannot be written", target));
    let staged = data.metadata().map_err(cannot)?;
    let spot = user_thread::run(account, || spot(upload, target))?;
    let linked = second(upload, &spot.name);
    let kept = spot.before.filter(|_| upload.spec.keep_owner);
    let (uid, gid, mode) = kept.unwrap_or((account.uid, account.gid, FILE_MODE));
    // A file that the user could write may not become a program with another user's rights: the bits of set-user-id are not kept.
    let owned = |file: &File| {
        fchown(file, Some(uid), Some(gid))?;
        file.set_permissions(fs::Permissions::from_mode(mode & 0o777))
    };
    let put = match owned(data).and_then(|()| link(data, &spot.folder, &linked)) {
        Ok(()) => Ok(&linked),
        // Another filesystem, or another mount of the same.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy(data, &spot.empty).and_then(|()| owned(&spot.empty)).map(|()| &spot.temporary)
        }
        Err(error) => Err(error),
    };
    let done = put.map_err(cannot).and_then(|put| {
        let named: Result<(), Failure> = user_thread::run(account, || {
            renameat(spot.folder.as_fd(), put, spot.folder.as_fd(), &spot.name)
                .map_err(|error| failure(&error.into(), "It cannot be put there", target))
        });
        named.map_err(Stop::from)
    });
    clear(account, &spot.folder, &[(&spot.temporary, &spot.empty), (&linked, data)]);
    if done.is_err() {
        // The upload stays complete, and may be tried again.
        let _ = fchown(data, Some(staged.uid()), Some(staged.gid()))
            .and_then(|()| data.set_permissions(staged.permissions()));
    }
    done
}

/// Gives an open file one more name. One that it has already is no error.
fn link(file: &File, folder: &OwnedFd, name: &Path) -> io::Result<()> {
    match linkat(AT_FDCWD, &by_descriptor(file), folder.as_fd(), name, AtFlags::AT_SYMLINK_FOLLOW) {
        Err(Errno::EEXIST) if is_same(folder, name, file) => Ok(()),
        linked => linked.map_err(io::Error::from),
    }
}

/// Removes the names that were made beside a target: as the user, who may remove what is in the directory. In a sticky directory
/// the user may not remove a file of the kept owner's; nobody but its owner and root can then have put another in its place.
fn clear(account: &Account, folder: &OwnedFd, made: &[(&Path, &File)]) {
    let remove = |name: &Path| unlinkat(folder.as_fd(), name, UnlinkatFlags::NoRemoveDir);
    let _ = user_thread::run(account, || {
        for (name, _) in made {
            let _ = remove(name);
        }
        Ok::<(), Failure>(())
    });
    for (name, file) in made {
        if is_same(folder, name, file) {
            let _ = remove(name);
        }
    }
}

fn copy(mut from: &File, mut to: &File) -> io::Result<()> {
    from.rewind()?;
    io::copy(&mut from, &mut to).map(drop)
}

/// Finds the place for a file, as the user.
fn spot(upload: &Upload, target: &Path) -> Result<Spot, Stop> {
    let ((folder, name), before) = match check_target(&upload.spec, target)? {
        Present::File(found) => {
            // Whoever may replace an entry of a directory may not always write the file.
            let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
            let file = fs::OpenOptions::new().write(true).custom_flags(flags).open(by_descriptor(&found.entry));
            file.map_err(|error| failure(&error, "It cannot be overwritten", &found.path))?;
            let stat = found.stat()?;
            (found.place(target)?, Some((stat.st_uid, stat.st_gid, stat.st_mode)))
        }
        Present::Nothing => (split(target)?, None),
        Present::Dir(_) | Present::Other => return Err(conflict(target, "has changed meanwhile")),
    };
    let temporary = temporary(upload, &name);
    for left in [&temporary, &second(upload, &name)] {
        let _ = unlinkat(folder.as_fd(), left, UnlinkatFlags::NoRemoveDir);
    }
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let empty = openat(folder.as_fd(), &temporary, flags, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(|error| failure(&error.into(), "It cannot be made", target))?;
    Ok(Spot { folder, name, temporary, empty: File::from(empty), before })
}

/// The directory of a path, opened and made if it is missing, and the name in it.
pub(super) fn split(path: &Path) -> Result<(OwnedFd, PathBuf), Stop> {
    if let Some(above) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(FOLDER_MODE)
            .create(above)
            .map_err(|error| failure(&error, "The directory cannot be made", above))?;
    }
    open_above(path)
}

/// The directory of a path, opened, and the name in it.
fn open_above(path: &Path) -> Result<(OwnedFd, PathBuf), Stop> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(conflict(path, "is no place for an upload"));
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
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

/// The name beside the target under which the data of a file appear there.
fn second(upload: &Upload, name: &Path) -> PathBuf {
    let mut second = temporary(upload, name).into_os_string();
    second.push(".data");
    PathBuf::from(second)
}
