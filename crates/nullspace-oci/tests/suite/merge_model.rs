//! Random stacks of layers, merged by the crate from the top down and by a plain model from the bottom up.
//!
//! The model is written from the rules in the documentation of `nullspace_oci::merge`, with nothing of its machinery: it
//! unpacks each layer into a map of paths, applies its whiteouts to the map of what lies below, and overlays it.

use std::collections::{BTreeMap, BTreeSet};

use nullspace_oci::merge::{EntryKind, MergedTree};
use proptest::prelude::*;

use crate::merge_cases::merge;
use crate::support::stack::stack;
use crate::support::tar::{Item, archive};

type Path = Vec<String>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    /// With its mode, if an entry described it.
    Dir(Option<u32>),
    /// A number that two names of one file share.
    File(usize),
    /// The same, and the target.
    Symlink(usize, String),
    /// A hard link to a path that the layer does not have.
    Dangling(Path),
}

/// A layer unpacked by itself.
#[derive(Default)]
struct Layer {
    nodes: BTreeMap<Path, Node>,
    whiteouts: BTreeSet<Path>,
    opaque: BTreeSet<Path>,
    /// Directories that came after a file or whiteout of their name: nothing of lower layers shows through them.
    fresh: BTreeSet<Path>,
}

/// Why the stack is not a valid image.
#[derive(Debug)]
struct Invalid;

#[derive(Default)]
struct Model {
    tree: BTreeMap<Path, Node>,
    /// Content by file number.
    files: Vec<Vec<u8>>,
}

fn is_below(path: &Path, ancestor: &[String]) -> bool {
    path.len() > ancestor.len() && path.starts_with(ancestor)
}

fn split(text: &str) -> Path {
    text.split('/').filter(|part| !matches!(*part, "" | ".")).map(str::to_owned).collect()
}

impl Layer {
    fn remove(&mut self, path: &Path) {
        self.nodes.retain(|other, _| other != path && !is_below(other, path));
        self.fresh.retain(|other| other != path && !is_below(other, path));
        self.whiteouts.retain(|other| !is_below(other, path));
        self.opaque.retain(|other| other != path && !is_below(other, path));
    }

    /// The directory that `parents` lead to, through the layer's own symlinks.
    fn canonical(&self, parents: &[String]) -> Result<Path, Invalid> {
        let mut left: Vec<String> = parents.iter().rev().cloned().collect();
        let mut here = Path::new();
        let mut links = 0;
        while let Some(name) = left.pop() {
            if name == ".." {
                here.pop();
                continue;
            }
            here.push(name);
            match self.nodes.get(&here) {
                Some(Node::File(_) | Node::Dangling(_)) => return Err(Invalid),
                Some(Node::Symlink(_, target)) => {
                    links += 1;
                    if links > 40 {
                        return Err(Invalid);
                    }
                    here.pop();
                    if target.starts_with('/') {
                        here.clear();
                    }
                    left.extend(split(target).into_iter().rev());
                }
                Some(Node::Dir(_)) | None => {}
            }
        }
        Ok(here)
    }

    fn imply(&mut self, directory: &Path) {
        for length in 1..=directory.len() {
            let prefix = directory[..length].to_vec();
            if !self.nodes.contains_key(&prefix) {
                if self.whiteouts.contains(&prefix) {
                    self.fresh.insert(prefix.clone());
                }
                self.nodes.insert(prefix, Node::Dir(None));
            }
        }
    }

    fn put(&mut self, path: Path, node: Node) {
        self.remove(&path);
        self.nodes.insert(path, node);
    }
}

impl Model {
    fn unpack(&mut self, items: &[Item]) -> Result<Layer, Invalid> {
        let mut layer = Layer::default();
        for item in items {
            let path = split(std::str::from_utf8(&item.path).unwrap());
            let Some((name, parents)) = path.split_last() else {
                layer.nodes.insert(Path::new(), Node::Dir(Some(item.mode)));
                continue;
            };
            let parent = layer.canonical(parents)?;
            if name == ".wh..wh..opq" {
                layer.opaque.insert(parent);
                continue;
            }
            if let Some(hidden) = name.strip_prefix(".wh.") {
                layer.whiteouts.insert([&parent[..], &[hidden.to_owned()]].concat());
                continue;
            }
            layer.imply(&parent);
            let path = [&parent[..], std::slice::from_ref(name)].concat();
            match item.flag {
                b'5' => match layer.nodes.get(&path) {
                    Some(Node::Dir(_)) => {
                        layer.nodes.insert(path, Node::Dir(Some(item.mode)));
                    }
                    old => {
                        let fresh = old.is_some() || layer.whiteouts.contains(&path);
                        if old.is_some() {
                            layer.remove(&path);
                        }
                        layer.nodes.insert(path.clone(), Node::Dir(Some(item.mode)));
                        if fresh {
                            layer.fresh.insert(path);
                        }
                    }
                },
                b'2' => {
                    let target = String::from_utf8(item.link.clone()).unwrap();
                    let number = self.number(Vec::new());
                    layer.put(path, Node::Symlink(number, target));
                }
                b'1' => {
                    let target = split(std::str::from_utf8(&item.link).unwrap());
                    let (last, above) = target.split_last().ok_or(Invalid)?;
                    let target = [&layer.canonical(above)?[..], std::slice::from_ref(last)].concat();
                    let node = match layer.nodes.get(&target) {
                        Some(Node::Dir(_)) => return Err(Invalid),
                        Some(node) => node.clone(),
                        None => Node::Dangling(target),
                    };
                    layer.put(path, node);
                }
                _ => {
                    let number = self.number(item.data.clone());
                    layer.put(path, Node::File(number));
                }
            }
        }
        Ok(layer)
    }

    fn number(&mut self, content: Vec<u8>) -> usize {
        self.files.push(content);
        self.files.len() - 1
    }

    fn apply(&mut self, items: &[Item]) -> Result<(), Invalid> {
        let mut layer = self.unpack(items)?;
        // Links that came before their target, then links to what lies below.
        for _ in 0..layer.nodes.len() {
            let nodes = layer.nodes.clone();
            for node in layer.nodes.values_mut() {
                let Node::Dangling(target) = node else { continue };
                match nodes.get(target) {
                    Some(Node::Dir(_)) => return Err(Invalid),
                    Some(found) => *node = found.clone(),
                    None => {}
                }
            }
        }
        for node in layer.nodes.values_mut() {
            if let Node::Dangling(target) = node {
                match self.tree.get(target) {
                    Some(found @ (Node::File(_) | Node::Symlink(..))) => *node = found.clone(),
                    _ => return Err(Invalid),
                }
            }
        }
        for gone in layer.whiteouts.iter().chain(&layer.fresh) {
            self.tree.retain(|path, _| path != gone && !is_below(path, gone));
        }
        for directory in &layer.opaque {
            self.tree.retain(|path, _| !is_below(path, directory));
        }
        for (path, node) in layer.nodes {
            let below = self.tree.get(&path);
            match (&node, below) {
                (Node::Dir(None), Some(Node::Dir(_))) => continue,
                (Node::Dir(_), Some(Node::Dir(_)) | None) => {}
                _ => self.tree.retain(|other, _| *other != path && !is_below(other, &path)),
            }
            self.tree.insert(path, node);
        }
        Ok(())
    }

    /// One line a name, files with the first name of theirs.
    fn render(&self) -> String {
        let mut first: BTreeMap<usize, &Path> = BTreeMap::new();
        let mut out = String::new();
        let root = Path::new();
        if !self.tree.contains_key(&root) {
            out.push_str("dir / 755\n");
        }
        for (path, node) in &self.tree {
            let name = format!("/{}", path.join("/"));
            let line = match node {
                Node::Dir(mode) => format!("dir {name} {:o}", mode.unwrap_or(0o755)),
                Node::File(number) | Node::Symlink(number, _) if first.contains_key(number) => {
                    format!("link {name} /{}", first[number].join("/"))
                }
                Node::File(number) => {
                    first.insert(*number, path);
                    format!("file {name} {}", self.files[*number].escape_ascii())
                }
                Node::Symlink(number, target) => {
                    first.insert(*number, path);
                    format!("symlink {name} {target}")
                }
                Node::Dangling(_) => unreachable!("resolved before"),
            };
            out.push_str(&line);
            out.push('\n');
        }
        out
    }
}

fn render(tree: &MergedTree<Vec<u8>>) -> String {
    let name = |index| format!("/{}", tree.path(index).escape_ascii());
    let lines = tree.entries().iter().enumerate().map(|(index, entry)| match &entry.kind {
        EntryKind::Directory { meta } => format!("dir {} {:o}\n", name(index), meta.mode),
        EntryKind::File { content, .. } => format!("file {} {}\n", name(index), content.escape_ascii()),
        EntryKind::Symlink { target, .. } => format!("symlink {} {}\n", name(index), target.escape_ascii()),
        EntryKind::HardLink { to } => format!("link {} {}\n", name(index), name(*to)),
    });
    lines.collect()
}

fn check(layers: &[Vec<Item>]) -> Result<(), TestCaseError> {
    let archives: Vec<Vec<u8>> = layers.iter().map(|items| archive(items)).collect();
    let actual = merge(&archives);
    let mut model = Model::default();
    let valid = layers.iter().try_for_each(|items| model.apply(items));
    match (valid, actual) {
        (Ok(()), Ok((tree, sink))) => {
            prop_assert_eq!(render(&tree), model.render());
            let kept: u64 = tree
                .entries()
                .iter()
                .map(|entry| match &entry.kind {
                    EntryKind::File { content, .. } => content.len() as u64,
                    _ => 0,
                })
                .sum();
            prop_assert_eq!(sink.stored - sink.discarded, kept, "content that is neither used nor handed back");
        }
        (Err(Invalid), Err(_)) => {}
        (Ok(()), Err(error)) => {
            // A link that a later layer hides may dangle unnoticed in one order and be noticed in the other; here the
            // crate must not be the stricter one.
            return Err(TestCaseError::fail(format!("valid, but refused: {error}\n{}", model.render())));
        }
        (Err(Invalid), Ok((tree, _))) => {
            // The crate need not look at the target of a link that is not part of the image any more.
            let has_link = layers.iter().flatten().any(|item| item.flag == b'1');
            prop_assert!(has_link, "invalid, but accepted:\n{}", render(&tree));
        }
    }
    Ok(())
}

/// More of them with `PROPTEST_CASES`.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(20_000), max_shrink_iters: 20_000, failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn merging_from_the_top_equals_applying_from_the_bottom(layers in stack()) {
        check(&layers)?;
    }
}
