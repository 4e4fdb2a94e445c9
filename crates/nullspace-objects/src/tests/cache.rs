//! The cache: its limit, its order, what is in use, and one download for many callers.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;

use super::{content, emptied, name, read};
use crate::{Cache, CacheStats, Error, Faults, Limits, ObjectName, Objects};

/// A store with the objects `0` to `9` of 1000 bytes each.
struct Stage {
    dir: TempDir,
    faults: Faults,
    objects: Objects,
}

const BYTES: u64 = 1000;

fn object(number: u64) -> ObjectName {
    name(&format!("some/folder/{number}"))
}

async fn stage(faults: Faults) -> Stage {
    let dir = tempfile::tempdir().unwrap();
    let plain = Objects::folder(&dir.path().join("store")).unwrap();
    for number in 0..10 {
        plain.put(&object(number), Bytes::from(content(number, 1000))).await.unwrap();
    }
    let pause = Duration::from_millis(1);
    let limits = Limits { attempts: 3, backoff: pause, longest_backoff: pause, ..Limits::default() };
    let objects = Objects::faulty(&plain.with_limits(limits), faults.clone());
    Stage { dir, faults, objects }
}

impl Stage {
    fn folder(&self) -> std::path::PathBuf {
        self.dir.path().join("cache")
    }

    fn cache(&self, most_bytes: u64) -> Cache {
        Cache::open(&self.folder(), most_bytes, self.objects.clone()).unwrap()
    }
}

/// Objects whose files are in the folder.
fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder.join("files")).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Waits until nothing is in use. The task of a download lets go of the object a moment after its callers have it.
async fn unpinned(cache: &Cache) {
    let began = Instant::now();
    while cache.stats().pinned > 0 {
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", cache.stats());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn numbers(numbers: &[u64]) -> Vec<String> {
    numbers.iter().map(|number| format!("some+folder+{number}")).collect()
}

#[tokio::test]
async fn the_least_recently_used_goes_first_and_the_limit_holds() {
    let stage = stage(Faults::new(0)).await;
    let cache = stage.cache(3 * BYTES + 10);
    for number in [0, 1, 2, 0, 3] {
        let cached = cache.get(&object(number), BYTES).await.unwrap();
        assert!(read(cached.file()) == content(number, 1000));
        assert!(fs::read(cached.path()).unwrap() == content(number, 1000));
        assert!(cache.stats().bytes <= 3 * BYTES + 10);
    }
    assert_eq!(files(&stage.folder()), numbers(&[0, 2, 3]));
    assert_eq!(cache.stats(), CacheStats { objects: 3, pinned: 0, bytes: 3 * BYTES, hits: 1, misses: 4 });
    assert_eq!(stage.faults.requests(), 4, "a hit asks nothing of the store");
}

#[tokio::test]
async fn what_is_in_use_stays() {
    let stage = stage(Faults::new(0)).await;
    let cache = stage.cache(2 * BYTES);
    let first = cache.get(&object(0), BYTES).await.unwrap();
    let again = first.clone();
    drop(first);
    drop(cache.get(&object(1), BYTES).await.unwrap());
    let second = cache.get(&object(2), BYTES).await.unwrap();
    assert_eq!(files(&stage.folder()), numbers(&[0, 2]), "1 goes, although 0 is older");
    let error = cache.get(&object(3), BYTES).await.unwrap_err();
    assert!(matches!(&error, Error::Full { .. }) && error.is_retryable(), "{error:?}");
    assert_eq!(cache.stats().bytes, 2 * BYTES);
    drop(second);
    cache.get(&object(3), BYTES).await.unwrap();
    assert!(read(again.file()) == content(0, 1000));
    // One that never fits.
    assert!(matches!(cache.get(&object(4), 2 * BYTES + 1).await, Err(Error::Full { .. })));
}

#[tokio::test]
async fn the_next_process_keeps_what_was_used_last() {
    let stage = stage(Faults::new(0)).await;
    let cache = stage.cache(10 * BYTES);
    for number in 0..5 {
        cache.get(&object(number), BYTES).await.unwrap();
        // Times of files have the granularity of the kernel's clock.
        tokio::time::sleep(Duration::from_millis(12)).await;
    }
    cache.get(&object(1), BYTES).await.unwrap();
    let error = Cache::open(&stage.folder(), BYTES, stage.objects.clone()).unwrap_err();
    assert!(matches!(&error, Error::Invalid(what) if what.contains("another process")), "{error:?}");
    drop(cache);
    fs::write(stage.folder().join("work/left"), "of a killed process").unwrap();
    fs::write(stage.folder().join("files/Not An Object"), "").unwrap();
    let cache = stage.cache(2 * BYTES);
    assert_eq!(files(&stage.folder())[1..], numbers(&[1, 4]));
    assert_eq!(fs::read_dir(stage.folder().join("work")).unwrap().count(), 0);
    let before = stage.faults.requests();
    cache.get(&object(1), BYTES).await.unwrap();
    assert_eq!(stage.faults.requests(), before);
}

#[tokio::test]
async fn lengths_are_verified() {
    let stage = stage(Faults::new(0)).await;
    let cache = stage.cache(10 * BYTES);
    let outcome = cache.get(&object(0), BYTES + 1).await;
    assert!(matches!(outcome, Err(Error::Damaged { .. })), "{outcome:?}");
    assert!(matches!(cache.get(&name("none"), 1).await, Err(Error::NotFound { .. })));
    assert_eq!(cache.stats().bytes, 0, "nothing stays reserved");
    // A file that was cut, one that was removed, and one that was forgotten, are downloaded again.
    for harm in 0..3 {
        let path = cache.get(&object(0), BYTES).await.unwrap().path().to_owned();
        match harm {
            0 => fs::write(&path, "short").unwrap(),
            1 => fs::remove_file(&path).unwrap(),
            _ => cache.forget(&object(0)).await.unwrap(),
        }
        let before = cache.stats().misses;
        let cached = cache.get(&object(0), BYTES).await.unwrap();
        assert!(read(cached.file()) == content(0, 1000));
        assert_eq!(cache.stats().misses, before + 1);
        assert_eq!(cache.stats().bytes, BYTES);
    }
    // Forgotten while in use: the user keeps the file, and the pin of the old one is not one of the new one.
    let old = cache.get(&object(0), BYTES).await.unwrap();
    cache.forget(&object(0)).await.unwrap();
    let new = cache.get(&object(0), BYTES).await.unwrap();
    assert!(read(old.file()) == content(0, 1000));
    drop(old);
    assert_eq!(cache.stats().pinned, 1);
    // A caller who expects another length does not remove what others use.
    assert!(matches!(cache.get(&object(0), 1).await, Err(Error::Damaged { .. })));
    assert!(new.path().exists());
    drop(new);
    assert_eq!(cache.stats().pinned, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_callers_share_one_download() {
    // Long enough that all callers come while the download, and each of its tries, is under way.
    let stage = stage(Faults::new(0).delays(100, Duration::from_millis(300))).await;
    let cache = stage.cache(10 * BYTES);
    let name = object(0);
    let all = futures::future::join_all((0..20).map(|_| cache.get(&name, BYTES))).await;
    for cached in &all {
        assert!(read(cached.as_ref().unwrap().file()) == content(0, 1000));
    }
    assert_eq!(stage.faults.requests(), 1);
    assert_eq!(cache.stats().misses, 1);
    drop(all);
    unpinned(&cache).await;

    // They share its failure too.
    stage.faults.set_down(true);
    let name = object(1);
    for outcome in futures::future::join_all((0..20).map(|_| cache.get(&name, BYTES))).await {
        assert!(matches!(outcome, Err(Error::Unavailable { .. })), "{outcome:?}");
    }
    assert_eq!(stage.faults.requests(), 1 + 3, "three tries of one download");
    stage.faults.set_down(false);
    cache.get(&name, BYTES).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_ends_with_its_last_caller() {
    let delay = Duration::from_secs(1);
    let stage = stage(Faults::new(0).delays(100, delay)).await;
    let cache = stage.cache(10 * BYTES);
    // A caller who waits until its download is under way, and then no longer.
    let leaves = async |name: &ObjectName| {
        let before = stage.faults.requests();
        let begun = async {
            while stage.faults.requests() == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            _ = cache.get(name, BYTES) => panic!("{name} is there before its delay is over"),
            begun = tokio::time::timeout(Duration::from_secs(30), begun) => begun.expect("no download begins"),
        }
    };
    let name = object(0);
    let ((), stays) = tokio::join!(leaves(&name), cache.get(&name, BYTES));
    assert!(read(stays.unwrap().file()) == content(0, 1000), "the other caller gets it");
    let name = object(1);
    leaves(&name).await;
    emptied(&stage.folder().join("work")).await;
    tokio::time::sleep(2 * delay).await;
    assert_eq!(files(&stage.folder()), numbers(&[0]));
    assert_eq!(cache.stats().bytes, BYTES);
    assert!(read(cache.get(&name, BYTES).await.unwrap().file()) == content(1, 1000));
}

/// Many callers, few bytes, a store with faults: each gets the right content or a typed error, and the limit always holds.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_holds_under_load() {
    let stage = stage(Faults::new(3).unavailable(10).cut_bodies(20).delays(30, Duration::from_millis(2))).await;
    let cache = stage.cache(4 * BYTES);
    let tasks = (0..8).map(|task| {
        let cache = cache.clone();
        tokio::spawn(async move {
            let mut got = 0;
            for step in 0..40 {
                let number = (task * 7 + step * 3 + step / 5) % 10;
                match cache.get(&object(number), BYTES).await {
                    Ok(cached) => {
                        assert!(read(cached.file()) == content(number, 1000));
                        got += 1;
                        if step % 4 == 0 {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    }
                    Err(error) => assert!(error.is_retryable(), "{error:?}"),
                }
                assert!(cache.stats().bytes <= 4 * BYTES);
            }
            got
        })
    });
    let got: Vec<_> = futures::future::join_all(tasks).await.into_iter().map(Result::unwrap).collect();
    assert!(got.iter().all(|got| *got > 0), "{got:?}");
    unpinned(&cache).await;
    let stats = cache.stats();
    assert_eq!(stats.bytes, stats.objects as u64 * BYTES);
    assert_eq!(files(&stage.folder()).len(), stats.objects);
}

#[tokio::test]
async fn a_file_that_is_given_needs_no_download_and_counts() {
    let stage = stage(Faults::new(1)).await;
    let cache = stage.cache(2 * BYTES);
    let given = |number: u64| {
        let path = stage.dir.path().join(format!("given{number}"));
        fs::write(&path, content(number, 1000)).unwrap();
        path
    };
    let path = given(1);
    let pinned = cache.insert(&object(1), &path).await.unwrap();
    assert!(!path.exists() && read(pinned.file()) == content(1, 1000));
    let again = cache.get(&object(1), BYTES).await.unwrap();
    assert_eq!((again.id(), cache.stats().misses), (pinned.id(), 0));
    drop(again);
    cache.get(&object(2), BYTES).await.unwrap();
    cache.insert(&object(3), &given(3)).await.unwrap();
    assert_eq!(files(&stage.folder()), numbers(&[1, 3]));
    // One that is here stays as it is, and its file too.
    let path = given(3);
    cache.insert(&object(3), &path).await.unwrap();
    assert!(path.exists());
    // There is no space beside what is in use.
    let also = cache.get(&object(3), BYTES).await.unwrap();
    let path = given(4);
    assert!(matches!(cache.insert(&object(4), &path).await, Err(Error::Full { .. })) && path.exists());
    assert_eq!(cache.stats().bytes, 2 * BYTES);
    // Downloaded anew, it has another number.
    drop((pinned, also));
    let before = cache.get(&object(1), BYTES).await.unwrap().id();
    cache.forget(&object(1)).await.unwrap();
    assert_ne!(cache.get(&object(1), BYTES).await.unwrap().id(), before);
}

#[tokio::test]
async fn a_full_disk_gets_back_what_is_not_in_use() {
    let stage = stage(Faults::new(1)).await;
    let cache = stage.cache(5 * BYTES);
    let used = cache.get(&object(0), BYTES).await.unwrap();
    for number in 1..5 {
        cache.get(&object(number), BYTES).await.unwrap();
    }
    cache.shrink(3 * BYTES).await.unwrap();
    assert_eq!(files(&stage.folder()), numbers(&[0, 3, 4]));
    cache.shrink(0).await.unwrap();
    assert_eq!((files(&stage.folder()), cache.stats().bytes), (numbers(&[0]), BYTES));
    assert_eq!(read(used.file()), content(0, 1000));
    // One that is longer than the whole cache drives nothing out.
    cache.get(&object(1), BYTES).await.unwrap();
    assert!(matches!(cache.get(&object(2), 6 * BYTES).await, Err(Error::Full { .. })));
    assert_eq!(files(&stage.folder()), numbers(&[0, 1]));
}
