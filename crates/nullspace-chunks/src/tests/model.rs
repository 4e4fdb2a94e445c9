//! Random puts, changes, restarts and collections, against the images kept in memory.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use super::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_wanted_image_comes_back_whatever_happens(seed in any::<u64>(), steps in 5..40_usize) {
        let mut random = StdRng::seed_from_u64(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        let mut wanted: BTreeMap<ManifestId, Vec<u8>> = BTreeMap::new();
        for _ in 0..steps {
            let some = wanted.iter().choose(&mut random).map(|(id, bytes)| (*id, bytes.clone()));
            match (random.random_range(0..11), some) {
                (0..2, _) | (_, None) => {
                    let blocks = random.random_range(1..60);
                    let bytes = random_image(&mut random, blocks);
                    wanted.insert(put(&store, &bytes).id(), bytes);
                }
                (2..6, Some((parent, before))) => {
                    let changed = random_changes(&mut random, &before);
                    let file = random.random_bool(0.5).then(|| image_file(&before));
                    let stored = store.put_changes(parent, &changed, file.as_ref(), &Stop::default()).unwrap();
                    wanted.insert(stored.id(), changed.bytes);
                }
                // The same pages elsewhere, beside a file of odd length; the other image may go before or after.
                (9, Some((similar, before))) if random.random_bool(0.7) => {
                    let mut bytes = random_image(&mut random, 3);
                    let cut = random.random_range(0..=before.len() / BLOCK) * BLOCK;
                    bytes.extend([&before[cut..], &before[..cut]].concat());
                    let odd = before[..random.random_range(0..=before.len())].to_vec();
                    let stored = super::streams::put_files(&store, &[&bytes, &odd], &[similar]);
                    wanted.insert(stored[0].id(), bytes);
                    wanted.insert(stored[1].id(), odd);
                }
                // A parent goes and its child stays, too.
                (6, Some((id, _))) => drop(wanted.remove(&id)),
                (7, Some((id, bytes))) => prop_assert_eq!(read_back(&store, id).unwrap(), bytes),
                (8, _) => store = open(dir.path()),
                _ => {
                    let live: Vec<_> = wanted.keys().copied().collect();
                    let collected = collect(&store, &live);
                    prop_assert_eq!(collected.lost, []);
                    // What is left is what is needed: a second look finds nothing.
                    let again = collect(&store, &live);
                    prop_assert_eq!((again.manifests, again.chunks), (0, 0));
                }
            }
        }
        let live: Vec<_> = wanted.keys().copied().collect();
        assert_sound(&store, &live);
        for (id, bytes) in &wanted {
            prop_assert_eq!(&read_back(&store, *id).unwrap(), bytes);
        }
        // Nothing wanted: nothing left.
        collect(&store, &[]);
        let stats = store.stats();
        prop_assert_eq!((stats.manifests, stats.chunks, stats.packs, stats.pack_bytes), (0, 0, 0, 0));
    }
}
