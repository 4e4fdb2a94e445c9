//! Stores that fail: what is stored is whole, and what cannot be stored is an error.

use std::time::Duration;

use bytes::Bytes;

use super::conformance::suite;
use super::{content, emptied, file, name, read};
use crate::{Counts, Error, Faults, Limits, Objects, PART_BYTES, Stop};

/// Many tries, and no waiting.
fn patient() -> Limits {
    let pause = Duration::from_millis(1);
    Limits { attempts: 40, backoff: pause, longest_backoff: pause, ..Limits::default() }
}

#[tokio::test]
async fn a_store_with_faults_conforms() {
    for seed in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::new(seed).unavailable(15).lost_answers(10).cut_bodies(25);
        let store = Objects::faulty(&Objects::folder(dir.path()).unwrap().with_limits(patient()), faults.clone());
        suite(&store).await;
        assert!(faults.faults() > faults.requests() / 10, "{faults:?}");
        emptied(&dir.path().join("work")).await;
    }
}

#[tokio::test]
async fn equal_seeds_give_equal_faults() {
    let mut counts = Vec::new();
    for seed in [7, 7, 8] {
        let dir = tempfile::tempdir().unwrap();
        let faults = Faults::new(seed).unavailable(30).cut_bodies(30).lost_answers(10);
        let store = Objects::faulty(&Objects::folder(dir.path()).unwrap().with_limits(patient()), faults.clone());
        for i in 0..20 {
            let name = name(&format!("{i}"));
            store.put(&name, Bytes::from(content(i, 5000))).await.unwrap();
            assert!(store.get(&name, 5000).await.unwrap() == content(i, 5000));
        }
        counts.push((faults.requests(), faults.faults()));
    }
    assert_eq!(counts[0], counts[1]);
    assert_ne!(counts[0], counts[2]);
}

/// A store that dies at any request of an upload: it has the whole object or none, and the caller knows of an error.
#[tokio::test]
async fn a_store_that_dies_has_the_whole_object_or_none() {
    let data = content(1, 3 * PART_BYTES + 17);
    let mut ended_well = false;
    for requests in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let plain = Objects::folder(dir.path()).unwrap();
        let few = Limits { attempts: 2, ..patient() };
        let store = Objects::faulty(&plain.with_limits(few), Faults::new(0).fail_after(requests));
        let outcome = store.put_file(&name("a"), file(&data), &Stop::new()).await;
        let stored = plain.size(&name("a")).await.unwrap();
        match outcome {
            Ok(bytes) => {
                assert_eq!((bytes, stored), (data.len() as u64, Some(data.len() as u64)));
                ended_well = true;
            }
            Err(error) => {
                assert!(matches!(error, Error::Unavailable { .. }), "{requests}: {error:?}");
                assert!(stored.is_none() || stored == Some(data.len() as u64), "{requests}: {stored:?}");
            }
        }
        emptied(&dir.path().join("work")).await;
        // Later, the same call succeeds.
        assert_eq!(plain.put_file(&name("a"), file(&data), &Stop::new()).await.unwrap(), data.len() as u64);
        let into = file(b"");
        plain.download(&name("a"), &into, data.len() as u64).await.unwrap();
        assert!(read(&into) == data);
    }
    assert!(ended_well, "12 requests are enough");
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke() {
    let dir = tempfile::tempdir().unwrap();
    let plain = Objects::folder(dir.path()).unwrap();
    let data = content(2, 1_000_000);
    plain.put(&name("a"), Bytes::from(data.clone())).await.unwrap();
    // Every answer is cut in half. Halves of halves end at one byte, and two tries in a row without progress are the limit.
    let faults = Faults::new(0).cut_bodies(100);
    let store = Objects::faulty(&plain.with_limits(Limits { attempts: 2, ..patient() }), faults.clone());
    let outcome = store.get_range(&name("a"), 0..1).await;
    assert!(matches!(outcome, Err(Error::Unavailable { .. })), "half of a byte is none: {outcome:?}");
    let before = faults.requests();
    let into = file(b"");
    let outcome = store.download(&name("a"), &into, 1_000_000).await;
    assert!(matches!(outcome, Err(Error::Unavailable { .. })), "{outcome:?}");
    let requests = faults.requests() - before;
    assert!((20..=23).contains(&requests), "{requests} requests, each for half of what is left of 2^20");

    let down = Faults::new(0);
    let store = Objects::faulty(&plain.with_limits(patient()), down.clone());
    down.set_down(true);
    assert!(matches!(store.get(&name("a"), u64::MAX).await, Err(Error::Unavailable { .. })));
    assert_eq!(down.requests(), 40);
    down.set_down(false);
    store.download(&name("a"), &into, 1_000_000).await.unwrap();
    assert!(read(&into) == data);
    down.heal();
    assert!(store.get(&name("a"), u64::MAX).await.unwrap() == data);
}

#[tokio::test]
async fn what_is_moved_and_what_fails_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let faults = Faults::new(7);
    let limits = Limits { attempts: 2, ..patient() };
    let store = Objects::faulty(&Objects::folder(dir.path()).unwrap().with_limits(limits), faults.clone());
    let counted = name("counted");
    store.put(&counted, Bytes::from_static(b"0123456789")).await.unwrap();
    store.get(&counted, 100).await.unwrap();
    store.get_range(&counted, 2..5).await.unwrap();
    assert!(store.get(&name("missing"), 100).await.is_err());
    let well = Counts { uploads: 1, uploaded_bytes: 10, downloads: 2, downloaded_bytes: 13, failures: 0 };
    assert_eq!(store.counts(), well);
    faults.set_down(true);
    assert!(store.get(&counted, 100).await.is_err());
    assert!(store.size(&counted).await.is_err());
    assert_eq!(store.clone().counts(), Counts { failures: 2, ..well });
}
