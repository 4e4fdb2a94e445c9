//! The queue of builds, as a worker sees it.
//!
//! ```text
//!  accept ──> waiting ──lease──> building ──finish_ready───────> ready
//!                ^  |               | |  └──finish_error───────> error
//!                |  |               | └─────finish_cancelled───> cancelled
//!                |  └─request_cancel──────────────────────────────^
//!                └──────release─────┘
//! ```
//! A lease that ran out is not an arrow of its own: the build stays `building` until `lease_build` hands it to the next
//! worker, with the next attempt, or as [`Leased::Spent`] when there are none left.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, BlobId, BuildId, Caller, PrivateJson, Tag, TemplateName};
use serde_json::Value;

#[cfg(doc)]
use crate::DbError;
use crate::{Build, BuildBackend, ClaimHash, Idempotency, Result, SourceType};

/// Accepts builds and gives each to one worker at a time, until it ends. What a worker writes is fenced by its [`Lease`].
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Accepts a build: `waiting`, with `first` at log offset 0. Makes the template if the name is new. A repeated request
    /// (see [`NewBuild::idempotency`]) is answered with the build that is there. [`DbError::Conflict`] when the name is
    /// an alias, or reserved and the build's claim is not the one that holds it, or a file of its context is gone.
    async fn accept_build(
        &self,
        caller: &Caller,
        build: NewBuild,
        first: NewLogEntry,
        limits: QueueLimits,
        now: Timestamp,
    ) -> Result<Build>;

    /// The next build for `owner`, held until `now + ttl`; `None` when there is nothing to do.
    ///
    /// Builds whose lease ran out come with those that wait. Among tenants: the one with the fewest running builds,
    /// then the one served longest ago, then the one that waits longest. A tenant of whom `running_per_tenant` builds run
    /// already is passed over, but for builds whose attempts are spent: those are only to be ended.
    async fn lease_build(
        &self,
        owner: &str,
        ttl: Duration,
        running_per_tenant: u32,
        now: Timestamp,
    ) -> Result<Option<Leased>>;

    /// Holds the build until `now + ttl`. [`DbError::LeaseLost`] when another has it; an overdue lease that nobody has
    /// taken yet is held again.
    async fn heartbeat(&self, lease: &Lease, ttl: Duration, now: Timestamp) -> Result<Heartbeat>;

    /// Frees the builds that `owner` holds, for an owner that is known to be gone: they can be leased at once, and
    /// whatever it has left behind finds its leases lost. Returns them.
    async fn take_over(&self, owner: &str, now: Timestamp) -> Result<Vec<BuildId>>;

    /// Records what the source turned out to be: an image's digest, a parent's build.
    async fn set_source_digest(&self, lease: &Lease, digest: &str, now: Timestamp) -> Result<()>;

    /// Records what became of the sizes that the build was asked for, as the API shows them.
    async fn set_build_config(&self, lease: &Lease, config: serde_json::Value, now: Timestamp) -> Result<()>;

    /// Appends to the build's log and returns the first entry's offset; [`DbError::LeaseLost`] appends nothing.
    async fn append_log(&self, lease: &Lease, entries: Vec<NewLogEntry>) -> Result<u64>;

    /// Gives the build back to the queue with these last entries.
    async fn release_build(&self, lease: &Lease, how: Release, entries: Vec<NewLogEntry>, now: Timestamp)
    -> Result<()>;

    /// Ends the build as `ready`: artifact, tags, row and last entry together. The artifact's bytes must be durable
    /// before.
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
    /// Who makes the root filesystem.
    pub backend: BuildBackend,
    /// What it starts from.
    pub source_type: SourceType,
    /// The normalised plan without secrets; opaque to the database.
    pub definition: PrivateJson,
    /// vCPUs, memory, network, disk; opaque to the database.
    pub build_config: Value,
    /// Digest of the source.
    pub source_digest: Option<String>,
    /// Digest of the build context.
    pub context_digest: Option<String>,
    /// Digest of the Dockerfile.
    pub dockerfile_digest: Option<String>,
    /// Who asked, as shown in the API.
    pub triggered_by: Option<String>,
    /// The build this one repeats.
    pub retry_of: Option<BuildId>,
    /// The first build of that chain.
    pub original: Option<BuildId>,
    /// How many workers may try it, at least 1.
    pub max_attempts: u32,
    /// Hash of the claim token that came with the request: only it may use a reserved name.
    pub claim: Option<ClaimHash>,
    /// The caller's idempotency key and a digest of its request, without secrets.
    pub idempotency: Option<Idempotency>,
    /// Files of its context: kept from collection until the build is over.
    pub blobs: Vec<WantedBlob>,
}

/// A file of a build's context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedBlob {
    /// Which.
    pub id: BlobId,
    /// Begin a new generation of it, so that nothing made of the earlier one is reused.
    pub force: bool,
}

/// How many unfinished builds there may be; one more answers [`DbError::LimitReached`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Of one tenant.
    pub per_tenant: u32,
    /// Of all tenants.
    pub total: u32,
}

/// One entry to append to a build's log.
#[derive(Debug, Clone, PartialEq)]
pub struct NewLogEntry {
    /// When it happened.
    pub at: Timestamp,
    /// The entry; opaque to the database, which keeps and returns it as it is.
    pub body: Value,
}

/// A worker's hold on a build: what every write of a worker shows. `epoch` rises with each lease, so a worker that was
/// thought dead cannot write even when the next one has its name or the same attempt number.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lease {
    /// The build.
    pub build: BuildId,
    /// Who holds it.
    pub owner: String,
    /// Which lease of this build it is.
    pub epoch: u64,
}

/// What a worker got from the queue.
#[derive(Debug, Clone, PartialEq)]
pub enum Leased {
    /// Run it. `build.attempt` says which attempt this is; more than 1 means that an earlier one was interrupted or
    /// retried.
    Run {
        /// The hold.
        lease: Lease,
        /// The build, `building` already.
        build: Box<Build>,
    },
    /// Its last attempt lost its lease: finish it as interrupted, do not run it.
    Spent {
        /// The hold.
        lease: Lease,
        /// The build, `building` still.
        build: Box<Build>,
    },
}

/// How a worker gives a build back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// The worker shuts down: the attempt does not count and another worker may take it at once.
    HandBack,
    /// The attempt failed in a way that may pass: it counts.
    RetryAfter(Duration),
}

/// Answer to a heartbeat whose lease still holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Somebody asked to cancel the build.
    pub cancel_requested: bool,
    /// Until when the lease holds now.
    pub expires_at: Timestamp,
}

/// A build's artifact, made durable and named in one transaction with the build becoming ready.
#[derive(Debug, Clone)]
pub struct FinishReady {
    /// Name of its folder in the data folder, allotted when it was published.
    pub folder: String,
    /// Key of the root image it boots from, held for this build through
    /// [`Reuse::put_rootfs`](crate::Reuse::put_rootfs) or [`find_rootfs`](crate::Reuse::find_rootfs).
    pub rootfs_key: String,
    /// Disk size as the guest sees it, bytes.
    pub disk_bytes: u64,
    /// What its folder takes on the host's disk, bytes.
    pub stored_bytes: u64,
    /// Where it can be restored; opaque to the database.
    pub compatibility: Value,
    /// Summary of the snapshot; opaque to the database.
    pub snapshot: Value,
    /// What sandboxes need at start, with the *values* of runtime environment variables.
    pub runtime: PrivateJson,
    /// What the API shows of `runtime`: keys, no values.
    pub runtime_defaults: Value,
    /// What the image said.
    pub oci_metadata: Option<Value>,
    /// Cache counters.
    pub cache_summary: Option<Value>,
    /// Keep it at least until then even without a tag.
    pub retention_expires_at: Option<Timestamp>,
    /// Key of everything that the artifact depends on, for [`Reuse::find_final`](crate::Reuse::find_final).
    pub final_key: Option<String>,
    /// The log's last entry.
    pub entry: NewLogEntry,
}

/// Why and where a build failed.
#[derive(Debug, Clone)]
pub struct FinishError {
    /// Phase it failed in.
    pub phase: String,
    /// One sentence for the user.
    pub message: String,
    /// The typed failure; opaque to the database.
    pub detail: Value,
    /// Cache counters.
    pub cache_summary: Option<Value>,
    /// The log's last entry.
    pub entry: NewLogEntry,
}

/// What became of an attempt to finish a build as ready.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub enum Finished {
    /// It is ready, its tags have moved.
    Ready(Box<Build>),
    /// Somebody asked to cancel it before: nothing was written; finish it as cancelled. A cancel that was answered
    /// always wins over a build that was almost done.
    CancelRequested,
}
