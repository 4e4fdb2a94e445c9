//! The superblock: features, sizes and free counts (kernel documentation: "Super Block").

use std::fs::File;
use std::os::unix::fs::FileExt;

use uuid::Uuid;

use crate::checksum::Checksum;
use crate::error::{Error, io};
use crate::extent::Extent;
use crate::geometry::{
    BLOCKS_PER_GROUP, DESCRIPTOR_SIZE, EXTRA_SIZE, FIRST_INODE, GROUPS_PER_FLEX, Geometry, INODE_SIZE,
    INODES_PER_BLOCK, MIN_BLOCKS,
};
use crate::journal::JOURNAL_INODE;
use crate::le::{get_split_u64, get_u16, get_u32, put_split_u64, put_u16, put_u32};
use crate::meta::Timestamp;
use crate::options::Options;
use crate::{BLOCK, BLOCK_SIZE};

/// Bytes of the stored form.
pub(crate) const SUPERBLOCK_SIZE: usize = 1024;
/// Where it is in the image; its copies are at the very start of their groups.
pub(crate) const SUPERBLOCK_OFFSET: usize = 1024;

const MAGIC: u16 = 0xef53;
const CHECKSUM: usize = 0x3fc;

const COMPATIBLE: usize = 0x5c;
const INCOMPATIBLE: usize = 0x60;
const READ_ONLY_COMPATIBLE: usize = 0x64;

/// has_journal, ext_attr, dir_index.
const FEATURES: u32 = 0x04 | 0x08 | 0x20;
const FEATURE_RESIZE_INODE: u32 = 0x10;
/// filetype, extents, 64bit, flex_bg.
const INCOMPATIBLE_FEATURES: u32 = 0x02 | 0x40 | 0x80 | 0x200;
/// ea_inode: values of attributes that have an inode of their own. Set only where there are some.
const FEATURE_EA_INODE: u32 = 0x400;
/// Something is in the journal.
const NEEDS_RECOVERY: u32 = 0x04;
/// sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum.
const READ_ONLY_FEATURES: u32 = 0x01 | 0x02 | 0x08 | 0x20 | 0x40 | 0x400;

/// What a filesystem's superblock says.
#[derive(Clone)]
pub struct Superblock {
    raw: [u8; SUPERBLOCK_SIZE],
}

/// What the superblock counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) inodes_per_group: u32,
    pub(crate) free_inodes: u32,
    pub(crate) free_blocks: u64,
    /// Blocks that can never hold files.
    pub(crate) overhead: u32,
}

impl Superblock {
    /// Reads the superblock of an image. Only its own consistency is checked, not that of the filesystem.
    ///
    /// # Errors
    /// [`Error::Io`], and [`Error::BadImage`] if there is no superblock, or one of another kind than this crate writes
    /// (block size, checksums), or a damaged one.
    pub fn read(file: &File) -> Result<Superblock, Error> {
        let mut raw = [0; SUPERBLOCK_SIZE];
        file.read_exact_at(&mut raw, SUPERBLOCK_OFFSET as u64).map_err(io("read the superblock"))?;
        let superblock = Superblock { raw };
        let bad = |reason: &str| Err(Error::BadImage { reason: reason.to_owned() });
        if get_u16(&raw, 0x38) != MAGIC {
            return bad("it has no ext4 superblock");
        }
        if get_u32(&raw, 0x18) != 2 || superblock.features(READ_ONLY_COMPATIBLE) & 0x400 == 0 {
            return bad("its block size is not 4096, or its metadata has no checksums");
        }
        if superblock.checksum() != get_u32(&raw, CHECKSUM) {
            return bad("its superblock is damaged");
        }
        Ok(superblock)
    }

    /// The superblock of a new filesystem.
    pub(crate) fn new(options: &Options, geometry: &Geometry, counts: Counts) -> Superblock {
        let mut raw = [0; SUPERBLOCK_SIZE];
        put_u32(&mut raw, 0x14, 0); // first data block
        put_u32(&mut raw, 0x18, 2); // block size: 1024 << 2
        put_u32(&mut raw, 0x1c, 2);
        put_u32(&mut raw, 0x20, BLOCKS_PER_GROUP);
        put_u32(&mut raw, 0x24, BLOCKS_PER_GROUP);
        put_u32(&mut raw, 0x28, counts.inodes_per_group);
        put_u16(&mut raw, 0x36, u16::MAX); // no check after so many mounts
        put_u16(&mut raw, 0x38, MAGIC);
        put_u16(&mut raw, 0x3a, 1); // clean
        put_u16(&mut raw, 0x3c, 1); // go on after errors
        put_u32(&mut raw, 0x4c, 1); // revision with all that follows
        put_u32(&mut raw, 0x54, FIRST_INODE);
        put_u16(&mut raw, 0x58, INODE_SIZE as u16);
        let resizable = geometry.reserved_descriptor_blocks > 0;
        put_u32(&mut raw, COMPATIBLE, FEATURES | if resizable { FEATURE_RESIZE_INODE } else { 0 });
        put_u32(&mut raw, INCOMPATIBLE, INCOMPATIBLE_FEATURES);
        put_u32(&mut raw, READ_ONLY_COMPATIBLE, READ_ONLY_FEATURES);
        raw[0x68..0x78].copy_from_slice(options.uuid.as_bytes());
        raw[0x78..0x78 + options.label.len()].copy_from_slice(options.label.as_bytes());
        put_u16(&mut raw, 0xce, geometry.reserved_descriptor_blocks as u16);
        put_u32(&mut raw, 0xe0, JOURNAL_INODE);
        raw[0xec..0xfc].copy_from_slice(options.hash_seed.as_bytes());
        raw[0xfc] = 1; // half MD4
        raw[0xfd] = 1; // the journal's blocks are repeated below
        put_u16(&mut raw, 0xfe, DESCRIPTOR_SIZE as u16);
        put_u32(&mut raw, 0x100, 0x0c); // user_xattr, acl
        put_u16(&mut raw, 0x15c, EXTRA_SIZE);
        put_u16(&mut raw, 0x15e, EXTRA_SIZE);
        put_u32(&mut raw, 0x160, 1); // names are hashed as signed bytes
        raw[0x174] = GROUPS_PER_FLEX.trailing_zeros() as u8;
        raw[0x175] = 1; // crc32c
        let mut superblock = Superblock { raw };
        for (low, high) in [(0x30, 0x274), (0x40, 0x277), (0x108, 0x276)] {
            superblock.set_time(low, high, options.time);
        }
        superblock.set_size(geometry, counts);
        let reserved = u64::from(geometry.blocks) * u64::from(options.reserved_percent.min(50)) / 100;
        put_split_u64(&mut superblock.raw, 0x08, 0x154, reserved);
        superblock
    }

    /// Says that values of attributes have inodes of their own.
    pub(crate) fn set_values_have_inodes(&mut self) {
        let features = self.features(INCOMPATIBLE) | FEATURE_EA_INODE;
        put_u32(&mut self.raw, INCOMPATIBLE, features);
    }

    /// Repeats where the journal is, for a repair that has lost its inode.
    pub(crate) fn set_journal(&mut self, body: &[u8; 60], extents: &[Extent]) {
        let size: u64 = extents.iter().map(|extent| u64::from(extent.len)).sum::<u64>() * BLOCK_SIZE;
        self.raw[0x10c..0x148].copy_from_slice(body);
        put_split_u64(&mut self.raw, 0x14c, 0x148, size);
    }

    /// Sets all that depends on the size.
    pub(crate) fn set_size(&mut self, geometry: &Geometry, counts: Counts) {
        put_u32(&mut self.raw, 0x00, counts.inodes_per_group * geometry.groups);
        put_split_u64(&mut self.raw, 0x04, 0x150, u64::from(geometry.blocks));
        put_split_u64(&mut self.raw, 0x0c, 0x158, counts.free_blocks);
        put_u32(&mut self.raw, 0x10, counts.free_inodes);
        put_u32(&mut self.raw, 0x248, counts.overhead);
    }

    /// Sets what else changes when it grows: the reserved blocks, and root's share in the same proportion.
    pub(crate) fn grow(&mut self, old: &Geometry, new: &Geometry, counts: Counts) {
        let reserved = u128::from(get_split_u64(&self.raw, 0x08, 0x154));
        let reserved = reserved * u128::from(new.blocks) / u128::from(old.blocks);
        // A share beyond all blocks was nonsense before.
        let reserved = u64::try_from(reserved).unwrap_or(0).min(new.blocks.into());
        put_split_u64(&mut self.raw, 0x08, 0x154, reserved);
        put_u16(&mut self.raw, 0xce, new.reserved_descriptor_blocks as u16);
        self.set_size(new, counts);
    }

    /// The layout, if it is one that this crate makes. Everything in the image may have been changed by its user.
    pub(crate) fn geometry(&self) -> Result<Geometry, Error> {
        let bad = |reason: &str| Error::BadImage { reason: reason.to_owned() };
        let raw = &self.raw;
        let compatible = self.features(COMPATIBLE) & !FEATURE_RESIZE_INODE;
        let known = compatible == FEATURES
            && self.features(INCOMPATIBLE) & !NEEDS_RECOVERY & !FEATURE_EA_INODE == INCOMPATIBLE_FEATURES
            && self.features(READ_ONLY_COMPATIBLE) == READ_ONLY_FEATURES;
        let shape = get_u32(raw, 0x14) == 0
            && get_u32(raw, 0x20) == BLOCKS_PER_GROUP
            && usize::from(get_u16(raw, 0x58)) == INODE_SIZE
            && usize::from(get_u16(raw, 0xfe)) == DESCRIPTOR_SIZE
            && u32::from(raw[0x174]) == GROUPS_PER_FLEX.trailing_zeros();
        if !known || !shape {
            return Err(bad("its features or its layout are not those of an image made here"));
        }
        let blocks = u32::try_from(self.blocks()).map_err(|_| bad("it has too many blocks"))?;
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let descriptor_blocks = groups.div_ceil((BLOCK / DESCRIPTOR_SIZE) as u32);
        let reserved_descriptor_blocks = u32::from(get_u16(raw, 0xce));
        let geometry = Geometry { blocks, groups, descriptor_blocks, reserved_descriptor_blocks };
        let per_group = self.inodes_per_group();
        let plausible = blocks >= MIN_BLOCKS
            && reserved_descriptor_blocks <= (BLOCK / 4) as u32
            && geometry.base_len(0) < blocks.min(BLOCKS_PER_GROUP)
            && (INODES_PER_BLOCK..=BLOCKS_PER_GROUP).contains(&per_group)
            && per_group.is_multiple_of(INODES_PER_BLOCK)
            && u64::from(self.inodes()) == u64::from(per_group) * u64::from(groups);
        if plausible { Ok(geometry) } else { Err(bad("the numbers in its superblock contradict each other")) }
    }

    pub(crate) fn inodes_per_group(&self) -> u32 {
        get_u32(&self.raw, 0x28)
    }

    /// Blocks that can never hold files.
    pub(crate) fn overhead(&self) -> u32 {
        get_u32(&self.raw, 0x248)
    }

    /// Whether there is an inode that owns the reserved descriptor blocks.
    pub(crate) fn has_resize_inode(&self) -> bool {
        self.features(COMPATIBLE) & FEATURE_RESIZE_INODE != 0
    }

    /// The stored form for the copy in `group`.
    pub(crate) fn encode(&self, group: u32) -> [u8; SUPERBLOCK_SIZE] {
        let mut copy = self.clone();
        put_u16(&mut copy.raw, 0x5a, group as u16);
        let checksum = copy.checksum();
        put_u32(&mut copy.raw, CHECKSUM, checksum);
        copy.raw
    }

    /// The block that holds the copy of `group`.
    pub(crate) fn block(&self, group: u32) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let offset = if group == 0 { SUPERBLOCK_OFFSET } else { 0 };
        block[offset..offset + SUPERBLOCK_SIZE].copy_from_slice(&self.encode(group));
        block
    }

    /// Length of the filesystem in bytes; the image may be a little longer.
    pub fn size_bytes(&self) -> u64 {
        self.blocks().saturating_mul(BLOCK_SIZE)
    }

    /// Bytes that no file uses.
    pub fn free_bytes(&self) -> u64 {
        get_split_u64(&self.raw, 0x0c, 0x158).saturating_mul(BLOCK_SIZE)
    }

    /// Inodes, used and free.
    pub fn inodes(&self) -> u32 {
        get_u32(&self.raw, 0x00)
    }

    /// Inodes for new files.
    pub fn free_inodes(&self) -> u32 {
        get_u32(&self.raw, 0x10)
    }

    /// The filesystem's identifier.
    pub fn uuid(&self) -> Uuid {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.raw[0x68..0x78]);
        Uuid::from_bytes(bytes)
    }

    /// The volume label, up to its first NUL.
    pub fn label(&self) -> String {
        let label = self.raw[0x78..0x88].split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(label).into_owned()
    }

    /// Whether it was unmounted cleanly, with nothing left in its journal.
    pub fn is_clean(&self) -> bool {
        get_u16(&self.raw, 0x3a) == 1 && self.features(INCOMPATIBLE) & NEEDS_RECOVERY == 0
    }

    fn blocks(&self) -> u64 {
        get_split_u64(&self.raw, 0x04, 0x150)
    }

    fn features(&self, set: usize) -> u32 {
        get_u32(&self.raw, set)
    }

    fn checksum(&self) -> u32 {
        Checksum::EMPTY.with(&self.raw[..CHECKSUM]).value()
    }

    fn set_time(&mut self, low: usize, high: usize, time: Timestamp) {
        let seconds = time.seconds.clamp(0, (1 << 40) - 1).cast_unsigned();
        put_u32(&mut self.raw, low, seconds as u32);
        self.raw[high] = (seconds >> 32) as u8;
    }
}

impl std::fmt::Debug for Superblock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Superblock")
            .field("uuid", &self.uuid())
            .field("label", &self.label())
            .field("size_bytes", &self.size_bytes())
            .field("free_bytes", &self.free_bytes())
            .field("inodes", &self.inodes())
            .field("free_inodes", &self.free_inodes())
            .finish()
    }
}
