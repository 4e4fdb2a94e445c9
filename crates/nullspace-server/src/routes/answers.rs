//! Answers with a JSON body, and their warnings.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nullspace_service::Warned;
use serde::Serialize;

use crate::error::Refusal;

/// What the caller should know beside the answer, a header each.
const WARNING: HeaderName = HeaderName::from_static("x-nullspace-warning");

/// Adds warnings to a response; one that no header can be is left out.
pub(super) fn with_warnings(mut response: Response, warnings: &[String]) -> Response {
    for warning in warnings {
        if let Ok(value) = HeaderValue::from_str(warning) {
            response.headers_mut().append(WARNING, value);
        }
    }
    response
}

/// An answer with its warnings.
pub(super) fn warned<T: Serialize>(status: StatusCode, answer: &Warned<T>) -> Result<Response, Refusal> {
    Ok(with_warnings(json(status, &answer.value)?, &answer.warnings))
}

/// An answer with a JSON body.
pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Response, Refusal> {
    let bytes = serde_json::to_vec(value).map_err(Refusal::internal)?;
    Ok((status, [(header::CONTENT_TYPE, "application/json")], bytes).into_response())
}
