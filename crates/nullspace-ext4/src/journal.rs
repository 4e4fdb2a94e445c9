//! The journal's first block; the others are holes, which an empty journal may be (kernel documentation: "Journal").
//!
//! The kernel adds checksums and 64-bit block numbers to the journal's features when it first mounts the image, as it
//! does after mke2fs.

use crate::BLOCK;

/// Inode of the journal.
pub(crate) const JOURNAL_INODE: u32 = 8;

/// The journal's superblock: version 2, empty, starting with transaction 1. The journal alone is big-endian.
pub(crate) fn superblock(blocks: u32, uuid: &[u8; 16]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut put = |offset: usize, value: u32| block[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
    put(0x00, 0xc03b_3998);
    put(0x04, 4);
    put(0x0c, BLOCK as u32);
    put(0x10, blocks);
    put(0x14, 1); // first block of the log
    put(0x18, 1); // first transaction
    put(0x40, 1); // filesystems that use it
    block[0x30..0x40].copy_from_slice(uuid);
    block
}
