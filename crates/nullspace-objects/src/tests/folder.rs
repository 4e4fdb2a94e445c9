//! What only a folder has: files, their durability and what other programs put there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bytes::Bytes;
use futures::StreamExt;

use super::conformance::{listed, suite};
use super::{content, emptied, file, name};
use crate::{Error, MOST_OBJECT_BYTES, Objects, PART_BYTES, PARTS_OF_A_CALL, Stop};

#[tokio::test]
async fn conforms() {
    let dir = tempfile::tempdir().unwrap();
    suite(&Objects::folder(&dir.path().join("new/store")).unwrap()).await;
    emptied(&dir.path().join("new/store/work")).await;
    let folders: Vec<_> = fs::read_dir(dir.path().join("new/store/objects")).unwrap().collect();
    assert!(folders.is_empty(), "folders of deleted objects remain: {folders:?}");
}

#[tokio::test]
async fn what_others_put_into_the_folder_is_no_object() {
    let dir = tempfile::tempdir().unwrap();
    let store = Objects::folder(dir.path()).unwrap();
    store.put(&name("a/b"), Bytes::from_static(b"x")).await.unwrap();
    let objects = dir.path().join("objects");
    fs::write(objects.join("Big Letters"), "x").unwrap();
    fs::create_dir(objects.join("LOST+FOUND")).unwrap();
    fs::write(objects.join("LOST+FOUND/x"), "x").unwrap();
    fs::write(dir.path().join("secret"), "x").unwrap();
    std::os::unix::fs::symlink(dir.path().join("secret"), objects.join("link")).unwrap();
    assert_eq!(listed(&store, "").await.keys().collect::<Vec<_>>(), ["a/b"]);
    assert!(store.get(&name("link"), 10).await.is_err(), "links are not followed");
    assert_eq!(store.size(&name("link")).await.unwrap(), None);
    assert_eq!(store.size(&name("a")).await.unwrap(), None, "a folder is no object");
    assert!(matches!(store.get(&name("a"), 10).await, Err(Error::NotFound { .. })));
}

#[tokio::test]
async fn an_object_is_no_folder_of_objects() {
    let dir = tempfile::tempdir().unwrap();
    let store = Objects::folder(dir.path()).unwrap();
    store.put(&name("a/b"), Bytes::from_static(b"x")).await.unwrap();
    for wrong in ["a", "a/b/c", "a/b/c/d"] {
        let outcome = store.put(&name(wrong), Bytes::from_static(b"y")).await;
        assert!(matches!(outcome, Err(Error::Invalid(_))), "{wrong}: {outcome:?}");
    }
    assert_eq!(listed(&store, "").await.len(), 1);
    store.delete(&name("a")).await.unwrap();
    assert_eq!(store.get(&name("a/b"), 10).await.unwrap(), "x");
}

/// A killed process leaves drafts; the next start removes them, and not those of a process that lives.
#[tokio::test]
async fn drafts_of_dead_processes_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Objects::folder(dir.path()).unwrap();
    let work = dir.path().join("work");
    let count = |work: &Path| fs::read_dir(work).unwrap().count();
    let upload = store.inner.backend.begin(&name("a")).await.unwrap();
    upload.part(0, Bytes::from_static(b"living")).await.unwrap();
    fs::write(work.join("0123456789abcdef"), "of a killed process").unwrap();
    assert_eq!(count(&work), 2);
    let second = Objects::folder(dir.path()).unwrap();
    assert_eq!(count(&work), 1);
    upload.complete().await.unwrap();
    assert_eq!(second.get(&name("a"), 10).await.unwrap(), "living");
    assert_eq!(count(&work), 0);
}

/// Deletions that empty a folder and puts into it at the same time: no put fails, and none is lost.
#[tokio::test(flavor = "multi_thread")]
async fn folders_come_and_go_under_puts() {
    let dir = tempfile::tempdir().unwrap();
    let store = Objects::folder(dir.path()).unwrap();
    let one = |task: u32| {
        let store = store.clone();
        async move {
            for i in 0..60 {
                let name = name(&format!("x/y/{task}-{i}"));
                store.put(&name, Bytes::from_static(b"x")).await.unwrap();
                assert_eq!(store.size(&name).await.unwrap(), Some(1));
                store.delete(&name).await.unwrap();
            }
        }
    };
    let tasks: Vec<_> = (0..4).map(|task| tokio::spawn(one(task))).collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(listed(&store, "").await.len(), 0);
}

#[tokio::test]
async fn memory_of_an_upload_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = Objects::folder(dir.path()).unwrap();
    let long = tempfile::tempfile().unwrap();
    long.set_len(256 << 20).unwrap();
    assert_eq!(store.put_file(&name("long"), long, &Stop::new()).await.unwrap(), 256 << 20);
    let parts = store.parts_in_memory();
    assert_eq!((parts.now, parts.most), (0, PARTS_OF_A_CALL), "of {} parts", (256 << 20) / PART_BYTES);

    let endless = tempfile::tempfile().unwrap();
    if endless.set_len(MOST_OBJECT_BYTES + 1).is_ok() {
        let outcome = store.put_file(&name("endless"), endless, &Stop::new()).await;
        assert!(matches!(outcome, Err(Error::Invalid(_))), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_list_may_be_dropped_early() {
    let dir = tempfile::tempdir().unwrap();
    let store = Objects::folder(dir.path()).unwrap();
    let objects = dir.path().join("objects");
    for i in 0..1000 {
        fs::write(objects.join(format!("{i}")), "x").unwrap();
    }
    let first: Vec<_> = store.list("").take(3).collect().await;
    assert_eq!(first.len(), 3);
}

#[tokio::test]
async fn errors_say_what_and_where() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "x").unwrap();
    let error = Objects::folder(&path).unwrap_err();
    assert!(matches!(&error, Error::Io { .. }) && error.to_string().contains("file"), "{error:?}");
    assert!(!error.is_retryable());

    let store = Objects::folder(&dir.path().join("store")).unwrap();
    store.put(&name("a"), Bytes::from_static(b"x")).await.unwrap();
    let mode = fs::metadata(dir.path().join("store/objects/a")).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "no other user reads objects");
    fs::remove_dir(dir.path().join("store/work")).unwrap();
    let error = store.put(&name("b"), Bytes::from_static(b"x")).await.unwrap_err();
    assert!(matches!(&error, Error::Io { .. }) && error.to_string().contains("work"), "{error:?}");
    assert!(matches!(store.put_file(&name("b"), file(&content(1, 10)), &Stop::new()).await, Err(Error::Io { .. })));
}
