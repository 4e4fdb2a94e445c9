//! Extractors for handlers. Every refusal is a [`Refusal`].

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::HttpBody;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use bytes::Bytes;
use futures::{StreamExt, stream};
use nullspace_api::ErrorResponseCode;
use nullspace_service::{ByteStream, Caller, LiveSandbox, RequestContext};
use serde::de::DeserializeOwned;

use crate::budget::Room;
use crate::config::ServerConfig;
use crate::edge::{self, RequestId};
use crate::error::Refusal;
use crate::state::AppState;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// A JSON body.
pub(crate) struct JsonBody<T>(pub(crate) T);

/// A JSON body that may be left out or `null`, which means the same as `{}`.
pub(crate) struct OptionalJsonBody<T>(pub(crate) T);

/// The query.
pub(crate) struct QueryParams<T>(pub(crate) T);

/// The one parameter of the path, decoded.
pub(crate) struct PathParam(pub(crate) String);

/// The two parameters of the path, decoded.
pub(crate) struct PathParams(pub(crate) String, pub(crate) String);

/// The caller's own running sandbox, by the one parameter of the path. A route with a body extracts it first, so that it is
/// looked up before the body is read.
pub(crate) struct OwnSandbox(pub(crate) Arc<dyn LiveSandbox>);

/// The same with the second parameter of the path.
pub(crate) struct OwnSandboxAnd(pub(crate) Arc<dyn LiveSandbox>, pub(crate) String);

/// A body of raw bytes while it arrives. It ends with an error when the client sends nothing within the body's time limit.
pub(crate) struct RawBody(pub(crate) ByteStream);

impl FromRequestParts<AppState> for PathParams {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Refusal> {
        let Path((first, second)) =
            Path::<(String, String)>::from_request_parts(parts, state).await.map_err(|_| wrong_path())?;
        Ok(Self(first, second))
    }
}

/// The refusal of a path that is not percent-encoded UTF-8.
pub(crate) fn wrong_path() -> Refusal {
    Refusal::invalid("The path is wrong: it must be percent-encoded UTF-8.")
}

impl FromRequest<AppState> for RawBody {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Refusal> {
        let media_type = request.headers().get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
        let essence = media_type.map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        if essence.is_some_and(|essence| essence != "application/octet-stream") {
            edge::drain(request).await;
            return Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                ErrorResponseCode::InvalidRequest,
                "The body must be raw bytes: send `Content-Type: application/octet-stream`.",
            ));
        }
        Ok(Self(as_it_arrives(request, &state.config)))
    }
}

/// Fewest bytes of a streamed body in each of the body's time limits. Time that is spent passing it on does not count.
const PROGRESS: usize = 16 << 10;

/// A body of any media type, piece by piece. It ends with [`io::ErrorKind::TimedOut`] when the client sends less than
/// [`PROGRESS`] bytes within the body's time limit.
pub(crate) fn as_it_arrives(request: Request, config: &ServerConfig) -> ByteStream {
    let patience = config.body_timeout;
    let chunks = request.into_body().into_data_stream();
    let begun = Some((chunks, Duration::ZERO, 0_usize));
    let chunks = stream::unfold(begun, move |state| async move {
        let (mut chunks, mut waited, mut came) = state?;
        let late = || Some((Err(io::Error::from(io::ErrorKind::TimedOut)), None));
        let asked = Instant::now();
        match tokio::time::timeout(patience, chunks.next()).await {
            Ok(Some(Ok(chunk))) => {
                waited += asked.elapsed();
                came = came.saturating_add(chunk.len());
                if waited >= patience {
                    if came < PROGRESS {
                        return late();
                    }
                    (waited, came) = (Duration::ZERO, 0);
                }
                Some((Ok(chunk), Some((chunks, waited, came))))
            }
            Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
            Ok(None) => None,
            Err(_) => late(),
        }
    });
    chunks.boxed()
}

impl<T: DeserializeOwned> FromRequest<AppState> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Refusal> {
        let bytes = read_json(request, state).await?;
        parse(&bytes).map(Self)
    }
}

impl<T: DeserializeOwned + Default> FromRequest<AppState> for OptionalJsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Refusal> {
        // Without a body there is no media type to ask for.
        if request.body().is_end_stream() {
            return Ok(Self(T::default()));
        }
        let bytes = read_json(request, state).await?;
        if bytes.is_empty() {
            return Ok(Self(T::default()));
        }
        parse::<Option<T>>(&bytes).map(|value| Self(value.unwrap_or_default()))
    }
}

/// Memory of a parsed value beside its text, bytes for each of its parts: an estimate, above most values.
const PART: usize = 64;

/// Reads a JSON body whole. It is charged to its request while it arrives, with its parsed form.
async fn read_json(request: Request, state: &AppState) -> Result<Bytes, Refusal> {
    let config = &state.config;
    let room = request.extensions().get::<Arc<Room>>().cloned();
    let room = room.ok_or_else(|| Refusal::internal("route without authentication"))?;
    if !is_json(request.headers()) {
        edge::drain(request).await;
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorResponseCode::InvalidRequest,
            "The body must be JSON: send `Content-Type: application/json`.",
        ));
    }
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<usize>().ok())
        .unwrap_or(0);
    let max = config.max_json_body;
    let too_large = || {
        let message = format!("The body is too large: at most {max} bytes.");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorResponseCode::InvalidRequest, message)
    };
    if announced > max {
        edge::drain(request).await;
        return Err(too_large());
    }
    let mut chunks = request.into_body().into_data_stream();
    let read = async {
        // The announced length is within the limit, but only what arrives takes memory, and is charged.
        let mut body = Vec::new();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| Refusal::invalid("The body ended early.").with_source(error))?;
            let len = body.len().saturating_add(chunk.len());
            if len > max {
                return Err(too_large());
            }
            if len > body.capacity() {
                let capacity = len.max(2 * body.capacity()).min(max);
                room.grow(capacity - body.capacity())?;
                body.reserve_exact(capacity - body.len());
            }
            body.extend_from_slice(&chunk);
        }
        room.grow(PART.saturating_mul(parts(&body)))?;
        Ok(Bytes::from(body))
    };
    let outcome = tokio::time::timeout(config.body_timeout, read).await;
    match outcome {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(refused)) => {
            edge::drain_rest(&mut chunks).await;
            Err(refused)
        }
        Err(_) => {
            let seconds = config.body_timeout.as_secs();
            let message = format!("The body did not arrive within {seconds} s.");
            Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, ErrorResponseCode::InvalidRequest, message))
        }
    }
}

/// The most values that a JSON text can have: each but the first has one of these characters before it.
fn parts(text: &[u8]) -> usize {
    text.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{' | b':')).count()
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// Parses JSON. The error names the field, or the line and column when the text is no JSON.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    // The parser would take an array for an object, field by field.
    match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => return Err(Refusal::invalid("The body is empty; it must be a JSON object.")),
        Some(b'[') => return Err(Refusal::invalid("The body is wrong: it must be a JSON object, not an array.")),
        Some(_) => {}
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let error = error.inner();
        if error.is_data() {
            let what = without_value(&error.to_string());
            // A path of "." is the body itself.
            let field = if path == "." { "The body".to_owned() } else { format!("Field `{path}`") };
            Refusal::invalid(format!("{field} is wrong: {what}."))
        } else {
            Refusal::invalid(format!("The body is not valid JSON: {error}."))
        }
    })?;
    deserializer.end().map_err(|error| Refusal::invalid(format!("The body is not valid JSON: {error}.")))?;
    Ok(value)
}

/// A parser's message without the rejected value, which may be a password in the wrong place.
///
/// The messages are `invalid type: string "hunter2", expected u32 at line 1 column 9` and the like.
pub(crate) fn without_value(message: &str) -> String {
    let Some((what, rest)) =
        message.split_once(": ").filter(|(what, _)| matches!(*what, "invalid type" | "invalid value"))
    else {
        return message.to_owned();
    };
    let sort = rest.split(['"', '`', ',']).next().unwrap_or_default().trim_end();
    match rest.rsplit_once(", expected ") {
        Some((_, expected)) => format!("{what}: {sort}, expected {expected}"),
        None => format!("{what}: {sort}"),
    }
}

impl<T: DeserializeOwned> FromRequestParts<AppState> for QueryParams<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Refusal> {
        Query::<T>::try_from_uri(&parts.uri).map(|Query(query)| Self(query)).map_err(|rejection| {
            let text = rejection.body_text();
            let what = text.rsplit_once("query string: ").map_or(text.as_str(), |(_, what)| what);
            Refusal::invalid(format!("The query is wrong: {what}."))
        })
    }
}

impl FromRequestParts<AppState> for PathParam {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Refusal> {
        let Path(value) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| wrong_path())?;
        Ok(Self(value))
    }
}

impl FromRequestParts<AppState> for OwnSandbox {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Refusal> {
        let PathParam(id) = PathParam::from_request_parts(parts, state).await?;
        let caller = Caller::from_request_parts(parts, state).await?;
        Ok(Self(state.service.live_sandbox(&caller, &id).await?))
    }
}

impl FromRequestParts<AppState> for OwnSandboxAnd {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Refusal> {
        let PathParams(id, second) = PathParams::from_request_parts(parts, state).await?;
        let caller = Caller::from_request_parts(parts, state).await?;
        Ok(Self(state.service.live_sandbox(&caller, &id).await?, second))
    }
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Refusal> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Refusal::internal("route without authentication"))
    }
}

impl FromRequestParts<AppState> for RequestContext {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, Refusal> {
        let RequestId(request_id) = parts
            .extensions
            .get::<RequestId>()
            .cloned()
            .ok_or_else(|| Refusal::internal("route without a request id"))?;
        let idempotency_key = match parts.headers.get(&IDEMPOTENCY_KEY) {
            None => None,
            Some(value) if edge::visible_ascii(value, MAX_IDEMPOTENCY_KEY) => {
                value.to_str().ok().map(ToOwned::to_owned)
            }
            Some(_) => {
                let message = format!("Idempotency-Key must be 1 to {MAX_IDEMPOTENCY_KEY} visible ASCII characters.");
                return Err(Refusal::invalid(message));
            }
        };
        Ok(Self { request_id, idempotency_key, refuse_unknown_files: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parser_message_loses_the_value_and_keeps_the_rest() {
        for (message, shown) in [
            (
                "invalid type: string \"hunter2\", expected u32 at line 1",
                "invalid type: string, expected u32 at line 1",
            ),
            ("invalid type: string \"a, expected b\", expected u32", "invalid type: string, expected u32"),
            ("invalid value: integer `-7`, expected u32", "invalid value: integer, expected u32"),
            ("invalid type: map, expected a string", "invalid type: map, expected a string"),
            ("invalid type: floating point `1.5`, expected u32", "invalid type: floating point, expected u32"),
            ("missing field `name`", "missing field `name`"),
        ] {
            assert_eq!(without_value(message), shown);
        }
    }
}
