//! Every image mounts read-write in Debian's kernel, holds exactly the tree it was made of, and is whole afterwards.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;

use nullspace_ext4::{Options, Timestamp};
use nullspace_oci::import::{ImportOptions, import_tar};
use nullspace_oci::merge::{ContentSink, LayerEnd, LayerError, Merge, MergeLimits, MergedTree, SinkError};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use uuid::Uuid;

use crate::expected::{Listing, of_case, of_tar, of_tree};
use crate::guest::mount_all;
use crate::support::case::parse;
use crate::support::stack::stack;
use crate::support::tar::archive;

const MIB: u64 = 1 << 20;
/// Random stacks that are mounted; how they merge is tested elsewhere, many more of them.
const STACKS: usize = 60;

type Failed = Box<dyn std::error::Error + Send + Sync>;

fn options(size: u64) -> Options {
    let time = Timestamp { seconds: 1_600_000_000, nanoseconds: 0 };
    Options::new(size, Uuid::from_u128(7), Uuid::from_u128(8), time)
}

fn create(path: &Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}

/// Layers, lowest first, to an image.
fn image_of_layers(layers: &[Vec<u8>], path: &Path) -> Result<(), Failed> {
    let (sink, writing) = nullspace_rootfs::begin(create(path), options(16 * MIB), ())?;
    let tree = merge(layers, sink).map_err(Failed::from);
    writing.finish(tree).map(drop)
}

fn merge<S: ContentSink>(layers: &[Vec<u8>], sink: S) -> Result<MergedTree<S::Content>, LayerError> {
    let mut merge = Merge::new(sink, MergeLimits::default());
    for layer in layers.iter().rev() {
        if merge.add_layer(&layer[..])? == LayerEnd::NeedsSecondReading {
            merge.read_again(&layer[..])?;
        }
    }
    merge.finish().map(|(tree, _)| tree)
}

/// Keeps contents in memory.
#[derive(Default)]
struct Memory(Vec<u8>);

impl ContentSink for Memory {
    type Content = Vec<u8>;

    fn begin(&mut self, _: u64) -> Result<(), SinkError> {
        self.0.clear();
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(&mut self) -> Result<Vec<u8>, SinkError> {
        Ok(std::mem::take(&mut self.0))
    }
}

/// An image that shall be looked at.
struct Candidate {
    name: String,
    path: PathBuf,
    expected: Listing,
}

fn cases(folder: &Path, candidates: &mut Vec<Candidate>) {
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nullspace-oci/tests/cases");
    let mut cases: Vec<PathBuf> = fs::read_dir(cases).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    let (mut refused, mut accepted) = (0, 0);
    for case in cases {
        let name = case.file_name().unwrap().to_string_lossy().into_owned();
        let layers = parse(&fs::read_to_string(case.join("layers.txt")).unwrap());
        let layers: Vec<Vec<u8>> = layers.iter().map(|items| archive(items)).collect();
        let path = folder.join(&name);
        let made = image_of_layers(&layers, &path);
        match of_case(&fs::read_to_string(case.join("expected.txt")).unwrap()) {
            Some(expected) => {
                made.unwrap_or_else(|error| panic!("{name}: {error}"));
                accepted += 1;
                candidates.push(Candidate { name, path, expected });
            }
            None => {
                assert!(made.is_err(), "{name} became an image");
                refused += 1;
            }
        }
    }
    assert!(accepted >= 60 && accepted + refused >= 80, "{accepted} cases with a tree, {refused} without");
}

fn stacks(folder: &Path, candidates: &mut Vec<Candidate>) {
    let mut runner = TestRunner::deterministic();
    let mut made = 0;
    while made < STACKS {
        let layers = stack().prop_map(|layers| layers.iter().map(|items| archive(items)).collect::<Vec<_>>());
        let layers = layers.new_tree(&mut runner).unwrap().current();
        let Ok(tree) = merge(&layers, Memory::default()) else { continue };
        let path = folder.join(format!("stack{made}"));
        image_of_layers(&layers, &path).unwrap();
        candidates.push(Candidate {
            name: format!("stack {made}"),
            path,
            expected: of_tree(&tree, |content| content.clone()),
        });
        made += 1;
    }
}

/// The root of the built-in template, which mmdebstrap made; `make base` makes it.
fn debian(folder: &Path, candidates: &mut Vec<Candidate>) {
    let made = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest/base.tar");
    let tar = std::env::var_os("NULLSPACE_GUEST_DIR").map_or(made, |folder| Path::new(&folder).join("base.tar"));
    assert!(tar.exists(), "{} is missing: run `make base`", tar.display());
    let path = folder.join("debian");
    let (sink, writing) = nullspace_rootfs::begin(create(&path), options(2048 * MIB), ()).unwrap();
    let reader = BufReader::new(File::open(&tar).unwrap());
    let tree = import_tar(reader, sink, &ImportOptions::default()).map(|imported| imported.tree);
    let written = writing.finish(tree.map_err(Failed::from)).unwrap();
    assert!(written.entries > 5000 && written.content_bytes > 100 * MIB, "{written:?}");
    candidates.push(Candidate { name: "Debian".to_owned(), path, expected: of_tar(&tar) });
}

/// Where two listings differ, at most a few lines of it.
fn differences(expected: &Listing, seen: &Listing) -> Vec<String> {
    let paths: BTreeSet<&Vec<u8>> = expected.keys().chain(seen.keys()).collect();
    let differ = paths.into_iter().filter(|path| expected.get(*path) != seen.get(*path));
    let line = |path: &Vec<u8>| {
        let shown = |listing: &Listing| listing.get(path).cloned().unwrap_or_else(|| "nothing".to_owned());
        format!("  /{}\n    expected {}\n    found    {}", path.escape_ascii(), shown(expected), shown(seen))
    };
    differ.take(5).map(line).collect()
}

#[test]
fn all_images_mount_in_the_guests_kernel_and_hold_what_they_were_made_of() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut candidates = Vec::new();
    cases(folder.path(), &mut candidates);
    stacks(folder.path(), &mut candidates);
    debian(folder.path(), &mut candidates);
    for candidate in &candidates {
        e2fsck(&candidate.path.display().to_string(), &candidate.name);
    }
    let images: Vec<PathBuf> = candidates.iter().map(|candidate| candidate.path.clone()).collect();
    let seen = mount_all(&images, folder.path());
    assert!(seen.complaints.is_empty(), "the guest's kernel complained: {:#?}", seen.complaints);
    let mut failures = Vec::new();
    for (candidate, listing) in candidates.iter().zip(seen.listings) {
        match listing {
            Err(error) => failures.push(format!("{}: {error}", candidate.name)),
            Ok(mut listing) => {
                // One that the image brings is compared like any other directory.
                if !candidate.expected.contains_key(&b"lost+found"[..]) {
                    assert!(listing.remove(&b"lost+found"[..]).is_some());
                }
                let differences = differences(&candidate.expected, &listing);
                if !differences.is_empty() {
                    failures.push(format!("{}:\n{}", candidate.name, differences.join("\n")));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    // As the guest left them, after it had written to each.
    for (candidate, offset) in candidates.iter().zip(&seen.offsets) {
        e2fsck(&format!("{}?offset={offset}", seen.disk.display()), &candidate.name);
    }
    println!("{} images mounted", candidates.len());
}

fn e2fsck(image: &str, name: &str) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("e2fsck").args(["-fn", image]).env("PATH", path).output().expect("run e2fsck");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
}
