//! What differs between an image and a changed copy of it, found by comparing: for the measurements of this crate and of
//! those above it, where no machine says what it wrote.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Changes, Extent};

const STEP: usize = 1 << 20;
/// What is compared at once, bytes.
pub(crate) const BLOCK: usize = 4096;

/// A changed copy of an image, and where it differs.
pub(crate) struct Compared {
    file: File,
    bytes: u64,
    extents: Vec<Extent>,
}

impl Compared {
    /// Compares block by block.
    pub(crate) fn new(before: &File, file: File) -> io::Result<Compared> {
        let bytes = file.metadata()?.len();
        let (mut old, mut new) = (vec![0; STEP], vec![0; STEP]);
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = 0;
        while at < bytes {
            let length = (bytes - at).min(STEP as u64) as usize;
            before.read_exact_at(&mut old[..length], at)?;
            file.read_exact_at(&mut new[..length], at)?;
            for (index, (old, new)) in old[..length].chunks(BLOCK).zip(new[..length].chunks(BLOCK)).enumerate() {
                if old == new {
                    continue;
                }
                let start = at + (index * BLOCK) as u64;
                match extents.last_mut() {
                    Some(last) if last.at + last.len == start => last.len += new.len() as u64,
                    _ => extents.push(Extent { at: start, len: new.len() as u64, zero: false }),
                }
            }
            at += length as u64;
        }
        Ok(Compared { file, bytes, extents })
    }
}

impl Changes for Compared {
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
