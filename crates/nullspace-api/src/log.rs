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
    /// Its place in the log.
    pub offset: u64,
    /// When it was written.
    pub timestamp: Time,
    /// What it is.
    pub kind: TemplateBuildLogKind,
    /// How much it matters.
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
    /// Where in the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The step, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_index: Option<u32>,
    /// How many steps there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_steps: Option<u32>,
    /// The attempt, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// How many attempts there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Which cache; with `cache`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_kind: Option<TemplateBuildLogEntryCacheKind>,
    /// What it gave; with `cache`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_status: Option<TemplateBuildLogEntryCacheStatus>,
    /// Why; with `cache`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_reason: Option<TemplateBuildLogEntryCacheReason>,
    /// What was looked for; with `cache`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_subject: Option<String>,
}

/// What a log entry is.
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

/// How much a log entry matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say all there is to say")]
pub enum TemplateBuildLogLevel {
    Debug,
    Error,
    Info,
    Warn,
}

/// Which cache was asked.
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

/// What a cache gave.
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

/// Why a cache gave what it gave.
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
    /// What its sandboxes start with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime_defaults: Option<TemplateRuntimeDefaults>,
    /// What its image said of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci_metadata: Option<TemplateOciImageMetadata>,
}
