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

const STACKS: usize = 1500;

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

#[test]
#[ignore = "takes a minute, and needs umoci and root"]
fn umoci_agrees() {
    let mut runner = TestRunner::deterministic();
    let mut compared = 0;
    for number in 0..STACKS {
        let mut layers = stack().new_tree(&mut runner).unwrap().current();
        restrict(&mut layers);
        let archives: Vec<Vec<u8>> = layers.iter().map(|items| archive(items)).collect();
        let Ok((tree, _)) = merge(&archives) else { continue };
        let blobs: Vec<_> = archives.into_iter().map(|tar| (tar, Compression::Gzip)).collect();
        let layout = folder(&files(&[(&image(&blobs), Some("x"), None)]));
        let bundle = tempfile::tempdir().unwrap();
        let target = bundle.path().join("b");
        let output = Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(format!("{}:x", layout.path().display()))
            .arg(&target)
            .output()
            .expect("run umoci");
        if !output.status.success() {
            continue;
        }
        let (ours, theirs) = (ours(&tree), theirs(&target.join("rootfs")));
        let paths: BTreeSet<&Vec<u8>> = ours.keys().chain(theirs.keys()).collect();
        for path in paths.into_iter().filter(|path| !path.is_empty()) {
            let listing =
                || layers.iter().map(|items| items.iter().map(show).collect::<String>() + "--\n").collect::<String>();
            assert_eq!(ours.get(path), theirs.get(path), "stack {number}, {}:\n{}", path.escape_ascii(), listing());
        }
        compared += 1;
    }
    println!("{compared} of {STACKS} stacks compared");
    assert!(compared > STACKS / 3, "only {compared} stacks could be compared");
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
