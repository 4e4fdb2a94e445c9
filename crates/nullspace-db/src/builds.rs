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

    /// Up to `limit` entries of the log from `from` on; none at its end.
    async fn log_entries(&self, caller: &Caller, build: BuildId, from: u64, limit: u32) -> Result<Vec<LogEntry>>;

    /// The build with the offset that its next entry will have, read at one moment: when the build is final, no entry
    /// at or after that offset will ever be.
    async fn build_and_next_offset(&self, caller: &Caller, build: BuildId) -> Result<(Build, u64)>;

    /// Asks for a build to be cancelled; one that waits ends here and now. Asking again changes nothing.
    async fn request_cancel(
        &self,
        caller: &Caller,
        build: BuildId,
        request: CancelRequest,
        now: Timestamp,
    ) -> Result<CancelOutcome>;
}

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
    /// See [`NewBuild::description`](crate::NewBuild::description).
    pub description: Option<String>,
    /// Tags as asked for.
    pub tags: Vec<Tag>,
    /// Who makes the root filesystem.
    pub backend: BuildBackend,
    /// What it starts from.
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
    /// The typed failure; opaque to the database.
    pub error_detail: Option<Value>,
    /// Cache counters; opaque to the database.
    pub cache_summary: Option<Value>,
    /// What sandboxes start with, without the values of environment variables; opaque to the database.
    pub runtime_defaults: Option<Value>,
    /// What the image said; opaque to the database.
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

/// What becomes of a request to cancel.
#[derive(Debug, Clone, PartialEq)]
pub struct CancelOutcome {
    /// The build afterwards: `cancelled` when it was waiting; `building` with `cancel_requested_at` when a worker has it;
    /// unchanged when it was final.
    pub build: Build,
    /// Whether the build's `cancelled` entry was appended by this call.
    pub ended_now: bool,
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
