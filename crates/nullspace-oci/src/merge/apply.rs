//! One layer's archive read into a tree of its own, then laid under the merge.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::BufRead;

use crate::tar::{Chunk, Entry, EntryKind, TarReader, shown};

use super::error::{LayerError, MergeLimits};
use super::links::{Pending, Wanted};
use super::output::MergedTree;
use super::path::{Name, Path};
use super::sink::ContentSink;
use super::tree::{Arena, Child, Closed, Directory, FileContent, Kind, Meta, NodeId, Presence, ROOT};
use super::{fold, output};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// AUFS' own files, all in the root directory.
const AUFS: &[u8] = b".wh..wh.";
/// Linux follows this many symlinks in one path (`MAXSYMLINKS`).
const MAX_SYMLINKS: usize = 40;

/// How reading a layer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum LayerEnd {
    /// All that is needed of the layer is in the tree and the sink.
    Complete,
    /// A file was skipped because its own name is hidden, and then a hard link to it turned out to be visible. The same
    /// layer must be given to [`Merge::read_again`] before the next one.
    NeedsSecondReading,
}

/// Merges layers, the top one first. After an error the merge is of no use any more.
#[derive(Debug)]
pub struct Merge<S: ContentSink> {
    sink: S,
    limits: MergeLimits,
    arena: Arena<S::Content>,
    wanted: Wanted,
    entries: u64,
    metadata: u64,
    /// Entry numbers of the last layer whose content is still missing.
    missing: BTreeMap<u64, NodeId>,
}

/// What the layers above say about a name of this layer.
#[derive(Clone, Copy)]
enum Above {
    /// Nothing.
    Clear,
    /// They have this directory.
    Directory(NodeId),
    /// They hide it.
    Hidden,
}

/// What a walk does with names that do not exist yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// Something is about to be put below: the directory exists.
    Imply,
    /// A whiteout is about to be put below: the directory need not exist.
    Ghost,
    /// Nothing is created.
    Leave,
}

/// Where a walk through a layer's directories ended.
struct Place {
    /// The directory; with [`Missing::Leave`] `None` if it does not exist in the layer.
    directory: Option<NodeId>,
    above: Above,
    /// The path without symlinks. Only kept when someone needs it.
    names: Vec<Name>,
}

struct Step {
    directory: Option<NodeId>,
    above: Above,
    length: usize,
}

impl<S: ContentSink> Merge<S> {
    /// A merge of no layers yet.
    pub fn new(sink: S, limits: MergeLimits) -> Merge<S> {
        Merge {
            sink,
            limits,
            arena: Arena::new(),
            wanted: Wanted::default(),
            entries: 0,
            metadata: 0,
            missing: BTreeMap::new(),
        }
    }

    /// Reads the next lower layer's uncompressed archive to the end of the stream and lays it under the tree so far.
    pub fn add_layer<R: BufRead>(&mut self, source: R) -> Result<LayerEnd, LayerError> {
        if !self.missing.is_empty() {
            return Err(LayerError::Changed);
        }
        let root = self.arena.add(Kind::Directory(Directory::new(Presence::Implied)));
        self.arena.hold(root);
        let mut layer = Layer { root, number: 0, links: Vec::new(), skipped: Vec::new(), discarded: Vec::new() };
        let mut tar = TarReader::new(source, self.limits.tar);
        while let Some(entry) = tar.next_entry()? {
            self.count_entry(&entry)?;
            self.apply(&mut layer, &mut tar, entry)?;
            self.discard(&mut layer.discarded)?;
            layer.number += 1;
        }
        tar.drain()?;
        self.drop_aufs(&mut layer);
        self.wanted.settle(&mut self.arena, layer.root, layer.links, &mut layer.discarded)?;
        fold::fold(&mut self.arena, layer.root, &mut layer.discarded);
        self.discard(&mut layer.discarded)?;
        // A slot may have been freed and used again; the entry number tells whether it is still the same file.
        let arena = &self.arena;
        let alive = |&(number, node): &(u64, NodeId)| matches!(arena.kind(node), Kind::File { content: FileContent::Skipped(at), .. } if *at == number);
        self.missing = layer.skipped.iter().copied().filter(alive).collect();
        Ok(if self.missing.is_empty() { LayerEnd::Complete } else { LayerEnd::NeedsSecondReading })
    }

    /// Reads the last layer once more, for the files that [`LayerEnd::NeedsSecondReading`] spoke of.
    pub fn read_again<R: BufRead>(&mut self, source: R) -> Result<(), LayerError> {
        let mut tar = TarReader::new(source, self.limits.tar);
        let mut number = 0_u64;
        while let Some(entry) = tar.next_entry()? {
            if let Some(node) = self.missing.remove(&number) {
                let stored = store(&mut self.sink, &mut tar, &entry)?;
                match self.arena.kind_mut(node) {
                    Kind::File { size, content, .. } if *size == entry.size => *content = FileContent::Stored(stored),
                    _ => return Err(LayerError::Changed),
                }
            }
            number += 1;
        }
        tar.drain()?;
        if self.missing.is_empty() { Ok(()) } else { Err(LayerError::Changed) }
    }

    /// The merged tree and the sink, after the lowest layer.
    pub fn finish(mut self) -> Result<(MergedTree<S::Content>, S), LayerError> {
        if !self.missing.is_empty() {
            return Err(LayerError::Changed);
        }
        let mut discarded = Vec::new();
        self.wanted.finish(&mut self.arena, &mut discarded)?;
        self.discard(&mut discarded)?;
        Ok((output::flatten(self.arena)?, self.sink))
    }

    /// Entries and implied directories seen so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    fn discard(&mut self, discarded: &mut Vec<S::Content>) -> Result<(), LayerError> {
        for content in discarded.drain(..) {
            self.sink
                .discard(content)
                .map_err(|source| LayerError::Sink { path: "(replaced content)".to_owned(), source })?;
        }
        Ok(())
    }

    fn count_entry(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let xattrs: usize = entry.xattrs.iter().map(|(name, value)| name.len().saturating_add(value.len())).sum();
        let name = entry.path.len().min(self.limits.name);
        self.count(xattrs.saturating_add(name).saturating_add(entry.link.len()), &entry.path)
    }

    fn count(&mut self, bytes: usize, path: &[u8]) -> Result<(), LayerError> {
        self.entries += 1;
        self.metadata = self.metadata.saturating_add(bytes as u64);
        let over = |what, limit| Err(LayerError::Limit { what, limit, at: Some(shown(path)) });
        if self.entries > self.limits.entries {
            return over("the number of entries", self.limits.entries);
        }
        if self.metadata > self.limits.metadata {
            return over("the length of all names and attributes", self.limits.metadata);
        }
        Ok(())
    }

    fn apply<R: BufRead>(
        &mut self,
        layer: &mut Layer<S::Content>,
        tar: &mut TarReader<R>,
        entry: Entry,
    ) -> Result<(), LayerError> {
        let path = Path::parse(&entry.path, &self.limits)?;
        if let Some(entry_type) = special(entry.kind) {
            return Err(LayerError::UnsupportedSpecialFile { path: path.shown(), entry_type });
        }
        let invalid = |reason| LayerError::InvalidPath { path: shown(&entry.path), reason };
        let Some((parents, name)) = path.split_last() else {
            if entry.kind != EntryKind::Directory {
                return Err(invalid("the root must be a directory"));
            }
            if let Some(root) = self.arena.directory_mut(layer.root) {
                root.presence = Presence::Described(Box::new(meta(entry)));
            }
            return Ok(());
        };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(layer, &path, parents, name, hidden);
        }
        let place = self.walk(layer.root, parents, Missing::Imply, &path)?;
        let Some(directory) = place.directory else { return Err(LayerError::NotADirectory { path: path.shown() }) };
        match entry.kind {
            EntryKind::Directory => {
                self.put_directory(layer, directory, name, meta(entry));
                Ok(())
            }
            EntryKind::Symlink => {
                if entry.link.is_empty() {
                    return Err(invalid("a symbolic link without a target"));
                }
                if entry.link.len() > self.limits.symlink {
                    let limit = self.limits.symlink as u64;
                    return Err(LayerError::Limit {
                        what: "the length of a link target",
                        limit,
                        at: Some(path.shown()),
                    });
                }
                let target = entry.link.clone().into();
                let node = self.arena.add(Kind::Symlink { target, meta: Box::new(meta(entry)) });
                self.put(layer, directory, name, node);
                Ok(())
            }
            EntryKind::HardLink => self.hard_link(layer, &path, directory, name, &entry),
            _ => {
                let content = if self.is_visible(place.above, name) || self.is_wanted(&place, name) {
                    FileContent::Stored(store(&mut self.sink, tar, &entry)?)
                } else {
                    FileContent::Skipped(layer.number)
                };
                let skipped = matches!(content, FileContent::Skipped(_));
                let size = entry.size;
                let node = self.arena.add(Kind::File { size, content, meta: Box::new(meta(entry)) });
                if skipped {
                    layer.skipped.push((layer.number, node));
                }
                self.put(layer, directory, name, node);
                Ok(())
            }
        }
    }

    /// Names something that is no directory.
    fn put(&mut self, layer: &mut Layer<S::Content>, directory: NodeId, name: &[u8], node: NodeId) {
        if let Some(Child::Node(old)) = self.arena.link(directory, name, Child::Node(node)) {
            self.arena.release(old, &mut layer.discarded);
        }
    }

    fn put_directory(&mut self, layer: &mut Layer<S::Content>, parent: NodeId, name: &[u8], meta: Meta) {
        let presence = Presence::Described(Box::new(meta));
        let old = self.arena.child(parent, name);
        if let Some(Child::Node(old)) = old
            && let Some(directory) = self.arena.directory_mut(old)
        {
            directory.presence = presence;
            return;
        }
        let mut directory = Directory::new(presence);
        // After a whiteout, or in place of a file, it is a new directory: nothing of a lower one shows through.
        if old.is_some() {
            directory.closed = Closed::All;
        }
        let node = self.arena.add(Kind::Directory(directory));
        self.put(layer, parent, name, node);
    }

    fn hard_link(
        &mut self,
        layer: &mut Layer<S::Content>,
        path: &Path,
        directory: NodeId,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), LayerError> {
        let target = Path::parse(&entry.link, &self.limits)?;
        let missing = || LayerError::HardLinkTargetMissing { path: path.shown(), target: target.shown() };
        let to_directory = || LayerError::HardLinkToDirectory { path: path.shown(), target: target.shown() };
        let (parents, last) = target.split_last().ok_or_else(to_directory)?;
        let place = match self.walk(layer.root, parents, Missing::Leave, path) {
            Ok(place) => place,
            Err(LayerError::NotADirectory { .. }) => return Err(missing()),
            Err(other) => return Err(other),
        };
        let found = place.directory.and_then(|parent| self.arena.child(parent, last));
        let node = match found {
            Some(Child::Node(found)) => match self.arena.kind(found) {
                Kind::Directory(Directory { presence: Presence::Ghost, .. }) => None,
                Kind::Directory(_) => return Err(to_directory()),
                _ => Some(self.arena.resolve(found)),
            },
            Some(Child::Whiteout) | None => None,
        };
        let node = node.unwrap_or_else(|| {
            let node = self.arena.add(Kind::Unresolved);
            self.arena.hold(node);
            let mut names = place.names;
            names.push(last.into());
            layer.links.push((Path(names), Pending { node, link: path.shown(), target: target.shown() }));
            node
        });
        self.put(layer, directory, name, node);
        Ok(())
    }

    fn whiteout(
        &mut self,
        layer: &mut Layer<S::Content>,
        path: &Path,
        parents: &[Name],
        name: &[u8],
        hidden: &[u8],
    ) -> Result<(), LayerError> {
        if name != OPAQUE && name.starts_with(AUFS) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(LayerError::InvalidPath { path: path.shown(), reason: "a whiteout that names nothing" });
        }
        let place = self.walk(layer.root, parents, Missing::Ghost, path)?;
        let Some(parent) = place.directory else { return Ok(()) };
        if name == OPAQUE {
            if let Some(directory) = self.arena.directory_mut(parent) {
                directory.closed = directory.closed.max(Closed::Children);
            }
            return Ok(());
        }
        match self.arena.child(parent, hidden) {
            None => {
                self.arena.link(parent, hidden, Child::Whiteout);
            }
            Some(Child::Whiteout) => {}
            // What this layer itself has stays; what lies below it goes.
            Some(Child::Node(node)) => {
                if let Some(directory) = self.arena.directory_mut(node) {
                    directory.closed = Closed::All;
                }
            }
        }
        Ok(())
    }

    fn drop_aufs(&mut self, layer: &mut Layer<S::Content>) {
        let Some(root) = self.arena.directory_mut(layer.root) else { return };
        let names: Vec<Name> = root.children.keys().filter(|name| name.starts_with(AUFS)).cloned().collect();
        let dropped: Vec<Child> = names.iter().filter_map(|name| root.children.remove(name)).collect();
        for child in dropped {
            if let Child::Node(node) = child {
                self.arena.release(node, &mut layer.discarded);
            }
        }
    }

    /// Goes through a layer's directories, following the layer's own symlinks, and beside it through the merge above.
    fn walk(&mut self, root: NodeId, components: &[Name], missing: Missing, path: &Path) -> Result<Place, LayerError> {
        // The canonical path is wanted by hard links (`Leave`), and by entries while a hard link waits for its target.
        let track = missing == Missing::Leave || !self.wanted.is_empty();
        let mut names: Vec<Name> = Vec::new();
        let mut steps = vec![Step { directory: Some(root), above: Above::Directory(ROOT), length: 0 }];
        let mut left: Vec<Cow<'_, [u8]>> = components.iter().rev().map(|name| Cow::Borrowed(&**name)).collect();
        let mut symlinks = 0;
        while let Some(name) = left.pop() {
            if matches!(&*name, b"" | b".") {
                continue;
            }
            if &*name == b".." {
                if steps.len() > 1 {
                    steps.pop();
                    names.pop();
                }
                continue;
            }
            let Some(here) = steps.last() else { break };
            let (above, length) = (self.above(here.above, &name), here.length.saturating_add(name.len() + 1));
            let directory = match here.directory {
                None => None,
                Some(parent) => match self.descend(parent, &name, missing, path)? {
                    Descent::Into(directory) => directory,
                    Descent::Symlink(target) => {
                        symlinks += 1;
                        if symlinks > MAX_SYMLINKS {
                            return Err(LayerError::SymlinkLoop { path: path.shown() });
                        }
                        if target.starts_with(b"/") {
                            steps.truncate(1);
                            names.clear();
                        }
                        left.extend(target.split(|&b| b == b'/').rev().map(|part| Cow::Owned(part.to_vec())));
                        continue;
                    }
                },
            };
            if length > self.limits.path {
                let limit = self.limits.path as u64;
                return Err(LayerError::Limit { what: "the length of a path", limit, at: Some(path.shown()) });
            }
            if track {
                names.push((&*name).into());
            }
            steps.push(Step { directory, above, length });
        }
        let last = steps.pop();
        Ok(Place {
            directory: last.as_ref().and_then(|step| step.directory),
            above: last.map_or(Above::Hidden, |step| step.above),
            names,
        })
    }

    fn descend(&mut self, parent: NodeId, name: &[u8], missing: Missing, path: &Path) -> Result<Descent, LayerError> {
        let child = self.arena.child(parent, name);
        if let Some(Child::Node(node)) = child {
            let node = self.arena.resolve(node);
            return match self.arena.kind_mut(node) {
                Kind::Directory(directory) => {
                    if missing == Missing::Imply && directory.presence == Presence::Ghost {
                        directory.presence = Presence::Implied;
                    }
                    Ok(Descent::Into(Some(node)))
                }
                Kind::Symlink { target, .. } => Ok(Descent::Symlink(target.clone())),
                _ => Err(LayerError::NotADirectory { path: path.shown() }),
            };
        }
        let presence = match missing {
            Missing::Leave => return Ok(Descent::Into(None)),
            Missing::Ghost => Presence::Ghost,
            Missing::Imply => Presence::Implied,
        };
        if name.len() > self.limits.name {
            let limit = self.limits.name as u64;
            return Err(LayerError::Limit { what: "the length of a file name", limit, at: Some(path.shown()) });
        }
        self.count(name.len(), name)?;
        let mut directory = Directory::new(presence);
        if child == Some(Child::Whiteout) {
            directory.closed = Closed::All;
        }
        let node = self.arena.add(Kind::Directory(directory));
        self.arena.link(parent, name, Child::Node(node));
        Ok(Descent::Into(Some(node)))
    }

    /// What the layers above say about `name` in a directory of which they say `above`.
    fn above(&self, above: Above, name: &[u8]) -> Above {
        let Above::Directory(id) = above else { return above };
        match self.arena.directory(id) {
            Some(directory) if directory.closed == Closed::No => match directory.children.get(name) {
                None => Above::Clear,
                Some(Child::Node(node)) if self.arena.is_directory(*node) => Above::Directory(*node),
                Some(_) => Above::Hidden,
            },
            _ => Above::Hidden,
        }
    }

    /// Whether a file called `name` would be seen.
    fn is_visible(&self, above: Above, name: &[u8]) -> bool {
        match self.above(above, name) {
            Above::Clear => true,
            Above::Hidden => false,
            Above::Directory(node) => self
                .arena
                .directory(node)
                .is_some_and(|directory| directory.presence == Presence::Ghost && directory.closed != Closed::All),
        }
    }

    fn is_wanted(&self, place: &Place, name: &[u8]) -> bool {
        !self.wanted.is_empty() && self.wanted.contains(&place.names, name)
    }
}

/// What the walk finds under a name.
enum Descent {
    Into(Option<NodeId>),
    Symlink(Box<[u8]>),
}

/// The layer being read.
struct Layer<C> {
    root: NodeId,
    /// Entries before the current one.
    number: u64,
    /// Hard links whose targets this layer has not had yet.
    links: Vec<(Path, Pending)>,
    /// Files whose content was not stored: entry number and node.
    skipped: Vec<(u64, NodeId)>,
    discarded: Vec<C>,
}

fn special(kind: EntryKind) -> Option<&'static str> {
    match kind {
        EntryKind::CharDevice => Some("character_device"),
        EntryKind::BlockDevice => Some("block_device"),
        EntryKind::Fifo => Some("fifo"),
        EntryKind::Socket => Some("socket"),
        EntryKind::File | EntryKind::Directory | EntryKind::Symlink | EntryKind::HardLink => None,
    }
}

fn meta(entry: Entry) -> Meta {
    Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs: kept(entry.xattrs) }
}

/// Overlayfs' own marks say how the *builder's* directories were stacked; in the image they would change the meaning of
/// an overlay mounted inside the guest.
fn kept(mut xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    xattrs.retain(|(name, _)| !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."));
    xattrs.shrink_to_fit();
    xattrs
}

fn store<S: ContentSink, R: BufRead>(
    sink: &mut S,
    tar: &mut TarReader<R>,
    entry: &Entry,
) -> Result<S::Content, LayerError> {
    let failed = |source| LayerError::Sink { path: shown(&entry.path), source };
    sink.begin(entry.size).map_err(failed)?;
    tar.read_data(|chunk| match chunk {
        Chunk::Data(bytes) => sink.write(bytes).map_err(failed),
        Chunk::Hole(len) => sink.hole(len).map_err(failed),
    })?;
    sink.finish().map_err(failed)
}
