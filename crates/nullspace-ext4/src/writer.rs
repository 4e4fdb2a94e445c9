//! An image being written: its room for contents. [`crate::file`] adds files to it, [`crate::finish`] the rest.

use std::fs::File;

use crate::content::ContentArea;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::options::Options;
use crate::output::Output;
use crate::{BLOCK, BLOCK_SIZE};

/// An image being written. See the crate's documentation for how its two halves go together.
#[derive(Debug)]
pub struct ImageWriter {
    pub(crate) options: Options,
    pub(crate) geometry: Geometry,
    pub(crate) output: Output,
    pub(crate) content: ContentArea,
    /// Blocks of contents that found the image full, where they are counted.
    pub(crate) beyond: Option<u64>,
    /// The block a file is filling; one file is written at a time.
    pub(crate) partial: Vec<u8>,
}

impl ImageWriter {
    /// Starts an image in `file`, which is emptied first. A new file is best: one that held something before (or was
    /// opened with truncation) is flushed by ext4 and others when it is closed.
    ///
    /// # Errors
    /// [`Error::TooSmall`], [`Error::TooLarge`], [`Error::BadLabel`], [`Error::Io`].
    pub fn create(file: File, options: Options) -> Result<ImageWriter, Error> {
        if options.label.len() > 16 || options.label.contains('\0') {
            return Err(Error::BadLabel);
        }
        let geometry = Geometry::of_size(options.size_bytes)?;
        let per_group = geometry.inodes_per_group(options.inode_demand(0)).unwrap_or_default();
        let overhead = geometry.overhead(per_group).saturating_add(options.spare_blocks());
        let Some(room) = u64::from(geometry.blocks).checked_sub(overhead) else {
            return Err(options.too_small(0, 0));
        };
        let output = Output::create(file, options.size_bytes)?;
        let content = ContentArea::new(&geometry, room);
        Ok(ImageWriter { options, geometry, output, content, beyond: None, partial: vec![0; BLOCK] })
    }

    /// From now on contents that find the image full are counted and dropped, so that [`ImageWriter::finish`] can tell a
    /// size that suffices for all of them.
    pub fn count_what_does_not_fit(&mut self) {
        self.beyond.get_or_insert(0);
    }

    /// Bytes of contents that still fit; directories, attributes and the inodes of many files come out of it too.
    pub fn room_bytes(&self) -> u64 {
        self.content.room() * BLOCK_SIZE
    }

    /// The error for contents that found the image full.
    pub(crate) fn full(&self, more_blocks: u64) -> Error {
        self.options.too_small(self.content.taken() + more_blocks, 0)
    }
}
