//! A build's log.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{TemplateFailureDetail, TemplateInfo, TemplateOciImageMetadata, TemplateRuntimeDefaults, Time};

/// One entry of a build's log. Offsets start at 0 and rise by 1; the first entry is `start`, the last `end`, `error` or
/// `cancelled`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildLogEntry {
    /// `tb_…`, the same in every entry.
    pub build_id: String,
    /// `tmpl_…`, the same in every entry.
    pub template_id: String,
    /// Offset of the entry in the log.
    pub offset: u64,
    /// When it was written.
    pub timestamp: Time,
    /// What it is.
    pub kind: TemplateBuildLogKind,
    /// Level of the entry.
    pub level: TemplateBuildLogLevel,
    /// For people; one line of output for `message`.
    pub message: String,
    /// Why the build failed; with `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_detail: Option<TemplateFailureDetail>,
    /// The template that was made; with `end`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<TemplateInfo>,
    /// More of the template that was made; with `end`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_metadata: Option<TemplateBuildResultMetadata>,
    /// Phase of the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The step, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_index: Option<u32>,
    /// Number of steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_steps: Option<u32>,
    /// The attempt, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Maximum number of attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Kind of the cache; with `cache`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_kind: Option<TemplateBuildLogEntryCacheKind>,
    /// Result of the lookup; with `cache`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_status: Option<TemplateBuildLogEntryCacheStatus>,
    /// Reason for the result; with `cache`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_reason: Option<TemplateBuildLogEntryCacheReason>,
    /// Subject of the lookup; with `cache`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_subject: Option<String>,
}

/// Kind of a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateBuildLogKind {
    /// A cache was asked.
    Cache,
    /// Last entry: stopped on request.
    Cancelled,
    /// Last entry: ready.
    End,
    /// Last entry: failed. Nothing that will be tried again is ever an `error`.
    Error,
    /// Output or progress.
    Message,
    /// Something failed and will be tried again.
    Retry,
    /// First entry.
    Start,
    /// Something that the user should know.
    Warning,
}

impl TemplateBuildLogKind {
    /// True for the last entry of a log.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Cancelled | Self::End | Self::Error)
    }
}

/// Level of a log entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say all there is to say")]
pub enum TemplateBuildLogLevel {
    Debug,
    Error,
    Info,
    Warn,
}

/// Kinds of caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateBuildLogEntryCacheKind {
    /// Files of the build context.
    FileBlob,
    /// Finished artifacts.
    FinalArtifact,
    /// Root filesystem after a step.
    Layer,
}

/// Result of a cache lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateBuildLogEntryCacheStatus {
    /// It was not asked.
    Bypass,
    /// It had it.
    Hit,
    /// It did not have it.
    Miss,
    /// It has it now.
    Stored,
}

/// Reason for a lookup's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateBuildLogEntryCacheReason {
    /// A `skip_cache` step came before.
    BuilderCacheBoundary,
    /// The request said `force_upload`.
    ForceUpload,
    /// There is none that fits.
    MissingOrIncompatible,
    /// The request said `skip_cache`.
    WholeBuildSkipCache,
}

/// More of the template that a build made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildResultMetadata {
    /// Runtime defaults of its sandboxes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_defaults: Option<TemplateRuntimeDefaults>,
    /// Metadata of its image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci_metadata: Option<TemplateOciImageMetadata>,
}
