//! The body of every answer that is not a success.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{JsonObject, TemplateFailureDetail};

/// Body of every answer that is not 2xx.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorResponse {
    /// Message for people.
    pub error: String,
    /// Code for programs.
    pub code: ErrorResponseCode,
    /// Details of the failure, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(inline)]
    pub error_detail: Option<ErrorDetail>,
    /// The request, as in the `x-request-id` header.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The build that the error belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
}

impl ErrorResponse {
    /// An error with the fields that every error has.
    #[must_use]
    pub fn new(code: ErrorResponseCode, error: impl Into<String>) -> Self {
        Self { error: error.into(), code, error_detail: None, request_id: None, build_id: None }
    }
}

/// What an error can carry besides its message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ErrorDetail {
    /// A build failed or was refused.
    Template(TemplateFailureDetail),
    /// An upload into a sandbox failed.
    Upload(UploadFailureDetail),
}

impl From<TemplateFailureDetail> for ErrorDetail {
    fn from(detail: TemplateFailureDetail) -> Self {
        Self::Template(detail)
    }
}

/// Why an upload into a sandbox failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct UploadFailureDetail {
    /// Reason for the failed upload.
    pub reason: UploadFailureReason,
    /// Message for people.
    pub message: String,
    /// True when the same request may succeed later, unchanged.
    pub retryable: bool,
    /// The upload session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload_id: Option<String>,
    /// The request that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// The path in the sandbox or the archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The part that was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part_number: Option<u64>,
    /// Facts for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub details: Option<JsonObject>,
}

/// Reasons for a failed upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say all there is to say")]
pub enum UploadFailureReason {
    DirectoryExtractInvalidPath,
    DirectoryExtractInvalidSymlink,
    DirectoryExtractUnsupportedEntry,
    InsufficientStagingSpace,
    InvalidPartChecksum,
    MissingParts,
    PartOutOfRange,
    PartSizeMismatch,
    SizeLimitExceeded,
    TargetConflict,
    UploadAborted,
    UploadAlreadyCompleted,
    UploadExpired,
    WholeChecksumMismatch,
}

/// What happened, for programs. The contract fixes the list; a part of it belongs to operations that this service does
/// not have (accounts, functions, volumes) and is here so that a client can read every answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names say all there is to say; the special ones have a comment")]
pub enum ErrorResponseCode {
    AccountDeleted,
    AccountHardDeleteActiveResources,
    AccountNotFound,
    AccountNotSoftDeleted,
    AuthFailed,
    AuthLocked,
    AuthProxyError,
    AuthProxyUnavailable,
    /// A build failed, or its definition cannot be built.
    BuildError,
    /// No host has room for the machine now.
    CapacityExceeded,
    CaptchaFailed,
    CaptchaRequired,
    CaptchaUnavailable,
    /// The metadata store is down (503).
    DatabaseError,
    DisposableEmail,
    EmailActionRateLimited,
    EmailNotVerified,
    /// The command could not be started (502).
    ExecFailed,
    /// The command did not end in time (504).
    ExecTimeout,
    /// A backend is down that this deployment has (503).
    FeatureUnavailable,
    FileError,
    FileUploadError,
    FunctionIdempotencyMismatch,
    FunctionInvalidConfig,
    FunctionInvalidState,
    FunctionNameConflict,
    FunctionNotFound,
    FunctionRunNotFound,
    FunctionSecretNameConflict,
    FunctionServiceInstanceNotFound,
    FunctionVersionNotFound,
    /// The snapshot was made where it cannot be resumed from.
    IncompatibleSnapshot,
    /// A fault of the service (500).
    InternalError,
    InvalidAuthRedirect,
    /// `fields=` names a field that cannot be picked (400).
    InvalidFields,
    InvalidOauthProvider,
    /// The request is wrong (400, 405, 413, 415, 431).
    InvalidRequest,
    /// No host can run machines now (503).
    NoEligibleRuntimeHost,
    /// No such route (404); things have their own codes.
    NotFound,
    /// This deployment cannot (501).
    NotImplemented,
    OauthRateLimited,
    OperatorRequired,
    #[serde(rename = "QUOTA_EXCEEDED")]
    QuotaExceeded,
    /// Too many requests or too much queued (429, with `Retry-After`).
    RateLimitExceeded,
    /// The template must be built again before it can be used.
    RebuildRequired,
    SameHostRequired,
    SandboxNotFound,
    /// The sandbox is not running.
    SandboxNotReady,
    SignupRateLimited,
    SnapshotInUse,
    SnapshotNotFound,
    TemplateBuildNotFound,
    TemplateNameClaimNotFound,
    TemplateNotFound,
    /// Someone else changed it first, or it is taken (409).
    TransitionConflict,
    TransitionInProgress,
    /// The key is missing or wrong (401).
    Unauthorized,
    VolumeBackendCapabilityUnsupported,
    VolumeBackendUnavailable,
    VolumeBetaRestriction,
    VolumeBusy,
    VolumeInvalidMountPath,
    VolumeLimitExceeded,
    VolumeMountCredentialIssueFailed,
    VolumeOverlappingMounts,
    VolumeQuotaExceeded,
    VolumeReadOnly,
    VolumeStaleRevision,
    /// The warm pool has no machine for this create, which takes no other (503).
    WarmPoolUnavailable,
}
