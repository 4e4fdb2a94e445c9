//! The writer's second half: everything that turns contents and a tree into a filesystem.
//!
//! 1. number the nodes: a directory's children get adjoining inodes;
//! 2. find out which blocks the named contents really use, and give back the others;
//! 3. place bitmaps, inode tables and the journal ([`crate::tables`]);
//! 4. write the inodes in their order, each with its directory, extent and attribute blocks ([`crate::nodes`]), behind them
//!    those of large attributes;
//! 5. write bitmaps, group descriptors and superblocks.

use crate::block_map::{BlockMap, set_bits};
use crate::checksum::Checksum;
use crate::directory;
use crate::error::Error;
use crate::extent::{Extent, push_blocks, tree_blocks};
use crate::geometry::{BLOCKS_PER_GROUP, FILES_IN_OVERHEAD, Geometry};
use crate::nodes::{FAST_SYMLINK, NodeWriter};
use crate::number::Numbers;
use crate::options::Summary;
use crate::output::Output;
use crate::superblock::{Counts, Superblock};
use crate::tables::{InodeStream, Tables};
use crate::tree::{Body, Node, Tree};
use crate::writer::ImageWriter;
use crate::{BLOCK, BLOCK_SIZE};

impl ImageWriter {
    /// Writes the tree and everything else that makes the image a filesystem.
    ///
    /// # Errors
    /// [`Error::TooSmall`] with the size that the whole tree needs, [`Error::DirectoryTooLarge`],
    /// [`Error::ForeignFileData`], [`Error::BadName`] for a file in the place of `lost+found`, [`Error::Io`].
    pub fn finish(self, tree: Tree) -> Result<Summary, Error> {
        finish(self, tree)
    }
}

fn finish(writer: ImageWriter, mut tree: Tree) -> Result<Summary, Error> {
    let ImageWriter { options, geometry, mut output, content, beyond, .. } = writer;
    let beyond = beyond.unwrap_or_default();
    tree.ensure_lost_and_found(options.time)?;
    let numbers = Numbers::of(&tree)?;
    let used = u64::from(numbers.last());
    let no_room = || options.too_small(needed_blocks(&tree, &numbers).saturating_add(beyond), used);
    if beyond > 0 {
        return Err(no_room());
    }
    let per_group = geometry.inodes_per_group(options.inode_demand(used)).ok_or_else(no_room)?;

    output.flush()?;
    let mut map = BlockMap::new(&geometry);
    let content_blocks = mark_contents(&tree, &numbers, &mut map)?;
    // Contents that lost their name must not linger in the image, least of all where an inode table is taken for
    // zeros.
    for (start, len) in map.free_ranges(output.high_water()) {
        output.punch(start, len)?;
    }
    map.seek(content.cursor());
    let tables = Tables::place(&geometry, &mut map, per_group).ok_or_else(no_room)?;
    let journal = place_journal(&geometry, &mut map).ok_or_else(no_room)?;

    let filesystem = Checksum::of_filesystem(options.uuid.as_bytes());
    let mut writer = NodeWriter {
        tree: &tree,
        numbers: &numbers,
        options: &options,
        filesystem,
        no_room: &no_room,
        map: &mut map,
        inodes: InodeStream::new(&tables, per_group),
        output: &mut output,
        next_value: numbers.first_value().unwrap_or_default(),
    };
    let journal_body = writer.write_reserved(&geometry, &journal)?;
    writer.write_tree()?;
    writer.write_values()?;
    let directories = writer.finish()?;

    let mut image = Groups { geometry: &geometry, per_group, filesystem, used: numbers.last(), output: &mut output };
    let (free_blocks, descriptors) = image.write_bitmaps(&map, &tables, &directories)?;
    if free_blocks < options.spare_blocks() {
        return Err(no_room());
    }
    let inodes = per_group * geometry.groups;
    let overhead = (geometry.overhead(per_group) - FILES_IN_OVERHEAD) as u32;
    let free_inodes = inodes - numbers.last();
    let counts = Counts { inodes_per_group: per_group, free_inodes, free_blocks, overhead };
    let mut superblock = Superblock::new(&options, &geometry, counts);
    superblock.set_journal(&journal_body, &journal);
    if numbers.first_value().is_some() {
        superblock.set_values_have_inodes();
    }
    write_superblocks(&mut output, &geometry, &superblock, &descriptors)?;

    Ok(Summary {
        file: output.into_file()?,
        size_bytes: options.size_bytes,
        blocks: u64::from(geometry.blocks),
        free_blocks,
        content_blocks,
        inodes,
        free_inodes,
    })
}

/// Marks the blocks of all files that have a name. Whatever else was written is free again.
fn mark_contents(tree: &Tree, numbers: &Numbers, map: &mut BlockMap) -> Result<u64, Error> {
    let mut blocks = 0;
    for (node, _) in numbers.nodes() {
        if let Body::File(data) = &tree.node(node).body {
            for extent in data.extents() {
                if !map.mark(extent.start, extent.len) {
                    return Err(Error::ForeignFileData);
                }
                blocks += u64::from(extent.len);
            }
        }
    }
    Ok(blocks)
}

/// Room for the journal, in one piece if there is one.
fn place_journal(geometry: &Geometry, map: &mut BlockMap) -> Option<Vec<Extent>> {
    let blocks = geometry.journal_blocks();
    let mut extents = Vec::new();
    if let Some(start) = map.take_adjoining(blocks) {
        push_blocks(&mut extents, 0, start, blocks);
        return Some(extents);
    }
    let mut placed = 0;
    while placed < blocks {
        let (start, len) = map.take(blocks - placed)?;
        push_blocks(&mut extents, placed, start, len);
        placed += len;
    }
    Some(extents)
}

/// Blocks that a tree needs at most, for an error that can tell a size that suffices.
fn needed_blocks(tree: &Tree, numbers: &Numbers) -> u64 {
    let of_node = |node: &Node| {
        let body = match &node.body {
            Body::Directory(entries) => directory::most_blocks(entries.keys().map(|name| name.len())),
            Body::File(data) => data.allocated_bytes() / BLOCK_SIZE + tree_blocks(data.extents().len()) as u64,
            Body::Symlink(target) => u64::from(target.len() >= FAST_SYMLINK),
            Body::Removed => 0,
        };
        let of_attributes = node.attributes.as_ref().map_or(0, |attributes| {
            let outside = attributes.outside().map(|value| (value.len() as u64).div_ceil(BLOCK_SIZE)).sum::<u64>();
            outside + u64::from(attributes.needs_block())
        });
        body + of_attributes
    };
    numbers.all().map(|(node, _)| of_node(tree.node(node))).sum()
}

/// What the group descriptors are made from.
struct Groups<'a> {
    geometry: &'a Geometry,
    per_group: u32,
    filesystem: Checksum,
    /// The last inode in use; all before it are in use too.
    used: u32,
    output: &'a mut Output,
}

impl Groups<'_> {
    /// Writes the bitmaps of groups that have something in them. Returns the free blocks and all descriptors.
    fn write_bitmaps(&mut self, map: &BlockMap, tables: &Tables, directories: &[u32]) -> Result<(u64, Vec<u8>), Error> {
        let mut descriptors = Vec::with_capacity(self.geometry.descriptor_blocks as usize * BLOCK);
        let mut free_blocks = 0;
        let mut bitmaps = Vec::new();
        for number in 0..self.geometry.groups {
            let used = self.used.saturating_sub(number * self.per_group).min(self.per_group);
            let mut group = tables.group(number);
            group.free_blocks = map.free_in_group(number);
            group.free_inodes = self.per_group - used;
            group.unused_inodes = self.per_group - used;
            group.directories = directories.get(number as usize).copied().unwrap_or_default();
            free_blocks += u64::from(group.free_blocks);
            // mke2fs writes the last group's bitmap always, and so will everyone who grows the filesystem expect.
            if !map.is_untouched(number) || number + 1 == self.geometry.groups {
                let bitmap = map.bitmap(number);
                group.block_bitmap_checksum = Some(self.filesystem.with(&bitmap).value());
                bitmaps.push((group.block_bitmap, bitmap));
            }
            if used > 0 {
                let bitmap = inode_bitmap(used, self.per_group);
                let counted = &bitmap[..self.per_group as usize / 8];
                group.inode_bitmap_checksum = Some(self.filesystem.with(counted).value());
                bitmaps.push((group.inode_bitmap, bitmap));
            }
            descriptors.extend_from_slice(&group.encode(number, self.filesystem));
        }
        // In the order in which they lie, so that they go out together.
        bitmaps.sort_unstable_by_key(|(block, _)| *block);
        for (block, bitmap) in bitmaps {
            self.output.append(block, &bitmap)?;
        }
        Ok((free_blocks, descriptors))
    }
}

/// Inodes are numbered without gaps, so a bitmap is a run of ones; what is behind the table counts as used.
fn inode_bitmap(used: u32, per_group: u32) -> Vec<u8> {
    let mut words = [0u64; BLOCKS_PER_GROUP as usize / 64];
    set_bits(&mut words, 0, used);
    set_bits(&mut words, per_group, BLOCKS_PER_GROUP);
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Writes superblock and descriptors into group 0 and all groups that have copies.
pub(crate) fn write_superblocks(
    output: &mut Output,
    geometry: &Geometry,
    superblock: &Superblock,
    descriptors: &[u8],
) -> Result<(), Error> {
    let mut padded = descriptors.to_vec();
    padded.resize(geometry.descriptor_blocks as usize * BLOCK, 0);
    for group in std::iter::once(0).chain(geometry.backup_groups()) {
        let start = geometry.group_start(group);
        output.append(start, &superblock.block(group))?;
        output.append(start + 1, &padded)?;
    }
    output.flush()
}
