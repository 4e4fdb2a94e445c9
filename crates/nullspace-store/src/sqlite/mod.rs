//! [`Metadata`] over SQLite: one host, one file.
//!
//! Readers have a pool of their own and never wait (WAL). Writers queue for one connection; each write is a `BEGIN
//! IMMEDIATE` transaction, so it sees everything committed before it and cannot fail half-way for want of the lock.
//! Other processes on the same file (`nullspace keys` beside a running service) take turns through `busy_timeout`.
//! `synchronous=FULL`: a commit that returned is on the disk.

mod blobs;
mod builds;
mod claims;
mod collection;
mod connections;
mod finish;
mod names;
mod queue;
mod rows;
mod sandboxes;
mod templates;
mod tenants;

use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::{
    SqlStr, Sqlite, SqlitePool, Transaction,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use crate::{
    Alias, ApiKey, Artifact, ArtifactId, Blob, BlobId, Build, BuildFilter, BuildId, BuildPage, Caller, CancelOutcome,
    CancelRequest, ClaimHash, Counters, FinishError, FinishReady, Finished, Heartbeat, HeldBlob, Inserted, KeyHash,
    KeyId, KnownFiles, Lease, Leased, LogEntry, Metadata, Namespace, NamespaceKind, NewBuild, NewClaim, NewKey,
    NewLogEntry, NewSandbox, QueueLimits, Release, Resolved, Result, Rootfs, Sandbox, SandboxFilter, SandboxId,
    SandboxStatus, Standing, StoreError, Tag, TemplateName, TemplateRef, Tenant, UnusedArtifact, Visibility,
};

/// How long a statement waits for another process's transaction, and a caller for a connection.
const WAIT: Duration = Duration::from_secs(30);
const READERS: u32 = 4;

/// A write transaction; dropped without a commit it never happened.
type Tx = Transaction<'static, Sqlite>;

/// The database file, opened.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
    /// Taken by the one request that notes a key's use, so that many at once do not all write the same.
    noting: Arc<tokio::sync::Mutex<()>>,
}

impl SqliteStore {
    /// Opens (or makes) the database and brings its tables to this version's shape.
    ///
    /// # Errors
    /// [`StoreError::Migrate`] when a newer version has written it.
    pub async fn open(path: &Path) -> Result<Self> {
        // Made before SQLite would, to be readable by nobody else; the journal files take its mode.
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|source| StoreError::Io { context: format!("open the database {}", path.display()), source })?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(false)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(WAIT)
            // A burst of log lines must not leave a huge journal for ever.
            .pragma("journal_size_limit", "67108864");
        let writer = connections::pool(1).connect_with(options.clone()).await?;
        migrate(&writer, path).await?;
        let readers = connections::pool(READERS).connect_with(options.read_only(true)).await?;
        Ok(Self { writer, readers, noting: Arc::default() })
    }

    /// For every write whose rows are read back, too: a statement with `RETURNING` outside a transaction may commit after
    /// its first row was handed out, and its failure would be lost.
    async fn write(&self) -> Result<Tx> {
        Ok(self.writer.begin_with("BEGIN IMMEDIATE").await?)
    }

    /// A transaction that sees one moment and writes nothing.
    async fn read(&self) -> Result<Tx> {
        Ok(self.readers.begin().await?)
    }
}

/// Two processes that open a new file at once would both make its tables: the second waits here and finds them made.
async fn migrate(writer: &SqlitePool, database: &Path) -> Result<()> {
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
        .map_err(|source| StoreError::Io { context: context(), source })?;
    // A separate file: closing any descriptor of the database itself would drop SQLite's own locks on it.
    let deadline = tokio::time::Instant::now() + WAIT;
    loop {
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(rustix::io::Errno::WOULDBLOCK) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(errno) => return Err(StoreError::Io { context: context(), source: io::Error::from(errno) }),
        }
    }
    migrator().run(writer).await.map_err(StoreError::Migrate)
}

/// The migrations, embedded. Not by `sqlx::migrate!`: its macro crate compiles SQLite and sqlx a second time, for the compiler.
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
    ])
}

/// `SQLITE_FULL`: the disk under the database, or the database itself, has no room.
const FULL: u32 = 13;

/// What SQLite answered; 0 for an error that is not SQLite's. <https://www.sqlite.org/rescode.html>: the low byte is the
/// primary code.
fn primary_code(error: &sqlx::Error) -> u32 {
    let sqlx::Error::Database(database) = error else { return 0 };
    database.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default() & 0xff
}

/// Whether SQLite had no room on the disk.
pub(crate) fn is_full(error: &sqlx::Error) -> bool {
    primary_code(error) == FULL
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed | sqlx::Error::Io(_) => {
                Self::Unavailable(error)
            }
            sqlx::Error::ColumnDecode { index, .. } => Self::corrupt(format!("column {index}")),
            sqlx::Error::Database(_) => match primary_code(&error) {
                // BUSY, LOCKED, NOMEM, IOERR, FULL, CANTOPEN
                5 | 6 | 7 | 10 | FULL | 14 => Self::Unavailable(error),
                // CORRUPT, NOTADB
                11 | 26 => Self::corrupt("the database file"),
                _ => Self::Database(error),
            },
            _ => Self::Database(error),
        }
    }
}

#[async_trait]
impl Metadata for SqliteStore {
    async fn ensure_tenant(&self, name: &str, kind: NamespaceKind, now: Timestamp) -> Result<Tenant> {
        tenants::ensure(self, name, kind, now).await
    }

    async fn list_tenants(&self) -> Result<Vec<Tenant>> {
        tenants::list(self).await
    }

    async fn create_key(&self, tenant: &Tenant, label: &str, key: &NewKey, now: Timestamp) -> Result<ApiKey> {
        tenants::create_key(self, tenant, label, key, now).await
    }

    async fn list_keys(&self, tenant: &Tenant) -> Result<Vec<ApiKey>> {
        tenants::list_keys(self, tenant).await
    }

    async fn revoke_key(&self, key: KeyId, now: Timestamp) -> Result<()> {
        tenants::revoke_key(self, key, now).await
    }

    async fn authenticate(&self, key: &KeyHash, now: Timestamp) -> Result<Caller> {
        tenants::authenticate(self, key, now).await
    }

    async fn keys_in_force(&self, keys: &[KeyId]) -> Result<Vec<KeyId>> {
        tenants::keys_in_force(self, keys).await
    }

    async fn get_namespace(&self, caller: &Caller, slug: &str) -> Result<Namespace> {
        tenants::get_namespace(self, caller, slug).await
    }

    async fn accept_build(
        &self,
        caller: &Caller,
        build: NewBuild,
        first: NewLogEntry,
        limits: QueueLimits,
        now: Timestamp,
    ) -> Result<Build> {
        queue::accept(self, caller, build, first, limits, now).await
    }

    async fn lease_build(
        &self,
        owner: &str,
        ttl: Duration,
        running_per_tenant: u32,
        now: Timestamp,
    ) -> Result<Option<Leased>> {
        queue::lease(self, owner, ttl, running_per_tenant, now).await
    }

    async fn heartbeat(&self, lease: &Lease, ttl: Duration, now: Timestamp) -> Result<Heartbeat> {
        queue::heartbeat(self, lease, ttl, now).await
    }

    async fn take_over(&self, owner: &str, now: Timestamp) -> Result<Vec<BuildId>> {
        queue::take_over(self, owner, now).await
    }

    async fn set_source_digest(&self, lease: &Lease, digest: &str, now: Timestamp) -> Result<()> {
        queue::set_source_digest(self, lease, digest, now).await
    }

    async fn set_build_config(&self, lease: &Lease, config: serde_json::Value, now: Timestamp) -> Result<()> {
        queue::set_build_config(self, lease, &config, now).await
    }

    async fn append_log(&self, lease: &Lease, entries: Vec<NewLogEntry>) -> Result<u64> {
        queue::append_log(self, lease, entries).await
    }

    async fn release_build(
        &self,
        lease: &Lease,
        how: Release,
        entries: Vec<NewLogEntry>,
        now: Timestamp,
    ) -> Result<()> {
        queue::release(self, lease, how, entries, now).await
    }

    async fn finish_ready(&self, lease: &Lease, result: FinishReady, now: Timestamp) -> Result<Finished> {
        finish::ready(self, lease, result, now).await
    }

    async fn finish_error(&self, lease: &Lease, error: FinishError, now: Timestamp) -> Result<Build> {
        finish::error(self, lease, error, now).await
    }

    async fn finish_cancelled(&self, lease: &Lease, entry: NewLogEntry, now: Timestamp) -> Result<Build> {
        finish::cancelled(self, lease, entry, now).await
    }

    async fn request_cancel(
        &self,
        caller: &Caller,
        build: BuildId,
        request: CancelRequest,
        now: Timestamp,
    ) -> Result<CancelOutcome> {
        finish::request_cancel(self, caller, build, request, now).await
    }

    async fn get_build(&self, caller: &Caller, build: BuildId) -> Result<Build> {
        Ok(self.build_and_next_offset(caller, build).await?.0)
    }

    async fn list_builds(&self, caller: &Caller, filter: BuildFilter) -> Result<BuildPage> {
        builds::list(self, caller, filter).await
    }

    async fn log_entries(&self, caller: &Caller, build: BuildId, from: u64, limit: u32) -> Result<Vec<LogEntry>> {
        builds::log_entries(self, caller, build, from, limit).await
    }

    async fn build_and_next_offset(&self, caller: &Caller, build: BuildId) -> Result<(Build, u64)> {
        builds::get(self, caller, build).await
    }

    async fn list_templates(&self, caller: &Caller) -> Result<Vec<Resolved>> {
        templates::list(self, caller).await
    }

    async fn resolve(&self, caller: &Caller, reference: &TemplateRef) -> Result<Resolved> {
        templates::resolve(self, caller, reference).await
    }

    async fn standing(&self, caller: &Caller, reference: &TemplateRef) -> Result<Standing> {
        names::standing(self, caller, reference).await
    }

    async fn assign_tags(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        tags: &[Tag],
        now: Timestamp,
    ) -> Result<Resolved> {
        names::assign_tags(self, caller, reference, tags, now).await
    }

    async fn promote_build(&self, caller: &Caller, build: BuildId, tags: &[Tag], now: Timestamp) -> Result<Resolved> {
        names::promote(self, caller, build, tags, now).await
    }

    async fn remove_tag(&self, caller: &Caller, reference: &TemplateRef, tag: &Tag) -> Result<()> {
        names::remove_tag(self, caller, reference, tag).await
    }

    async fn set_visibility(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        visibility: Visibility,
    ) -> Result<Standing> {
        names::set_visibility(self, caller, reference, visibility).await
    }

    async fn rename_template(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        name: &TemplateName,
        now: Timestamp,
    ) -> Result<Standing> {
        names::rename(self, caller, reference, name, now).await
    }

    async fn list_aliases(&self, caller: &Caller, reference: &TemplateRef) -> Result<Vec<Alias>> {
        names::aliases(self, caller, reference).await
    }

    async fn remove_alias(&self, caller: &Caller, reference: &TemplateRef, alias: &TemplateName) -> Result<()> {
        names::remove_alias(self, caller, reference, alias).await
    }

    async fn reserve_name(&self, caller: &Caller, claim: NewClaim, now: Timestamp) -> Result<()> {
        claims::reserve(self, caller, claim, now).await
    }

    async fn claimed_name(&self, caller: &Caller, token: ClaimHash, now: Timestamp) -> Result<TemplateName> {
        claims::claimed_name(self, caller, token, now).await
    }

    async fn release_name(&self, caller: &Caller, token: ClaimHash, now: Timestamp) -> Result<()> {
        claims::release(self, caller, token, now).await
    }

    async fn find_blobs(&self, caller: &Caller, wanted: &[BlobId], now: Timestamp) -> Result<BTreeSet<BlobId>> {
        blobs::find(self, caller, wanted, now).await
    }

    async fn put_blob(&self, caller: &Caller, blob: &BlobId, limit_bytes: u64, now: Timestamp) -> Result<()> {
        blobs::put(self, caller, blob, limit_bytes, now).await
    }

    async fn held_blobs(&self, lease: &Lease) -> Result<Vec<HeldBlob>> {
        blobs::held(self, lease).await
    }

    async fn find_final(&self, lease: &Lease, key: &str) -> Result<Option<Artifact>> {
        collection::find_final(self, lease, key).await
    }

    async fn collectable_blobs(&self, unused_since: Timestamp, limit: u32) -> Result<Vec<Blob>> {
        blobs::collectable(self, unused_since, limit).await
    }

    async fn purge_blob(&self, blob: &Blob, unused_since: Timestamp) -> Result<bool> {
        blobs::purge(self, blob, unused_since).await
    }

    async fn known_blobs(&self) -> Result<BTreeSet<Blob>> {
        blobs::known(self).await
    }

    async fn delete_template(
        &self,
        caller: &Caller,
        reference: &TemplateRef,
        cancel: CancelRequest,
        now: Timestamp,
    ) -> Result<()> {
        templates::delete(self, caller, reference, cancel, now).await
    }

    async fn find_rootfs(&self, lease: &Lease, key: &str, now: Timestamp) -> Result<Option<Rootfs>> {
        collection::find_rootfs(self, lease, key, now).await
    }

    async fn put_rootfs(&self, lease: &Lease, rootfs: Rootfs, now: Timestamp) -> Result<Rootfs> {
        collection::put_rootfs(self, lease, rootfs, None, now).await
    }

    async fn find_layer(&self, lease: &Lease, layer_key: &str, now: Timestamp) -> Result<Option<Rootfs>> {
        collection::find_layer(self, lease, layer_key, now).await
    }

    async fn put_layer(&self, lease: &Lease, rootfs: Rootfs, layer_key: &str, now: Timestamp) -> Result<Rootfs> {
        collection::put_rootfs(self, lease, rootfs, Some(layer_key), now).await
    }

    async fn set_rootfs_manifest(&self, file: &str, manifest: &str) -> Result<bool> {
        collection::set_rootfs_manifest(self, file, manifest).await
    }

    async fn hold_artifact(&self, lease: &Lease, artifact: ArtifactId) -> Result<Artifact> {
        collection::hold_artifact(self, lease, artifact).await
    }

    async fn insert_sandbox(&self, caller: &Caller, sandbox: NewSandbox, now: Timestamp) -> Result<Inserted> {
        sandboxes::insert(self, caller, sandbox, now).await
    }

    async fn set_sandbox_status(
        &self,
        sandbox: SandboxId,
        status: SandboxStatus,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<Sandbox> {
        sandboxes::set_status(self, sandbox, status, reason, now).await
    }

    async fn set_sandbox_timeout(
        &self,
        caller: &Caller,
        sandbox: SandboxId,
        timeout_at: Option<Timestamp>,
    ) -> Result<Sandbox> {
        sandboxes::set_timeout(self, caller, sandbox, timeout_at).await
    }

    async fn get_sandbox(&self, caller: &Caller, sandbox: SandboxId) -> Result<Sandbox> {
        sandboxes::get(self, caller, sandbox).await
    }

    async fn list_sandboxes(&self, caller: &Caller, filter: SandboxFilter) -> Result<Vec<Sandbox>> {
        sandboxes::list(self, caller, filter).await
    }

    async fn end_sandboxes_of_host(
        &self,
        host: &str,
        status: SandboxStatus,
        reason: &str,
        now: Timestamp,
    ) -> Result<Vec<SandboxId>> {
        sandboxes::end_of_host(self, host, status, reason, now).await
    }

    async fn collectable_artifacts(&self, now: Timestamp, limit: u32) -> Result<Vec<UnusedArtifact>> {
        collection::artifacts(self, now, limit).await
    }

    async fn purge_artifact(&self, artifact: ArtifactId, now: Timestamp) -> Result<bool> {
        collection::purge_artifact(self, artifact, now).await
    }

    async fn collectable_rootfs(&self, unused_since: Timestamp, limit: u32) -> Result<Vec<Rootfs>> {
        collection::rootfs(self, unused_since, limit).await
    }

    async fn purge_rootfs(&self, key: &str, unused_since: Timestamp) -> Result<bool> {
        collection::purge_rootfs(self, key, unused_since).await
    }

    async fn known_files(&self) -> Result<KnownFiles> {
        collection::known_files(self).await
    }

    async fn allotted(&self, artifacts: &BTreeSet<ArtifactId>) -> Result<BTreeSet<ArtifactId>> {
        collection::allotted(self, artifacts).await
    }

    async fn forget_lost(&self, lost: &KnownFiles, now: Timestamp) -> Result<()> {
        collection::forget_lost(self, lost, now).await
    }

    async fn get_artifact(&self, artifact: ArtifactId) -> Result<Artifact> {
        let mut tx = self.read().await?;
        templates::usable_artifact(&mut tx, artifact).await?.ok_or(StoreError::NotFound)
    }

    async fn get_setting(&self, key: &str) -> Result<Option<serde_json::Value>> {
        sqlx::query_scalar("SELECT value FROM settings WHERE key = ?")
            .bind(key)
            .fetch_optional(&self.readers)
            .await?
            .map(|text: String| rows::parse_json(&text, "settings.value"))
            .transpose()
    }

    async fn put_setting(&self, key: &str, value: &serde_json::Value, now: Timestamp) -> Result<()> {
        sqlx::query(
            "INSERT INTO settings (key, value, updated_at) VALUES (?, ?, ?)
             ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
        )
        .bind(key)
        .bind(value.to_string())
        .bind(now.as_microsecond())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    async fn counters(&self) -> Result<Counters> {
        collection::counters(self).await
    }

    async fn ping(&self, now: Timestamp) -> Result<()> {
        sqlx::query("SELECT 1").execute(&self.readers).await?;
        self.put_setting("last_ping", &serde_json::json!(now.as_second()), now).await
    }

    async fn close(&self) {
        self.readers.close().await;
        // Last, so that its closing folds the journal into the file.
        self.writer.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert!(matches!(reopened, Err(StoreError::Migrate(_))), "{reopened:?}");
    }
}
