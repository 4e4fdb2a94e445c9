//! The database on PostgreSQL, version 15 or later.
//!
//! ```text
//!   sql/*.rs ──compiled in `sqlite` for SQLite──> SqliteStore
//!      └───────compiled here for PostgreSQL─────> PostgresStore
//! ```
//! The statements are the same text on both: `sql/` is compiled twice, each time with the types of one driver and what its
//! `dialect` says. So there is no second set of statements, and no type that hides the driver at run time: `sqlx::Any` has no
//! custom `BEGIN` for it and reads every row through a copy. What PostgreSQL lacks of SQLite's functions is defined in its
//! first migration.
//!
//! Writes keep the promise that SQLite keeps by its one writer: nobody writes between what a transaction looks at and what it
//! then does.
//!
//! ```text
//!   write        advisory lock, alone           every rule that looks first: names, limits, the queue's turns, collection
//!   write_build  advisory lock, shared          a worker's notes on its own build: log, heartbeat; its row is locked
//!   read         no lock                        REPEATABLE READ: one moment
//! ```
//! The lock is taken in the transaction and ends with it, also when the process or its connection dies. It is of one schema, and
//! holds for all processes. So transactions are serial without SERIALIZABLE's failures: nothing has to be repeated. Workers of
//! different builds write at the same time, and commit together. `lock_timeout` limits the wait; whoever waits longer has
//! [`DbError::Unavailable`].

mod connections;
mod dialect;
mod service;
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

use std::sync::Arc;

use sqlx::{
    Database, PgConnection, PgPool, Postgres, SqlStr, Transaction,
    migrate::{Migration, MigrationType, Migrator},
    postgres::{PgConnectOptions, PgDatabaseError, PgRow},
    query::Query,
};

pub use service::ServiceLock;

use crate::{
    DbError, Result,
    error::Refusal,
    segments::{InRow, SegmentBytes},
};

/// What the statements in `sql` are compiled for.
type Db = Postgres;
type DbRow = PgRow;
type Store = PostgresStore;
/// A transaction. Dropping it without a commit rolls it back.
type Tx = Transaction<'static, Db>;

/// The oldest version of the server, as `server_version_num` has it.
const OLDEST: i32 = 150_000;

/// The lock of all writers on one schema, whose number is not another program's by more than chance.
macro_rules! turn {
    ($lock:literal) => {
        concat!("SELECT ", $lock, "(hashtextextended('nullspace write ' || current_schema(), 0))")
    };
}

/// A database on a PostgreSQL server.
#[derive(Clone)]
pub struct PostgresStore {
    writer: PgPool,
    readers: PgPool,
    /// How other connections of its own are made.
    options: PgConnectOptions,
    /// Held by the one request that records a key's use, so that concurrent requests do not all write it.
    noting: Arc<tokio::sync::Mutex<()>>,
    /// Where the compressed logs of finished builds are.
    segments: Arc<dyn SegmentBytes>,
}

/// The options of a pool have the password.
impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore").field("segments", &self.segments).finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects to the database of this URL, and migrates its tables to this version. They are in the first schema of the
    /// connection's `search_path`. Compressed logs are rows, too.
    ///
    /// # Errors
    /// [`DbError::Migrate`] when a newer version has written it, [`DbError::Conflict`] when the address or the server's version
    /// is refused.
    pub async fn open(url: &str) -> Result<Self> {
        Self::open_with(url, Arc::new(InRow)).await
    }

    /// Opens the database as [`PostgresStore::open`] does, with the bytes of compressed logs elsewhere. A database has one such
    /// place for ever, as [`SqliteStore::open_with`](crate::SqliteStore::open_with) says.
    ///
    /// # Errors
    /// As of [`PostgresStore::open`].
    pub async fn open_with(url: &str, segments: Arc<dyn SegmentBytes>) -> Result<Self> {
        let options = connections::options(url)?;
        let writer = connections::writers().connect_with(options.clone()).await?;
        check_version(&mut *writer.acquire().await?).await?;
        // Under an advisory lock of the database, which the migrator takes.
        migrator().run(&writer).await.map_err(DbError::Migrate)?;
        let reading = options.clone().options([("default_transaction_read_only", "on")]);
        let readers = connections::readers().connect_with(reading).await?;
        Ok(Self { writer, readers, options, noting: Arc::default(), segments })
    }

    /// Checks that a text is the URL of a database, without a connection.
    ///
    /// # Errors
    /// [`DbError::Conflict`], which has no part of the text: it may have a password.
    pub fn check_url(url: &str) -> Result<()> {
        connections::options(url).map(|_| ())
    }

    /// Looks at the server and the database of this URL, for the operator. Changes nothing.
    ///
    /// # Errors
    /// As of [`PostgresStore::open`].
    pub async fn about(url: &str) -> Result<String> {
        let pool = connections::one().connect_with(connections::options(url)?).await?;
        check_version(&mut *pool.acquire().await?).await?;
        let about =
            "SELECT 'PostgreSQL ' || current_setting('server_version') || ', database ' || current_database() || ', '
                || pg_size_pretty(pg_database_size(current_database()))";
        let about = sqlx::query_scalar(about).fetch_one(&pool).await?;
        pool.close().await;
        Ok(about)
    }

    /// Begins a write transaction, which no other one is beside.
    async fn write(&self) -> Result<Tx> {
        self.begin(turn!("pg_advisory_xact_lock")).await
    }

    /// Begins a write transaction of one leased build, whose first statement, [`one_build::fence`], locks its row. Those of other
    /// builds may be beside it.
    async fn write_build(&self) -> Result<Tx> {
        self.begin(turn!("pg_advisory_xact_lock_shared")).await
    }

    async fn begin(&self, lock: &'static str) -> Result<Tx> {
        // Each statement sees what was committed before it: after the lock, all earlier writes.
        let mut tx = self.writer.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE").await?;
        sqlx::query(lock).execute(&mut *tx).await?;
        Ok(tx)
    }

    /// Runs one statement that writes. Returns the number of rows that it changed.
    async fn run(&self, statement: Query<'_, Db, <Db as Database>::Arguments>) -> Result<u64> {
        let mut tx = self.write().await?;
        let done = statement.execute(&mut *tx).await?;
        tx.commit().await?;
        Ok(done.rows_affected())
    }

    /// Begins the transaction that a copy writes.
    pub(crate) async fn begin_copy(&self) -> Result<Tx> {
        self.write().await
    }

    /// Begins a transaction that reads one moment and writes nothing.
    async fn read(&self) -> Result<Tx> {
        Ok(self.readers.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
    }
}

async fn check_version(connection: &mut PgConnection) -> Result<()> {
    let version: i32 = sqlx::query_scalar("SELECT CAST(current_setting('server_version_num') AS INTEGER)")
        .fetch_one(connection)
        .await?;
    if version < OLDEST {
        let (found, oldest) = (version / 10_000, OLDEST / 10_000);
        return Err(DbError::conflict(format!("the server is PostgreSQL {found}: {oldest} or later is needed")));
    }
    Ok(())
}

/// The migrations, embedded as SQLite's are. Their numbers are their own.
fn migrator() -> Migrator {
    macro_rules! migration {
        ($version:literal, $description:literal, $file:literal) => {
            Migration::new(
                $version,
                $description.into(),
                MigrationType::Simple,
                SqlStr::from_static(include_str!(concat!("../../migrations/postgres/", $file))),
                false,
            )
        };
    }
    Migrator::with_migrations(vec![
        migration!(1, "first", "0001_first.sql"),
        migration!(2, "warm pools", "0002_warm_pools.sql"),
    ])
}

/// `disk_full`.
const FULL: &str = "53100";

/// Whether the disk under PostgreSQL was full.
pub(crate) fn is_full(error: &PgDatabaseError) -> bool {
    error.code() == FULL
}

/// What PostgreSQL's refusal of a statement means for the caller, by its SQLSTATE
/// (<https://www.postgresql.org/docs/15/errcodes-appendix.html>).
pub(crate) fn refusal(error: &PgDatabaseError) -> Refusal {
    match error.code() {
        // Invalid text: a zero byte, or an escaped one.
        "22021" | "22P05" => Refusal::Value,
        // serialization_failure and deadlock_detected, which nothing here should cause; read_only_sql_transaction of a server
        // that has become a standby; idle_in_transaction_session_timeout; query_canceled by a timeout.
        "40001" | "40P01" | "25006" | "25P03" | "57014" => Refusal::Unavailable,
        // lock_not_available, too_many_connections and other lack of resources; a server that starts, stops or lost a process; a
        // lost connection; an error of its disk.
        code => match code.get(..2) {
            Some("08" | "53" | "55" | "57" | "58") => Refusal::Unavailable,
            Some("XX") if code != "XX000" => Refusal::Corrupt("the database's files"),
            _ => Refusal::Internal,
        },
    }
}
