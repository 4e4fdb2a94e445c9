//! The domain: plans, queue, build pipeline, templates, sandboxes. Knows no HTTP.
//!
//! ```text
//!   callers ──> Engine ──accept──> store (queue) ──lease──> worker ──> pipeline ──> artifact
//!                 │                                            │  prepare · startup · readiness · snapshot
//!                 │ logs: read from the store, woken by LogHub │
//!                 │                                            v
//!                 └──create_sandbox──> restore ─────────────> Machine (VMM + agent), counted by Admission
//! ```
//!
//! One task runs a build and writes its row and log (`worker`); everything that a build or sandbox holds on this host
//! is owned by one value that gives it back (`pipeline::Scope`, a sandbox's `Live`). [`Engine::start`] begins the
//! background work, [`Engine::stop`] hands running builds back and ends sandboxes.

mod admission;
mod blobs;
mod buildkit;
mod builds;
mod builtin;
mod collect;
mod context;
mod credentials;
mod disk;
mod dockerfile;
mod error;
mod failure;
mod history;
mod image;
mod import;
mod inspect;
mod layers;
mod lines;
mod logs;
mod machine;
mod metrics;
mod names;
mod output;
mod pipeline;
mod plan;
mod preflight;
mod prepare;
mod publication;
mod readiness;
mod records;
mod sandboxes;
mod steps;
mod tails;
mod templates;
mod validate;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_buildkit::BuildKit;
use nullspace_oci::registry::Registry;
use nullspace_service::{Access, Result, Service};
use nullspace_store::{ArtifactStore, Caller, KeyHash, KeyId, Metadata, QueueLimits, SandboxStatus, StoreError};
use nullspace_vmm::Vmm;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use admission::{Capacity, TenantQuota};
pub use failure::{chain, reason};

use self::error::Stored;
pub use plan::DEFAULT_WORKDIR;

/// Settings of an [`Engine`].
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Name of this host among those that share the database; owner of its leases and sandboxes.
    pub host: String,
    /// Builds that run here at once.
    pub build_concurrency: usize,
    /// Bound of one attempt of a build.
    pub build_timeout: Duration,
    /// Bound of one program of a build's step.
    pub step_timeout: Duration,
    /// Certificates in PEM that the programs of build steps trust besides their image's.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// A worker that is silent for so long has lost its build.
    pub lease_ttl: Duration,
    /// Attempts of a build before its interruption is its end.
    pub max_attempts: u32,
    /// What machines may hold together.
    pub capacity: Capacity,
    /// What one tenant's machines may hold.
    pub quota: TenantQuota,
    /// Unfinished builds.
    pub queue: QueueLimits,
    /// Builds of one tenant that run at once, over all hosts.
    pub running_per_tenant: u32,
    /// What no tag points to is kept so long after its build.
    pub untagged_retention: Duration,
    /// Files of build contexts that one tenant may have stored together, bytes.
    pub blob_bytes_per_tenant: u64,
    /// Must stay free on the disk under the data folder for anything to begin, bytes; `None`: the default for its size.
    pub disk_reserve: Option<u64>,
    /// Tar of the root tree of the built-in base template.
    pub base_tar: Option<PathBuf>,
}

/// The service without its HTTP. Cheap to clone.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: EngineConfig,
    pub(crate) metadata: Arc<dyn Metadata>,
    pub(crate) files: ArtifactStore,
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) registry: Registry,
    pub(crate) admission: admission::Admission,
    pub(crate) disk: disk::Disk,
    /// Whether writes work, as last found out.
    pub(crate) probed: tokio::sync::Mutex<Option<metrics::Probed>>,
    pub(crate) hub: Arc<logs::LogHub>,
    pub(crate) tails: logs::LogTails,
    pub(crate) running: worker::Running,
    pub(crate) credentials: credentials::Credentials,
    pub(crate) sandboxes: sandboxes::Sandboxes,
    pub(crate) imports: import::InFlight,
    pub(crate) buildkits: buildkit::Pool,
    pub(crate) base: builtin::State,
    pub(crate) metrics: metrics::Metrics,
    /// Held while an uploaded file and its row change together.
    pub(crate) blobs: tokio::sync::Mutex<()>,
    /// A build was accepted: a waiting worker looks.
    pub(crate) queued: Notify,
    /// Something was let go: the collector looks.
    pub(crate) collect: Notify,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl Engine {
    /// Puts the parts together. Nothing runs before [`Engine::start`].
    pub fn new(
        config: EngineConfig,
        metadata: Arc<dyn Metadata>,
        files: ArtifactStore,
        vmm: Arc<dyn Vmm>,
        registry: Registry,
        buildkits: Vec<BuildKit>,
    ) -> Engine {
        let memory = Arc::new(machine::DriverMemory(Arc::clone(&vmm)));
        let admission = admission::Admission::new(config.capacity, config.quota, memory);
        let disk = disk::Disk::new(&files, config.disk_reserve);
        let buildkits = buildkit::Pool::new(buildkits, &config.host, files.root());
        Engine {
            inner: Arc::new(Inner {
                config,
                metadata,
                files,
                vmm,
                registry,
                admission,
                disk,
                probed: tokio::sync::Mutex::default(),
                hub: Arc::default(),
                tails: logs::LogTails::default(),
                running: worker::Running::default(),
                credentials: credentials::Credentials::default(),
                sandboxes: sandboxes::Sandboxes::default(),
                imports: import::InFlight::default(),
                buildkits,
                base: builtin::State::default(),
                metrics: metrics::Metrics::default(),
                blobs: tokio::sync::Mutex::default(),
                queued: Notify::new(),
                collect: Notify::new(),
                shutdown: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        }
    }

    /// Cleans up after a crash, then starts workers and collector and sees to the built-in template.
    ///
    /// Whoever calls this has the data folder's lock: what an earlier service of it held is nobody's any more.
    ///
    /// # Errors
    /// [`StoreError::NotWhole`] when database and folders do not belong together; nothing was changed then.
    pub async fn start(&self) -> std::result::Result<(), StoreError> {
        let inner = &self.inner;
        let now = Timestamp::now();
        let host = &inner.config.host;
        let found = nullspace_store::survey(&inner.files, inner.metadata.as_ref()).await?;
        if let Some(what) = found.refusal() {
            return Err(StoreError::NotWhole { what });
        }
        if !found.is_clean() {
            let (lost, blobs) = (&found.lost, &found.lost_blobs);
            tracing::error!(
                ?lost,
                ?blobs,
                "files of the store are missing: what needs them fails until they are back, or until `nullspace store \
                 accept-loss` gives them up"
            );
        }
        let ended =
            inner.metadata.end_sandboxes_of_host(host, SandboxStatus::Destroyed, "the service stopped", now).await?;
        let report = inner.files.sweep(inner.metadata.known_files().await?).await?;
        if !ended.is_empty() || !report.removed.is_empty() {
            tracing::info!(sandboxes = ended.len(), files = ?report.removed, "cleaned up after an earlier run");
        }
        inner.files.sweep_blobs(inner.metadata.known_blobs().await?).await?;
        let taken = inner.metadata.take_over(host, now).await?;
        if !taken.is_empty() {
            tracing::info!(builds = ?taken, "builds of an earlier run that was killed go on");
        }
        inner.buildkits.sweep().await;
        for _ in 0..inner.config.build_concurrency {
            inner.tasks.spawn(worker::work(Arc::clone(inner)));
        }
        inner.tasks.spawn(collect::run(Arc::clone(inner)));
        inner.tasks.spawn(forget(Arc::clone(inner)));
        inner.tasks.spawn(disk::watch(Arc::clone(inner)));
        builtin::ensure(inner).await;
        Ok(())
    }

    /// Hands running builds back to the queue, ends all sandboxes, and returns when nothing of them is left.
    pub async fn stop(&self) {
        let inner = &self.inner;
        inner.shutdown.cancel();
        inner.end_all_sandboxes("the service stopped").await;
        inner.tasks.close();
        if tokio::time::timeout(Duration::from_secs(120), inner.tasks.wait()).await.is_err() {
            tracing::error!("background work does not end");
        }
        // A create that was under way when the first round went by.
        inner.end_all_sandboxes("the service stopped").await;
        inner.metadata.close().await;
    }
}

impl Service for Engine {}

#[async_trait]
impl Access for Engine {
    async fn authenticate(&self, key: &SecretString) -> Result<Option<Caller>> {
        match self.inner.metadata.authenticate(&KeyHash::of(key.expose_secret()), Timestamp::now()).await {
            Err(StoreError::NotFound) => Ok(None),
            found => found.stored().map(Some),
        }
    }

    async fn keys_in_force(&self, keys: &[KeyId]) -> Result<Vec<KeyId>> {
        self.inner.metadata.keys_in_force(keys).await.stored()
    }
}

/// Lets go of what readers of logs and ended builds left in memory, until the service stops.
async fn forget(inner: Arc<Inner>) {
    loop {
        tokio::select! {
            () = inner.shutdown.cancelled() => return,
            () = tokio::time::sleep(tails::IDLE) => {}
        }
        inner.tails.forget(tails::IDLE);
        inner.credentials.sweep(&*inner.metadata).await;
    }
}
