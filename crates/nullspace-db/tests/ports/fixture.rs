//! A database of one test, and short words for what tests do most.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use nullspace_db::{
    Build, BuildBackend, CancelRequest, Database, DbError, FinishError, FinishReady, Finished, Lease, Leased, LogEntry,
    NamespaceKind, NewBuild, NewLogEntry, NewSandbox, NewSnapshot, QueueLimits, Resolved, SnapshotKind, SourceType,
    SqliteStore,
};
use nullspace_types::{ArtifactId, BuildId, Caller, Rootfs, SandboxId, SnapshotId, Streams, TemplateRef};
use serde_json::{Value, json};
use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};
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

pub(crate) struct Fixture {
    pub(crate) store: Arc<dyn Database>,
    dir: TempDir,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let store = open(dir.path()).await;
        Self { store, dir }
    }

    /// A second service on the same database.
    pub(crate) async fn another(&self) -> Arc<dyn Database> {
        open(self.dir.path()).await
    }

    async fn connection(&self) -> SqliteConnection {
        SqliteConnectOptions::new().filename(self.dir.path().join("nullspace.db")).connect().await.unwrap()
    }

    /// The first column of what the database itself answers.
    pub(crate) async fn query(&self, sql: &'static str) -> Vec<String> {
        sqlx::query_scalar(sql).fetch_all(&mut self.connection().await).await.unwrap()
    }

    /// What a rule of the database itself forbids from now on, as if the machine failed at that statement.
    pub(crate) async fn sabotage(&self, trigger: &'static str) {
        let mut connection = self.connection().await;
        sqlx::raw_sql(trigger).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    /// The database's file.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("nullspace.db")
    }

    /// Makes the last statement of `finish_ready` fail, whatever came before it.
    pub(crate) async fn make_ready_builds_fail(&self) {
        let mut connection = self.connection().await;
        sqlx::raw_sql(
            "CREATE TRIGGER sabotage BEFORE UPDATE ON builds WHEN new.status = 'ready'
             BEGIN SELECT raise(ABORT, 'sabotaged'); END",
        )
        .execute(&mut connection)
        .await
        .unwrap();
        connection.close().await.unwrap();
    }

    /// Every file the database is made of.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
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

async fn open(dir: &Path) -> Arc<dyn Database> {
    Arc::new(SqliteStore::open(&dir.join("nullspace.db")).await.unwrap())
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
        streams: streams("d"),
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
