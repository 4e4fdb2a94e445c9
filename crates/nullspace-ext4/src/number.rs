//! Inode numbers for the nodes of a tree.

use crate::error::Error;
use crate::geometry::FIRST_INODE;
use crate::tree::{Body, LOST_AND_FOUND, NodeId, Tree};

pub(crate) const ROOT_INODE: u32 = 2;

/// Which inode a node gets. Numbers have no gaps; the order follows from the tree alone.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// By node; 0 for what has no name any more.
    inodes: Vec<u32>,
    /// The nodes from inode [`FIRST_INODE`] on, each with the inode of a directory that has it.
    order: Vec<(NodeId, u32)>,
    /// Inodes behind those of the nodes, for attributes' values.
    values: u32,
}

impl Numbers {
    /// Numbers a tree whose root has a `lost+found`: that gets the first inode, as e2fsck likes it. Then, directory by
    /// directory, the children of each get adjoining numbers: whoever lists a directory reads few blocks of inodes.
    pub(crate) fn of(tree: &Tree) -> Result<Numbers, Error> {
        let mut numbers = Numbers { inodes: vec![0; tree.len()], order: Vec::with_capacity(tree.len()), values: 0 };
        numbers.inodes[Tree::ROOT.index()] = ROOT_INODE;
        if let Some(lost_and_found) = tree.lookup(Tree::ROOT, LOST_AND_FOUND) {
            numbers.assign(lost_and_found, ROOT_INODE)?;
        }
        // A list instead of recursion: a hostile tree can be deeper than the stack.
        let mut open = vec![Tree::ROOT];
        while let Some(directory) = open.pop() {
            let Body::Directory(entries) = &tree.node(directory).body else { continue };
            let parent = numbers.inode(directory);
            let first_open = open.len();
            for &child in entries.values() {
                if numbers.inodes[child.index()] == 0 {
                    numbers.assign(child, parent)?;
                }
                if matches!(tree.node(child).body, Body::Directory(_)) {
                    open.push(child);
                }
            }
            // The first name is to be taken up first.
            open[first_open..].reverse();
        }
        let outside =
            |(node, _)| tree.node(node).attributes.as_ref().map_or(0, |attributes| attributes.outside().count());
        let values: usize = numbers.all().map(outside).sum();
        numbers.values = u32::try_from(values).map_err(|_| Error::TooManyEntries)?;
        numbers.last_node().checked_add(numbers.values).ok_or(Error::TooManyEntries)?;
        Ok(numbers)
    }

    fn last_node(&self) -> u32 {
        FIRST_INODE - 1 + self.order.len() as u32
    }

    /// The first inode of an attribute's value, if there are any: they follow the nodes' inodes, in the order of
    /// [`Numbers::all`].
    pub(crate) fn first_value(&self) -> Option<u32> {
        (self.values > 0).then(|| self.last_node() + 1)
    }

    /// The inode of a node that has a name.
    pub(crate) fn inode(&self, node: NodeId) -> u32 {
        self.inodes[node.index()]
    }

    /// The last inode in use.
    pub(crate) fn last(&self) -> u32 {
        self.last_node() + self.values
    }

    /// All nodes but the root in the order of their inodes, with the inode of their (first) directory.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (NodeId, u32)> {
        self.order.iter().copied()
    }

    /// The root and all other nodes.
    pub(crate) fn all(&self) -> impl Iterator<Item = (NodeId, u32)> {
        std::iter::once((Tree::ROOT, ROOT_INODE)).chain(self.nodes())
    }

    fn assign(&mut self, node: NodeId, parent: u32) -> Result<(), Error> {
        let next = u32::try_from(self.order.len()).ok().and_then(|count| FIRST_INODE.checked_add(count));
        self.inodes[node.index()] = next.ok_or(Error::TooManyEntries)?;
        self.order.push((node, parent));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Meta;

    #[test]
    fn children_of_a_directory_follow_each_other_and_links_share_a_number() {
        let mut tree = Tree::new(Meta::default()).unwrap();
        let b = tree.add_dir(Tree::ROOT, b"b", Meta::default()).unwrap();
        let a = tree.add_dir(Tree::ROOT, b"a", Meta::default()).unwrap();
        let in_b = tree.add_symlink(b, b"x", Meta::default(), b"t").unwrap();
        let in_a = tree.add_dir(a, b"y", Meta::default()).unwrap();
        tree.link(a, b"z", in_b).unwrap();
        let lost = tree.add_dir(Tree::ROOT, b"lost+found", Meta::default()).unwrap();
        let removed = tree.add_dir(Tree::ROOT, b"gone", Meta::default()).unwrap();
        tree.remove(Tree::ROOT, b"gone");
        let numbers = Numbers::of(&tree).unwrap();
        let inodes = [Tree::ROOT, lost, a, b, in_a, in_b, removed].map(|node| numbers.inode(node));
        assert_eq!(inodes, [2, 11, 12, 13, 14, 15, 0]);
        assert_eq!(numbers.last(), 15);
        assert_eq!(numbers.nodes().map(|(_, parent)| parent).collect::<Vec<_>>(), [2, 2, 2, 12, 12]);
    }
}
