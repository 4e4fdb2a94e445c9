//! Control: the desired state. It has the database, implements the service, and asks a host for everything that happens on a
//! machine.
//!
//! ```text
//!   server ── Service ──> Control ── Host ──> host
//!                           ├─ catalog/     templates, tags, aliases, claims, references, visibility
//!                           ├─ builds/      check, accept, queue, run on a host, follow, retry, promote
//!                           ├─ sandboxes/   create, pause, resume, snapshot, fork, end; timeouts; stop and start of the service
//!                           ├─ pools/       warm pools: machines that are resumed ahead, and creates that take them
//!                           ├─ lifecycle/   events of sandboxes: recorded, listed, followed, delivered to webhooks
//!                           ├─ files        files of build contexts        collect   removes unreferenced data
//!                           └─ db           the rows are the truth
//! ```
//! Control imports no machine, no guest, no image format, and no path of a host's file; the binary's test `tests/rooms.rs`
//! checks it. One task runs a build and writes its row and log (`builds::worker`). [`Control::start`] starts the background
//! tasks. [`Control::stop`] hands running builds back and pauses sandboxes.

mod builds;
mod catalog;
mod collect;
mod error;
mod files;
mod health;
mod keys;
mod lifecycle;
mod metrics;
mod pools;
mod sandboxes;
mod sealed;
mod signed;

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_db::{Database, DbError, KeyHash, QueueLimits};
use nullspace_host_interface::Host;
use nullspace_service::{Access, Caller, KeyId, Result, Service, chain};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::collect::retention::Retention;
use self::error::Stored;
pub use self::lifecycle::{WebhookSender, WebhookSetup};
pub use self::sandboxes::{LifeSettings, PreviewSettings};
pub use self::sealed::{InvalidSealKey, NoRandom, SealKey};

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
    /// Times for which rows are kept after they are over.
    pub retention: Retention,
    /// Most bytes of stored build context files for one tenant.
    pub blob_bytes_per_tenant: u64,
    /// Limits of stored sandboxes.
    pub life: LifeSettings,
    /// Where ports of sandboxes are reached.
    pub previews: PreviewSettings,
    /// Keys that seal secrets in the database: variables of sandboxes, keys of webhooks.
    pub seal: SealKey,
    /// HTTP clients that deliver lifecycle events to webhooks.
    pub webhooks: WebhookSender,
}

/// The service without its HTTP. Cheap to clone.
#[derive(Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

/// The parts that all topics use, and the state of each topic.
pub(crate) struct Inner {
    /// Itself, for tasks.
    me: Weak<Inner>,
    config: ControlConfig,
    db: Arc<dyn Database>,
    host: Arc<dyn Host>,
    builds: builds::State,
    sandboxes: sandboxes::State,
    base: catalog::base::State,
    files: files::State,
    health: health::State,
    /// Lifecycle events; what sandboxes do is told there.
    lifecycle: lifecycle::State,
    metrics: metrics::Metrics,
    /// Machines that are resumed ahead.
    pools: pools::State,
    /// Wakes the collector after something was released.
    collect: Notify,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Control {
    /// Creates the service. Nothing runs before [`Control::start`].
    pub fn new(config: ControlConfig, db: Arc<dyn Database>, host: Arc<dyn Host>) -> Control {
        let lifecycle = lifecycle::State::default();
        let metrics = metrics::Metrics::with(&lifecycle);
        Control {
            inner: Arc::new_cyclic(|me| Inner {
                me: me.clone(),
                config,
                db,
                host,
                builds: builds::State::default(),
                sandboxes: sandboxes::State::default(),
                base: catalog::base::State::default(),
                files: files::State::default(),
                health: health::State::default(),
                lifecycle,
                metrics,
                pools: pools::State::default(),
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
        let lost = inner.record_lost(now).await?;
        let captures = inner.take_up_captures(now).await?;
        let awaited = inner.awaited().await?;
        let removed = inner.host.sweep(inner.db.known_files().await?, inner.db.known_blobs().await?).await?;
        inner.db.forget_removed().await?;
        match inner.db.allow_give_back(collect::retention::REWRITE_BYTES).await {
            Ok(true) => {}
            Ok(false) => tracing::info!("the database's file does not shrink by itself: see `nullspace store gc`"),
            Err(error) => tracing::warn!(error = %chain(&error), "the database's file does not shrink by itself"),
        }
        if lost > 0 || !removed.is_empty() {
            tracing::info!(sandboxes = lost, files = ?removed, "cleaned up after an earlier run");
        }
        let taken = inner.db.take_over(host, now).await?;
        if !taken.is_empty() {
            tracing::info!(builds = ?taken, "builds of an earlier run that was killed are back in the queue");
        }
        let unsent = inner.db.take_over_deliveries(host, now).await?;
        if unsent > 0 {
            tracing::info!(
                deliveries = unsent,
                "deliveries to webhooks of an earlier run that was killed are due again"
            );
        }
        inner.host.start(Arc::new(sandboxes::Ends(Arc::downgrade(inner)))).await;
        for _ in 0..inner.config.build_concurrency {
            inner.tasks.spawn(builds::worker::work(Arc::clone(inner)));
        }
        inner.tasks.spawn(lifecycle::write(Arc::clone(inner)));
        inner.tasks.spawn(lifecycle::deliver(Arc::clone(inner)));
        inner.tasks.spawn(collect::run(Arc::clone(inner)));
        inner.tasks.spawn(builds::forget(Arc::clone(inner)));
        inner.tasks.spawn(sandboxes::record_late(Arc::clone(inner)));
        inner.tasks.spawn(sandboxes::keep_ports(Arc::clone(inner)));
        inner.tasks.spawn(pools::keep(Arc::clone(inner)));
        inner.tasks.spawn(sandboxes::continue_all(Arc::clone(inner), awaited));
        sandboxes::publish_all(inner, captures);
        catalog::base::ensure(inner).await;
        Ok(())
    }

    /// The first part of [`Control::stop`]: nothing new begins, and the sandboxes that run are paused, to continue at the next start.
    /// Those that cannot be paused within [`LifeSettings::stop_pause`] end. Returns when no sandbox runs.
    pub async fn pause_sandboxes(&self) {
        self.inner.shutdown.cancel();
        self.inner.stop_sandboxes().await;
    }

    /// Pauses sandboxes, and hands running builds back to the queue. Returns when all is done.
    pub async fn stop(&self) {
        let inner = &self.inner;
        self.pause_sandboxes().await;
        inner.tasks.close();
        if tokio::time::timeout(Duration::from_secs(120), inner.tasks.wait()).await.is_err() {
            tracing::error!("background work has not ended in time");
        }
        // A create that was under way when the first round went by.
        inner.stop_sandboxes().await;
        inner.host.stop().await;
        inner.write_grant_uses().await;
        inner.flush_events().await;
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

impl From<collect::Broken> for StartError {
    fn from(error: collect::Broken) -> StartError {
        match error {
            collect::Broken::Database(error) => StartError::Database(error),
            collect::Broken::Host(error) => StartError::Host(error),
        }
    }
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
        self.inner.db.keys_in_force(keys, Timestamp::now()).await.stored()
    }
}
