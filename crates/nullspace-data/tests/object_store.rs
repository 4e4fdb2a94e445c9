//! A data folder whose packs and manifests are kept in an object store.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nullspace_data::{
    ArtifactStore, ChunkStop, Collected, DataError, ObjectSettings, OpenSettings, PublishedArtifact, PublishedRootfs,
    Result, attached_store, look_at_chunks, object_store_id,
};
use nullspace_objects::{Faults, Limits, Objects};
use nullspace_types::{ArtifactId, KnownFiles, Rootfs, StoreId};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

const KEY: &str = "00112233445566778899aabbccddeeff";
const MIB: usize = 1 << 20;

/// Data folders with one object store, which can fail.
struct Stage {
    dir: TempDir,
    faults: Faults,
    objects: Objects,
}

impl Stage {
    fn new() -> Stage {
        Stage::with(Faults::new(1))
    }

    fn with(faults: Faults) -> Stage {
        let dir = TempDir::new().unwrap();
        let pause = Duration::from_millis(1);
        let limits = Limits { attempts: 2, backoff: pause, longest_backoff: pause, ..Limits::default() };
        let plain = Objects::folder(&dir.path().join("objects")).unwrap().with_limits(limits);
        let objects = Objects::faulty(&plain, faults.clone());
        Stage { dir, faults, objects }
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn open(&self, name: &str, cache_bytes: u64, grace: Duration) -> Result<ArtifactStore> {
        let settings = ObjectSettings { objects: self.objects.clone(), cache_bytes, grace };
        open(&self.data(name), Some(settings)).await
    }

    /// With a large cache, and without a grace.
    async fn plain(&self, name: &str) -> ArtifactStore {
        self.open(name, u64::MAX, Duration::ZERO).await.unwrap()
    }

    /// Objects below a folder of names.
    fn objects_in(&self, folder: &str) -> usize {
        let path = self.data("objects").join("objects").join(folder);
        if path.exists() { files_in(&path) } else { 0 }
    }
}

/// Opens a data folder as the service does: where the store can be asked.
async fn open(root: &Path, objects: Option<ObjectSettings>) -> Result<ArtifactStore> {
    let (root, settings) = (root.to_owned(), OpenSettings { objects, ..OpenSettings::default() });
    tokio::task::spawn_blocking(move || ArtifactStore::open_with(&root, settings)).await.unwrap()
}

fn files_in(path: &Path) -> usize {
    fs::read_dir(path).unwrap().count()
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    StdRng::seed_from_u64(seed).fill_bytes(&mut noise);
    noise
}

async fn publish(store: &ArtifactStore, memory: &[u8]) -> Result<PublishedArtifact> {
    let scratch = store.scratch()?;
    let dir = scratch.path().join("snapshot");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("state"), b"state").unwrap();
    fs::write(dir.join("memory"), memory).unwrap();
    store.publish_artifact(&dir, ArtifactId::new(), Vec::new()).await
}

async fn publish_root(store: &ArtifactStore, bytes: &[u8]) -> Result<(PublishedRootfs, Rootfs)> {
    let scratch = store.scratch()?;
    let file = scratch.path().join("image");
    fs::write(&file, bytes).unwrap();
    let published = store.publish_rootfs(&file, KEY).await?;
    let row = published.row(KEY, serde_json::json!(null));
    Ok((published, row))
}

async fn memory(store: &ArtifactStore, published: &PublishedArtifact) -> Result<Vec<u8>> {
    let pin = store.open_snapshot(&published.folder, Some(&published.streams)).await?;
    Ok(fs::read(pin.path().join("memory")).unwrap())
}

fn known(artifacts: &[&PublishedArtifact], roots: &[&Rootfs]) -> KnownFiles {
    KnownFiles {
        artifacts: artifacts.iter().map(|made| (made.folder.clone(), Some(made.streams.clone()))).collect(),
        rootfs: roots.iter().map(|row| (row.file.clone(), row.manifest.clone())).collect(),
    }
}

async fn collect(store: &ArtifactStore, known: KnownFiles) -> Collected {
    store.collect_images(async { Ok::<_, DataError>(known) }).await.unwrap()
}

#[tokio::test]
async fn a_folder_without_its_caches_and_a_new_folder_read_everything_from_the_store() {
    let stage = Stage::new();
    let store = stage.plain("data").await;
    let (image, pages) = (noise(1, 3 * MIB), noise(2, 2 * MIB));
    let (published, root) = publish_root(&store, &image).await.unwrap();
    let made = publish(&store, &pages).await.unwrap();
    let names = known(&[&made], &[&root]);
    drop((published, store));
    for folder in ["chunks/packs", "chunks/manifests", "snapshots", "rootfs"] {
        fs::remove_dir_all(stage.data("data").join(folder)).unwrap();
    }
    for folder in ["data", "another"] {
        let store = stage.plain(folder).await;
        let swept = store.sweep(names.clone()).await.unwrap();
        assert_eq!(swept.missing, KnownFiles::default(), "nothing of it is lost");
        assert_eq!(memory(&store, &made).await.unwrap(), pages);
        assert_eq!(fs::read(store.open_rootfs(&root).await.unwrap().path()).unwrap(), image);
        let verified = store.verify_images(&names).await.unwrap();
        assert!(verified.faults.is_empty() && verified.chunks > 0, "{verified:?}");
        let usage = store.object_usage().unwrap();
        assert!(usage.counts.downloaded_bytes > 0 && usage.cache_bytes == usage.packs.pack_bytes, "{usage:?}");
    }
}

#[tokio::test]
async fn packs_make_room_in_the_cache_and_are_seen_beside_the_service() {
    let stage = Stage::new();
    let store = stage.open("data", 0, Duration::ZERO).await.unwrap();
    let pages = noise(3, 2 * MIB);
    let made = publish(&store, &pages).await.unwrap();
    assert_eq!(files_in(&store.root().join("chunks/packs")), 0);
    store.drop_raw_rootfs().await.unwrap();
    assert_eq!(memory(&store, &made).await.unwrap(), pages);

    // As the operator's commands look at it.
    let settings = ObjectSettings { objects: stage.objects.clone(), cache_bytes: 0, grace: Duration::ZERO };
    let (root, ids) =
        (store.root().to_owned(), made.streams.0.values().map(|id| id.parse().unwrap()).collect::<Vec<_>>());
    let looked = tokio::task::spawn_blocking(move || {
        let look = look_at_chunks(&root, Some(&settings)).unwrap();
        (look.verify(ids, &ChunkStop::default()).unwrap(), look.remote_stats().unwrap())
    });
    let (verified, there) = looked.await.unwrap();
    assert!(verified.faults.is_empty() && verified.manifests == 2, "{verified:?}");
    assert_eq!((there.cached_packs, there.missing_packs), (0, 0));
    assert_eq!(there.packs as usize, stage.objects_in("packs"));
    assert_eq!(files_in(&store.root().join("chunks/packs")), 0, "looking brings nothing here");
}

#[tokio::test]
async fn a_store_that_fails_during_a_publication_leaves_nothing_that_is_not_whole() {
    let mut failures = 0;
    for requests in 0.. {
        // The opening lists both kinds.
        let stage = Stage::with(Faults::new(2).fail_after(requests));
        let Ok(store) = stage.open("data", u64::MAX, Duration::ZERO).await else { continue };
        let pages = noise(requests, MIB);
        let made = publish(&store, &pages).await;
        stage.faults.heal();
        let names = match &made {
            Ok(made) => known(&[made], &[]),
            Err(error) => {
                assert!(error.is_store_away() && error.is_retryable() && !error.is_storage_full(), "{error:?}");
                failures += 1;
                KnownFiles::default()
            }
        };
        // Another host, which has what the store has.
        let other = stage.plain("other").await;
        let verified = other.verify_images(&names).await.unwrap();
        assert!(verified.faults.is_empty(), "{requests}: {verified:?}");
        drop(other);
        // The same attempt again, and after it nothing remains of the first.
        let again = publish(&store, &pages).await.unwrap();
        assert_eq!(memory(&store, &again).await.unwrap(), pages);
        store.artifact_named(&again.folder);
        collect(&store, known(&[&again], &[])).await;
        assert_eq!(stage.objects_in("manifests"), 2);
        if made.is_ok() {
            break;
        }
    }
    assert!(failures >= 3, "a pack and two manifests are stored: {failures}");
}

#[tokio::test]
async fn a_crash_between_upload_and_row_is_collected_after_the_grace() {
    let stage = Stage::new();
    let store = stage.plain("data").await;
    let (kept, orphan) =
        (publish(&store, &noise(5, MIB)).await.unwrap(), publish(&store, &noise(6, MIB)).await.unwrap());
    let all = stage.objects_in("packs");
    let names = known(&[&kept], &[]);
    drop(store);
    // With a grace, nothing goes at once: another host may be reading.
    let store = stage.open("data", u64::MAX, Duration::from_secs(3600)).await.unwrap();
    store.sweep(names.clone()).await.unwrap();
    assert!(collect(&store, names.clone()).await.manifests > 0);
    assert_eq!(stage.objects_in("packs"), all);
    assert!(!store.has_snapshot(&orphan.folder, Some(&orphan.streams)).unwrap());
    drop(store);
    // The next start finds it unused again.
    let store = stage.plain("data").await;
    store.sweep(names.clone()).await.unwrap();
    // A store that does not answer keeps it, and the next collection goes on.
    stage.faults.set_down(true);
    let failed = store.collect_images(async { Ok::<_, DataError>(names.clone()) }).await.unwrap_err();
    assert!(failed.is_store_away(), "{failed:?}");
    stage.faults.set_down(false);
    collect(&store, names.clone()).await;
    assert_eq!(stage.objects_in("packs"), all - 1);
    assert_eq!(memory(&store, &kept).await.unwrap(), noise(5, MIB));
    assert!(store.verify_images(&names).await.unwrap().faults.is_empty());
}

#[tokio::test]
async fn while_the_store_is_away_what_is_cached_is_read_and_the_rest_is_no_damage() {
    let stage = Stage::new();
    let pages = noise(7, MIB);
    let store = stage.plain("data").await;
    let made = publish(&store, &pages).await.unwrap();
    let cold = stage.plain("cold").await;
    stage.faults.set_down(true);
    store.drop_raw_rootfs().await.unwrap();
    assert_eq!(memory(&store, &made).await.unwrap(), pages, "from the packs here");
    let error = memory(&cold, &made).await.unwrap_err();
    assert!(error.is_store_away() && error.is_retryable(), "{error:?}");
    assert!(cold.check_objects(Duration::from_secs(5)).await.unwrap().unwrap_err().is_store_away());
    let refused = stage.open("new", 0, Duration::ZERO).await.unwrap_err();
    assert!(refused.is_store_away(), "what it has would look lost: {refused:?}");
    stage.faults.set_down(false);
    assert_eq!(memory(&cold, &made).await.unwrap(), pages);
    cold.check_objects(Duration::from_secs(5)).await.unwrap().unwrap();
    assert!(cold.object_usage().unwrap().counts.failures > 0);
    // Stopped, it is not asked any more.
    cold.stop_objects();
    cold.drop_raw_rootfs().await.unwrap();
    let other = publish(&cold, &noise(8, MIB)).await.unwrap_err();
    assert!(other.is_store_away(), "{other:?}");
}

#[tokio::test]
async fn the_question_whether_the_store_answers_has_an_end() {
    let stage = Stage::with(Faults::new(3).delays(100, Duration::from_secs(3600)));
    let began = Instant::now();
    let error = nullspace_data::check_objects(&stage.objects, Duration::from_millis(50)).await.unwrap_err();
    assert!(error.is_store_away() && began.elapsed() < Duration::from_secs(20), "{error:?}");
}

#[tokio::test]
async fn a_folder_with_data_gets_a_store_and_goes_back() {
    let stage = Stage::new();
    let pages = noise(9, 2 * MIB);
    let store = open(&stage.data("data"), None).await.unwrap();
    assert!(store.object_usage().is_none() && store.check_objects(Duration::ZERO).await.is_none());
    let made = publish(&store, &pages).await.unwrap();
    let segment = store.logs().put(b"a segment".to_vec()).await.unwrap();
    let names = known(&[&made], &[]);
    drop(store);

    // The store was added. Until everything is there, nothing goes here.
    let store = stage.open("data", 0, Duration::ZERO).await.unwrap();
    assert!(store.object_usage().unwrap().packs.missing_packs > 0);
    stage.faults.set_down(true);
    assert!(store.upload_missing(ChunkStop::default()).await.unwrap_err().is_store_away());
    stage.faults.set_down(false);
    assert_eq!(memory(&store, &made).await.unwrap(), pages);
    let uploaded = store.upload_missing(ChunkStop::default()).await.unwrap();
    assert!(uploaded.packs >= 3 && uploaded.logs.files == 1, "{uploaded:?}");
    assert_eq!(store.upload_missing(ChunkStop::default()).await.unwrap(), Default::default());
    assert_eq!(store.object_usage().unwrap().packs.missing_packs, 0);
    assert_eq!(files_in(&store.root().join("chunks/packs")), 0, "a cache now");
    drop(store);

    // Without the store again: what is missing is known without reading a chunk.
    let alone = open(&stage.data("data"), None).await.unwrap();
    assert_eq!(alone.incomplete_images(&names).await.unwrap().len(), 2, "memory and state");
    drop(alone);
    let store = stage.plain("data").await;
    assert_eq!(store.incomplete_images(&names).await.unwrap(), []);
    stage.faults.set_down(true);
    assert!(store.fetch_all().await.unwrap_err().is_store_away());
    stage.faults.set_down(false);
    let fetched = store.fetch_all().await.unwrap();
    assert_eq!((fetched.missing_packs, fetched.files), (0, 1));
    assert_eq!(store.fetch_all().await.unwrap().files, 0, "nothing is fetched twice");
    drop(store);
    let alone = open(&stage.data("data"), None).await.unwrap();
    assert_eq!(alone.incomplete_images(&names).await.unwrap(), []);
    alone.drop_raw_rootfs().await.unwrap();
    assert_eq!(memory(&alone, &made).await.unwrap(), pages);
    assert_eq!(alone.logs().get(segment).await.unwrap(), b"a segment");
}

#[tokio::test]
async fn the_stores_id_is_taken_once_and_replaced_only_when_that_is_asked_for() {
    let stage = Stage::new();
    let store = stage.plain("data").await;
    assert_eq!(object_store_id(&stage.objects).await.unwrap(), None);
    let (id, other) = (StoreId::new(), StoreId::new());
    for _ in 0..2 {
        store.put_object_store_id(id, false).await.unwrap();
        assert_eq!(object_store_id(&stage.objects).await.unwrap(), Some(id));
    }
    let refused = store.put_object_store_id(other, false).await.unwrap_err();
    assert!(
        matches!(refused, DataError::Conflict { .. }) && refused.to_string().contains(&id.to_string()),
        "{refused}"
    );
    assert_eq!(object_store_id(&stage.objects).await.unwrap(), Some(id));
    store.put_object_store_id(other, true).await.unwrap();
    assert_eq!(object_store_id(&stage.objects).await.unwrap(), Some(other));
    // Whatever else is there is no id, and replaced only so.
    let object = stage.data("objects").join("objects/store");
    for wrong in [&b"\xff\xfe"[..], b"", &[b'x'; 300]] {
        fs::write(&object, wrong).unwrap();
        assert!(matches!(object_store_id(&stage.objects).await, Err(DataError::Corrupt { .. })));
        assert!(store.put_object_store_id(id, false).await.is_err());
    }
    store.put_object_store_id(id, true).await.unwrap();
    assert_eq!(object_store_id(&stage.objects).await.unwrap(), Some(id));

    assert_eq!(attached_store(store.root()).unwrap(), None);
    for location in ["S3 bucket a at https://one", "S3 bucket b at https://two"] {
        store.put_attached_store(Some(location)).unwrap();
        assert_eq!(attached_store(store.root()).unwrap().as_deref(), Some(location));
    }
    for _ in 0..2 {
        store.put_attached_store(None).unwrap();
        assert_eq!(attached_store(store.root()).unwrap(), None);
    }
}

#[tokio::test]
async fn a_damaged_object_is_damage_and_no_answer_of_a_store_that_is_away() {
    let stage = Stage::new();
    let store = stage.plain("data").await;
    let made = publish(&store, &noise(10, MIB)).await.unwrap();
    drop(store);
    let packs = stage.data("objects").join("objects/packs");
    for pack in fs::read_dir(packs).unwrap() {
        let path = pack.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        // In the first chunk.
        bytes[100] ^= 1;
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
    }
    let cold = stage.plain("cold").await;
    let error = memory(&cold, &made).await.unwrap_err();
    assert!(matches!(error, DataError::Damaged { .. }) && !error.is_retryable(), "{error:?}");
    assert!(!cold.verify_images(&known(&[&made], &[])).await.unwrap().faults.is_empty());
}
