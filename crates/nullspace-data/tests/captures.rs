//! What the artifact store promises for captures that are not stored as chunks yet.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;

use nullspace_data::{ArtifactStore, CaptureState, ChunkStop, DataError};
use nullspace_types::{ArtifactId, KnownFiles, Streams};
use tempfile::TempDir;

/// Keeps a capture with this memory.
async fn capture(store: &ArtifactStore, memory: &[u8]) -> String {
    let scratch = store.scratch().unwrap();
    let dir = scratch.path().join("snapshot");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("state"), b"state").unwrap();
    fs::write(dir.join("memory"), memory).unwrap();
    let name = ArtifactStore::new_artifact_name(ArtifactId::new());
    store.keep_capture(&dir, &name).await.unwrap();
    assert!(!dir.exists());
    name
}

async fn memory(store: &ArtifactStore, name: &str, streams: Option<&Streams>) -> nullspace_data::Result<Vec<u8>> {
    let pin = store.open_snapshot(name, streams).await?;
    assert_eq!(fs::read(pin.path().join("state")).unwrap(), b"state");
    assert_eq!(fs::read_dir(pin.path()).unwrap().count(), 2, "only a machine's files");
    Ok(fs::read(pin.path().join("memory")).unwrap())
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

/// What a crash of the host makes of a capture: it was written in another boot.
fn reboot(store: &ArtifactStore, name: &str) {
    let written = store.root().join("captures").join(name).join(".written");
    assert!(written.is_file());
    fs::write(written, "00000000-0000-0000-0000-000000000000\n").unwrap();
}

fn is_damaged<T>(result: &nullspace_data::Result<T>) -> bool {
    matches!(result, Err(DataError::Damaged { .. }))
}

#[tokio::test]
async fn a_capture_is_used_as_it_is_and_then_from_its_chunks() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let bytes = vec![7; 100_000];
    let name = capture(&store, &bytes).await;
    assert_eq!(store.capture_state(&name).await.unwrap(), CaptureState::Whole);
    assert!(store.capture_bytes(&name).await.unwrap() >= 100_000);
    assert!(store.has_snapshot(&name, None).unwrap());
    assert_eq!(store.image_stats().manifests, 0, "nothing is stored yet");
    assert_eq!(memory(&store, &name, None).await.unwrap(), bytes);
    let used = store.open_snapshot(&name, None).await.unwrap();

    let first = store.publish_capture(&name, Vec::new(), ChunkStop::default()).await.unwrap();
    assert_eq!(first.folder, name);
    assert!(first.stored_bytes > 0);
    // The row was not written: once more, at no cost.
    let again = store.publish_capture(&name, Vec::new(), ChunkStop::default()).await.unwrap();
    assert_eq!(again.streams, first.streams);
    store.artifact_named(&name);
    store.drop_capture(&name).await.unwrap();
    store.drop_capture(&name).await.unwrap();
    assert!(is_empty(&dir.path().join("captures")));
    assert_eq!(fs::read(used.path().join("memory")).unwrap(), bytes, "a machine may use it");
    assert_eq!(memory(&store, &name, Some(&first.streams)).await.unwrap(), bytes);
    // With a row that was read before.
    assert_eq!(memory(&store, &name, None).await.unwrap(), bytes);
    drop(used);
    assert!(is_empty(&dir.path().join("work")));
    // Once nothing names it.
    store.remove_artifact(&name).await.unwrap();
    assert!(is_damaged(&memory(&store, &name, None).await));
}

#[tokio::test]
async fn a_publication_that_is_stopped_or_not_wanted_leaves_the_capture() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let name = capture(&store, &[3; 9000]).await;
    let stop = ChunkStop::default();
    stop.stop();
    assert!(store.publish_capture(&name, Vec::new(), stop).await.is_err());
    assert_eq!(memory(&store, &name, None).await.unwrap(), [3; 9000]);
    assert!(is_empty(&dir.path().join("work")));
    // Its sandbox was resumed meanwhile: the chunks go, and who starts from it at this moment finds the capture.
    store.publish_capture(&name, Vec::new(), ChunkStop::default()).await.unwrap();
    store.artifact_named(&name);
    let rows = KnownFiles { artifacts: [(name.clone(), None)].into(), ..KnownFiles::default() };
    store.collect_images(async { Ok::<_, DataError>(rows) }).await.unwrap();
    assert_eq!(store.image_stats().manifests, 0);
    assert_eq!(memory(&store, &name, None).await.unwrap(), [3; 9000]);
    store.remove_artifact(&name).await.unwrap();
    assert!(is_empty(&dir.path().join("captures")));
    assert_eq!(store.capture_state(&name).await.unwrap(), CaptureState::Missing);
    assert!(is_damaged(&store.publish_capture(&name, Vec::new(), ChunkStop::default()).await));
}

#[tokio::test]
async fn a_killed_service_finds_its_captures_and_a_crashed_host_those_that_were_flushed() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let (kept, unknown, stored) =
        (capture(&store, b"kept").await, capture(&store, b"unknown").await, capture(&store, b"stored").await);
    let published = store.publish_capture(&stored, Vec::new(), ChunkStop::default()).await.unwrap();
    let rows = KnownFiles {
        artifacts: [(kept.clone(), None), (stored.clone(), Some(published.streams.clone()))].into(),
        ..KnownFiles::default()
    };
    drop(store);

    let store = ArtifactStore::open(dir.path()).unwrap();
    let there = store.inventory().await.unwrap();
    assert_eq!(there.captures, [kept.clone(), unknown.clone(), stored.clone()].into());
    assert!(there.has_artifact(&kept, None) && there.artifacts.is_empty());
    let report = store.sweep(rows.clone()).await.unwrap();
    let mut swept = [format!("captures/{unknown}"), format!("captures/{stored}")];
    swept.sort();
    assert_eq!((report.removed, report.missing), (swept.to_vec(), KnownFiles::default()));
    assert_eq!(memory(&store, &kept, None).await.unwrap(), b"kept");
    assert_eq!(memory(&store, &stored, Some(&published.streams)).await.unwrap(), b"stored");

    let flushed = capture(&store, b"flushed").await;
    store.flush_capture(&flushed).await.unwrap();
    reboot(&store, &kept);
    reboot(&store, &flushed);
    assert_eq!(store.capture_state(&kept).await.unwrap(), CaptureState::Torn);
    // A flush of what is torn mends nothing.
    store.flush_capture(&kept).await.unwrap();
    assert_eq!(store.capture_state(&kept).await.unwrap(), CaptureState::Torn);
    assert!(is_damaged(&memory(&store, &kept, None).await));
    assert!(is_damaged(&store.publish_capture(&kept, Vec::new(), ChunkStop::default()).await));
    assert_eq!(memory(&store, &flushed, None).await.unwrap(), b"flushed");
    store.publish_capture(&flushed, Vec::new(), ChunkStop::default()).await.unwrap();
    // It stays until its row is over.
    let report = store.sweep(rows).await.unwrap();
    assert_eq!(report.removed, [format!("captures/{flushed}")]);
}

#[tokio::test]
async fn only_a_machines_files_are_captured_and_names_lead_nowhere_else() {
    let dir = TempDir::new().unwrap();
    let store = ArtifactStore::open(dir.path()).unwrap();
    let name = ArtifactStore::new_artifact_name(ArtifactId::new());
    let scratch = store.scratch().unwrap();
    let made = scratch.path().join("snapshot");
    fs::create_dir_all(made.join("folder")).unwrap();
    assert!(matches!(store.keep_capture(&made, &name).await, Err(DataError::Conflict { .. })));
    fs::remove_dir(made.join("folder")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", made.join("memory")).unwrap();
    assert!(matches!(store.keep_capture(&made, &name).await, Err(DataError::Conflict { .. })));
    fs::remove_file(made.join("memory")).unwrap();
    fs::write(made.join(".written"), "").unwrap();
    assert!(matches!(store.keep_capture(&made, &name).await, Err(DataError::Conflict { .. })));
    fs::remove_file(made.join(".written")).unwrap();
    for bad in ["..", "../work", "no artifact", ""] {
        assert!(matches!(store.keep_capture(&made, bad).await, Err(DataError::Corrupt { .. })), "{bad}");
        assert!(store.drop_capture(bad).await.is_err() && store.capture_state(bad).await.is_err());
    }
    assert!(matches!(store.keep_capture(dir.path(), &name).await, Err(DataError::Conflict { .. })));
    store.keep_capture(&made, &name).await.unwrap();
}
