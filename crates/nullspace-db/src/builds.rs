//! Builds and their logs, as readers see them, and requests to cancel.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, BuildId, Caller, PrivateJson, Tag, TemplateId, TemplateName, TenantId};
use serde_json::Value;

use crate::{NewLogEntry, Result, Visibility, text_enum::text_enum};

/// Reads a tenant's builds and their logs, and takes requests to cancel.
#[async_trait]
pub trait Builds: Send + Sync + 'static {
    /// One of the caller's builds.
    async fn get_build(&self, caller: &Caller, build: BuildId) -> Result<Build>;

    /// The caller's builds, newest first.
    async fn list_builds(&self, caller: &Caller, filter: BuildFilter) -> Result<BuildPage>;

    /// Up to `limit` entries of the log from `from` on. Empty at its end.
    async fn log_entries(&self, caller: &Caller, build: BuildId, from: u64, limit: u32) -> Result<Vec<LogEntry>>;

    /// The build and the offset of its log's next entry, read at one moment. When the build is final, no entry at or after
    /// that offset will ever be added.
    async fn build_and_next_offset(&self, caller: &Caller, build: BuildId) -> Result<(Build, u64)>;

    /// Requests a build's cancellation. A waiting build ends at once. A second request changes nothing.
    async fn request_cancel(
        &self,
        caller: &Caller,
        build: BuildId,
        request: CancelRequest,
        now: Timestamp,
    ) -> Result<CancelOutcome>;
}

text_enum! {
    /// State of a build.
    BuildStatus {
        /// Accepted; no worker has it.
        Waiting = "waiting",
        /// A worker has it, or had it until its lease ran out.
        Building = "building",
        /// Its artifact can be used. Final.
        Ready = "ready",
        /// It failed. Final.
        Error = "error",
        /// It was cancelled on request. Final.
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
    /// The backend that makes the root filesystem.
    BuildBackend {
        /// This service.
        Native = "native",
        /// A BuildKit daemon.
        Buildkit = "buildkit",
    }
}

text_enum! {
    /// Kind of a build's source.
    SourceType {
        /// Steps on the default base.
        Declarative = "declarative",
        /// A Dockerfile.
        Dockerfile = "dockerfile",
        /// An OCI image.
        OciImport = "oci_import",
        /// Another template.
        TemplateBase = "template_base",
        /// A snapshot of a sandbox, promoted as it is.
        Snapshot = "snapshot",
    }
}

/// A build as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Build {
    /// Identity.
    pub id: BuildId,
    /// The tenant that owns it.
    pub tenant: TenantId,
    /// The template its name belongs to.
    pub template: TemplateId,
    /// The id its artifact has or will have.
    pub artifact_id: ArtifactId,
    /// Its state.
    pub status: BuildStatus,
    /// Template name in the request.
    pub name: TemplateName,
    /// Slug of the template's namespace.
    pub namespace: String,
    /// The template's visibility now.
    pub visibility: Visibility,
    /// See [`NewBuild::description`](crate::NewBuild::description).
    pub description: Option<String>,
    /// Tags in the request.
    pub tags: Vec<Tag>,
    /// The backend that makes the root filesystem.
    pub backend: BuildBackend,
    /// Kind of its source.
    pub source_type: SourceType,
    /// See [`NewBuild::definition`](crate::NewBuild::definition).
    pub definition: PrivateJson,
    /// See [`NewBuild::build_config`](crate::NewBuild::build_config).
    pub build_config: Value,
    /// Digest of the source.
    pub source_digest: Option<String>,
    /// Digest of the build context.
    pub context_digest: Option<String>,
    /// Digest of the Dockerfile.
    pub dockerfile_digest: Option<String>,
    /// The user or key that started it.
    pub triggered_by: Option<String>,
    /// The build that this one retries.
    pub retry_of: Option<BuildId>,
    /// The first build of that chain.
    pub original: Option<BuildId>,
    /// Number of attempts begun. An attempt that was handed back at a shutdown is not counted.
    pub attempt: u32,
    /// Most attempts.
    pub max_attempts: u32,
    /// Time of acceptance.
    pub created_at: Timestamp,
    /// Time of the row's last change.
    pub updated_at: Timestamp,
    /// Its position in the queue. A build that is given back keeps it.
    pub queued_at: Timestamp,
    /// Time of the first attempt's start.
    pub started_at: Option<Timestamp>,
    /// Time of its final status.
    pub finished_at: Option<Timestamp>,
    /// No worker takes it before this.
    pub not_before: Option<Timestamp>,
    /// Time of the first request to cancel.
    pub cancel_requested_at: Option<Timestamp>,
    /// The caller of that request.
    pub cancel_requested_by: Option<String>,
    /// Its reason.
    pub cancel_reason: Option<String>,
    /// Phase it failed in.
    pub failure_phase: Option<String>,
    /// The error in one sentence for the user.
    pub error: Option<String>,
    /// The typed failure; opaque to the database.
    pub error_detail: Option<Value>,
    /// Cache counters; opaque to the database.
    pub cache_summary: Option<Value>,
    /// The runtime settings of sandboxes, without the values of environment variables; opaque to the database.
    pub runtime_defaults: Option<Value>,
    /// The image's metadata; opaque to the database.
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

/// State of a ready build's artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArtifactState {
    /// May be removed after this. `None` while a tag points to it, or when it is kept for ever.
    pub retention_expires_at: Option<Timestamp>,
    /// Unusable since.
    pub deleted_at: Option<Timestamp>,
}

/// One durable entry of a build's log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogEntry {
    /// Its position: 0, 1, 2, …
    pub offset: u64,
    /// Time of the event.
    pub at: Timestamp,
    /// The entry as appended.
    pub body: Value,
}

/// A request to cancel.
#[derive(Debug, Clone)]
pub struct CancelRequest {
    /// The caller, as shown in the API.
    pub by: String,
    /// The reason, as given by the user.
    pub reason: Option<String>,
    /// Entry to append if the build is waiting and so ends at once.
    pub entry: NewLogEntry,
}

/// The result of a request to cancel.
#[derive(Debug, Clone, PartialEq)]
pub struct CancelOutcome {
    /// The build afterwards: `cancelled` if it was waiting; `building` with `cancel_requested_at` if a worker has it;
    /// unchanged if it was final.
    pub build: Build,
    /// Whether the build's `cancelled` entry was appended by this call.
    pub ended_now: bool,
}

/// A query for builds.
#[derive(Debug, Clone, Default)]
pub struct BuildFilter {
    /// Only builds of this template.
    pub template: Option<TemplateId>,
    /// Only builds with this status.
    pub status: Option<BuildStatus>,
    /// Only builds of this backend.
    pub backend: Option<BuildBackend>,
    /// Only builds from this kind of source.
    pub source_type: Option<SourceType>,
    /// Continue after this build: the last one of the page before.
    pub after: Option<BuildId>,
    /// Page size, 1 to 100.
    pub limit: u32,
}

/// One page of builds, newest first.
#[derive(Debug, Clone, PartialEq)]
pub struct BuildPage {
    /// The builds.
    pub builds: Vec<Build>,
    /// The value of [`BuildFilter::after`] for the next page; `None` at the end.
    pub next: Option<BuildId>,
}
