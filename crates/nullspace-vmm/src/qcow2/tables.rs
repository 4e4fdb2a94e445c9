//! The tables of an overlay: where each subcluster's bytes lie.
//!
//! ```text
//!  L1 entry -> L2 table (one cluster of 4096 entries) -> entry: 64-bit host cluster, 64-bit bitmap
//!                                                        bitmap: 32 subclusters of 2 KiB: low half "allocated",
//!                                                        high half "reads as zeros", neither: the backing's
//! ```
//! QEMU may have the file open still, and a guest that took it over writes what it likes there: every number is checked,
//! and the file is never read beyond its own bounds. (`docs/interop/qcow2.txt`, "Extended L2 Entries".)

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::overlay::{BYTES_PER_L1_ENTRY, CLUSTER, FIXED_CLUSTERS, verify};

/// Bits 9 to 55: a host offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Compressed clusters, which this service's machines never write.
const COMPRESSED: u64 = 1 << 62;
/// Entries of an L2 table.
pub(super) const ENTRIES: usize = (CLUSTER / ENTRY as u64) as usize;
/// Bytes of its entry.
pub(super) const ENTRY: usize = 16;
/// Subclusters of a cluster.
pub(super) const SUBCLUSTERS: u64 = 32;
/// Bytes of a subcluster.
pub(super) const SUBCLUSTER: u64 = CLUSTER / SUBCLUSTERS;

/// An overlay whose L1 table has been read.
#[derive(Debug)]
pub(super) struct Tables<'a> {
    pub(super) file: &'a File,
    /// Length of the file when its L1 table was read, bytes.
    pub(super) length: u64,
    size: u64,
    l1: Vec<u64>,
}

/// An L2 entry with anything in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    /// Offset of its cluster in the file; without meaning when nothing is allocated.
    pub(super) place: u64,
    /// The subclusters that have bytes in the file, a bit each.
    pub(super) allocated: u32,
    /// The subclusters that read as zeros, a bit each.
    pub(super) zeros: u32,
}

impl<'a> Tables<'a> {
    /// Reads the L1 table of an overlay of `size` bytes.
    pub(super) fn read(file: &'a File, size: u64) -> io::Result<Self> {
        verify(file, size)?;
        let length = file.metadata()?.len();
        let mut bytes = vec![0; usize::try_from(size.div_ceil(BYTES_PER_L1_ENTRY) * 8).map_err(|_| damaged())?];
        file.read_exact_at(&mut bytes, FIXED_CLUSTERS * CLUSTER)?;
        let l1: Vec<u64> = bytes.chunks_exact(8).map(|entry| number(entry) & OFFSET).collect();
        let sound = |at: &u64| at.is_multiple_of(CLUSTER) && at.checked_add(CLUSTER).is_some_and(|end| end <= length);
        if !l1.iter().filter(|at| **at != 0).all(sound) {
            return Err(damaged());
        }
        Ok(Self { file, length, size, l1 })
    }

    /// Number of L2 tables that such a disk has at most.
    pub(super) fn count(&self) -> usize {
        self.l1.len()
    }

    /// Reads the L2 table `index` into `table`, a cluster. False, and `table` as it was, when there is none.
    pub(super) fn load(&self, index: usize, table: &mut [u8]) -> io::Result<bool> {
        match self.l1.get(index) {
            None | Some(0) => Ok(false),
            Some(at) => self.file.read_exact_at(table, *at).map(|()| true),
        }
    }

    /// Returns entry `cluster` of the loaded table `index`; `None` when all of it is the backing's.
    pub(super) fn entry(&self, index: usize, table: &[u8], cluster: usize) -> io::Result<Option<Entry>> {
        let bytes = table.get(cluster * ENTRY..(cluster + 1) * ENTRY).ok_or_else(damaged)?;
        let (place, bitmap) = (number(&bytes[..8]), number(&bytes[8..]));
        if bitmap == 0 {
            return Ok(None);
        }
        let (allocated, zeros) = (bitmap as u32, (bitmap >> 32) as u32);
        if place & COMPRESSED != 0 || allocated & zeros != 0 || offset_of(index, cluster) >= self.size {
            return Err(damaged());
        }
        let place = place & OFFSET;
        // A cluster at the end of the file may be shorter than its bitmap says: what QEMU did not write reads as zeros there.
        let lies_in_file = place != 0 && place.is_multiple_of(CLUSTER) && place <= self.length;
        if allocated != 0 && !lies_in_file {
            return Err(damaged());
        }
        Ok(Some(Entry { place, allocated, zeros }))
    }
}

/// The offset on the disk of cluster `cluster` of the L2 table `index`.
pub(super) fn offset_of(index: usize, cluster: usize) -> u64 {
    index as u64 * BYTES_PER_L1_ENTRY + cluster as u64 * CLUSTER
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

pub(super) fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the disk overlay is damaged")
}
