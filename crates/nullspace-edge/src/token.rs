//! Tokens of requests: in the query, a header or a cookie; and the cookie that keeps one.
//!
//! ```text
//!   ?edge_token=T ──> let in, Set-Cookie ns_edge_{port}_{sandbox}=T      a browser's page: redirected to the URL without the token
//!   later requests ──> cookie ──> let in
//! ```
//! None of them reaches the server in the sandbox.
//!
//! A page of another sandbox can set cookies of any name for the domain above both. So where a port has a host name and its clients speak
//! HTTPS, the cookie's name begins with `__Host-`, which browsers take from the host itself alone. Elsewhere every cookie of the name is
//! tried, not the first one alone.

use hyper::HeaderMap;
use hyper::header::{self, HeaderValue};
use percent_encoding::percent_decode_str;
use secrecy::{ExposeSecret, SecretString};

use crate::address::{Target, Way};

/// The parameter of a query that has a token.
const PARAMETER: &str = "edge_token";

/// The header that has a token.
pub(crate) const HEADER: &str = "x-nullspace-traffic-access-token";

/// The start of the names of the edge's cookies.
const COOKIE_PREFIX: &str = "ns_edge_";

/// The start of names that browsers take from the host itself alone: with `Secure`, `Path=/`, and no `Domain`.
const HOST_ALONE: &str = "__Host-";

/// Longest token in bytes.
const MAX: usize = 1024;

/// Most tokens of cookies that are tried for one request. Paths and domains make more than one cookie of a name possible.
const MOST_COOKIES: usize = 16;

/// Where a token was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Query,
    Header,
    Cookie,
}

/// A request's tokens and where they were.
#[derive(Debug)]
pub(crate) struct Shown {
    /// One token of a query or header; of cookies up to 16, in the order in which they are tried.
    pub(crate) tokens: Vec<SecretString>,
    pub(crate) source: Source,
}

impl Shown {
    fn one(token: SecretString, source: Source) -> Shown {
        Shown { tokens: vec![token], source }
    }
}

/// A token that cannot be one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The name of the cookie of a port.
fn cookie_name(target: &Target) -> String {
    format!("{COOKIE_PREFIX}{}_{}", target.port, target.sandbox)
}

/// What stands before the name of a port's cookie.
fn before_name(target: &Target, https: bool) -> &'static str {
    if https && target.way == Way::Host { HOST_ALONE } else { "" }
}

/// Whether a cookie has a name of the edge's cookies.
pub(crate) fn is_cookie_of_edge(name: &str) -> bool {
    name.strip_prefix(HOST_ALONE).unwrap_or(name).starts_with(COOKIE_PREFIX)
}

/// Returns the token of a request: of the query, else the header, else the cookies.
pub(crate) fn shown(query: Option<&str>, headers: &HeaderMap, target: &Target) -> Result<Option<Shown>, Malformed> {
    if let Some(value) = query.and_then(in_query) {
        let token = percent_decode_str(value).decode_utf8().map_err(|_| Malformed)?;
        return Ok(Some(Shown::one(sane(&token)?, Source::Query)));
    }
    if let Some(value) = headers.get(HEADER) {
        return Ok(Some(Shown::one(sane(value.to_str().map_err(|_| Malformed)?)?, Source::Header)));
    }
    let tokens = in_cookies(headers, target);
    Ok((!tokens.is_empty()).then_some(Shown { tokens, source: Source::Cookie }))
}

/// The tokens of a port's cookies: first that of the cookie which no other host can have set. What cannot be a token is another page's.
fn in_cookies(headers: &HeaderMap, target: &Target) -> Vec<SecretString> {
    let name = cookie_name(target);
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    let (mut of_host, mut others) = (Vec::new(), Vec::new());
    for (given, value) in pairs {
        let Ok(token) = sane(value) else { continue };
        if given == name {
            others.push(token);
        } else if given.strip_prefix(HOST_ALONE) == Some(&name) {
            of_host.push(token);
        }
    }
    // Browsers send cookies of longer paths first: that of the whole port is among the last.
    of_host.extend(others.into_iter().rev());
    of_host.truncate(MOST_COOKIES);
    of_host
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
    let ours = |pair: &str| is_cookie_of_edge(pair.trim_start());
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
    let (before, name, prefix) = (before_name(target, https), cookie_name(target), target.prefix());
    let cookie = format!("{before}{name}={token}; Path={prefix}/; HttpOnly; SameSite=Lax{age}{secure}");
    let mut value = HeaderValue::from_str(&cookie).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The cookies that end those that keep a token.
pub(crate) fn end_cookies(target: &Target, https: bool) -> Vec<HeaderValue> {
    let (name, prefix) = (cookie_name(target), target.prefix());
    let end = |before: &str, secure: &str| {
        let cookie = format!("{before}{name}=; Path={prefix}/; HttpOnly; SameSite=Lax; Max-Age=0{secure}");
        HeaderValue::from_str(&cookie).ok()
    };
    // One without the prefix can be of a time when HTTPS was not known of.
    let of_host = Some(before_name(target, https)).filter(|before| !before.is_empty());
    of_host.and_then(|before| end(before, "; Secure")).into_iter().chain(end("", "")).collect()
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
        Ok(shown(query, &map, &target())?.map(|shown| {
            let tokens: Vec<_> = shown.tokens.iter().map(|token| token.expose_secret()).collect();
            tokens.join(" ")
        }))
    }

    #[test]
    fn every_cookie_of_the_name_is_a_token_that_is_tried() {
        let name = "ns_edge_80_sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506";
        let cookies = |text: &str| token(None, &[("cookie", &text.replace('N', name))]).unwrap();
        assert_eq!(cookies("N=deeper; N=sibling; x=1; N=own").unwrap(), "own sibling deeper");
        assert_eq!(cookies("N=sibling; __Host-N=own; N=old").unwrap(), "own old sibling");
        // What cannot be a token neither lets in nor hides one that can be.
        assert_eq!(cookies("N=; N=own; N=a b").unwrap(), "own");
        assert_eq!(cookies("N=; __host-N=a; __Host-x=b; xN=c"), None);
        let many = (0..40).map(|at| format!("N={at}")).collect::<Vec<_>>().join("; ");
        assert_eq!(cookies(&many).unwrap().split(' ').count(), 16);
        assert!(cookies(&many).unwrap().starts_with("39 38 "));
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
        headers.append("cookie", "a=ns_edge_;ns_edge_1=2; __Host-ns_edge_1=2".parse().unwrap());
        remove_cookies(&mut headers);
        let left: Vec<_> = headers.get_all("cookie").iter().collect();
        assert_eq!(left, ["a=ns_edge_"]);
    }

    #[test]
    fn a_cookie_holds_for_its_port_and_as_long_as_its_token() {
        let cookie = set_cookie(&target(), &"a.b-c".into(), Some(60), true).unwrap();
        assert_eq!(
            cookie,
            "__Host-ns_edge_80_sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506=a.b-c; Path=/; HttpOnly; SameSite=Lax; Max-Age=60; Secure"
        );
        let by_path = Target { way: Way::Path, ..target() };
        let cookie = set_cookie(&by_path, &"a".into(), None, false).unwrap();
        let path = "; Path=/p/sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506/80/; HttpOnly; SameSite=Lax";
        assert!(cookie.to_str().unwrap().ends_with(path), "{cookie:?}");
        assert_eq!(set_cookie(&target(), &"a;b".into(), None, false), None);
        // The path of a port is no name of its own: the prefix would forbid it.
        let https = set_cookie(&by_path, &"a".into(), None, true).unwrap();
        assert!(https.to_str().unwrap().starts_with("ns_edge_80_") && https.to_str().unwrap().ends_with("; Secure"));
        let ends = |target: &Target, https| end_cookies(target, https).len();
        assert_eq!((ends(&target(), true), ends(&target(), false), ends(&by_path, true)), (2, 1, 1));
    }
}
