//! Why a build failed, in a form that programs can act on.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::JsonObject;

/// Why a build (or a request about one) failed: what, where, whether trying again can help, and what to do.
///
/// Published clients reject a detail with any other key; what else is known goes into `details`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TemplateFailureDetail {
    /// Class of the failure.
    pub code: TemplateFailureDetailCode,
    /// Message for people.
    pub message: String,
    /// Phase in which the build failed.
    pub phase: TemplateFailurePhase,
    /// True when the same request may succeed later, unchanged.
    pub retryable: bool,
    /// Suggested action for the user.
    pub suggested_action: String,
    /// The step that failed, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_index: Option<u32>,
    /// The attempt that failed, counted from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Maximum number of attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// The cache entry that was concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_subject: Option<String>,
    /// The build that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// The request that failed, or that started the build.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Facts for programs; `reason` names the failure exactly (`build_step_nonzero_exit`, `missing_blob`, …).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub details: Option<JsonObject>,
}

impl TemplateFailureDetail {
    /// A failure with the fields that every failure has.
    #[must_use]
    pub fn new(
        code: TemplateFailureDetailCode,
        phase: TemplateFailurePhase,
        retryable: bool,
        message: impl Into<String>,
        suggested_action: impl Into<String>,
    ) -> Self {
        Self {
            code,
            message: message.into(),
            phase,
            retryable,
            suggested_action: suggested_action.into(),
            step_index: None,
            attempt: None,
            max_attempts: None,
            cache_subject: None,
            build_id: None,
            request_id: None,
            details: None,
        }
    }

    /// The same with one more fact in `details`.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.details.get_or_insert_default().insert(key.into(), value.into());
        self
    }

    /// The same with `details.reason` set.
    #[must_use]
    pub fn with_reason(self, reason: impl Into<String>) -> Self {
        self.with("reason", reason.into())
    }

    /// `details.reason`, when there is one.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.details.as_ref()?.get("reason")?.as_str()
    }
}

/// Class of a build failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateFailureDetailCode {
    /// The definition, the image or the user's program is at fault.
    BuildError,
    /// A build context file was missing, damaged or refused.
    FileUploadError,
    /// The service is at fault.
    InternalError,
    /// Credentials are missing or wrong.
    Unauthorized,
}

/// Phases of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TemplateFailurePhase {
    /// Checking credentials.
    Auth,
    /// Checking the request, before anything ran.
    Preflight,
    /// Storing build context files.
    BlobUpload,
    /// Making the base root filesystem.
    Prepare,
    /// Running a step.
    BuildStep,
    /// Start command and readiness probe.
    Readiness,
    /// Freezing the machine and capturing it.
    Snapshot,
    /// Storing the artifact and moving tags.
    Finalize,
    /// The worker was lost and the attempts are spent.
    Interrupted,
}

impl TemplateFailurePhase {
    /// Its name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Preflight => "preflight",
            Self::BlobUpload => "blob_upload",
            Self::Prepare => "prepare",
            Self::BuildStep => "build_step",
            Self::Readiness => "readiness",
            Self::Snapshot => "snapshot",
            Self::Finalize => "finalize",
            Self::Interrupted => "interrupted",
        }
    }
}
