//! The writer's first half: options, room for contents, and files.

use std::fs::File;

use uuid::Uuid;

use crate::content::ContentArea;
use crate::error::Error;
use crate::file::FileWriter;
use crate::geometry::{self, Geometry, InodeDemand};
use crate::output::Output;
use crate::tree::{Timestamp, Tree};
use crate::{BLOCK, BLOCK_SIZE, finish};

/// What an image shall be. Everything that could differ between two runs is in here.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the image in bytes: 8 MiB to 16 TiB. The file gets exactly this length; the filesystem uses whole blocks
    /// of it, and leaves out a last block group that would be less than about 256 KiB.
    pub size_bytes: u64,
    /// The filesystem's identifier.
    pub uuid: Uuid,
    /// Seed of the directory hash. Should not be guessable where users choose file names.
    pub hash_seed: Uuid,
    /// Volume label, at most 16 bytes, without NUL.
    pub label: String,
    /// When the filesystem was "made": its own dates, and the change and creation times of every file. e2fsck complains
    /// about a date in the future.
    pub time: Timestamp,
    /// One inode for so many bytes of the image, as `mke2fs -i` has it. At least 1024.
    pub bytes_per_inode: u32,
    /// Inodes to have left for new files; half of what `bytes_per_inode` gives if that is less. The number of inodes
    /// grows with the tree to keep this promise.
    pub spare_inodes: u32,
    /// Bytes to have left for new files; an image with less is [`Error::TooSmall`].
    pub spare_bytes: u64,
    /// Per cent of the blocks that only root may use (mke2fs: 5). At most 50.
    pub reserved_percent: u8,
}

impl Options {
    /// The usual choices for an image: no label, an inode per 16 KiB, 65,536 spare inodes, no blocks kept spare or for
    /// root.
    pub fn new(size_bytes: u64, uuid: Uuid, hash_seed: Uuid, time: Timestamp) -> Options {
        Options {
            size_bytes,
            uuid,
            hash_seed,
            label: String::new(),
            time,
            bytes_per_inode: 16384,
            spare_inodes: 65_536,
            spare_bytes: 0,
            reserved_percent: 0,
        }
    }

    /// Inodes for a tree that uses so many.
    pub(crate) fn inode_demand(&self, used: u64) -> InodeDemand {
        InodeDemand { bytes_per_inode: self.bytes_per_inode, used, spare: self.spare_inodes }
    }

    /// Blocks to have left.
    pub(crate) fn spare_blocks(&self) -> u64 {
        self.spare_bytes.div_ceil(BLOCK_SIZE)
    }

    /// The error for contents that need so many blocks and inodes.
    pub(crate) fn too_small(&self, blocks: u64, inodes: u64) -> Error {
        let needed = geometry::needed_size(blocks.saturating_add(self.spare_blocks()), self.inode_demand(inodes));
        // Adjoining room for inode tables can be missing although blocks are left: never name a size that just failed.
        let more = self.size_bytes.saturating_add(1).next_multiple_of(1 << 20);
        Error::TooSmall { size_bytes: self.size_bytes, needed_bytes: needed.max(more) }
    }
}

/// What was written.
#[derive(Debug)]
pub struct Summary {
    /// The image. Everything is written to it, nothing is synced.
    pub file: File,
    /// Length of the image in bytes, as asked for.
    pub size_bytes: u64,
    /// Blocks of the filesystem (4096 bytes each).
    pub blocks: u64,
    /// Blocks not in use.
    pub free_blocks: u64,
    /// Blocks that hold file contents.
    pub content_blocks: u64,
    /// Inodes, used and free.
    pub inodes: u32,
    /// Inodes for new files.
    pub free_inodes: u32,
}

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

    /// Starts a file. Its name comes later, in the tree.
    pub fn begin_file(&mut self) -> FileWriter<'_> {
        FileWriter::new(self)
    }

    /// Bytes of contents that still fit; directories, attributes and the inodes of many files come out of it too.
    pub fn room_bytes(&self) -> u64 {
        self.content.room() * BLOCK_SIZE
    }

    /// Writes the tree and everything else that makes the image a filesystem.
    ///
    /// # Errors
    /// [`Error::TooSmall`] with the size that the whole tree needs, [`Error::DirectoryTooLarge`],
    /// [`Error::ForeignFileData`], [`Error::BadName`] for a file in the place of `lost+found`, [`Error::Io`].
    pub fn finish(self, tree: Tree) -> Result<Summary, Error> {
        finish::finish(self, tree)
    }

    /// The error for contents that found the image full.
    pub(crate) fn full(&self, more_blocks: u64) -> Error {
        self.options.too_small(self.content.taken() + more_blocks, 0)
    }
}
