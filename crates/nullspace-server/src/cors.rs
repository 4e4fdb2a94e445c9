//! Requests of pages in browsers: any origin may call the API, with a key.
//!
//! A key is sent as a header that a page must have been given. Nothing is sent by the browser itself, as cookies are, so an origin
//! has no rights of its own and every one is allowed (the CORS protocol of the Fetch Standard, without credentials). Operators'
//! routes are left out.

use axum::extract::Request;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// Methods of the API.
const METHODS: &str = "GET, POST, PUT, PATCH, DELETE";
/// Headers that the API reads.
const REQUEST_HEADERS: &str = "authorization, content-type, idempotency-key, x-request-id, x-nullspace-part-sha256";
/// Headers of answers that a page may read besides those that it always may.
const ANSWER_HEADERS: &str = "x-request-id, retry-after, x-nullspace-warning";
/// Time for which a browser keeps the answer to a preflight, seconds.
const MAX_AGE: &str = "600";

/// Whether a request comes from a page and is for the API.
pub(crate) fn is_from_page(request: &Request) -> bool {
    let path = request.uri().path();
    request.headers().contains_key(header::ORIGIN) && (path.starts_with("/v1/") || path == "/healthz")
}

/// The answer to a browser's question before a request; `None` when it is another request. It needs no key: browsers send none.
pub(crate) fn preflight(request: &Request) -> Option<Response> {
    let asks = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
        && is_from_page(request);
    asks.then(|| {
        let headers = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, METHODS),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS),
            (header::ACCESS_CONTROL_MAX_AGE, MAX_AGE),
        ];
        (StatusCode::OK, headers).into_response()
    })
}

/// Lets a page read an answer.
pub(crate) fn allow(response: &mut Response) {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(ANSWER_HEADERS));
}
