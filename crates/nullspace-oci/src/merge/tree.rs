//! The tree in memory: an arena of nodes, directories that name them.
//!
//! The same shape holds one layer and the merge so far. A directory's map has a child, or a whiteout that hides a child
//! of lower layers, or nothing for a name. Nodes count the names that point to them, so that content can be handed back
//! as soon as no name is left.

use std::collections::BTreeMap;

use crate::tar::Timestamp;

use super::path::Name;

/// Metadata of a file, directory or symlink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits with set-uid, set-gid and sticky (`07777`).
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Extended attributes, sorted by name: `user.x`, `security.capability`, … with their raw values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Meta {
    /// What a directory gets that no layer describes.
    pub(super) fn implied_directory() -> Meta {
        Meta { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Vec::new() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NodeId(usize);

/// The node of the root directory.
pub(super) const ROOT: NodeId = NodeId(0);

/// What a name in a directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Child {
    Node(NodeId),
    /// Lower layers' entry of this name is hidden.
    Whiteout,
}

/// How much of the lower layers can still show through a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Closed {
    /// All of it.
    No,
    /// Only its metadata: an opaque whiteout hides the children.
    Children,
    /// Nothing: it is another directory than the one below.
    All,
}

/// How a directory came to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// Only whiteouts mention it; if nothing else does, it does not exist.
    Ghost,
    /// Something lies in it.
    Implied,
    /// An entry describes it.
    Described(Box<Meta>),
}

#[derive(Debug)]
pub(super) struct Directory {
    pub(super) children: BTreeMap<Name, Child>,
    pub(super) presence: Presence,
    pub(super) closed: Closed,
}

#[derive(Debug)]
pub(super) enum FileContent<C> {
    Stored(C),
    /// Hidden when it came by, so not stored: entry number so-and-so of its layer.
    Skipped(u64),
}

#[derive(Debug)]
pub(super) enum Kind<C> {
    Directory(Directory),
    File {
        meta: Box<Meta>,
        size: u64,
        content: FileContent<C>,
    },
    Symlink {
        meta: Box<Meta>,
        target: Box<[u8]>,
    },
    /// A hard link whose target has not come by yet.
    Unresolved,
    /// A hard link that was resolved: the same file as that node.
    Same(NodeId),
    /// A free slot.
    Free,
}

#[derive(Debug)]
struct Node<C> {
    kind: Kind<C>,
    /// Names (and `Same` nodes) that point here.
    names: u32,
}

/// See the module's words. `C` is the sink's content handle.
#[derive(Debug)]
pub(super) struct Arena<C> {
    nodes: Vec<Node<C>>,
    free: Vec<NodeId>,
}

impl<C> Arena<C> {
    /// An arena with an empty, implied root.
    pub(super) fn new() -> Arena<C> {
        let mut arena = Arena { nodes: Vec::new(), free: Vec::new() };
        arena.add(Kind::Directory(Directory::new(Presence::Implied)));
        arena
    }

    /// Adds a node that no name points to yet.
    pub(super) fn add(&mut self, kind: Kind<C>) -> NodeId {
        let node = Node { kind, names: 0 };
        if let Some(id) = self.free.pop() {
            self.nodes[id.0] = node;
            return id;
        }
        let id = NodeId(self.nodes.len());
        self.nodes.push(node);
        id
    }

    pub(super) fn kind(&self, id: NodeId) -> &Kind<C> {
        &self.nodes[id.0].kind
    }

    pub(super) fn kind_mut(&mut self, id: NodeId) -> &mut Kind<C> {
        &mut self.nodes[id.0].kind
    }

    /// The directory `id` is, if it is one.
    pub(super) fn directory(&self, id: NodeId) -> Option<&Directory> {
        match self.kind(id) {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(super) fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match self.kind_mut(id) {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(super) fn is_directory(&self, id: NodeId) -> bool {
        self.directory(id).is_some()
    }

    /// What `name` is in the directory `id`; `None` also if `id` is no directory.
    pub(super) fn child(&self, id: NodeId, name: &[u8]) -> Option<Child> {
        self.directory(id)?.children.get(name).copied()
    }

    /// Follows resolved hard links to the node they are.
    pub(super) fn resolve(&self, mut id: NodeId) -> NodeId {
        while let Kind::Same(next) = self.kind(id) {
            id = *next;
        }
        id
    }

    /// One more name points to `id`.
    pub(super) fn hold(&mut self, id: NodeId) {
        let node = &mut self.nodes[id.0];
        node.names = node.names.saturating_add(1);
    }

    /// Whether one name (or other holder) is left.
    pub(super) fn is_last_name(&self, id: NodeId) -> bool {
        self.nodes[id.0].names <= 1
    }

    /// `link` is the same file as `target` from now on.
    pub(super) fn make_same(&mut self, link: NodeId, target: NodeId) {
        let target = self.resolve(target);
        if target == link {
            return;
        }
        self.hold(target);
        *self.kind_mut(link) = Kind::Same(target);
    }

    /// Sets `name` in `directory`; the name's hold on `child` is taken here. Returns what was there, which the caller
    /// releases.
    pub(super) fn link(&mut self, directory: NodeId, name: &[u8], child: Child) -> Option<Child> {
        if let Child::Node(id) = child {
            self.hold(id);
        }
        self.directory_mut(directory)?.children.insert(name.into(), child)
    }

    /// A name that pointed to `id` is gone. Frees what has no name left, with all below it; contents go to `discarded`.
    pub(super) fn release(&mut self, id: NodeId, discarded: &mut Vec<C>) {
        let mut work = vec![id];
        while let Some(id) = work.pop() {
            let node = &mut self.nodes[id.0];
            node.names = node.names.saturating_sub(1);
            if node.names > 0 || id == ROOT {
                continue;
            }
            match std::mem::replace(&mut node.kind, Kind::Free) {
                Kind::Directory(directory) => {
                    work.extend(directory.children.into_values().filter_map(|child| match child {
                        Child::Node(child) => Some(child),
                        Child::Whiteout => None,
                    }));
                }
                Kind::File { content: FileContent::Stored(content), .. } => discarded.push(content),
                Kind::Same(target) => work.push(target),
                Kind::File { .. } | Kind::Symlink { .. } | Kind::Unresolved | Kind::Free => {}
            }
            self.free.push(id);
        }
    }
}

impl Directory {
    pub(super) fn new(presence: Presence) -> Directory {
        Directory { children: BTreeMap::new(), presence, closed: Closed::No }
    }
}
