//! Contents of files, written before the files have names. Blocks are allocated in the order of the bytes. So a file is
//! contiguous unless it meets a superblock copy, and files follow each other. Runs of zeros become holes.

use crate::content::ContentArea;
use crate::error::Error;
use crate::extent::{Extent, FileData, push_blocks};
use crate::writer::ImageWriter;
use crate::{BLOCK, BLOCK_SIZE};

/// Largest file, bytes: 2^32 - 1 blocks, the kernel's limit for extents.
pub(crate) const MAX_FILE_BYTES: u64 = (u32::MAX as u64) * BLOCK_SIZE;

/// Shortest hole, blocks. A shorter run of zeros between contents is written: a hole would split the file into one more
/// extent, and a later write into it would fragment the file.
const MIN_HOLE: u64 = 4;

static ZEROS: [u8; MIN_HOLE as usize * BLOCK] = [0; MIN_HOLE as usize * BLOCK];

/// Writes the contents of one file. Dropping it without [`FileWriter::finish`] releases its blocks.
#[derive(Debug)]
pub struct FileWriter<'image> {
    image: &'image mut ImageWriter,
    /// State of the image before this file.
    before: ContentArea,
    finished: bool,
    size: u64,
    extents: Vec<Extent>,
    /// Blocks of the file in extents, or in holes between them.
    blocks: u64,
    /// Zero blocks after those, not yet written and not yet a hole.
    zero_blocks: u64,
    /// Bytes in the incomplete last block, which is in the image's buffer.
    partial: usize,
}

impl ImageWriter {
    /// Begins a file. The tree names it later.
    pub fn begin_file(&mut self) -> FileWriter<'_> {
        FileWriter::new(self)
    }
}

impl<'image> FileWriter<'image> {
    fn new(image: &'image mut ImageWriter) -> FileWriter<'image> {
        let before = image.content.clone();
        FileWriter {
            image,
            before,
            finished: false,
            size: 0,
            extents: Vec::new(),
            blocks: 0,
            zero_blocks: 0,
            partial: 0,
        }
    }

    /// Adds bytes. Any length is possible; pieces of about one MiB are fastest.
    ///
    /// # Errors
    /// [`Error::FileTooLarge`], [`Error::TooSmall`] when the image is full (unless that is counted), [`Error::Io`]. The file
    /// is lost then and can only be dropped.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.lengthen(bytes.len() as u64)?;
        let mut rest = bytes;
        if self.partial > 0 {
            let (head, tail) = rest.split_at(rest.len().min(BLOCK - self.partial));
            self.image.partial[self.partial..self.partial + head.len()].copy_from_slice(head);
            self.partial += head.len();
            rest = tail;
            if self.partial < BLOCK {
                return Ok(());
            }
            self.push_partial()?;
        }
        let (whole, tail) = rest.split_at(rest.len() - rest.len() % BLOCK);
        self.push_whole(whole)?;
        self.image.partial[..tail.len()].copy_from_slice(tail);
        self.partial = tail.len();
        Ok(())
    }

    /// Adds `length` zero bytes as a hole, without writing them.
    ///
    /// # Errors
    /// As for [`FileWriter::push`].
    pub fn push_hole(&mut self, length: u64) -> Result<(), Error> {
        self.lengthen(length)?;
        let mut rest = length;
        if self.partial > 0 {
            let head = rest.min((BLOCK - self.partial) as u64) as usize;
            self.image.partial[self.partial..self.partial + head].fill(0);
            self.partial += head;
            rest -= head as u64;
            if self.partial < BLOCK {
                return Ok(());
            }
            self.push_partial()?;
        }
        self.zero_blocks += rest / BLOCK_SIZE;
        self.partial = (rest % BLOCK_SIZE) as usize;
        self.image.partial[..self.partial].fill(0);
        Ok(())
    }

    /// Completes the contents.
    ///
    /// # Errors
    /// As for [`FileWriter::push`].
    pub fn finish(mut self) -> Result<FileData, Error> {
        if self.partial > 0 {
            self.image.partial[self.partial..].fill(0);
            self.push_partial()?;
        }
        self.finished = true;
        Ok(FileData::new(self.size, std::mem::take(&mut self.extents)))
    }

    fn lengthen(&mut self, more: u64) -> Result<(), Error> {
        self.size = self
            .size
            .checked_add(more)
            .filter(|&size| size <= MAX_FILE_BYTES)
            .ok_or(Error::FileTooLarge { limit_bytes: MAX_FILE_BYTES })?;
        Ok(())
    }

    /// Adds the full buffered block.
    fn push_partial(&mut self) -> Result<(), Error> {
        self.partial = 0;
        let block = std::mem::take(&mut self.image.partial);
        let pushed = self.push_whole(&block);
        self.image.partial = block;
        pushed
    }

    /// Adds whole blocks. Blocks with contents are written run by run, and zero blocks are counted.
    fn push_whole(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let zeros = rest.chunks_exact(BLOCK).take_while(|block| is_zero(block)).count();
            self.zero_blocks += zeros as u64;
            rest = &rest[zeros * BLOCK..];
            let full = rest.chunks_exact(BLOCK).take_while(|block| !is_zero(block)).count();
            let (run, behind) = rest.split_at(full * BLOCK);
            if !run.is_empty() {
                self.settle_zeros()?;
                self.write(run)?;
            }
            rest = behind;
        }
        Ok(())
    }

    /// Ends a run of zero blocks before contents: a short run is written, and a long one becomes a hole.
    fn settle_zeros(&mut self) -> Result<(), Error> {
        let zeros = std::mem::take(&mut self.zero_blocks);
        if zeros < MIN_HOLE && !self.extents.is_empty() {
            self.write(&ZEROS[..zeros as usize * BLOCK])
        } else {
            self.blocks += zeros;
            Ok(())
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some((start, len)) = self.image.content.take((rest.len() / BLOCK) as u32) else {
                let more = (rest.len() / BLOCK) as u64;
                let Some(beyond) = &mut self.image.beyond else { return Err(self.image.full(more)) };
                *beyond = beyond.saturating_add(more);
                self.blocks += more;
                return Ok(());
            };
            let (now, later) = rest.split_at(len as usize * BLOCK);
            self.image.output.append(start, now)?;
            // `lengthen` keeps the file below 2^32 blocks.
            push_blocks(&mut self.extents, self.blocks as u32, start, len);
            self.blocks += u64::from(len);
            rest = later;
        }
        Ok(())
    }
}

impl Drop for FileWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.image.output.forget_from(self.before.cursor());
            self.image.content = self.before.clone();
        }
    }
}

fn is_zero(block: &[u8]) -> bool {
    *block == ZEROS[..BLOCK]
}
