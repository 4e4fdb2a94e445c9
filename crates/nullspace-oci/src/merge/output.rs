//! The merged tree as its readers get it: a flat list in walking order.

use std::collections::HashMap;

use super::error::LayerError;
use super::path::Name;
use super::tree::{Arena, Child, Directory, FileContent, Kind, Meta, NodeId, Presence, ROOT};

/// A merged root filesystem. Entry 0 is the root directory; a directory comes before what is in it, names within a
/// directory are in byte order, and a hard link comes after the entry it refers to. The order depends on the image only.
#[derive(Debug)]
pub struct MergedTree<C> {
    entries: Vec<Entry<C>>,
}

/// One name in the tree.
#[derive(Debug)]
pub struct Entry<C> {
    /// Index of the directory it is in; the root is its own parent.
    pub parent: usize,
    /// The name, without slashes; empty for the root.
    pub name: Box<[u8]>,
    /// What it is.
    pub kind: EntryKind<C>,
}

/// What a name stands for.
#[derive(Debug)]
pub enum EntryKind<C> {
    /// A directory.
    Directory {
        /// Its metadata.
        meta: Meta,
    },
    /// A regular file, at the first of its names.
    File {
        /// Its metadata.
        meta: Meta,
        /// Length in bytes, holes included.
        size: u64,
        /// What the sink returned for its bytes.
        content: C,
    },
    /// A symbolic link, at the first of its names.
    Symlink {
        /// Its metadata.
        meta: Meta,
        /// The target as stored.
        target: Box<[u8]>,
    },
    /// A further name of the file or symlink at this index.
    HardLink {
        /// Index of the entry with the first name.
        to: usize,
    },
}

impl<C> MergedTree<C> {
    /// All entries in walking order.
    pub fn entries(&self) -> &[Entry<C>] {
        &self.entries
    }

    /// The entries by value, to take the contents out.
    pub fn into_entries(self) -> Vec<Entry<C>> {
        self.entries
    }

    /// The path of the entry at `index`, without a leading slash; empty for the root and for an index out of range.
    pub fn path(&self, index: usize) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = index;
        while let Some(entry) = self.entries.get(at).filter(|_| at != 0) {
            names.push(&*entry.name);
            at = entry.parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// The index of the entry with this path (`etc/passwd`); symlinks are not followed.
    pub fn find(&self, path: &[u8]) -> Option<usize> {
        let mut here = 0;
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            // Children lie behind their directory, and before the next entry that is not below it.
            here = self
                .entries
                .iter()
                .enumerate()
                .skip(here + 1)
                .find(|(_, entry)| entry.parent == here && &*entry.name == name)
                .map(|(index, _)| index)?;
        }
        Some(here)
    }
}

/// Turns the arena into the flat list.
pub(super) fn flatten<C>(mut arena: Arena<C>) -> Result<MergedTree<C>, LayerError> {
    let mut entries: Vec<Entry<C>> = Vec::new();
    let mut first: HashMap<NodeId, usize> = HashMap::new();
    // Reversed, so that popping gives byte order.
    let mut work: Vec<(usize, Name, NodeId)> = vec![(0, Box::default(), ROOT)];
    while let Some((parent, name, node)) = work.pop() {
        let node = arena.resolve(node);
        let index = entries.len();
        let kind = match arena.kind_mut(node) {
            Kind::Directory(directory) => {
                let Directory { children, presence, .. } =
                    std::mem::replace(directory, Directory::new(Presence::Ghost));
                let meta = match presence {
                    Presence::Ghost => continue,
                    Presence::Implied => Meta::implied_directory(),
                    Presence::Described(meta) => *meta,
                };
                let nodes = children.into_iter().rev().filter_map(|(name, child)| match child {
                    Child::Node(node) => Some((index, name, node)),
                    Child::Whiteout => None,
                });
                work.extend(nodes);
                EntryKind::Directory { meta }
            }
            kind => match std::mem::replace(kind, Kind::Free) {
                Kind::File { meta, size, content: FileContent::Stored(content) } => {
                    first.insert(node, index);
                    EntryKind::File { meta: *meta, size, content }
                }
                Kind::Symlink { meta, target } => {
                    first.insert(node, index);
                    EntryKind::Symlink { meta: *meta, target }
                }
                // Taken by an earlier name.
                Kind::Free => match first.get(&node) {
                    Some(&to) => EntryKind::HardLink { to },
                    None => return Err(LayerError::Changed),
                },
                _ => return Err(LayerError::Changed),
            },
        };
        entries.push(Entry { parent, name, kind });
    }
    Ok(MergedTree { entries })
}
