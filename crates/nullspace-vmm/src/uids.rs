//! Unprivileged uids, one for each machine that runs on this host, whichever service runs it.
//!
//! ```text
//!   /run/nullspace/uids/7000000     a lock file per uid, root's; flock(2) held for the machine's life
//! ```
//! Two machines with one uid could signal and trace each other. So a uid is leased by the lock of its file: services that
//! know nothing of each other, a second driver of this process included, pass over those that are held. A lock goes with
//! the process that holds it, whatever ends it. The files stay: they are empty, and there are as many as were ever in use
//! at a time. Containers that do not share `/run` do not see each other's leases: give them ranges of their own.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::VmmError;

/// The folder of the locks of all services on this host.
const FOLDER: &str = "/run/nullspace/uids";

/// A range of uids (and gids of the same numbers) that nothing else on this host uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    /// The first uid. The default lies above what `useradd`, containers and systemd give out by themselves.
    pub uid_base: u32,
    /// Number of uids, and so of machines at a time.
    pub count: u32,
}

impl Default for RunAs {
    fn default() -> Self {
        Self { uid_base: 7_000_000, count: 4096 }
    }
}

/// Leases uids of a range.
#[derive(Debug)]
pub(crate) struct Uids {
    range: RunAs,
    folder: PathBuf,
    /// Those of this owner: they need not be tried.
    taken: Mutex<BTreeSet<u32>>,
}

impl Uids {
    /// Leases by the locks that all services on this host share. Needs root.
    pub(crate) fn new(range: RunAs) -> Result<Arc<Self>, VmmError> {
        Self::in_folder(range, Path::new(FOLDER))
    }

    fn in_folder(range: RunAs, folder: &Path) -> Result<Arc<Self>, VmmError> {
        let unusable = |why: String| {
            VmmError::Unavailable(format!(
                "uids of machines cannot be leased in {}: {why}; it must be a folder that only this service's user may \
                 write to",
                folder.display()
            ))
        };
        DirBuilder::new().recursive(true).mode(0o755).create(folder).map_err(|error| unusable(error.to_string()))?;
        // Whoever may write there could take a lock away from under its holder.
        for path in [folder.parent(), Some(folder)].into_iter().flatten() {
            let meta = std::fs::symlink_metadata(path).map_err(|error| unusable(error.to_string()))?;
            let ours = meta.uid() == rustix::process::geteuid().as_raw() || meta.uid() == 0;
            let sticky = meta.mode() & 0o1000 != 0 && path != folder;
            if !meta.is_dir() || !ours || (meta.mode() & 0o022 != 0 && !sticky) {
                return Err(unusable(format!("{} may be written to by others", path.display())));
            }
        }
        Ok(Arc::new(Self { range, folder: folder.to_owned(), taken: Mutex::default() }))
    }

    /// A uid that no living machine on this host has; `None` when all are taken. Blocks for some system calls.
    ///
    /// # Errors
    /// When a lock's file cannot be opened.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Option<Uid>, VmmError> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let end = self.range.uid_base.saturating_add(self.range.count);
        // 0 is root and the last number means "no uid": never given out, whatever the range says.
        for uid in self.range.uid_base.max(1)..end {
            if taken.contains(&uid) {
                continue;
            }
            let locked =
                self.lock(uid).map_err(|source| VmmError::Io { context: format!("lease uid {uid}"), source })?;
            if let Some(lock) = locked {
                taken.insert(uid);
                return Ok(Some(Uid { uid, owner: self.clone(), _lock: lock }));
            }
        }
        Ok(None)
    }

    /// `None` when somebody else has it.
    fn lock(&self, uid: u32) -> io::Result<Option<File>> {
        let path = self.folder.join(uid.to_string());
        let mut open = OpenOptions::new();
        open.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = open.open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(file)),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A uid in use; dropping it frees it.
#[derive(Debug)]
pub(crate) struct Uid {
    uid: u32,
    owner: Arc<Uids>,
    _lock: File,
}

impl Uid {
    pub(crate) fn number(&self) -> u32 {
        self.uid
    }
}

impl Drop for Uid {
    fn drop(&mut self) {
        self.owner.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.uid);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("uids")).unwrap();
        folder
    }

    fn uids(folder: &tempfile::TempDir, uid_base: u32, count: u32) -> Arc<Uids> {
        Uids::in_folder(RunAs { uid_base, count }, &folder.path().join("uids")).unwrap()
    }

    #[test]
    fn a_uid_is_given_to_one_machine_at_a_time() {
        let folder = folder();
        let uids = uids(&folder, 100, 2);
        let (first, second) = (uids.take().unwrap().unwrap(), uids.take().unwrap().unwrap());
        assert_eq!((first.number(), second.number()), (100, 101));
        assert!(uids.take().unwrap().is_none());
        drop(first);
        assert_eq!(uids.take().unwrap().unwrap().number(), 100);
    }

    #[test]
    fn two_services_never_share_a_uid() {
        let folder = folder();
        let (one, other) = (uids(&folder, 100, 3), uids(&folder, 100, 3));
        let first = one.take().unwrap().unwrap();
        let second = other.take().unwrap().unwrap();
        let third = one.take().unwrap().unwrap();
        assert_eq!((first.number(), second.number(), third.number()), (100, 101, 102));
        assert!(other.take().unwrap().is_none());
        drop(first);
        assert_eq!(other.take().unwrap().unwrap().number(), 100);
    }

    #[test]
    fn root_is_never_given_out() {
        let folder = folder();
        assert_eq!(uids(&folder, 0, 2).take().unwrap().unwrap().number(), 1);
        assert!(uids(&folder, u32::MAX, 2).take().unwrap().is_none());
    }

    #[test]
    fn a_folder_that_others_write_to_is_refused() {
        let folder = folder();
        let place = folder.path().join("uids");
        std::fs::set_permissions(&place, PermissionsExt::from_mode(0o777)).unwrap();
        let error = Uids::in_folder(RunAs::default(), &place).unwrap_err();
        assert!(error.to_string().contains("may be written to by others"), "{error}");
    }
}
