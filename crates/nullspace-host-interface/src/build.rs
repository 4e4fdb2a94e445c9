//! Builds on a host: the job from control, the questions of a running build, and its result.

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
use nullspace_types::{ArtifactId, BlobId, BuildId, Rootfs, Streams, TenantId};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{BuildFailure, Capacity, HostError, LogIds, RecordError};

/// One attempt of a build.
#[derive(Debug, Clone)]
pub struct BuildJob {
    /// The build.
    pub build: BuildId,
    /// The id of its artifact.
    pub artifact: ArtifactId,
    /// The tenant that owns it.
    pub tenant: TenantId,
    /// Number of the attempt, from 1.
    pub attempt: u32,
    /// Number of the lease. No two runs of a build have the same.
    pub epoch: u64,
    /// The definition to build.
    pub definition: Definition,
    /// Digest of the build context, when there is one.
    pub context_digest: Option<String>,
    /// Credentials and secrets of the request. `None` when there were none, or when the process that had them has ended
    /// ([`Definition::authenticated`] tells which).
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
    /// Its id.
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
    /// The runtime settings of its sandboxes.
    pub runtime: Runtime,
    /// Metadata of the image that it came from, for the API.
    pub oci_metadata: Option<TemplateOciImageMetadata>,
}

/// An artifact of an earlier build with the same key.
#[derive(Debug, Clone, PartialEq)]
pub struct FinishedArtifact {
    /// Its id.
    pub id: ArtifactId,
    /// Its name.
    pub folder: String,
    /// The files of its snapshot. `None`: an older version stored them under its name.
    pub streams: Option<Streams>,
    /// Its disk as the guest sees it, bytes.
    pub disk_bytes: u64,
    /// The compatibility class of its snapshot, in the host's own format.
    pub compatibility: Value,
    /// The description of its snapshot, in the host's own format.
    pub snapshot: Value,
}

/// Kind of a cache.
pub type CacheKind = TemplateBuildLogEntryCacheKind;

/// An answer of a cache, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLookup {
    /// The cache.
    pub kind: CacheKind,
    /// The answer.
    pub status: TemplateBuildLogEntryCacheStatus,
}

/// The questions and reports of a running build to control. Each call is checked against control's lease. After
/// [`RecordError::LeaseLost`] the host stops the build.
#[async_trait]
pub trait BuildRecord: Send + Sync + 'static {
    /// Appends entries to the build's log, in their order; returns when they are durable.
    async fn append(&self, entries: Vec<TemplateBuildLogEntry>) -> Result<(), RecordError>;

    /// Records the digest that the source was resolved to.
    async fn set_source_digest(&self, digest: &str) -> Result<(), RecordError>;

    /// Records that the disk is larger than the request said, MiB.
    async fn set_disk_mb(&self, disk_mb: u32) -> Result<(), RecordError>;

    /// Returns the files of the context that are kept for this build.
    async fn held_files(&self) -> Result<Vec<HeldFile>, RecordError>;

    /// Returns the template that this build starts from. It stays until the build is over.
    async fn parent(&self, artifact: ArtifactId) -> Result<Parent, RecordError>;

    /// Returns the root image of this key. It stays until the build is over.
    async fn find_rootfs(&self, key: &str) -> Result<Option<Rootfs>, RecordError>;

    /// Records a published root image. If another build has recorded the key before, its record is returned, and the caller
    /// removes the file of this one.
    async fn put_rootfs(&self, rootfs: Rootfs) -> Result<Rootfs, RecordError>;

    /// Returns the newest root image that a step of this key made. It stays until the build is over.
    async fn find_layer(&self, key: &str) -> Result<Option<Rootfs>, RecordError>;

    /// Records the root image that a step made.
    async fn put_layer(&self, rootfs: Rootfs, key: &str) -> Result<Rootfs, RecordError>;

    /// Returns the newest usable artifact of this key. It stays until the build is over.
    async fn find_final(&self, key: &str) -> Result<Option<FinishedArtifact>, RecordError>;

    /// Returns snapshots that the one of this build is likely to be much like. They may go at any time.
    async fn similar_snapshots(&self) -> Result<Vec<Streams>, RecordError>;

    /// Counts an answer of a cache.
    fn looked_up(&self, lookup: CacheLookup);

    /// Counts a phase that succeeded.
    fn phase(&self, phase: &'static str, took: Duration);
}

/// The result of a build: durable on the host, and not yet named by the database.
#[derive(Debug, Clone)]
pub struct Made {
    /// Its name.
    pub folder: String,
    /// The files of its snapshot.
    pub streams: Streams,
    /// Growth of the host's store, bytes.
    pub stored_bytes: u64,
    /// Key of the root image under its disk.
    pub rootfs_key: String,
    /// Disk as the guest sees it, bytes.
    pub disk_bytes: u64,
    /// The compatibility class of the snapshot, in the host's own format.
    pub compatibility: Value,
    /// The description of the snapshot, in the host's own format. It is returned later as
    /// [`Snapshot::summary`](crate::Snapshot::summary).
    pub snapshot: Value,
    /// The runtime settings of sandboxes.
    pub runtime: Runtime,
    /// Metadata of the image that it came from, for the API.
    pub oci_metadata: Option<TemplateOciImageMetadata>,
    /// Key of all inputs, for [`BuildRecord::find_final`].
    pub final_key: String,
}

/// The reasons for which a run ends without an artifact.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BuildStop {
    /// The build failed.
    #[error(transparent)]
    Failed(#[from] BuildFailure),
    /// Control refused: the lease is lost, or the database failed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Control stopped it.
    #[error("the build was stopped")]
    Stopped,
    /// The disk ran full, and this build had written most recently.
    #[error("the build was ended because the host's disk ran full")]
    Overran,
}

/// The state of the host's disk during a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskPressure {
    /// It was full.
    pub full: bool,
    /// A machine ran when the run ended.
    pub had_machine: bool,
}

impl DiskPressure {
    /// Whether a full disk may have caused this failure. For example, a registry's answer about an image is not caused by it.
    pub fn explains(self, failure: &BuildFailure) -> bool {
        use crate::reason;
        // A guest that cannot write the first block of its disk finds its root unusable.
        let of_host = [reason::INTERNAL, reason::MACHINE_FAILED, reason::SNAPSHOT_TRIAL_FAILED, reason::ROOT_UNUSABLE];
        self.full && (self.had_machine || of_host.contains(&failure.reason))
    }
}

/// The end of a run. Only the published files of the build are left on the host.
#[derive(Debug, Clone)]
pub struct BuildEnd {
    /// The result, or the reason for which there is none.
    pub outcome: Result<Made, BuildStop>,
    /// The caches' answers, also of a build that fails.
    pub cache: TemplateBuildCacheSummary,
    /// The state of the disk.
    pub pressure: DiskPressure,
}

/// Whether a registry shows an image to clients without credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageAccess {
    /// It does.
    Open,
    /// It asks for credentials.
    NeedsCredentials,
    /// The registry's answer could not be obtained, for this reason.
    Unknown(String),
}

/// The root tree of the built-in base template on a host.
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
    /// Runs one attempt of a build until it ends or `stop` is cancelled. Returns when only its published files are left on
    /// the host, at most some minutes after `stop`.
    async fn build(&self, job: BuildJob, record: Arc<dyn BuildRecord>, stop: CancellationToken) -> BuildEnd;

    /// Whether the disk has space for another build.
    async fn has_room(&self) -> bool;

    /// The largest machine of so many vCPUs, on a host that runs nothing else.
    fn largest_machine(&self, vcpus: u32) -> Capacity;

    /// Refuses a disk that is larger than an empty host could hold.
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
}

#[cfg(test)]
mod tests {
    use nullspace_api::TemplateFailurePhase as Phase;

    use super::*;
    use crate::reason;

    #[test]
    fn a_full_disk_explains_a_root_that_cannot_be_mounted_and_no_registrys_answer() {
        let failure = |reason| BuildFailure::user(Phase::Prepare, reason, "it failed", "Check it.");
        let full = DiskPressure { full: true, had_machine: false };
        assert!(full.explains(&failure(reason::ROOT_UNUSABLE)) && full.explains(&failure(reason::MACHINE_FAILED)));
        assert!(!full.explains(&failure(reason::DISK_TOO_SMALL)));
        assert!(!DiskPressure::default().explains(&failure(reason::ROOT_UNUSABLE)));
    }
}
