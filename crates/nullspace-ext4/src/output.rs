//! The file below: blocks collected into large writes, and holes where nothing is written.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::FallocateFlags;

use crate::error::io;
use crate::{BLOCK, BLOCK_SIZE, Error};

/// Blocks that follow each other are collected up to this many bytes before they are written.
const COLLECTED: usize = 1 << 20;
/// A piece at least this long is written from where it is, which saves copying it.
const DIRECT: usize = 256 << 10;

/// Writes blocks to a file.
#[derive(Debug)]
pub(crate) struct Output {
    file: File,
    /// Blocks not yet written...
    pending: Vec<u8>,
    /// ... and where they go.
    pending_start: u32,
    /// One past the last block ever written.
    high_water: u32,
}

impl Output {
    /// Empties `file` and gives it `size_bytes`, all of them a hole.
    pub(crate) fn create(file: File, size_bytes: u64) -> Result<Output, Error> {
        // Not for a file that is empty already: ext4 takes truncation to nothing as "this replaces old contents" and
        // starts to write out everything when the file is closed, which costs as much as writing the image.
        if file.metadata().map_err(io("look at the image file"))?.len() > 0 {
            file.set_len(0).map_err(io("empty the image file"))?;
        }
        file.set_len(size_bytes).map_err(io("set the size of the image file"))?;
        Ok(Output::of(file))
    }

    /// Writes into `file` as it is.
    pub(crate) fn of(file: File) -> Output {
        Output { file, pending: Vec::with_capacity(COLLECTED), pending_start: 0, high_water: 0 }
    }

    /// Puts whole blocks at `block`, soon.
    pub(crate) fn append(&mut self, block: u32, mut bytes: &[u8]) -> Result<(), Error> {
        debug_assert_eq!(bytes.len() % BLOCK, 0);
        if block != self.pending_end() {
            self.flush()?;
            self.pending_start = block;
        }
        while !bytes.is_empty() {
            if self.pending.is_empty() && bytes.len() >= DIRECT {
                let start = self.pending_start;
                self.write(start, bytes)?;
                self.pending_start = start + (bytes.len() / BLOCK) as u32;
                break;
            }
            let (now, later) = bytes.split_at(bytes.len().min(COLLECTED - self.pending.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            if self.pending.len() == COLLECTED {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes blocks at `block` now.
    pub(crate) fn write(&mut self, block: u32, bytes: &[u8]) -> Result<(), Error> {
        self.file.write_all_at(bytes, u64::from(block) * BLOCK_SIZE).map_err(io("write to the image file"))?;
        self.high_water = self.high_water.max(block + bytes.len().div_ceil(BLOCK) as u32);
        Ok(())
    }

    /// Writes what was collected.
    pub(crate) fn flush(&mut self) -> Result<(), Error> {
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            let start = self.pending_start;
            self.pending_start = self.pending_end_of(pending.len());
            let written = self.write(start, &pending);
            self.pending = pending;
            self.pending.clear();
            written?;
        }
        Ok(())
    }

    /// Forgets collected blocks from `block` on. What was written already stays, until [`Output::punch`].
    pub(crate) fn forget_from(&mut self, block: u32) {
        if block < self.pending_end() {
            let kept = block.saturating_sub(self.pending_start) as usize * BLOCK;
            self.pending.truncate(kept);
            self.pending_start = self.pending_start.min(block);
        }
    }

    /// One past the last block ever written.
    pub(crate) fn high_water(&self) -> u32 {
        self.high_water
    }

    /// Makes blocks read as zeros and take no room.
    pub(crate) fn punch(&mut self, block: u32, len: u32) -> Result<(), Error> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let (offset, length) = (u64::from(block) * BLOCK_SIZE, u64::from(len) * BLOCK_SIZE);
        match rustix::fs::fallocate(&self.file, flags, offset, length) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.write_zeros(block, len),
            Err(errno) => Err(io("punch a hole into the image file")(errno.into())),
        }
    }

    /// For filesystems that cannot punch holes.
    fn write_zeros(&mut self, block: u32, len: u32) -> Result<(), Error> {
        let zeros = vec![0; COLLECTED];
        let mut position = block;
        while position < block + len {
            let count = (block + len - position).min((COLLECTED / BLOCK) as u32);
            self.write(position, &zeros[..count as usize * BLOCK])?;
            position += count;
        }
        Ok(())
    }

    /// The file, with everything written to it.
    pub(crate) fn into_file(mut self) -> Result<File, Error> {
        self.flush()?;
        Ok(self.file)
    }

    fn pending_end(&self) -> u32 {
        self.pending_end_of(self.pending.len())
    }

    fn pending_end_of(&self, length: usize) -> u32 {
        self.pending_start + (length / BLOCK) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output() -> Output {
        Output::create(tempfile::tempfile().unwrap(), 64 << 20).unwrap()
    }

    fn first_bytes(file: &File, blocks: std::ops::Range<u64>) -> Vec<u8> {
        let read = |block| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, block * BLOCK_SIZE).unwrap();
            byte[0]
        };
        blocks.map(read).collect()
    }

    #[test]
    fn pieces_of_all_sizes_land_where_they_belong() {
        let mut output = output();
        output.append(3, &[1; BLOCK]).unwrap();
        output.append(4, &[2; 2 * BLOCK]).unwrap();
        output.append(6, &vec![3; 2 * COLLECTED + BLOCK]).unwrap();
        let next = 6 + 513;
        output.append(next, &[4; BLOCK]).unwrap();
        output.append(1000, &[5; BLOCK]).unwrap();
        output.append(1001, &vec![6; DIRECT]).unwrap();
        let file = output.into_file().unwrap();
        assert_eq!(first_bytes(&file, 2..8), [0, 1, 2, 2, 3, 3]);
        assert_eq!(first_bytes(&file, 517..521), [3, 3, 4, 0]);
        assert_eq!(first_bytes(&file, 999..1003), [0, 5, 6, 6]);
        assert_eq!(first_bytes(&file, 1063..1067), [6, 6, 0, 0]);
    }

    #[test]
    fn forgotten_blocks_are_not_written_and_others_take_their_place() {
        let mut output = output();
        output.append(10, &[1; 4 * BLOCK]).unwrap();
        output.forget_from(12);
        output.append(12, &[2; BLOCK]).unwrap();
        output.forget_from(5);
        output.append(5, &[3; BLOCK]).unwrap();
        let file = output.into_file().unwrap();
        assert_eq!(first_bytes(&file, 4..14), [0, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_punched_hole_reads_as_zeros() {
        let mut output = output();
        output.write(0, &vec![7; 8 * BLOCK]).unwrap();
        output.punch(2, 3).unwrap();
        output.write_zeros(6, 1).unwrap();
        assert_eq!(output.high_water(), 8);
        let file = output.into_file().unwrap();
        assert_eq!(first_bytes(&file, 0..8), [7, 7, 0, 0, 0, 7, 0, 7]);
    }
}
