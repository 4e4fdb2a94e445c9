//! What the artifact store promises.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use nullspace_data::{ArtifactStore, Collected, DataError, PublishedArtifact};
use nullspace_types::{ArtifactId, KnownFiles, Streams};
use rand::{RngCore, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

const KEY: &str = "00112233445566778899aabbccddeeff";

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn is_conflict<T>(result: &Result<T, DataError>) -> bool {
    matches!(result, Err(DataError::Conflict { .. }))
}

/// Publishes an artifact with this memory.
async fn publish(store: &ArtifactStore, memory: &[u8], similar: &[&PublishedArtifact]) -> PublishedArtifact {
    let scratch = store.scratch().unwrap();
    let dir = scratch.path().join("snapshot");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("state"), b"state").unwrap();
    fs::write(dir.join("memory"), memory).unwrap();
    let similar = similar.iter().map(|published| published.streams.clone()).collect();
    store.publish_artifact(&dir, ArtifactId::new(), similar).await.unwrap()
}

/// An artifact as an older version left it: a folder of files.
fn old_artifact(store: &ArtifactStore) -> String {
    let folder = ArtifactStore::new_artifact_name(ArtifactId::new());
    let dir = store.root().join("artifacts").join(&folder);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("state"), b"old state").unwrap();
    folder
}

fn known(artifacts: &[&PublishedArtifact]) -> KnownFiles {
    let row = |published: &&PublishedArtifact| (published.folder.clone(), Some(published.streams.clone()));
    KnownFiles { artifacts: artifacts.iter().map(row).collect(), ..KnownFiles::default() }
}

async fn collect(store: &ArtifactStore, known: KnownFiles) -> Collected {
    store.collect_images(async { Ok::<_, DataError>(known) }).await.unwrap()
}

async fn memory(store: &ArtifactStore, published: &PublishedArtifact) -> nullspace_data::Result<Vec<u8>> {
    let pin = store.open_snapshot(&published.folder, Some(&published.streams)).await?;
    assert_eq!(fs::read(pin.path().join("state")).unwrap(), b"state");
    Ok(fs::read(pin.path().join("memory")).unwrap())
}

/// Random bytes, different for each `seed`.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    StdRng::seed_from_u64(seed).fill_bytes(&mut noise);
    noise
}

#[tokio::test]
async fn one_process_at_a_time_uses_a_data_directory() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let second = ArtifactStore::open(dir.path());
    assert!(matches!(second, Err(DataError::DataDirInUse { .. })));
    // Scratch keeps the lock although the store's own handle is gone.
    let scratch = store.scratch().unwrap();
    drop(store);
    assert!(ArtifactStore::open(dir.path()).is_err());
    drop(scratch);
    ArtifactStore::open(dir.path()).unwrap();
}

#[tokio::test]
async fn the_data_directory_is_its_owners_only() {
    let dir = TempDir::new().unwrap();
    let root = dir.path().join("deep/data");
    let store = ArtifactStore::open(&root).unwrap();
    let scratch = store.scratch().unwrap();
    for path in [
        &root,
        &root.join("work"),
        &root.join("artifacts"),
        &root.join("snapshots"),
        &root.join("rootfs"),
        &root.join("chunks/packs"),
        scratch.path(),
    ] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o077, 0, "{}", path.display());
    }
}

#[tokio::test]
async fn scratch_goes_with_its_owner_or_with_the_next_start() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let scratch = store.scratch().unwrap();
    fs::create_dir(scratch.path().join("a")).unwrap();
    fs::write(scratch.path().join("a/b"), b"x").unwrap();
    assert_ne!(scratch.path(), store.scratch().unwrap().path());
    drop(scratch);
    assert!(names(&dir.path().join("work")).is_empty());
    // A crash: nobody dropped these.
    let left = dir.path().join("work/left-over");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("memory"), b"x").unwrap();
    symlink("/etc", dir.path().join("work/link")).unwrap();
    drop(store);
    let _store = ArtifactStore::open(dir.path()).unwrap();
    assert!(names(&dir.path().join("work")).is_empty());
    assert!(Path::new("/etc/passwd").exists());
}

#[tokio::test]
async fn a_published_artifact_is_whole_and_costs_what_is_new_in_it() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let id = ArtifactId::new();
    let scratch = store.scratch().unwrap();
    let from = scratch.path().join("snapshot");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("state"), noise(1, 10_000)).unwrap();
    fs::File::create(from.join("memory")).unwrap().set_len(1 << 30).unwrap();
    let published = store.publish_artifact(&from, id, Vec::new()).await.unwrap();
    assert!(published.folder.starts_with(&id.to_string()));
    assert!((10_000..20_000).contains(&published.stored_bytes), "{}", published.stored_bytes);
    assert!(!from.exists());
    drop(scratch);
    let pin = store.open_snapshot(&published.folder, Some(&published.streams)).await.unwrap();
    assert_eq!(fs::read(pin.path().join("state")).unwrap(), noise(1, 10_000));
    assert_eq!(fs::metadata(pin.path().join("memory")).unwrap().len(), 1 << 30);
    assert_eq!(store.cache_usage().written_back, 0, "what was made here is used as it is");
    let usage = store.usage().await.unwrap();
    assert!(usage.chunks >= published.stored_bytes && usage.rootfs < 1 << 20, "{usage:?}");
}

#[tokio::test]
async fn a_snapshot_is_made_again_from_its_chunks_once_for_all() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let bytes = noise(2, 300_000);
    let published = publish(&store, &bytes, &[]).await;
    store.drop_raw_rootfs().await.unwrap();
    assert!(names(&dir.path().join("snapshots")).is_empty());
    let opened = futures(4, || memory(&store, &published)).await;
    assert!(opened.into_iter().all(|found| found.unwrap() == bytes));
    assert_eq!(store.cache_usage().written_back, 1);
    // Used, it stays; unused, it makes room.
    let pin = store.open_snapshot(&published.folder, Some(&published.streams)).await.unwrap();
    store.drop_raw_rootfs().await.unwrap();
    assert!(pin.path().join("memory").exists());
    drop(pin);
    store.drop_raw_rootfs().await.unwrap();
    assert!(names(&dir.path().join("snapshots")).is_empty());
    // Something else removed the files of the cache.
    assert_eq!(memory(&store, &published).await.unwrap(), bytes);
    fs::remove_dir_all(dir.path().join("snapshots").join(&names(&dir.path().join("snapshots"))[0])).unwrap();
    assert_eq!(memory(&store, &published).await.unwrap(), bytes);
}

/// The results of `count` futures that run side by side.
async fn futures<T, F: Future<Output = T>>(count: usize, each: impl Fn() -> F) -> Vec<T> {
    let mut all: Vec<_> = (0..count).map(|_| Box::pin(each())).collect();
    let mut done: Vec<Option<T>> = (0..count).map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in all.iter_mut().zip(&mut done) {
            if done.is_none()
                && let std::task::Poll::Ready(result) = future.as_mut().poll(context)
            {
                *done = Some(result);
            }
        }
        if done.iter().all(Option::is_some) { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

#[tokio::test]
async fn pages_of_similar_snapshots_are_stored_once_and_outlive_them() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let bytes = noise(3, 1 << 20);
    let first = publish(&store, &bytes, &[]).await;
    // The same pages elsewhere, and one more.
    let moved = [&bytes[512 << 10..], &noise(4, 4096)[..], &bytes[..512 << 10]].concat();
    let second = publish(&store, &moved, &[&first]).await;
    assert!(second.stored_bytes < 64 << 10, "{}", second.stored_bytes);
    // One that is the same altogether is the same files.
    let third = publish(&store, &moved, &[&first]).await;
    assert_eq!(third.streams, second.streams);
    assert_ne!(third.folder, second.folder);
    assert_eq!(names(&dir.path().join("snapshots")).len(), 2);

    for published in [&first, &second, &third] {
        store.artifact_named(&published.folder);
    }
    store.remove_artifact(&first.folder).await.unwrap();
    collect(&store, known(&[&second])).await;
    assert_eq!(names(&dir.path().join("snapshots")).len(), 1);
    store.drop_raw_rootfs().await.unwrap();
    assert_eq!(memory(&store, &second).await.unwrap(), moved);
    assert!(matches!(memory(&store, &first).await, Err(DataError::Damaged { .. })));
    assert!(!store.has_snapshot(&first.folder, Some(&first.streams)).unwrap());
    assert_eq!(store.verify_images(&known(&[&second])).await.unwrap().faults, []);
}

#[tokio::test]
async fn what_no_row_names_yet_is_kept_until_it_is_named_or_removed() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let (named, removed) =
        (publish(&store, &noise(5, 100_000), &[]).await, publish(&store, &noise(6, 100_000), &[]).await);
    assert_eq!(collect(&store, KnownFiles::default()).await.manifests, 0);
    assert_eq!(names(&dir.path().join("snapshots")).len(), 2);
    store.artifact_named(&named.folder);
    store.remove_artifact(&removed.folder).await.unwrap();
    store.remove_artifact(&removed.folder).await.unwrap();
    // Of the other only the state is wanted any more, which both have.
    assert_eq!(collect(&store, known(&[&named])).await.manifests, 1);
    assert_eq!(names(&dir.path().join("snapshots")).len(), 1);
    assert!(names(&dir.path().join("work")).is_empty());
    collect(&store, KnownFiles::default()).await;
    assert_eq!(store.image_stats().manifests, 0);
    assert!(names(&dir.path().join("snapshots")).is_empty());
}

#[tokio::test]
async fn a_snapshot_of_an_older_version_is_used_as_it_is_and_then_stored() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let folder = old_artifact(&store);
    assert!(store.has_snapshot(&folder, None).unwrap());
    let pin = store.open_snapshot(&folder, None).await.unwrap();
    assert_eq!(fs::read(pin.path().join("state")).unwrap(), b"old state");
    let streams = store.adopt_artifact(&folder).await.unwrap();
    assert!(pin.path().exists(), "it may be in use");
    let pin = store.open_snapshot(&folder, Some(&streams)).await.unwrap();
    assert!(pin.path().starts_with(dir.path().join("snapshots")));
    assert_eq!(fs::read(pin.path().join("state")).unwrap(), b"old state");
    drop(pin);
    // The next start removes the folder, and keeps what is known by its chunks.
    let row = KnownFiles { artifacts: [(folder.clone(), Some(streams))].into(), ..KnownFiles::default() };
    let report = store.sweep(row.clone()).await.unwrap();
    assert_eq!((report.removed, report.missing), (vec![format!("artifacts/{folder}")], KnownFiles::default()));
    // No file of such a folder becomes a path elsewhere.
    let bad = Streams([("../../lock".to_owned(), "0".repeat(64))].into());
    assert!(store.open_snapshot(&folder, Some(&bad)).await.is_err());
    let gone = old_artifact(&store);
    fs::remove_dir_all(store.artifact_dir(&gone).unwrap()).unwrap();
    assert!(matches!(store.open_snapshot(&gone, None).await, Err(DataError::Damaged { .. })));
}

#[tokio::test]
async fn only_files_of_the_work_folder_are_published() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(&dir.path().join("data")).unwrap();
    let outside = dir.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let work = dir.path().join("data/work");
    let scratch = store.scratch().unwrap();
    symlink(&outside, scratch.path().join("link")).unwrap();
    for from in [
        outside.clone(),
        work.clone(),
        work.join(".."),
        scratch.path().join("../../artifacts"),
        scratch.path().join("link"),
    ] {
        assert!(is_conflict(&store.publish_artifact(&from, ArtifactId::new(), Vec::new()).await), "{}", from.display());
    }
    // A link inside would lead a later reader out of the folder.
    assert!(is_conflict(&store.publish_artifact(scratch.path(), ArtifactId::new(), Vec::new()).await));
    let folders = store.scratch().unwrap();
    fs::create_dir(folders.path().join("disks")).unwrap();
    assert!(is_conflict(&store.publish_artifact(folders.path(), ArtifactId::new(), Vec::new()).await));
    assert!(names(&dir.path().join("data/snapshots")).is_empty());
    assert_eq!(store.image_stats().manifests, 0);
    let missing = store.publish_artifact(&scratch.path().join("nothing"), ArtifactId::new(), Vec::new()).await;
    assert!(matches!(missing, Err(DataError::Io { .. })));
    assert!(outside.exists());
}

#[tokio::test]
async fn a_root_image_is_published_as_often_as_it_is_made() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let made: Vec<_> = (0..4)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let scratch = store.scratch().unwrap();
                let file = scratch.path().join("image");
                fs::write(&file, vec![3; 4096]).unwrap();
                store.publish_rootfs(&file, KEY).await.unwrap()
            })
        })
        .collect();
    let mut files = Vec::new();
    for one in made {
        let published = one.await.unwrap();
        assert!(published.file.starts_with(KEY) && published.bytes == 4096);
        assert_eq!(fs::read(store.rootfs_path(&published.file).unwrap()).unwrap(), vec![3; 4096]);
        files.push(published.file);
    }
    files.sort();
    files.dedup();
    assert_eq!(files.len(), 4);
    // Removing one leaves the others.
    store.remove_rootfs(&files[0]).await.unwrap();
    store.remove_rootfs(&files[0]).await.unwrap();
    assert_eq!(names(&dir.path().join("rootfs")), files[1..]);
}

#[tokio::test]
async fn no_name_leads_out_of_the_artifacts_folder() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let id = ArtifactId::new();
    let good = format!("{id}.{KEY}");
    assert_eq!(store.artifact_dir(&good).unwrap(), store.root().join("artifacts").join(&good));
    for bad in [
        "",
        "..",
        "../lock",
        &id.to_string(),
        &format!("{id}."),
        &format!("{id}/.{KEY}"),
        &format!("../{good}"),
        &format!("{good}/"),
        &format!("{good}.x"),
        &format!("{id}.{}", KEY.to_uppercase()),
    ] {
        assert!(store.artifact_dir(bad).is_err(), "{bad:?}");
        assert!(store.remove_artifact(bad).await.is_err(), "{bad:?}");
    }
}

#[tokio::test]
async fn no_name_leads_out_of_the_root_images_folder() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let good = format!("{KEY}.{KEY}.ext4");
    assert_eq!(store.rootfs_path(&good).unwrap(), store.root().join("rootfs").join(&good));
    for bad in [
        "",
        ".",
        "..",
        "../lock",
        "/etc/passwd",
        KEY,
        &format!("{KEY}.ext4"),
        &format!("{KEY}.{KEY}.ext4/"),
        &format!("../{good}"),
        &format!("{good}\0"),
        &format!("{KEY}.{KEY}.ext4.x"),
        &format!("{}.{KEY}.ext4", KEY.to_uppercase()),
        &format!("..{KEY}.ext4"),
    ] {
        assert!(store.rootfs_path(bad).is_err(), "{bad:?}");
        assert!(store.remove_rootfs(bad).await.is_err(), "{bad:?}");
    }
    let scratch = store.scratch().unwrap();
    let file = scratch.path().join("image");
    fs::write(&file, b"x").unwrap();
    for bad in ["", "../x", "AA112233445566778899aabbccddeeff", &"a".repeat(129), "abc"] {
        assert!(is_conflict(&store.publish_rootfs(&file, bad).await), "{bad:?}");
    }
    symlink("/etc/passwd", scratch.path().join("link")).unwrap();
    assert!(is_conflict(&store.publish_rootfs(&scratch.path().join("link"), KEY).await));
    assert!(is_conflict(&store.publish_rootfs(scratch.path(), KEY).await));
}

#[tokio::test]
async fn the_sweep_removes_what_is_not_known_and_reports_what_is_lost() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let (kept, unknown) = (old_artifact(&store), old_artifact(&store));
    let stored = publish(&store, &noise(7, 50_000), &[]).await;
    fs::create_dir(dir.path().join("snapshots/stray")).unwrap();
    let lost = format!("{}.{KEY}", ArtifactId::new());
    let scratch = store.scratch().unwrap();
    let image = scratch.path().join("image");
    fs::write(&image, b"x").unwrap();
    let image = store.publish_rootfs(&image, KEY).await.unwrap();
    let (manifest, image) = (image.manifest, image.file);
    let lost_image = format!("{KEY}.{KEY}.ext4");
    let lost_streams = ArtifactStore::new_artifact_name(ArtifactId::new());
    let precious = dir.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), b"x").unwrap();
    symlink(&precious, dir.path().join("artifacts/link")).unwrap();
    fs::write(dir.path().join("rootfs/stray"), b"x").unwrap();
    // The right name in the wrong folder is not known there.
    fs::create_dir(dir.path().join("rootfs").join(&kept)).unwrap();
    let rows = KnownFiles {
        artifacts: [
            (kept.clone(), None),
            (lost.clone(), None),
            (stored.folder.clone(), Some(stored.streams.clone())),
            (lost_streams.clone(), Some(Streams([("state".to_owned(), "0".repeat(64))].into()))),
        ]
        .into(),
        // One is known by its chunks, too; of another only its file ever was, and it is gone.
        rootfs: [
            (image.clone(), None),
            (format!("{KEY}.{}.ext4", "0".repeat(32)), Some(manifest)),
            (lost_image.clone(), None),
        ]
        .into(),
    };
    let report = store.sweep(rows).await.unwrap();
    let mut removed = vec![
        "artifacts/link".to_owned(),
        format!("artifacts/{unknown}"),
        format!("rootfs/{kept}"),
        "rootfs/stray".into(),
        "snapshots/stray".into(),
    ];
    removed.sort();
    assert_eq!(report.removed, removed);
    let missing: Vec<&String> = report.missing.artifacts.keys().collect();
    let mut lost = [&lost, &lost_streams];
    lost.sort();
    assert_eq!((missing, report.missing.rootfs), (lost.to_vec(), [(lost_image, None)].into()));
    assert_eq!(memory(&store, &stored).await.unwrap(), noise(7, 50_000));
    assert_eq!(names(&dir.path().join("artifacts")), [kept.as_str()]);
    assert_eq!(names(&dir.path().join("rootfs")), [image]);
    assert!(precious.join("file").exists(), "a link was followed");
    let mut again = known(&[&stored]);
    again.artifacts.insert(kept, None);
    let again = store.sweep(again).await.unwrap();
    assert_eq!(again.removed.len(), 1);
}

#[tokio::test]
async fn work_that_would_not_fit_is_refused_before_it_begins() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    store.promise(1, 0).unwrap();
    for (needed, reserve) in [(u64::MAX, 0), (0, u64::MAX), (u64::MAX, u64::MAX)] {
        let refused = store.promise(needed, reserve);
        let Err(DataError::Io { source, context }) = refused else { panic!("{refused:?}") };
        assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
        assert!(context.contains("MiB free"), "{context}");
    }
}
