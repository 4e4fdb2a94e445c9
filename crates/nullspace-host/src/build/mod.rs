//! One attempt of a build, from its definition to files that the database can name.
//!
//! ```text
//!   prepare    source -> immutable root image, shared by its key            (prepare, image, import, buildkit)
//!   steps      known layers found, the others made in the machine           (steps/, layers)
//!              all known, and an artifact of the same key: it is shared, no machine
//!   startup    machine over a copy-on-write disk; start command runs once   (boot, startup)
//!   readiness  tcp | http | command | timeout, from inside the guest        (readiness)
//!   snapshot   stop processes and filesystem, drop the agent, pause, capture, end the machine
//!   trial      the snapshot is restored once, and its agent answers            (trial)
//!   publish    beside the trial: files durable under the artifact's name; control names them in one transaction
//! ```
//! All resources of the build on this host are registered in a [`Scope`], which outlives the future that runs the phases. To
//! stop a build, drop that future and close the scope.

mod boot;
pub(crate) mod buildkit;
mod cache;
mod image;
mod image_layers;
pub(crate) mod import;
mod layers;
mod log;
mod output;
mod phases;
mod prepare;
mod readiness;
mod scope;
mod startup;
mod steps;
mod trial;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nullspace_api::{TemplateFailureDetailCode, TemplateFailurePhase as Phase};
use nullspace_data::{ArtifactStore, DataError};
use nullspace_host_interface::{
    BaseRoot, BuildEnd, BuildFailure, BuildHost, BuildJob, BuildRecord, BuildStop, Capacity, DiskPressure, HostError,
    ImageAccess, RecordError, reason,
};
use nullspace_image_ref::Reference;
use nullspace_oci::registry::Registry;
use nullspace_service::{Result as ServiceResult, chain};
use nullspace_types::Rootfs;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::cache::CacheBook;
use self::log::BuildLog;
use self::scope::Scope;
use crate::disk::Disk;
use crate::machine::Machines;
use crate::spares::Spares;
use crate::{LocalHost, failures};

/// Time limit of the question to a registry whether it wants credentials.
const ASK_REGISTRY: Duration = Duration::from_secs(10);

/// The host's settings for builds.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Time limit of one program of a step.
    pub(crate) step_timeout: Duration,
    /// Certificates in PEM that programs of steps trust in addition to their image's.
    pub(crate) extra_ca_pem: Option<Vec<u8>>,
    /// Tar of the root tree of the base template.
    pub(crate) base_tar: Option<PathBuf>,
}

/// The parts that builds share.
pub(crate) struct Builder {
    settings: Settings,
    machines: Machines,
    disk: Arc<Disk>,
    files: ArtifactStore,
    registry: Registry,
    imports: import::InFlight,
    pub(crate) buildkits: buildkit::Pool,
    /// Machines that make room for builds.
    pub(crate) spares: Arc<Spares>,
    /// Background work after a build.
    pub(crate) tasks: TaskTracker,
}

impl Builder {
    pub(crate) fn new(
        settings: Settings,
        machines: Machines,
        disk: Arc<Disk>,
        files: ArtifactStore,
        registry: Registry,
        buildkits: buildkit::Pool,
    ) -> Builder {
        let (imports, tasks) = (import::InFlight::default(), TaskTracker::new());
        Builder { settings, machines, disk, files, registry, imports, buildkits, spares: Arc::default(), tasks }
    }

    /// Makes a root image's raw file ahead of its first use.
    async fn warm(&self, rootfs: &Rootfs) {
        if let Err(error) = self.files.open_rootfs(rootfs).await {
            tracing::warn!(key = rootfs.key, error = %chain(&error), "a root image could not be written back");
        }
    }
}

/// One attempt of a build on its way through the phases.
pub(crate) struct Attempt {
    pub(crate) builder: Arc<Builder>,
    pub(crate) job: BuildJob,
    pub(crate) record: Arc<dyn BuildRecord>,
    pub(crate) log: BuildLog,
    pub(crate) cache: CacheBook,
    pub(crate) scope: Scope,
}

/// The reasons for which an attempt ends without an artifact.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The build failed.
    #[error(transparent)]
    Failed(#[from] BuildFailure),
    /// Control refused.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The data folder refused.
    #[error(transparent)]
    Data(#[from] DataError),
}

impl From<Error> for BuildStop {
    fn from(error: Error) -> BuildStop {
        match error {
            Error::Failed(failure) => BuildStop::Failed(failure),
            Error::Record(error) => BuildStop::Record(error),
            Error::Data(error) => BuildStop::Failed(failures::data(Phase::Interrupted, &error)),
        }
    }
}

#[async_trait]
impl BuildHost for LocalHost {
    async fn build(&self, job: BuildJob, record: Arc<dyn BuildRecord>, stop: CancellationToken) -> BuildEnd {
        let (builder, began) = (Arc::clone(&self.inner.builder), Instant::now());
        let log = BuildLog::new(Arc::clone(&record), job.log_ids());
        let cache = CacheBook::new(log.clone(), Arc::clone(&record));
        let scope = Scope::new(job.build);
        let attempt = Attempt { builder, job, record, log, cache, scope };
        let outcome = tokio::select! {
            biased;
            () = attempt.scope.overran.cancelled() => Err(BuildStop::Overran),
            () = stop.cancelled() => Err(BuildStop::Stopped),
            outcome = phases::run(&attempt) => outcome.map_err(BuildStop::from),
        };
        if let Err(BuildStop::Failed(failure)) = &outcome
            && [reason::MACHINE_FAILED, reason::SNAPSHOT_TRIAL_FAILED].contains(&failure.reason)
            && let Some(console) = attempt.scope.console_tail()
        {
            tracing::warn!(console, "the failed machine's console");
        }
        if outcome.is_ok() {
            attempt.scope.keep_published();
        }
        let had_machine = attempt.scope.has_machine();
        let full = attempt.scope.lost_writes() || self.inner.disk.was_full(began);
        attempt.scope.close().await;
        BuildEnd { outcome, cache: attempt.cache.summary(), pressure: DiskPressure { full, had_machine } }
    }

    async fn has_room(&self) -> bool {
        self.inner.disk.room(0).is_ok()
    }

    fn largest_machine(&self, vcpus: u32) -> Capacity {
        self.inner.machines.admission.largest(vcpus)
    }

    async fn ensure_possible(&self, disk_mb: u32) -> ServiceResult<()> {
        self.inner.disk.ensure_possible(disk_mb)
    }

    async fn ensure_dockerfiles(&self) -> ServiceResult<()> {
        self.inner.builder.buildkits.ensure_there().await
    }

    async fn image_access(&self, reference: &Reference) -> ImageAccess {
        let asked = image::resolve(&self.inner.builder.registry, reference, None);
        match tokio::time::timeout(ASK_REGISTRY, asked).await {
            Ok(Ok(_)) => ImageAccess::Open,
            Ok(Err(failure)) if failure.code == TemplateFailureDetailCode::Unauthorized => {
                ImageAccess::NeedsCredentials
            }
            Ok(Err(failure)) => ImageAccess::Unknown(failure.message),
            Err(_) => ImageAccess::Unknown(format!("its registry did not answer within {} s", ASK_REGISTRY.as_secs())),
        }
    }

    async fn base(&self) -> Result<Option<BaseRoot>, HostError> {
        let Some(path) = self.inner.builder.settings.base_tar.clone() else { return Ok(None) };
        let hashed = tokio::task::spawn_blocking(move || import::digest_of(&path)).await;
        let sha256 = hashed
            .map_err(|error| HostError::Failed(error.to_string()))?
            .map_err(|error| HostError::Failed(format!("read the tar of the base template: {error}")))?;
        let key = import::tar_key(&sha256);
        Ok(Some(BaseRoot { sha256, key }))
    }
}
