//! A layer's tree laid under the merge of the layers above it.

use super::path::Name;
use super::tree::{Arena, Child, Closed, Kind, NodeId, Presence, ROOT};

/// Moves what shows of `layer` into the merged tree and releases the rest. Iterative: the depth is the image's choice.
pub(super) fn fold<C>(arena: &mut Arena<C>, layer: NodeId, discarded: &mut Vec<C>) {
    let mut work = vec![(ROOT, layer)];
    while let Some((upper, lower)) = work.pop() {
        fold_directory(arena, upper, lower, &mut work, discarded);
        arena.release(lower, discarded);
    }
}

fn fold_directory<C>(
    arena: &mut Arena<C>,
    upper: NodeId,
    lower: NodeId,
    work: &mut Vec<(NodeId, NodeId)>,
    discarded: &mut Vec<C>,
) {
    let Some(below) = arena.directory_mut(lower) else { return };
    let children = std::mem::take(&mut below.children);
    let presence = std::mem::replace(&mut below.presence, Presence::Ghost);
    let below_closed = below.closed;
    let Some(above) = arena.directory_mut(upper) else { return };
    let closed = above.closed;
    if closed != Closed::All {
        match (&above.presence, presence) {
            (Presence::Ghost, presence) => above.presence = presence,
            (Presence::Implied, described @ Presence::Described(_)) => above.presence = described,
            _ => {}
        }
    }
    above.closed = closed.max(below_closed);
    for (name, child) in children {
        let over = if closed == Closed::No { arena.child(upper, &name) } else { Some(Child::Whiteout) };
        match (over, child) {
            (None, child) => {
                // The name's hold moves along with the name.
                if let Some(above) = arena.directory_mut(upper) {
                    above.children.insert(name, child);
                }
            }
            (Some(Child::Node(over)), child) if arena.is_directory(over) => match child {
                Child::Node(node) if arena.is_directory(node) => work.push((over, node)),
                Child::Node(node) => cover(arena, (upper, name), over, node, discarded),
                Child::Whiteout => close(arena, over),
            },
            (Some(_), Child::Node(node)) => arena.release(node, discarded),
            (Some(_), Child::Whiteout) => {}
        }
    }
}

/// A directory lies over something that is none.
fn cover<C>(arena: &mut Arena<C>, (parent, name): (NodeId, Name), over: NodeId, node: NodeId, discarded: &mut Vec<C>) {
    let ghost = matches!(arena.kind(over), Kind::Directory(directory)
        if directory.presence == Presence::Ghost && directory.closed != Closed::All);
    if ghost {
        // Whiteouts for names inside something that turned out to be a file: there was nothing to hide.
        if let Some(parent) = arena.directory_mut(parent) {
            parent.children.insert(name, Child::Node(node));
        }
        arena.release(over, discarded);
    } else {
        close(arena, over);
        arena.release(node, discarded);
    }
}

fn close<C>(arena: &mut Arena<C>, directory: NodeId) {
    if let Some(directory) = arena.directory_mut(directory) {
        directory.closed = Closed::All;
    }
}
