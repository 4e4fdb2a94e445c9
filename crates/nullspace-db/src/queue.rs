//! The queue of builds, as a worker sees it.
//!
//! ```text
//!  accept ──> waiting ──lease──> building ──finish_ready───────> ready
//!                ^  |               | |  └──finish_error───────> error
//!                |  |               | └─────finish_cancelled───> cancelled
//!                |  └─request_cancel──────────────────────────────^
//!                └──────release─────┘
//! ```
//! An expired lease has no arrow of its own: the build stays `building` until `lease_build` gives it to the next worker, with
//! the next attempt, or as [`Leased::Spent`] when no attempts are left.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, BlobId, BuildId, Caller, PrivateJson, Streams, Tag, TemplateName};
use serde_json::Value;

#[cfg(doc)]
use crate::DbError;
use crate::{Build, BuildBackend, ClaimHash, Idempotency, Result, SourceType};

/// Accepts builds, and leases each to one worker at a time until it ends. Writes of a worker are fenced by its [`Lease`].
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Accepts a build: `waiting`, with `first` at log offset 0. Creates the template if the name is new. A repeated request
    /// (see [`NewBuild::idempotency`]) is answered with the existing build. [`DbError::Conflict`] when the name is an alias,
    /// when another claim holds the name, or when a file of the context was removed.
    async fn accept_build(
        &self,
        caller: &Caller,
        build: NewBuild,
        first: NewLogEntry,
        limits: QueueLimits,
        now: Timestamp,
    ) -> Result<Build>;

    /// Leases the next build to `owner` until `now + ttl`; `None` when there is nothing to do.
    ///
    /// Builds with an expired lease are queued with the waiting ones. The order among tenants: fewest running builds first,
    /// then the one served longest ago, then the one with the longest wait. A tenant with `running_per_tenant` running builds
    /// is skipped, except for builds without attempts left, which only have to be ended.
    async fn lease_build(
        &self,
        owner: &str,
        ttl: Duration,
        running_per_tenant: u32,
        now: Timestamp,
    ) -> Result<Option<Leased>>;

    /// Renews the lease until `now + ttl`. [`DbError::LeaseLost`] when another worker has the build. An expired lease is
    /// renewed too, unless another worker has taken the build.
    async fn heartbeat(&self, lease: &Lease, ttl: Duration, now: Timestamp) -> Result<Heartbeat>;

    /// Releases the builds of `owner`, for an owner that is known to be gone. They can be leased at once, and writes under
    /// the old leases fail. Returns them.
    async fn take_over(&self, owner: &str, now: Timestamp) -> Result<Vec<BuildId>>;

    /// Records the resolved source: an image's digest, or a parent's build.
    async fn set_source_digest(&self, lease: &Lease, digest: &str, now: Timestamp) -> Result<()>;

    /// Records the sizes that the build got in place of the requested ones, as the API shows them.
    async fn set_build_config(&self, lease: &Lease, config: serde_json::Value, now: Timestamp) -> Result<()>;

    /// Appends to the build's log. Returns the first entry's offset. [`DbError::LeaseLost`] appends nothing.
    async fn append_log(&self, lease: &Lease, entries: Vec<NewLogEntry>) -> Result<u64>;

    /// Gives the build back to the queue with these last entries.
    async fn release_build(&self, lease: &Lease, how: Release, entries: Vec<NewLogEntry>, now: Timestamp)
    -> Result<()>;

    /// Ends the build as `ready`: artifact, tags, row and last entry in one transaction. The artifact's bytes must already be
    /// durable.
    async fn finish_ready(&self, lease: &Lease, result: FinishReady, now: Timestamp) -> Result<Finished>;

    /// Ends the build as `error`.
    async fn finish_error(&self, lease: &Lease, error: FinishError, now: Timestamp) -> Result<Build>;

    /// Ends the build as `cancelled`.
    async fn finish_cancelled(&self, lease: &Lease, entry: NewLogEntry, now: Timestamp) -> Result<Build>;
}

/// A build to accept.
#[derive(Debug, Clone)]
pub struct NewBuild {
    /// Its id.
    pub id: BuildId,
    /// The id its artifact will have.
    pub artifact_id: ArtifactId,
    /// Template name in the caller's namespace.
    pub name: TemplateName,
    /// Shown with the template; replaces the stored one when the build is ready.
    pub description: Option<String>,
    /// Tags that move to the artifact when it is ready; at least one.
    pub tags: Vec<Tag>,
    /// The backend that makes the root filesystem.
    pub backend: BuildBackend,
    /// Kind of the source.
    pub source_type: SourceType,
    /// The normalised definition without secrets; opaque to the database.
    pub definition: PrivateJson,
    /// vCPUs, memory, network, disk; opaque to the database.
    pub build_config: Value,
    /// Digest of the source.
    pub source_digest: Option<String>,
    /// Digest of the build context.
    pub context_digest: Option<String>,
    /// Digest of the Dockerfile.
    pub dockerfile_digest: Option<String>,
    /// The user or key that started it, as shown in the API.
    pub triggered_by: Option<String>,
    /// The build that this one retries.
    pub retry_of: Option<BuildId>,
    /// The first build of that chain.
    pub original: Option<BuildId>,
    /// Most attempts, at least 1.
    pub max_attempts: u32,
    /// Hash of the request's claim token. A claimed name accepts only the build with its token.
    pub claim: Option<ClaimHash>,
    /// The caller's idempotency key and a digest of its request, without secrets.
    pub idempotency: Option<Idempotency>,
    /// Files of its context: kept from collection until the build is over.
    pub blobs: Vec<WantedBlob>,
}

/// A file of a build's context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedBlob {
    /// Its id.
    pub id: BlobId,
    /// Begins a new generation of the file, so that results from the earlier one are not reused.
    pub force: bool,
}

/// Limits of unfinished builds. One more build answers [`DbError::LimitReached`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Limit of one tenant.
    pub per_tenant: u32,
    /// Limit of all tenants.
    pub total: u32,
}

/// One entry to append to a build's log.
#[derive(Debug, Clone, PartialEq)]
pub struct NewLogEntry {
    /// Time of the event.
    pub at: Timestamp,
    /// The entry; opaque to the database, which stores and returns it unchanged.
    pub body: Value,
}

/// A worker's lease on a build, checked at every write of the worker. `epoch` rises with each lease. So a worker that was
/// thought dead cannot write, even if the next one has its name or the same attempt number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The build.
    pub build: BuildId,
    /// The worker that holds it.
    pub owner: String,
    /// Number of this lease of the build.
    pub epoch: u64,
}

/// A leased build.
#[derive(Debug, Clone, PartialEq)]
pub enum Leased {
    /// Run it. `build.attempt` is the number of the attempt; more than 1 means that an earlier one was interrupted or
    /// retried.
    Run {
        /// The lease.
        lease: Lease,
        /// The build, now `building`.
        build: Box<Build>,
    },
    /// The last attempt lost its lease. Finish the build as interrupted, and do not run it.
    Spent {
        /// The lease.
        lease: Lease,
        /// The build, still `building`.
        build: Box<Build>,
    },
}

/// The way in which a worker gives a build back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// The worker shuts down. The attempt is not counted, and another worker may take the build at once.
    HandBack,
    /// The attempt failed in a way that may pass. It is counted.
    RetryAfter(Duration),
}

/// Answer to a heartbeat of a valid lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// The build's cancellation was requested.
    pub cancel_requested: bool,
    /// Expiry of the renewed lease.
    pub expires_at: Timestamp,
}

/// The artifact of a build that becomes ready, and is named in the same transaction.
#[derive(Debug, Clone)]
pub struct FinishReady {
    /// Its name in the data folder, given when it was published.
    pub folder: String,
    /// The files of its snapshot.
    pub streams: Option<Streams>,
    /// Key of the root image it boots from. The build holds it through [`Reuse::put_rootfs`](crate::Reuse::put_rootfs) or
    /// [`find_rootfs`](crate::Reuse::find_rootfs).
    pub rootfs_key: String,
    /// Disk size as the guest sees it, bytes.
    pub disk_bytes: u64,
    /// Growth of the host's store, bytes.
    pub stored_bytes: u64,
    /// Compatibility class of the snapshot; opaque to the database.
    pub compatibility: Value,
    /// Summary of the snapshot; opaque to the database.
    pub snapshot: Value,
    /// The runtime settings of sandboxes, with the *values* of environment variables.
    pub runtime: PrivateJson,
    /// The part of `runtime` that the API shows: keys, no values.
    pub runtime_defaults: Value,
    /// The image's metadata.
    pub oci_metadata: Option<Value>,
    /// Cache counters.
    pub cache_summary: Option<Value>,
    /// Kept at least until then, even without a tag.
    pub retention_expires_at: Option<Timestamp>,
    /// Key of all inputs of the artifact, for [`Reuse::find_final`](crate::Reuse::find_final).
    pub final_key: Option<String>,
    /// The log's last entry.
    pub entry: NewLogEntry,
}

/// A build's failure.
#[derive(Debug, Clone)]
pub struct FinishError {
    /// Phase it failed in.
    pub phase: String,
    /// The error in one sentence for the user.
    pub message: String,
    /// The typed failure; opaque to the database.
    pub detail: Value,
    /// Cache counters.
    pub cache_summary: Option<Value>,
    /// The log's last entry.
    pub entry: NewLogEntry,
}

/// The result of finishing a build as ready.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum Finished {
    /// It is ready, and its tags have moved.
    Ready(Box<Build>),
    /// Its cancellation was requested before. Nothing was written; finish it as cancelled. A confirmed cancel always wins
    /// over a build that was almost done.
    CancelRequested,
}
