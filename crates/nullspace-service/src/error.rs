//! The error type of the service, for callers: without internals, and without HTTP.

use std::sync::Arc;
use std::time::Duration;

use nullspace_api::{ErrorResponseCode, TemplateFailureDetail, UploadFailureDetail};

/// A failed request.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Kind of the error, as the contract names it.
    pub code: ErrorResponseCode,
    /// The error and the advice, for the caller: no internals, no secrets.
    pub message: String,
    /// The build in question.
    pub build_id: Option<String>,
    /// Typed detail of a build's failure.
    pub detail: Option<Box<TemplateFailureDetail>>,
    /// Typed detail of an upload's failure.
    pub upload: Option<Box<UploadFailureDetail>>,
    /// Time after which to retry.
    pub retry_after: Option<Duration>,
    /// True when the caller's own sandbox denies access to the requested user.
    pub forbidden: bool,
    /// The cause, for the log only.
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// Result with the service's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Makes an error of this kind.
    pub fn new(code: ErrorResponseCode, message: impl Into<String>) -> Self {
        Error {
            code,
            message: message.into(),
            build_id: None,
            detail: None,
            upload: None,
            retry_after: None,
            forbidden: false,
            source: None,
        }
    }

    /// Makes the error of an invalid request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorResponseCode::InvalidRequest, message)
    }

    /// Makes the error of an operation that this version does not implement.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Error::new(ErrorResponseCode::NotImplemented, message)
    }

    /// Makes the error of a build that does not exist for this caller.
    pub fn build_not_found(id: &str) -> Self {
        Error::new(ErrorResponseCode::TemplateBuildNotFound, format!("there is no build {id}"))
    }

    /// Makes the error of a template that does not exist for this caller.
    pub fn template_not_found(reference: &str) -> Self {
        Error::new(ErrorResponseCode::TemplateNotFound, format!("there is no template {reference}"))
    }

    /// Makes the error of a sandbox that does not exist for this caller.
    pub fn sandbox_not_found(id: &str) -> Self {
        Error::new(ErrorResponseCode::SandboxNotFound, format!("there is no sandbox {id}, or it has ended"))
    }
}

/// Joins an error and all its causes in one line, for the log. The text may have internals; never show it to a caller.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
