//! Control: the desired state. It has the database, implements the service, and asks a host for everything that happens on a
//! machine.
//!
//! ```text
//!   server ── Service ──> Control ── Host ──> host
//!                           ├─ catalog/     templates, tags, aliases, claims, references, visibility
//!                           ├─ builds/      check, accept, queue, run on a host, follow, retry, promote
//!                           ├─ sandboxes/   create, look up, end
//!                           ├─ files        files of build contexts        collect   removes unreferenced data
//!                           └─ db           the rows are the truth
//! ```
//! Control imports no machine, no guest, no image format, and no path of a host's file; the binary's test `tests/rooms.rs`
//! checks it. One task runs a build and writes its row and log (`builds::worker`). [`Control::start`] starts the background
//! tasks. [`Control::stop`] hands running builds back and ends sandboxes.

mod builds;
mod catalog;
mod collect;
mod error;
mod files;
mod health;
mod metrics;
mod sandboxes;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_db::{Database, DbError, KeyHash, QueueLimits, SandboxStatus};
use nullspace_host_interface::Host;
use nullspace_service::{Access, Caller, KeyId, Result, Service};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::error::Stored;

/// Settings of [`Control`].
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// Name of this host among the hosts that share the database. It owns leases and sandboxes.
    pub host: String,
    /// Most builds that run here at once.
    pub build_concurrency: usize,
    /// Time limit of one attempt of a build.
    pub build_timeout: Duration,
    /// Time after which a worker without a heartbeat loses its build.
    pub lease_ttl: Duration,
    /// Most attempts of a build. The last one's failure ends it.
    pub max_attempts: u32,
    /// Limits of unfinished builds.
    pub queue: QueueLimits,
    /// Most builds of one tenant that run at once, over all hosts.
    pub running_per_tenant: u32,
    /// Time for which an artifact without a tag is kept after its build.
    pub untagged_retention: Duration,
    /// Most bytes of stored build context files for one tenant.
    pub blob_bytes_per_tenant: u64,
}

/// The service without its HTTP. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

/// The parts that all topics use, and the state of each topic.
pub(crate) struct Inner {
    config: ControlConfig,
    db: Arc<dyn Database>,
    host: Arc<dyn Host>,
    builds: builds::State,
    sandboxes: sandboxes::State,
    base: catalog::base::State,
    files: files::State,
    health: health::State,
    metrics: metrics::Metrics,
    /// Wakes the collector after something was released.
    collect: Notify,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Control {
    /// Creates the service. Nothing runs before [`Control::start`].
    pub fn new(config: ControlConfig, db: Arc<dyn Database>, host: Arc<dyn Host>) -> Control {
        Control {
            inner: Arc::new(Inner {
                config,
                db,
                host,
                builds: builds::State::default(),
                sandboxes: sandboxes::State::default(),
                base: catalog::base::State::default(),
                files: files::State::default(),
                health: health::State::default(),
                metrics: metrics::Metrics::default(),
                collect: Notify::new(),
                shutdown: CancellationToken::new(),
                tasks: TaskTracker::new(),
            }),
        }
    }

    /// Cleans up after a crash, starts workers and collector, and builds the built-in template if needed. The caller has
    /// checked that database and data folder belong together, and has the data folder's lock. So everything that an earlier
    /// service had leased or run from it is free.
    ///
    /// # Errors
    /// When the database or the host cannot be asked.
    pub async fn start(&self) -> std::result::Result<(), StartError> {
        let inner = &self.inner;
        let now = Timestamp::now();
        let host = &inner.config.host;
        let ended = inner.db.end_sandboxes_of_host(host, SandboxStatus::Destroyed, "the service stopped", now).await?;
        let removed = inner.host.sweep(inner.db.known_files().await?, inner.db.known_blobs().await?).await?;
        if !ended.is_empty() || !removed.is_empty() {
            tracing::info!(sandboxes = ended.len(), files = ?removed, "cleaned up after an earlier run");
        }
        let taken = inner.db.take_over(host, now).await?;
        if !taken.is_empty() {
            tracing::info!(builds = ?taken, "builds of an earlier run that was killed are back in the queue");
        }
        inner.host.start(Arc::new(sandboxes::Ends(Arc::downgrade(inner)))).await;
        for _ in 0..inner.config.build_concurrency {
            inner.tasks.spawn(builds::worker::work(Arc::clone(inner)));
        }
        inner.tasks.spawn(collect::run(Arc::clone(inner)));
        inner.tasks.spawn(builds::forget(Arc::clone(inner)));
        inner.tasks.spawn(sandboxes::record_late(Arc::clone(inner)));
        catalog::base::ensure(inner).await;
        Ok(())
    }

    /// Hands running builds back to the queue and ends all sandboxes. Returns when both are done.
    pub async fn stop(&self) {
        let inner = &self.inner;
        inner.shutdown.cancel();
        inner.end_all_sandboxes("the service stopped").await;
        inner.tasks.close();
        if tokio::time::timeout(Duration::from_secs(120), inner.tasks.wait()).await.is_err() {
            tracing::error!("background work has not ended in time");
        }
        // A create that was under way when the first round went by.
        inner.end_all_sandboxes("the service stopped").await;
        inner.host.stop().await;
        inner.db.close().await;
    }
}

/// Errors of [`Control::start`].
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The host.
    #[error(transparent)]
    Host(#[from] nullspace_host_interface::HostError),
}

impl Service for Control {}

#[async_trait]
impl Access for Control {
    async fn authenticate(&self, key: &SecretString) -> Result<Option<Caller>> {
        match self.inner.db.authenticate(&KeyHash::of(key.expose_secret()), Timestamp::now()).await {
            Err(DbError::NotFound) => Ok(None),
            found => found.stored().map(Some),
        }
    }

    async fn keys_in_force(&self, keys: &[KeyId]) -> Result<Vec<KeyId>> {
        self.inner.db.keys_in_force(keys).await.stored()
    }
}
