//! Handing a file over to the user who writes it.
//!
//! ```text
//!   as the user   the file's directory is opened; may the user write in it?
//!   as root       the file in it, not through a link: regular, one name, owner may write?
//!                 an empty file of the user's is made beside it, and renamed over it
//!   as the user   the file is opened by its path and written, as ever
//! ```
//! The user could remove the file from that directory and make a new one, unless the directory is sticky, such as /tmp. So no
//! content is shown that was not the user's, and processes that have the old file open see nothing of the new one.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, unlinkat};

use crate::users::Account;

/// Names that are tried for the new file.
const TRIES: u32 = 16;

/// A file's directory, in which the user may write, and its name there.
pub(super) struct Spot {
    folder: File,
    name: OsString,
}

/// Finds the spot, as the calling thread's user. `None`: nothing can be handed over there.
pub(super) fn spot(path: &Path) -> Option<Spot> {
    let name = path.file_name()?.to_owned();
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    let folder = OpenOptions::new().read(true).custom_flags(flags).open(path.parent()?).ok()?;
    // It judges by the thread's own ids, which are all the same.
    let allowed = faccessat(&folder, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::empty()).is_ok();
    allowed.then_some(Spot { folder, name })
}

/// Puts an empty file of the account's in the place of the file, if that may be handed over. It has the file's permissions without
/// set-user-id. The calling thread is root's.
pub(super) fn hand_over(spot: &Spot, account: &Account) -> io::Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let before = File::from(openat(&spot.folder, spot.name.as_os_str(), flags, Mode::empty())?).metadata()?;
    if !before.is_file() || before.nlink() != 1 || before.mode() & 0o200 == 0 || before.uid() == account.uid {
        return Ok(());
    }
    let (name, new) = make(&spot.folder)?;
    let put = fchown(&new, Some(account.uid), Some(account.gid))
        .and_then(|()| File::from(new).set_permissions(Permissions::from_mode(before.mode() & 0o777)))
        .and_then(|()| Ok(renameat(&spot.folder, name.as_str(), &spot.folder, spot.name.as_os_str())?));
    if put.is_err() {
        let _ = unlinkat(&spot.folder, name.as_str(), UnlinkatFlags::NoRemoveDir);
    }
    put
}

/// Makes an empty file under a name that nothing else has.
fn make(folder: impl AsFd) -> io::Result<(String, OwnedFd)> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    for _ in 0..TRIES {
        let mut number = [0; 8];
        io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut number)?;
        let name = format!(".nullspace-{:016x}", u64::from_le_bytes(number));
        match openat(&folder, name.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(file) => return Ok((name, file)),
            Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;

    use super::super::become_user;
    use super::*;

    #[test]
    fn a_file_is_handed_over_only_where_the_user_may_write() {
        if !nix::unistd::geteuid().is_root() {
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
        // Somebody has it open, and sees neither what is written later nor changes it.
        let mut held = OpenOptions::new().read(true).write(true).open(at("open/file")).unwrap();
        assert_eq!(hand("open/file"), (4321, 8765, 0));
        fs::write(at("open/file"), "new").unwrap();
        let mut seen = String::new();
        held.read_to_string(&mut seen).unwrap();
        held.write_all(b" and more").unwrap();
        assert_eq!((seen.as_str(), fs::read_to_string(at("open/file")).unwrap().as_str()), ("secret", "new"));
        assert_eq!(fs::read_dir(at("open")).unwrap().count(), 5, "nothing is left beside it");
        assert_eq!(fs::metadata(at("open/file")).unwrap().mode() & 0o7777, 0o600);
    }
}
