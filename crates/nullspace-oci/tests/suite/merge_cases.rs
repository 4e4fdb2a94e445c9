//! Merges pinned by data: each folder of `tests/cases` has layers as text and the tree, or the error, that must come out.
//!
//! `layers.txt`: a line `layer` begins a layer, the lowest first; then one entry a line,
//! `kind path [to=target] [data=…] [mode=octal] [uid=] [gid=] [mtime=seconds[.fraction]] [xattr.name=…]`, with
//! `kind` one of `file dir symlink link fifo char block whiteout opaque`, and Rust's byte escapes in texts.
//! `expected.txt`: the same form, lower names and defaults left out, or `error` and the error's text.

use std::fs;
use std::path::Path;

use nullspace_oci::merge::{LayerEnd, LayerError, Merge, MergeLimits, MergedTree};

use crate::support::case::parse;
use crate::support::sink::{MemorySink, render};
use crate::support::tar::archive;

/// Merges uncompressed layers, given lowest first.
pub(crate) fn merge(layers: &[Vec<u8>]) -> Result<(MergedTree<Vec<u8>>, MemorySink), LayerError> {
    let mut merge = Merge::new(MemorySink::default(), MergeLimits::default());
    for layer in layers.iter().rev() {
        if merge.add_layer(&layer[..])? == LayerEnd::NeedsSecondReading {
            merge.read_again(&layer[..])?;
        }
    }
    merge.finish()
}

#[test]
fn layers_merge_to_the_expected_tree() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases");
    let mut failures = String::new();
    let mut count = 0;
    let mut cases: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    for case in cases {
        let layers = parse(&fs::read_to_string(case.join("layers.txt")).unwrap());
        let expected = fs::read_to_string(case.join("expected.txt")).unwrap();
        let archives: Vec<Vec<u8>> = layers.iter().map(|items| archive(items)).collect();
        let actual = match merge(&archives) {
            Ok((tree, _)) => render(&tree),
            Err(error) => format!("error {error}\n"),
        };
        if actual != expected {
            failures.push_str(&format!("== {}\n-- expected\n{expected}-- actual\n{actual}", case.display()));
        }
        count += 1;
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(count >= 80, "only {count} cases");
}
