//! Errors that pass between control and host.

use std::time::Duration;

use nullspace_api::{ErrorResponseCode, TemplateFailureDetail, TemplateFailureDetailCode, TemplateFailurePhase};
use nullspace_definition::problems::Invalid;
use nullspace_service::{Error, chain};

use crate::reason;

/// Time after which a request that was refused for a full disk should be retried.
const RETRY_AFTER: Duration = Duration::from_secs(60);
/// The error text of a full disk.
const MESSAGE: &str = "the host's disk is nearly full: new work is refused until there is space";
const ACTION: &str = "Try again later; the operator must make room on the disk under the service's data folder.";

/// The refusal of a request because the host's disk is full; for a build with the typed detail of `phase`.
pub fn storage_full(phase: Option<TemplateFailurePhase>) -> Error {
    let detail = phase.map(|phase| {
        let code = TemplateFailureDetailCode::InternalError;
        Box::new(TemplateFailureDetail::new(code, phase, true, MESSAGE, ACTION).with_reason(reason::HOST_DISK_FULL))
    });
    Error { retry_after: Some(RETRY_AFTER), detail, ..Error::new(ErrorResponseCode::CapacityExceeded, MESSAGE) }
}

/// Time after which a request should be retried that the object store did not answer.
const STORE_RETRY_AFTER: Duration = Duration::from_secs(10);

/// The refusal of a request because the object store does not answer or takes nothing; for a build with the typed detail of
/// `phase`.
pub fn store_away(phase: Option<TemplateFailurePhase>) -> Error {
    let (message, action) = (
        "the object store does not answer or takes nothing: try again later",
        "Try again later; if it persists, the operator must look at the object store.",
    );
    let detail = phase.map(|phase| {
        let code = TemplateFailureDetailCode::InternalError;
        Box::new(TemplateFailureDetail::new(code, phase, true, message, action).with_reason(reason::STORE_UNAVAILABLE))
    });
    Error { retry_after: Some(STORE_RETRY_AFTER), detail, ..Error::new(ErrorResponseCode::CapacityExceeded, message) }
}

/// An internal fault: logged in full, shown without internals.
pub fn internal(what: &str, error: &dyn std::error::Error) -> Error {
    tracing::error!(error = %chain(error), "{what}");
    Error::new(ErrorResponseCode::InternalError, "internal error: look for this request's id in the service's log")
}

/// The typed detail of a refused upload.
pub fn upload_detail(reason: &str, message: &str) -> TemplateFailureDetail {
    TemplateFailureDetail::new(
        TemplateFailureDetailCode::FileUploadError,
        TemplateFailurePhase::BlobUpload,
        false,
        message,
        "Ask POST /v1/templates/blobs/preflight for the file's blob_id and send exactly its bytes.",
    )
    .with_reason(reason)
}

/// The refusal of an upload, with its typed detail.
pub fn upload_refused(detail: TemplateFailureDetail) -> Error {
    let message = detail.message.clone();
    Error { detail: Some(Box::new(detail)), ..Error::new(ErrorResponseCode::FileUploadError, message) }
}

/// The refusal of an invalid request, with all broken rules in one sentence.
pub fn invalid(error: Invalid) -> Error {
    Error::invalid(error.to_string())
}

/// Errors of a host's stored data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The disk under its data folder is full. The operation may succeed once there is space.
    #[error("{0}")]
    StorageFull(String),
    /// The object store does not answer, refuses, or is full. The operation may succeed later.
    #[error("{0}")]
    StoreAway(String),
    /// The operation is not possible: the name is invalid, the file is missing or damaged, or the filesystem failed. The text
    /// is for the log.
    #[error("{0}")]
    Failed(String),
}

impl HostError {
    /// Whether the disk under the data folder is full.
    pub fn is_storage_full(&self) -> bool {
        matches!(self, HostError::StorageFull(_))
    }
}

/// The reasons for which control refuses or fails a call about a running build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Another worker has the build, or it has ended. The host must stop the build and make no more calls.
    #[error("the lease on this build was lost")]
    LeaseLost,
    /// It does not exist, or can no longer be used.
    #[error("not found")]
    NotFound,
    /// The database's disk is full.
    #[error("{0}")]
    StorageFull(String),
    /// A stored value has the wrong form. A retry would not help.
    #[error("stored data is damaged: {0}")]
    Corrupt(String),
    /// The database failed. The text is for the log.
    #[error("{0}")]
    Failed(String),
}
