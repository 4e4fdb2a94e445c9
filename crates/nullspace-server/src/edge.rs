//! The outermost layer. Every request gets an id, every error answer gets the contract's body, every panic becomes a 500, and
//! each request gets one line in the log.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::body::BodyDataStream;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::{FutureExt, StreamExt};
use nullspace_api::ErrorResponseCode;
use nullspace_service::chain;
use secrecy::SecretString;
use tracing::{Instrument, field};
use uuid::Uuid;

use crate::cors;
use crate::error::Refusal;
use crate::error::{self, Failure};
use crate::state::AppState;

/// Header that carries a request's id in both directions.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id that is accepted from a caller.
const MAX_REQUEST_ID: usize = 128;

/// Longest key that is read.
const MAX_KEY: usize = 512;

/// Limit of an unread body that is read after a refusal, in bytes and in time. A client that is still sending can then read
/// the answer, instead of a reset connection.
const DRAIN_BYTES: usize = 32 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// The id of the current request.
#[derive(Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// See the module's documentation.
pub(crate) async fn edge(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let (method, is_from_page) = (counted(request.method()), cors::is_from_page(&request));
    // A path that no route has is one label, whatever it is.
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    request.extensions_mut().insert(RequestId(id.clone()));
    let span = tracing::info_span!(
        "request",
        request_id = %id,
        method = %request.method(),
        path = %loggable_path(request.uri()),
        tenant = field::Empty,
    );
    async move {
        let response = if head_size(&request) > state.config.max_head {
            let max = state.config.max_head;
            let message = format!("The request's headers are too large: at most {max} bytes together.");
            Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, ErrorResponseCode::InvalidRequest, message)
                .into_response()
        } else if let Some(answer) = cors::preflight(&request) {
            answer
        } else {
            // Nothing that a handler holds is used after it has panicked.
            match AssertUnwindSafe(next.run(request)).catch_unwind().await {
                Ok(response) => response,
                Err(panic) => Refusal::internal(panic_message(&*panic)).into_response(),
            }
        };
        let mut response = finish(response, &id);
        if is_from_page {
            cors::allow(&mut response);
        }
        state.metrics.answered(method, &route, response.status().as_u16(), started.elapsed());
        tracing::info!(
            status = response.status().as_u16(),
            duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
            "answered"
        );
        response
    }
    .instrument(span)
    .await
}

/// The method as a label. Unknown methods share one label, because a caller can send any word and each label is kept for
/// ever.
fn counted(method: &Method) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}

/// Gives an answer its id and, if it is an error, its body. Logs the cause.
fn finish(mut response: Response, id: &str) -> Response {
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        let failure = response.extensions_mut().remove::<Failure>().unwrap_or_else(|| error::from_status(status));
        let Failure { mut body, source } = failure;
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            tracing::error!(error = %body.error, cause = source.as_deref().map(|cause| chain(cause)), "request failed");
        } else if let Some(source) = source {
            tracing::warn!(error = %body.error, cause = chain(&*source), "request failed");
        }
        body.request_id = Some(id.to_owned());
        if status != StatusCode::METHOD_NOT_ALLOWED {
            // The router names the methods of a route that fits the path, whatever we answer in the end.
            response.headers_mut().remove(header::ALLOW);
        }
        response = error::with_body(response, &body);
    }
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned());
    format!("handler panicked: {text}")
}

/// The caller's id if it is valid, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    headers
        .get(&REQUEST_ID)
        .filter(|value| visible_ascii(value, MAX_REQUEST_ID))
        .and_then(|value| value.to_str().ok())
        .map_or_else(|| Uuid::now_v7().to_string(), ToOwned::to_owned)
}

/// True for 1 to `max` characters of visible ASCII. Such a value can go into headers, logs and a database.
pub(crate) fn visible_ascii(value: &HeaderValue, max: usize) -> bool {
    (1..=max).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// The path for the log. A claim's token is a credential in the path, and is left out. Queries are never logged.
fn loggable_path(uri: &Uri) -> &str {
    const CLAIMS: &str = "/v1/templates/claims/";
    if uri.path().starts_with(CLAIMS) { CLAIMS } else { uri.path() }
}

fn head_size(request: &Request) -> usize {
    let uri = request.uri();
    let line = uri.path().len() + uri.query().map_or(0, str::len);
    // Four bytes a header for `: ` and the line's end.
    line + request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>()
}

/// The key of a request; `None` when it has several.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<SecretString> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?;
    // Two keys: whose request would it be?
    if values.next().is_some() {
        return None;
    }
    let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
    let key = key.trim();
    let sane = (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    (sane && scheme.eq_ignore_ascii_case("bearer")).then(|| key.into())
}

/// Reads the body of a refused request, within limits.
pub(crate) async fn drain(request: Request) {
    // Whoever asks first need not send it at all; reading would tell it to.
    if request.headers().contains_key(header::EXPECT) {
        return;
    }
    drain_rest(&mut request.into_body().into_data_stream()).await;
}

/// Reads the rest of such a body, within limits.
pub(crate) async fn drain_rest(chunks: &mut BodyDataStream) {
    let mut left = DRAIN_BYTES;
    let drained = async {
        while let Some(Ok(chunk)) = chunks.next().await {
            match left.checked_sub(chunk.len()) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    // Not having drained everything is fine: the connection is closed then.
    let _ = tokio::time::timeout(DRAIN_TIME, drained).await;
}
