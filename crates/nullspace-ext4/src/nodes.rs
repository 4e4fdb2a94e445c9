//! Inodes with all that hangs on them: directory blocks, extent blocks, link targets, attributes.

use crate::block_map::BlockMap;
use crate::checksum::Checksum;
use crate::directory::{self, DirectoryBlocks, Entry, EntryType, Place};
use crate::error::Error;
use crate::extent::{Extent, build_tree, push_blocks};
use crate::geometry::{FIRST_INODE, Geometry, INODE_SIZE};
use crate::hash::NameHasher;
use crate::inode::{self, Inode};
use crate::journal::{self, JOURNAL_INODE};
use crate::number::{Numbers, ROOT_INODE};
use crate::options::Options;
use crate::output::Output;
use crate::resize_inode::{self, RESIZE_INODE};
use crate::tables::InodeStream;
use crate::tree::{Body, Children, NodeId, Tree};
use crate::{BLOCK, BLOCK_SIZE, xattr};

/// Link targets shorter than this live in the inode.
pub(crate) const FAST_SYMLINK: usize = 60;
/// Blocks that an empty `lost+found` gets in advance, as from mke2fs.
pub(crate) const LOST_AND_FOUND_BLOCKS: u32 = 4;
/// A directory with more links than this says 1, which means "many" (`dir_nlink`).
const MAX_DIRECTORY_LINKS: usize = 65000;
const PERMISSIONS: u16 = 0o7777;

/// Writes nodes in the order of their inodes.
pub(crate) struct NodeWriter<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) numbers: &'a Numbers,
    pub(crate) options: &'a Options,
    pub(crate) filesystem: Checksum,
    /// The error when no block is left.
    pub(crate) no_room: &'a dyn Fn() -> Error,
    pub(crate) map: &'a mut BlockMap,
    pub(crate) inodes: InodeStream<'a>,
    pub(crate) output: &'a mut Output,
    /// The inode of the next attribute's value.
    pub(crate) next_value: u32,
}

/// What the type of a node adds to its inode.
struct Content {
    kind: u16,
    size: u64,
    links: usize,
    flags: u32,
    body: [u8; 60],
    blocks: u64,
}

impl NodeWriter<'_> {
    /// Writes inodes 1 to 10, the root among them. Returns the body of the journal's inode.
    pub(crate) fn write_reserved(&mut self, geometry: &Geometry, journal: &[Extent]) -> Result<[u8; 60], Error> {
        let mut journal_body = [0; 60];
        for number in 1..FIRST_INODE {
            match number {
                ROOT_INODE => self.write_node(Tree::ROOT, ROOT_INODE)?,
                RESIZE_INODE if geometry.reserved_descriptor_blocks > 0 => self.write_resize_inode(geometry)?,
                JOURNAL_INODE => journal_body = self.write_journal(journal)?,
                _ => self.inodes.push(&[0; INODE_SIZE], false, self.output)?,
            }
        }
        Ok(journal_body)
    }

    /// Writes all other inodes.
    pub(crate) fn write_tree(&mut self) -> Result<(), Error> {
        let numbers = self.numbers;
        for (node, parent) in numbers.nodes() {
            self.write_node(node, parent)?;
        }
        Ok(())
    }

    /// Writes the inodes of attributes' values, in the order in which the nodes have named them.
    pub(crate) fn write_values(&mut self) -> Result<(), Error> {
        let (tree, numbers) = (self.tree, self.numbers);
        for (node, _) in numbers.all() {
            let node = tree.node(node);
            for value in node.attributes.iter().flat_map(|attributes| attributes.outside()) {
                let number = self.inodes.next();
                let mut blocks = value.to_vec();
                blocks.resize(value.len().next_multiple_of(BLOCK), 0);
                let extents = self.write_blocks(&blocks)?;
                let (body, tree_blocks) = self.extents(&extents, self.filesystem.of_inode(number, 0))?;
                let inode = Inode {
                    mode: inode::REGULAR | 0o600,
                    uid: node.uid,
                    gid: node.gid,
                    size: value.len() as u64,
                    links: 1,
                    flags: inode::FLAG_EXTENTS | inode::FLAG_VALUE,
                    mtime: self.options.time,
                    ctime: self.options.time,
                    blocks: tree_blocks + (blocks.len() / BLOCK) as u64,
                    body,
                    attributes: None,
                    attribute_block: 0,
                    first_value: 0,
                };
                let hash = xattr::value_hash(self.filesystem, value);
                self.inodes.push(&inode.encode_value(number, self.filesystem, hash), false, self.output)?;
            }
        }
        Ok(())
    }

    /// Writes what is left. Returns the number of directories by group.
    pub(crate) fn finish(self) -> Result<Vec<u32>, Error> {
        self.output.flush()?;
        self.inodes.finish(self.output)
    }

    fn write_node(&mut self, id: NodeId, parent: u32) -> Result<(), Error> {
        let tree = self.tree;
        let node = tree.node(id);
        let number = self.inodes.next();
        let seed = self.filesystem.of_inode(number, 0);
        let mut content = match &node.body {
            Body::Directory(children) => self.directory(children, Place { inode: number, parent, seed })?,
            Body::File(data) => {
                let (body, tree_blocks) = self.extents(data.extents(), seed)?;
                let blocks = tree_blocks + data.allocated_bytes() / BLOCK_SIZE;
                let links = node.names.into();
                Content { kind: inode::REGULAR, size: data.size(), links, flags: inode::FLAG_EXTENTS, body, blocks }
            }
            Body::Symlink(target) => self.symlink(target, node.names.into(), seed)?,
            // Nodes without a name have no number.
            Body::Removed => return Ok(()),
        };
        let first_value = self.next_value;
        let mut attribute_block = 0;
        if let Some(attributes) = &node.attributes {
            self.next_value += attributes.outside().count() as u32;
            // They count for both: the inode that they are in, and the one whose attributes they are.
            content.blocks += attributes.outside().map(|value| (value.len() as u64).div_ceil(BLOCK_SIZE)).sum::<u64>();
            if attributes.needs_block() {
                attribute_block = self.block()?;
                let block = attributes.block(self.filesystem, attribute_block, first_value);
                self.output.append(attribute_block, &block)?;
                content.blocks += 1;
            }
        }
        let inode = Inode {
            mode: content.kind | node.mode & PERMISSIONS,
            uid: node.uid,
            gid: node.gid,
            size: content.size,
            links: content.links as u16,
            flags: content.flags,
            mtime: node.mtime,
            ctime: self.options.time,
            blocks: content.blocks,
            body: content.body,
            attributes: node.attributes.as_deref(),
            attribute_block,
            first_value,
        };
        self.inodes.push(&inode.encode(number, self.filesystem), content.kind == inode::DIRECTORY, self.output)
    }

    fn directory(&mut self, children: &Children, place: Place) -> Result<Content, Error> {
        let mut subdirectories = 0;
        let mut entries = Vec::with_capacity(children.len());
        for (name, &child) in children {
            let kind = match &self.tree.node(child).body {
                Body::Directory(_) => EntryType::Directory,
                Body::Symlink(_) => EntryType::Symlink,
                Body::File(_) | Body::Removed => EntryType::File,
            };
            subdirectories += usize::from(kind == EntryType::Directory);
            entries.push(Entry { name, inode: self.numbers.inode(child), kind });
        }
        let DirectoryBlocks { bytes, indexed } = if entries.is_empty() && place.inode == FIRST_INODE {
            directory::empty_with_room(place, LOST_AND_FOUND_BLOCKS as usize)
        } else {
            directory::build(place, &entries, &NameHasher::new(self.options.hash_seed.as_bytes()))?
        };
        let extents = self.write_blocks(&bytes)?;
        let (body, tree_blocks) = self.extents(&extents, place.seed)?;
        let links = 2 + subdirectories;
        Ok(Content {
            kind: inode::DIRECTORY,
            size: bytes.len() as u64,
            links: if links > MAX_DIRECTORY_LINKS { 1 } else { links },
            flags: inode::FLAG_EXTENTS | if indexed { inode::FLAG_INDEXED } else { 0 },
            body,
            blocks: tree_blocks + (bytes.len() / BLOCK) as u64,
        })
    }

    fn symlink(&mut self, target: &[u8], links: usize, seed: Checksum) -> Result<Content, Error> {
        let (kind, size) = (inode::SYMLINK, target.len() as u64);
        if target.len() < FAST_SYMLINK {
            let mut body = [0; 60];
            body[..target.len()].copy_from_slice(target);
            return Ok(Content { kind, size, links, flags: 0, body, blocks: 0 });
        }
        let mut block = [0; BLOCK];
        block[..target.len()].copy_from_slice(target);
        let extents = self.write_blocks(&block)?;
        let (body, _) = self.extents(&extents, seed)?;
        Ok(Content { kind, size, links, flags: inode::FLAG_EXTENTS, body, blocks: 1 })
    }

    fn write_resize_inode(&mut self, geometry: &Geometry) -> Result<(), Error> {
        let place = self.block()?;
        let resize = resize_inode::build(geometry, place);
        self.output.append(place, &resize.double_indirect)?;
        self.output.write(1 + geometry.descriptor_blocks, &resize.reserved)?;
        self.write_own(RESIZE_INODE, resize_inode::SIZE, 0, resize.body, resize.blocks)
    }

    fn write_journal(&mut self, extents: &[Extent]) -> Result<[u8; 60], Error> {
        let blocks: u32 = extents.iter().map(|extent| extent.len).sum();
        if let Some(first) = extents.first() {
            self.output.append(first.start, &journal::superblock(blocks, self.options.uuid.as_bytes()))?;
        }
        let seed = self.filesystem.of_inode(JOURNAL_INODE, 0);
        let (body, tree_blocks) = self.extents(extents, seed)?;
        let size = u64::from(blocks) * BLOCK_SIZE;
        let blocks = u64::from(blocks) + tree_blocks;
        self.write_own(JOURNAL_INODE, size, inode::FLAG_EXTENTS, body, blocks)?;
        Ok(body)
    }

    /// Writes an inode that the filesystem keeps for itself.
    fn write_own(&mut self, number: u32, size: u64, flags: u32, body: [u8; 60], blocks: u64) -> Result<(), Error> {
        let inode = Inode {
            mode: inode::REGULAR | 0o600,
            uid: 0,
            gid: 0,
            size,
            links: 1,
            flags,
            mtime: self.options.time,
            ctime: self.options.time,
            blocks,
            body,
            attributes: None,
            attribute_block: 0,
            first_value: 0,
        };
        self.inodes.push(&inode.encode(number, self.filesystem), false, self.output)
    }

    /// Writes blocks wherever there is room.
    fn write_blocks(&mut self, bytes: &[u8]) -> Result<Vec<Extent>, Error> {
        let mut extents = Vec::new();
        let (mut rest, mut logical) = (bytes, 0);
        while !rest.is_empty() {
            let (start, len) = self.map.take((rest.len() / BLOCK) as u32).ok_or_else(self.no_room)?;
            let (now, later) = rest.split_at(len as usize * BLOCK);
            self.output.append(start, now)?;
            push_blocks(&mut extents, logical, start, len);
            logical += len;
            rest = later;
        }
        Ok(extents)
    }

    /// Writes an extent tree. Returns its root and the number of its blocks.
    fn extents(&mut self, extents: &[Extent], seed: Checksum) -> Result<([u8; 60], u64), Error> {
        let tree = build_tree(extents, seed, || self.block())?;
        for (place, block) in &tree.blocks {
            self.output.append(*place, block)?;
        }
        Ok((tree.root, tree.blocks.len() as u64))
    }

    fn block(&mut self) -> Result<u32, Error> {
        self.map.take(1).map(|(start, _)| start).ok_or_else(self.no_room)
    }
}
