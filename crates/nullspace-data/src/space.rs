//! Room on the disk under the data directory.
//!
//! ```text
//!   0 ── what others have been promised ── what is asked for ── what must stay free ──> free
//! ```
//! Whoever is going to write much asks first: the promise counts against everyone who asks later, until it is dropped or
//! used up. What is written without a promise (a guest's disk, the database) shows as room that is gone.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::statvfs;

use crate::{ArtifactStore, DataError, Result, artifacts::io_error};

/// A file system, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Can still be written by this process.
    pub free: u64,
    /// Its size.
    pub total: u64,
}

/// The sum of all promises, bytes.
#[derive(Debug, Default)]
pub(crate) struct Promised(Mutex<u64>);

/// Room that was promised. Dropped, what is left of it is anybody's again.
#[derive(Debug)]
pub struct Room {
    promised: Arc<Promised>,
    left: u64,
}

impl Room {
    /// So many bytes of it have been written: from now on they show as used.
    pub fn used(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.left -= bytes;
        let mut sum = self.promised.0.lock().unwrap_or_else(PoisonError::into_inner);
        *sum = sum.saturating_sub(bytes);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.used(self.left);
    }
}

impl ArtifactStore {
    /// The file system under the data directory, now.
    pub fn space(&self) -> Result<Space> {
        let root = self.root();
        let stat = statvfs(root).map_err(|errno| io_error("measure", root)(errno.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks) })
    }

    /// Promises room for `bytes`: beside them and all other promises `reserve` stays free.
    ///
    /// # Errors
    /// [`DataError::Io`] with [`io::ErrorKind::StorageFull`].
    pub fn promise(&self, bytes: u64, reserve: u64) -> Result<Room> {
        let promised = Arc::clone(self.promised());
        let mut sum = promised.0.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.space()?.free;
        let needed = bytes.saturating_add(*sum).saturating_add(reserve);
        if free < needed {
            let context = format!(
                "the disk under the data directory has {} MiB free; {} MiB are asked for, {} MiB promised to others, and \
                 {} MiB must stay free",
                free >> 20,
                bytes.div_ceil(1 << 20),
                *sum >> 20,
                reserve >> 20,
            );
            return Err(DataError::Io { context, source: io::ErrorKind::StorageFull.into() });
        }
        *sum = sum.saturating_add(bytes);
        drop(sum);
        Ok(Room { promised, left: bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_promised_to_one_is_not_there_for_another() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        // The file system is not ours alone: two promises of two thirds of it cannot both be kept, whatever others do.
        let Space { free, total } = store.space().unwrap();
        assert!(free > 0 && free <= total);
        let most = free / 3 * 2;
        let mut first = store.promise(most, 0).unwrap();
        let refused = store.promise(most, 0).unwrap_err();
        assert!(refused.is_storage_full() && refused.is_retryable(), "{refused}");
        assert!(refused.to_string().contains("MiB promised to others"), "{refused}");
        first.used(most);
        let second = store.promise(most, 0).unwrap();
        drop(first);
        assert!(store.promise(most, 0).is_err(), "what is used up cannot be given back a second time");
        drop(second);
        drop(store.promise(most, 0).unwrap());
        assert!(store.promise(0, u64::MAX).is_err());
        store.promise(0, 0).unwrap();
    }
}
