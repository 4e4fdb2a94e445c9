use std::time::SystemTime;

use bytes::Bytes;
use nullspace_objects::{Faults, Limits};
use tempfile::TempDir;

use super::*;
use crate::OpenSettings;

/// A blob of a new tenant with this content.
fn blob(content: &[u8]) -> Blob {
    blob_of(TenantId::new(), content)
}

fn blob_of(tenant: TenantId, content: &[u8]) -> Blob {
    Blob { tenant, id: BlobId::new(&hex::encode(Sha256::digest(content)), content.len() as u64).unwrap() }
}

async fn publish(store: &ArtifactStore, blob: &Blob, content: &[u8]) -> Result<()> {
    let scratch = store.scratch().unwrap();
    let path = scratch.path().join("upload");
    fs::write(&path, content).unwrap();
    store.publish_blob(&path, blob).await
}

async fn read(store: &ArtifactStore, blob: &Blob) -> Result<Option<Vec<u8>>> {
    let scratch = store.scratch().unwrap();
    Ok(store.blob_file(blob, &scratch).await?.map(|path| fs::read(path).unwrap()))
}

async fn has(store: &ArtifactStore, blob: &Blob) -> bool {
    let found = store.has_blobs(blob.tenant, std::slice::from_ref(&blob.id)).await;
    assert!(found.iter().all(|id| *id == blob.id));
    !found.is_empty()
}

/// A data folder with an object store that can fail.
struct Stage {
    dir: TempDir,
    faults: Faults,
    plain: Objects,
    objects: Objects,
}

impl Stage {
    fn new(faults: Faults) -> Stage {
        let dir = TempDir::new().unwrap();
        let pause = Duration::from_millis(1);
        let limits = Limits { attempts: 4, backoff: pause, longest_backoff: pause, ..Limits::default() };
        let plain = Objects::folder(&dir.path().join("objects")).unwrap().with_limits(limits);
        let objects = Objects::faulty(&plain, faults.clone());
        Stage { dir, faults, plain, objects }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Opens the data folder. Uploaded files get a quarter of the cache.
    async fn open(&self, cached_blobs: u64) -> ArtifactStore {
        let objects = ObjectSettings {
            objects: self.objects.clone(),
            cache_bytes: 4 * cached_blobs,
            grace: Duration::from_secs(60),
        };
        let (root, settings) = (self.data(), OpenSettings { objects: Some(objects), ..OpenSettings::default() });
        tokio::task::spawn_blocking(move || ArtifactStore::open_with(&root, settings)).await.unwrap().unwrap()
    }

    /// The names of all objects of uploaded files, and their content.
    async fn stored(&self) -> BTreeMap<String, Bytes> {
        let mut stored = BTreeMap::new();
        for (name, bytes, _) in listed(&self.plain, BLOBS).await.unwrap() {
            let object = ObjectName::parse(&format!("{BLOBS}/{name}")).unwrap();
            stored.insert(name, self.plain.get(&object, bytes).await.unwrap());
        }
        stored
    }

    /// Puts other bytes in an object's place.
    async fn spoil(&self, blob: &Blob, content: &'static [u8]) {
        let name = object_name(blob).unwrap();
        self.plain.delete(&name).await.unwrap();
        self.plain.put(&name, Bytes::from_static(content)).await.unwrap();
    }

    /// Makes all objects two days older.
    fn age(&self) {
        fn age(folder: &Path) {
            for path in read_dir(folder).unwrap() {
                if path.is_dir() {
                    age(&path);
                } else {
                    let file = File::options().write(true).open(&path).unwrap();
                    file.set_modified(SystemTime::now() - 2 * ORPHAN_AGE).unwrap();
                }
            }
        }
        age(&self.dir.path().join("objects/objects"));
    }
}

#[tokio::test]
async fn a_blob_is_published_whole_replaced_and_swept_when_nobody_knows_it() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let (kept, orphan, lost) = (blob(b"kept"), blob(b"orphan"), blob(b"lost"));
    for (blob, content) in [(&kept, &b"kept"[..]), (&orphan, b"orphan"), (&kept, b"kept")] {
        publish(&store, blob, content).await.unwrap();
        assert_eq!(read(&store, blob).await.unwrap().unwrap(), content);
    }
    assert_eq!(store.has_blobs(kept.tenant, &[kept.id.clone(), lost.id.clone()]).await, [kept.id.clone()].into());
    let missing = store.sweep_blobs(BTreeSet::from([kept.clone(), lost.clone()])).await.unwrap();
    assert_eq!(missing, BTreeSet::from([lost]));
    assert!(store.blob_path(&kept).exists() && !store.blob_path(&orphan).exists());
    store.remove_blob(&kept).await.unwrap();
    store.remove_blob(&kept).await.unwrap();
    assert_eq!(read(&store, &kept).await.unwrap(), None);
    assert_eq!(store.upload_missing_blobs().await.unwrap(), UploadedFiles::default(), "there is no store");
}

#[tokio::test]
async fn with_a_store_the_object_is_the_blob_and_the_file_here_is_a_cache() {
    let stage = Stage::new(Faults::new(1));
    let store = stage.open(1 << 20).await;
    let (one, empty) = (blob(b"one"), blob(b""));
    publish(&store, &one, b"one").await.unwrap();
    publish(&store, &one, b"one").await.unwrap();
    publish(&store, &empty, b"").await.unwrap();
    assert!(!store.blob_path(&one).exists());
    let name = |blob: &Blob| format!("{}/{}", blob.tenant, blob.id.sha256());
    let expected = [(name(&one), Bytes::from_static(b"one")), (name(&empty), Bytes::new())];
    assert_eq!(stage.stored().await, expected.into());
    // Another tenant has nothing of it.
    let stranger = blob(b"one");
    assert_eq!(read(&store, &stranger).await.unwrap(), None);
    // What was just uploaded needs no store.
    stage.faults.set_down(true);
    let scratch = store.scratch().unwrap();
    let path = store.blob_file(&one, &scratch).await.unwrap().unwrap();
    stage.faults.set_down(false);
    store.drop_cached_blobs().await.unwrap();
    assert_eq!(store.stored_blobs().unwrap().cache_bytes(), 0);
    assert_eq!(read(&store, &one).await.unwrap().unwrap(), b"one");
    // A path stays valid when the cache forgets the file, and the blob is removed.
    store.remove_blob(&one).await.unwrap();
    store.remove_blob(&one).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"one");
    assert_eq!((read(&store, &one).await.unwrap(), stage.stored().await.len()), (None, 1));
    assert!(!has(&store, &one).await);
    // Without its caches, the data folder reads everything from the store.
    drop((store, scratch));
    fs::remove_dir_all(stage.data()).unwrap();
    let store = stage.open(1 << 20).await;
    assert!(has(&store, &empty).await);
    assert_eq!(read(&store, &empty).await.unwrap(), Some(vec![]));
    assert!(store.inventory().await.unwrap().has_blob(&empty));
}

#[tokio::test]
async fn the_cache_is_bounded_and_larger_files_pass_it_by() {
    let stage = Stage::new(Faults::new(1));
    let store = stage.open(250_000).await;
    let contents: Vec<Vec<u8>> = (0..6_u8).map(|n| vec![n; 100_000]).chain([vec![9; 300_000]]).collect();
    let blobs: Vec<Blob> = contents.iter().map(|content| blob(content)).collect();
    for _ in 0..2 {
        for (blob, content) in blobs.iter().zip(&contents) {
            publish(&store, blob, content).await.unwrap();
            assert_eq!(read(&store, blob).await.unwrap().as_ref(), Some(content));
            let cached = fs::read_dir(stage.data().join(UPLOADS).join("files")).unwrap();
            let bytes: u64 = cached.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
            assert!(bytes <= 250_000, "{bytes}");
        }
    }
    // All at the same time: what is in use does not fill the cache.
    let scratch = store.scratch().unwrap();
    let paths = futures::future::try_join_all(blobs.iter().map(|blob| store.blob_file(blob, &scratch))).await.unwrap();
    for (path, content) in paths.iter().zip(&contents) {
        assert_eq!(&fs::read(path.as_ref().unwrap()).unwrap(), content);
    }
}

#[tokio::test]
async fn a_store_that_fails_now_and_then_is_asked_again_and_one_that_is_down_takes_nothing() {
    let stage = Stage::new(Faults::new(11).unavailable(15).lost_answers(15).cut_bodies(15));
    let store = stage.open(100_000).await;
    for number in 0..20_u8 {
        let content = vec![number; 50_000];
        let blob = blob(&content);
        // Whatever it was: an answer, or an error that the caller can repeat.
        for _ in 0..50 {
            match publish(&store, &blob, &content).await {
                Ok(()) => break,
                Err(error) => assert!(error.is_store_away(), "{error:?}"),
            }
        }
        store.stored_blobs().unwrap().cache.forget(&object_name(&blob).unwrap()).await.unwrap();
        let mut read = read(&store, &blob).await;
        for _ in 0..50 {
            match read {
                Err(error) => assert!(error.is_store_away(), "{error:?}"),
                Ok(found) => {
                    assert_eq!(found.unwrap(), content);
                    break;
                }
            }
            read = self::read(&store, &blob).await;
        }
    }
    assert!(stage.faults.faults() > 20);
    let down = blob(b"down");
    stage.faults.set_down(true);
    assert!(publish(&store, &down, b"down").await.unwrap_err().is_store_away());
    assert!(read(&store, &down).await.unwrap_err().is_store_away());
    assert!(has(&store, &down).await, "the build finds out");
    assert!(store.sweep_blobs(BTreeSet::new()).await.unwrap_err().is_store_away());
    assert!(store.inventory().await.unwrap_err().is_store_away());
    assert!(store.remove_blob(&down).await.unwrap_err().is_store_away());
}

#[tokio::test]
async fn damage_is_found_named_and_mended_by_the_next_upload() {
    for spoilt in [&b"two"[..], b"longer"] {
        let stage = Stage::new(Faults::new(1));
        let store = stage.open(1 << 20).await;
        let one = blob(b"one");
        publish(&store, &one, b"one").await.unwrap();
        stage.spoil(&one, spoilt).await;
        // In the cache it is right, and was looked at.
        assert_eq!(read(&store, &one).await.unwrap().unwrap(), b"one");
        store.stored_blobs().unwrap().cache.forget(&object_name(&one).unwrap()).await.unwrap();
        for _ in 0..2 {
            let said = read(&store, &one).await.unwrap_err().to_string();
            assert!(said.contains(&one.id.to_string()) && said.contains("upload it again"), "{said}");
        }
        assert_eq!(stage.stored().await.into_values().next().unwrap(), spoilt, "nothing is deleted before");
        assert!(!has(&store, &one).await, "it has to be uploaded");
        publish(&store, &one, b"one").await.unwrap();
        assert_eq!(read(&store, &one).await.unwrap().unwrap(), b"one");
        assert_eq!(stage.stored().await.into_values().next().unwrap(), b"one"[..]);
        assert!(has(&store, &one).await);
    }
}

#[tokio::test]
async fn an_object_without_a_row_is_swept_when_it_is_old_and_what_is_missing_is_told() {
    let stage = Stage::new(Faults::new(1));
    let store = stage.open(1 << 20).await;
    let (kept, orphan, lost) = (blob(b"kept"), blob(b"orphan"), blob(b"lost"));
    publish(&store, &kept, b"kept").await.unwrap();
    publish(&store, &orphan, b"orphan").await.unwrap();
    let known = || BTreeSet::from([kept.clone(), lost.clone()]);
    assert_eq!(store.sweep_blobs(known()).await.unwrap(), [lost.clone()].into());
    assert_eq!(stage.stored().await.len(), 2, "its row may be about to be written");
    stage.age();
    assert_eq!(store.sweep_blobs(known()).await.unwrap(), [lost.clone()].into());
    let left: Vec<String> = stage.stored().await.into_keys().collect();
    assert_eq!(left, [format!("{}/{}", kept.tenant, kept.id.sha256())]);
}

#[tokio::test]
async fn files_from_before_the_store_are_used_and_uploaded_after_failures_too() {
    let stage = Stage::new(Faults::new(3));
    let tenant = TenantId::new();
    let contents: Vec<Vec<u8>> = (0..8_u8).map(|n| vec![n; 1000 + usize::from(n)]).collect();
    let blobs: Vec<Blob> = contents.iter().map(|content| blob_of(tenant, content)).collect();
    let before = ArtifactStore::open(&stage.data()).unwrap();
    for (blob, content) in blobs.iter().zip(&contents) {
        publish(&before, blob, content).await.unwrap();
    }
    let damaged = blob_of(tenant, b"damaged");
    fs::write(before.blob_path(&damaged), "changed").unwrap();
    drop(before);
    let store = stage.open(3000).await;
    let scratch = store.scratch().unwrap();
    let path = store.blob_file(&blobs[0], &scratch).await.unwrap().unwrap();
    assert!(store.sweep_blobs(blobs.iter().chain([&damaged]).cloned().collect()).await.unwrap().is_empty());
    stage.faults.set_down(true);
    assert!(store.upload_missing_blobs().await.unwrap_err().is_store_away());
    stage.faults.set_down(false);
    let bytes = contents.iter().map(|content| content.len() as u64).sum();
    assert_eq!(store.upload_missing_blobs().await.unwrap(), UploadedFiles { files: 8, bytes });
    assert_eq!(store.upload_missing_blobs().await.unwrap(), UploadedFiles::default());
    let left = read_dir(&store.root().join(BLOBS).join(tenant.to_string())).unwrap();
    assert_eq!(left, [store.blob_path(&damaged)], "nothing damaged is uploaded");
    assert_eq!(fs::read(path).unwrap(), contents[0], "a path that was given stays valid");
    for (blob, content) in blobs.iter().zip(&contents) {
        assert_eq!(read(&store, blob).await.unwrap().as_ref(), Some(content));
    }
    assert_eq!(stage.stored().await.len(), 8);
}

#[tokio::test]
async fn objects_of_a_tenant_that_the_database_lacks_are_foreign_and_go_by_command_only() {
    let stage = Stage::new(Faults::new(1));
    let store = stage.open(1 << 20).await;
    let (own, foreign) = (blob(b"own"), blob(b"foreign"));
    publish(&store, &own, b"own").await.unwrap();
    publish(&store, &foreign, b"foreign").await.unwrap();
    let there = store.inventory().await.unwrap();
    assert!(there.has_blob(&own) && there.blobs.contains_key(&foreign.tenant.to_string()));
    store.remove_foreign(&[format!("{BLOBS}/{}", foreign.tenant)].into()).await.unwrap();
    let there = store.inventory().await.unwrap();
    assert!(there.has_blob(&own) && !there.has_blob(&foreign));
    assert_eq!(stage.stored().await.len(), 1);
}
