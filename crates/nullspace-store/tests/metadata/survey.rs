//! What is lost or another database's is found before anything is removed.

use std::{fs, path::Path};

use nullspace_store::{
    ArtifactId, ArtifactStore, BlobId, KnownFiles, NewBuild, Survey, stored_without_database, survey,
};
use tempfile::TempDir;

use crate::fixture::{Fixture, at, new_build, rootfs};

/// A template whose files are there, beside its database.
async fn stored(f: &Fixture, files: &ArtifactStore) -> String {
    let caller = f.tenant("acme").await;
    f.ready(&caller, "web", &["default"], at(1)).await;
    let folder = f.store.known_files().await.unwrap().artifacts.into_iter().next().unwrap();
    fs::create_dir(files.root().join("artifacts").join(&folder)).unwrap();
    fs::write(files.root().join("rootfs").join(rootfs("a").file), "image").unwrap();
    let blob = BlobId::new(&"a".repeat(64), 1).unwrap();
    f.store.put_blob(&caller, &blob, 100, at(1)).await.unwrap();
    let blobs = files.root().join("blobs").join(caller.tenant.to_string());
    fs::create_dir(&blobs).unwrap();
    fs::write(blobs.join(blob.sha256()), "x").unwrap();
    folder
}

/// Every name under the folder.
fn all(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        found.push(path.display().to_string());
        if path.is_dir() {
            found.extend(all(&path));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_volume_that_is_not_mounted_is_no_reason_to_forget() {
    let f = Fixture::new().await;
    let dir = TempDir::new().unwrap();
    let files = ArtifactStore::open(dir.path()).unwrap();
    assert!(survey(&files, f.store.as_ref()).await.unwrap().is_clean(), "nothing is stored yet");
    stored(&f, &files).await;
    assert!(survey(&files, f.store.as_ref()).await.unwrap().is_clean());
    for (folder, what) in [("artifacts", "1 snapshots"), ("rootfs", "1 root images"), ("blobs", "1 uploaded files")] {
        let (mounted, elsewhere) = (dir.path().join(folder), dir.path().join("elsewhere"));
        fs::rename(&mounted, &elsewhere).unwrap();
        fs::create_dir(&mounted).unwrap();
        let known = f.store.known_files().await.unwrap();
        let found = survey(&files, f.store.as_ref()).await.unwrap();
        let refusal = found.refusal().unwrap();
        assert!(refusal.contains(&format!("the database names {what}, and none of them is in")), "{refusal}");
        assert!(refusal.contains("accept-loss"), "{refusal}");
        assert_eq!(f.store.known_files().await.unwrap(), known);
        fs::remove_dir(&mounted).unwrap();
        fs::rename(&elsewhere, &mounted).unwrap();
        assert!(survey(&files, f.store.as_ref()).await.unwrap().is_clean(), "mounted again, all is well");
    }
}

#[tokio::test]
async fn one_of_many_that_is_lost_is_named_and_stops_nothing() {
    let f = Fixture::new().await;
    let dir = TempDir::new().unwrap();
    let files = ArtifactStore::open(dir.path()).unwrap();
    stored(&f, &files).await;
    let caller = f.tenant("acme").await;
    f.ready(&caller, "lost", &["default"], at(2)).await;
    let found = survey(&files, f.store.as_ref()).await.unwrap();
    assert_eq!(found.refusal(), None);
    assert_eq!((found.lost.artifacts.len(), found.lost.rootfs.len(), found.lost_blobs.len()), (1, 0, 0));
    // What the operator then does.
    f.store.forget_lost(&found.lost, at(3)).await.unwrap();
    assert!(survey(&files, f.store.as_ref()).await.unwrap().is_clean());
}

#[tokio::test]
async fn what_another_database_names_is_not_taken_for_the_leftovers_of_a_crash() {
    let f = Fixture::new().await;
    let dir = TempDir::new().unwrap();
    let files = ArtifactStore::open(dir.path()).unwrap();
    let folder = stored(&f, &files).await;
    // A crash after publishing: a build was to make it.
    let caller = f.tenant("acme").await;
    let unnamed = ArtifactId::new();
    f.accept_with(&caller, NewBuild { artifact_id: unnamed, ..new_build("web", &["default"]) }).await;
    let left = format!("{unnamed}.{}", "b".repeat(32));
    fs::create_dir(dir.path().join("artifacts").join(&left)).unwrap();
    assert!(survey(&files, f.store.as_ref()).await.unwrap().is_clean());
    assert_eq!(files.sweep(f.store.known_files().await.unwrap()).await.unwrap().removed, [format!("artifacts/{left}")]);

    // The same folders beside a new, empty database.
    let before = all(dir.path());
    let another = Fixture::new().await;
    let found = survey(&files, another.store.as_ref()).await.unwrap();
    assert_eq!(found.lost, KnownFiles::default());
    let tenant = format!("blobs/{}", caller.tenant);
    assert_eq!(found.foreign, [format!("artifacts/{folder}"), tenant].into());
    let refusal = found.refusal().unwrap();
    assert!(refusal.contains("2 folders or files") && refusal.contains("another database"), "{refusal}");
    assert_eq!(all(dir.path()), before, "a survey changes nothing");
    // Only what a survey names can be removed so.
    for name in ["nullspace.db", "artifacts/..", "chunks/packs", "/etc/passwd", "blobs/../host"] {
        assert!(files.remove_foreign(&[name.to_owned()].into()).await.is_err(), "{name}");
    }
    files.remove_foreign(&found.foreign).await.unwrap();
    assert_eq!(survey(&files, another.store.as_ref()).await.unwrap(), Survey::default());
}

#[test]
fn files_without_a_database_are_counted() {
    let dir = TempDir::new().unwrap();
    assert!(stored_without_database(&dir.path().join("new")).unwrap().is_empty());
    let files = ArtifactStore::open(dir.path()).unwrap();
    assert!(stored_without_database(dir.path()).unwrap().is_empty(), "empty folders are nothing");
    fs::create_dir(files.root().join("artifacts/one")).unwrap();
    fs::write(files.root().join("chunks/packs/p"), "x").unwrap();
    assert_eq!(stored_without_database(dir.path()).unwrap(), ["artifacts/ (1)", "chunks/packs/ (1)"]);
}
