use std::path::Path;
use std::time::{Duration, Instant};

use sqlx::{ConnectOptions, Connection};

use super::*;

/// Rows of 1 KiB in a table of the test's own.
async fn fill(store: &SqliteStore, rows: u32) {
    sqlx::query("CREATE TABLE IF NOT EXISTS filler (number INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT")
        .execute(&store.writer)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO filler (body)
         WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?) SELECT randomblob(1024) FROM n",
    )
    .bind(rows)
    .execute(&store.writer)
    .await
    .unwrap();
}

async fn empty(store: &SqliteStore, keep_each: u32) {
    sqlx::query("DELETE FROM filler WHERE number % ? != 0").bind(keep_each).execute(&store.writer).await.unwrap();
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

/// A file as versions before this one made it.
async fn of_an_older_version(path: &Path) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut connection = options.connect().await.unwrap();
    sqlx::query("CREATE TABLE older (id TEXT) STRICT").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

#[tokio::test]
async fn free_pages_go_back_in_short_steps_and_some_are_kept() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("nullspace.db");
    let store = SqliteStore::open(&path).await.unwrap();
    fill(&store, 24 << 10).await;
    assert_eq!(give_back(&store, 256).await.unwrap().given_back, 0, "nothing is free");
    empty(&store, 8).await;
    let full = measure(&store).await.unwrap();
    assert!(full.free_bytes > full.file_bytes / 2, "{full:?}");
    let (mut steps, mut longest) = (0, Duration::ZERO);
    let end = loop {
        let began = Instant::now();
        let step = give_back(&store, 256).await.unwrap();
        longest = longest.max(began.elapsed());
        // With the pages at the end that describe those before them.
        assert!(step.given_back <= 258 * 4096, "{step:?}");
        if step.surplus_bytes == 0 {
            break step;
        }
        assert!(step.given_back > 0, "{step:?}");
        steps += 1;
    };
    eprintln!("{steps} steps of 1 MiB, the longest took {longest:?}");
    assert!(steps > 8);
    assert!(end.free_bytes >= KEEP_BYTES - 4096, "{end:?}");
    // Only the journal's bound and the kept pages are above what the rows need.
    assert!(size(&path) < full.file_bytes / 2 && size(&path) <= end.file_bytes + (1 << 20), "{} {end:?}", size(&path));
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM filler").fetch_one(&store.readers).await.unwrap();
    let sound: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&store.readers).await.unwrap();
    assert_eq!((left, sound.as_str()), (3 << 10, "ok"));
    assert_eq!(give_back(&store, 256).await.unwrap().given_back, 0);
}

#[tokio::test]
async fn a_file_of_an_older_version_is_rewritten_once_if_it_is_not_too_large() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("nullspace.db");
    of_an_older_version(&path).await;
    let store = SqliteStore::open(&path).await.unwrap();
    fill(&store, 16 << 10).await;
    empty(&store, 16).await;
    assert!(!is_incremental(&store).await.unwrap());
    assert_eq!(give_back(&store, 256).await.unwrap().given_back, 0, "this file cannot");
    assert!(!allow_give_back(&store, 1 << 20).await.unwrap(), "it is larger");
    // A reader of before does not prevent it.
    let mut reader = store.read().await.unwrap();
    let count = "SELECT count(*) FROM filler";
    let before: i64 = sqlx::query_scalar(count).fetch_one(&mut *reader).await.unwrap();
    assert!(allow_give_back(&store, 64 << 20).await.unwrap());
    let after: i64 = sqlx::query_scalar(count).fetch_one(&mut *reader).await.unwrap();
    assert_eq!((before, after), (1 << 10, 1 << 10));
    drop(reader);
    assert!(measure(&store).await.unwrap().file_bytes < 8 << 20);
    assert!(allow_give_back(&store, 1).await.unwrap(), "once is enough");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&path);
    let mut other = options.connect().await.unwrap();
    let mode: i64 = sqlx::query_scalar("PRAGMA auto_vacuum").fetch_one(&mut other).await.unwrap();
    assert_eq!(mode, INCREMENTAL);
}

#[tokio::test]
async fn a_new_file_can_give_space_back() {
    let dir = tempfile::TempDir::new().unwrap();
    let store = SqliteStore::open(&dir.path().join("nullspace.db")).await.unwrap();
    assert!(allow_give_back(&store, 0).await.unwrap());
}
