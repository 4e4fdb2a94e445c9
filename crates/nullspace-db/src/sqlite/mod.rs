//! The database on SQLite: one host, one file. The statements are in `sql/`; `postgres` says how they are compiled for both.
//!
//! Readers have a pool of their own and never wait (WAL). Writers queue for one connection. Each write is a `BEGIN IMMEDIATE`
//! transaction: it sees every earlier commit, and cannot fail half-way for lack of the lock. Other processes on the same file
//! (`nullspace keys` beside a running service) take turns through `busy_timeout`. `synchronous=FULL`: a commit is on the disk
//! when it returns.

mod connections;
mod dialect;
mod space;

#[path = "../sql/blobs.rs"]
mod blobs;
#[path = "../sql/builds.rs"]
mod builds;
#[path = "../sql/catalog.rs"]
mod catalog;
#[path = "../sql/claims.rs"]
mod claims;
#[path = "../sql/collection.rs"]
mod collection;
#[path = "../sql/deliveries.rs"]
mod deliveries;
#[path = "../sql/events.rs"]
mod events;
#[path = "../sql/finish.rs"]
mod finish;
#[path = "../sql/grants.rs"]
mod grants;
#[path = "../sql/health.rs"]
mod health;
#[path = "../sql/keys.rs"]
mod keys;
#[path = "../sql/logs.rs"]
mod logs;
#[path = "../sql/names.rs"]
mod names;
#[path = "../sql/one_build.rs"]
mod one_build;
#[path = "../sql/promotions.rs"]
mod promotions;
#[path = "../sql/queue.rs"]
mod queue;
#[path = "../sql/retention.rs"]
mod retention;
#[path = "../sql/reuse.rs"]
mod reuse;
#[path = "../sql/rows.rs"]
mod rows;
#[path = "../sql/sandboxes.rs"]
mod sandboxes;
#[path = "../sql/snapshots.rs"]
mod snapshots;
#[path = "../sql/ssh.rs"]
mod ssh;
#[path = "../sql/templates.rs"]
mod templates;
#[path = "../sql/tenants.rs"]
mod tenants;
#[path = "../sql/warm_pools.rs"]
mod warm_pools;
#[path = "../sql/webhooks.rs"]
mod webhooks;

#[cfg(test)]
mod plans;

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sqlx::{
    Database, SqlStr, Sqlite, SqlitePool, Transaction,
    error::DatabaseError,
    migrate::{Migration, MigrationType, Migrator},
    query::Query,
    sqlite::{SqliteAutoVacuum, SqliteConnectOptions, SqliteError, SqliteJournalMode, SqliteRow, SqliteSynchronous},
};

use crate::{
    DbError, Result,
    error::Refusal,
    segments::{InRow, SegmentBytes},
};

/// Longest wait of a statement for another process's transaction, and of a caller for a connection.
const WAIT: Duration = Duration::from_secs(30);
const READERS: u32 = 4;

/// What the statements in `sql` are compiled for.
type Db = Sqlite;
type DbRow = SqliteRow;
type Store = SqliteStore;
/// A transaction. Dropping it without a commit rolls it back.
type Tx = Transaction<'static, Db>;

/// The database file, opened.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    /// Held by the one request that records a key's use, so that concurrent requests do not all write it.
    noting: Arc<tokio::sync::Mutex<()>>,
    /// Where the compressed logs of finished builds are.
    segments: Arc<dyn SegmentBytes>,
}

impl SqliteStore {
    /// Opens or creates the database, and migrates its tables to this version. Compressed logs are rows, too.
    ///
    /// # Errors
    /// [`DbError::Migrate`] when a newer version has written it.
    pub async fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, Arc::new(InRow)).await
    }

    /// Opens the database as [`SqliteStore::open`] does, with the bytes of compressed logs elsewhere. A database has one such
    /// place for ever: what one has stored, another does not find. It is asked for all segments, also for those that are in
    /// their row since they were stored without it ([`is_segment_in_row`](crate::is_segment_in_row)).
    ///
    /// # Errors
    /// [`DbError::Migrate`] when a newer version has written it.
    pub async fn open_with(path: &Path, segments: Arc<dyn SegmentBytes>) -> Result<Self> {
        // Made before SQLite would, to be readable by nobody else; the journal files take its mode.
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| DbError::Io { context: format!("open the database {}", path.display()), source })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(WAIT)
            // A burst of log lines must not leave a huge journal for ever.
            .pragma("journal_size_limit", "67108864");
        let lock = migration_lock(path).await?;
        let writing = match std::fs::metadata(path) {
            // An older file must be rewritten for that (`space`).
            Ok(file) if file.len() == 0 => options.clone().auto_vacuum(SqliteAutoVacuum::Incremental),
            _ => options.clone(),
        };
        let writer = connections::pool(1).connect_with(writing).await?;
        migrator().run(&writer).await.map_err(DbError::Migrate)?;
        drop(lock);
        let readers = connections::pool(READERS).connect_with(options.read_only(true)).await?;
        Ok(Self { writer, readers, noting: Arc::default(), segments })
    }

    /// Begins a write transaction. It is also needed where rows are read back: a statement with `RETURNING` outside a
    /// transaction may commit after its first row was returned, and its failure would be lost.
    async fn write(&self) -> Result<Tx> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// Begins a write transaction of one leased build, which its first statement, [`one_build::fence`], makes its own.
    async fn write_build(&self) -> Result<Tx> {
        self.write().await
    }

    /// Runs one statement that writes. Returns the number of rows that it changed.
    async fn run(&self, statement: Query<'_, Db, <Db as Database>::Arguments>) -> Result<u64> {
        Ok(statement.execute(&self.writer).await?.rows_affected())
    }

    /// Begins the transaction that a copy reads.
    pub(crate) async fn begin_copy(&self) -> Result<Tx> {
        self.read().await
    }

    /// Begins a transaction that reads one moment and writes nothing.
    async fn read(&self) -> Result<Tx> {
        Ok(self.readers.begin().await?)
    }
}

/// Waits for the lock under which a file is made and its migrations run: a second process that opens a new file finds its form
/// and its tables made. Dropping it releases it.
async fn migration_lock(database: &Path) -> Result<std::fs::File> {
    let mut name = database.as_os_str().to_owned();
    name.push(".migrating");
    let path = PathBuf::from(name);
    let context = || format!("lock {}", path.display());
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| DbError::Io { context: context(), source })?;
    // A separate file: closing any descriptor of the database itself would drop SQLite's own locks on it.
    let deadline = tokio::time::Instant::now() + WAIT;
    loop {
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(errno) => return Err(DbError::Io { context: context(), source: io::Error::from(errno) }),
        }
    }
}

/// The migrations, embedded. `sqlx::migrate!` is not used: its macro crate compiles SQLite and sqlx a second time, for the
/// compiler.
fn migrator() -> Migrator {
    macro_rules! migration {
        ($version:literal, $description:literal, $file:literal) => {
            Migration::new(
                $version,
                $description.into(),
                MigrationType::Simple,
                SqlStr::from_static(include_str!(concat!("../../migrations/sqlite/", $file))),
                false,
            )
        };
    }
    Migrator::with_migrations(vec![
        migration!(1, "first", "0001_first.sql"),
        migration!(2, "names and blobs", "0002_names_and_blobs.sql"),
        migration!(3, "steps", "0003_steps.sql"),
        migration!(4, "chunks", "0004_chunks.sql"),
        migration!(5, "streams", "0005_streams.sql"),
        migration!(6, "retention", "0006_retention.sql"),
        migration!(7, "life", "0007_life.sql"),
        migration!(8, "grants", "0008_grants.sql"),
        migration!(9, "keys", "0009_keys.sql"),
        migration!(10, "evictions and makers", "0010_evictions_and_makers.sql"),
        migration!(11, "ssh accesses", "0011_ssh_accesses.sql"),
        migration!(13, "owners of deliveries", "0013_delivery_owners.sql"),
        migration!(14, "warm pools", "0014_warm_pools.sql"),
    ])
}

/// `SQLITE_FULL`: the disk under the database, or the database itself, is full.
const FULL: u32 = 13;

/// The primary result code of SQLite: the low byte (<https://www.sqlite.org/rescode.html>).
fn primary_code(error: &SqliteError) -> u32 {
    DatabaseError::code(error).and_then(|code| code.parse::<u32>().ok()).unwrap_or_default() & 0xff
}

/// Whether the disk under SQLite was full.
pub(crate) fn is_full(error: &SqliteError) -> bool {
    primary_code(error) == FULL
}

/// What SQLite's refusal of a statement means for the caller.
pub(crate) fn refusal(error: &SqliteError) -> Refusal {
    match primary_code(error) {
        // BUSY, LOCKED, NOMEM, IOERR, FULL, CANTOPEN
        5 | 6 | 7 | 10 | FULL | 14 => Refusal::Unavailable,
        // CORRUPT, NOTADB
        11 | 26 => Refusal::Corrupt("the database file"),
        _ => Refusal::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Health as _;

    /// What the promise "when it returns `Ok`, the change survives the loss of power" rests on; no test can cut the power.
    #[tokio::test]
    async fn a_commit_waits_for_the_disk() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = SqliteStore::open(&dir.path().join("nullspace.db")).await.unwrap();
        let journal: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&store.writer).await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(&store.writer).await.unwrap();
        let foreign_keys: i64 = sqlx::query_scalar("PRAGMA foreign_keys").fetch_one(&store.writer).await.unwrap();
        assert_eq!((journal.as_str(), synchronous, foreign_keys), ("wal", 2, 1));
    }

    #[tokio::test]
    async fn readers_cannot_write() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = SqliteStore::open(&dir.path().join("nullspace.db")).await.unwrap();
        let written = sqlx::query("DELETE FROM settings").execute(&store.readers).await;
        assert!(written.is_err());
    }

    #[tokio::test]
    async fn a_database_of_a_newer_version_is_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("nullspace.db");
        let store = SqliteStore::open(&path).await.unwrap();
        sqlx::query(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'from the future', 1, x'00', 0)",
        )
        .execute(&store.writer)
        .await
        .unwrap();
        store.close().await;
        let reopened = SqliteStore::open(&path).await;
        assert!(matches!(reopened, Err(DbError::Migrate(_))), "{reopened:?}");
    }

    #[tokio::test]
    async fn tokens_in_configurations_of_before_move_or_go() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("nullspace.db");
        let options = SqliteConnectOptions::new().filename(&path).create_if_missing(true).foreign_keys(false);
        let before = connections::pool(1).connect_with(options).await.unwrap();
        let older: Vec<Migration> = migrator().iter().filter(|migration| migration.version < 10).cloned().collect();
        Migrator::with_migrations(older).run(&before).await.unwrap();
        for (id, status, ended, config) in [
            ("sb_1", "running", None, r#"{"vcpus": 1, "sealed_traffic_token": "00ff"}"#),
            ("sb_2", "destroyed", Some(5), r#"{"vcpus": 2, "sealed_traffic_token": "00ff"}"#),
            ("sb_3", "running", None, r#"{"vcpus": 3}"#),
        ] {
            sqlx::query(
                "INSERT INTO sandboxes (id, tenant_id, artifact_id, template_ref, status, config, metadata, created_at,
                     ended_at, host) VALUES (?, 't', 'a', 'web', ?, ?, '{}', 1, ?, 'h')",
            )
            .bind(id)
            .bind(status)
            .bind(config)
            .bind(ended)
            .execute(&before)
            .await
            .unwrap();
            sqlx::query(
                "INSERT INTO snapshots (id, tenant_id, kind, sandbox_id, artifact_id, folder, streams, summary, size_bytes,
                     stored_bytes, metadata, template_ref, config, sandbox_metadata, created_at)
                 VALUES (?1, 't', 'kept', ?1, 'a', ?1, '{}', '{}', 1, 1, '{}', 'web', ?2, '{}', 1)",
            )
            .bind(id)
            .bind(config)
            .execute(&before)
            .await
            .unwrap();
        }
        before.close().await;
        let store = SqliteStore::open(&path).await.unwrap();
        let rows: Vec<(String, Option<Vec<u8>>)> =
            sqlx::query_as("SELECT config, sealed_traffic_token FROM sandboxes ORDER BY id")
                .fetch_all(&store.readers)
                .await
                .unwrap();
        let tokens: Vec<_> = rows.iter().map(|(_, token)| token.clone()).collect();
        assert_eq!(tokens, [Some(vec![0, 0xff]), None, None]);
        let copies: Vec<String> =
            sqlx::query_scalar("SELECT config FROM snapshots").fetch_all(&store.readers).await.unwrap();
        let configs = rows.into_iter().map(|(config, _)| config).chain(copies);
        assert!(configs.into_iter().all(|config| config.contains("vcpus") && !config.contains("token")));
    }
}
