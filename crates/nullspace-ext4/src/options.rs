//! Options of an image, and the summary of a written one.

use std::fs::File;

use uuid::Uuid;

use crate::BLOCK_SIZE;
use crate::error::Error;
use crate::geometry::{self, InodeDemand};
use crate::meta::Timestamp;

/// Options of an image. They have everything that could differ between two runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the image in bytes: 8 MiB to 16 TiB. The file gets exactly this length. The filesystem uses whole blocks of
    /// it, and leaves out a last block group of less than about 256 KiB.
    pub size_bytes: u64,
    /// The filesystem's identifier.
    pub uuid: Uuid,
    /// Seed of the directory hash. Should not be guessable where users choose file names.
    pub hash_seed: Uuid,
    /// Volume label, at most 16 bytes, without NUL.
    pub label: String,
    /// Creation time of the filesystem, and change and creation time of every file. e2fsck reports a date in the future as an
    /// error.
    pub time: Timestamp,
    /// Bytes of the image for each inode, as in `mke2fs -i`. At least 1024.
    pub bytes_per_inode: u32,
    /// Free inodes for new files, at most half of what `bytes_per_inode` gives. The number of inodes grows with the tree to
    /// keep them free.
    pub spare_inodes: u32,
    /// Free bytes for new files. An image with less is [`Error::TooSmall`].
    pub spare_bytes: u64,
    /// Per cent of the blocks for root only (mke2fs: 5). At most 50.
    pub reserved_percent: u8,
}

impl Options {
    /// The usual options: no label, an inode for each 16 KiB, 65,536 spare inodes, no spare or reserved blocks.
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

    /// The inodes for a tree that uses so many.
    pub(crate) fn inode_demand(&self, used: u64) -> InodeDemand {
        InodeDemand { bytes_per_inode: self.bytes_per_inode, used, spare: self.spare_inodes }
    }

    /// The spare blocks.
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

/// Summary of a written image.
#[derive(Debug)]
pub struct Summary {
    /// The image. All data is written to it, but not synced.
    pub file: File,
    /// Length of the image in bytes, as in the options.
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
