//! Sources of an image's bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::{Error, Result};

/// Unit of comparison: a filesystem's block, and the smallest write of virtual disks.
pub(crate) const BLOCK: u64 = 4096;

/// A run of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset, bytes.
    pub at: u64,
    /// Length, bytes.
    pub len: u64,
    /// All zeros; it is not read.
    pub zero: bool,
}

/// The changes of an image. Several threads read them at once.
pub trait Changes: Sync {
    /// Length of the image with the changes, bytes; at least its parent's.
    fn image_bytes(&self) -> u64;

    /// All ranges that may differ from the parent, sorted and disjoint. Ranges that do not differ are found and left out.
    fn extents(&self) -> Vec<Extent>;

    /// The bytes at this place, which lies in an extent that is not zero.
    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()>;
}

/// A sparse file: all that is not a hole.
pub(crate) struct WholeFile<'a> {
    file: &'a File,
    bytes: u64,
    extents: Vec<Extent>,
}

impl<'a> WholeFile<'a> {
    pub(crate) fn new(file: &'a File) -> io::Result<WholeFile<'a>> {
        let bytes = file.metadata()?.len();
        let (mut extents, mut at) = (Vec::new(), 0);
        while at < bytes {
            let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(start) if start < bytes => start,
                Ok(_) | Err(Errno::NXIO) => break,
                // A filesystem that knows no holes: all of it is data.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                    extents.push(Extent { at, len: bytes - at, zero: false });
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(bytes);
            extents.push(Extent { at: start, len: end - start, zero: false });
            at = end;
        }
        Ok(WholeFile { file, bytes, extents })
    }
}

impl Changes for WholeFile<'_> {
    fn image_bytes(&self) -> u64 {
        self.bytes
    }

    fn extents(&self) -> Vec<Extent> {
        self.extents.clone()
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, at)
    }
}

/// Part of an extent that lies in one chunk's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) zero: bool,
}

/// Cuts extents at multiples of `chunk`; runs of zeros stay whole.
pub(crate) struct Cells {
    extents: std::vec::IntoIter<Extent>,
    rest: Option<Extent>,
    chunk: u64,
}

impl Cells {
    /// Refuses extents that are not sorted and disjoint, or lie outside the image.
    pub(crate) fn new(extents: Vec<Extent>, bytes: u64, chunk: u64) -> Result<Cells> {
        let mut last = 0;
        for extent in &extents {
            let end = extent.at.checked_add(extent.len).filter(|end| *end <= bytes);
            match end {
                Some(end) if extent.at >= last => last = end,
                _ => return Err(Error::invalid("its changes overlap or lie outside it")),
            }
        }
        Ok(Cells { extents: extents.into_iter(), rest: None, chunk })
    }
}

impl Iterator for Cells {
    type Item = Cell;

    fn next(&mut self) -> Option<Cell> {
        let extent = loop {
            match self.rest.take().or_else(|| self.extents.next())? {
                extent if extent.len > 0 => break extent,
                _ => {}
            }
        };
        let Extent { at, len, zero } = extent;
        if zero {
            return Some(Cell { at, len, zero });
        }
        let part = len.min(self.chunk - at % self.chunk);
        self.rest = Some(Extent { at: at + part, len: len - part, zero });
        Some(Cell { at, len: part, zero })
    }
}

/// Whether all bytes are zero.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    // In words: this is asked of every block of every image.
    let (words, tail) = bytes.as_chunks::<16>();
    words.iter().all(|word| *word == [0; 16]) && tail.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_cut_where_chunks_begin() {
        let extents = vec![
            Extent { at: 4, len: 10, zero: false },
            Extent { at: 14, len: 0, zero: false },
            Extent { at: 20, len: 100, zero: true },
            Extent { at: 120, len: 8, zero: false },
        ];
        let cells: Vec<_> = Cells::new(extents, 128, 8).unwrap().map(|cell| (cell.at, cell.len, cell.zero)).collect();
        assert_eq!(cells, [(4, 4, false), (8, 6, false), (20, 100, true), (120, 8, false)]);
    }

    #[test]
    fn impossible_extents_are_refused() {
        let extent = |at, len| Extent { at, len, zero: false };
        for extents in [
            vec![extent(0, 129)],
            vec![extent(u64::MAX, 2)],
            vec![extent(8, 8), extent(0, 4)],
            vec![extent(0, 8), extent(7, 1)],
        ] {
            assert!(Cells::new(extents, 128, 8).is_err());
        }
    }

    #[test]
    fn one_bit_makes_bytes_not_zero() {
        assert!(is_zero(&[]));
        for length in [1, 15, 16, 17, 4096] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in [0, length / 2, length - 1] {
                bytes[at] = 1;
                assert!(!is_zero(&bytes));
                bytes[at] = 0;
            }
        }
    }
}
