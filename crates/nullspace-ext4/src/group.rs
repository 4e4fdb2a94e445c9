//! Group descriptors: where a group's bitmaps and inodes are, and what is free (kernel documentation: "Block Group
//! Descriptors").

use crate::checksum::Checksum;
use crate::geometry::DESCRIPTOR_SIZE;
use crate::le::{get_split_u32, get_split_u64, get_u16, put_split_u32, put_u16, put_u32};

/// The inode bitmap was never written: all are free.
const INODE_UNINIT: u16 = 1;
/// The block bitmap was never written: it follows from the layout.
const BLOCK_UNINIT: u16 = 2;
/// The inode table holds zeros where it holds no inodes. Always true here, as the image starts as one hole; it spares
/// the guest's kernel from writing them.
const TABLE_ZEROED: u16 = 4;

/// One group of blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) block_bitmap: u32,
    pub(crate) inode_bitmap: u32,
    pub(crate) inode_table: u32,
    pub(crate) free_blocks: u32,
    pub(crate) free_inodes: u32,
    pub(crate) directories: u32,
    /// Inodes at the end of the table that were never used.
    pub(crate) unused_inodes: u32,
    /// Checksum of the stored bitmap, or none if it is not stored.
    pub(crate) block_bitmap_checksum: Option<u32>,
    /// The same for inodes.
    pub(crate) inode_bitmap_checksum: Option<u32>,
}

impl Group {
    /// The stored form of group `number`.
    pub(crate) fn encode(&self, number: u32, filesystem: Checksum) -> [u8; DESCRIPTOR_SIZE] {
        let mut raw = [0; DESCRIPTOR_SIZE];
        // The high halves stay 0: this crate's images have fewer than 2^32 blocks.
        put_u32(&mut raw, 0x00, self.block_bitmap);
        put_u32(&mut raw, 0x04, self.inode_bitmap);
        put_u32(&mut raw, 0x08, self.inode_table);
        put_split_u32(&mut raw, 0x0c, 0x2c, self.free_blocks);
        put_split_u32(&mut raw, 0x0e, 0x2e, self.free_inodes);
        put_split_u32(&mut raw, 0x10, 0x30, self.directories);
        put_split_u32(&mut raw, 0x1c, 0x32, self.unused_inodes);
        let mut flags = TABLE_ZEROED;
        match self.block_bitmap_checksum {
            Some(checksum) => put_split_u32(&mut raw, 0x18, 0x38, checksum),
            None => flags |= BLOCK_UNINIT,
        }
        match self.inode_bitmap_checksum {
            Some(checksum) => put_split_u32(&mut raw, 0x1a, 0x3a, checksum),
            None => flags |= INODE_UNINIT,
        }
        put_u16(&mut raw, 0x12, flags);
        seal(&mut raw, number, filesystem);
        raw
    }
}

/// A stored descriptor, for reading it and changing what growing changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredGroup {
    pub(crate) raw: [u8; DESCRIPTOR_SIZE],
}

impl StoredGroup {
    /// Whether the descriptor is the one that was written for group `number`.
    pub(crate) fn is_intact(&self, number: u32, filesystem: Checksum) -> bool {
        let mut sealed = self.raw;
        seal(&mut sealed, number, filesystem);
        sealed == self.raw
    }

    /// Where the block bitmap is; it may be anywhere.
    pub(crate) fn block_bitmap(&self) -> u64 {
        get_split_u64(&self.raw, 0x00, 0x20)
    }

    /// Where the inode table is; it may be anywhere.
    pub(crate) fn inode_table(&self) -> u64 {
        get_split_u64(&self.raw, 0x08, 0x28)
    }

    pub(crate) fn free_blocks(&self) -> u32 {
        get_split_u32(&self.raw, 0x0c, 0x2c)
    }

    pub(crate) fn free_inodes(&self) -> u32 {
        get_split_u32(&self.raw, 0x0e, 0x2e)
    }

    /// Checksum of the block bitmap, or none if the bitmap is not stored.
    pub(crate) fn block_bitmap_checksum(&self) -> Option<u32> {
        let stored = get_u16(&self.raw, 0x12) & BLOCK_UNINIT == 0;
        stored.then(|| get_split_u32(&self.raw, 0x18, 0x38))
    }

    /// More free blocks, and the checksum of the bitmap that says so, if there is one.
    pub(crate) fn add_free_blocks(&mut self, more: u32, bitmap_checksum: Option<u32>) {
        let free = self.free_blocks().saturating_add(more);
        put_split_u32(&mut self.raw, 0x0c, 0x2c, free);
        if let Some(checksum) = bitmap_checksum {
            put_split_u32(&mut self.raw, 0x18, 0x38, checksum);
        }
    }

    /// The stored form after changes.
    pub(crate) fn sealed(mut self, number: u32, filesystem: Checksum) -> [u8; DESCRIPTOR_SIZE] {
        seal(&mut self.raw, number, filesystem);
        self.raw
    }
}

fn seal(raw: &mut [u8; DESCRIPTOR_SIZE], number: u32, filesystem: Checksum) {
    put_u16(raw, 0x1e, 0);
    let checksum = filesystem.with(&number.to_le_bytes()).with(raw).value();
    put_u16(raw, 0x1e, checksum as u16);
}
