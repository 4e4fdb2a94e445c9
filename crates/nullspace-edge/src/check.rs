//! Requests that are refused before anything else looks at them: what two servers could read in two ways.
//!
//! What a parsed head does not show any more (two `Content-Length`s, a line that ends without CR) is refused in [`screen`](crate::screen).

use hyper::header::{self, HeaderValue};
use hyper::{HeaderMap, Method, Request, StatusCode, Version};

use crate::answer::Problem;
use crate::settings::EdgeLimits;

/// What is known of a request that passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checked {
    /// The name of the host, with its port if it has one, as the request has it.
    pub(crate) host: String,
    /// Whether a WebSocket is asked for.
    pub(crate) websocket: bool,
}

/// All names of hosts in a request: of its target and its `Host` headers.
pub(crate) fn hosts<B>(request: &Request<B>) -> impl Iterator<Item = &[u8]> {
    let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    target.into_iter().chain(request.headers().get_all(header::HOST).iter().map(HeaderValue::as_bytes))
}

/// Checks a request.
pub(crate) fn check<B>(request: &Request<B>, limits: &EdgeLimits) -> Result<Checked, Problem> {
    let headers = request.headers();
    size(request, limits)?;
    if request.method() == Method::CONNECT {
        return Err(Problem::invalid("CONNECT does not lead to a port of a sandbox."));
    }
    let uri = request.uri();
    if !uri.path().starts_with('/') || !uri.path().is_ascii() || !uri.query().is_none_or(str::is_ascii) {
        return Err(Problem::invalid("The target of the request must be a path that begins with / and is ASCII."));
    }
    let host = host(request)?;
    framing(headers)?;
    Ok(Checked { host, websocket: websocket(request)? })
}

fn size<B>(request: &Request<B>, limits: &EdgeLimits) -> Result<(), Problem> {
    let headers = request.headers();
    let line = request.uri().path().len() + request.uri().query().map_or(0, str::len);
    // Four bytes a header for `: ` and the line's end.
    let bytes = line + headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum::<usize>();
    if bytes <= limits.head_bytes && headers.len() <= limits.headers {
        return Ok(());
    }
    let message = format!(
        "The request's headers are too large: at most {} bytes and {} headers.",
        limits.head_bytes, limits.headers
    );
    Err(Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "invalid_request", message))
}

/// The one name of the host.
fn host<B>(request: &Request<B>) -> Result<String, Problem> {
    let wrong = |what: &str| Problem::invalid(format!("The name of the host is {what}."));
    let mut names = hosts(request);
    let first = names.next().ok_or_else(|| wrong("missing"))?;
    if request.headers().get_all(header::HOST).iter().count() > 1 {
        return Err(wrong("given twice"));
    }
    if names.any(|name| !name.eq_ignore_ascii_case(first)) {
        return Err(wrong("another one in the target of the request than in the Host header"));
    }
    let sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(byte);
    match std::str::from_utf8(first) {
        Ok(name) if (1..=255).contains(&name.len()) && name.as_bytes().iter().all(sane) => Ok(name.to_owned()),
        _ => Err(wrong("not valid: letters, digits, dots and dashes in ASCII, and a port")),
    }
}

/// The end of the body must be clear.
fn framing(headers: &HeaderMap) -> Result<(), Problem> {
    let codings: Vec<_> = headers.get_all(header::TRANSFER_ENCODING).iter().collect();
    let lengths: Vec<_> = headers.get_all(header::CONTENT_LENGTH).iter().collect();
    let clear = match (codings.as_slice(), lengths.as_slice()) {
        ([], []) => true,
        ([coding], []) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        ([], [length]) => (1..=19).contains(&length.len()) && length.as_bytes().iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if clear {
        Ok(())
    } else {
        Err(Problem::invalid(
            "The end of the request's body is not clear: give one Content-Length, or Transfer-Encoding: chunked, and not both.",
        ))
    }
}

/// Whether a WebSocket is asked for. Other protocols are not offered: such a request is treated as one without `Upgrade`.
fn websocket<B>(request: &Request<B>) -> Result<bool, Problem> {
    let headers = request.headers();
    let has = |name: header::HeaderName, token: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|given| given.trim().eq_ignore_ascii_case(token))
    };
    if !has(header::UPGRADE, "websocket") || request.version() != Version::HTTP_11 {
        return Ok(false);
    }
    let body = headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0");
    if request.method() != Method::GET || !has(header::CONNECTION, "upgrade") || body {
        return Err(Problem::invalid("A WebSocket begins with GET, Connection: Upgrade, and no body."));
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(build: impl FnOnce(hyper::http::request::Builder) -> hyper::http::request::Builder) -> u16 {
        let request = build(Request::builder()).body(()).unwrap();
        check(&request, &EdgeLimits::default()).map_or_else(|problem| problem.status.as_u16(), |_| 200)
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        assert_eq!(status(|r| r.uri("/").header("host", "a")), 200);
        assert_eq!(status(|r| r.uri("http://a/").header("host", "A")), 200);
        assert_eq!(status(|r| r.uri("/")), 400);
        assert_eq!(status(|r| r.uri("/").header("host", "a").header("host", "a")), 400);
        assert_eq!(status(|r| r.uri("http://b/").header("host", "a")), 400);
        assert_eq!(status(|r| r.uri("http://u@a/").header("host", "u@a")), 400);
        assert_eq!(status(|r| r.uri("/").header("host", "a b")), 400);
        assert_eq!(status(|r| r.uri("/").header("host", "ä")), 400);
        assert_eq!(status(|r| r.uri("*").method("OPTIONS").header("host", "a")), 400);
        assert_eq!(status(|r| r.uri("a:80").method("CONNECT").header("host", "a:80")), 400);
        let with =
            |name: &'static str, value: &'static str| status(|r| r.uri("/").header("host", "a").header(name, value));
        assert_eq!(with("content-length", "5"), 200);
        assert_eq!(with("transfer-encoding", "chunked"), 200);
        for (name, value) in [
            ("content-length", "+5"),
            ("content-length", "5,5"),
            ("content-length", ""),
            ("content-length", "0x5"),
            ("transfer-encoding", "gzip, chunked"),
            ("transfer-encoding", "xchunked"),
            ("transfer-encoding", "identity"),
        ] {
            assert_eq!(with(name, value), 400, "{name}: {value}");
        }
        assert_eq!(
            status(|r| r
                .uri("/")
                .header("host", "a")
                .header("content-length", "5")
                .header("transfer-encoding", "chunked")),
            400
        );
        let many =
            |r: hyper::http::request::Builder| (0..128).fold(r.uri("/").header("host", "a"), |r, _| r.header("a", "b"));
        assert_eq!(status(many), 431);
        assert_eq!(status(|r| r.uri("/").header("host", "a").header("a", "b".repeat(64 << 10))), 431);
    }

    #[test]
    fn a_websocket_begins_as_the_protocol_says() {
        let asks = |method: &str, connection: &str| {
            let request = Request::builder().method(method).uri("/").header("host", "a");
            let request = request.header("upgrade", "WebSocket").header("connection", connection).body(()).unwrap();
            check(&request, &EdgeLimits::default()).map(|checked| checked.websocket).ok()
        };
        assert_eq!(asks("GET", "keep-alive, Upgrade"), Some(true));
        assert_eq!(asks("POST", "upgrade"), None);
        assert_eq!(asks("GET", "close"), None);
    }
}
