//! What the artifact store promises.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
};

use nullspace_data::{ArtifactStore, DataError};
use nullspace_types::{ArtifactId, KnownFiles};
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

/// Publishes an artifact with some content.
async fn publish(store: &ArtifactStore) -> String {
    let scratch = store.scratch().unwrap();
    let dir = scratch.path().join("snapshot");
    fs::create_dir_all(dir.join("disks")).unwrap();
    fs::write(dir.join("state"), b"state").unwrap();
    fs::write(dir.join("disks/root"), vec![1; 8192]).unwrap();
    store.publish_artifact(&dir, ArtifactId::new()).await.unwrap().folder
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
async fn a_published_artifact_is_whole_and_measured_without_its_holes() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let id = ArtifactId::new();
    let scratch = store.scratch().unwrap();
    let from = scratch.path().join("snapshot");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("state"), vec![7; 10_000]).unwrap();
    fs::File::create(from.join("memory")).unwrap().set_len(1 << 30).unwrap();
    let published = store.publish_artifact(&from, id).await.unwrap();
    assert!(published.folder.starts_with(&id.to_string()));
    let dir = store.artifact_dir(&published.folder).unwrap();
    assert!((10_000..1 << 20).contains(&published.stored_bytes), "{}", published.stored_bytes);
    assert_eq!(fs::read(dir.join("state")).unwrap(), vec![7; 10_000]);
    assert_eq!(fs::metadata(dir.join("memory")).unwrap().len(), 1 << 30);
    assert!(!from.exists());
    drop(scratch);
    assert!(dir.join("state").exists());
    let usage = store.usage().await.unwrap();
    assert!(usage.artifacts >= published.stored_bytes && usage.artifacts < 1 << 21, "{usage:?}");
}

#[tokio::test]
async fn attempts_that_publish_the_same_artifact_do_not_touch_each_others_files() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let id = ArtifactId::new();
    let mut folders = Vec::new();
    for attempt in ["first", "second"] {
        let scratch = store.scratch().unwrap();
        fs::write(scratch.path().join("state"), attempt).unwrap();
        folders.push(store.publish_artifact(scratch.path(), id).await.unwrap().folder);
    }
    let state = |index: usize| fs::read_to_string(store.artifact_dir(&folders[index]).unwrap().join("state"));
    assert_eq!((state(0).unwrap(), state(1).unwrap()), ("first".to_owned(), "second".to_owned()));
    store.remove_artifact(&folders[0]).await.unwrap();
    assert!(state(0).is_err());
    assert_eq!(state(1).unwrap(), "second");
}

#[tokio::test]
async fn only_files_and_folders_of_the_work_folder_are_published() {
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
        assert!(is_conflict(&store.publish_artifact(&from, ArtifactId::new()).await), "{}", from.display());
    }
    // A link inside would lead a later reader out of the folder.
    assert!(is_conflict(&store.publish_artifact(scratch.path(), ArtifactId::new()).await));
    assert!(names(&dir.path().join("data/artifacts")).is_empty());
    let missing = store.publish_artifact(&scratch.path().join("nothing"), ArtifactId::new()).await;
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
    let (kept, unknown) = (publish(&store).await, publish(&store).await);
    let lost = format!("{}.{KEY}", ArtifactId::new());
    let scratch = store.scratch().unwrap();
    let image = scratch.path().join("image");
    fs::write(&image, b"x").unwrap();
    let image = store.publish_rootfs(&image, KEY).await.unwrap();
    let (manifest, image) = (image.manifest, image.file);
    let lost_image = format!("{KEY}.{KEY}.ext4");
    let precious = dir.path().join("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("file"), b"x").unwrap();
    symlink(&precious, dir.path().join("artifacts/link")).unwrap();
    fs::write(dir.path().join("rootfs/stray"), b"x").unwrap();
    // The right name in the wrong folder is not known there.
    fs::create_dir(dir.path().join("rootfs").join(&kept)).unwrap();
    let known = KnownFiles {
        artifacts: [kept.clone(), lost.clone()].into(),
        // One is known by its chunks, too; of another only its file ever was, and it is gone.
        rootfs: [
            (image.clone(), None),
            (format!("{KEY}.{}.ext4", "0".repeat(32)), Some(manifest)),
            (lost_image.clone(), None),
        ]
        .into(),
    };
    let report = store.sweep(known).await.unwrap();
    let mut removed = vec![
        "artifacts/link".to_owned(),
        format!("artifacts/{unknown}"),
        format!("rootfs/{kept}"),
        "rootfs/stray".into(),
    ];
    removed.sort();
    assert_eq!(report.removed, removed);
    assert_eq!(report.missing, KnownFiles { artifacts: [lost].into(), rootfs: [(lost_image, None)].into() });
    assert_eq!(names(&dir.path().join("artifacts")), [kept.as_str()]);
    assert_eq!(names(&dir.path().join("rootfs")), [image]);
    assert!(precious.join("file").exists(), "a link was followed");
    let again = store.sweep(KnownFiles { artifacts: [kept].into(), ..KnownFiles::default() }).await.unwrap();
    assert_eq!(again.removed.len(), 1);
}

#[tokio::test]
async fn removing_is_complete_and_repeatable() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let (one, two) = (publish(&store).await, publish(&store).await);
    store.remove_artifact(&one).await.unwrap();
    store.remove_artifact(&one).await.unwrap();
    assert_eq!(names(&dir.path().join("artifacts")), [two]);
    assert!(names(&dir.path().join("work")).is_empty());
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
