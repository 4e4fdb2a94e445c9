//! Builds on a host: what control hands over, what a running build asks, and what it ends with.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nullspace_api::{
    RequestSecrets, TemplateBuildCacheSummary, TemplateBuildLogEntry, TemplateBuildLogEntryCacheKind,
    TemplateBuildLogEntryCacheStatus, TemplateOciImageMetadata,
};
use nullspace_definition::Definition;
use nullspace_definition::runtime::Runtime;
use nullspace_image_ref::Reference;
use nullspace_service::Result as ServiceResult;
use nullspace_types::{ArtifactId, BlobId, BuildId, Rootfs, TenantId};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{BuildFailure, Capacity, HostError, LogIds, RecordError};

/// One attempt of a build.
#[derive(Debug, Clone)]
pub struct BuildJob {
    /// The build.
    pub build: BuildId,
    /// What its artifact is called.
    pub artifact: ArtifactId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Which lease: no two runs of a build have the same.
    pub epoch: u64,
    /// What is built.
    pub definition: Definition,
    /// Digest of the build context, when there is one.
    pub context_digest: Option<String>,
    /// Credentials and secrets that came with the request; `None` when they were lost with the process that had them, or when
    /// there were none ([`Definition::authenticated`] tells).
    pub secrets: Option<Arc<RequestSecrets>>,
}

impl BuildJob {
    /// Ids of its log entries.
    pub fn log_ids(&self) -> LogIds {
        LogIds { build: self.build, artifact: self.artifact }
    }
}

/// A file of the build context that is kept for a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldFile {
    /// Which.
    pub id: BlobId,
    /// Its generation when the build was accepted.
    pub generation: u64,
}

/// A template that a build starts from.
#[derive(Debug, Clone)]
pub struct Parent {
    /// The build that made it.
    pub build: BuildId,
    /// Its root image, as it was before its start command ran.
    pub rootfs: Rootfs,
    /// Its disk as the guest sees it, bytes.
    pub disk_bytes: u64,
    /// What its sandboxes start with.
    pub runtime: Runtime,
    /// What the API shows of the image that it came from.
    pub oci_metadata: Option<TemplateOciImageMetadata>,
}

/// An artifact of an earlier build with the same key.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedArtifact {
    /// Which.
    pub id: ArtifactId,
    /// Name of its files.
    pub folder: String,
    /// Its disk as the guest sees it, bytes.
    pub disk_bytes: u64,
    /// What it can be resumed under: the host's own format.
    pub compatibility: Value,
    /// What the host said of its snapshot: the host's own format.
    pub snapshot: Value,
}

/// Kind of a cache.
pub type CacheKind = TemplateBuildLogEntryCacheKind;

/// An answer of a cache, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLookup {
    /// Which cache.
    pub kind: CacheKind,
    /// What it said.
    pub status: TemplateBuildLogEntryCacheStatus,
}

/// What a running build asks of control, and tells it. Each call shows control's lease; after
/// [`RecordError::LeaseLost`] the host stops.
#[async_trait]
pub trait BuildRecord: Send + Sync + 'static {
    /// Appends entries to the build's log, in their order; returns when they are durable.
    async fn append(&self, entries: Vec<TemplateBuildLogEntry>) -> Result<(), RecordError>;

    /// Records what the source was resolved to.
    async fn set_source_digest(&self, digest: &str) -> Result<(), RecordError>;

    /// Records that the disk is larger than the request said, MiB.
    async fn set_disk_mb(&self, disk_mb: u32) -> Result<(), RecordError>;

    /// Files of the context that are kept for this build.
    async fn held_files(&self) -> Result<Vec<HeldFile>, RecordError>;

    /// The template that this build starts from; it stays until the build is over.
    async fn parent(&self, artifact: ArtifactId) -> Result<Parent, RecordError>;

    /// The root image of this key; it stays until the build is over.
    async fn find_rootfs(&self, key: &str) -> Result<Option<Rootfs>, RecordError>;

    /// Records a published root image. When another build was quicker its record is returned, and the file of this one is to be
    /// removed.
    async fn put_rootfs(&self, rootfs: Rootfs) -> Result<Rootfs, RecordError>;

    /// The newest root image that a step of this key left behind; it stays until the build is over.
    async fn find_layer(&self, key: &str) -> Result<Option<Rootfs>, RecordError>;

    /// Records what a step left behind.
    async fn put_layer(&self, rootfs: Rootfs, key: &str) -> Result<Rootfs, RecordError>;

    /// An artifact of this key that can be used, the newest; it stays until the build is over.
    async fn find_final(&self, key: &str) -> Result<Option<FinishedArtifact>, RecordError>;

    /// Counts answers of a cache.
    fn looked_up(&self, lookup: CacheLookup);

    /// Counts a phase that ended well.
    fn phase(&self, phase: &'static str, took: Duration);
}

/// What a build made: durable on the host, and not yet named by the database.
#[derive(Debug, Clone)]
pub struct Made {
    /// Name of its files.
    pub folder: String,
    /// What they take on the disk, bytes.
    pub stored_bytes: u64,
    /// Key of the root image that its disk lies on.
    pub rootfs_key: String,
    /// Disk as the guest sees it, bytes.
    pub disk_bytes: u64,
    /// What it can be resumed under: the host's own format.
    pub compatibility: Value,
    /// What the host says of the snapshot: the host's own format. It comes back as [`Snapshot::summary`](crate::Snapshot::summary).
    pub snapshot: Value,
    /// What sandboxes start with.
    pub runtime: Runtime,
    /// What the API shows of the image that it came from.
    pub oci_metadata: Option<TemplateOciImageMetadata>,
    /// Key of everything that it depends on, for [`BuildRecord::find_final`].
    pub final_key: String,
}

/// Why a run ended without an artifact.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BuildStop {
    /// The build failed.
    #[error(transparent)]
    Failed(#[from] BuildFailure),
    /// Control refused: the lease is lost, or the database is down.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Control asked for it.
    #[error("the build was stopped")]
    Stopped,
    /// The disk ran full, and this build had written most of late.
    #[error("the build was ended because the host's disk ran full")]
    Overran,
}

/// What is known of the host's disk during a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskPressure {
    /// It was full.
    pub full: bool,
    /// A machine ran when the run ended.
    pub had_machine: bool,
}

impl DiskPressure {
    /// Whether a full disk may have caused this failure. What a registry says of an image, for one, it did not.
    pub fn explains(self, failure: &BuildFailure) -> bool {
        use crate::reason;
        self.full && (self.had_machine || [reason::INTERNAL, reason::MACHINE_FAILED].contains(&failure.reason))
    }
}

/// What a run came to. Nothing of the build is left on the host but what it published.
#[derive(Debug, Clone)]
pub struct BuildEnd {
    /// What it made, or why it made nothing.
    pub outcome: Result<Made, BuildStop>,
    /// What caches said; a build that fails shows it too.
    pub cache: TemplateBuildCacheSummary,
    /// What is known of the disk.
    pub pressure: DiskPressure,
}

/// Whether a registry shows an image to somebody without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageAccess {
    /// It does.
    Open,
    /// It wants credentials.
    NeedsCredentials,
    /// That could not be found out: why.
    Unknown(String),
}

/// The root tree of the built-in base template that a host has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseRoot {
    /// SHA-256 of its tar, hex.
    pub sha256: String,
    /// Key of the root image that is made from it.
    pub key: String,
}

/// Builds of a host.
#[async_trait]
pub trait BuildHost: Send + Sync + 'static {
    /// Runs one attempt of a build, until it ends or `stop` is cancelled. Returns when nothing of it is left on the host but
    /// what it published; that takes at most some minutes after `stop`.
    async fn build(&self, job: BuildJob, record: Arc<dyn BuildRecord>, stop: CancellationToken) -> BuildEnd;

    /// Whether the disk has room for another build.
    async fn has_room(&self) -> bool;

    /// What a machine of so many vCPUs may have at most, on a host that runs nothing else.
    fn largest_machine(&self, vcpus: u32) -> Capacity;

    /// Refuses a disk that this host could not hold even if it held nothing else.
    ///
    /// # Errors
    /// `capacity_exceeded`, for the caller.
    async fn ensure_possible(&self, disk_mb: u32) -> ServiceResult<()>;

    /// Refuses Dockerfiles when no BuildKit answers.
    ///
    /// # Errors
    /// `feature_unavailable`, with what the operator can install.
    async fn ensure_dockerfiles(&self) -> ServiceResult<()>;

    /// Asks the registry of an image whether it wants credentials. Bounded in time.
    async fn image_access(&self, reference: &Reference) -> ImageAccess;

    /// The root tree of the base template; `None` when the host has none.
    ///
    /// # Errors
    /// [`HostError`] when it cannot be read.
    async fn base(&self) -> Result<Option<BaseRoot>, HostError>;

    /// Sees to it that the next sandbox of a root image does not wait for it.
    async fn warm_rootfs(&self, rootfs: &Rootfs);
}
