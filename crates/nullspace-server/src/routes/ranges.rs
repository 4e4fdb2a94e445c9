//! Downloads of a file, whole or in part (RFC 9110, `Range: bytes=…`, one range).
//!
//! ```text
//!   no Range, several ranges, another unit, If-Range    200   the whole file, as it is while it is read
//!   bytes=5-9  bytes=5-  bytes=-5                       206   exactly the part, or the connection breaks
//!   the part is outside the file                        416   Content-Range: bytes */SIZE
//! ```

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nullspace_api::ErrorResponseCode;
use nullspace_service::{Extent, FileAt, FileContent, FilePart, LiveSandbox};

use crate::error::Refusal;

/// Answers a download.
pub(super) async fn download(
    sandbox: Arc<dyn LiveSandbox>,
    at: FileAt,
    headers: &HeaderMap,
) -> Result<Response, Refusal> {
    let Some(part) = requested(headers) else {
        return Ok(whole(sandbox.read_file(at).await?.content));
    };
    let file = sandbox.read_file_part(at, part).await?;
    let size = file.info.size;
    match file.extent {
        Extent::Whole => Ok(whole(file.content)),
        Extent::Nothing => {
            let message = format!("The range is outside the file, which has {size} bytes.");
            let refusal = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, ErrorResponseCode::InvalidRequest, message);
            let mut response = refusal.into_response();
            if let Ok(value) = format!("bytes */{size}").try_into() {
                response.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            Ok(response)
        }
        Extent::Part { start, length } => {
            let end = start.saturating_add(length).saturating_sub(1);
            let headers = [
                (header::CONTENT_RANGE, format!("bytes {start}-{end}/{size}")),
                (header::CONTENT_LENGTH, length.to_string()),
            ];
            Ok((StatusCode::PARTIAL_CONTENT, headers, whole(file.content)).into_response())
        }
    }
}

/// The bytes of a file. Without a length: the guest may change the file meanwhile. A transfer that fails ends without the
/// last chunk, which clients see.
fn whole(content: FileContent) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::ACCEPT_RANGES, "bytes"),
    ];
    (headers, Body::from_stream(content)).into_response()
}

/// The part that a request wants; `None`: the whole file. There is no validator that `If-Range` could have.
fn requested(headers: &HeaderMap) -> Option<FilePart> {
    if headers.contains_key(header::IF_RANGE) {
        return None;
    }
    let mut values = headers.get_all(header::RANGE).iter();
    let (value, None) = (values.next()?.to_str().ok()?, values.next()) else { return None };
    let (unit, range) = value.split_once('=')?;
    let (first, last) = range.trim().split_once('-')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More than any file has.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (first, last) {
        ("", last) => Some(FilePart::Last { length: number(last)? }),
        (first, "") => Some(FilePart::From { start: number(first)?, length: None }),
        (first, last) => {
            let (start, last) = (number(first)?, number(last)?);
            let length = last.checked_sub(start)?.saturating_add(1);
            Some(FilePart::From { start, length: Some(length) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_wrong_ones_passed_over() {
        let from = |start, length| Some(FilePart::From { start, length });
        for (range, expected) in [
            ("bytes=0-0", from(0, Some(1))),
            ("bytes=5-9", from(5, Some(5))),
            ("Bytes = 5-", from(5, None)),
            ("bytes=-7", Some(FilePart::Last { length: 7 })),
            ("bytes=0-99999999999999999999", from(0, Some(u64::MAX))),
            ("bytes=9-5", None),
            ("bytes=1-2,4-5", None),
            ("bytes=-", None),
            ("bytes=+1-2", None),
            ("bytes=a-b", None),
            ("lines=1-2", None),
            ("bytes", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, range.parse().unwrap());
            assert_eq!(requested(&headers), expected, "{range}");
            headers.insert(header::IF_RANGE, "\"x\"".parse().unwrap());
            assert_eq!(requested(&headers), None);
        }
        assert_eq!(requested(&HeaderMap::new()), None);
    }
}
