//! Puts, reads and collections at the same time.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

#[test]
fn a_collection_takes_nothing_from_puts_and_reads_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // Few different images, so that puts meet chunks that a collection is just about to take.
    let mut random = StdRng::seed_from_u64(7);
    let images: Vec<Vec<u8>> = (0..3).map(|_| random_image(&mut random, 60)).collect();
    let wanted: Mutex<Vec<(ManifestId, Vec<u8>)>> = Mutex::default();
    let (done, collections) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3_u64)
            .map(|writer| {
                let (store, images, wanted) = (&store, &images, &wanted);
                scope.spawn(move || {
                    let mut random = StdRng::seed_from_u64(writer);
                    for _ in 0..60 {
                        let image = &images[random.random_range(0..images.len())];
                        let mut stored = put(store, image);
                        let mut bytes = image.clone();
                        if random.random_bool(0.5) {
                            let changed = random_changes(&mut random, image);
                            let parent = stored;
                            stored = store.put_changes(parent.id(), &changed, None, &Stop::default()).unwrap();
                            bytes = changed.bytes;
                        }
                        if random.random_bool(0.3) {
                            wanted.lock().unwrap().push((stored.id(), bytes));
                        } else {
                            // Nobody wants it: once unpinned, it may go at any moment.
                            assert_eq!(read_back(store, stored.id()).unwrap(), bytes);
                        }
                        if random.random_bool(0.3) {
                            let mut wanted = wanted.lock().unwrap();
                            if wanted.len() > 4 {
                                let index = random.random_range(0..wanted.len());
                                wanted.swap_remove(index);
                            }
                        }
                    }
                })
            })
            .collect();
        let collector = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let collection = store.start_collection().unwrap();
                assert!(matches!(store.start_collection(), Err(crate::Error::Busy)));
                let live: Vec<ManifestId> = wanted.lock().unwrap().iter().map(|(id, _)| *id).collect();
                let collected = collection.finish(live, &Stop::default()).unwrap();
                assert_eq!(collected.lost, []);
                collections.fetch_add(1, Ordering::Relaxed);
            }
        });
        let failed: Vec<_> = writers.into_iter().filter_map(|writer| writer.join().err()).collect();
        done.store(true, Ordering::Relaxed);
        collector.join().unwrap();
        assert!(failed.is_empty());
    });
    assert!(collections.into_inner() > 20);
    let wanted = wanted.into_inner().unwrap();
    let live: Vec<_> = wanted.iter().map(|(id, _)| *id).collect();
    assert_sound(&store, &live);
    // And as another process finds it.
    let store = open(dir.path());
    for (id, bytes) in &wanted {
        assert_eq!(&read_back(&store, *id).unwrap(), bytes);
    }
    collect(&store, &live);
    assert_sound(&store, &live);
}

#[test]
fn what_was_pinned_while_the_list_was_made_stays() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let old = put(&store, &[1; 9 * BLOCK]).id();
    let held = put(&store, &[2; 9 * BLOCK]);
    let collection = store.start_collection().unwrap();
    // Stored and named after the list was made: pinned for a moment only.
    let new = put(&store, &[3; 9 * BLOCK]).id();
    let collected = collection.finish([], &Stop::default()).unwrap();
    assert_eq!((collected.manifests, store.contains(&old)), (1, false));
    for id in [held.id(), new] {
        read_back(&store, id).unwrap();
    }
    // At the next collection it is like any other.
    assert_eq!(collect(&store, &[]).manifests, 1);
    assert!(store.contains(&held.id()) && !store.contains(&new));
}

#[test]
fn a_pack_that_is_mostly_unused_is_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut random = StdRng::seed_from_u64(9);
    let mut large = vec![0; 100 * BLOCK];
    random.fill_bytes(&mut large);
    let first = put(&store, &large).id();
    // Shares a fifth of the first one's pack.
    let small = large[..20 * BLOCK].to_vec();
    let second = put(&store, &small).id();
    let before = store.disk_bytes().unwrap();
    let collected = collect(&store, &[second]);
    assert_eq!((collected.manifests, collected.packs, collected.rewritten), (1, 1, 1));
    assert!(!store.contains(&first));
    assert!(store.disk_bytes().unwrap() < before / 3);
    assert_eq!(read_back(&store, second).unwrap(), small);
    assert_eq!(read_back(&open(dir.path()), second).unwrap(), small);
    let collected = collect(&store, &[second]);
    assert_eq!(collected, Collected::default());
}

#[test]
fn who_looks_from_another_process_keeps_collections_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let id = put(&store, &[1; 9 * BLOCK]).id();
    let looking = Store::open_read_only(dir.path(), SETTINGS).unwrap();
    assert!(matches!(store.start_collection().unwrap().finish([], &Stop::default()), Err(crate::Error::Busy)));
    // Puts go on; what came later is not seen.
    let later = put(&store, &[2; 9 * BLOCK]);
    assert!(looking.contains(&id) && !looking.contains(&later.id()));
    assert_sound(&looking, &[id]);
    drop(looking);
    assert_eq!(collect(&store, &[]).manifests, 1);
}
