//! Captures: the writes of a booted machine to its disk, which is a plain file under Firecracker.
//!
//! ```text
//!   image   |aaaaaaaa|bbbbbbbb|cccccccc|        the disk's blocks are compared with the image's, or, once a block has
//!   disk    |aaaaaaaa|BBBBBBBB|cccccccc|        been captured, with its digest; what differs is copied to a nameless
//!               =        !        =             file, so that the guest may go on writing
//! ```
//! The kernel tells nobody which blocks of a file were written, so both are read: its cost is the image's data at the speed
//! of the page cache. Where the filesystem shares blocks between files, what is still shared is skipped.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::files::nameless;
use crate::changes::{DiskChanges, Extent};
use crate::sparse;

/// Unit of comparison and capture, bytes: a block of the guest's filesystem.
const BLOCK: u64 = 4096;
/// Bytes read at once.
const CHUNK: u64 = 1 << 20;

/// A disk, the image that it began as, and what was captured of it.
#[derive(Debug)]
pub(super) struct Tracked {
    disk: File,
    image: File,
    /// The folder for captured blocks, on the machine's own filesystem.
    scratch: PathBuf,
    /// Digests of blocks that were captured, by number.
    captured: HashMap<u64, blake3::Hash>,
}

impl Tracked {
    /// `disk` holds what `image` does, and zeros beyond it.
    pub(super) fn new(disk: File, image: File, scratch: &Path) -> Self {
        Self { disk, image, scratch: scratch.to_owned(), captured: HashMap::new() }
    }

    /// Returns the blocks that differ from the last capture. The guest must not write meanwhile. Blocks.
    pub(super) fn capture(&mut self) -> io::Result<DiskChanges> {
        let size = self.disk.metadata()?.len();
        let copy = nameless(&self.scratch)?;
        let mut parts = Vec::new();
        let (mut at, mut end) = (0, 0);
        let (mut disk, mut image) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
        while let Some(start) = self.next(at, size)? {
            // Whole blocks: extents of a file begin where the filesystem's blocks do.
            let start = start - start % BLOCK;
            let len = CHUNK.min(size - start);
            at = start + len;
            if shared(&self.disk, &self.image, start, len) {
                continue;
            }
            let (disk, image) = (&mut disk[..len as usize], &mut image[..len as usize]);
            read_padded(&self.disk, disk, start)?;
            read_padded(&self.image, image, start)?;
            for (index, (now, before)) in disk.chunks(BLOCK as usize).zip(image.chunks(BLOCK as usize)).enumerate() {
                let offset = start + index as u64 * BLOCK;
                let changed = match self.captured.get(&(offset / BLOCK)) {
                    None => now != before,
                    Some(digest) => *digest != blake3::hash(now),
                };
                if !changed {
                    continue;
                }
                self.captured.insert(offset / BLOCK, blake3::hash(now));
                let zero = now.iter().all(|byte| *byte == 0);
                if !zero {
                    copy.write_all_at(now, end)?;
                }
                parts.push((Extent { offset, len: now.len() as u64, zero }, end));
                end += if zero { 0 } else { now.len() as u64 };
            }
        }
        Ok(DiskChanges::new(size, parts, copy))
    }

    /// Returns the first offset, at or after `at`, where the disk or the image has data.
    fn next(&self, at: u64, size: u64) -> io::Result<Option<u64>> {
        let of = |file| Ok::<_, io::Error>(sparse::next_data(file, at, size)?.map(|(start, _)| start));
        Ok([of(&self.disk)?, of(&self.image)?].into_iter().flatten().min())
    }
}

/// Fills the buffer from the file; zeros behind its end.
fn read_padded(file: &File, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match file.read_at(buffer, at) {
            Ok(0) => {
                buffer.fill(0);
                return Ok(());
            }
            Ok(read) => {
                buffer = buffer.get_mut(read..).unwrap_or_default();
                at += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

// ---------------------------------------------------------------- blocks that two files share

/// `_IOWR('f', 11, struct fiemap)`.
const FIEMAP: libc::c_ulong = 0xc020_660b;
const EXTENTS: usize = 16;
const FLAG_SYNC: u32 = 1;
const EXTENT_LAST: u32 = 1;
/// The place is no place yet: unknown, delayed allocation, encoded, not aligned, inline, unwritten.
const EXTENT_UNSURE: u32 = 0x2 | 0x4 | 0x8 | 0x100 | 0x200 | 0x800;

/// `struct fiemap` with room for [`EXTENTS`] of `struct fiemap_extent`.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [FiemapExtent; EXTENTS],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved: [u64; 2],
    flags: u32,
    more: [u32; 3],
}

/// True when this range of both files lies in the same place of the same filesystem. False when that is not known.
#[allow(unsafe_code, reason = "the extents of a file are read by an ioctl")]
fn shared(one: &File, other: &File, start: u64, len: u64) -> bool {
    let same_device = || -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        Ok(one.metadata()?.dev() == other.metadata()?.dev())
    };
    let places = |file: &File| -> Option<Vec<(u64, u64, u64)>> {
        let mut map = Fiemap {
            start,
            length: len,
            flags: FLAG_SYNC,
            mapped: 0,
            count: EXTENTS as u32,
            reserved: 0,
            extents: [FiemapExtent::default(); EXTENTS],
        };
        // SAFETY: the structure is laid out as the kernel's, and tells how many extents it has room for.
        if unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, &raw mut map) } < 0 {
            return None;
        }
        let found = map.extents.get(..map.mapped as usize)?;
        if found.len() == EXTENTS && found.last()?.flags & EXTENT_LAST == 0 {
            return None;
        }
        let clip = |extent: &FiemapExtent| {
            let from = extent.logical.max(start);
            let to = extent.logical.checked_add(extent.length)?.min(start + len);
            let place = extent.physical.checked_add(from - extent.logical)?;
            (extent.flags & EXTENT_UNSURE == 0).then_some((from, place, to.checked_sub(from)?))
        };
        found.iter().map(clip).collect()
    };
    match (same_device(), places(one)) {
        (Ok(true), Some(ours)) if !ours.is_empty() => places(other).is_some_and(|theirs| theirs == ours),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 5 << 20;

    fn blocks(changes: &DiskChanges, onto: &mut [u8]) {
        for extent in changes.extents() {
            let range = extent.offset as usize..(extent.offset + extent.len) as usize;
            changes.read_at(extent.offset, &mut onto[range]).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
        #[test]
        fn captures_add_up_to_the_disk_and_hold_no_more_than_changed(
            rounds in proptest::collection::vec(
                proptest::collection::vec((0..SIZE / 4096 - 4, 1..5u64, any::<u8>()), 0..8), 1..5)
        ) {
            let folder = tempfile::tempdir().unwrap();
            let image = folder.path().join("image");
            let start: Vec<u8> = (0..3u64 << 20).map(|at| if at / 4096 % 3 == 0 { 0 } else { (at / 4096) as u8 }).collect();
            std::fs::write(&image, &start).unwrap();
            let disk = folder.path().join("disk");
            std::fs::copy(&image, &disk).unwrap();
            let disk = OpenOptions::new().read(true).write(true).open(&disk).unwrap();
            disk.set_len(SIZE).unwrap();
            let mut tracked = Tracked::new(disk.try_clone().unwrap(), File::open(&image).unwrap(), folder.path());
            let mut built = start;
            built.resize(SIZE as usize, 0);
            for writes in rounds {
                let before = built.clone();
                for (block, count, byte) in writes {
                    disk.write_all_at(&vec![byte; (count * BLOCK) as usize], block * BLOCK).unwrap();
                }
                let changes = tracked.capture().unwrap();
                prop_assert_eq!(changes.disk_bytes(), SIZE);
                blocks(&changes, &mut built);
                let mut now = vec![0; SIZE as usize];
                disk.read_exact_at(&mut now, 0).unwrap();
                prop_assert!(built == now);
                let differing = before.chunks(4096).zip(now.chunks(4096)).filter(|(a, b)| a != b).count() as u64;
                let captured: u64 = changes.extents().iter().map(|extent| extent.len).sum();
                prop_assert_eq!(captured, differing * BLOCK);
            }
            // Nothing of it has a name.
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        }
    }
}
