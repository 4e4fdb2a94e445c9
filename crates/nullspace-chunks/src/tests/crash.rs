//! What is on the disk at every step that a crash could fall between.
//!
//! At each step the folder is copied; each copy is then opened as a restarted service would find it. The steps cover
//! what a killed process leaves; what a power loss may undo besides is why files and folders are flushed before the next.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::*;

/// Copies of the folder, with the step's name and what had to be there at that moment.
type Shots = Arc<Mutex<Vec<(&'static str, tempfile::TempDir)>>>;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

fn watch(store: &Store, root: &Path) -> Shots {
    let shots = Shots::default();
    let (kept, root) = (Arc::clone(&shots), root.to_owned());
    let at_step = move |name| {
        let shot = tempfile::tempdir().unwrap();
        copy(&root, shot.path());
        kept.lock().unwrap().push((name, shot));
    };
    *store.inner.at_step.lock().unwrap() = Some(Box::new(at_step));
    shots
}

fn files(root: &Path) -> usize {
    ["packs", "manifests", "work"].iter().map(|name| fs::read_dir(root.join(name)).unwrap().count()).sum()
}

#[test]
fn a_crash_at_any_step_loses_nothing_and_its_leftovers_go() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut random = StdRng::seed_from_u64(11);
    let base = random_image(&mut random, 80);
    let base_id = put(&store, &base).id();
    let shots = watch(&store, dir.path());
    let take = |what: &'static str, wanted: &[(ManifestId, &[u8])]| {
        let shots = std::mem::take(&mut *shots.lock().unwrap());
        assert!(shots.len() >= 3, "{what}: {} steps", shots.len());
        for (name, shot) in shots {
            let store = open(shot.path());
            let ids: Vec<_> = wanted.iter().map(|(id, _)| *id).collect();
            assert_sound(&store, &ids);
            for (id, bytes) in wanted {
                assert!(read_back(&store, *id).unwrap() == *bytes, "{what}, {name}: {id} has other bytes");
            }
            // What nobody confirmed goes, wholly; what is wanted then is all there is.
            collect(&store, &ids);
            assert_sound(&store, &ids);
            collect(&store, &[]);
            assert_eq!(files(shot.path()), 0, "{what}, {name}");
            // And the store works.
            let again = put(&store, &[5; 3 * BLOCK]);
            assert_eq!(read_back(&store, again.id()).unwrap(), [5; 3 * BLOCK]);
        }
    };

    let changed = random_changes(&mut random, &base);
    let child = store.put_changes(base_id, &changed, None, &Stop::default()).unwrap().id();
    take("changes", &[(base_id, &base)]);
    let other = random_image(&mut random, 50);
    let other_id = put(&store, &other).id();
    take("an image", &[(base_id, &base), (child, &changed.bytes)]);
    let files = [&other[..], &base[..7000]];
    let stored = super::streams::put_files(&store, &files, &[base_id]);
    take("files of a snapshot", &[(base_id, &base), (other_id, &other)]);
    drop(stored);

    // A collection that removes one pack, and rewrites another of which a part is still wanted.
    let mut mixed = base[..8 * BLOCK].to_vec();
    random_block(&mut random, &mut mixed[..BLOCK]);
    let mixed_id = put(&store, &mixed).id();
    shots.lock().unwrap().clear();
    let collected = collect(&store, &[mixed_id]);
    assert!(collected.rewritten >= 1 && collected.packs > collected.rewritten, "{collected:?}");
    assert!(!store.contains(&other_id));
    take("a collection", &[(mixed_id, &mixed)]);
}
