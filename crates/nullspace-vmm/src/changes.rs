//! The writes of a running machine to its disk, as extents and their bytes.
//!
//! ```text
//!   disk    |....aaaa....bb..0000....|        . as in the base image      0 given back, reads as zeros
//!   extents      aaaa    bb  0000             sorted, disjoint
//!   file    |..bb..aaaa..|                    where their bytes lie; nothing writes it any more
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A part of a disk that differs from the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset on the disk, bytes; a multiple of 512.
    pub offset: u64,
    /// Its length, bytes; not zero, a multiple of 512.
    pub len: u64,
    /// It reads as zeros.
    pub zero: bool,
}

/// The result of [`Vm::capture`](crate::Vm::capture). Applied to the disk as it was at the last capture (or to the base image, grown
/// to `disk_bytes` with zeros), it gives the disk as it was at this one. It outlives the machine.
#[derive(Debug)]
pub struct DiskChanges {
    disk_bytes: u64,
    extents: Vec<Extent>,
    /// Offset of each extent's bytes in `file`; without meaning for an extent of zeros.
    places: Vec<u64>,
    file: File,
}

impl DiskChanges {
    /// From extents with their places in `file`, in any order. Neighbours are joined.
    pub(crate) fn new(disk_bytes: u64, mut parts: Vec<(Extent, u64)>, file: File) -> Self {
        parts.sort_unstable_by_key(|(extent, _)| extent.offset);
        let mut changes = Self { disk_bytes, extents: Vec::new(), places: Vec::new(), file };
        for (extent, place) in parts {
            if let (Some(last), Some(at)) = (changes.extents.last_mut(), changes.places.last())
                && last.offset + last.len == extent.offset
                && last.zero == extent.zero
                && (extent.zero || at + last.len == place)
            {
                last.len += extent.len;
                continue;
            }
            changes.extents.push(extent);
            changes.places.push(place);
        }
        changes
    }

    /// Returns the disk's size as the guest sees it, bytes.
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Returns the extents that differ from the base: sorted, disjoint.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Reads from within one extent. Blocks.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when the range is not within one extent; else the file's.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let after = self.extents.partition_point(|extent| extent.offset <= offset);
        let found = after.checked_sub(1).and_then(|index| Some((self.extents.get(index)?, self.places.get(index)?)));
        let Some((extent, place)) = found.filter(|(extent, _)| {
            offset - extent.offset <= extent.len && buffer.len() as u64 <= extent.len - (offset - extent.offset)
        }) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not within one extent"));
        };
        if extent.zero {
            buffer.fill(0);
            return Ok(());
        }
        self.file.read_exact_at(buffer, place + (offset - extent.offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined_and_reads_stay_within_an_extent() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"bbaaaa", 0).unwrap();
        let part = |offset, len, zero, place| (Extent { offset, len, zero }, place);
        let parts = vec![
            part(20, 2, false, 0),
            part(10, 2, false, 2),
            part(12, 2, false, 4),
            part(24, 4, true, 0),
            part(28, 4, true, 99),
            part(22, 2, false, 4),
        ];
        let changes = DiskChanges::new(64, parts, file);
        let extent = |offset, len, zero| Extent { offset, len, zero };
        let expected = [extent(10, 4, false), extent(20, 2, false), extent(22, 2, false), extent(24, 8, true)];
        assert_eq!(changes.extents(), expected);
        let mut buffer = [9; 3];
        changes.read_at(11, &mut buffer).unwrap();
        assert_eq!(&buffer, b"aaa");
        changes.read_at(29, &mut buffer).unwrap();
        assert_eq!(buffer, [0; 3]);
        for (offset, len) in [(12, 3), (9, 1), (14, 1), (20, 3), (64, 1), (u64::MAX, 1)] {
            let error = changes.read_at(offset, &mut vec![0; len]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{offset}+{len}");
        }
    }
}
