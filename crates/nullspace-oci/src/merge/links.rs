//! Hard links that wait for their target.
//!
//! Going from the top down, a link's target may lie in a layer that is still to come, under a name that layers between
//! may hide from the merge but not from the link. So each such link is a node of its own until then; it waits under the
//! target's path, and each lower layer is asked for that path as seen *below the link's layer*.

use std::collections::BTreeMap;

use super::error::LayerError;
use super::path::{Name, Path};
use super::tree::{Arena, Child, Closed, Kind, NodeId, Presence};

/// A link node without a target.
#[derive(Debug)]
pub(super) struct Pending {
    /// The node; this holds a name of it.
    pub(super) node: NodeId,
    /// For messages.
    pub(super) link: String,
    /// For messages.
    pub(super) target: String,
}

/// The links that wait, by the target's path.
#[derive(Debug, Default)]
pub(super) struct Wanted(BTreeMap<Path, Pending>);

enum Found {
    File(NodeId),
    Directory,
    /// The layer hides what lower layers have.
    Gone,
    /// The layer says nothing about it.
    NotHere,
}

impl Wanted {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a link waits for `name` in the directory `parents`.
    pub(super) fn contains(&self, parents: &[Name], name: &[u8]) -> bool {
        let mut path = parents.to_vec();
        path.push(name.into());
        self.0.contains_key(&Path(path))
    }

    /// A layer has been read to its end: resolves what waits for it, and takes up the layer's own links.
    pub(super) fn settle<C>(
        &mut self,
        arena: &mut Arena<C>,
        layer: NodeId,
        links: Vec<(Path, Pending)>,
        discarded: &mut Vec<C>,
    ) -> Result<(), LayerError> {
        for (path, pending) in std::mem::take(&mut self.0) {
            if arena.is_last_name(pending.node) {
                // All names of the link are hidden by now: nobody wants it.
                arena.release(pending.node, discarded);
                continue;
            }
            match find(arena, layer, &path, false) {
                Found::File(node) => {
                    arena.make_same(pending.node, node);
                    arena.release(pending.node, discarded);
                }
                Found::Directory => return Err(pending.on_directory()),
                Found::Gone => return Err(pending.missing()),
                Found::NotHere => {
                    self.0.insert(path, pending);
                }
            }
        }
        for (path, pending) in links {
            if arena.is_last_name(pending.node) {
                arena.release(pending.node, discarded);
                continue;
            }
            // The layer's own whiteouts do not hide a target from the layer's own links.
            match find(arena, layer, &path, true) {
                Found::File(node) if node != pending.node => {
                    arena.make_same(pending.node, node);
                    arena.release(pending.node, discarded);
                }
                Found::Directory => return Err(pending.on_directory()),
                Found::File(_) | Found::Gone | Found::NotHere => match self.0.get(&path) {
                    Some(waiting) => {
                        arena.make_same(pending.node, waiting.node);
                        arena.release(pending.node, discarded);
                    }
                    None => {
                        self.0.insert(path, pending);
                    }
                },
            }
        }
        Ok(())
    }

    /// There is no further layer.
    pub(super) fn finish<C>(&mut self, arena: &mut Arena<C>, discarded: &mut Vec<C>) -> Result<(), LayerError> {
        for (_, pending) in std::mem::take(&mut self.0) {
            if !arena.is_last_name(pending.node) {
                return Err(pending.missing());
            }
            arena.release(pending.node, discarded);
        }
        Ok(())
    }
}

impl Pending {
    fn missing(self) -> LayerError {
        LayerError::HardLinkTargetMissing { path: self.link, target: self.target }
    }

    fn on_directory(self) -> LayerError {
        LayerError::HardLinkToDirectory { path: self.link, target: self.target }
    }
}

/// Looks a path up in a layer's tree. `own`: the asking link is in the same layer.
fn find<C>(arena: &Arena<C>, layer: NodeId, path: &Path, own: bool) -> Found {
    let Some((parents, last)) = path.split_last() else { return Found::Directory };
    let hidden = |closed: Closed| if closed != Closed::No && !own { Found::Gone } else { Found::NotHere };
    let gone = || if own { Found::NotHere } else { Found::Gone };
    let mut here = layer;
    for name in parents {
        let Some(directory) = arena.directory(here) else { return Found::Gone };
        match directory.children.get(&**name) {
            None => return hidden(directory.closed),
            Some(Child::Whiteout) => return gone(),
            Some(Child::Node(node)) => here = *node,
        }
    }
    let Some(directory) = arena.directory(here) else { return Found::Gone };
    match directory.children.get(last) {
        None => hidden(directory.closed),
        Some(Child::Whiteout) => gone(),
        Some(Child::Node(node)) => match arena.kind(*node) {
            Kind::Directory(found) if found.presence == Presence::Ghost => {
                if found.closed == Closed::All {
                    gone()
                } else {
                    Found::NotHere
                }
            }
            Kind::Directory(_) => Found::Directory,
            _ => Found::File(arena.resolve(*node)),
        },
    }
}
