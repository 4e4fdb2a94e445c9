//! What a build would do, without doing it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Envs, JsonObject, TemplateBuildBackend, TemplateBuildSourceType, TemplateReadinessProbe};

/// Whether a request would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildValidationResponse {
    /// True when there are no errors.
    pub valid: bool,
    /// All that is wrong.
    pub errors: Vec<TemplateBuildValidationError>,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// One thing that is wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildValidationError {
    /// For programs.
    pub code: String,
    /// For people; names the field.
    pub message: String,
    /// Phase that would fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
}

/// The plan of a build.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildPlanResponse {
    /// Builder of the build.
    pub build_backend: TemplateBuildBackend,
    /// Source of the build.
    pub source_type: TemplateBuildSourceType,
    /// The plan.
    pub build_plan: TemplateBuildPlan,
    /// Warnings for the user.
    pub warnings: Vec<String>,
    /// True when the base image needs credentials that the request does not give.
    pub requires_base_image_auth: bool,
    /// Digest of the definition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_digest: Option<String>,
    /// The build context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context_manifest: Option<TemplateBuildContextManifestSummary>,
    /// Digest of the Dockerfile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dockerfile_digest: Option<String>,
}

/// A build, step by step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildPlan {
    /// Base of the steps.
    pub base_template: String,
    /// Shell commands, in order.
    pub run_steps: Vec<String>,
    /// All steps, in order.
    #[schema(value_type = Vec<Object>)]
    pub build_steps: Vec<JsonObject>,
    /// Environment while building.
    pub build_envs: Envs,
    /// `[name, value]` in the order of the Dockerfile.
    pub env_assignments: Vec<Vec<String>>,
    /// Instructions without effect.
    pub ignored_instructions: Vec<String>,
    /// The start command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_cmd: Option<String>,
    /// User of the start command and of execs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_user: Option<String>,
    /// Working directory of the start command and of execs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_workdir: Option<String>,
    /// When the start command counts as ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub readiness: Option<TemplateReadinessProbe>,
    /// Instructions without effect, with their lines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored_instruction_warnings: Vec<TemplateIgnoredInstruction>,
}

/// An instruction without effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateIgnoredInstruction {
    /// Its keyword.
    pub instruction: String,
    /// Its line in the Dockerfile, counted from 1.
    pub line: u32,
}

/// A build context, briefly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TemplateBuildContextManifestSummary {
    /// Its id.
    pub context_manifest_id: String,
    /// Its digest.
    pub context_digest: String,
    /// Number of files.
    pub file_count: u64,
}
