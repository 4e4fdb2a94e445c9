//! The inode that owns the blocks reserved for more group descriptors, so that a running kernel can grow the
//! filesystem without moving anything.
//!
//! ```text
//!  inode 7 -> double indirect block -> each reserved block of group 0 -> its copies in the other groups
//! ```
//! (kernel: `fs/ext4/resize.c`, e2fsprogs: `lib/ext2fs/res_gdt.c`). It is the one inode that uses the block map of
//! ext2 instead of extents.

use crate::geometry::{BLOCKS_PER_GROUP, Geometry};
use crate::le::put_u32;
use crate::{BLOCK, BLOCK_SIZE};

/// Inode of the reserved descriptor blocks.
pub(crate) const RESIZE_INODE: u32 = 7;
/// Place of the double indirect block among the 15 of an inode.
pub(crate) const DOUBLE_INDIRECT: usize = 13;
const DIRECT: u64 = 12;
const ADDRESSES: usize = BLOCK / 4;

/// The resize inode and its blocks.
#[derive(Debug)]
pub(crate) struct ResizeInode {
    /// `i_block` of the inode.
    pub(crate) body: [u8; 60],
    /// Blocks that belong to it.
    pub(crate) blocks: u64,
    /// The double indirect block.
    pub(crate) double_indirect: Vec<u8>,
    /// The reserved blocks of group 0, one after the other: each lists its copies.
    pub(crate) reserved: Vec<u8>,
}

/// Length of the file that the inode pretends to be: all that two levels of indirection can address.
pub(crate) const SIZE: u64 = ((ADDRESSES * ADDRESSES + ADDRESSES) as u64 + DIRECT) * BLOCK_SIZE;

/// Makes the inode for a filesystem whose double indirect block is at `place`.
pub(crate) fn build(geometry: &Geometry, place: u32) -> ResizeInode {
    let mut body = [0; 60];
    put_u32(&mut body, DOUBLE_INDIRECT * 4, place);
    let copies: Vec<u32> = geometry.backup_groups().collect();
    let mut double_indirect = vec![0; BLOCK];
    let mut reserved = vec![0; geometry.reserved_descriptor_blocks as usize * BLOCK];
    for (number, list) in reserved.chunks_exact_mut(BLOCK).enumerate() {
        let offset = geometry.descriptor_blocks as usize + number;
        let block = 1 + offset as u32;
        put_u32(&mut double_indirect, offset % ADDRESSES * 4, block);
        for (position, group) in copies.iter().enumerate() {
            put_u32(list, position * 4, block + group * BLOCKS_PER_GROUP);
        }
    }
    let blocks = 1 + u64::from(geometry.reserved_descriptor_blocks) * (1 + copies.len() as u64);
    ResizeInode { body, blocks, double_indirect, reserved }
}
