//! Requests for one file that are signed instead of sent with a key.
//!
//! ```text
//!   /v1/sandboxes/{id}/file?path=…&user=…&token=…     GET, HEAD: download     PUT, POST: upload
//! ```
//! The token is good for exactly these values. So a request that could be read in two ways is refused here: the handler reads the
//! same query again.

use axum::extract::{Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderName, Method, StatusCode, header};
use nullspace_api::ErrorResponseCode;
use nullspace_service::{SignedFile, Transfer};

use crate::error::Refusal;

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Longest host in a URL of ours, bytes: a name of 253 and a port.
const MAX_HOST: usize = 259;

/// A signed request, or one that is no good.
pub(crate) enum Signed {
    /// What it asks for, and its token.
    Asks(Asked),
    /// It has a token, and values that no signed URL has.
    Malformed,
}

/// What a signed request asks for.
pub(crate) struct Asked {
    sandbox: String,
    path: String,
    user: Option<String>,
    transfer: Transfer,
    token: String,
}

impl Asked {
    /// The file, and the token.
    pub(crate) fn parts(&self) -> (SignedFile<'_>, &str) {
        let file = SignedFile {
            sandbox: &self.sandbox,
            path: &self.path,
            user: self.user.as_deref(),
            transfer: self.transfer,
        };
        (file, &self.token)
    }
}

/// Reads a signed request; `None` for one that is not signed: it has another path, no token, or a key.
pub(crate) fn read(request: &Request) -> Option<Signed> {
    if request.headers().contains_key(header::AUTHORIZATION) {
        return None;
    }
    let sandbox = request.uri().path().strip_prefix("/v1/sandboxes/")?.strip_suffix("/file")?;
    let Ok(Query(pairs)) = Query::<Vec<(String, String)>>::try_from_uri(request.uri()) else { return None };
    if !pairs.iter().any(|(name, _)| name == "token") {
        return None;
    }
    Some(asked(request.method(), sandbox, pairs).map_or(Signed::Malformed, Signed::Asks))
}

fn asked(method: &Method, sandbox: &str, pairs: Vec<(String, String)>) -> Option<Asked> {
    let transfer = match *method {
        Method::GET | Method::HEAD => Transfer::Download,
        Method::PUT | Method::POST => Transfer::Upload,
        _ => return None,
    };
    // Ids of sandboxes need no percent-encoding: one id has one spelling.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if sandbox.is_empty() || !sandbox.bytes().all(plain) {
        return None;
    }
    let (mut path, mut user, mut token) = (None, None, None);
    for (name, value) in pairs {
        let place = match name.as_str() {
            "path" => &mut path,
            "user" => &mut user,
            "token" => &mut token,
            _ => return None,
        };
        if place.replace(value).is_some() {
            return None;
        }
    }
    Some(Asked { sandbox: sandbox.to_owned(), path: path?, user, transfer, token: token? })
}

/// The refusal of a signed request, the same for all reasons.
pub(crate) fn refused() -> Refusal {
    let message = "The signed URL is not valid: it was changed, it has expired, or the key that made it was revoked. \
                   Ask for a new one.";
    Refusal::new(StatusCode::UNAUTHORIZED, ErrorResponseCode::Unauthorized, message)
}

/// The URL of a signed request, at the address where the service was asked for it.
pub(crate) fn url(parts: &Parts, file: SignedFile<'_>, token: &str) -> Result<String, Refusal> {
    let mut url = origin(parts)?;
    url.push_str("/v1/sandboxes/");
    encode(&mut url, file.sandbox);
    url.push_str("/file?path=");
    encode(&mut url, file.path);
    if let Some(user) = file.user {
        url.push_str("&user=");
        encode(&mut url, user);
    }
    url.push_str("&token=");
    encode(&mut url, token);
    Ok(url)
}

/// Scheme and host of a request. They are the caller's own words, and only the caller gets them back.
fn origin(parts: &Parts) -> Result<String, Refusal> {
    let host = match parts.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()),
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    let host = host.filter(|host| (1..=MAX_HOST).contains(&host.len()) && host.bytes().all(plain));
    let host = host.ok_or_else(|| Refusal::invalid("The Host header must name the service: URLs are made with it."))?;
    let tls = parts.headers.get(&FORWARDED_PROTO).is_some_and(|scheme| scheme.as_bytes() == b"https");
    Ok(format!("{}://{host}", if tls { "https" } else { "http" }))
}

/// Percent-encodes all but what is never encoded in a URL.
fn encode(url: &mut String, text: &str) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            url.push(char::from(byte));
        } else {
            url.push('%');
            for half in [byte >> 4, byte & 15] {
                url.push(char::from(DIGITS.get(usize::from(half)).copied().unwrap_or_default()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use proptest::prelude::*;

    use super::*;

    fn request(method: &str, uri: &str) -> Request {
        Request::builder().method(method).uri(uri).header("host", "box:3000").body(Body::empty()).unwrap()
    }

    #[test]
    fn a_request_that_can_be_read_in_two_ways_is_malformed() {
        let file = "/v1/sandboxes/sb_1/file";
        for (method, uri) in [
            ("GET", format!("{file}?path=/a&token=t&path=/b")),
            ("GET", format!("{file}?path=/a&token=t&token=u")),
            ("GET", format!("{file}?path=/a&user=a&user=b&token=t")),
            ("GET", format!("{file}?path=/a&token=t&%70ath=/b")),
            ("GET", format!("{file}?path=/a&token=t&more=x")),
            ("GET", format!("{file}?token=t")),
            ("DELETE", format!("{file}?path=/a&token=t")),
            ("GET", "/v1/sandboxes/sb%5f1/file?path=/a&token=t".to_owned()),
            ("GET", "/v1/sandboxes/sb_1/../sb_2/file?path=/a&token=t".to_owned()),
            ("GET", "/v1/sandboxes//file?path=/a&token=t".to_owned()),
        ] {
            assert!(matches!(read(&request(method, &uri)), Some(Signed::Malformed)), "{method} {uri}");
        }
    }

    #[test]
    fn other_requests_are_not_signed() {
        for uri in [
            "/v1/sandboxes/sb_1/file?path=/a",
            "/v1/sandboxes/sb_1/files?path=/a&token=t",
            "/v1/sandboxes/sb_1/file/?path=/a&token=t",
            "/v1/sandboxes/sb_1/files/read?token=t",
            "/v1/sandboxes?token=t",
            "/v1/sandboxes/sb_1/file",
        ] {
            assert!(read(&request("GET", uri)).is_none(), "{uri}");
        }
        let mut with_key = request("GET", "/v1/sandboxes/sb_1/file?path=/a&token=t");
        with_key.headers_mut().insert("authorization", "Bearer x".parse().unwrap());
        assert!(read(&with_key).is_none());
    }

    #[test]
    fn the_origin_is_the_one_that_was_asked() {
        let origin = |build: fn(axum::http::request::Builder) -> axum::http::request::Builder| {
            let (parts, ()) = build(axum::http::Request::builder()).body(()).unwrap().into_parts();
            super::origin(&parts).ok()
        };
        assert_eq!(origin(|b| b.uri("/x").header("host", "127.0.0.1:3000")).unwrap(), "http://127.0.0.1:3000");
        assert_eq!(origin(|b| b.uri("http://h2.example/x")).unwrap(), "http://h2.example");
        let proxied =
            |b: axum::http::request::Builder| b.uri("/").header("host", "[::1]").header("x-forwarded-proto", "https");
        assert_eq!(origin(proxied).unwrap(), "https://[::1]");
        assert_eq!(origin(|b| b.uri("/")), None);
        assert_eq!(origin(|b| b.uri("/").header("host", "a@b")), None);
        assert_eq!(origin(|b| b.uri("/").header("host", "a/b?c")), None);
    }

    proptest! {
        #[test]
        fn a_url_asks_for_what_it_was_made_for(path in "\\PC{1,60}", user in proptest::option::of("\\PC{1,20}"), token in "\\PC{1,40}") {
            let (parts, _) = request("GET", "/").into_parts();
            let file = SignedFile { sandbox: "sb_1", path: &path, user: user.as_deref(), transfer: Transfer::Download };
            let url = url(&parts, file, &token).unwrap();
            let Some(Signed::Asks(asked)) = read(&request("GET", url.strip_prefix("http://box:3000").unwrap())) else {
                panic!("{url}");
            };
            prop_assert_eq!(asked.parts(), (file, token.as_str()));
        }
    }
}
