//! A store whose files are kept elsewhere, too.

use std::collections::BTreeMap;
use std::io::{Read, Seek, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use super::streams::{noise, put_files};
use super::*;
use crate::{Remote, RemoteFile, RemoteKind, RemoteSettings};

type Key = (bool, String);

/// A remote in memory, that can be told to fail.
#[derive(Debug, Default)]
struct Memory {
    files: Mutex<BTreeMap<Key, Vec<u8>>>,
    /// Calls that are still answered.
    answers: Mutex<Option<u32>>,
    gets: Mutex<u32>,
}

fn key(kind: RemoteKind, name: &str) -> Key {
    (kind == RemoteKind::Pack, name.to_owned())
}

impl Memory {
    fn asked(&self) -> io::Result<()> {
        match &mut *self.answers.lock().unwrap() {
            None => Ok(()),
            Some(0) => Err(io::Error::new(io::ErrorKind::TimedOut, "503")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn answers(&self, calls: Option<u32>) {
        *self.answers.lock().unwrap() = calls;
    }

    fn file(&self, kind: RemoteKind, name: &str) -> io::Result<Vec<u8>> {
        let files = self.files.lock().unwrap();
        files.get(&key(kind, name)).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn count(&self) -> usize {
        self.files.lock().unwrap().len()
    }
}

impl Remote for Memory {
    fn put(&self, kind: RemoteKind, name: &str, mut file: &File) -> io::Result<()> {
        self.asked()?;
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        let old = self.files.lock().unwrap().insert(key(kind, name), bytes.clone());
        assert!(old.is_none_or(|old| old == bytes), "a file changed");
        Ok(())
    }

    fn get(&self, kind: RemoteKind, name: &str, bytes: u64, mut to: &File) -> io::Result<()> {
        self.asked()?;
        *self.gets.lock().unwrap() += 1;
        let found = self.file(kind, name)?;
        assert_eq!(found.len() as u64, bytes, "the store knows the length of {name}");
        to.write_all(&found)
    }

    fn read(&self, kind: RemoteKind, name: &str, at: u64, len: usize) -> io::Result<Vec<u8>> {
        self.asked()?;
        let found = self.file(kind, name)?;
        let part = found.get(at as usize..).and_then(|rest| rest.get(..len));
        part.map(<[u8]>::to_vec).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn list(&self, kind: RemoteKind) -> io::Result<Vec<RemoteFile>> {
        self.asked()?;
        let files = self.files.lock().unwrap();
        let of_kind = files.iter().filter(|((pack, _), _)| *pack == (kind == RemoteKind::Pack));
        Ok(of_kind.map(|((_, name), bytes)| RemoteFile { name: name.clone(), bytes: bytes.len() as u64 }).collect())
    }

    fn delete(&self, kind: RemoteKind, name: &str) -> io::Result<()> {
        self.asked()?;
        self.files.lock().unwrap().remove(&key(kind, name));
        Ok(())
    }
}

fn settings(remote: &Arc<Memory>, cache_bytes: u64, grace: Duration) -> Option<RemoteSettings> {
    Some(RemoteSettings { remote: Arc::clone(remote) as Arc<dyn Remote>, cache_bytes, grace })
}

fn open_with(root: &Path, remote: &Arc<Memory>, cache_bytes: u64) -> Store {
    Store::open_with(root, SETTINGS, settings(remote, cache_bytes, Duration::ZERO)).unwrap()
}

fn files_in(root: &Path, folder: &str) -> usize {
    std::fs::read_dir(root.join(folder)).unwrap().count()
}

#[test]
fn a_new_folder_has_all_that_the_remote_has() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let remote = Arc::<Memory>::default();
    let mut random = StdRng::seed_from_u64(41);
    let (image, memory) = (random_image(&mut random, 100), random_image(&mut random, 60));
    let store = open_with(dir.path(), &remote, u64::MAX);
    let base = put(&store, &image).id();
    let changed = random_changes(&mut random, &image);
    let child = store.put_changes(base, &changed, None, &Stop::default()).unwrap().id();
    let snapshot = put_files(&store, &[&memory, &image[..9000]], &[base]);
    drop(store);

    let store = open_with(other.path(), &remote, u64::MAX);
    assert_eq!(
        (files_in(other.path(), "packs"), files_in(other.path(), "manifests")),
        (0, 0),
        "nothing before it is read"
    );
    assert_eq!(read_back(&store, child).unwrap(), changed.bytes);
    assert_eq!(read_back(&store, snapshot[0].id()).unwrap(), memory);
    assert_eq!(read_back(&store, snapshot[1].id()).unwrap(), &image[..9000]);
    assert_sound(&store, &[base, child]);
    // Downloaded once: what is here is used from here, also after a restart without the remote.
    let gets = *remote.gets.lock().unwrap();
    assert_eq!(read_back(&store, child).unwrap(), changed.bytes);
    assert_eq!(*remote.gets.lock().unwrap(), gets);
    // And what is equal to what only the remote has is not stored again.
    assert_eq!(put(&store, &image).put.new_bytes, 0);
}

#[test]
fn packs_here_make_room_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let remote = Arc::<Memory>::default();
    let mut random = StdRng::seed_from_u64(42);
    let store = open_with(dir.path(), &remote, 0);
    // Nothing in common, so that each has a pack of its own.
    let images: Vec<Vec<u8>> = (0..4).map(|_| noise(&mut random, 50)).collect();
    let ids: Vec<ManifestId> = images.iter().map(|image| put(&store, image).id()).collect();
    assert_eq!(files_in(dir.path(), "packs"), 0);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for (id, image) in ids.iter().zip(&images) {
                    assert_eq!(&read_back(&store, *id).unwrap(), image);
                }
            });
        }
    });
    // Of two that fit, the last used stay.
    let bytes = store.stats().pack_bytes;
    drop(store);
    let store = open_with(dir.path(), &remote, bytes * 2 / 3);
    for (id, image) in ids.iter().zip(&images) {
        assert_eq!(&read_back(&store, *id).unwrap(), image);
    }
    let gets = *remote.gets.lock().unwrap();
    assert_eq!(read_back(&store, ids[3]).unwrap(), images[3]);
    assert_eq!(*remote.gets.lock().unwrap(), gets, "used last");
    assert!((1..4).contains(&files_in(dir.path(), "packs")));
    // A rewrite needs packs that are not here.
    collect(&store, &[ids[0]]);
    assert_eq!(read_back(&store, ids[0]).unwrap(), images[0]);
}

#[test]
fn a_remote_that_does_not_answer_loses_nothing_and_damages_nothing() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let remote = Arc::<Memory>::default();
    let mut random = StdRng::seed_from_u64(43);
    let image = random_image(&mut random, 80);
    let store = open_with(dir.path(), &remote, u64::MAX);
    let base = put(&store, &image).id();

    // However far a put comes: an error, nothing that is named and not whole, and the next one succeeds.
    let mut failures = 0;
    for calls in 0.. {
        let image = random_image(&mut random, 40);
        remote.answers(Some(calls));
        let stored = store.put_image(&image_file(&image), &Stop::default());
        remote.answers(None);
        let again = Store::open_with(other.path(), SETTINGS, settings(&remote, 0, Duration::ZERO)).unwrap();
        assert_sound(&again, &[base]);
        match stored {
            Ok(stored) => {
                assert_eq!(read_back(&again, stored.id()).unwrap(), image);
                break;
            }
            Err(error) => {
                assert!(matches!(error, crate::Error::Io { .. }), "{error}");
                failures += 1;
            }
        }
        assert_eq!(read_back(&store, put(&store, &image).id()).unwrap(), image);
    }
    assert_eq!(failures, 2, "a pack and a manifest are uploaded");

    // Read: what is here is there for all, what is not is no damage.
    let empty = tempfile::tempdir().unwrap();
    let cold = open_with(empty.path(), &remote, u64::MAX);
    remote.answers(Some(0));
    assert_eq!(read_back(&store, base).unwrap(), image);
    let error = read_back(&cold, base).unwrap_err();
    assert!(matches!(error, crate::Error::Io { .. }), "{error}");
    let verified = cold.verify([base], &Stop::default());
    assert!(matches!(verified, Err(crate::Error::Io { .. })), "{verified:?}");
    assert!(Store::open_with(other.path(), SETTINGS, settings(&remote, 0, Duration::ZERO)).is_err());
    remote.answers(None);
    assert_eq!(read_back(&cold, base).unwrap(), image);
}

#[test]
fn what_is_removed_here_is_deleted_there_after_the_grace() {
    let dir = tempfile::tempdir().unwrap();
    let remote = Arc::<Memory>::default();
    let image = random_image(&mut StdRng::seed_from_u64(44), 40);
    let patient = || Store::open_with(dir.path(), SETTINGS, settings(&remote, 0, Duration::from_secs(3600))).unwrap();
    let store = patient();
    drop(put(&store, &image));
    collect(&store, &[]);
    assert_eq!(store.stats().manifests, 0);
    assert_eq!(remote.count(), 2, "somebody may be reading it");
    // A restart has it in the list again, and finds it unused again.
    drop(store);
    let store = open_with(dir.path(), &remote, 0);
    assert_eq!(store.stats().manifests, 1);
    remote.answers(Some(0));
    let failed = store.start_collection().unwrap().finish([], &Stop::default());
    assert!(failed.is_err());
    // Put again before it was deleted: it stays.
    remote.answers(None);
    let kept = put(&store, &image);
    collect(&store, &[kept.id()]);
    assert_eq!(read_back(&store, kept.id()).unwrap(), image);
    let elsewhere = tempfile::tempdir().unwrap();
    assert_eq!(read_back(&open_with(elsewhere.path(), &remote, 0), kept.id()).unwrap(), image);
    drop(kept);
    collect(&store, &[]);
    assert_eq!(remote.count(), 0);
}

#[test]
fn files_from_before_the_remote_are_uploaded() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut random = StdRng::seed_from_u64(45);
    let image = random_image(&mut random, 70);
    let store = open(dir.path());
    let base = put(&store, &image).id();
    let changed = random_changes(&mut random, &image);
    let child = store.put_changes(base, &changed, None, &Stop::default()).unwrap().id();
    assert_eq!(store.upload_missing(&Stop::default()).unwrap(), 0, "there is no remote");
    drop(store);

    let remote = Arc::<Memory>::default();
    let store = open_with(dir.path(), &remote, 0);
    assert!(files_in(dir.path(), "packs") > 0, "nothing goes that only this folder has");
    remote.answers(Some(2));
    assert!(store.upload_missing(&Stop::default()).is_err());
    remote.answers(None);
    assert!(store.upload_missing(&Stop::default()).unwrap() > 0);
    assert_eq!(store.upload_missing(&Stop::default()).unwrap(), 0);
    assert_eq!(files_in(dir.path(), "packs"), 0, "a cache now");
    assert_eq!(read_back(&open_with(other.path(), &remote, 0), child).unwrap(), changed.bytes);
}

#[test]
fn a_store_that_is_only_read_reads_the_remote_and_changes_no_file() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let remote = Arc::<Memory>::default();
    let mut random = StdRng::seed_from_u64(47);
    let store = open_with(dir.path(), &remote, 0);
    let images: Vec<Vec<u8>> = (0..6).map(|_| noise(&mut random, 50)).collect();
    let ids: Vec<ManifestId> = images.iter().map(|image| put(&store, image).id()).collect();
    // Also beside another host's folder, which has nothing of it.
    open_with(other.path(), &remote, 0);
    for dir in [&dir, &other] {
        let files = || ["packs", "manifests", "work"].map(|folder| files_in(dir.path(), folder));
        let before = files();
        let look = Store::open_read_only_with(dir.path(), SETTINGS, settings(&remote, 0, Duration::ZERO)).unwrap();
        let gets = *remote.gets.lock().unwrap();
        let verified = look.verify(ids.clone(), &Stop::default()).unwrap();
        assert_eq!((verified.faults, verified.manifests), (vec![], 6));
        for (id, image) in ids.iter().zip(&images) {
            assert_eq!(&read_back(&look, *id).unwrap(), image);
        }
        assert!(*remote.gets.lock().unwrap() > gets);
        assert_eq!(files(), before);
        let stats = look.remote_stats().unwrap();
        assert_eq!((stats.packs, stats.manifests, stats.cached_packs, stats.missing_packs), (6, 6, 0, 0));
        assert_eq!(stats.pack_bytes, store.stats().pack_bytes);
    }
    // The folder alone has the manifests, and none of the packs.
    let alone = Store::open_read_only(dir.path(), SETTINGS).unwrap();
    assert_eq!(alone.remote_stats(), None);
    assert_eq!(alone.incomplete(ids.clone()).unwrap(), ids);
    assert_eq!(store.incomplete(ids.clone()).unwrap(), []);
}

#[test]
fn a_folder_that_has_everything_again_is_whole_without_its_remote() {
    let dir = tempfile::tempdir().unwrap();
    let remote = Arc::<Memory>::default();
    let mut random = StdRng::seed_from_u64(48);
    let store = open_with(dir.path(), &remote, 0);
    let image = noise(&mut random, 60);
    let base = put(&store, &image).id();
    let changed = random_changes(&mut random, &image);
    let child = store.put_changes(base, &changed, None, &Stop::default()).unwrap().id();
    assert!(store.download_missing(&Stop::default()).unwrap() > 0, "nothing stays in a cache without space");
    drop(store);
    std::fs::remove_dir_all(dir.path().join("manifests")).unwrap();
    let store = open_with(dir.path(), &remote, u64::MAX);
    assert_eq!(store.incomplete([base, child]).unwrap(), []);
    remote.answers(Some(1));
    assert!(store.download_missing(&Stop::default()).is_err());
    remote.answers(None);
    assert_eq!(store.download_missing(&Stop::default()).unwrap(), 0);
    let stats = store.remote_stats().unwrap();
    assert_eq!((stats.cached_packs, stats.cached_bytes), (stats.packs, stats.pack_bytes));
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.incomplete([child, base]).unwrap(), []);
    assert_eq!(read_back(&store, child).unwrap(), changed.bytes);
    // What a manifest lies on counts, too.
    std::fs::remove_file(store.inner.manifest_path(&base)).unwrap();
    assert_eq!(store.incomplete([child, base]).unwrap(), [child, base]);
}

#[test]
fn a_damaged_object_is_named_and_others_are_read() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let remote = Arc::<Memory>::default();
    let mut random = StdRng::seed_from_u64(46);
    let store = open_with(dir.path(), &remote, 0);
    let (one, two) = (random_image(&mut random, 40), random_image(&mut random, 40));
    let ids = [put(&store, &one).id(), put(&store, &two).id()];
    let packs = |files: &BTreeMap<Key, Vec<u8>>| files.keys().filter(|(pack, _)| *pack).cloned().collect::<Vec<_>>();
    // One bit of a chunk in one pack.
    {
        let mut files = remote.files.lock().unwrap();
        let first = packs(&files).remove(0);
        files.get_mut(&first).unwrap()[100] ^= 1;
    }
    let cold = open_with(other.path(), &remote, u64::MAX);
    let read = [(ids[0], &one), (ids[1], &two)].map(|(id, image)| read_back(&cold, id).map(|bytes| bytes == *image));
    assert_eq!(read.iter().filter(|read| matches!(read, Ok(true))).count(), 1, "{read:?}");
    assert_eq!(read.iter().filter(|read| matches!(read, Err(crate::Error::Damaged { .. }))).count(), 1, "{read:?}");
    // And an index.
    {
        let mut files = remote.files.lock().unwrap();
        for pack in packs(&files) {
            files.get_mut(&pack).unwrap().truncate(200);
        }
    }
    let other = tempfile::tempdir().unwrap();
    let cold = open_with(other.path(), &remote, 0);
    assert_eq!(cold.stats().unreadable_packs, 2);
    let verified = cold.verify([], &Stop::default()).unwrap();
    let of_packs = verified.faults.iter().filter(|fault| matches!(fault, crate::Fault::Pack { .. }));
    assert_eq!(of_packs.count(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn folders_may_go_at_any_time(seed in any::<u64>(), steps in 5..30_usize) {
        let mut random = StdRng::seed_from_u64(seed);
        let mut dir = tempfile::tempdir().unwrap();
        let remote = Arc::<Memory>::default();
        let mut store = open_with(dir.path(), &remote, 100_000);
        let mut wanted: BTreeMap<ManifestId, Vec<u8>> = BTreeMap::new();
        for _ in 0..steps {
            let some = wanted.iter().choose(&mut random).map(|(id, bytes)| (*id, bytes.clone()));
            match (random.random_range(0..9), some) {
                (0..2, _) | (_, None) => {
                    let blocks = random.random_range(1..60);
                    let bytes = random_image(&mut random, blocks);
                    wanted.insert(put(&store, &bytes).id(), bytes);
                }
                (2..4, Some((parent, before))) => {
                    let changed = random_changes(&mut random, &before);
                    let stored = store.put_changes(parent, &changed, None, &Stop::default()).unwrap();
                    wanted.insert(stored.id(), changed.bytes);
                }
                (4, Some((similar, before))) => {
                    let bytes = [&random_image(&mut random, 3), &before[..]].concat();
                    wanted.insert(put_files(&store, &[&bytes], &[similar])[0].id(), bytes);
                }
                (5, Some((id, _))) => drop(wanted.remove(&id)),
                (6, Some((id, bytes))) => prop_assert_eq!(read_back(&store, id).unwrap(), bytes),
                (7, _) => {
                    dir = tempfile::tempdir().unwrap();
                    store = open_with(dir.path(), &remote, 100_000);
                }
                _ => {
                    let live: Vec<_> = wanted.keys().copied().collect();
                    prop_assert_eq!(collect(&store, &live).lost, []);
                }
            }
        }
        let live: Vec<_> = wanted.keys().copied().collect();
        assert_sound(&store, &live);
        for (id, bytes) in &wanted {
            prop_assert_eq!(&read_back(&store, *id).unwrap(), bytes);
        }
        collect(&store, &[]);
        collect(&store, &[]);
        prop_assert_eq!(remote.count(), 0);
    }
}
