//! The suite that every kind of store passes.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::{content, file, name, read};
use crate::{Error, Faults, MOST_READ_BYTES, Objects, PART_BYTES, PARTS_OF_A_CALL, Stop};

/// Runs the whole suite on an empty store.
pub(super) async fn suite(store: &Objects) {
    store.check().await.unwrap();
    assert_eq!(listed(store, "").await, BTreeMap::new(), "the check leaves nothing");
    small_objects(store).await;
    names_are_never_reused(store).await;
    ranges(store).await;
    lists(store).await;
    files(store).await;
    one_name_put_by_many(store).await;
    stopped_uploads_leave_nothing(store).await;
}

/// Names and lengths below a folder.
pub(super) async fn listed(store: &Objects, folder: &str) -> BTreeMap<String, u64> {
    store.list(folder).map_ok(|entry| (entry.name.to_string(), entry.bytes)).try_collect().await.unwrap()
}

async fn small_objects(store: &Objects) {
    let a = name("small/a");
    assert_eq!(store.size(&a).await.unwrap(), None);
    assert!(matches!(store.get(&a, 10).await, Err(Error::NotFound { name }) if name == a));
    assert!(matches!(store.get_range(&a, 0..1).await, Err(Error::NotFound { .. })));
    assert!(matches!(store.download(&a, &file(b""), 0).await, Err(Error::NotFound { .. })));
    store.delete(&a).await.unwrap();

    for bytes in [0, 1, 4096, 1_000_003] {
        let name = name(&format!("small/{bytes}"));
        let data = Bytes::from(content(1, bytes));
        store.put(&name, data.clone()).await.unwrap();
        assert_eq!(store.size(&name).await.unwrap(), Some(bytes as u64));
        assert_eq!(store.get(&name, bytes as u64).await.unwrap(), data);
        assert_eq!(store.get(&name, u64::MAX).await.unwrap(), data);
        let into = file(&vec![7; bytes + 5]);
        store.download(&name, &into, bytes as u64).await.unwrap();
        assert_eq!(read(&into), data, "a longer file is cut");
        for wrong in [bytes as u64 + 1, (bytes as u64).saturating_sub(1)] {
            if wrong != bytes as u64 {
                let outcome = store.download(&name, &file(b""), wrong).await;
                assert!(matches!(outcome, Err(Error::Damaged { .. })), "{outcome:?}");
            }
        }
        if bytes > 0 {
            let outcome = store.get(&name, bytes as u64 - 1).await;
            assert!(matches!(outcome, Err(Error::TooLong { bytes: long, .. }) if long == bytes as u64), "{outcome:?}");
        }
        store.delete(&name).await.unwrap();
        assert_eq!(store.size(&name).await.unwrap(), None);
        assert!(matches!(store.get(&name, u64::MAX).await, Err(Error::NotFound { .. })));
        store.delete(&name).await.unwrap();
    }
}

async fn names_are_never_reused(store: &Objects) {
    let name = name("fixed/name");
    store.put(&name, Bytes::from_static(b"first")).await.unwrap();
    store.put(&name, Bytes::from_static(b"first")).await.unwrap();
    for other in ["", "longer", "four"] {
        let outcome = store.put(&name, Bytes::from(other)).await;
        assert!(
            matches!(outcome, Err(Error::Exists { stored: 5, offered, .. }) if offered == other.len() as u64),
            "{outcome:?}"
        );
    }
    let stop = Stop::new();
    assert_eq!(store.put_file(&name, file(b"first"), &stop).await.unwrap(), 5);
    assert!(matches!(store.put_file(&name, file(b"second"), &stop).await, Err(Error::Exists { .. })));
    let long = file(&content(2, PART_BYTES + 1));
    assert!(matches!(store.put_file(&name, long, &stop).await, Err(Error::Exists { stored: 5, .. })));
    assert_eq!(store.get(&name, 10).await.unwrap(), "first", "the first content remains");
    store.delete(&name).await.unwrap();
    store.put(&name, Bytes::from_static(b"anew")).await.unwrap();
    assert_eq!(store.get(&name, 10).await.unwrap(), "anew");
    store.delete(&name).await.unwrap();
}

async fn ranges(store: &Objects) {
    let name = name("ranges");
    let data = content(3, 300_000);
    store.put(&name, Bytes::from(data.clone())).await.unwrap();
    for (from, to) in [(0, 1), (0, 300_000), (299_999, 300_000), (17, 17), (4096, 200_000)] {
        let read = store.get_range(&name, from as u64..to as u64).await.unwrap();
        assert_eq!(read, &data[from..to], "{from}..{to}");
    }
    for (from, to) in [(299_999, 300_001), (300_000, 300_001), (1 << 40, (1 << 40) + 1)] {
        let outcome = store.get_range(&name, from..to).await;
        assert!(matches!(outcome, Err(Error::Damaged { .. })), "{from}..{to}: {outcome:?}");
    }
    #[expect(clippy::reversed_empty_ranges, reason = "the wrong range is what is tested")]
    for range in [2..1, 0..MOST_READ_BYTES + 1] {
        assert!(matches!(store.get_range(&name, range).await, Err(Error::Invalid(_))));
    }
    store.delete(&name).await.unwrap();
}

async fn lists(store: &Objects) {
    let began = SystemTime::now();
    let names = ["l/a", "l/b/c", "l/b/d/e", "l2/a", "l-1", "m"];
    for text in names {
        store.put(&name(text), Bytes::from(text)).await.unwrap();
    }
    let of =
        |wanted: &[&str]| wanted.iter().map(|text| ((*text).to_owned(), text.len() as u64)).collect::<BTreeMap<_, _>>();
    assert_eq!(listed(store, "").await, of(&names));
    assert_eq!(listed(store, "l").await, of(&["l/a", "l/b/c", "l/b/d/e"]));
    assert_eq!(listed(store, "l/b").await, of(&["l/b/c", "l/b/d/e"]));
    assert_eq!(listed(store, "none/here").await, of(&[]));
    for wrong in ["/", "l/", "../l", "L"] {
        let outcome: Vec<_> = store.list(wrong).collect().await;
        assert!(matches!(&outcome[..], [Err(Error::Invalid(_))]), "{wrong}: {outcome:?}");
    }
    let entry = store.list("l2").next().await.unwrap().unwrap();
    let age = entry.modified.duration_since(began).unwrap_or_else(|before| before.duration());
    assert!(age < Duration::from_secs(120), "{age:?} between put and its time");
    // More than a page of an S3 store.
    let many: Vec<_> = (0..1100).map(|i| name(&format!("many/{i:04}"))).collect();
    futures::stream::iter(&many)
        .map(|name| store.put(name, Bytes::from_static(b"x")))
        .buffer_unordered(8)
        .try_collect::<()>()
        .await
        .unwrap();
    assert_eq!(listed(store, "many").await, many.iter().map(|name| (name.to_string(), 1)).collect());
    let all: Vec<_> = store.list("").map_ok(|entry| entry.name).try_collect().await.unwrap();
    assert_eq!(all.len(), many.len() + names.len(), "each object is listed once");
    futures::stream::iter(&all).map(|name| store.delete(name)).buffer_unordered(8).try_collect::<()>().await.unwrap();
    assert_eq!(listed(store, "").await, of(&[]));
}

async fn files(store: &Objects) {
    let stop = Stop::new();
    for bytes in [0, 5, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 12_345] {
        let name = name(&format!("files/{bytes}"));
        let data = content(4, bytes);
        assert_eq!(store.put_file(&name, file(&data), &stop).await.unwrap(), bytes as u64);
        assert_eq!(store.size(&name).await.unwrap(), Some(bytes as u64));
        let into = file(b"");
        store.download(&name, &into, bytes as u64).await.unwrap();
        assert!(read(&into) == data, "{bytes} bytes return as they were");
        if bytes > PART_BYTES {
            // A range over the border of two parts.
            let border = PART_BYTES - 10;
            let end = bytes.min(PART_BYTES + 10);
            let read = store.get_range(&name, border as u64..end as u64).await.unwrap();
            assert_eq!(read, &data[border..end]);
        }
        store.delete(&name).await.unwrap();
    }
    let parts = store.parts_in_memory();
    assert_eq!(parts.now, 0);
    assert!(parts.most >= 1 && parts.most <= PARTS_OF_A_CALL, "{parts:?}");
}

/// Callers that put one name at the same time all succeed, and the object is whole at any time.
async fn one_name_put_by_many(store: &Objects) {
    let name = name("raced");
    let data = content(5, 200_000);
    let puts = (0..8).map(|_| store.put(&name, Bytes::from(data.clone())));
    let reads = (0..8).map(|_| async {
        match store.get(&name, u64::MAX).await {
            Ok(read) => assert!(read == data),
            Err(error) => assert!(matches!(error, Error::NotFound { .. }), "{error:?}"),
        }
    });
    let (puts, _) = tokio::join!(futures::future::join_all(puts), futures::future::join_all(reads));
    for put in puts {
        put.unwrap();
    }
    assert!(store.get(&name, u64::MAX).await.unwrap() == data);
    store.delete(&name).await.unwrap();
}

async fn stopped_uploads_leave_nothing(store: &Objects) {
    let name = name("stopped");
    let stopped = Stop::new();
    stopped.stop();
    assert!(matches!(store.put_file(&name, file(b"x"), &stopped).await, Err(Error::Stopped)));

    // Each request takes long enough to be interrupted: a size, a begin, five parts in two rounds.
    let slow = Objects::faulty(store, Faults::new(0).delays(100, Duration::from_millis(100)));
    let data = content(6, 5 * PART_BYTES);
    for after in [50, 150, 250] {
        let stop = Stop::new();
        let (outcome, ()) = tokio::join!(slow.put_file(&name, file(&data), &stop), async {
            tokio::time::sleep(Duration::from_millis(after)).await;
            stop.stop();
        });
        assert!(matches!(outcome, Err(Error::Stopped)), "{outcome:?}");
        assert_eq!(store.size(&name).await.unwrap(), None);
    }
    // The caller goes away.
    let put = tokio::time::timeout(Duration::from_millis(250), slow.put_file(&name, file(&data), &Stop::new())).await;
    assert!(put.is_err(), "an upload takes longer");
    assert_eq!(store.size(&name).await.unwrap(), None);
    // The same name can be stored afterwards.
    assert_eq!(store.put_file(&name, file(&data), &Stop::new()).await.unwrap(), data.len() as u64);
    store.delete(&name).await.unwrap();
    assert_eq!(listed(store, "").await, BTreeMap::new());
    for _ in 0..100 {
        if slow.parts_in_memory().now + store.parts_in_memory().now == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("parts of uploads that ended remain in memory: {:?}", slow.parts_in_memory());
}
