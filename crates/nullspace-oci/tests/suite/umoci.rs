//! Random stacks of layers, merged here and unpacked by `umoci`, which shares nothing with this crate.
//!
//! Left out are the corners where the spec is open and umoci decides otherwise (see the rules in `merge`'s documentation):
//! it unpacks onto one tree, so it follows lower layers' symlinks, and resolves a hard link against whatever is there at
//! that moment. Directory times are not compared: umoci changes them when it goes on to unpack into the directory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use nullspace_oci::manifest::Compression;
use nullspace_oci::merge::{EntryKind, MergedTree};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::layout::{files, folder};
use crate::merge_cases::merge;
use crate::support::image::image;
use crate::support::stack::stack;
use crate::support::tar::{Item, archive};

/// Stacks that are compared in a run, and how many one run of umoci unpacks.
const STACKS: usize = 2400;
const TOGETHER: usize = 80;

/// Makes a stack one that both must agree on.
fn restrict(layers: &mut Vec<Vec<Item>>) {
    for layer in layers {
        let mut seen: BTreeSet<Vec<u8>> = BTreeSet::new();
        layer.retain_mut(|item| {
            item.path = item.path.strip_suffix(b"/").unwrap_or(&item.path).to_vec();
            item.nanos = 500;
            item.mtime = 1_000_000 + i64::try_from(item.path.len()).unwrap();
            item.uid = u64::from(item.mode) % 7;
            if item.flag == b'2' {
                // Symlinks get names that no other entry passes through.
                item.path.extend_from_slice(b".link");
            }
            // An entry after another of its name, or of a directory after what is in it, is where orders differ.
            seen.insert(item.path.clone())
        });
        // Directories first, whiteouts last, links at the end of all: the order of every real layer.
        let rank = |item: &Item| match (item.flag, item.path.windows(4).any(|part| part == b".wh.")) {
            (b'5', _) => 0,
            (b'1', _) => 2,
            (_, true) => 3,
            _ => 1,
        };
        layer.sort_by_key(|item| (rank(item), item.path.clone()));
        // A whiteout of something that the layer itself has is undefined; umoci then keeps the lower directory.
        let entries: Vec<Vec<u8>> = layer.iter().filter(|item| rank(item) != 3).map(|item| item.path.clone()).collect();
        layer.retain(|item| {
            let text = String::from_utf8(item.path.clone()).unwrap();
            let hidden = text.replace(".wh.", "").into_bytes();
            let below = [&hidden[..], b"/"].concat();
            rank(item) != 3
                || text.ends_with(".wh..wh..opq")
                || !entries.iter().any(|path| *path == hidden || path.starts_with(&below))
        });
        let whiteouts: Vec<Vec<u8>> =
            layer.iter().filter(|item| rank(item) == 3).map(|item| item.path.clone()).collect();
        let files: BTreeSet<Vec<u8>> =
            layer.iter().filter(|item| rank(item) == 1).map(|item| item.path.clone()).collect();
        layer.retain(|item| item.flag != b'1' || whiteouts.is_empty() && !files.contains(&item.path));
    }
}

/// `path -> kind, mode, owner`, and for what is no directory `time, content or target, number of names`.
type Listing = BTreeMap<Vec<u8>, String>;

fn ours(tree: &MergedTree<Vec<u8>>) -> Listing {
    let mut names: BTreeMap<usize, usize> = BTreeMap::new();
    for (index, entry) in tree.entries().iter().enumerate() {
        *names.entry(if let EntryKind::HardLink { to } = entry.kind { to } else { index }).or_default() += 1;
    }
    let line = |index: usize| {
        let entry = &tree.entries()[index];
        let (kind, meta, what) = match &entry.kind {
            EntryKind::Directory { meta } => ("dir", meta, String::new()),
            EntryKind::File { meta, content, .. } => ("file", meta, content.escape_ascii().to_string()),
            EntryKind::Symlink { meta, target } => ("symlink", meta, target.escape_ascii().to_string()),
            EntryKind::HardLink { .. } => unreachable!("hard links are listed as what they are"),
        };
        if kind == "dir" {
            return format!("{kind} {:o} {}", meta.mode, meta.uid);
        }
        let (seconds, nanos) = (meta.mtime.seconds, meta.mtime.nanos);
        format!("{kind} {:o} {} {seconds}.{nanos} {what} {}", meta.mode, meta.uid, names[&index])
    };
    tree.entries()
        .iter()
        .enumerate()
        .map(|(index, entry)| {
            (tree.path(index), line(if let EntryKind::HardLink { to } = entry.kind { to } else { index }))
        })
        .collect()
}

fn theirs(root: &Path) -> Listing {
    let mut out = Listing::new();
    let mut work = vec![root.to_owned()];
    while let Some(path) = work.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let (kind, what, links) = if metadata.is_dir() {
            work.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            ("dir", String::new(), 0)
        } else if metadata.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            ("symlink", target.as_os_str().as_bytes().escape_ascii().to_string(), metadata.nlink())
        } else {
            ("file", fs::read(&path).unwrap().escape_ascii().to_string(), metadata.nlink())
        };
        let (mode, uid) = (metadata.mode() & 0o7777, metadata.uid());
        let (seconds, nanos) = (metadata.mtime(), metadata.mtime_nsec());
        let line = match kind {
            "dir" => format!("{kind} {mode:o} {uid}"),
            _ => format!("{kind} {mode:o} {uid} {seconds}.{nanos} {what} {links}"),
        };
        out.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), line);
    }
    out
}

/// A stack in a directory of its own of an image that many stacks share: whiteouts and links act within it.
fn moved(layers: &[Vec<Item>], directory: &str) -> Vec<Vec<Item>> {
    let below = |path: &[u8]| [directory.as_bytes(), b"/", path.strip_prefix(b"./").unwrap_or(path)].concat();
    let move_item = |item: &Item| Item {
        path: below(&item.path),
        link: if item.flag == b'1' { below(&item.link) } else { item.link.clone() },
        ..item.clone()
    };
    layers.iter().map(|items| items.iter().map(move_item).collect()).collect()
}

/// The layers of all stacks side by side, lowest first.
fn together(stacks: &BTreeMap<String, Vec<Vec<Item>>>) -> Vec<Vec<u8>> {
    let height = stacks.values().map(Vec::len).max().unwrap_or(0);
    let layer = |number: usize| -> Vec<Item> {
        stacks.values().filter_map(|layers| layers.get(number)).flatten().cloned().collect()
    };
    (0..height).map(|number| archive(&layer(number))).collect()
}

/// Whether the stack is an image, and one that umoci does not refuse although it is: going up from the lowest layer, it
/// wants each hard link's target although a later layer hides the link, and it makes no directory in place of a lower
/// layer's file for what lies below it unless an entry says that it is one.
fn is_taken_by_both(layers: &[Vec<Item>]) -> bool {
    let archives: Vec<Vec<u8>> = layers.iter().map(|items| archive(items)).collect();
    let mut below: Option<MergedTree<Vec<u8>>> = None;
    for (number, items) in layers.iter().enumerate() {
        let is_directory: BTreeSet<&[u8]> =
            items.iter().filter(|item| item.flag == b'5').map(|item| &item.path[..]).collect();
        let parents = items.iter().flat_map(|item| {
            let slashes = item.path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
            slashes.map(|(at, _)| &item.path[..at]).collect::<Vec<_>>()
        });
        let covered = |path: &[u8]| {
            let tree = below.as_ref()?;
            Some(!matches!(tree.entries()[tree.find(path)?].kind, EntryKind::Directory { .. }))
        };
        if parents.filter(|path| !is_directory.contains(path)).any(|path| covered(path) == Some(true)) {
            return false;
        }
        match merge(&archives[..=number]) {
            Ok((tree, _)) => below = Some(tree),
            Err(_) => return false,
        }
    }
    true
}

/// Unpacked by umoci, or its complaint.
fn unpack(archives: Vec<Vec<u8>>) -> Result<tempfile::TempDir, String> {
    let blobs: Vec<_> = archives.into_iter().map(|tar| (tar, Compression::Gzip)).collect();
    let layout = folder(&files(&[(&image(&blobs), Some("x"), None)]));
    let bundle = tempfile::tempdir().unwrap();
    let output = Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:x", layout.path().display()))
        .arg(bundle.path().join("b"))
        .output()
        .expect("run umoci");
    if output.status.success() { Ok(bundle) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Needs root, as umoci does to give files to their owners.
#[test]
fn umoci_agrees() {
    if !is_root() {
        eprintln!("not root: umoci cannot give files to their owners; not compared");
        return;
    }
    let mut runner = TestRunner::deterministic();
    let (mut made, mut compared, mut refused) = (0, 0, 0);
    while compared < STACKS {
        let mut stacks: BTreeMap<String, Vec<Vec<Item>>> = BTreeMap::new();
        while stacks.len() < TOGETHER {
            let mut layers = stack().new_tree(&mut runner).unwrap().current();
            restrict(&mut layers);
            made += 1;
            let name = format!("s{made:05}");
            let layers = moved(&layers, &name);
            if is_taken_by_both(&layers) {
                stacks.insert(name, layers);
            }
        }
        let bundle = loop {
            match unpack(together(&stacks)) {
                Ok(bundle) => break bundle,
                Err(complaint) => {
                    // It names the file; the others go on without the stack.
                    let name = stacks.keys().find(|name| complaint.contains(&format!("{name}/"))).cloned();
                    let name = name.unwrap_or_else(|| panic!("umoci fails for no stack's sake: {complaint}"));
                    stacks.remove(&name);
                    refused += 1;
                }
            }
        };
        let (tree, _) = merge(&together(&stacks)).expect("each of them merges");
        let (ours, theirs) = (ours(&tree), theirs(&bundle.path().join("b/rootfs")));
        let paths: BTreeSet<&Vec<u8>> = ours.keys().chain(theirs.keys()).collect();
        for path in paths.into_iter().filter(|path| !path.is_empty()) {
            let listing = || {
                let name = String::from_utf8_lossy(path.split(|&byte| byte == b'/').next().unwrap_or_default());
                let layers = stacks.get(&*name).into_iter().flatten();
                layers.map(|items| items.iter().map(show).collect::<String>() + "--\n").collect::<String>()
            };
            assert_eq!(ours.get(path), theirs.get(path), "{}:\n{}", path.escape_ascii(), listing());
        }
        compared += stacks.len();
    }
    println!("{compared} stacks compared, {refused} refused by umoci, {made} made");
    assert!(refused * 50 < compared, "umoci refused {refused} stacks, {compared} were compared");
}

fn show(item: &Item) -> String {
    format!(
        "{} {} -> {} {:o} {}\n",
        char::from(item.flag),
        item.path.escape_ascii(),
        item.link.escape_ascii(),
        item.mode,
        item.data.escape_ascii()
    )
}
