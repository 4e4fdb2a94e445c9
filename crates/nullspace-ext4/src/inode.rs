//! The 256 bytes of an inode (kernel documentation: "Index Nodes").

use crate::checksum::Checksum;
use crate::geometry::{EXTRA_SIZE, INODE_SIZE};
use crate::le::{get_u32, put_split_u32, put_split_u64, put_u16, put_u32};
use crate::meta::Timestamp;
use crate::xattr::Attributes;

pub(crate) const DIRECTORY: u16 = 0o040000;
pub(crate) const REGULAR: u16 = 0o100000;
pub(crate) const SYMLINK: u16 = 0o120000;

pub(crate) const FLAG_INDEXED: u32 = 0x1000;
pub(crate) const FLAG_EXTENTS: u32 = 0x8_0000;
/// The contents are an attribute's value.
pub(crate) const FLAG_VALUE: u32 = 0x20_0000;

/// The first second that the inode can tell, in 1901.
const FIRST_SECOND: i64 = i32::MIN as i64;
/// The last second before 2310-04-04. 34 bits would reach to 2446, but e2fsck takes what begins here for dates before
/// 1970 that a kernel of 2013 got wrong, and wants to mend them.
const LAST_SECOND: i64 = 3 * (1 << 32) + FIRST_SECOND - 1;

/// An inode to be stored.
#[derive(Debug)]
pub(crate) struct Inode<'a> {
    /// Type and permissions.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) links: u16,
    pub(crate) flags: u32,
    /// Change of the contents, and last access.
    pub(crate) mtime: Timestamp,
    /// Change of the inode, and creation.
    pub(crate) ctime: Timestamp,
    /// Blocks of the image that it has, its extent and attribute blocks included.
    pub(crate) blocks: u64,
    /// The extent tree's root, or a short link target.
    pub(crate) body: [u8; 60],
    pub(crate) attributes: Option<&'a Attributes>,
    /// The attribute block, or 0.
    pub(crate) attribute_block: u32,
    /// The first inode of the attributes' values that have one of their own.
    pub(crate) first_value: u32,
}

impl Inode<'_> {
    /// The stored form of inode `number`, its checksum included.
    pub(crate) fn encode(&self, number: u32, filesystem: Checksum) -> [u8; INODE_SIZE] {
        let mut raw = self.fields(filesystem);
        seal(&mut raw, number, filesystem);
        raw
    }

    /// The stored form of an inode whose contents are one attribute's value with this hash. The hash stands where others
    /// have the time of access, the number of its users (one) in the times of change and the version
    /// (fs/ext4/xattr.c, `ext4_xattr_inode_set_hash` and `_set_ref`).
    pub(crate) fn encode_value(&self, number: u32, filesystem: Checksum, hash: u32) -> [u8; INODE_SIZE] {
        let mut raw = self.fields(filesystem);
        for (at, value) in [(0x08, hash), (0x8c, 0), (0x0c, 0), (0x84, 0), (0x24, 1)] {
            put_u32(&mut raw, at, value);
        }
        seal(&mut raw, number, filesystem);
        raw
    }

    fn fields(&self, filesystem: Checksum) -> [u8; INODE_SIZE] {
        let mut raw = [0; INODE_SIZE];
        put_u16(&mut raw, 0x00, self.mode);
        put_split_u32(&mut raw, 0x02, 0x78, self.uid);
        put_split_u32(&mut raw, 0x18, 0x7a, self.gid);
        put_split_u64(&mut raw, 0x04, 0x6c, self.size);
        put_u16(&mut raw, 0x1a, self.links);
        put_sectors(&mut raw, self.blocks);
        put_u32(&mut raw, 0x20, self.flags);
        raw[0x28..0x64].copy_from_slice(&self.body);
        put_u32(&mut raw, 0x68, self.attribute_block);
        put_u16(&mut raw, 0x80, EXTRA_SIZE);
        put_time(&mut raw, 0x08, 0x8c, self.mtime);
        put_time(&mut raw, 0x0c, 0x84, self.ctime);
        put_time(&mut raw, 0x10, 0x88, self.mtime);
        put_time(&mut raw, 0x90, 0x94, self.ctime);
        if let Some(attributes) = self.attributes {
            attributes.put_in_inode(&mut raw, filesystem, self.first_value);
        }
        raw
    }
}

/// Changes how many blocks a stored inode has.
pub(crate) fn set_blocks(raw: &mut [u8; INODE_SIZE], number: u32, blocks: u64, filesystem: Checksum) {
    put_sectors(raw, blocks);
    seal(raw, number, filesystem);
}

fn put_sectors(raw: &mut [u8; INODE_SIZE], blocks: u64) {
    let sectors = blocks * 8;
    put_u32(raw, 0x1c, sectors as u32);
    put_u16(raw, 0x74, (sectors >> 32) as u16);
}

fn seal(raw: &mut [u8; INODE_SIZE], number: u32, filesystem: Checksum) {
    put_split_u32(raw, 0x7c, 0x82, 0);
    let generation = get_u32(raw, 0x64);
    let checksum = filesystem.of_inode(number, generation).with(raw).value();
    put_split_u32(raw, 0x7c, 0x82, checksum);
}

/// A time as the inode has it: the low 32 bits of the seconds (signed), and beside them nanoseconds and the two bits
/// that count how often the low ones have gone round.
fn put_time(raw: &mut [u8], seconds_at: usize, extra_at: usize, time: Timestamp) {
    let seconds = time.seconds.clamp(FIRST_SECOND, LAST_SECOND);
    let nanoseconds = match time.seconds {
        // The nearest that can be told, as the kernel's timestamp_truncate().
        outside if outside != seconds => 0,
        _ => time.nanoseconds.min(999_999_999),
    };
    // The low 32 bits, and what is left when they are read as a signed number.
    let low = seconds.cast_unsigned() as u32;
    let epoch = ((seconds - i64::from(low.cast_signed())) >> 32).cast_unsigned() as u32;
    put_u32(raw, seconds_at, low);
    put_u32(raw, extra_at, nanoseconds << 2 | epoch);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How the kernel reads a time (fs/ext4/ext4.h, ext4_decode_extra_time).
    fn decoded(seconds: i64, nanoseconds: u32) -> (i64, u32) {
        let mut raw = [0; INODE_SIZE];
        put_time(&mut raw, 0x10, 0x88, Timestamp { seconds, nanoseconds });
        let extra = get_u32(&raw, 0x88);
        let low = i64::from(get_u32(&raw, 0x10).cast_signed());
        (low + (i64::from(extra & 3) << 32), extra >> 2)
    }

    #[test]
    fn dates_from_1901_to_2310_survive() {
        for seconds in [0, 1, -1, FIRST_SECOND, LAST_SECOND, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 33) + 5] {
            assert_eq!(decoded(seconds, 123_456_789), (seconds, 123_456_789));
        }
    }

    #[test]
    fn dates_outside_become_the_nearest() {
        assert_eq!(decoded(i64::MIN, 5), (FIRST_SECOND, 0));
        assert_eq!(decoded(i64::MAX, 5), (LAST_SECOND, 0));
        assert_eq!(decoded(7, u32::MAX), (7, 999_999_999));
    }
}
