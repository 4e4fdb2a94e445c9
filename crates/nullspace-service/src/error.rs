//! The one error of the service: what a caller may know, without a word of internals and without HTTP.

use std::sync::Arc;
use std::time::Duration;

use nullspace_api::{ErrorResponseCode, TemplateFailureDetail};

/// Why a request was not done.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Kind, in the contract's words.
    pub code: ErrorResponseCode,
    /// What happened and what to do, for the caller: no internals, no secrets.
    pub message: String,
    /// The build it is about.
    pub build_id: Option<String>,
    /// Typed detail of a build's failure.
    pub detail: Option<Box<TemplateFailureDetail>>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// True when the caller's own sandbox refuses it to the user that it was asked as.
    pub forbidden: bool,
    /// The cause, for the log only.
    pub source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// Result with the service's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of this kind.
    pub fn new(code: ErrorResponseCode, message: impl Into<String>) -> Self {
        Error {
            code,
            message: message.into(),
            build_id: None,
            detail: None,
            retry_after: None,
            forbidden: false,
            source: None,
        }
    }

    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Error::new(ErrorResponseCode::InvalidRequest, message)
    }

    /// This version cannot do it.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Error::new(ErrorResponseCode::NotImplemented, message)
    }

    /// There is no such build for this caller.
    pub fn build_not_found(id: &str) -> Self {
        Error::new(ErrorResponseCode::TemplateBuildNotFound, format!("there is no build {id}"))
    }

    /// There is no such template for this caller.
    pub fn template_not_found(reference: &str) -> Self {
        Error::new(ErrorResponseCode::TemplateNotFound, format!("there is no template {reference}"))
    }

    /// There is no such sandbox for this caller.
    pub fn sandbox_not_found(id: &str) -> Self {
        Error::new(ErrorResponseCode::SandboxNotFound, format!("there is no sandbox {id}, or it has ended"))
    }
}

/// An error with all that it was caused by, in one line, for the log. It may have internals: never for a caller.
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
