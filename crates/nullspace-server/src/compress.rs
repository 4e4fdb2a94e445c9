//! Compression of listings, where the client asks for it.
//!
//! Only answers of [`LISTINGS`] are compressed. Others may have a secret (a signed URL, a key) or the output of a command beside a
//! caller's text, and the length of a compressed answer gives away whether one is in the other. Streams are never compressed: server-sent
//! events and files.

use std::io::{self, Write};

use axum::body::{Body, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::error::Refusal;

/// Last segments of the paths whose answers are compressed.
const LISTINGS: [&str; 8] =
    ["templates", "builds", "sandboxes", "snapshots", "events", "deliveries", "processes", "files"];
/// Smallest answer that is worth it, bytes.
const SMALLEST: u64 = 2 << 10;
/// Largest answer that is compressed, bytes: listings have a limit, and this is above it.
const LARGEST: u64 = 64 << 20;
/// Answers above this size are compressed on a thread that may be busy, bytes.
const LONG: usize = 64 << 10;

/// See the module's documentation.
pub(crate) async fn compress(request: Request, next: Next) -> Response {
    let listing = request.method() == Method::GET
        && request.uri().path().rsplit('/').next().is_some_and(|last| LISTINGS.contains(&last));
    let wanted = listing && accepts_gzip(request.headers());
    let response = next.run(request).await;
    if !listing || response.status() != StatusCode::OK || !is_json(response.headers()) {
        return response;
    }
    let size = response.body().size_hint().exact();
    let (mut parts, body) = response.into_parts();
    // A cache between must not give the one for the other.
    parts.headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    if !wanted || !size.is_some_and(|size| (SMALLEST..=LARGEST).contains(&size)) {
        return Response::from_parts(parts, body);
    }
    let whole = match to_bytes(body, usize::MAX).await {
        Ok(whole) => whole,
        Err(error) => return Refusal::internal(error).into_response(),
    };
    let packed = if whole.len() <= LONG {
        gzip(&whole)
    } else {
        let whole = whole.clone();
        tokio::task::spawn_blocking(move || gzip(&whole)).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    };
    match packed {
        Ok(packed) => {
            parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts.headers.remove(CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(packed))
        }
        Err(_) => Response::from_parts(parts, Body::from(whole)),
    }
}

fn gzip(whole: &Bytes) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(whole.len() / 4), Compression::fast());
    encoder.write_all(whole)?;
    encoder.finish()
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"))
        && !headers.contains_key(CONTENT_ENCODING)
}

/// Whether the client takes gzip: it names it, or all, and not with the weight 0.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let (mut named, mut any) = (None, None);
    for value in headers.get_all(ACCEPT_ENCODING) {
        for item in value.to_str().unwrap_or_default().split(',') {
            let (coding, weight) = item.split_once(';').unwrap_or((item, "q=1"));
            let weight = weight.trim().strip_prefix("q=").and_then(|weight| weight.trim().parse::<f32>().ok());
            let taken = weight.is_none_or(|weight| weight > 0.0);
            match coding.trim().to_ascii_lowercase().as_str() {
                "gzip" | "x-gzip" => named = Some(taken),
                "*" => any = Some(taken),
                _ => {}
            }
        }
    }
    named.or(any).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_name_what_they_take() {
        for (text, taken) in [
            ("gzip", true),
            ("gzip, deflate", true),
            ("br;q=1.0, GZIP;q=0.5", true),
            ("*", true),
            ("gzip;q=0", false),
            ("*, gzip;q=0", false),
            ("*;q=0, gzip", true),
            ("deflate, br", false),
            ("identity", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, text.parse().unwrap());
            assert_eq!(accepts_gzip(&headers), taken, "{text}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
