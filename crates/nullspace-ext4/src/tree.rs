//! The tree of names, metadata and contents.
//!
//! It is built by calls, and each call checks its name, target and attributes. So the caller can report an error with its
//! path, and [`crate::ImageWriter::finish`] can only fail for lack of space.

use std::collections::BTreeMap;

use crate::error::{Error, NameFault, XattrFault, readable};
use crate::extent::FileData;
use crate::meta::{MAX_LINKS, Meta, NodeKind, Timestamp};
use crate::xattr::Attributes;

/// The longest target of a symbolic link: with its NUL it fills a block.
const MAX_TARGET: usize = 4095;
const MAX_NAME: usize = 255;
/// Most bytes of attributes' values outside inodes and blocks, in a whole tree.
const MAX_VALUES: usize = 64 << 20;
/// The directory into which e2fsck puts what it finds.
pub(crate) const LOST_AND_FOUND: &[u8] = b"lost+found";

/// A node of a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

/// Names, metadata and contents of a filesystem to be.
#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    /// Bytes of attributes' values outside inodes and blocks that were ever given: they are kept until the end.
    values: usize,
}

/// A node as it is kept. There may be a million of them, so it is small: rare parts are boxed.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) mode: u16,
    /// Names of a file; for a directory its entry in the parent.
    pub(crate) names: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) attributes: Option<Box<Attributes>>,
    pub(crate) body: Body,
}

/// The names of a directory. Sorted, so that the same tree gives the same image.
pub(crate) type Children = BTreeMap<Box<[u8]>, NodeId>;

#[derive(Debug)]
pub(crate) enum Body {
    Directory(Children),
    File(FileData),
    Symlink(Box<[u8]>),
    /// The last name is gone.
    Removed,
}

impl Body {
    fn kind(&self) -> Option<NodeKind> {
        match self {
            Body::Directory(_) => Some(NodeKind::Directory),
            Body::File(_) => Some(NodeKind::File),
            Body::Symlink(_) => Some(NodeKind::Symlink),
            Body::Removed => None,
        }
    }
}

impl NodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl Tree {
    /// The root directory.
    pub const ROOT: NodeId = NodeId(0);

    /// A tree of nothing but the root directory.
    ///
    /// # Errors
    /// [`Error::BadXattr`].
    pub fn new(root: Meta) -> Result<Tree, Error> {
        let root = Node::new(root, Body::Directory(Children::new()))?;
        let mut tree = Tree { nodes: Vec::new(), values: 0 };
        tree.count(root.attributes.as_deref())?;
        tree.nodes.push(root);
        Ok(tree)
    }

    /// Adds an empty directory.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::NameTaken`], [`Error::NotADirectory`], [`Error::BadXattr`],
    /// [`Error::TooManyEntries`].
    pub fn add_dir(&mut self, parent: NodeId, name: &[u8], meta: Meta) -> Result<NodeId, Error> {
        self.add(parent, name, meta, Body::Directory(Children::new()))
    }

    /// Adds a regular file with contents that the image has already.
    ///
    /// # Errors
    /// As for [`Tree::add_dir`]; the contents are given back to the image then.
    pub fn add_file(&mut self, parent: NodeId, name: &[u8], meta: Meta, data: FileData) -> Result<NodeId, Error> {
        self.add(parent, name, meta, Body::File(data))
    }

    /// Adds a symbolic link. Its target is stored as it is and never followed.
    ///
    /// # Errors
    /// As for [`Tree::add_dir`], and [`Error::BadSymlink`].
    pub fn add_symlink(&mut self, parent: NodeId, name: &[u8], meta: Meta, target: &[u8]) -> Result<NodeId, Error> {
        if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
            return Err(Error::BadSymlink { name: readable(name), length: target.len() });
        }
        self.add(parent, name, meta, Body::Symlink(target.into()))
    }

    /// Gives a file or symbolic link one more name.
    ///
    /// # Errors
    /// [`Error::BadName`], [`Error::NameTaken`], [`Error::NotADirectory`], [`Error::BadLinkTarget`],
    /// [`Error::TooManyLinks`].
    pub fn link(&mut self, parent: NodeId, name: &[u8], existing: NodeId) -> Result<(), Error> {
        let target = self.nodes.get(existing.index());
        let Some(names) = target.filter(|node| node.is_linkable()).map(|node| node.names) else {
            return Err(Error::BadLinkTarget { name: readable(name) });
        };
        if u32::from(names) >= MAX_LINKS {
            return Err(Error::TooManyLinks { name: readable(name) });
        }
        check_name(parent, name, false)?;
        self.free_place(parent, name)?.insert(name.into(), existing);
        if let Some(node) = self.nodes.get_mut(existing.index()) {
            node.names = names + 1;
        }
        Ok(())
    }

    /// Takes a name away, and with a directory's name all that is below it. What has no name left is gone, and the
    /// room of its contents is given back. False if there is no such name.
    pub fn remove(&mut self, parent: NodeId, name: &[u8]) -> bool {
        let Some(Body::Directory(entries)) = self.nodes.get_mut(parent.index()).map(|node| &mut node.body) else {
            return false;
        };
        let Some(removed) = entries.remove(name) else {
            return false;
        };
        let mut nameless = vec![removed];
        while let Some(id) = nameless.pop() {
            let Some(node) = self.nodes.get_mut(id.index()) else { continue };
            node.names = node.names.saturating_sub(1);
            if node.names == 0 {
                node.attributes = None;
                if let Body::Directory(entries) = std::mem::replace(&mut node.body, Body::Removed) {
                    nameless.extend(entries.into_values());
                }
            }
        }
        true
    }

    /// The node of that name.
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.nodes.get(parent.index())?.body {
            Body::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    /// What a node is; none if it was removed.
    pub fn kind(&self, node: NodeId) -> Option<NodeKind> {
        self.nodes.get(node.index())?.body.kind()
    }

    /// Replaces the metadata of a node, for instance of a directory that was made before its own entry was read.
    ///
    /// # Errors
    /// [`Error::BadXattr`].
    pub fn set_meta(&mut self, node: NodeId, meta: Meta) -> Result<(), Error> {
        if let Some(kind) = self.kind(node) {
            let attributes = Attributes::new(&meta.xattrs, kind)?;
            self.count(attributes.as_deref())?;
            let node = &mut self.nodes[node.index()];
            node.attributes = attributes;
            (node.mode, node.uid, node.gid, node.mtime) = (meta.mode, meta.uid, meta.gid, meta.mtime);
        }
        Ok(())
    }

    /// Makes sure that e2fsck has its directory.
    pub(crate) fn ensure_lost_and_found(&mut self, time: Timestamp) -> Result<(), Error> {
        if self.lookup(Tree::ROOT, LOST_AND_FOUND).is_none() {
            let meta = Meta { mode: 0o700, mtime: time, ..Meta::default() };
            self.add_dir(Tree::ROOT, LOST_AND_FOUND, meta)?;
        }
        Ok(())
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// How many nodes were ever added.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    fn add(&mut self, parent: NodeId, name: &[u8], meta: Meta, body: Body) -> Result<NodeId, Error> {
        check_name(parent, name, matches!(body, Body::Directory(_)))?;
        let id = u32::try_from(self.nodes.len()).map(NodeId).map_err(|_| Error::TooManyEntries)?;
        let node = Node::new(meta, body)?;
        self.free_place(parent, name)?;
        self.count(node.attributes.as_deref())?;
        self.free_place(parent, name)?.insert(name.into(), id);
        self.nodes.push(node);
        Ok(id)
    }

    /// Counts attributes' values that will be kept in memory, and in inodes of their own.
    fn count(&mut self, attributes: Option<&Attributes>) -> Result<(), Error> {
        let more = attributes.map_or(0, |attributes| attributes.outside().map(<[u8]>::len).sum());
        if self.values.saturating_add(more) > MAX_VALUES {
            let attribute = "large attributes".to_owned();
            return Err(Error::BadXattr { attribute, fault: XattrFault::TooMuch });
        }
        self.values += more;
        Ok(())
    }

    /// The entries of a directory that has no such name yet.
    fn free_place(&mut self, parent: NodeId, name: &[u8]) -> Result<&mut Children, Error> {
        match self.nodes.get_mut(parent.index()).map(|node| &mut node.body) {
            Some(Body::Directory(entries)) if entries.contains_key(name) => {
                Err(Error::NameTaken { name: readable(name) })
            }
            Some(Body::Directory(entries)) => Ok(entries),
            _ => Err(Error::NotADirectory { name: readable(name) }),
        }
    }
}

impl Node {
    fn new(meta: Meta, body: Body) -> Result<Node, Error> {
        let attributes = match body.kind() {
            Some(kind) => Attributes::new(&meta.xattrs, kind)?,
            None => None,
        };
        let Meta { mode, uid, gid, mtime, .. } = meta;
        Ok(Node { mode, names: 1, uid, gid, mtime, attributes, body })
    }

    fn is_linkable(&self) -> bool {
        matches!(self.body, Body::File(_) | Body::Symlink(_))
    }
}

fn check_name(parent: NodeId, name: &[u8], directory: bool) -> Result<(), Error> {
    let fault = match name {
        [] => NameFault::Empty,
        b"." | b".." => NameFault::Dots,
        _ if name.len() > MAX_NAME => NameFault::TooLong,
        _ if name.iter().any(|byte| matches!(byte, 0 | b'/')) => NameFault::ForbiddenByte,
        LOST_AND_FOUND if parent == Tree::ROOT && !directory => NameFault::LostAndFound,
        _ => return Ok(()),
    };
    Err(Error::BadName { name: readable(name), fault })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> Tree {
        Tree::new(Meta::default()).unwrap()
    }

    fn fault(name: &[u8]) -> NameFault {
        match tree().add_symlink(Tree::ROOT, name, Meta::default(), b"x") {
            Err(Error::BadName { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_that_no_directory_can_hold_are_refused() {
        assert_eq!(fault(b""), NameFault::Empty);
        assert_eq!(fault(b"."), NameFault::Dots);
        assert_eq!(fault(b".."), NameFault::Dots);
        assert_eq!(fault(&[b'x'; 256]), NameFault::TooLong);
        assert_eq!(fault(b"a/b"), NameFault::ForbiddenByte);
        assert_eq!(fault(b"a\0"), NameFault::ForbiddenByte);
        assert_eq!(fault(b"lost+found"), NameFault::LostAndFound);
        assert!(tree().add_dir(Tree::ROOT, b"lost+found", Meta::default()).is_ok());
        assert!(tree().add_dir(Tree::ROOT, &[0xff; 255], Meta::default()).is_ok());
    }

    #[test]
    fn a_name_is_taken_once() {
        let mut tree = tree();
        let etc = tree.add_dir(Tree::ROOT, b"etc", Meta::default()).unwrap();
        let link = tree.add_symlink(etc, b"mtab", Meta::default(), b"/proc/mounts").unwrap();
        let taken = |error| matches!(error, Error::NameTaken { .. });
        assert!(taken(tree.add_dir(etc, b"mtab", Meta::default()).unwrap_err()));
        assert!(taken(tree.link(Tree::ROOT, b"etc", link).unwrap_err()));
        let below = tree.add_dir(link, b"x", Meta::default()).unwrap_err();
        assert!(matches!(below, Error::NotADirectory { .. }));
    }

    #[test]
    fn removing_a_directory_removes_what_has_no_other_name() {
        let mut tree = tree();
        let dir = tree.add_dir(Tree::ROOT, b"a", Meta::default()).unwrap();
        let deep = tree.add_dir(dir, b"b", Meta::default()).unwrap();
        let kept = tree.add_symlink(deep, b"kept", Meta::default(), b"x").unwrap();
        let gone = tree.add_symlink(deep, b"gone", Meta::default(), b"x").unwrap();
        tree.link(Tree::ROOT, b"other", kept).unwrap();
        assert!(tree.remove(Tree::ROOT, b"a"));
        assert!(!tree.remove(Tree::ROOT, b"a"));
        assert_eq!((tree.kind(kept), tree.kind(gone), tree.kind(deep)), (Some(NodeKind::Symlink), None, None));
        assert_eq!(tree.lookup(Tree::ROOT, b"other"), Some(kept));
        assert!(matches!(tree.link(Tree::ROOT, b"again", gone), Err(Error::BadLinkTarget { .. })));
        assert!(matches!(tree.add_dir(deep, b"c", Meta::default()), Err(Error::NotADirectory { .. })));
        assert!(matches!(tree.link(Tree::ROOT, b"dir", Tree::ROOT), Err(Error::BadLinkTarget { .. })));
    }

    #[test]
    fn link_targets_are_one_to_4095_bytes_without_nul() {
        let mut tree = tree();
        for (name, target) in [("a", &b""[..]), ("b", &[b'x'; 4096]), ("c", b"x\0y")] {
            let error = tree.add_symlink(Tree::ROOT, name.as_bytes(), Meta::default(), target).unwrap_err();
            assert!(matches!(error, Error::BadSymlink { length, .. } if length == target.len()));
        }
        assert!(tree.add_symlink(Tree::ROOT, b"d", Meta::default(), &[b'x'; 4095]).is_ok());
    }

    #[test]
    fn a_file_has_at_most_65000_names() {
        let mut tree = tree();
        let file = tree.add_symlink(Tree::ROOT, b"0", Meta::default(), b"x").unwrap();
        for number in 1..MAX_LINKS {
            tree.link(Tree::ROOT, number.to_string().as_bytes(), file).unwrap();
        }
        assert!(matches!(tree.link(Tree::ROOT, b"more", file), Err(Error::TooManyLinks { .. })));
    }
}
