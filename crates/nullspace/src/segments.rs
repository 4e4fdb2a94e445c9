//! Compressed logs of finished builds as objects of the data folder: the database's port, the sweep, and what is missing.
//!
//! ```text
//!   database ── SegmentBytes ──> StoredSegments ──> LogSegments     logs/ of the data folder, or of its object store
//!      └── the segment's row keeps `log:<name>`; that of an older version keeps the segment itself
//! ```

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use nullspace_data::{DataError, LogSegments, SegmentName};
use nullspace_db::{Database, DbError, SegmentBytes, is_segment_in_row};
use tokio_util::sync::CancellationToken;

/// What a row keeps in front of the name.
const MARK: &str = "log:";
/// Longest wait for a segment to be stored, and to be read. Readers of a log wait for the second.
const LONGEST_PUT: Duration = Duration::from_secs(120);
const LONGEST_GET: Duration = Duration::from_secs(30);
/// Longest wait for a removal. What is left is swept.
const LONGEST_REMOVE: Duration = Duration::from_secs(10);
/// Time between two sweeps, and after one that failed.
const EVERY: Duration = Duration::from_secs(24 * 3600);
const AGAIN: Duration = Duration::from_secs(15 * 60);

/// The bytes of the database's log segments, in the data folder or its object store.
#[derive(Debug)]
pub(crate) struct StoredSegments(LogSegments);

impl StoredSegments {
    pub(crate) fn new(logs: LogSegments) -> Arc<StoredSegments> {
        Arc::new(StoredSegments(logs))
    }
}

#[async_trait]
impl SegmentBytes for StoredSegments {
    async fn put(&self, bytes: Vec<u8>) -> Result<Vec<u8>, DbError> {
        let name = within(LONGEST_PUT, self.0.put(bytes)).await?;
        Ok(kept(name))
    }

    async fn get(&self, kept: Vec<u8>) -> Result<Vec<u8>, DbError> {
        if is_segment_in_row(&kept) {
            return Ok(kept);
        }
        within(LONGEST_GET, self.0.get(parse(&kept)?)).await
    }

    async fn remove(&self, kept: Vec<u8>) -> Result<(), DbError> {
        if is_segment_in_row(&kept) {
            return Ok(());
        }
        within(LONGEST_REMOVE, self.0.remove(parse(&kept)?)).await
    }

    fn outside(&self) -> bool {
        true
    }
}

/// What a row keeps of this name.
pub(crate) fn kept(name: SegmentName) -> Vec<u8> {
    format!("{MARK}{name}").into_bytes()
}

/// The name that a row keeps.
fn parse(kept: &[u8]) -> Result<SegmentName, DbError> {
    let name = std::str::from_utf8(kept).ok().and_then(|kept| kept.strip_prefix(MARK)?.parse().ok());
    name.ok_or_else(|| DbError::Corrupt { what: "build_log_segments.kept".to_owned() })
}

async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, DataError>>) -> Result<T, DbError> {
    match tokio::time::timeout(limit, call).await {
        Ok(done) => done.map_err(of_data),
        Err(_) => Err(DbError::SegmentsUnavailable(format!("no answer within {} s", limit.as_secs()).into())),
    }
}

fn of_data(error: DataError) -> DbError {
    match error {
        away if away.is_store_away() => DbError::SegmentsUnavailable(Box::new(away)),
        DataError::Io { context, source } => DbError::Io { context, source },
        DataError::Damaged { what } => DbError::Corrupt { what },
        other => DbError::Conflict { what: other.to_string() },
    }
}

/// The names of segments that the database keeps. What is no name is a fault of its own, which reading that log reports.
async fn named(database: &dyn Database) -> Result<HashSet<SegmentName>, DbError> {
    Ok(database.segments_elsewhere().await?.iter().filter_map(|kept| parse(kept).ok()).collect())
}

/// Sweeps segments without a row, at the start of the service and then daily, until it stops.
pub(crate) async fn sweep_daily(logs: LogSegments, database: Arc<dyn Database>, stop: CancellationToken) {
    loop {
        let swept = tokio::select! {
            () = stop.cancelled() => return,
            swept = sweep(&logs, database.as_ref()) => swept,
        };
        let wait = match swept {
            Ok(0) => EVERY,
            Ok(removed) => {
                tracing::info!(removed, "parts of logs without a build removed");
                EVERY
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "parts of logs without a build are looked for again later"
                );
                AGAIN
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Removes segments that are old and have no row. Returns how many.
async fn sweep(logs: &LogSegments, database: &dyn Database) -> anyhow::Result<u64> {
    let mut old = logs.old().await.context("list the parts of logs")?;
    if old.is_empty() {
        return Ok(0);
    }
    // Asked afterwards: the row of an old one is there by now, or never comes.
    for name in named(database).await.context("list the parts of logs that are known")? {
        old.remove(&name);
    }
    logs.sweep(old).await.context("remove parts of logs")
}

/// The segments that the database names and that are nowhere; not those that a service beside us removes meanwhile.
///
/// # Errors
/// When the database, the data folder or its object store cannot be read.
pub(crate) async fn missing(logs: &LogSegments, database: &dyn Database) -> anyhow::Result<HashSet<SegmentName>> {
    let names = named(database).await.context("list the parts of logs that are known")?;
    let mut missing = logs.missing(names).await.context("look for the parts of logs")?;
    if !missing.is_empty() {
        let still = named(database).await.context("list the parts of logs that are known")?;
        missing.retain(|name| still.contains(name));
    }
    Ok(missing)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use nullspace_data::ArtifactStore;
    use nullspace_db::SqliteStore;

    use super::*;

    struct Stage {
        dir: tempfile::TempDir,
        segments: Arc<StoredSegments>,
        database: SqliteStore,
    }

    async fn stage() -> Stage {
        let dir = tempfile::TempDir::new().unwrap();
        let files = ArtifactStore::open(dir.path()).unwrap();
        let segments = StoredSegments::new(files.logs());
        let database = SqliteStore::open_with(&dir.path().join("nullspace.db"), segments.clone()).await.unwrap();
        Stage { dir, segments, database }
    }

    impl Stage {
        fn path(&self, kept: &[u8]) -> std::path::PathBuf {
            let name = parse(kept).unwrap().to_string();
            self.dir.path().join("logs").join(&name[..2]).join(name)
        }
    }

    #[tokio::test]
    async fn a_row_keeps_a_name_or_the_segment_of_an_older_version() {
        let stage = stage().await;
        let segment = zstd::encode_all(&b"entries"[..], 3).unwrap();
        assert!(is_segment_in_row(&segment));
        let kept = stage.segments.put(segment.clone()).await.unwrap();
        assert!(!is_segment_in_row(&kept) && stage.path(&kept).exists());
        assert_eq!(stage.segments.get(kept.clone()).await.unwrap(), segment);
        assert_eq!(stage.segments.get(segment.clone()).await.unwrap(), segment);
        stage.segments.remove(segment).await.unwrap();
        stage.segments.remove(kept.clone()).await.unwrap();
        assert!(!stage.path(&kept).exists());
        assert!(matches!(stage.segments.get(kept).await, Err(DbError::Corrupt { .. })));
        for bad in [&b""[..], b"log:", b"log:../../host", b"\xff\xfe"] {
            assert!(matches!(stage.segments.get(bad.to_vec()).await, Err(DbError::Corrupt { .. })));
        }
    }

    #[tokio::test]
    async fn only_old_ones_without_a_row_are_swept_and_lost_ones_are_missing() {
        let stage = stage().await;
        let (named, lost) = (stage.segments.put(vec![1]).await.unwrap(), stage.segments.put(vec![2]).await.unwrap());
        let orphan = stage.segments.put(vec![3]).await.unwrap();
        let young = stage.segments.put(vec![4]).await.unwrap();
        for kept in [&named, &orphan] {
            let file = fs::File::options().write(true).open(stage.path(kept)).unwrap();
            file.set_modified(SystemTime::now() - 2 * EVERY).unwrap();
        }
        fs::remove_file(stage.path(&lost)).unwrap();
        // Rows of one build, which other tables need not have here.
        let url = format!("sqlite://{}", stage.dir.path().join("nullspace.db").display());
        let rows = sqlx::SqlitePool::connect(&url).await.unwrap();
        for (first, kept) in [&named, &lost].into_iter().enumerate() {
            let row = "INSERT INTO build_log_segments (build_id, first, last, plain_bytes, stored_bytes, kept)
                       VALUES ('tb_x', ?1, ?1, 1, 1, ?2)";
            let row = sqlx::query(row).bind(i64::try_from(first).unwrap()).bind(kept.as_slice());
            row.execute(&mut *disconnected(&rows).await).await.unwrap();
        }
        assert_eq!(sweep(&stage.segments.0, &stage.database).await.unwrap(), 1);
        assert!(stage.path(&named).exists() && stage.path(&young).exists() && !stage.path(&orphan).exists());
        let expected = HashSet::from([parse(&lost).unwrap()]);
        assert_eq!(missing(&stage.segments.0, &stage.database).await.unwrap(), expected);
    }

    /// A connection that does not check references.
    async fn disconnected(rows: &sqlx::SqlitePool) -> sqlx::pool::PoolConnection<sqlx::Sqlite> {
        let mut connection = rows.acquire().await.unwrap();
        sqlx::query("PRAGMA foreign_keys = OFF").execute(&mut *connection).await.unwrap();
        connection
    }
}
