//! Merges pinned by data: each folder of `tests/cases` has layers as text and the tree, or the error, that must come out.
//!
//! `layers.txt`: a line `layer` begins a layer, the lowest first; then one entry a line,
//! `kind path [to=target] [data=…] [mode=octal] [uid=] [gid=] [mtime=seconds[.fraction]] [xattr.name=…]`, with
//! `kind` one of `file dir symlink link fifo char block whiteout opaque`, and Rust's byte escapes in texts.
//! `expected.txt`: the same form, lower names and defaults left out, or `error` and the error's text.

use std::fs;
use std::path::Path;

use nullspace_oci::merge::{LayerEnd, LayerError, Merge, MergeLimits, MergedTree};

use crate::support::sink::{MemorySink, render};
use crate::support::tar::{Item, archive};

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

/// The layers of a `layers.txt`.
pub(crate) fn parse(text: &str) -> Vec<Vec<Item>> {
    let mut layers: Vec<Vec<Item>> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line == "layer" {
            layers.push(Vec::new());
            continue;
        }
        layers.last_mut().expect("an entry before the first layer").push(parse_item(line));
    }
    layers
}

fn parse_item(line: &str) -> Item {
    let mut words = line.split(' ');
    let kind = words.next().unwrap();
    let path = unescape(words.next().unwrap());
    let marker = |name: &[u8]| match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => [&path[..=slash], name, &path[slash + 1..]].concat(),
        None => [name, &path[..]].concat(),
    };
    let mut item = match kind {
        "file" => Item::file(&path, ""),
        "dir" => Item::dir(&path),
        "symlink" => Item::symlink(&path, ""),
        "link" => Item::hard_link(&path, ""),
        "char" => Item::new(b'3', &path),
        "block" => Item::new(b'4', &path),
        "fifo" => Item::new(b'6', &path),
        "whiteout" => Item::file(marker(b".wh."), ""),
        "opaque" => Item::file([&path[..], b"/.wh..wh..opq"].concat(), ""),
        other => panic!("unknown kind {other}"),
    };
    for word in words {
        let (key, value) = word.split_once('=').unwrap();
        match key {
            "to" => item.link = unescape(value),
            "data" => item.data = unescape(value),
            "mode" => item.mode = u32::from_str_radix(value, 8).unwrap(),
            "uid" => item.uid = value.parse().unwrap(),
            "gid" => item.gid = value.parse().unwrap(),
            "mtime" => (item.mtime, item.nanos) = time(value),
            _ => {
                let name = key.strip_prefix("xattr.").unwrap_or_else(|| panic!("unknown key {key}"));
                item.xattrs.push((name.to_owned(), unescape(value)));
            }
        }
    }
    item
}

/// Decimal seconds, as floor and nanoseconds.
fn time(text: &str) -> (i64, u32) {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos: i64 = format!("{fraction:0<9}").parse().unwrap();
    let negative = whole.starts_with('-');
    let total = whole.parse::<i64>().unwrap() * 1_000_000_000 + if negative { -nanos } else { nanos };
    (total.div_euclid(1_000_000_000), u32::try_from(total.rem_euclid(1_000_000_000)).unwrap())
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next().unwrap() {
            b'n' => out.push(b'\n'),
            b'x' => {
                let hex = [bytes.next().unwrap(), bytes.next().unwrap()];
                out.push(u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap());
            }
            other => panic!("unknown escape {other}"),
        }
    }
    out
}
