//! Headers on their way: what belongs to one connection ends here, what says where a request came from is set anew, and what belongs
//! to the edge does not pass.
//!
//! ```text
//!   client ──> without hop-by-hop, API key, token, Forwarded; with X-Forwarded-*, Host ──> server in the sandbox
//!   client <── without hop-by-hop, Domain of cookies; with Location and Path under the prefix <──
//! ```

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::uri::Uri;

use crate::address::{Target, Way};
use crate::token;

/// Headers of one connection.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
];

/// Headers of a request that clients must not set for the server in the sandbox, in the spelling with dashes.
const FROM_OUTSIDE: [&str; 9] = [
    "forwarded",
    "proxy",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-real-ip",
];

/// The start of the names of headers that only clients and the edge say to each other. No guest says them, and none is told them.
const OF_EDGE: &str = "x-nullspace-";

/// Headers that have a meaning in a head alone.
const HEAD_ALONE: [&str; 8] =
    ["authorization", "content-length", "content-type", "content-encoding", "cookie", "host", "location", "set-cookie"];

/// What a request for a server in a sandbox is made with.
pub(crate) struct Outside<'a> {
    pub(crate) client: IpAddr,
    pub(crate) https: bool,
    /// The host as the client has it.
    pub(crate) host: &'a str,
    /// The host as the server in the sandbox sees it.
    pub(crate) inner_host: &'a str,
    pub(crate) target: &'a Target,
    pub(crate) websocket: bool,
}

/// Removes the headers of one connection, also those that `Connection` names.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Removes headers by their name in the spelling with dashes: servers that turn headers into variables read `x_forwarded_for` and
/// `x-forwarded-for` alike.
fn remove_where(headers: &mut HeaderMap, goes: impl Fn(&str) -> bool) {
    let names: Vec<HeaderName> =
        headers.keys().filter(|name| goes(&name.as_str().replace('_', "-"))).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// Prepares the headers of a request.
pub(crate) fn to_server(headers: &mut HeaderMap, outside: &Outside<'_>) {
    let wants_trailers = headers
        .get_all(header::TE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|coding| coding.trim().eq_ignore_ascii_case("trailers")));
    remove_hop_by_hop(headers);
    remove_where(headers, |name| FROM_OUTSIDE.contains(&name) || name.starts_with(OF_EDGE));
    // The edge asks for the body itself, when the server is reached.
    headers.remove(header::EXPECT);
    let keys = headers.get_all(header::AUTHORIZATION).iter().any(is_key);
    if keys {
        headers.remove(header::AUTHORIZATION);
    }
    token::remove_cookies(headers);
    let mut set = |name: &'static str, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set("x-forwarded-for", &outside.client.to_string());
    set("x-forwarded-proto", if outside.https { "https" } else { "http" });
    set("x-forwarded-host", outside.host);
    let prefix = outside.target.prefix();
    if !prefix.is_empty() {
        set("x-forwarded-prefix", &prefix);
    }
    set("host", outside.inner_host);
    if wants_trailers {
        set("te", "trailers");
    }
    if outside.websocket {
        set("connection", "Upgrade");
        set("upgrade", "websocket");
    }
}

/// Says of a request over HTTP/1.1 that a body follows, where its length does not. The HTTP library assumes that methods such as GET have
/// none, and would not send it.
pub(crate) fn body_follows(headers: &mut HeaderMap) {
    if !headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
}

/// Whether an `Authorization` header has a key of this service.
fn is_key(value: &HeaderValue) -> bool {
    let Ok(value) = value.to_str() else { return false };
    let Some((scheme, key)) = value.trim().split_once(' ') else { return false };
    scheme.eq_ignore_ascii_case("bearer") && key.trim().starts_with("ns_")
}

/// Prepares the headers of a response.
pub(crate) fn to_client(headers: &mut HeaderMap, outside: &Outside<'_>) {
    remove_hop_by_hop(headers);
    remove_where(headers, |name| name.starts_with(OF_EDGE));
    // Another address for the whole origin is not the sandbox's to name.
    headers.remove(header::ALT_SVC);
    if outside.target.way != Way::Host {
        // These hold for the origin, which is the service's and not this port's alone.
        for name in ["service-worker-allowed", "clear-site-data", "strict-transport-security", "public-key-pins"] {
            headers.remove(name);
        }
    }
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let moved = headers.get(&name).and_then(|value| value.to_str().ok()).and_then(|value| location(value, outside));
        if let Some(value) = moved.and_then(|moved| HeaderValue::from_str(&moved).ok()) {
            headers.insert(name, value);
        }
    }
    if headers.contains_key(header::SET_COOKIE) {
        let prefix = outside.target.prefix();
        let cookies: Vec<_> =
            headers.get_all(header::SET_COOKIE).iter().filter_map(|cookie| own_cookie(cookie, &prefix)).collect();
        headers.remove(header::SET_COOKIE);
        for cookie in cookies {
            headers.append(header::SET_COOKIE, cookie);
        }
    }
}

/// The headers of the agreement on a WebSocket.
pub(crate) fn switch_protocols(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.remove(header::CONTENT_LENGTH);
}

/// Where a redirect of the server in the sandbox leads outside; `None`: where it says.
fn location(value: &str, outside: &Outside<'_>) -> Option<String> {
    let prefix = outside.target.prefix();
    let under_prefix = |path: &str| {
        let inside =
            path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?', '#']));
        if inside { path.to_owned() } else { format!("{prefix}{path}") }
    };
    if value.starts_with('/') && !value.starts_with("//") {
        return (!prefix.is_empty()).then(|| under_prefix(value));
    }
    let uri: Uri = value.parse().ok()?;
    let authority = uri.authority()?.as_str();
    // Absolute, on the server's own host: by the name that it sees, or by the one that the client sees.
    let masked = authority.eq_ignore_ascii_case(outside.inner_host);
    let own = masked || authority.eq_ignore_ascii_case(outside.host);
    if !own || (prefix.is_empty() && outside.inner_host == outside.host) {
        return None;
    }
    let start = value.find("//")? + 2 + authority.len();
    let path = match value.get(start..)? {
        "" => "/".to_owned(),
        rest if rest.starts_with('/') => rest.to_owned(),
        rest => format!("/{rest}"),
    };
    let path = if prefix.is_empty() { path } else { under_prefix(&path) };
    // A path that begins with two slashes would be another host's.
    (!path.starts_with("//")).then_some(path)
}

/// A cookie of the server in the sandbox as it may be set: for its own host and below its own path.
fn own_cookie(cookie: &HeaderValue, prefix: &str) -> Option<HeaderValue> {
    let Ok(text) = std::str::from_utf8(cookie.as_bytes()) else { return None };
    let mut parts = text.split(';');
    let pair = parts.next()?.trim();
    // Of a cookie without a name, browsers send the value alone: it could be read as another cookie, the edge's too.
    let (name, _) = pair.split_once('=')?;
    if name.trim().is_empty() || token::is_cookie_of_edge(name) {
        return None;
    }
    let mut kept = pair.to_owned();
    for attribute in parts {
        let attribute = attribute.trim();
        let (name, value) = attribute.split_once('=').unwrap_or((attribute, ""));
        if name.trim().eq_ignore_ascii_case("domain") {
            continue;
        }
        let value = value.trim();
        kept.push_str("; ");
        if name.trim().eq_ignore_ascii_case("path") && !prefix.is_empty() {
            let inside = value.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            let path = if inside {
                value.to_owned()
            } else if value.starts_with('/') {
                format!("{prefix}{value}")
            } else {
                format!("{prefix}/")
            };
            kept.push_str(&format!("Path={path}"));
        } else {
            kept.push_str(attribute);
        }
    }
    HeaderValue::from_bytes(kept.as_bytes()).ok()
}

/// Removes from trailers what must stand in a head.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    remove_where(trailers, |name| {
        HOP_BY_HOP.contains(&name)
            || FROM_OUTSIDE.contains(&name)
            || HEAD_ALONE.contains(&name)
            || name.starts_with(OF_EDGE)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(way: Way) -> Target {
        Target { sandbox: "sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506".parse().unwrap(), port: 80, way }
    }

    fn outside<'a>(target: &'a Target, inner_host: &'a str) -> Outside<'a> {
        let client = "192.0.2.7".parse().unwrap();
        Outside { client, https: true, host: "outer.example:3000", inner_host, target, websocket: false }
    }

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_request_has_nothing_of_the_connection_and_says_where_it_came_from() {
        let mut headers = map(&[
            ("connection", "close, x-mine, host"),
            ("x-mine", "1"),
            ("keep-alive", "5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x_forwarded_for", "1.2.3.4"),
            ("x-forwarded-prefix", "/admin"),
            ("x-real-ip", "1.2.3.4"),
            ("proxy", "evil"),
            ("expect", "100-continue"),
            ("authorization", "bearer ns_live_secret"),
            ("x-nullspace-traffic-access-token", "secret"),
            ("x_nullspace_traffic_access_token", "secret"),
            ("cookie", "a=1; ns_edge_80_sb_x=secret; b=2"),
            ("host", "outer.example:3000"),
            ("x-app", "stays"),
        ]);
        let target = target(Way::Path);
        to_server(&mut headers, &outside(&target, "inner:80"));
        let prefix = target.prefix();
        let expected = map(&[
            ("x-forwarded-for", "192.0.2.7"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "outer.example:3000"),
            ("x-forwarded-prefix", &prefix),
            ("te", "trailers"),
            ("host", "inner:80"),
            ("cookie", "a=1; b=2"),
            ("x-app", "stays"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn trailers_say_nothing_that_a_head_must_say() {
        let mut trailers = map(&[
            ("x-nullspace-edge-error", "not_found"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x_forwarded_for", "1.2.3.4"),
            ("set-cookie", "a=1"),
            ("transfer-encoding", "chunked"),
            ("grpc-status", "0"),
        ]);
        clean_trailers(&mut trailers);
        assert_eq!(trailers, map(&[("grpc-status", "0")]));
    }

    #[test]
    fn an_authorization_of_the_application_passes() {
        let mut headers = map(&[("authorization", "Basic bnM6bnM=")]);
        to_server(&mut headers, &outside(&target(Way::Host), "h"));
        assert_eq!(headers["authorization"], "Basic bnM6bnM=");
    }

    #[test]
    fn redirects_stay_under_the_prefix() {
        let by_path = target(Way::Path);
        let prefix = by_path.prefix();
        let seen =
            |value: &str| location(value, &outside(&by_path, "inner:80")).map(|moved| moved.replace(&prefix, "P"));
        assert_eq!(seen("/a?b#c").unwrap(), "P/a?b#c");
        assert_eq!(seen(&format!("{prefix}/a")).unwrap(), "P/a");
        assert_eq!(seen(&format!("{prefix}x/a")).unwrap(), "PPx/a");
        assert_eq!(seen("http://inner:80/a").unwrap(), "P/a");
        assert_eq!(seen("https://OUTER.example:3000").unwrap(), "P/");
        assert_eq!(seen("http://inner:80//evil.com/").unwrap(), "P//evil.com/");
        for same in ["a/b", "?x", "//evil.com/", "https://evil.com/", "http://inner:81/", ""] {
            assert_eq!(seen(same), None, "{same}");
        }
        let by_host = target(Way::Host);
        let seen = |value: &str| location(value, &outside(&by_host, "inner:80"));
        assert_eq!(seen("http://inner:80/a").unwrap(), "/a");
        assert_eq!(seen("http://inner:80//evil.com"), None);
        assert_eq!(seen("/a"), None);
        assert_eq!(location("https://outer.example:3000/a", &outside(&by_host, "outer.example:3000")), None);
    }

    #[test]
    fn cookies_are_for_their_own_port_alone() {
        let prefix = target(Way::Path).prefix();
        let seen = |text: &str, prefix: &str| {
            own_cookie(&text.parse().unwrap(), prefix).map(|value| value.to_str().unwrap().replace(prefix, "P"))
        };
        assert_eq!(seen("a=1; Domain=.example.com; Path=/; HttpOnly", &prefix).unwrap(), "a=1; Path=P/; HttpOnly");
        assert_eq!(seen(&format!("a=1; path={prefix}/x"), &prefix).unwrap(), "a=1; Path=P/x");
        assert_eq!(seen("a=1; path=evil", &prefix).unwrap(), "a=1; Path=P/");
        assert_eq!(seen("a=1", &prefix).unwrap(), "a=1");
        for edges in [
            "ns_edge_80_sb_x=1",
            "__Host-ns_edge_80_sb_x=1",
            " ns_edge_80_sb_x =1",
            "=ns_edge_80_sb_x=1",
            "\t=\tns_edge_80_sb_x=1",
            "ns_edge_80_sb_x",
            "=",
            "",
        ] {
            assert_eq!(seen(&format!("{edges}; Path=/"), &prefix), None, "{edges:?}");
        }
        let plain = own_cookie(&"a=1; DOMAIN=x; Path=/".parse().unwrap(), "").unwrap();
        assert_eq!(plain, "a=1; Path=/");
    }

    #[test]
    fn a_response_cannot_speak_for_the_origin_of_others() {
        let all = [
            ("alt-svc", "h2=evil"),
            ("strict-transport-security", "x"),
            ("service-worker-allowed", "/"),
            ("x-nullspace-edge-error", "not_found"),
            ("x_nullspace_edge_error", "not_found"),
            ("x-app", "1"),
        ];
        let mut headers = map(&all);
        to_client(&mut headers, &outside(&target(Way::Path), "inner"));
        assert_eq!(headers, map(&[("x-app", "1")]));
        let mut headers = map(&all);
        to_client(&mut headers, &outside(&target(Way::Host), "inner"));
        assert_eq!(headers.len(), 3);
    }
}
