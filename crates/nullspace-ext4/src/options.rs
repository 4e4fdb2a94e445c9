//! What an image shall be, and what came out.

use std::fs::File;

use uuid::Uuid;

use crate::BLOCK_SIZE;
use crate::error::Error;
use crate::geometry::{self, InodeDemand};
use crate::meta::Timestamp;

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
