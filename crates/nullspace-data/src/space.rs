//! Reservation of space on the disk under the data folder.
//!
//! ```text
//!   0 ── reserved by others ── asked for ── must stay free ──> free
//! ```
//! Work that will write much reserves space first. A reservation counts against later ones until it is dropped or used up.
//! Writes without a reservation (a guest's disk, the database) only reduce the free space.

use std::io;

use rustix::fs::statvfs;

use crate::folders::{io_error, stored_bytes};
use crate::names::{ARTIFACTS, CAPTURES, CHUNKS, ROOTFS, SNAPSHOTS, WORK};
use crate::promises::Room;
use crate::{ArtifactStore, DataError, Result};

/// Size of a filesystem, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Free space for this process.
    pub free: u64,
    /// Whole size.
    pub total: u64,
}

/// Use of the data folder, bytes on the disk, without holes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Size of `artifacts/`: snapshots of older versions.
    pub artifacts: u64,
    /// Size of `chunks/`: durable root images and snapshots.
    pub chunks: u64,
    /// Size of `rootfs/` and `snapshots/`: the cache of raw root images and snapshots.
    pub rootfs: u64,
    /// Size of `work/` and `captures/`: machines and captures that are not stored yet. Links to one file count each.
    pub work: u64,
}

impl ArtifactStore {
    /// The filesystem under the data folder, now.
    pub fn space(&self) -> Result<Space> {
        let root = self.root();
        let stat = statvfs(root).map_err(|errno| io_error("measure", root)(errno.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Space { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks) })
    }

    /// Reserves `bytes`. Beside them and all other reservations, `reserve` stays free.
    ///
    /// # Errors
    /// [`DataError::Io`] with [`io::ErrorKind::StorageFull`].
    pub fn promise(&self, bytes: u64, reserve: u64) -> Result<Room> {
        self.promised().promise(bytes, |others| {
            let free = self.space()?.free;
            let needed = bytes.saturating_add(others).saturating_add(reserve);
            if free >= needed {
                return Ok(());
            }
            let context = format!(
                "the disk under the data directory has {} MiB free; {} MiB are asked for, {} MiB promised to others, and \
                 {} MiB must stay free",
                free >> 20,
                bytes.div_ceil(1 << 20),
                others >> 20,
                reserve >> 20,
            );
            Err(DataError::Io { context, source: io::ErrorKind::StorageFull.into() })
        })
    }

    /// Measures the use of the disk. Reads every folder: for metrics once a minute, not for requests.
    pub async fn usage(&self) -> Result<DiskUsage> {
        self.blocking(|root| {
            Ok(DiskUsage {
                artifacts: stored_bytes(&root.join(ARTIFACTS))?,
                chunks: stored_bytes(&root.join(CHUNKS))?,
                rootfs: stored_bytes(&root.join(ROOTFS))?.saturating_add(stored_bytes(&root.join(SNAPSHOTS))?),
                work: stored_bytes(&root.join(WORK))?.saturating_add(stored_bytes(&root.join(CAPTURES))?),
            })
        })
        .await
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
