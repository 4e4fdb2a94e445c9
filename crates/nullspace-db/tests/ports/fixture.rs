//! A database of one test, and short words for what tests do most.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use nullspace_db::{
    Build, BuildBackend, CancelRequest, Database, DbError, FinishError, FinishReady, Finished, Lease, Leased, LogEntry,
    NamespaceKind, NewBuild, NewLogEntry, NewSandbox, NewSnapshot, PostgresStore, QueueLimits, Resolved, SegmentBytes,
    SnapshotKind, SourceType, SqliteStore,
};
use nullspace_types::{ArtifactId, BuildId, Caller, Rootfs, SandboxId, SnapshotId, Streams, TemplateRef};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection, PgConnection, Row, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

pub(crate) const TTL: Duration = Duration::from_secs(30);
pub(crate) const ROOMY: QueueLimits = QueueLimits { per_tenant: 10_000, total: 100_000 };
pub(crate) const ROOTFS_KEY: &str = "00112233445566778899aabbccddeeff";

/// A moment `seconds` into the test.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + seconds).unwrap()
}

pub(crate) fn entry(text: &str) -> NewLogEntry {
    NewLogEntry { at: at(0), body: json!({ "message": text }) }
}

/// The variable that has the address of a database on a PostgreSQL server: then every test has a schema of its own there. Unset,
/// every test has a SQLite file of its own.
pub(crate) const DATABASE: &str = "NULLSPACE_TEST_DATABASE_URL";
/// The variable that has the folder of that server's databases.
pub(crate) const DATABASE_FILES: &str = "NULLSPACE_TEST_DATABASE_FILES";

pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Database>,
    place: Place,
}

/// Where the test's database is.
pub(crate) enum Place {
    Sqlite(TempDir),
    Postgres { url: String },
}

/// Cases of a test that makes up its own, of which each has a database. On PostgreSQL a database takes a hundred times as long to make.
pub(crate) fn cases(on_sqlite: u32) -> u32 {
    if std::env::var_os(DATABASE).is_some() { on_sqlite / 6 } else { on_sqlite }
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let place = Place::new().await;
        let store = place.open(None).await;
        Self { store, place }
    }

    /// A second service on the same database.
    pub(crate) async fn another(&self) -> Arc<dyn Database> {
        self.place.open(None).await
    }

    /// A second service on the same database, with another place for log segments.
    pub(crate) async fn another_with(&self, segments: Arc<dyn SegmentBytes>) -> Arc<dyn Database> {
        self.place.open(Some(segments)).await
    }

    /// The first column of what the database itself answers.
    pub(crate) async fn query(&self, sql: &'static str) -> Vec<String> {
        match &self.place {
            Place::Sqlite(dir) => sqlx::query_scalar(sql).fetch_all(&mut file(dir).await).await.unwrap(),
            Place::Postgres { url } => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                let rows = sqlx::raw_sql(sql).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                // Answered as text, whatever it is.
                rows.iter().map(|row| row.try_get_unchecked(0).unwrap()).collect()
            }
        }
    }

    /// Rows that refer to rows that are not there.
    pub(crate) async fn broken_references(&self) -> Vec<String> {
        match &self.place {
            Place::Sqlite(_) => self.query("SELECT \"table\" FROM pragma_foreign_key_check").await,
            // They cannot be, as long as every reference is enforced.
            Place::Postgres { .. } => {
                self.query(
                    "SELECT conname FROM pg_constraint WHERE contype = 'f' AND NOT convalidated
                         AND connamespace = CAST(current_schema() AS REGNAMESPACE)",
                )
                .await
            }
        }
    }

    /// What a rule of the database itself forbids from now on, as if the machine failed at that statement.
    pub(crate) async fn sabotage(&self, statement: &'static str) {
        match &self.place {
            Place::Sqlite(dir) => {
                let mut connection = file(dir).await;
                sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            Place::Postgres { url } => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                let statement = sqlx::AssertSqlSafe(for_postgres(statement));
                sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// Where another process finds the database: a path, or a URL.
    pub(crate) fn address(&self) -> String {
        match &self.place {
            Place::Sqlite(dir) => dir.path().join("nullspace.db").to_str().unwrap().to_owned(),
            Place::Postgres { url } => url.clone(),
        }
    }

    /// Makes the last statement of `finish_ready` fail, whatever came before it.
    pub(crate) async fn make_ready_builds_fail(&self) {
        self.sabotage(
            "CREATE TRIGGER sabotage BEFORE UPDATE ON builds WHEN new.status = 'ready'
             BEGIN SELECT raise(ABORT, 'sabotaged'); END",
        )
        .await;
    }

    /// Every file the database is made of.
    pub(crate) async fn files(&self) -> Vec<PathBuf> {
        match &self.place {
            Place::Sqlite(dir) => std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect(),
            Place::Postgres { url } => {
                let mut connection = PgConnection::connect(url).await.unwrap();
                sqlx::raw_sql("CHECKPOINT").execute(&mut connection).await.unwrap();
                // Of tables, indexes and long values.
                let files = "SELECT pg_relation_filepath(oid) FROM pg_class c WHERE pg_relation_filepath(oid) IS NOT NULL
                    AND (relnamespace = CAST(current_schema() AS REGNAMESPACE) OR oid IN (
                        SELECT reltoastrelid FROM pg_class WHERE relnamespace = CAST(current_schema() AS REGNAMESPACE)))";
                let files: Vec<String> = sqlx::query_scalar(files).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                let folder = PathBuf::from(std::env::var_os(DATABASE_FILES).unwrap());
                files.iter().map(|file| folder.join(file)).collect()
            }
        }
    }

    pub(crate) async fn tenant(&self, name: &str) -> Caller {
        self.store.ensure_tenant(name, NamespaceKind::User, at(0)).await.unwrap().caller()
    }

    pub(crate) async fn system(&self) -> Caller {
        self.store.ensure_tenant("nullspace", NamespaceKind::System, at(0)).await.unwrap().caller()
    }

    pub(crate) async fn accept(&self, caller: &Caller, name: &str) -> Build {
        self.accept_with(caller, new_build(name, &["default"])).await
    }

    pub(crate) async fn accept_with(&self, caller: &Caller, build: NewBuild) -> Build {
        self.store.accept_build(caller, build, entry("start"), ROOMY, at(0)).await.unwrap()
    }

    /// Leases whatever is next, which must be something to run.
    pub(crate) async fn run(&self, owner: &str, now: Timestamp) -> (Lease, Build) {
        match self.store.lease_build(owner, TTL, u32::MAX, now).await.unwrap() {
            Some(Leased::Run { lease, build }) => (lease, *build),
            other => panic!("expected a build to run, got {other:?}"),
        }
    }

    /// Records the root image that [`result`] names.
    pub(crate) async fn rootfs(&self, lease: &Lease) -> Rootfs {
        self.store.put_rootfs(lease, rootfs("a"), at(0)).await.unwrap()
    }

    /// Takes a build all the way to `ready`.
    pub(crate) async fn ready(&self, caller: &Caller, name: &str, tags: &[&str], now: Timestamp) -> Build {
        self.ready_as(caller, new_build(name, tags), result(), now).await
    }

    /// The same with another result.
    pub(crate) async fn ready_with(&self, caller: &Caller, name: &str, result: FinishReady, now: Timestamp) -> Build {
        self.ready_as(caller, new_build(name, &["default"]), result, now).await
    }

    async fn ready_as(&self, caller: &Caller, build: NewBuild, result: FinishReady, now: Timestamp) -> Build {
        let accepted = self.accept_with(caller, build).await;
        let (lease, leased) = self.run("worker", now).await;
        assert_eq!(leased.id, accepted.id, "the queue holds something else");
        self.rootfs(&lease).await;
        match self.store.finish_ready(&lease, result, now).await.unwrap() {
            Finished::Ready(build) => *build,
            Finished::CancelRequested => panic!("nobody cancelled"),
        }
    }

    pub(crate) async fn log(&self, caller: &Caller, build: BuildId) -> Vec<LogEntry> {
        self.store.log_entries(caller, build, 0, 1000).await.unwrap()
    }

    pub(crate) async fn messages(&self, caller: &Caller, build: BuildId) -> Vec<String> {
        let log = self.log(caller, build).await;
        for (index, entry) in log.iter().enumerate() {
            assert_eq!(entry.offset, index as u64, "offsets have a gap");
        }
        log.iter().map(|entry| entry.body["message"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) async fn resolve(&self, caller: &Caller, reference: &str) -> Result<Resolved, DbError> {
        let reference: TemplateRef = reference.parse().unwrap();
        self.store.resolve(caller, &reference).await
    }

    pub(crate) async fn delete(&self, caller: &Caller, reference: &str, now: Timestamp) -> Result<(), DbError> {
        let reference: TemplateRef = reference.parse().unwrap();
        self.store.delete_template(caller, &reference, cancel("deleted"), now).await
    }
}

impl Place {
    /// A place without a database.
    pub(crate) async fn new() -> Self {
        let Ok(server) = std::env::var(DATABASE) else { return Place::Sqlite(TempDir::new().unwrap()) };
        let schema = format!("t{}", BuildId::new().uuid().as_simple());
        let mut connection = PgConnection::connect(&server).await.unwrap();
        let create = sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}"));
        sqlx::raw_sql(create).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        Place::Postgres { url: format!("{server}?options[search_path]={schema}") }
    }

    /// Opens the database, made if it is not there.
    pub(crate) async fn open(&self, segments: Option<Arc<dyn SegmentBytes>>) -> Arc<dyn Database> {
        match self {
            Place::Sqlite(dir) => {
                let path = dir.path().join("nullspace.db");
                Arc::new(match segments {
                    None => SqliteStore::open(&path).await.unwrap(),
                    Some(segments) => SqliteStore::open_with(&path, segments).await.unwrap(),
                })
            }
            Place::Postgres { url } => Arc::new(match segments {
                None => PostgresStore::open(url).await.unwrap(),
                Some(segments) => PostgresStore::open_with(url, segments).await.unwrap(),
            }),
        }
    }
}

/// Opens the database at an address of [`Fixture::address`].
pub(crate) async fn open(address: &str) -> Arc<dyn Database> {
    if address.starts_with("postgres://") {
        Arc::new(PostgresStore::open(address).await.unwrap())
    } else {
        Arc::new(SqliteStore::open(Path::new(address)).await.unwrap())
    }
}

async fn file(dir: &TempDir) -> SqliteConnection {
    SqliteConnectOptions::new().filename(dir.path().join("nullspace.db")).connect().await.unwrap()
}

/// A statement of SQLite for [`Fixture::sabotage`] in PostgreSQL's words: a trigger calls a function there.
fn for_postgres(statement: &str) -> String {
    if let Some(name) = statement.strip_prefix("DROP TRIGGER ") {
        return format!("DROP FUNCTION {name}() CASCADE");
    }
    let Some(trigger) = statement.strip_prefix("CREATE TRIGGER ") else { return statement.to_owned() };
    let (head, body) = trigger.split_once("BEGIN").unwrap();
    let (name, when) = head.trim().split_once(' ').unwrap();
    let (event, condition) = when.split_once(" WHEN ").unwrap_or((when, "true"));
    let action = if body.contains("raise(IGNORE)") { "RETURN NULL" } else { "RAISE EXCEPTION 'sabotaged'" };
    format!(
        "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {action}; END $$;
         CREATE TRIGGER {name} {event} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION {name}()"
    )
}

pub(crate) fn new_build(name: &str, tags: &[&str]) -> NewBuild {
    NewBuild {
        id: BuildId::new(),
        artifact_id: ArtifactId::new(),
        name: name.parse().unwrap(),
        description: None,
        tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
        backend: BuildBackend::Native,
        source_type: SourceType::OciImport,
        definition: json!({ "plan": 1 }).into(),
        build_config: json!({ "vcpus": 1 }),
        source_digest: Some("sha256:1".to_owned()),
        context_digest: None,
        dockerfile_digest: None,
        triggered_by: Some("somebody".to_owned()),
        retry_of: None,
        original: None,
        max_attempts: 3,
        claim: None,
        idempotency: None,
        blobs: Vec::new(),
    }
}

pub(crate) fn rootfs(nonce: &str) -> Rootfs {
    Rootfs {
        key: ROOTFS_KEY.to_owned(),
        file: format!("{ROOTFS_KEY}.{}.ext4", nonce.repeat(32)),
        bytes: 1 << 29,
        manifest: Some(nonce.repeat(64)),
        info: json!({ "Cmd": ["sh"] }),
    }
}

/// Streams whose manifests begin with this.
pub(crate) fn streams(nonce: &str) -> Streams {
    let stream = |name: &str, last: &str| (name.to_owned(), format!("{}{last}", nonce.repeat(63)));
    Streams([stream("memory", "0"), stream("state", "1")].into())
}

pub(crate) fn result() -> FinishReady {
    FinishReady {
        folder: format!("{}.{}", ArtifactId::new(), BuildId::new().uuid().as_simple()),
        streams: Some(streams("e")),
        rootfs_key: ROOTFS_KEY.to_owned(),
        disk_bytes: 1 << 30,
        stored_bytes: 1 << 20,
        compatibility: json!({ "vmm": "qemu" }),
        snapshot: json!({ "files": ["memory"] }),
        runtime: json!({ "envs": { "TOKEN": "value-of-token" } }).into(),
        runtime_defaults: json!({ "default_env_keys": ["TOKEN"] }),
        oci_metadata: Some(json!({ "labels": {} })),
        cache_summary: Some(json!({ "hits": 1 })),
        retention_expires_at: Some(at(1000)),
        final_key: None,
        entry: entry("end"),
    }
}

pub(crate) fn failure() -> FinishError {
    FinishError {
        phase: "readiness".to_owned(),
        message: "port 80 never opened".to_owned(),
        detail: json!({ "code": "build_error" }),
        cache_summary: None,
        entry: entry("error"),
    }
}

pub(crate) fn cancel(reason: &str) -> CancelRequest {
    CancelRequest { by: "somebody".to_owned(), reason: Some(reason.to_owned()), entry: entry("cancelled") }
}

pub(crate) fn new_sandbox(artifact: ArtifactId) -> NewSandbox {
    NewSandbox {
        id: SandboxId::new(),
        artifact,
        template_ref: "web".to_owned(),
        config: json!({ "vcpus": 1 }),
        metadata: Value::Null,
        timeout_at: Some(at(300)),
        host: "host-1".to_owned(),
        sealed_envs: None,
        sealed_traffic_token: None,
        from_snapshot: None,
        forked_from: None,
        warm_pool: None,
        idempotency: None,
    }
}

/// A snapshot of a sandbox, with files of its own.
pub(crate) fn new_snapshot(sandbox: SandboxId, kind: SnapshotKind) -> NewSnapshot {
    let id = SnapshotId::new();
    NewSnapshot {
        id,
        kind,
        evicted: false,
        sandbox,
        folder: format!("{}.{}", ArtifactId::new(), id.uuid().as_simple()),
        streams: Some(streams("d")),
        summary: json!({ "files": ["memory", "state"] }),
        size_bytes: 1 << 28,
        stored_bytes: 1 << 18,
        metadata: json!({ "note": "before the upgrade" }),
        idempotency: None,
    }
}

/// Short form of the answer that another tenant gets.
pub(crate) fn is_not_found<T>(result: &Result<T, DbError>) -> bool {
    matches!(result, Err(DbError::NotFound))
}

pub(crate) fn is_lease_lost<T>(result: &Result<T, DbError>) -> bool {
    matches!(result, Err(DbError::LeaseLost))
}

pub(crate) fn is_conflict<T>(result: &Result<T, DbError>) -> bool {
    matches!(result, Err(DbError::Conflict { .. }))
}
