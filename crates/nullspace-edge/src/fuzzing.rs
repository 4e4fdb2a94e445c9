//! Checks of hostile addresses and framings, for the fuzz targets in `fuzz/`: the readers that they are about are private.
//!
//! ```text
//!   target, hosts ── check, claims, by_host, by_path ──> refused, or: one meaning, spelled in one way
//!   stream ── Screen, hyper ──> refused, or: servers that are less strict find the same requests in it
//! ```
//! Only with the feature `fuzzing`, and in tests.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;

use crate::address::{self, ByPath, Target, Way};
use crate::settings::EdgeLimits;
use crate::{Screen, Screened, check};

/// The domain of ports in these checks.
pub const DOMAIN: &str = "ports.example.com";

/// Reads a request's target and hosts as the edge does. `bytes`: the target, then the value of each `Host` header, separated by LF.
///
/// # Panics
/// When a request is read in two ways, or reaches a port that is spelled in another way than the one that the edge writes.
pub fn address(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let Ok(uri) = Uri::try_from(lines.next().unwrap_or_default()) else { return };
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    for host in lines {
        let Ok(value) = HeaderValue::from_bytes(host) else { return };
        request.headers_mut().append(header::HOST, value);
    }
    let path = request.uri().path().to_owned();
    by_path(&path);
    let by_name = check::hosts(&request).any(|host| address::is_below(DOMAIN, host));
    for host in check::hosts(&request).filter_map(|host| std::str::from_utf8(host).ok()) {
        // What names a port is never left to the API.
        assert!(by_host(host).is_none() || by_name, "{host:?}");
    }
    let Ok(checked) = check::check(&request, &EdgeLimits::default()) else { return };
    // A request has one host, so it is the edge's by that host or not at all.
    assert_eq!(by_name, address::is_below(DOMAIN, checked.host.as_bytes()), "{request:?}");
    assert!(path.starts_with('/') && path.is_ascii(), "{path:?}");
    if address::is_loopback(&checked.host) {
        assert!(!by_name && by_host(&checked.host).is_none(), "{checked:?}");
        assert!(checked.host.bytes().all(|byte| b"localhost127.:0[]3456789".contains(&byte)), "{checked:?}");
    }
}

fn by_host(host: &str) -> Option<Target> {
    let (sandbox, port) = address::by_host(DOMAIN, host)?;
    assert!(port > 0 && address::is_below(DOMAIN, host.as_bytes()), "{host:?}");
    let rest = host.strip_prefix(&format!("{port}-{sandbox}.{DOMAIN}"));
    let rest = rest.unwrap_or_else(|| panic!("{host:?} is spelled in another way"));
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    assert!(rest.is_empty() || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok()), "{host:?}");
    Some(Target { sandbox, port, way: Way::Host })
}

fn by_path(path: &str) {
    let found = address::by_path(path);
    let (sandbox, port, inside) = match found {
        ByPath::Nothing => return,
        ByPath::Bare(sandbox, port) => (sandbox, port, ""),
        ByPath::Inside(sandbox, port, inside) => {
            assert!(inside.starts_with('/'), "{path:?}");
            (sandbox, port, inside)
        }
    };
    let prefix = Target { sandbox, port, way: Way::Path }.prefix();
    assert!(port > 0 && address::is_path_of_port(path), "{path:?}");
    assert_eq!(format!("{prefix}{inside}"), path, "spelled in another way");
}

/// Screens a connection's bytes. `bytes`: the length of pieces (0 is 1), then the stream.
///
/// # Panics
/// When pieces change what is refused, or when a request that passes is read in two ways.
pub fn framing(bytes: &[u8]) {
    let Some((piece, stream)) = bytes.split_first() else { return };
    let whole = Screen::default().read(stream);
    let mut screen = Screen::default();
    let (mut at, mut found) = (0, None);
    for piece in stream.chunks(usize::from(*piece).max(1)) {
        found = screen.read(piece).map(|bad| at + bad);
        if found.is_some() {
            break;
        }
        at += piece.len();
    }
    assert_eq!(found, whole, "pieces change what is refused");

    let passed = stream.get(..whole.unwrap_or(stream.len())).unwrap_or_default();
    // The parser refuses more than the screen. What it takes, and the edge passes on, must be the same for all others.
    let parsed = by_hyper(stream);
    for habits in [
        Habits { lf: false, last: false, length_wins: false },
        Habits { lf: true, last: false, length_wins: false },
        Habits { lf: false, last: true, length_wins: false },
        Habits { lf: true, last: true, length_wins: true },
    ] {
        let found = requests(passed, habits);
        assert!(found.starts_with(&parsed), "hyper reads {parsed:?}, {habits:?} reads {found:?}");
    }
}

/// A request as a reader of framing sees it: its method and its body.
type Seen = (Vec<u8>, Vec<u8>);

/// How a server reads what the protocol forbids.
#[derive(Debug, Clone, Copy)]
struct Habits {
    /// Takes LF for the end of a line.
    lf: bool,
    /// Of several lengths or codings, takes the last.
    last: bool,
    /// Takes the length beside a coding.
    length_wins: bool,
}

/// The requests of a stream that have arrived wholly, read with these habits and nothing else that is strict.
fn requests(mut stream: &[u8], habits: Habits) -> Vec<Seen> {
    let mut all = Vec::new();
    while let Some(seen) = request(&mut stream, habits) {
        all.push(seen);
    }
    all
}

fn request(stream: &mut &[u8], habits: Habits) -> Option<Seen> {
    let mut first = line(stream, habits)?;
    while first.is_empty() {
        first = line(stream, habits)?;
    }
    let method = first.split(|byte| *byte == b' ').next().unwrap_or_default().to_vec();
    let (mut length, mut chunked) = (None, None);
    loop {
        let header = line(stream, habits)?;
        if header.is_empty() {
            break;
        }
        let (name, value) = header.split_at(header.iter().position(|byte| *byte == b':').unwrap_or(header.len()));
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        let name = name.trim_ascii().to_ascii_lowercase();
        if name == b"content-length" && (habits.last || length.is_none()) {
            length = Some(std::str::from_utf8(value).ok().and_then(|value| value.parse::<usize>().ok()).unwrap_or(0));
        } else if name == b"transfer-encoding" && (habits.last || chunked.is_none()) {
            chunked = Some(value.to_ascii_lowercase().ends_with(b"chunked"));
        }
    }
    let chunked = chunked.unwrap_or(false) && !(habits.length_wins && length.is_some());
    if !chunked {
        return Some((method, take(stream, length.unwrap_or(0))?.to_vec()));
    }
    let mut body = Vec::new();
    loop {
        let size = line(stream, habits)?;
        let digits = size.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        if size == 0 {
            while !line(stream, habits)?.is_empty() {}
            return Some((method, body));
        }
        body.extend_from_slice(take(stream, size)?);
        line(stream, habits)?;
    }
}

/// The next line without its end.
fn line<'a>(stream: &mut &'a [u8], habits: Habits) -> Option<&'a [u8]> {
    let end = |at: usize| stream.get(at) == Some(&b'\n') && (habits.lf || at > 0 && stream.get(at - 1) == Some(&b'\r'));
    let at = (0..stream.len()).find(|at| end(*at))?;
    let line = stream.get(..at)?;
    *stream = stream.get(at + 1..)?;
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

fn take<'a>(stream: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = stream.split_at_checked(length)?;
    *stream = rest;
    Some(taken)
}

/// The requests that hyper reads wholly from a screened connection with these bytes.
fn by_hyper(stream: &[u8]) -> Vec<Seen> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = service_fn(|request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let (parts, body) = request.into_parts();
            if let Ok(body) = body.collect().await {
                let request = (parts.method.as_str().as_bytes().to_vec(), body.to_bytes().to_vec());
                seen.lock().expect("no check fails inside").push(request);
            }
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let connection = Screened::new(tokio::io::join(stream, tokio::io::sink()));
    let served = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .max_headers(128)
        .serve_connection(TokioIo::new(connection), service);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime without drivers");
    // What is refused ends with an error.
    let _ = runtime.block_on(served);
    let seen = seen.lock().expect("no check fails inside");
    seen.clone()
}

/// The inputs that fuzzing of [`address`] begins with.
pub fn address_seeds() -> Vec<Vec<u8>> {
    let id = "sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506";
    [
        format!("/x?y\n8000-{id}.{DOMAIN}"),
        format!("/\n65535-{id}.{DOMAIN}.:443"),
        format!("/\n0-{id}.{DOMAIN}"),
        format!("/\n65536-{id}.{DOMAIN}"),
        format!("/\n08000-{id}.{DOMAIN}"),
        format!("/\n8000-{}.{DOMAIN}", id.to_uppercase()),
        format!("/\n8000-{id}.PORTS.example.com"),
        format!("/\nu@8000-{id}.{DOMAIN}"),
        format!("http://8000-{id}.{DOMAIN}/x\nelsewhere.example"),
        format!("http://elsewhere.example/x\n8000-{id}.{DOMAIN}"),
        format!("http://8000-{id}.{DOMAIN}/x\n8000-{id}.{DOMAIN}"),
        format!("/\nelsewhere.example\n8000-{id}.{DOMAIN}"),
        format!("/\nx.{DOMAIN}"),
        format!("/\n{DOMAIN}"),
        format!("/\n8000-{id}.xn--prts-wqa.example.com"),
        format!("/\n8000-{id}.p\u{f6}rts.example.com"),
        format!("/p/{id}/8000/x/../y?z\nlocalhost:3000"),
        format!("/p/{id}/8000\n127.0.0.1:3000"),
        format!("/p/{id}/0/\n[::1]:3000"),
        format!("/p/{id}/65536/\nlocalhost"),
        format!("/p/{id}/8000%2f..%2f..\nlocalhost"),
        "/p\nlocalhost".to_owned(),
        "*\nlocalhost".to_owned(),
        "localhost:80\nlocalhost:80".to_owned(),
    ]
    .map(String::into_bytes)
    .into()
}

/// The inputs that fuzzing of [`framing`] begins with.
pub fn framing_seeds() -> Vec<Vec<u8>> {
    let streams: [&[u8]; 16] = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na\nbGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=y\r\na\nb\r\n0\r\nT: v\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\nHost: a\nContent-Length: 3\n\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nX: y\r\n Content-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1_\r\na\r\n+0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc0\r\n\r\n",
        b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nabGET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    streams.iter().map(|stream| [&[7][..], stream].concat()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fuzzing_begins_with_is_read_in_one_way() {
        address_seeds().iter().for_each(|seed| address(seed));
        framing_seeds().iter().for_each(|seed| framing(seed));
    }

    #[test]
    fn readers_of_framing_find_the_requests_that_are_there() {
        let strict = Habits { lf: false, last: false, length_wins: false };
        let seeds = framing_seeds();
        let bodies = |stream: &[u8]| -> Vec<Vec<u8>> { by_hyper(stream).into_iter().map(|(_, body)| body).collect() };
        for (seed, expected) in seeds.iter().zip([&[&b""[..], b""][..], &[b"a\nb", b""], &[b"a\nb", b""], &[b"", b""]])
        {
            assert_eq!(bodies(&seed[1..]), expected);
            assert_eq!(by_hyper(&seed[1..]), requests(&seed[1..], strict));
        }
        // Of what the screen is there for, the readers make different requests.
        let lengths = &seeds[5][1..];
        let last = Habits { last: true, ..strict };
        assert_ne!(requests(lengths, strict), requests(lengths, last));
        let both = &seeds[4][1..];
        assert_ne!(requests(both, strict), requests(both, Habits { length_wins: true, ..strict }));
        let lines = &seeds[8][1..];
        assert_ne!(requests(lines, strict), requests(lines, Habits { lf: true, ..strict }));
    }
}
