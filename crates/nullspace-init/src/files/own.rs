//! Handing a file over to the user who writes it.
//!
//! ```text
//!   as the user   the file's directory is opened; may the user write in it?
//!   as root       the file in it, not through a link: regular, one name, owner may write?  emptied, then given to the user
//!   as the user   the file is opened by its path and written, as ever
//! ```
//! The user could remove the file from that directory and make a new one, unless the directory is sticky. So no file is
//! handed over that the user could not have replaced, or that is not in a directory such as /tmp. It is emptied before it is
//! the user's: its content is not shown.

#![allow(unsafe_code, reason = "chown of a file that is open by O_PATH, through raw system calls")]

use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::users::Account;

/// A file's directory, in which the user may write, and its name there.
pub(super) struct Spot {
    folder: File,
    name: CString,
}

/// Finds the spot, as the calling thread's user. `None`: nothing can be handed over there.
pub(super) fn spot(path: &Path) -> Option<Spot> {
    let name = path.file_name()?;
    let folder = path.parent()?;
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let folder = OpenOptions::new().read(true).custom_flags(flags).open(folder).ok()?;
    // SAFETY: a system call on a descriptor and a string that outlive it. It judges by the thread's own ids.
    let allowed = unsafe { libc::faccessat(folder.as_raw_fd(), c".".as_ptr(), libc::W_OK | libc::X_OK, 0) } == 0;
    allowed.then_some(Spot { folder, name: CString::new(OsStr::as_bytes(name)).ok()? })
}

/// Empties the file and gives it to the account, if it may be handed over. The calling thread is root's.
pub(super) fn hand_over(spot: &Spot, account: &Account) -> io::Result<()> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    // SAFETY: a system call on a descriptor and a string that outlive it.
    let opened = unsafe { libc::openat(spot.folder.as_raw_fd(), spot.name.as_ptr(), flags) };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and owned by nobody else.
    let file = unsafe { File::from_raw_fd(opened) };
    let meta = file.metadata()?;
    if !meta.is_file() || meta.nlink() != 1 || meta.mode() & 0o200 == 0 || meta.uid() == account.uid {
        return Ok(());
    }
    let same = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(same)?.set_len(0)?;
    // SAFETY: a system call on a descriptor and a string that outlive it.
    let given =
        unsafe { libc::fchownat(file.as_raw_fd(), c"".as_ptr(), account.uid, account.gid, libc::AT_EMPTY_PATH) };
    if given == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::become_user;
    use super::*;

    #[test]
    fn a_file_is_handed_over_only_where_the_user_may_write() {
        // SAFETY: asks for a number.
        if unsafe { libc::geteuid() } != 0 {
            eprintln!("skipped: needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let account = Account { uid: 4321, gid: 8765, groups: vec![], name: "4321".into(), home: "/".into() };
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        for (name, mode) in [("open", 0o1777), ("closed", 0o755)] {
            fs::create_dir(at(name)).unwrap();
            fs::set_permissions(at(name), PermissionsExt::from_mode(mode)).unwrap();
            fs::write(at(name).join("file"), "secret").unwrap();
            fs::set_permissions(at(name).join("file"), PermissionsExt::from_mode(0o600)).unwrap();
        }
        fs::write(at("open/twice"), "x").unwrap();
        fs::hard_link(at("open/twice"), at("closed/twice")).unwrap();
        fs::write(at("open/fixed"), "x").unwrap();
        fs::set_permissions(at("open/fixed"), PermissionsExt::from_mode(0o444)).unwrap();
        symlink("../closed/file", at("open/link")).unwrap();
        symlink("../closed", at("open/dir")).unwrap();
        let hand = |name: &str| {
            let path = at(name);
            let found = std::thread::scope(|scope| {
                let as_user = || {
                    become_user(&account).unwrap();
                    spot(&path)
                };
                scope.spawn(as_user).join().unwrap()
            });
            if let Some(spot) = found {
                hand_over(&spot, &account).unwrap();
            }
            let meta = fs::metadata(&path).unwrap();
            (meta.uid(), meta.gid(), meta.len())
        };
        assert_eq!(hand("closed/file"), (0, 0, 6));
        assert_eq!(hand("open/link"), (0, 0, 6));
        assert_eq!(hand("open/dir/file"), (0, 0, 6));
        assert_eq!(hand("open/twice"), (0, 0, 1));
        assert_eq!(hand("open/fixed"), (0, 0, 1));
        assert_eq!(hand("open/file"), (4321, 8765, 0));
        assert_eq!(fs::metadata(at("open/file")).unwrap().mode() & 0o7777, 0o600);
    }
}
