//! Files of snapshots: pages that are found again are stored once.

use super::*;

/// Puts files, and returns their images.
pub(super) fn put_files(store: &Store, files: &[&[u8]], similar: &[ManifestId]) -> Vec<Stored> {
    let files: Vec<File> = files.iter().map(|bytes| image_file(bytes)).collect();
    let files: Vec<&File> = files.iter().collect();
    store.put_files(&files, similar, &Stop::default()).unwrap()
}

/// Blocks of random bytes, each different.
pub(super) fn noise(random: &mut StdRng, blocks: usize) -> Vec<u8> {
    let mut bytes = vec![0; blocks * BLOCK];
    random.fill_bytes(&mut bytes);
    bytes
}

/// The blocks in another order, with a hole before each fourth.
fn shuffled(random: &mut StdRng, bytes: &[u8]) -> Vec<u8> {
    use rand::seq::SliceRandom;
    let mut blocks: Vec<&[u8]> = bytes.chunks(BLOCK).collect();
    blocks.shuffle(random);
    let mut moved = Vec::new();
    for (index, block) in blocks.into_iter().enumerate() {
        if index % 4 == 0 {
            moved.extend([0; BLOCK]);
        }
        moved.extend_from_slice(block);
    }
    moved
}

#[test]
fn pages_that_moved_are_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut random = StdRng::seed_from_u64(31);
    let memory = noise(&mut random, 200);
    let (state, note) = (noise(&mut random, 18)[..70_000].to_vec(), b"{\"card\":\"tap\"}".to_vec());
    let first = put_files(&store, &[&memory, &state, &note], &[]);
    assert_eq!(store.stats().packs, 1, "one for all files");
    for (stored, bytes) in first.iter().zip([&memory, &state, &note]) {
        assert_eq!(&read_back(&store, stored.id()).unwrap(), bytes);
        assert_eq!(stored.image_bytes, bytes.len() as u64);
    }

    // Every page elsewhere, and a few that are new.
    let mut moved = shuffled(&mut random, &memory);
    moved.extend(noise(&mut random, 3));
    let second = put_files(&store, &[&moved, &state, &note], &[first[0].id()]);
    assert_eq!(second[0].put.new_bytes, 3 * BLOCK as u64, "state and note are the same chunks as before");
    assert_eq!(read_back(&store, second[0].id()).unwrap(), moved);
    assert_eq!(second[1].id(), first[1].id());

    // What is one's alone goes with it, and what both have does not.
    let owners =
        [vec![first[0].id(), first[1].id()], vec![second[0].id(), second[2].id()], vec![ManifestId::of(b"no")]];
    let shares = store.shares(&owners).unwrap();
    assert!(shares[0].alone >= 70_000 && shares[0].alone < 80_000, "the state: {shares:?}");
    assert!(shares[1].alone >= 3 * BLOCK as u64 && shares[1].alone < 4 * BLOCK as u64, "{shares:?}");
    assert_eq!(shares[0].shared, shares[1].shared);
    assert_eq!(shares[2], crate::Share::default());

    // The first goes; what the second needs of it stays.
    let wanted: Vec<ManifestId> = second.iter().map(Stored::id).collect();
    drop((first, second));
    collect(&store, &wanted);
    assert_sound(&store, &wanted);
    assert_eq!(read_back(&store, wanted[0]).unwrap(), moved);
}

#[test]
fn a_chunk_of_which_little_is_used_is_not_shared() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { chunk_bytes: 64 << 10, ..SETTINGS };
    let store = Store::open(dir.path(), settings).unwrap();
    let mut random = StdRng::seed_from_u64(32);
    let memory = noise(&mut random, 64);
    let base = put_files(&store, &[&memory], &[]);
    // Of the first chunk one page, of the second two.
    let some = [&memory[..BLOCK], &memory[16 * BLOCK..18 * BLOCK]].concat();
    let little = put_files(&store, &[&some], &[base[0].id()]);
    assert_eq!(little[0].put.new_bytes, BLOCK as u64);
    assert_eq!(read_back(&store, little[0].id()).unwrap(), some);
}

#[test]
fn repeated_pages_and_odd_ends_cost_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let page: Vec<u8> = (0..BLOCK).map(|n| n as u8).collect();
    let many = page.repeat(50);
    let stored = put_files(&store, &[&many], &[]);
    assert_eq!(stored[0].put.new_bytes, BLOCK as u64);
    assert_eq!(read_back(&store, stored[0].id()).unwrap(), many);
    for length in [0, 1, BLOCK - 1, BLOCK + 1, 9 * BLOCK + 17] {
        let bytes: Vec<u8> = (0..length).map(|n| (n / 7) as u8 | 1).collect();
        let stored = put_files(&store, &[&bytes, &bytes, &page], &[ManifestId::of(b"nobody")]);
        for (stored, bytes) in stored.iter().zip([&bytes, &bytes, &page]) {
            assert_eq!(&read_back(&store, stored.id()).unwrap(), bytes);
        }
    }
}

#[test]
fn a_file_that_changes_meanwhile_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let file = image_file(&[3; 40 * BLOCK]);
    let other = file.try_clone().unwrap();
    // Between the look at its pages and the reading of them.
    let writes = move |name| {
        if name == "pages hashed" {
            other.write_all_at(&[4; BLOCK], 0).unwrap();
        }
    };
    *store.inner.at_step.lock().unwrap() = Some(Box::new(writes));
    assert!(store.put_files(&[&file], &[], &Stop::default()).is_err());
    assert_eq!(store.stats().manifests, 0);
    assert_eq!(std::fs::read_dir(dir.path().join("work")).unwrap().count(), 0, "nothing is left of what failed");
    let stop = Stop::default();
    stop.stop();
    assert!(matches!(store.put_files(&[&file], &[], &stop), Err(crate::Error::Stopped)));
}

#[test]
fn a_damaged_chunk_of_a_similar_image_is_not_shared() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut random = StdRng::seed_from_u64(33);
    let memory = noise(&mut random, 40);
    let base = put_files(&store, &[&memory], &[]);
    let pack = std::fs::read_dir(dir.path().join("packs")).unwrap().next().unwrap().unwrap().path();
    let file = File::options().read(true).write(true).open(pack).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 5000).unwrap();
    let again = put_files(&store, &[&memory], &[base[0].id()]);
    assert!(again[0].put.new_bytes > 0);
    assert_eq!(read_back(&store, again[0].id()).unwrap(), memory);
}
