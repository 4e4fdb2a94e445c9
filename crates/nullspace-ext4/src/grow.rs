//! An existing image made larger, without mounting it.
//!
//! ```text
//!  before:  | groups ...... | last group, short |
//!  after:   | groups ...... | last group, full  | new group | new group | ...
//! ```
//!
//! New group descriptors go into the blocks reserved for them, so nothing moves: the cost is that of a few blocks per
//! new set of 16 groups. The image may have been used by a guest since it was written, so nothing in it is believed
//! that a checksum or a comparison can refute. What a hostile guest can reach by lies that pass is a filesystem that
//! is broken for the next guest, never a write outside the image.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::block_map::BlockMap;
use crate::checksum::Checksum;
use crate::error::{Error, io};
use crate::finish::write_superblocks;
use crate::geometry::{DESCRIPTOR_SIZE, GROUPS_PER_FLEX, Geometry, INODE_SIZE, INODES_PER_BLOCK};
use crate::group::{Group, StoredGroup};
use crate::le::get_u32;
use crate::output::Output;
use crate::resize_inode::{self, RESIZE_INODE};
use crate::superblock::{Counts, Superblock};
use crate::{BLOCK, BLOCK_SIZE, inode};

/// Enlarges an image that [`crate::ImageWriter`] made to `size_bytes`, exactly. An interruption leaves a broken image: work
/// on a copy.
///
/// A last block group that cannot hold its own tables (at most 8 MiB, usually 2) is left out of the filesystem. The
/// journal keeps its size.
///
/// # Errors
/// [`Error::CannotShrink`], [`Error::CannotGrow`] beyond the room kept for descriptors (1 TiB for most images),
/// [`Error::BadImage`] if the image was not unmounted cleanly or is not one of this crate's, [`Error::Io`].
pub fn grow(file: &File, size_bytes: u64) -> Result<Superblock, Error> {
    let current_bytes = file.metadata().map_err(io("look at the image file"))?.len();
    let mut superblock = Superblock::read(file)?;
    let old = superblock.geometry()?;
    if size_bytes < current_bytes {
        return Err(Error::CannotShrink { size_bytes, current_bytes });
    }
    if u64::from(old.blocks) > current_bytes / BLOCK_SIZE {
        return Err(bad("it is shorter than its superblock says"));
    }
    if !superblock.is_clean() {
        return Err(bad("it was not unmounted cleanly"));
    }
    let per_group = superblock.inodes_per_group();
    let Placed { geometry: new, map, groups } = place_groups(&old, old.grown(size_bytes, per_group)?, per_group);
    let filesystem = Checksum::of_filesystem(superblock.uuid().as_bytes());
    let mut descriptors = read_descriptors(file, &old, filesystem)?;
    let resize = ResizePlace::find(file, &superblock, &old, &descriptors)?;

    if new.blocks <= old.blocks {
        file.set_len(size_bytes).map_err(io("set the size of the image file"))?;
        return Ok(superblock);
    }
    let widened = widen_last_group(file, &old, &new, &mut descriptors, filesystem)?;

    // From here on the image changes.
    file.set_len(size_bytes).map_err(io("set the size of the image file"))?;
    let mut output = Output::of(file.try_clone().map_err(io("share the image file"))?);
    // A guest can have written behind the end of its filesystem, where inode tables of zeros are to be.
    let file_blocks = u32::try_from(current_bytes.div_ceil(BLOCK_SIZE)).unwrap_or(u32::MAX);
    if let Some(behind) = file_blocks.checked_sub(old.blocks).filter(|&behind| behind > 0) {
        output.punch(old.blocks, behind)?;
    }
    if let Some((block, bitmap)) = widened {
        output.write(block, &bitmap)?;
    }
    let mut stored = Vec::with_capacity(new.groups as usize * DESCRIPTOR_SIZE);
    let mut counts = Counts {
        inodes_per_group: per_group,
        free_inodes: 0,
        free_blocks: 0,
        overhead: grown_overhead(&superblock, &old, &new),
    };
    for (number, descriptor) in (0..).zip(&descriptors) {
        counts.free_blocks += u64::from(descriptor.free_blocks());
        counts.free_inodes = counts.free_inodes.saturating_add(descriptor.free_inodes());
        stored.extend_from_slice(&descriptor.sealed(number, filesystem));
    }
    for (number, mut group) in (old.groups..).zip(groups) {
        group.free_blocks = map.free_in_group(number);
        (group.free_inodes, group.unused_inodes) = (per_group, per_group);
        counts.free_blocks += u64::from(group.free_blocks);
        counts.free_inodes = counts.free_inodes.saturating_add(per_group);
        if !map.is_untouched(number) || number + 1 == new.groups {
            let bitmap = map.bitmap(number);
            group.block_bitmap_checksum = Some(filesystem.with(&bitmap).value());
            output.write(group.block_bitmap, &bitmap)?;
        }
        stored.extend_from_slice(&group.encode(number, filesystem));
    }
    if let Some(place) = resize {
        place.rewrite(&mut output, &new, filesystem)?;
    }
    superblock.grow(&old, &new, counts);
    write_superblocks(&mut output, &new, &superblock, &stored)?;
    Ok(superblock)
}

/// The groups to be added.
struct Placed {
    geometry: Geometry,
    /// Only the new groups are up to date in it.
    map: BlockMap,
    groups: Vec<Group>,
}

/// Finds room for the bitmaps and inode tables of new groups in these groups themselves. A short last group that has
/// none is left out.
fn place_groups(old: &Geometry, mut geometry: Geometry, per_group: u32) -> Placed {
    loop {
        let mut map = BlockMap::new(&geometry);
        match try_place(old, &geometry, &mut map, per_group) {
            Some(groups) => return Placed { geometry, map, groups },
            // Only a last group can be too short, and there is one: without new groups nothing has to be placed.
            None => geometry = geometry.without_last_group(),
        }
    }
}

fn try_place(old: &Geometry, new: &Geometry, map: &mut BlockMap, per_group: u32) -> Option<Vec<Group>> {
    let table_len = per_group / INODES_PER_BLOCK;
    let home = |group: u32| new.group_start(group) + new.base_len(group);
    let mut groups = Vec::new();
    let mut first = old.groups;
    while first < new.groups {
        let end = (first / GROUPS_PER_FLEX + 1).saturating_mul(GROUPS_PER_FLEX).min(new.groups);
        let count = end - first;
        if map.mark(home(first), count * (2 + table_len)) {
            let bitmaps = home(first);
            groups.extend((0..count).map(|index| Group {
                block_bitmap: bitmaps + index,
                inode_bitmap: bitmaps + count + index,
                inode_table: bitmaps + 2 * count + index * table_len,
                ..Group::default()
            }));
        } else {
            for group in first..end {
                let start = home(group);
                if !map.mark(start, 2 + table_len) {
                    return None;
                }
                groups.push(Group {
                    block_bitmap: start,
                    inode_bitmap: start + 1,
                    inode_table: start + 2,
                    ..Group::default()
                });
            }
        }
        first = end;
    }
    Some(groups)
}

fn read_descriptors(file: &File, geometry: &Geometry, filesystem: Checksum) -> Result<Vec<StoredGroup>, Error> {
    let mut bytes = vec![0; geometry.groups as usize * DESCRIPTOR_SIZE];
    file.read_exact_at(&mut bytes, BLOCK_SIZE).map_err(io("read the group descriptors"))?;
    let mut descriptors = Vec::with_capacity(geometry.groups as usize);
    for (number, bytes) in (0..).zip(bytes.chunks_exact(DESCRIPTOR_SIZE)) {
        let mut raw = [0; DESCRIPTOR_SIZE];
        raw.copy_from_slice(bytes);
        let descriptor = StoredGroup { raw };
        if !descriptor.is_intact(number, filesystem) {
            return Err(bad("a group descriptor is damaged"));
        }
        descriptors.push(descriptor);
    }
    Ok(descriptors)
}

/// Frees the blocks by which the last group grows. Returns its bitmap and where it goes, if it has one.
fn widen_last_group(
    file: &File,
    old: &Geometry,
    new: &Geometry,
    descriptors: &mut [StoredGroup],
    filesystem: Checksum,
) -> Result<Option<(u32, Vec<u8>)>, Error> {
    let last = old.groups - 1;
    let (old_len, new_len) = (old.group_len(last), new.group_len(last));
    let Some(descriptor) = descriptors.last_mut().filter(|_| new_len > old_len) else { return Ok(None) };
    let Some(checksum) = descriptor.block_bitmap_checksum() else {
        descriptor.add_free_blocks(new_len - old_len, None);
        return Ok(None);
    };
    let block = block_inside(descriptor.block_bitmap(), old)?;
    let mut bitmap = read_block(file, block)?;
    if filesystem.with(&bitmap).value() != checksum {
        return Err(bad("a block bitmap is damaged"));
    }
    for bit in old_len as usize..new_len as usize {
        bitmap[bit / 8] &= !(1 << (bit % 8));
    }
    descriptor.add_free_blocks(new_len - old_len, Some(filesystem.with(&bitmap).value()));
    Ok(Some((block, bitmap)))
}

/// Where the resize inode is, and what it has to say anew when descriptors take some of its blocks and new groups
/// bring some more.
struct ResizePlace {
    table: u32,
    inodes: Vec<u8>,
    double_indirect: u32,
}

impl ResizePlace {
    const OFFSET: usize = (RESIZE_INODE as usize - 1) * INODE_SIZE;

    fn find(
        file: &File,
        superblock: &Superblock,
        geometry: &Geometry,
        descriptors: &[StoredGroup],
    ) -> Result<Option<ResizePlace>, Error> {
        if !superblock.has_resize_inode() {
            // Then nothing may be reserved either, and the descriptors have to do with the blocks they have.
            let consistent = geometry.reserved_descriptor_blocks == 0;
            return if consistent { Ok(None) } else { Err(bad("nobody owns its reserved blocks")) };
        }
        let first = descriptors.first().ok_or_else(|| bad("it has no groups"))?;
        let table = block_inside(first.inode_table(), geometry)?;
        let inodes = read_block(file, table)?;
        let double_indirect = get_u32(&inodes, ResizePlace::OFFSET + 0x28 + resize_inode::DOUBLE_INDIRECT * 4);
        let double_indirect = block_inside(double_indirect.into(), geometry)?;
        Ok(Some(ResizePlace { table, inodes, double_indirect }))
    }

    fn rewrite(mut self, output: &mut Output, geometry: &Geometry, filesystem: Checksum) -> Result<(), Error> {
        let resize = resize_inode::build(geometry, self.double_indirect);
        output.write(self.double_indirect, &resize.double_indirect)?;
        output.write(1 + geometry.descriptor_blocks, &resize.reserved)?;
        let mut raw = [0; INODE_SIZE];
        let place = &mut self.inodes[ResizePlace::OFFSET..ResizePlace::OFFSET + INODE_SIZE];
        raw.copy_from_slice(place);
        inode::set_blocks(&mut raw, RESIZE_INODE, resize.blocks, filesystem);
        place.copy_from_slice(&raw);
        output.write(self.table, &self.inodes)
    }
}

/// A block number from the image, if it can be one of metadata that lies behind the descriptors.
fn block_inside(block: u64, geometry: &Geometry) -> Result<u32, Error> {
    let inside = |block: &u32| (geometry.base_len(0)..geometry.blocks).contains(block);
    u32::try_from(block).ok().filter(inside).ok_or_else(|| bad("metadata lies outside of it"))
}

fn read_block(file: &File, block: u32) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; BLOCK];
    file.read_exact_at(&mut bytes, u64::from(block) * BLOCK_SIZE).map_err(io("read from the image file"))?;
    Ok(bytes)
}

/// Blocks that can never hold files; 0, which means unknown, stays that.
fn grown_overhead(superblock: &Superblock, old: &Geometry, new: &Geometry) -> u32 {
    let of_group = |group| new.base_len(group) + 2 + superblock.inodes_per_group() / INODES_PER_BLOCK;
    match superblock.overhead() {
        0 => 0,
        known => (old.groups..new.groups).map(of_group).fold(known, u32::saturating_add),
    }
}

fn bad(reason: &str) -> Error {
    Error::BadImage { reason: reason.to_owned() }
}
