//! Extents of a file's blocks, and the tree that stores them.
//!
//! ```text
//!  inode (4 entries)            up to four extents: right there
//!    |-> extent block (340)     more: in blocks, and blocks that point to blocks
//!    |     |-> extent block
//! ```
//! (kernel documentation: "Extent Tree")

use crate::BLOCK;
use crate::checksum::Checksum;
use crate::le::{put_u16, put_u32};

/// The longest extent of initialised blocks.
pub(crate) const MAX_EXTENT: u32 = 32768;
/// Extents that fit into an inode.
const IN_INODE: usize = 4;
/// Extents that fit into a block, its checksum kept apart.
const IN_BLOCK: usize = 340;
const MAGIC: u16 = 0xf30a;
const ENTRY: usize = 12;
/// The checksum's place at the end of an extent block.
const TAIL: usize = ENTRY + IN_BLOCK * ENTRY;

/// Adjoining blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Index of the first block in the file.
    pub(crate) logical: u32,
    /// Where it is in the image.
    pub(crate) start: u32,
    /// How many follow each other.
    pub(crate) len: u32,
}

/// Adds adjoining blocks to a file's extents, longer ones in pieces, as part of the last one where possible.
pub(crate) fn push_blocks(extents: &mut Vec<Extent>, logical: u32, start: u32, len: u32) {
    let (mut logical, mut start, mut left) = (logical, start, len);
    if let Some(last) = extents.last_mut()
        && last.logical + last.len == logical
        && last.start + last.len == start
    {
        let more = left.min(MAX_EXTENT - last.len);
        last.len += more;
        (logical, start, left) = (logical + more, start + more, left - more);
    }
    while left > 0 {
        let len = left.min(MAX_EXTENT);
        extents.push(Extent { logical, start, len });
        (logical, start, left) = (logical + len, start + len, left - len);
    }
}

/// The contents of a file, written to an image and waiting for a name in its tree.
///
/// It belongs to the [`crate::ImageWriter`] that made it. One that gets no name in the finished tree costs nothing:
/// its blocks are given back.
#[derive(Debug)]
pub struct FileData {
    size: u64,
    extents: Extents,
}

/// Nearly every file has one extent or none, and there are many files: only the rest pay for a list.
#[derive(Debug)]
enum Extents {
    None,
    One(Extent),
    Many(Box<[Extent]>),
}

impl FileData {
    pub(crate) fn new(size: u64, extents: Vec<Extent>) -> FileData {
        let extents = match extents[..] {
            [] => Extents::None,
            [extent] => Extents::One(extent),
            _ => Extents::Many(extents.into_boxed_slice()),
        };
        FileData { size, extents }
    }

    /// Length of the file in bytes, holes included.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the image that the contents take: whole blocks, holes not counted.
    pub fn allocated_bytes(&self) -> u64 {
        self.extents().iter().map(|extent| u64::from(extent.len)).sum::<u64>() * crate::BLOCK_SIZE
    }

    pub(crate) fn extents(&self) -> &[Extent] {
        match &self.extents {
            Extents::None => &[],
            Extents::One(extent) => std::slice::from_ref(extent),
            Extents::Many(extents) => extents,
        }
    }
}

/// An extent tree ready to be stored.
#[derive(Debug)]
pub(crate) struct ExtentTree {
    /// `i_block` of the inode.
    pub(crate) root: [u8; 60],
    /// The blocks below it and where they go.
    pub(crate) blocks: Vec<(u32, Vec<u8>)>,
}

/// Blocks that the tree of so many extents takes beside the inode.
pub(crate) fn tree_blocks(extents: usize) -> usize {
    let mut level = extents;
    let mut blocks = 0;
    while level > IN_INODE {
        level = level.div_ceil(IN_BLOCK);
        blocks += level;
    }
    blocks
}

/// Builds the tree, each level as full as can be. `take` finds room for one block.
pub(crate) fn build_tree<E>(
    extents: &[Extent],
    seed: Checksum,
    mut take: impl FnMut() -> Result<u32, E>,
) -> Result<ExtentTree, E> {
    let mut blocks = Vec::new();
    let mut depth = 0;
    let mut level: Vec<[u8; ENTRY]> = extents.iter().map(leaf_entry).collect();
    let mut logical: Vec<u32> = extents.iter().map(|extent| extent.logical).collect();
    while level.len() > IN_INODE {
        let mut above = Vec::with_capacity(level.len().div_ceil(IN_BLOCK));
        for (entries, indexes) in level.chunks(IN_BLOCK).zip(logical.chunks(IN_BLOCK)) {
            let place = take()?;
            let mut block = vec![0; BLOCK];
            put_node(&mut block, entries, IN_BLOCK, depth);
            let checksum = seed.with(&block[..TAIL]).value();
            put_u32(&mut block, TAIL, checksum);
            blocks.push((place, block));
            above.push(index_entry(indexes[0], place));
        }
        logical = logical.iter().copied().step_by(IN_BLOCK).collect();
        level = above;
        depth += 1;
    }
    let mut root = [0; 60];
    put_node(&mut root, &level, IN_INODE, depth);
    Ok(ExtentTree { root, blocks })
}

fn put_node(node: &mut [u8], entries: &[[u8; ENTRY]], most: usize, depth: u16) {
    put_u16(node, 0, MAGIC);
    put_u16(node, 2, entries.len() as u16);
    put_u16(node, 4, most as u16);
    put_u16(node, 6, depth);
    for (place, entry) in node[ENTRY..].chunks_exact_mut(ENTRY).zip(entries) {
        place.copy_from_slice(entry);
    }
}

fn leaf_entry(extent: &Extent) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put_u32(&mut entry, 0, extent.logical);
    put_u16(&mut entry, 4, extent.len as u16);
    put_u32(&mut entry, 8, extent.start);
    entry
}

fn index_entry(logical: u32, block: u32) -> [u8; ENTRY] {
    let mut entry = [0; ENTRY];
    put_u32(&mut entry, 0, logical);
    put_u32(&mut entry, 4, block);
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::le::{get_u16, get_u32};

    #[test]
    fn adjoining_blocks_become_one_extent_up_to_its_limit() {
        let mut extents = Vec::new();
        push_blocks(&mut extents, 0, 100, 10);
        push_blocks(&mut extents, 10, 110, 5);
        push_blocks(&mut extents, 15, 300, 1);
        push_blocks(&mut extents, 17, 301, 70_000);
        let lens: Vec<(u32, u32, u32)> = extents.iter().map(|e| (e.logical, e.start, e.len)).collect();
        assert_eq!(
            lens,
            [
                (0, 100, 15),
                (15, 300, 1),
                (17, 301, 32768),
                (17 + 32768, 301 + 32768, 32768),
                (17 + 65536, 301 + 65536, 4464)
            ]
        );
    }

    fn scattered(count: u32) -> Vec<Extent> {
        (0..count).map(|index| Extent { logical: index * 2, start: 1000 + index * 2, len: 1 }).collect()
    }

    fn build(count: u32) -> ExtentTree {
        let mut next = 5000;
        let take = || {
            next += 1;
            Ok::<u32, ()>(next)
        };
        build_tree(&scattered(count), Checksum::EMPTY, take).unwrap()
    }

    #[test]
    fn four_extents_fit_into_the_inode() {
        let tree = build(4);
        assert!(tree.blocks.is_empty());
        assert_eq!((get_u16(&tree.root, 2), get_u16(&tree.root, 6)), (4, 0));
    }

    #[test]
    fn more_extents_go_into_blocks_level_by_level() {
        for (count, depth, blocks) in [(5, 1, 1), (1360, 1, 4), (1361, 2, 5 + 1), (340 * 340 * 4 + 1, 3, 1361 + 5 + 1)]
        {
            let tree = build(count);
            assert_eq!(get_u16(&tree.root, 6), depth, "{count}");
            assert_eq!(tree.blocks.len(), blocks, "{count}");
            assert_eq!(tree_blocks(count as usize), blocks, "{count}");
        }
    }

    #[test]
    fn an_index_points_to_its_block_and_names_its_first_file_block() {
        let tree = build(1361);
        // The last leaf holds the one extent that did not fit into the others; the block above them comes last.
        let (place, leaf) = &tree.blocks[4];
        assert_eq!((get_u16(leaf, 2), get_u32(leaf, 12)), (1, 1360 * 2));
        let (_, above) = &tree.blocks[5];
        assert_eq!((get_u32(above, 12 + 4 * 12), get_u32(above, 12 + 4 * 12 + 4)), (1360 * 2, *place));
    }
}
