//! The store as a whole: against a model, beside itself, and across crashes.

mod crash;
mod damage;
mod model;
mod remote;
mod streams;
mod together;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::{Changes, Collected, Extent, ManifestId, Settings, Stop, Store, Stored};

/// Small chunks, so that small images have many.
pub(super) const SETTINGS: Settings = Settings { chunk_bytes: 16 << 10, level: 1, threads: 2 };
const BLOCK: usize = 4096;

pub(super) fn open(root: &Path) -> Store {
    Store::open(root, SETTINGS).unwrap()
}

/// A sparse file with these bytes.
pub(super) fn image_file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes.len() as u64).unwrap();
    for (index, block) in bytes.chunks(BLOCK).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            file.write_all_at(block, (index * BLOCK) as u64).unwrap();
        }
    }
    file
}

pub(super) fn put(store: &Store, bytes: &[u8]) -> Stored {
    store.put_image(&image_file(bytes), &Stop::default()).unwrap()
}

/// An image with changes applied, which says what was changed.
pub(super) struct Changed {
    pub(super) bytes: Vec<u8>,
    pub(super) extents: Vec<Extent>,
}

impl Changes for Changed {
    fn image_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn extents(&self) -> Vec<Extent> {
        self.extents.clone()
    }

    fn read_at(&self, at: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.copy_from_slice(&self.bytes[at as usize..][..buffer.len()]);
        Ok(())
    }
}

pub(super) fn read_back(store: &Store, id: ManifestId) -> crate::Result<Vec<u8>> {
    let file = tempfile::tempfile().unwrap();
    let made = store.materialise(id, &file, None, &Stop::default())?;
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    assert_eq!(made.image_bytes, bytes.len() as u64);
    file.read_exact_at(&mut bytes, 0).unwrap();
    Ok(bytes)
}

pub(super) fn collect(store: &Store, live: &[ManifestId]) -> Collected {
    store.start_collection().unwrap().finish(live.iter().copied(), &Stop::default()).unwrap()
}

pub(super) fn assert_sound(store: &Store, wanted: &[ManifestId]) {
    let verified = store.verify(wanted.iter().copied(), &Stop::default()).unwrap();
    assert!(verified.faults.is_empty(), "{:#?}", verified.faults);
}

/// Blocks of zeros, of text, of a few that repeat, and of random bytes.
pub(super) fn random_image(random: &mut StdRng, blocks: usize) -> Vec<u8> {
    let mut bytes = vec![0; blocks * BLOCK];
    for block in bytes.chunks_mut(BLOCK) {
        random_block(random, block);
    }
    bytes
}

pub(super) fn random_block(random: &mut StdRng, block: &mut [u8]) {
    match random.random_range(0..5) {
        0 | 1 => block.fill(0),
        2 => block.fill(random.random_range(1..4)),
        3 => block.iter_mut().enumerate().for_each(|(n, byte)| *byte = (n % 61) as u8 ^ 0x55),
        _ => random.fill_bytes(block),
    }
}

/// Changes of random runs of blocks, some of them to what was there before.
pub(super) fn random_changes(random: &mut StdRng, parent: &[u8]) -> Changed {
    let grown = random.random_range(0..3) * BLOCK;
    let mut bytes = parent.to_vec();
    bytes.resize(parent.len() + grown, 0);
    let blocks = bytes.len() / BLOCK;
    let (mut at, mut extents) = (0, Vec::new());
    loop {
        at += random.random_range(0..8);
        let len = random.random_range(1..6);
        if at + len > blocks {
            break;
        }
        let zero = random.random_bool(0.2);
        for block in bytes[at * BLOCK..(at + len) * BLOCK].chunks_mut(BLOCK) {
            if zero {
                block.fill(0);
            } else if random.random_bool(0.7) {
                random_block(random, block);
            }
        }
        extents.push(Extent { at: (at * BLOCK) as u64, len: (len * BLOCK) as u64, zero });
        at += len;
    }
    Changed { bytes, extents }
}

#[test]
fn an_image_comes_back_and_costs_its_content_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut random = StdRng::seed_from_u64(1);
    let image = random_image(&mut random, 200);
    let first = put(&store, &image);
    assert!(first.put.new_bytes > 0 && first.put.new_bytes <= first.put.content_bytes);
    assert_eq!(read_back(&store, first.id()).unwrap(), image);
    let again = put(&store, &image);
    assert_eq!((again.id(), again.put.new_bytes), (first.id(), 0));
    assert_eq!(store.stats().packs, 1);

    // After a restart too.
    let id = first.id();
    drop((first, again, store));
    let store = open(dir.path());
    assert_eq!(read_back(&store, id).unwrap(), image);
    assert_sound(&store, &[id]);
}

#[test]
fn an_image_of_any_length_comes_back_sparse() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for length in [0, 1, BLOCK - 1, BLOCK + 1, 100 * BLOCK + 17] {
        let mut bytes = vec![0; length];
        if let Some(last) = bytes.last_mut() {
            *last = 7;
        }
        let id = put(&store, &bytes).id();
        assert_eq!(read_back(&store, id).unwrap(), bytes);
        let file = tempfile::tempfile_in(dir.path()).unwrap();
        store.materialise(id, &file, None, &Stop::default()).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 <= 2 * BLOCK as u64, "holes stay holes");
    }
}

#[test]
fn a_small_change_of_a_large_image_costs_the_change() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut random = StdRng::seed_from_u64(2);
    let mut image = vec![0; 4 << 20];
    random.fill_bytes(&mut image);
    let parent = put(&store, &image);
    let file = image_file(&image);
    let mut changed = Changed { bytes: image, extents: Vec::new() };
    // One block is changed; the disk says that 64 KiB were.
    changed.bytes[100 * BLOCK + 5] ^= 1;
    changed.extents.push(Extent { at: 96 * BLOCK as u64, len: 64 << 10, zero: false });
    let child = store.put_changes(parent.id(), &changed, Some(&file), &Stop::default()).unwrap();
    assert_eq!(child.put.content_bytes, BLOCK as u64);
    assert!(child.put.stored_bytes < 2 * BLOCK as u64, "{:?}", child.put);
    assert_eq!(read_back(&store, child.id()).unwrap(), changed.bytes);
    // Without the parent's file the extent is stored as it is said.
    let child = store.put_changes(parent.id(), &changed, None, &Stop::default()).unwrap();
    assert_eq!(child.put.content_bytes, 64 << 10);
    assert_eq!(read_back(&store, child.id()).unwrap(), changed.bytes);
}

#[test]
fn a_chain_of_changes_is_never_deep() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut random = StdRng::seed_from_u64(3);
    let mut bytes = random_image(&mut random, 100);
    let mut id = put(&store, &bytes).pin;
    for _ in 0..40 {
        let changed = random_changes(&mut random, &bytes);
        id = store.put_changes(id.id(), &changed, None, &Stop::default()).unwrap().pin;
        bytes = changed.bytes;
        let chain = store.inner.chain(&id.id()).unwrap();
        assert!(chain.len() <= crate::manifest::MAX_DEPTH as usize + 1);
        assert_eq!(read_back(&store, id.id()).unwrap(), bytes);
    }
    // What the flattened ones no longer need goes, and what they need stays.
    collect(&store, &[id.id()]);
    assert_eq!(read_back(&store, id.id()).unwrap(), bytes);
    assert!(store.stats().manifests <= u64::from(crate::manifest::MAX_DEPTH) + 1);
}

#[test]
fn impossible_requests_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let parent = put(&store, &[1; 3 * BLOCK]);
    let shorter = Changed { bytes: vec![0; BLOCK], extents: Vec::new() };
    let stop = Stop::default();
    assert!(matches!(store.put_changes(parent.id(), &shorter, None, &stop), Err(crate::Error::Invalid { .. })));
    let nobody = ManifestId::of(b"nobody");
    let changed = Changed { bytes: vec![0; BLOCK], extents: Vec::new() };
    assert!(matches!(store.put_changes(nobody, &changed, None, &stop), Err(crate::Error::Unknown(_))));
    assert!(matches!(read_back(&store, nobody), Err(crate::Error::Unknown(_))));
    assert!(matches!(store.pin(nobody), Err(crate::Error::Unknown(_))));
    stop.stop();
    assert!(matches!(store.put_image(&image_file(&[1; BLOCK]), &stop), Err(crate::Error::Stopped)));
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(store.materialise(parent.id(), &file, None, &stop), Err(crate::Error::Stopped)));
    assert_eq!(std::fs::read_dir(dir.path().join("work")).unwrap().count(), 0, "nothing is left of what failed");
}
