//! Builds: what is asked, what is kept, and what a worker holds while it runs one.
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

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    ArtifactId, BlobId, BuildId, ClaimHash, Idempotency, PrivateJson, Tag, TemplateId, TemplateName, TenantId,
    Visibility, text_enum::text_enum,
};

text_enum! {
    /// Where a build stands.
    BuildStatus {
        /// Accepted; no worker has it.
        Waiting = "waiting",
        /// A worker has it, or had it until its lease ran out.
        Building = "building",
        /// Its artifact can be used. Final.
        Ready = "ready",
        /// It failed. Final.
        Error = "error",
        /// Somebody asked for that. Final.
        Cancelled = "cancelled",
    }
}

impl BuildStatus {
    /// Whether the build is over and its row and log never change again.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Ready | Self::Error | Self::Cancelled)
    }
}

text_enum! {
    /// Who makes the root filesystem.
    BuildBackend {
        /// This service.
        Native = "native",
        /// A BuildKit daemon.
        Buildkit = "buildkit",
    }
}

text_enum! {
    /// What a build starts from.
    SourceType {
        /// Steps on the default base.
        Declarative = "declarative",
        /// A Dockerfile.
        Dockerfile = "dockerfile",
        /// An OCI image.
        OciImport = "oci_import",
        /// Another template.
        TemplateBase = "template_base",
    }
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
    /// The normalised plan without secrets; opaque to the store.
    pub definition: PrivateJson,
    /// vCPUs, memory, network, disk; opaque to the store.
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

/// A file that is kept for a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBlob {
    /// Which.
    pub id: BlobId,
    /// Its generation when the build was accepted.
    pub generation: u64,
}

/// How many unfinished builds there may be; one more answers [`StoreError::LimitReached`](crate::StoreError::LimitReached).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Of one tenant.
    pub per_tenant: u32,
    /// Of all tenants.
    pub total: u32,
}

/// A build as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Build {
    /// Identity.
    pub id: BuildId,
    /// Whose.
    pub tenant: TenantId,
    /// The template its name belongs to.
    pub template: TemplateId,
    /// The id its artifact has or will have.
    pub artifact_id: ArtifactId,
    /// Where it stands.
    pub status: BuildStatus,
    /// Template name as asked for.
    pub name: TemplateName,
    /// Slug of the template's namespace.
    pub namespace: String,
    /// The template's visibility now.
    pub visibility: Visibility,
    /// See [`NewBuild::description`].
    pub description: Option<String>,
    /// Tags as asked for.
    pub tags: Vec<Tag>,
    /// Who makes the root filesystem.
    pub backend: BuildBackend,
    /// What it starts from.
    pub source_type: SourceType,
    /// See [`NewBuild::definition`].
    pub definition: PrivateJson,
    /// See [`NewBuild::build_config`].
    pub build_config: Value,
    /// Digest of the source.
    pub source_digest: Option<String>,
    /// Digest of the build context.
    pub context_digest: Option<String>,
    /// Digest of the Dockerfile.
    pub dockerfile_digest: Option<String>,
    /// Who asked.
    pub triggered_by: Option<String>,
    /// The build this one repeats.
    pub retry_of: Option<BuildId>,
    /// The first build of that chain.
    pub original: Option<BuildId>,
    /// How many workers have begun it (a worker that handed it back unharmed is not counted).
    pub attempt: u32,
    /// How many may.
    pub max_attempts: u32,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When the row last changed.
    pub updated_at: Timestamp,
    /// Its place in the line: given back to the queue, it keeps it.
    pub queued_at: Timestamp,
    /// When the first worker began it.
    pub started_at: Option<Timestamp>,
    /// When it became final.
    pub finished_at: Option<Timestamp>,
    /// No worker takes it before this.
    pub not_before: Option<Timestamp>,
    /// When somebody first asked to cancel it.
    pub cancel_requested_at: Option<Timestamp>,
    /// Who.
    pub cancel_requested_by: Option<String>,
    /// Why.
    pub cancel_reason: Option<String>,
    /// Phase it failed in.
    pub failure_phase: Option<String>,
    /// One sentence for the user.
    pub error: Option<String>,
    /// The typed failure; opaque to the store.
    pub error_detail: Option<Value>,
    /// Cache counters; opaque to the store.
    pub cache_summary: Option<Value>,
    /// What sandboxes start with, without the values of environment variables; opaque to the store.
    pub runtime_defaults: Option<Value>,
    /// What the image said; opaque to the store.
    pub oci_metadata: Option<Value>,
    /// Its artifact's state; `None` until it is ready.
    pub artifact: Option<ArtifactState>,
}

impl Build {
    /// `namespace/name`.
    pub fn canonical_ref(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// What became of a ready build's artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArtifactState {
    /// May go after that; `None` while a tag points to it, or when it is kept for ever.
    pub retention_expires_at: Option<Timestamp>,
    /// Since when it cannot be used any more.
    pub deleted_at: Option<Timestamp>,
}

/// One entry to append to a build's log.
#[derive(Debug, Clone, PartialEq)]
pub struct NewLogEntry {
    /// When it happened.
    pub at: Timestamp,
    /// The entry; opaque to the store, which keeps and returns it as it is.
    pub body: Value,
}

/// One durable entry of a build's log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogEntry {
    /// Its place: 0, 1, 2, …
    pub offset: u64,
    /// When it happened.
    pub at: Timestamp,
    /// The entry as appended.
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

/// What becomes of a request to cancel.
#[derive(Debug, Clone, PartialEq)]
pub struct CancelOutcome {
    /// The build afterwards: `cancelled` when it was waiting; `building` with `cancel_requested_at` when a worker has it;
    /// unchanged when it was final.
    pub build: Build,
    /// Whether the build's `cancelled` entry was appended by this call.
    pub ended_now: bool,
}

/// Who asks to cancel, and why.
#[derive(Debug, Clone)]
pub struct CancelRequest {
    /// As shown in the API.
    pub by: String,
    /// As given by the user.
    pub reason: Option<String>,
    /// Entry to append if the build is waiting and so ends at once.
    pub entry: NewLogEntry,
}

/// A build's artifact, made durable and named in one transaction with the build becoming ready.
#[derive(Debug, Clone)]
pub struct FinishReady {
    /// Name of its folder, from [`ArtifactStore::publish_artifact`](crate::ArtifactStore::publish_artifact).
    pub folder: String,
    /// Key of the root image it boots from, held for this build through
    /// [`Metadata::put_rootfs`](crate::Metadata::put_rootfs) or [`find_rootfs`](crate::Metadata::find_rootfs).
    pub rootfs_key: String,
    /// Disk size as the guest sees it, bytes.
    pub disk_bytes: u64,
    /// What its folder takes on the host's disk, bytes.
    pub stored_bytes: u64,
    /// Where it can be restored; opaque to the store.
    pub compatibility: Value,
    /// Summary of the snapshot; opaque to the store.
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
    /// Key of everything that the artifact depends on, for [`Metadata::find_final`](crate::Metadata::find_final).
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
    /// The typed failure; opaque to the store.
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

/// Which builds to list.
#[derive(Debug, Clone, Default)]
pub struct BuildFilter {
    /// Of this template only.
    pub template: Option<TemplateId>,
    /// In this status only.
    pub status: Option<BuildStatus>,
    /// Made by this backend only.
    pub backend: Option<BuildBackend>,
    /// From this kind of source only.
    pub source_type: Option<SourceType>,
    /// Continue after this build: the last one of the page before.
    pub after: Option<BuildId>,
    /// At most so many, 1 to 100.
    pub limit: u32,
}

/// One page of builds, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct BuildPage {
    /// The builds.
    pub builds: Vec<Build>,
    /// What to give as [`BuildFilter::after`] for the next page; `None` at the end.
    pub next: Option<BuildId>,
}

/// How full the service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Builds that wait.
    pub builds_waiting: u64,
    /// Since when the first of them does.
    pub oldest_waiting: Option<Timestamp>,
    /// Builds that a worker has or had.
    pub builds_building: u64,
    /// Sandboxes that are not over.
    pub sandboxes_live: u64,
}
