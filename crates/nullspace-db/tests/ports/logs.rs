//! A log reads the same as rows, as segments, and half-way between the two; whatever happens while it is compressed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use nullspace_db::{Build, CompactedLog, Database, DbError, Expiring, LogEntry, NewLogEntry, Result, SegmentBytes};
use nullspace_types::{BuildId, Caller};
use serde_json::json;

use crate::fixture::{self, Fixture, at, failure, is_not_found};

/// Entries of many lengths, some of them longer than a segment.
fn entries(count: u64) -> Vec<NewLogEntry> {
    let length = |index: u64| match index % 97 {
        13 => 300 << 10,
        50 => 9_000,
        n => usize::try_from(n).unwrap() * 40,
    };
    let entry = |index| {
        let text: String = format!("é{index} ").chars().cycle().take(length(index)).collect();
        NewLogEntry { at: at(i64::try_from(index).unwrap()), body: json!({ "message": text, "n": [index, null, 0.1] }) }
    };
    (0..count).map(entry).collect()
}

/// A build that failed at 100 with these entries after its first one.
async fn failed(f: &Fixture, caller: &Caller, log: Vec<NewLogEntry>) -> Build {
    f.accept(caller, "web").await;
    let (lease, _) = f.run("w", at(1)).await;
    for some in log.chunks(50) {
        f.store.append_log(&lease, some.to_vec()).await.unwrap();
    }
    f.store.finish_error(&lease, failure(), at(100)).await.unwrap()
}

/// Everything that can be asked of a log: pages of several lengths from many offsets.
async fn answers(store: &dyn Database, caller: &Caller, build: BuildId) -> Vec<(u64, u32, Vec<LogEntry>)> {
    let (_, end) = store.build_and_next_offset(caller, build).await.unwrap();
    let mut all = Vec::new();
    for from in (0..end + 3).step_by(23).chain([end.saturating_sub(1), end, end + 1, u64::MAX]) {
        for limit in [0, 1, 16, 1000, u32::MAX] {
            all.push((from, limit, store.log_entries(caller, build, from, limit).await.unwrap()));
        }
    }
    all
}

/// Reads a log as a follower does, page by page.
async fn followed(store: &dyn Database, caller: &Caller, build: BuildId, page: u32) -> Vec<LogEntry> {
    let mut read: Vec<LogEntry> = Vec::new();
    loop {
        let from = read.last().map_or(0, |entry| entry.offset + 1);
        let more = store.log_entries(caller, build, from, page).await.unwrap();
        if more.is_empty() {
            return read;
        }
        read.extend(more);
    }
}

/// Offsets in rows and in segments: each must be in one of the two, once.
async fn is_whole(f: &Fixture) {
    let twice = f
        .query(
            "SELECT l.build_id || '/' || l.position FROM build_log l JOIN build_log_segments s
             ON s.build_id = l.build_id AND l.position BETWEEN s.first AND s.last",
        )
        .await;
    assert!(twice.is_empty(), "in both: {twice:?}");
    let other = f
        .query(
            "SELECT b.id FROM builds b WHERE b.log_next !=
                 (SELECT count(*) FROM build_log l WHERE l.build_id = b.id)
                 + (SELECT coalesce(sum(s.last - s.first + 1), 0) FROM build_log_segments s WHERE s.build_id = b.id)",
        )
        .await;
    assert!(other.is_empty(), "too many or too few entries: {other:?}");
}

async fn compact_all(store: &dyn Database) -> Vec<CompactedLog> {
    let mut steps = Vec::new();
    while let Some(step) = store.compact_log(at(1000)).await.unwrap() {
        steps.push(step);
    }
    steps
}

#[tokio::test]
async fn every_way_to_read_a_log_answers_the_same_at_each_step_of_its_compression() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = failed(&f, &caller, entries(200)).await;
    let before = answers(&*f.store, &caller, build.id).await;
    let whole = followed(&*f.store, &caller, build.id, 16).await;
    assert_eq!(whole.len(), 202);
    let mut steps = Vec::new();
    while let Some(step) = f.store.compact_log(at(1000)).await.unwrap() {
        is_whole(&f).await;
        assert!(answers(&*f.store, &caller, build.id).await == before, "after step {}", steps.len());
        for page in [1, 16, 999] {
            assert!(followed(&*f.store, &caller, build.id, page).await == whole, "pages of {page}");
        }
        steps.push(step);
    }
    assert!(steps.len() > 4, "{steps:?}");
    assert!(steps.iter().all(|step| step.build == build.id && step.stored_bytes < step.plain_bytes));
    assert!(steps.iter().all(|step| step.plain_bytes <= 256 << 10 || step.entries == 1), "{steps:?}");
    assert_eq!(steps.iter().map(|step| step.entries).sum::<u64>(), 202);
    let (last, others) = steps.split_last().unwrap();
    assert!(last.complete && others.iter().all(|step| !step.complete));
    assert!(f.query("SELECT build_id FROM build_log").await.is_empty());
    assert_eq!(f.store.get_build(&caller, build.id).await.unwrap(), build);
    // A service that starts later.
    assert!(answers(&*f.another().await, &caller, build.id).await == before);
}

#[tokio::test]
async fn a_log_is_compressed_when_its_build_has_been_over_for_a_while_and_stays_its_owners() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let over = failed(&f, &caller, entries(3)).await;
    let running = f.accept(&caller, "web").await;
    let (lease, _) = f.run("w", at(200)).await;
    assert_eq!(f.store.compact_log(at(99)).await.unwrap(), None);
    let step = f.store.compact_log(at(100)).await.unwrap().unwrap();
    assert_eq!((step.build, step.entries, step.complete), (over.id, 5, true));
    assert_eq!(f.store.compact_log(at(10_000)).await.unwrap(), None, "the other one is running");
    f.store.append_log(&lease, entries(2)).await.unwrap();
    assert_eq!(f.messages(&caller, running.id).await.len(), 3);
    let other = f.tenant("other").await;
    assert!(is_not_found(&f.store.log_entries(&other, over.id, 0, 10).await));
    assert!(is_not_found(&f.store.log_entries(&other, over.id, 1 << 40, 10).await));
}

#[tokio::test]
async fn a_failure_at_any_statement_leaves_the_rows_as_they_were() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = failed(&f, &caller, entries(20)).await;
    let before = answers(&*f.store, &caller, build.id).await;
    let statements = [
        (
            "INSERT ON build_log_segments",
            "CREATE TRIGGER fails AFTER INSERT ON build_log_segments BEGIN SELECT raise(ABORT, 'x'); END",
        ),
        (
            "first DELETE ON build_log",
            "CREATE TRIGGER fails BEFORE DELETE ON build_log WHEN old.position = 0 BEGIN SELECT raise(ABORT, 'x'); END",
        ),
        (
            "last DELETE ON build_log",
            "CREATE TRIGGER fails AFTER DELETE ON build_log WHEN old.position = 12 BEGIN SELECT raise(ROLLBACK, 'x'); END",
        ),
        (
            "a row that is gone already",
            "CREATE TRIGGER fails BEFORE DELETE ON build_log WHEN old.position = 3 BEGIN SELECT raise(IGNORE); END",
        ),
    ];
    for (statement, trigger) in statements {
        f.sabotage(trigger).await;
        f.store.compact_log(at(1000)).await.expect_err(statement);
        f.sabotage("DROP TRIGGER fails").await;
        is_whole(&f).await;
        assert!(f.query("SELECT build_id FROM build_log_segments").await.is_empty(), "{statement}");
        assert!(answers(&*f.store, &caller, build.id).await == before, "{statement}");
    }
    let flag = "CREATE TRIGGER fails BEFORE UPDATE OF log_compacted ON builds BEGIN SELECT raise(ABORT, 'x'); END";
    f.sabotage(flag).await;
    loop {
        // Until the last run, with which the log would be complete.
        if f.store.compact_log(at(1000)).await.is_err() {
            break;
        }
    }
    f.sabotage("DROP TRIGGER fails").await;
    is_whole(&f).await;
    assert!(!f.query("SELECT build_id FROM build_log").await.is_empty());
    compact_all(&*f.store).await;
    is_whole(&f).await;
    assert!(answers(&*f.store, &caller, build.id).await == before);
}

#[tokio::test]
async fn a_compression_that_nobody_waits_for_any_more_is_done_or_not() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let mut builds = BTreeMap::new();
    for _ in 0..60 {
        let build = failed(&f, &caller, entries(5)).await;
        builds.insert(build.id, f.log(&caller, build.id).await);
    }
    for micros in (0..12_000).step_by(60) {
        let _ = tokio::time::timeout(Duration::from_micros(micros), f.store.compact_log(at(1000))).await;
    }
    is_whole(&f).await;
    compact_all(&*f.store).await;
    is_whole(&f).await;
    for (build, log) in builds {
        assert_eq!(f.log(&caller, build).await, log);
    }
}

const CHILD: &str = "NULLSPACE_TEST_KILLED_WITH";

/// Not a test: the process that the next one kills.
#[tokio::test]
#[ignore = "is started by the test after it"]
async fn compresses_until_it_is_killed() {
    let Ok(address) = std::env::var(CHILD) else { return };
    let store = fixture::open(&address).await;
    println!("\nunder way");
    compact_all(&*store).await;
}

#[tokio::test]
async fn a_service_that_is_killed_leaves_each_entry_as_a_row_or_in_a_segment() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let mut builds = BTreeMap::new();
    for _ in 0..120 {
        let build = failed(&f, &caller, entries(30)).await;
        builds.insert(build.id, f.log(&caller, build.id).await);
    }
    let mut cut_short = 0;
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "logs::compresses_until_it_is_killed", "--ignored", "--nocapture", "--test-threads", "1"])
            .env(CHILD, f.address())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(output.any(|line| line.unwrap() == "under way"), "the other process did not begin");
        std::thread::sleep(Duration::from_micros(700 * round * round + 900));
        child.kill().unwrap();
        cut_short += u32::from(!child.wait().unwrap().success());
        is_whole(&f).await;
        for (build, log) in &builds {
            assert_eq!(f.log(&caller, *build).await, *log, "round {round}");
        }
    }
    assert!(cut_short > 3, "only {cut_short} of the processes were killed at work");
    compact_all(&*f.store).await;
    is_whole(&f).await;
}

/// Bytes of segments elsewhere, which can fail.
#[derive(Debug, Default)]
struct Elsewhere {
    stored: Mutex<BTreeMap<u64, Vec<u8>>>,
    broken: Mutex<bool>,
}

impl Elsewhere {
    fn check(&self) -> Result<()> {
        let broken = std::io::Error::other("no answer");
        if *self.broken.lock().unwrap() {
            Err(DbError::Io { context: "store".to_owned(), source: broken })
        } else {
            Ok(())
        }
    }
}

#[async_trait]
impl SegmentBytes for Elsewhere {
    async fn put(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        self.check()?;
        let mut stored = self.stored.lock().unwrap();
        let name = stored.last_key_value().map_or(0, |(name, _)| name + 1);
        stored.insert(name, bytes);
        Ok(name.to_be_bytes().to_vec())
    }

    async fn get(&self, kept: Vec<u8>) -> Result<Vec<u8>> {
        if nullspace_db::is_segment_in_row(&kept) {
            return Ok(kept);
        }
        self.check()?;
        let name = u64::from_be_bytes(kept.try_into().unwrap());
        self.stored.lock().unwrap().get(&name).cloned().ok_or(DbError::NotFound)
    }

    async fn remove(&self, kept: Vec<u8>) -> Result<()> {
        if nullspace_db::is_segment_in_row(&kept) {
            return Ok(());
        }
        self.check()?;
        self.stored.lock().unwrap().remove(&u64::from_be_bytes(kept.try_into().unwrap()));
        Ok(())
    }

    fn outside(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn the_bytes_of_segments_may_be_elsewhere() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = failed(&f, &caller, entries(100)).await;
    let next = failed(&f, &caller, entries(1)).await;
    let before = answers(&*f.store, &caller, build.id).await;
    let elsewhere = Arc::new(Elsewhere::default());
    let store = f.another_with(elsewhere.clone()).await;
    let break_it = |broken| *elsewhere.broken.lock().unwrap() = broken;
    break_it(true);
    let refused = store.compact_log(at(1000)).await;
    assert!(matches!(refused, Err(DbError::Io { .. })), "{refused:?}");
    assert!(answers(&*store, &caller, build.id).await == before);
    break_it(false);
    compact_all(&*store).await;
    is_whole(&f).await;
    assert!(answers(&*store, &caller, build.id).await == before);
    assert!(f.query("SELECT build_id FROM build_log_segments WHERE length(kept) != 8").await.is_empty());
    assert_eq!(store.segments_elsewhere().await.unwrap().len(), elsewhere.stored.lock().unwrap().len());
    // What the rows kept goes with them.
    assert!(elsewhere.stored.lock().unwrap().len() > 1);
    assert_eq!(store.remove_expired(Expiring::Builds, at(1000), 10).await.unwrap(), 2);
    for gone in [build.id, next.id] {
        assert!(is_not_found(&f.store.get_build(&caller, gone).await));
    }
    assert!(elsewhere.stored.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_log_goes_on_without_the_parts_that_an_operator_gave_up() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = failed(&f, &caller, entries(100)).await;
    let elsewhere = Arc::new(Elsewhere::default());
    let store = f.another_with(elsewhere.clone()).await;
    let whole = followed(&*store, &caller, build.id, 16).await;
    compact_all(&*store).await;
    let second = elsewhere.stored.lock().unwrap().keys().nth(1).unwrap().to_be_bytes().to_vec();
    let bounds = f.query("SELECT first || ' ' || last FROM build_log_segments ORDER BY first").await;
    assert!(bounds.len() > 2, "{bounds:?}");
    let (first, last) = bounds[1].split_once(' ').unwrap();
    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
    store.forget_segments(&[second, b"another".to_vec()]).await.unwrap();
    let left: Vec<LogEntry> = whole.into_iter().filter(|entry| !(first..=last).contains(&entry.offset)).collect();
    assert_eq!(followed(&*store, &caller, build.id, 16).await, left);
    assert_eq!(followed(&*store, &caller, build.id, 1000).await, left);
}

/// A database whose segments were rows goes on with another place for the next ones.
#[tokio::test]
async fn segments_that_are_in_their_rows_are_read_and_removed_beside_those_elsewhere() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let old = failed(&f, &caller, entries(100)).await;
    let before = answers(&*f.store, &caller, old.id).await;
    compact_all(&*f.store).await;
    let elsewhere = Arc::new(Elsewhere::default());
    let store = f.another_with(elsewhere.clone()).await;
    assert!(answers(&*store, &caller, old.id).await == before);
    assert!(store.segments_elsewhere().await.unwrap().is_empty());
    let new = failed(&f, &caller, entries(50)).await;
    let plain = answers(&*store, &caller, new.id).await;
    compact_all(&*store).await;
    is_whole(&f).await;
    assert!(answers(&*store, &caller, new.id).await == plain);
    let names: BTreeSet<Vec<u8>> = store.segments_elsewhere().await.unwrap().into_iter().collect();
    let stored: BTreeSet<Vec<u8>> =
        elsewhere.stored.lock().unwrap().keys().map(|name| name.to_be_bytes().to_vec()).collect();
    assert_eq!(names, stored);
    assert!(!names.is_empty());
    // A place that does not answer keeps its bytes; the rows go all the same.
    *elsewhere.broken.lock().unwrap() = true;
    assert!(store.log_entries(&caller, new.id, 0, 10).await.is_err());
    assert_eq!(store.remove_expired(Expiring::Builds, at(1000), 10).await.unwrap(), 2);
    assert_eq!(elsewhere.stored.lock().unwrap().len(), stored.len());
    assert!(store.segments_elsewhere().await.unwrap().is_empty());
}
