//! What a filesystem must hold, from whoever knows it best, and in the form in which the guest lists it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use nullspace_oci::merge::{EntryKind, MergedTree};

use crate::support::case;
use crate::support::tar::Item;

/// Path -> everything else about it, as one line.
pub(crate) type Listing = BTreeMap<Vec<u8>, String>;

/// One name of a tree.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// With the type in the upper bits, as `st_mode` has it.
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
    pub(crate) size: u64,
    /// A file's checksum, a link's target.
    pub(crate) content: String,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The same for all names of a file.
    pub(crate) identity: u64,
    /// How many names it has, where someone has counted; else it follows from the tree.
    pub(crate) names: Option<u32>,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// Nodes by path, with what follows from all of them together: how many names each has, and which share a file.
pub(crate) fn listing(nodes: &BTreeMap<Vec<u8>, Node>) -> Listing {
    let mut first: BTreeMap<u64, (&[u8], u32)> = BTreeMap::new();
    let mut folders: BTreeMap<&[u8], u32> = BTreeMap::new();
    for (path, node) in nodes {
        first.entry(node.identity).or_insert((path, 0)).1 += 1;
        if node.mode & 0o170_000 == DIRECTORY && !path.is_empty() {
            *folders.entry(parent(path)).or_default() += 1;
        }
    }
    let line = |path: &Vec<u8>, node: &Node| {
        let (same, names) = first[&node.identity];
        let directory = node.mode & 0o170_000 == DIRECTORY;
        // `.`, and `..` of each directory in it; mke2fs and we put a lost+found into the root.
        let found = u32::from(path.is_empty() && !nodes.contains_key(&b"lost+found"[..]));
        let follows = if directory { 2 + found + folders.get(&path[..]).unwrap_or(&0) } else { names };
        let names = node.names.unwrap_or(follows);
        // The largest number is no owner to the kernel, which then says 65534.
        let owner = |id| if id == u64::from(u32::MAX) { 65534 } else { id };
        let mut line = format!(
            "mode={:o} owner={}:{} time={}.{:09} names={names} same={} size={} content={}",
            node.mode,
            owner(node.uid),
            owner(node.gid),
            node.seconds,
            node.nanoseconds,
            same.escape_ascii(),
            node.size,
            node.content
        );
        for (name, value) in &node.xattrs {
            line.push_str(&format!(" {}={}", name.escape_ascii(), value.escape_ascii()));
        }
        line
    };
    nodes.iter().map(|(path, node)| (path.clone(), line(path, node))).collect()
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&byte| byte == b'/').map_or(b"", |slash| &path[..slash])
}

fn checksum(bytes: &[u8]) -> String {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    format!("{:08x}", crc.sum())
}

/// From a case's `expected.txt`; `None` if an error is expected.
pub(crate) fn of_case(text: &str) -> Option<Listing> {
    if text.starts_with("error ") {
        return None;
    }
    let items: Vec<Item> = case::parse(&format!("layer\n{text}")).remove(0);
    let mut nodes: BTreeMap<Vec<u8>, Node> = BTreeMap::new();
    for (number, item) in items.into_iter().enumerate() {
        let path = if item.path == b"." { Vec::new() } else { item.path };
        let node = match item.flag {
            b'1' => nodes[&item.link].clone(),
            flag => Node {
                mode: item.mode
                    | match flag {
                        b'5' => DIRECTORY,
                        b'2' => SYMLINK,
                        _ => FILE,
                    },
                uid: item.uid,
                gid: item.gid,
                seconds: item.mtime,
                nanoseconds: item.nanos,
                size: item.data.len() as u64,
                content: match flag {
                    b'0' => checksum(&item.data),
                    _ => item.link.escape_ascii().to_string(),
                },
                xattrs: item.xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
                identity: number as u64,
                names: None,
            },
        };
        nodes.insert(path, node);
    }
    Some(listing(&nodes))
}

/// From a merged tree, whose contents the caller knows: size and checksum of the file at an index.
pub(crate) fn of_tree<C>(tree: &MergedTree<C>, contents: impl Fn(&C) -> Vec<u8>) -> Listing {
    let mut nodes: BTreeMap<Vec<u8>, Node> = BTreeMap::new();
    let mut by_index: Vec<Node> = Vec::new();
    for (index, entry) in tree.entries().iter().enumerate() {
        let (kind, meta, size, content) = match &entry.kind {
            EntryKind::HardLink { to } => {
                let node = by_index[*to].clone();
                nodes.insert(tree.path(index), node.clone());
                by_index.push(node);
                continue;
            }
            EntryKind::Directory { meta } => (DIRECTORY, meta, 0, String::new()),
            EntryKind::Symlink { meta, target } => (SYMLINK, meta, 0, target.escape_ascii().to_string()),
            EntryKind::File { meta, size, content } => (FILE, meta, *size, checksum(&contents(content))),
        };
        let node = Node {
            mode: kind | u32::from(meta.mode),
            uid: meta.uid.into(),
            gid: meta.gid.into(),
            seconds: meta.mtime.seconds,
            nanoseconds: meta.mtime.nanos,
            size,
            content,
            xattrs: meta.xattrs.clone(),
            identity: index as u64,
            names: None,
        };
        nodes.insert(tree.path(index), node.clone());
        by_index.push(node);
    }
    listing(&nodes)
}

/// From a root tree's tar, as Python reads it.
pub(crate) fn of_tar(tar: &Path) -> Listing {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rootfs/tar_listing.py");
    let output = Command::new("python3").arg(script).arg(tar).output().expect("run python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut nodes = BTreeMap::new();
    let mut identities: BTreeMap<String, u64> = BTreeMap::new();
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        let &[path, mode, uid, gid, seconds, nanoseconds, size, content, same, ref xattrs @ ..] = &fields[..] else {
            panic!("{line}");
        };
        let next = identities.len() as u64;
        let node = Node {
            mode: u32::from_str_radix(mode, 8).unwrap(),
            uid: uid.parse().unwrap(),
            gid: gid.parse().unwrap(),
            seconds: seconds.parse().unwrap(),
            nanoseconds: nanoseconds.parse().unwrap(),
            size: size.parse().unwrap(),
            content: content.to_owned(),
            xattrs: xattrs.iter().map(|xattr| xattr.split_once('=').unwrap()).map(|(a, b)| (hex(a), hex(b))).collect(),
            identity: *identities.entry(same.to_owned()).or_insert(next),
            names: None,
        };
        nodes.insert(hex(path), node);
    }
    listing(&nodes)
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}
