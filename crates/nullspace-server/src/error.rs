//! Errors as HTTP answers. The status is decided here and nowhere else.
//!
//! ```text
//!   handler, extractor, fallback ──> ServiceError ──> status + Failure (extension, no body yet)
//!   the framework's own answers  ──> bare status ───────────┐          │
//!                                                           v          v
//!                                       edge::finish: body in the contract's shape, request id, log
//! ```
//!
//! The body is written at the edge because only there the request id is at hand, and because there no answer can slip
//! by: what the framework says itself gets the same shape.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nullspace_api::{ErrorResponse, ErrorResponseCode};

use crate::service::{ErrorKind, ServiceError};

/// What the edge makes the body from.
#[derive(Clone)]
pub(crate) struct Failure {
    pub(crate) body: ErrorResponse,
    /// For the log only.
    pub(crate) source: Option<Arc<dyn Error + Send + Sync>>,
}

/// The status of each kind of failure.
pub(crate) fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        ErrorKind::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorKind::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ErrorKind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        ErrorKind::NotImplemented => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Upstream => StatusCode::BAD_GATEWAY,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
    }
}

impl IntoResponse for ServiceError {
    fn into_response(self) -> Response {
        let kind = self.kind();
        // Published clients sleep for what Retry-After says and would try at once without it.
        let retry_after = match (kind, self.retry_after()) {
            (_, Some(after)) => Some(after),
            (ErrorKind::RateLimited, None) => Some(Duration::from_secs(1)),
            _ => None,
        };
        let (body, source) = self.into_parts();
        let mut response = status(kind).into_response();
        if let Some(after) = retry_after {
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if kind == ErrorKind::Unauthorized {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(Failure { body, source: source.map(Arc::from) });
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
