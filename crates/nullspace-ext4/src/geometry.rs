//! The layout of a filesystem, as far as its size alone determines it.
//!
//! ```text
//!  group 0            group 1            group 2         group 3            ...
//! |sb gdt rsv|.......|sb gdt rsv|.......|...............|sb gdt rsv|.......|
//! ```
//!
//! Superblock, descriptors and the blocks reserved for more descriptors lie in group 0 and, as copies, in group 1 and
//! in every group whose number is a power of 3, 5 or 7 (`sparse_super`). Everything else (bitmaps, inode tables,
//! journal) may lie anywhere thanks to `flex_bg`, and is placed when the contents are known.

use crate::{BLOCK_SIZE, Error};

/// Blocks of a group: as many as one block of bitmap has bits.
pub(crate) const BLOCKS_PER_GROUP: u32 = 32768;
/// Groups whose bitmaps and inode tables lie together.
pub(crate) const GROUPS_PER_FLEX: u32 = 16;
/// Bytes of an inode.
pub(crate) const INODE_SIZE: usize = 256;
/// Bytes of the fields of an inode; attributes may use the rest.
pub(crate) const INODE_FIELDS: usize = 128 + EXTRA_SIZE as usize;
/// Bytes of the fields that came after ext3.
pub(crate) const EXTRA_SIZE: u16 = 32;
/// Inodes of one block of an inode table.
pub(crate) const INODES_PER_BLOCK: u32 = 16;
/// Bytes of a group descriptor with the 64bit feature.
pub(crate) const DESCRIPTOR_SIZE: usize = 64;
/// Group descriptors of one block.
const DESCRIPTORS_PER_BLOCK: u32 = 64;
/// An inode bitmap is one block too.
const MAX_INODES_PER_GROUP: u32 = 32768;
/// Inodes 1 to 10 are the filesystem's own.
pub(crate) const FIRST_INODE: u32 = 11;
/// The smallest image: below this, the smallest journal would take more than half of it.
pub(crate) const MIN_BLOCKS: u32 = 2048;
/// The largest image. The reserved descriptor blocks are addressed with 32 bits, and so are file blocks here.
pub(crate) const MAX_BLOCKS: u32 = u32::MAX;
/// The resize inode lists reserved blocks in one block of 1024 numbers.
const MAX_RESERVED_DESCRIPTOR_BLOCKS: u32 = 1024;
/// Of [`Geometry::overhead`]: the root directory, `lost+found`, and the resize inode's own block.
pub(crate) const FILES_IN_OVERHEAD: u64 = 1 + 4 + 1;
/// A last group of fewer usable blocks than this is left out, as mke2fs does: it would cost more than it gives.
const MIN_LAST_GROUP: u32 = 64;
/// Whatever its size, a filesystem can be grown by a running kernel at least up to this many groups (1 TiB)...
const GROWTH_GROUPS: u32 = 8192;
/// ... or to this multiple of its size, whichever is less for a small and more for a large one.
const GROWTH_FACTOR: (u32, u32) = (1024, 4);

/// The layout that follows from a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Blocks of the filesystem; up to one group's worth may be left over at the end of the image.
    pub(crate) blocks: u32,
    /// Block groups, the last possibly short.
    pub(crate) groups: u32,
    /// Blocks of group descriptors.
    pub(crate) descriptor_blocks: u32,
    /// Blocks kept free behind them for growing.
    pub(crate) reserved_descriptor_blocks: u32,
}

/// How many inodes there are to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InodeDemand {
    /// One for so many bytes, at least.
    pub(crate) bytes_per_inode: u32,
    /// Inodes in use, the reserved ones among them.
    pub(crate) used: u64,
    /// So many shall be free, or half of those that the size alone would give.
    pub(crate) spare: u32,
}

impl Geometry {
    /// The layout of an image of `size_bytes`.
    pub(crate) fn of_size(size_bytes: u64) -> Result<Geometry, Error> {
        let blocks = u32::try_from(size_bytes / BLOCK_SIZE)
            .map_err(|_| Error::TooLarge { size_bytes, limit_bytes: u64::from(MAX_BLOCKS) * BLOCK_SIZE })?;
        if blocks < MIN_BLOCKS {
            return Err(Error::TooSmall { size_bytes, needed_bytes: u64::from(MIN_BLOCKS) * BLOCK_SIZE });
        }
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let small = groups.saturating_mul(GROWTH_FACTOR.0);
        let large = groups.saturating_mul(GROWTH_FACTOR.1);
        let most_groups = MAX_BLOCKS.div_ceil(BLOCKS_PER_GROUP);
        let grown = small.clamp(GROWTH_GROUPS / 16, GROWTH_GROUPS).max(large).min(most_groups);
        let descriptor_blocks = groups.div_ceil(DESCRIPTORS_PER_BLOCK);
        let reserved = (grown.div_ceil(DESCRIPTORS_PER_BLOCK) - descriptor_blocks).min(MAX_RESERVED_DESCRIPTOR_BLOCKS);
        Ok(Geometry::trimmed(blocks, groups, descriptor_blocks, reserved))
    }

    /// Leaves out a last group that is too short to be of use.
    fn trimmed(blocks: u32, groups: u32, descriptor_blocks: u32, reserved_descriptor_blocks: u32) -> Geometry {
        let geometry = Geometry { blocks, groups, descriptor_blocks, reserved_descriptor_blocks };
        let last = groups - 1;
        if last > 0 && geometry.group_len(last) < geometry.base_len(last) + MIN_LAST_GROUP {
            geometry.without_last_group()
        } else {
            geometry
        }
    }

    /// The layout after growing to `size_bytes`: blocks reserved for descriptors hold the new ones, so that no group's
    /// base changes its length.
    pub(crate) fn grown(&self, size_bytes: u64, inodes_per_group: u32) -> Result<Geometry, Error> {
        let all = self.descriptor_blocks + self.reserved_descriptor_blocks;
        let limit = u64::from(all) * u64::from(DESCRIPTORS_PER_BLOCK) * u64::from(BLOCKS_PER_GROUP);
        // The count of all inodes has 32 bits, too.
        let countable = u64::from(u32::MAX / inodes_per_group.max(1)) * u64::from(BLOCKS_PER_GROUP);
        let limit = limit.min(countable).min(MAX_BLOCKS.into());
        match u32::try_from(size_bytes / BLOCK_SIZE) {
            Ok(blocks) if u64::from(blocks) <= limit => {
                let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
                let descriptor_blocks = groups.div_ceil(DESCRIPTORS_PER_BLOCK);
                Ok(Geometry::trimmed(blocks, groups, descriptor_blocks, all - descriptor_blocks))
            }
            _ => Err(Error::CannotGrow { size_bytes, limit_bytes: limit * BLOCK_SIZE }),
        }
    }

    /// The layout without its last group.
    pub(crate) fn without_last_group(&self) -> Geometry {
        let all = self.descriptor_blocks + self.reserved_descriptor_blocks;
        let groups = self.groups - 1;
        let descriptor_blocks = groups.div_ceil(DESCRIPTORS_PER_BLOCK);
        let blocks = self.group_start(groups);
        Geometry { blocks, groups, descriptor_blocks, reserved_descriptor_blocks: all - descriptor_blocks }
    }

    /// First block of a group.
    pub(crate) fn group_start(&self, group: u32) -> u32 {
        group * BLOCKS_PER_GROUP
    }

    /// Blocks of a group.
    pub(crate) fn group_len(&self, group: u32) -> u32 {
        (self.blocks - self.group_start(group)).min(BLOCKS_PER_GROUP)
    }

    /// Blocks at the start of a group that hold the superblock, the descriptors and what is reserved for more of them.
    pub(crate) fn base_len(&self, group: u32) -> u32 {
        if has_superblock(group) { 1 + self.descriptor_blocks + self.reserved_descriptor_blocks } else { 0 }
    }

    /// Groups that have a copy of the superblock, group 0 excepted.
    pub(crate) fn backup_groups(&self) -> impl Iterator<Item = u32> {
        backup_groups(self.groups)
    }

    /// Groups whose bitmaps and inode tables go together with those of group `flex * GROUPS_PER_FLEX`.
    pub(crate) fn flex_groups(&self, flex: u32) -> std::ops::Range<u32> {
        let first = flex * GROUPS_PER_FLEX;
        first..(first + GROUPS_PER_FLEX).min(self.groups)
    }

    /// How many such sets there are.
    pub(crate) fn flexes(&self) -> u32 {
        self.groups.div_ceil(GROUPS_PER_FLEX)
    }

    /// Inodes for each group. None if no number of them gives as many as are needed.
    pub(crate) fn inodes_per_group(&self, demand: InodeDemand) -> Option<u32> {
        let usual = u64::from(self.blocks) * BLOCK_SIZE / u64::from(demand.bytes_per_inode.max(1024));
        let needed = demand.used + u64::from(demand.spare).min(usual / 2);
        let wanted = usual.max(needed).div_ceil(u64::from(self.groups)).next_multiple_of(u64::from(INODES_PER_BLOCK));
        // The count of all inodes has 32 bits.
        let limit = (u32::MAX / self.groups).min(MAX_INODES_PER_GROUP) / INODES_PER_BLOCK * INODES_PER_BLOCK;
        let per_group = u32::try_from(wanted).unwrap_or(u32::MAX).min(limit);
        (u64::from(per_group) * u64::from(self.groups) >= needed).then_some(per_group)
    }

    /// Blocks of the journal: what mke2fs 1.47 takes for that size.
    pub(crate) fn journal_blocks(&self) -> u32 {
        const MI: u32 = 1024 * 1024;
        match self.blocks {
            0..32_768 => 1024,
            32_768..262_144 => 4096,
            262_144..524_288 => 8192,
            524_288..0x40_0000 => 16384,
            0x40_0000..0x80_0000 => 32768,
            0x80_0000..0x100_0000 => 65536,
            0x100_0000..0x200_0000 => 131_072,
            _ => MI / 4,
        }
    }

    /// Blocks taken before there is a single file: all of the above, bitmaps, inode tables, the journal, the root
    /// directory, `lost+found` and the resize inode's own block.
    pub(crate) fn overhead(&self, inodes_per_group: u32) -> u64 {
        let copies = (self.backup_groups().count() + 1) as u64;
        let bases = copies * u64::from(self.base_len(0));
        let tables = u64::from(self.groups) * u64::from(2 + inodes_per_group / INODES_PER_BLOCK);
        bases + tables + u64::from(self.journal_blocks()) + FILES_IN_OVERHEAD
    }
}

/// Bytes an image must have for `content_blocks` of files and directories and for their inodes, rounded up to a MiB.
pub(crate) fn needed_size(content_blocks: u64, inodes: InodeDemand) -> u64 {
    const MIB: u64 = 1024 * 1024;
    // No group has more inodes than bits in a bitmap, so many inodes need many groups.
    let groups = inodes.used.div_ceil(u64::from(MAX_INODES_PER_GROUP));
    let least = groups.saturating_sub(1).saturating_mul(u64::from(BLOCKS_PER_GROUP));
    let least = content_blocks.max(least).max(u64::from(MIN_BLOCKS));
    let mut size = least.saturating_mul(BLOCK_SIZE).next_multiple_of(MIB);
    // Overhead grows with the size, slower than the size does, so this settles within a few rounds; the number of
    // rounds is bounded all the same.
    for _ in 0..64 {
        let Ok(geometry) = Geometry::of_size(size) else { break };
        let missing = match geometry.inodes_per_group(inodes) {
            Some(per_group) => (geometry.overhead(per_group) + content_blocks).saturating_sub(geometry.blocks.into()),
            None => u64::from(BLOCKS_PER_GROUP),
        };
        if missing == 0 {
            break;
        }
        size = (size + missing * BLOCK_SIZE).next_multiple_of(MIB);
    }
    size
}

/// Whether a group starts with a superblock (`sparse_super`).
pub(crate) fn has_superblock(group: u32) -> bool {
    group <= 1 || [3, 5, 7].into_iter().any(|base| is_power_of(base, group))
}

/// The groups below `groups` that hold copies, in ascending order.
pub(crate) fn backup_groups(groups: u32) -> impl Iterator<Item = u32> {
    (1..groups).filter(|&group| has_superblock(group))
}

fn is_power_of(base: u32, number: u32) -> bool {
    let mut power = base;
    while power < number {
        match power.checked_mul(base) {
            Some(next) => power = next,
            None => return false,
        }
    }
    power == number
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn copies_of_the_superblock_are_in_powers_of_three_five_and_seven() {
        let groups: Vec<u32> = backup_groups(400).collect();
        assert_eq!(groups, [1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343]);
    }

    #[test]
    fn every_size_can_grow_to_64_gib_and_a_usual_one_to_a_terabyte() {
        let room = |size| {
            let geometry = Geometry::of_size(size).unwrap();
            u64::from(geometry.descriptor_blocks + geometry.reserved_descriptor_blocks) * 8 * GIB
        };
        assert_eq!(room(16 << 20), 128 * GIB);
        assert_eq!(room(GIB), 1024 * GIB);
        assert_eq!(room(64 * GIB), 1024 * GIB);
        assert_eq!(room(1024 * GIB), 4096 * GIB);
    }

    #[test]
    fn a_sliver_of_a_last_group_is_left_out() {
        let geometry = Geometry::of_size(GIB + 32 * BLOCK_SIZE).unwrap();
        assert_eq!((geometry.groups, geometry.blocks), (8, 8 * BLOCKS_PER_GROUP));
        let geometry = Geometry::of_size(GIB + 65 * BLOCK_SIZE).unwrap();
        assert_eq!((geometry.groups, geometry.blocks), (9, 8 * BLOCKS_PER_GROUP + 65));
    }

    #[test]
    fn sizes_beyond_the_limits_are_refused_with_the_limit() {
        assert!(matches!(Geometry::of_size(1 << 20), Err(Error::TooSmall { needed_bytes: 8_388_608, .. })));
        assert!(matches!(Geometry::of_size(u64::MAX), Err(Error::TooLarge { .. })));
        assert!(Geometry::of_size(u64::from(MAX_BLOCKS) * BLOCK_SIZE).is_ok());
    }

    #[test]
    fn more_inodes_than_usual_are_found_room_for_until_there_is_none() {
        let geometry = Geometry::of_size(GIB).unwrap();
        let per_group = |used, spare| geometry.inodes_per_group(InodeDemand { bytes_per_inode: 16384, used, spare });
        assert_eq!(per_group(0, 8192), Some(8192));
        assert_eq!(per_group(60_000, 5536), Some(8192));
        assert_eq!(per_group(60_000, 5537), Some(8208));
        assert_eq!(per_group(60_000, u32::MAX), Some(11_600), "half of the usual number are free");
        assert_eq!(per_group(8 * 32768, 0), Some(32768));
        assert_eq!(per_group(8 * 32768, 1), None);
    }

    #[test]
    fn the_size_named_as_needed_suffices() {
        for (content, inodes) in [(0, 11), (10_000, 11), (1_000_000, 500_000), (1, 40_000), (31_000, 20)] {
            let demand = InodeDemand { bytes_per_inode: 16384, used: inodes, spare: 8192 };
            let geometry = Geometry::of_size(needed_size(content, demand)).unwrap();
            let per_group = geometry.inodes_per_group(demand).unwrap();
            assert!(geometry.overhead(per_group) + content <= u64::from(geometry.blocks));
        }
    }
}
