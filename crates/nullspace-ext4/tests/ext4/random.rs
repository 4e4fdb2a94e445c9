//! Random trees: built, written, checked by e2fsck, and read back by a reader of our own.
//!
//! A few cases by default; `PROPTEST_CASES=1000` for a longer look.

use std::collections::BTreeMap;

use nullspace_ext4::{ImageWriter, Meta, NodeId, Timestamp, Tree};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use crate::reader::Found;
use crate::support::{Image, MIB, noise, options};

#[derive(Clone, Debug)]
enum Node {
    Directory(Meta, BTreeMap<Vec<u8>, Node>),
    File(Meta, Vec<Piece>),
    Symlink(Meta, Vec<u8>),
}

#[derive(Clone, Debug)]
enum Piece {
    Noise(u64, usize),
    Zeros(usize),
    Hole(usize),
}

/// A further name for one of the files, wherever it lands.
#[derive(Clone, Debug)]
struct Link {
    file: usize,
    directory: usize,
    name: Vec<u8>,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| if matches!(byte, 0 | b'/') { b'_' } else { byte });
    let short = vec(byte.clone(), 1..12);
    let long = vec(byte, 200..256);
    prop_oneof![9 => short, 1 => long]
        .prop_filter("reserved", |name| !matches!(&name[..], b"." | b".." | b"lost+found"))
}

fn xattrs() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    let namespace = prop_oneof![Just("user."), Just("trusted."), Just("security.")];
    let length = prop_oneof![8 => 0..60usize, 2 => 60..700usize];
    let pair = (namespace, vec(1..=255u8, 1..30), length, any::<u64>())
        .prop_map(|(prefix, name, length, seed)| ([prefix.as_bytes(), &name].concat(), noise(seed, length)));
    let distinct = |pairs: Vec<(Vec<u8>, Vec<u8>)>| pairs.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect();
    prop_oneof![3 => Just(Vec::new()), 1 => vec(pair, 1..5).prop_map(distinct)]
}

fn meta() -> impl Strategy<Value = Meta> {
    let seconds = prop_oneof![-(1i64 << 31)..3 * (1 << 32) - (1 << 31), 1_600_000_000..1_700_000_000i64];
    (0..=0o7777u16, any::<u32>(), any::<u32>(), seconds, 0..1_000_000_000u32, xattrs()).prop_map(
        |(mode, uid, gid, seconds, nanoseconds, xattrs)| Meta {
            mode,
            uid,
            gid,
            mtime: Timestamp { seconds, nanoseconds },
            xattrs,
        },
    )
}

fn piece() -> impl Strategy<Value = Piece> {
    let length = prop_oneof![0..100usize, 4000..4200usize, 0..40_000usize, Just(4096), Just(8192)];
    let noise = (any::<u64>(), length.clone()).prop_map(|(seed, length)| Piece::Noise(seed, length));
    prop_oneof![2 => noise, 1 => length.clone().prop_map(Piece::Zeros), 1 => length.prop_map(Piece::Hole)]
}

fn node() -> impl Strategy<Value = Node> {
    let file = (meta(), vec(piece(), 0..12)).prop_map(|(meta, pieces)| Node::File(meta, pieces));
    let target = prop_oneof![vec(1..=255u8, 1..130), vec(1..=255u8, 4000..4096)];
    let symlink = (meta(), target).prop_map(|(meta, target)| Node::Symlink(meta, target));
    let leaf = prop_oneof![2 => file, 1 => symlink];
    leaf.prop_recursive(4, 200, 25, |inner| {
        (meta(), btree_map(name(), inner, 0..25)).prop_map(|(meta, children)| Node::Directory(meta, children))
    })
}

fn link() -> impl Strategy<Value = Link> {
    (any::<usize>(), any::<usize>(), name()).prop_map(|(file, directory, name)| Link { file, directory, name })
}

/// Writes a tree and keeps account of what must be found in it.
struct Builder {
    writer: ImageWriter,
    tree: Tree,
    expected: BTreeMap<Vec<u8>, Found>,
    /// Nodes with their first path.
    directories: Vec<(NodeId, Vec<u8>)>,
    others: Vec<(NodeId, Vec<u8>)>,
}

impl Builder {
    fn expect(&mut self, path: &[u8], kind: u16, meta: &Meta, links: u16, contents: Vec<u8>) {
        let found = Found {
            mode: kind | meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            seconds: meta.mtime.seconds,
            nanoseconds: meta.mtime.nanoseconds,
            links,
            contents,
            xattrs: meta.xattrs.iter().cloned().collect(),
        };
        self.expected.insert(path.to_vec(), found);
    }

    fn fill(&mut self, parent: NodeId, path: &[u8], children: &BTreeMap<Vec<u8>, Node>) {
        self.directories.push((parent, path.to_vec()));
        for (name, node) in children {
            let path = if path.is_empty() { name.clone() } else { [path, b"/", name].concat() };
            match node {
                Node::Directory(meta, children) => {
                    let id = self.tree.add_dir(parent, name, meta.clone()).unwrap();
                    let below = children.values().filter(|child| matches!(child, Node::Directory(..))).count();
                    self.expect(&path, 0o040_000, meta, 2 + below as u16, Vec::new());
                    self.fill(id, &path, children);
                }
                Node::File(meta, pieces) => {
                    let mut contents = Vec::new();
                    let mut file = self.writer.begin_file();
                    for piece in pieces {
                        match *piece {
                            Piece::Noise(seed, length) => contents.extend(noise(seed, length)),
                            Piece::Zeros(length) | Piece::Hole(length) => contents.resize(contents.len() + length, 0),
                        }
                        match *piece {
                            Piece::Noise(_, length) => file.push(&contents[contents.len() - length..]).unwrap(),
                            Piece::Zeros(length) => file.push(&vec![0; length]).unwrap(),
                            Piece::Hole(length) => file.push_hole(length as u64).unwrap(),
                        }
                    }
                    let data = file.finish().unwrap();
                    let id = self.tree.add_file(parent, name, meta.clone(), data).unwrap();
                    self.expect(&path, 0o100_000, meta, 1, contents);
                    self.others.push((id, path));
                }
                Node::Symlink(meta, target) => {
                    let id = self.tree.add_symlink(parent, name, meta.clone(), target).unwrap();
                    self.expect(&path, 0o120_000, meta, 1, target.clone());
                    self.others.push((id, path));
                }
            }
        }
    }

    fn link(&mut self, link: &Link) {
        if self.others.is_empty() {
            return;
        }
        let (file, first) = self.others[link.file % self.others.len()].clone();
        let (directory, path) = self.directories[link.directory % self.directories.len()].clone();
        if self.tree.lookup(directory, &link.name).is_some() {
            return;
        }
        self.tree.link(directory, &link.name, file).unwrap();
        let path = if path.is_empty() { link.name.clone() } else { [&path[..], b"/", &link.name].concat() };
        self.others.push((file, path.clone()));
        self.expected.insert(path, self.expected[&first].clone());
        for (_, name) in self.others.iter().filter(|(node, _)| *node == file) {
            if let Some(found) = self.expected.get_mut(name) {
                found.links += 1;
            }
        }
    }
}

/// Few cases unless asked for more.
fn config() -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let default = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if asked { default } else { ProptestConfig { cases: 48, ..default } }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_random_tree_is_clean_and_comes_back_whole(
        root in meta(),
        children in btree_map(name(), node(), 0..40),
        links in vec(link(), 0..10),
    ) {
        let (image, writer) = Image::writer(options(128 * MIB));
        let tree = Tree::new(root.clone()).unwrap();
        let mut builder =
            Builder { writer, tree, expected: BTreeMap::new(), directories: Vec::new(), others: Vec::new() };
        builder.fill(Tree::ROOT, b"", &children);
        for link in &links {
            builder.link(link);
        }
        let below = children.values().filter(|child| matches!(child, Node::Directory(..))).count();
        builder.expect(b"", 0o040_000, &root, 3 + below as u16, Vec::new());
        builder.writer.finish(builder.tree).unwrap();
        image.check();
        let found = image.read();
        prop_assert_eq!(found.keys().collect::<Vec<_>>(), builder.expected.keys().collect::<Vec<_>>());
        for (path, expected) in &builder.expected {
            prop_assert!(&found[path] == expected, "{}: {:?} != {:?}", path.escape_ascii(), found[path], expected);
        }
    }
}
