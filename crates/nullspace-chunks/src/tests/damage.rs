//! Files that were damaged or removed by something else.

use std::fs;
use std::path::PathBuf;

use super::*;
use crate::{Error, Fault};

fn only_file(root: &Path, folder: &str) -> PathBuf {
    let mut all: Vec<_> = fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn image() -> Vec<u8> {
    let mut bytes = vec![0; 40 * BLOCK];
    StdRng::seed_from_u64(5).fill_bytes(&mut bytes);
    bytes
}

#[test]
fn a_damaged_chunk_is_an_error_that_names_the_image_and_a_new_put_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let id = put(&open(dir.path()), &image()).id();
    flip(&only_file(dir.path(), "packs"), 1000);

    let store = open(dir.path());
    let verified = store.verify([], &Stop::default()).unwrap();
    assert_eq!((verified.manifests, verified.chunks), (1, 10));
    assert!(matches!(&verified.faults[..], [Fault::Chunk { manifest, .. }] if *manifest == id), "{verified:?}");

    let store = open(dir.path());
    let error = read_back(&store, id).unwrap_err();
    assert!(matches!(&error, Error::Damaged { manifest, .. } if *manifest == id));
    let shown = error.to_string();
    assert!(shown.contains(&id.to_string()) && shown.contains("make the image again"), "{shown}");

    let stored = put(&store, &image());
    assert_eq!((stored.id(), stored.put.new_bytes), (id, 16 << 10));
    assert_eq!(read_back(&store, id).unwrap(), image());
    // Also after a restart, which finds the chunk twice, and after the collection that settles it.
    drop(stored);
    let store = open(dir.path());
    assert_eq!(read_back(&store, id).unwrap(), image());
    let store = open(dir.path());
    collect(&store, &[id]);
    assert_sound(&open(dir.path()), &[id]);
}

#[test]
fn what_is_missing_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let id = put(&open(dir.path()), &image()).id();
    let pack = only_file(dir.path(), "packs");
    let kept = fs::read(&pack).unwrap();
    fs::remove_file(&pack).unwrap();
    let store = open(dir.path());
    let verified = store.verify([], &Stop::default()).unwrap();
    assert_eq!(verified.faults.len(), 10);
    assert!(matches!(read_back(&store, id), Err(Error::Damaged { .. })));
    // A pack without its end.
    fs::write(&pack, &kept[..kept.len() - 1]).unwrap();
    let store = open(dir.path());
    assert_eq!(store.stats().unreadable_packs, 1);
    let verified = store.verify([], &Stop::default()).unwrap();
    assert!(matches!(&verified.faults[10], Fault::Pack { .. }), "{:?}", verified.faults);
    // Restored, all is well.
    fs::write(&pack, &kept).unwrap();
    assert_sound(&open(dir.path()), &[id]);

    // A manifest that is wanted and is not there.
    let nobody = ManifestId::of(b"nobody");
    let verified = open(dir.path()).verify([nobody], &Stop::default()).unwrap();
    assert!(matches!(&verified.faults[..], [Fault::Manifest { manifest, .. }] if *manifest == nobody));
}

#[test]
fn a_damaged_manifest_is_found_and_takes_nothing_else_along() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let id = put(&store, &image()).id();
    let manifest = only_file(dir.path(), "manifests");
    let kept = fs::read(&manifest).unwrap();
    let other = put(&store, &[1; BLOCK]).id();
    for at in 0..kept.len() as u64 {
        fs::write(&manifest, &kept).unwrap();
        flip(&manifest, at);
        assert!(matches!(read_back(&store, id), Err(Error::Damaged { .. })), "byte {at}");
    }
    let collected = collect(&store, &[id, other]);
    assert_eq!((collected.manifests, collected.lost), (0, vec![id]));
    read_back(&store, other).unwrap();
    assert!(manifest.exists(), "it is kept, to be looked at");
    // The same image again.
    let stored = put(&store, &image());
    assert_eq!(stored.id(), id);
    assert_eq!(read_back(&store, id).unwrap(), image());
}
