//! Tokens of requests: in the query, a header or a cookie; and the cookie that keeps one.
//!
//! ```text
//!   ?edge_token=T ──> let in, Set-Cookie ns_edge_{port}_{sandbox}=T      a browser's page: redirected to the URL without the token
//!   later requests ──> cookie ──> let in
//! ```
//! None of them reaches the server in the sandbox.

use hyper::HeaderMap;
use hyper::header::{self, HeaderValue};
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};

use crate::address::Target;

/// The parameter of a query that has a token.
const PARAMETER: &str = "edge_token";

/// The header that has a token.
pub(crate) const HEADER: &str = "x-nullspace-traffic-access-token";

/// The start of the names of the edge's cookies.
pub(crate) const COOKIE_PREFIX: &str = "ns_edge_";

/// Longest token in bytes.
const MAX: usize = 1024;

/// Where a token was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Query,
    Header,
    Cookie,
}

/// A request's token and where it was.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) token: SecretString,
    pub(crate) source: Source,
}

/// A token that cannot be one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The name of the cookie of a port.
fn cookie_name(target: &Target) -> String {
    format!("{COOKIE_PREFIX}{}_{}", target.port, target.sandbox)
}

/// Returns the token of a request: of the query, else the header, else the cookie.
pub(crate) fn shown(query: Option<&str>, headers: &HeaderMap, target: &Target) -> Result<Option<Shown>, Malformed> {
    if let Some(value) = query.and_then(in_query) {
        let token = percent_decode_str(value).decode_utf8().map_err(|_| Malformed)?;
        return Ok(Some(Shown { token: sane(&token)?, source: Source::Query }));
    }
    if let Some(value) = headers.get(HEADER) {
        return Ok(Some(Shown { token: sane(value.to_str().map_err(|_| Malformed)?)?, source: Source::Header }));
    }
    let name = cookie_name(target);
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    match pairs.find(|(given, _)| *given == name) {
        Some((_, value)) => Ok(Some(Shown { token: sane(value)?, source: Source::Cookie })),
        None => Ok(None),
    }
}

fn sane(token: &str) -> Result<SecretString, Malformed> {
    let sane = (1..=MAX).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic());
    if sane { Ok(token.into()) } else { Err(Malformed) }
}

/// The first token of a query.
fn in_query(query: &str) -> Option<&str> {
    query.split('&').find_map(is_token)
}

fn is_token(pair: &str) -> Option<&str> {
    match pair.split_once('=') {
        Some((PARAMETER, value)) => Some(value),
        None if pair == PARAMETER => Some(""),
        _ => None,
    }
}

/// A query without tokens; `None` when nothing is left of it.
pub(crate) fn without_token(query: &str) -> Option<String> {
    if in_query(query).is_none() {
        return Some(query.to_owned());
    }
    let kept: Vec<_> = query.split('&').filter(|pair| is_token(pair).is_none()).collect();
    (!kept.is_empty()).then(|| kept.join("&"))
}

/// Removes the edge's cookies from a request.
pub(crate) fn remove_cookies(headers: &mut HeaderMap) {
    let ours = |pair: &str| pair.trim_start().starts_with(COOKIE_PREFIX);
    let has = |value: &HeaderValue| {
        value.as_bytes().windows(COOKIE_PREFIX.len()).any(|part| part == COOKIE_PREFIX.as_bytes())
    };
    if !headers.get_all(header::COOKIE).iter().any(has) {
        return;
    }
    let kept: Vec<_> = headers
        .get_all(header::COOKIE)
        .iter()
        // One that is no text cannot be searched, and does not pass with a token in it.
        .filter_map(|value| std::str::from_utf8(value.as_bytes()).ok())
        .map(|value| value.split(';').filter(|pair| !ours(pair)).collect::<Vec<_>>().join(";"))
        .filter(|value| !value.trim().is_empty())
        .filter_map(|value| HeaderValue::from_bytes(value.trim().as_bytes()).ok())
        .collect();
    headers.remove(header::COOKIE);
    for value in kept {
        headers.append(header::COOKIE, value);
    }
}

/// The cookie that keeps a token; `None` for a token that cannot be in one.
pub(crate) fn set_cookie(target: &Target, token: &SecretString, secs: Option<u64>, https: bool) -> Option<HeaderValue> {
    let token = token.expose_secret();
    if !token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._~+/=-".contains(&byte)) {
        return None;
    }
    let age = secs.map(|secs| format!("; Max-Age={secs}")).unwrap_or_default();
    let secure = if https { "; Secure" } else { "" };
    let (name, prefix) = (cookie_name(target), target.prefix());
    let cookie = format!("{name}={token}; Path={prefix}/; HttpOnly; SameSite=Lax{age}{secure}");
    let mut value = HeaderValue::from_str(&cookie).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The cookie that ends the one that keeps a token.
pub(crate) fn end_cookie(target: &Target) -> Option<HeaderValue> {
    let cookie = format!("{}=; Path={}/; HttpOnly; SameSite=Lax; Max-Age=0", cookie_name(target), target.prefix());
    HeaderValue::from_str(&cookie).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Way;

    fn target() -> Target {
        Target { sandbox: "sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506".parse().unwrap(), port: 80, way: Way::Host }
    }

    fn token(query: Option<&str>, headers: &[(&'static str, &str)]) -> Result<Option<String>, Malformed> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        Ok(shown(query, &map, &target())?.map(|shown| shown.token.expose_secret().to_owned()))
    }

    #[test]
    fn a_token_is_found_in_query_header_and_cookie() {
        let cookie =
            "x=1; ns_edge_80_sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506=c; ns_edge_81_sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506=d";
        let all = [(HEADER, "h"), ("cookie", cookie)];
        assert_eq!(token(Some("a=1&edge_token=q%2E1&b"), &all).unwrap().unwrap(), "q.1");
        assert_eq!(token(Some("a=1"), &all).unwrap().unwrap(), "h");
        assert_eq!(token(None, &all[1..]).unwrap().unwrap(), "c");
        assert_eq!(token(None, &[]), Ok(None));
        assert_eq!(token(Some("my_edge_token=1"), &[]), Ok(None));
        for wrong in ["edge_token=", "edge_token", "edge_token=%0a", "edge_token=%ff", "edge_token=a b"] {
            assert_eq!(token(Some(wrong), &[]), Err(Malformed), "{wrong}");
        }
    }

    #[test]
    fn tokens_do_not_pass() {
        assert_eq!(without_token("a=1&edge_token=x&b=%20&edge_token=y").unwrap(), "a=1&b=%20");
        assert_eq!(without_token("edge_token=x"), None);
        assert_eq!(without_token("a&&b").unwrap(), "a&&b");
        let mut headers = HeaderMap::new();
        headers.append("cookie", "ns_edge_80_sb=1".parse().unwrap());
        headers.append("cookie", "a=ns_edge_;ns_edge_1=2".parse().unwrap());
        remove_cookies(&mut headers);
        let left: Vec<_> = headers.get_all("cookie").iter().collect();
        assert_eq!(left, ["a=ns_edge_"]);
    }

    #[test]
    fn a_cookie_holds_for_its_port_and_as_long_as_its_token() {
        let cookie = set_cookie(&target(), &"a.b-c".into(), Some(60), true).unwrap();
        assert_eq!(
            cookie,
            "ns_edge_80_sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506=a.b-c; Path=/; HttpOnly; SameSite=Lax; Max-Age=60; Secure"
        );
        let by_path = Target { way: Way::Path, ..target() };
        let cookie = set_cookie(&by_path, &"a".into(), None, false).unwrap();
        let path = "; Path=/p/sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506/80/; HttpOnly; SameSite=Lax";
        assert!(cookie.to_str().unwrap().ends_with(path), "{cookie:?}");
        assert_eq!(set_cookie(&target(), &"a;b".into(), None, false), None);
    }
}
