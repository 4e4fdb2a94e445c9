//! Errors as HTTP answers. The status is decided here and nowhere else.
//!
//! ```text
//!   the service ──> Error ─────┐
//!   extractor, fallback ───────┴─> Refusal ──> status + Failure (extension, no body yet)
//!   the framework's own answers ──> bare status ───────┐          │
//!                                                      v          v
//!                                  edge::finish: body in the contract's shape, request id, log
//! ```
//!
//! The body is written at the edge because only there the request id is at hand, and because there no answer can slip
//! by: what the framework says itself gets the same shape.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nullspace_api::{ErrorDetail, ErrorResponse, ErrorResponseCode, UploadFailureReason};
use nullspace_service::{Error, Exhausted};

/// What the edge makes the body from.
#[derive(Clone)]
pub(crate) struct Failure {
    pub(crate) body: ErrorResponse,
    /// For the log only.
    pub(crate) source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// Why a request is refused, as HTTP says it.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) error: Error,
}

impl Refusal {
    /// A refusal with this status. `message` is for the caller: no internals, no secrets.
    pub(crate) fn new(status: StatusCode, code: ErrorResponseCode, message: impl Into<String>) -> Self {
        Self { status, error: Error::new(code, message) }
    }

    /// A wrong request: 400 `invalid_request`.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Error::invalid(message).into()
    }

    /// A path that has no handler: 404 `not_found`.
    pub(crate) fn no_route() -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorResponseCode::NotFound, "There is no such route.")
    }

    /// A path that has a handler, but not for this method: 405 `invalid_request`.
    pub(crate) fn method_not_allowed(method: &Method) -> Self {
        let message = format!("The route exists, but not with {method}.");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, ErrorResponseCode::InvalidRequest, message)
    }

    /// A fault of the server: 500 `internal_error`. The cause goes to the log, the caller sees none of it.
    pub(crate) fn internal(source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        let message = "The service failed to handle the request.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorResponseCode::InternalError, message).with_source(source)
    }

    /// The same with what causes it, for the log.
    pub(crate) fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.error.source = Some(Arc::from(source.into()));
        self
    }

    /// The same with when to try again; rounded up to whole seconds on the wire.
    pub(crate) fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.error.retry_after = Some(retry_after);
        self
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl StdError for Refusal {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { status: status(&error), error }
    }
}

impl From<Exhausted> for Refusal {
    fn from(exhausted: Exhausted) -> Self {
        Error::from(exhausted).into()
    }
}

/// The status of each of the service's errors.
fn status(error: &Error) -> StatusCode {
    use ErrorResponseCode as Code;
    use UploadFailureReason as Upload;
    match error.upload.as_ref().map(|detail| detail.reason) {
        Some(Upload::TargetConflict | Upload::UploadAborted | Upload::UploadAlreadyCompleted) => {
            return StatusCode::CONFLICT;
        }
        Some(Upload::UploadExpired) => return StatusCode::GONE,
        Some(Upload::SizeLimitExceeded | Upload::InsufficientStagingSpace) => return StatusCode::PAYLOAD_TOO_LARGE,
        _ => {}
    }
    match error.code {
        Code::InvalidRequest | Code::InvalidFields | Code::BuildError | Code::FileUploadError => {
            StatusCode::BAD_REQUEST
        }
        Code::Unauthorized => StatusCode::UNAUTHORIZED,
        Code::NotFound
        | Code::TemplateNotFound
        | Code::TemplateBuildNotFound
        | Code::TemplateNameClaimNotFound
        | Code::SandboxNotFound
        | Code::SnapshotNotFound => StatusCode::NOT_FOUND,
        Code::TransitionConflict
        | Code::TransitionInProgress
        | Code::SandboxNotReady
        | Code::RebuildRequired
        | Code::IncompatibleSnapshot
        | Code::SameHostRequired
        | Code::SnapshotInUse => StatusCode::CONFLICT,
        Code::FileError if error.forbidden => StatusCode::FORBIDDEN,
        Code::FileError => StatusCode::CONFLICT,
        Code::RateLimitExceeded | Code::QuotaExceeded => StatusCode::TOO_MANY_REQUESTS,
        Code::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        Code::FeatureUnavailable
        | Code::DatabaseError
        | Code::CapacityExceeded
        | Code::NoEligibleRuntimeHost
        | Code::WarmPoolUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::ExecFailed => StatusCode::BAD_GATEWAY,
        Code::ExecTimeout => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let Self { status, error } = self;
        // Published clients sleep for what Retry-After says and would try at once without it.
        let passing = status == StatusCode::TOO_MANY_REQUESTS || error.code == ErrorResponseCode::TransitionInProgress;
        let retry_after = match error.retry_after {
            None if passing => Some(Duration::from_secs(1)),
            given => given,
        };
        let mut response = status.into_response();
        if let Some(after) = retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        let mut body = ErrorResponse::new(error.code, error.message);
        body.build_id = error.build_id;
        let upload = error.upload.map(|detail| ErrorDetail::Upload(*detail));
        body.error_detail = error.detail.map(|detail| (*detail).into()).or(upload);
        response.extensions_mut().insert(Failure { body, source: error.source });
        response
    }
}

/// What to say for an answer that the framework gave without us.
pub(crate) fn from_status(status: StatusCode) -> Failure {
    let (code, message) = match status {
        StatusCode::NOT_FOUND => (ErrorResponseCode::NotFound, "There is no such route."),
        StatusCode::METHOD_NOT_ALLOWED => {
            (ErrorResponseCode::InvalidRequest, "The route exists, but not with this method.")
        }
        status if status.is_client_error() => {
            (ErrorResponseCode::InvalidRequest, status.canonical_reason().unwrap_or("The request is wrong."))
        }
        _ => (ErrorResponseCode::InternalError, "The service failed to handle the request."),
    };
    Failure { body: ErrorResponse::new(code, message), source: None }
}

/// The answer that goes out: the same status and headers, with the body in the contract's shape.
pub(crate) fn with_body(response: Response, body: &ErrorResponse) -> Response {
    let (mut parts, _) = response.into_parts();
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    parts.headers.remove(header::CONTENT_LENGTH);
    // The type has no map with other keys than strings, so this cannot fail; an empty body is the honest fallback.
    let bytes = serde_json::to_vec(body).unwrap_or_default();
    Response::from_parts(parts, Body::from(bytes))
}
