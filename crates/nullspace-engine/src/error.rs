//! The one error of the domain: what a caller may know, without a word of internals and without HTTP.

use std::time::Duration;

use nullspace_api::{ErrorResponseCode, TemplateFailureDetail};
use nullspace_store::StoreError;

use crate::failure::chain;

/// Why a request was not done.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// Kind, in the contract's words.
    pub code: ErrorResponseCode,
    /// What happened and what to do, for the caller.
    pub message: String,
    /// The build it is about.
    pub build_id: Option<String>,
    /// Typed detail of a build's failure.
    pub detail: Option<Box<TemplateFailureDetail>>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// True when the caller's own sandbox refuses it to the user that it was asked as.
    pub forbidden: bool,
}

/// Result with the domain's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of this kind.
    pub fn new(code: ErrorResponseCode, message: impl Into<String>) -> Self {
        Error { code, message: message.into(), build_id: None, detail: None, retry_after: None, forbidden: false }
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

    /// A fault of the service: logged whole, shown without internals.
    pub fn internal(what: &str, error: &dyn std::error::Error) -> Self {
        tracing::error!(error = %chain(error), "{what}");
        Error::new(
            ErrorResponseCode::InternalError,
            "the service failed at its own work; its log has this request's id",
        )
    }

    /// The store's error; [`StoreError::NotFound`] becomes `missing`.
    pub(crate) fn store(error: StoreError, missing: impl FnOnce() -> Error) -> Self {
        match error {
            StoreError::NotFound => missing(),
            StoreError::Conflict { what } => Error::new(ErrorResponseCode::TransitionConflict, what),
            StoreError::LimitReached { .. } => Error {
                retry_after: Some(Duration::from_secs(5)),
                ..Error::new(ErrorResponseCode::RateLimitExceeded, error.to_string())
            },
            full if full.is_storage_full() => crate::disk::refused(&full, None),
            StoreError::Unavailable(_) => {
                tracing::error!(error = %chain(&error), "the database is not available");
                Error {
                    retry_after: Some(Duration::from_secs(2)),
                    ..Error::new(ErrorResponseCode::DatabaseError, "the database is not available; try again")
                }
            }
            other => Error::internal("store", &other),
        }
    }
}

impl From<StoreError> for Error {
    /// For calls where nothing can be missing.
    fn from(error: StoreError) -> Self {
        Error::store(error, || Error::new(ErrorResponseCode::NotFound, "not found"))
    }
}
