//! A template build and its result.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    TemplateBuildConfig, TemplateBuildLogEntry, TemplateFailureDetail, TemplateReadinessProbe, TemplateVisibility, Time,
};

/// One build of a template.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuild {
    /// `tb_…`.
    pub build_id: String,
    /// `tmpl_…`: the artifact it makes; allotted when the build is accepted.
    pub template_id: String,
    /// Name of the template.
    pub name: String,
    /// Tags that move to the artifact when the build is ready.
    pub tags: Vec<String>,
    /// Status of the build.
    pub status: TemplateBuildStatus,
    /// Builder of the build.
    pub build_backend: TemplateBuildBackend,
    /// Source of the build.
    pub source_type: TemplateBuildSourceType,
    /// `namespace/name:tag`.
    pub canonical_ref: String,
    /// Namespace of the template.
    pub namespace_slug: String,
    /// Visibility of the template.
    pub visibility: TemplateVisibility,
    /// When it was accepted.
    pub created_at: Time,
    /// Time of the last change.
    pub updated_at: Time,
    /// Digest of the source: the image's manifest, or of the definition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_digest: Option<String>,
    /// Digest of the build context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_digest: Option<String>,
    /// Digest of the Dockerfile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile_digest: Option<String>,
    /// Size of the machine, as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_config: Option<TemplateBuildConfig>,
    /// Caller who started the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub triggered_by: Option<String>,
    /// When it entered the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<Time>,
    /// Time of the first lease by a worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Milliseconds from start to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Phase in which it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_phase: Option<String>,
    /// Cache lookups of the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_summary: Option<TemplateBuildCacheSummary>,
    /// Whether its artifact can be used now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_availability: Option<TemplateBuildArtifactAvailability>,
    /// Whether tags can be moved to it now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promotability: Option<TemplateBuildPromotability>,
    /// When its artifact may be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_expires_at: Option<Time>,
    /// Runtime defaults of its sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_defaults: Option<TemplateRuntimeDefaults>,
    /// Metadata of its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci_metadata: Option<TemplateOciImageMetadata>,
    /// Artifacts of the build.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifact_ids: Vec<String>,
    /// The build that this build retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_of_build_id: Option<String>,
    /// The first build of a chain of retries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_build_id: Option<String>,
    /// Time of the cancel request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancel_requested_at: Option<Time>,
    /// Caller who requested the cancellation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancel_requested_by: Option<String>,
    /// Reason of the cancellation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancellation_reason: Option<String>,
    /// Message about the failure, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Details of the failure, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_detail: Option<TemplateFailureDetail>,
}

/// A build as histories list it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildSummary {
    /// `tb_…`.
    pub build_id: String,
    /// `tmpl_…`.
    pub template_id: String,
    /// Name of the template.
    pub name: String,
    /// Tags that the build asked for.
    pub tags: Vec<String>,
    /// Status of the build.
    pub status: TemplateBuildStatus,
    /// Builder that ran the build.
    pub build_backend: TemplateBuildBackend,
    /// Source of the build.
    pub source_type: TemplateBuildSourceType,
    /// When it was accepted.
    pub created_at: Time,
    /// Time of the last change.
    pub updated_at: Time,
    /// Digest of the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_digest: Option<String>,
    /// Digest of the build context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_digest: Option<String>,
    /// Digest of the Dockerfile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile_digest: Option<String>,
    /// Caller who started the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub triggered_by: Option<String>,
    /// When it entered the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<Time>,
    /// Time of the first lease by a worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Milliseconds from start to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Phase in which it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_phase: Option<String>,
    /// Cache lookups of the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_summary: Option<TemplateBuildCacheSummary>,
    /// Whether its artifact can be used now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_availability: Option<TemplateBuildArtifactAvailability>,
    /// Whether tags can be moved to it now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub promotability: Option<TemplateBuildPromotability>,
    /// When its artifact may be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention_expires_at: Option<Time>,
    /// Artifacts of the build.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifact_ids: Vec<String>,
}

/// A page of a template's history, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildListResponse {
    /// The builds of this page.
    pub builds: Vec<TemplateBuildSummary>,
    /// Cursor of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A build with the log entries that the caller has not seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildStatusSnapshot {
    /// The build.
    pub build: TemplateBuild,
    /// Entries from the offset that was asked for.
    pub entries: Vec<TemplateBuildLogEntry>,
    /// The offset to ask for next.
    pub next_offset: u64,
}

/// Status of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateBuildStatus {
    /// A worker has it.
    Building,
    /// It was stopped on request.
    Cancelled,
    /// It failed.
    Error,
    /// Its artifact can be used.
    Ready,
    /// It is queued.
    Waiting,
}

impl TemplateBuildStatus {
    /// True when nothing will change any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Cancelled | Self::Error | Self::Ready)
    }
}

/// Builders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateBuildBackend {
    /// BuildKit: Dockerfiles.
    Buildkit,
    /// The service itself: images, steps, templates.
    Native,
}

/// Source of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateBuildSourceType {
    /// Steps.
    Declarative,
    /// A Dockerfile.
    Dockerfile,
    /// An OCI image as it is.
    OciImport,
    /// Another template as it is.
    TemplateBase,
}

/// Cache lookups of a build.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildCacheSummary {
    /// Cache hits of finished artifacts.
    #[serde(default)]
    pub final_artifact_hits: u64,
    /// Cache misses of finished artifacts.
    #[serde(default)]
    pub final_artifact_misses: u64,
    /// Cache bypasses of finished artifacts.
    #[serde(default)]
    pub final_artifact_bypasses: u64,
    /// Finished artifacts stored.
    #[serde(default)]
    pub final_artifact_stores: u64,
    /// Cache hits of layers.
    #[serde(default)]
    pub layer_hits: u64,
    /// Cache misses of layers.
    #[serde(default)]
    pub layer_misses: u64,
    /// Cache bypasses of layers.
    #[serde(default)]
    pub layer_bypasses: u64,
    /// Layers stored.
    #[serde(default)]
    pub layer_stores: u64,
    /// Cache hits of context files.
    #[serde(default)]
    pub file_blob_hits: u64,
    /// Cache misses of context files.
    #[serde(default)]
    pub file_blob_misses: u64,
    /// Cache bypasses of context files.
    #[serde(default)]
    pub file_blob_bypasses: u64,
    /// Context files stored.
    #[serde(default)]
    pub file_blob_stores: u64,
}

/// Whether an artifact can be used now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildArtifactAvailability {
    /// Whether it can.
    pub status: TemplateBuildArtifactAvailabilityStatus,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether an artifact can be used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateBuildArtifactAvailabilityStatus {
    /// It can.
    Available,
    /// Making it failed.
    Failed,
    /// It is being stored.
    Publishing,
    /// There is none, or no longer.
    Unavailable,
    /// It is being fetched.
    Warming,
}

/// Whether tags can be moved to a build now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildPromotability {
    /// Whether they can, and why not.
    pub status: TemplateBuildPromotabilityStatus,
    /// Whether they can.
    pub promotable: bool,
    /// Why not, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether tags can be moved to a build now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateBuildPromotabilityStatus {
    /// Its retention is over.
    Expired,
    /// It has not ended, or not well.
    NotReady,
    /// They can.
    Promotable,
    /// Its artifact is deleted.
    Purged,
    /// Its artifact cannot be reached.
    Unavailable,
}

/// Runtime defaults of a template's sandboxes. Values of variables are never shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateRuntimeDefaults {
    /// Names of the environment variables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub default_env_keys: Vec<String>,
    /// The start command that ran at build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_cmd: Option<String>,
    /// User of execs and files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Working directory of execs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// The probe that was waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub readiness: Option<TemplateReadinessProbe>,
}

/// Metadata of an OCI image. It is stored; only the fields documented elsewhere have an effect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateOciImageMetadata {
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `port/protocol`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
    /// Volume paths; they are ordinary directories.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Health check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<TemplateOciHealthcheckMetadata>,
}

/// An OCI image's health check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateOciHealthcheckMetadata {
    /// `["CMD-SHELL", command]`, `["CMD", argv…]` or `["NONE"]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Nanoseconds between checks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ns: Option<u64>,
    /// Nanoseconds that a check may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ns: Option<u64>,
    /// Nanoseconds in which failures do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_period_ns: Option<u64>,
    /// Failures in a row that count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// The equivalent readiness probe, used when the request has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub mapped_readiness: Option<TemplateReadinessProbe>,
}
