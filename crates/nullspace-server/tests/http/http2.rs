//! HTTP/2 frame by frame, as a client that keeps to no rule sends them.

use std::time::{Duration, Instant};

use nullspace_api::TemplateBuildLogKind;
use nullspace_server::{BufferLimits, ConnectionLimits, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::connections::{Server, client, start_with};
use crate::support::{KEY, MUCH, OTHER_KEY};

const SOON: Duration = Duration::from_secs(30);

// RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const INITIAL_WINDOW: u16 = 4;
// Section 7.
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const CALM: u32 = 11;

#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    /// The number at this place.
    fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A header as HPACK has it in full: without an index, without Huffman's code (RFC 7541, 6.2.2).
fn header(name: &str, value: &str) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name, value] {
        if text.len() < 127 {
            bytes.push(text.len() as u8);
        } else {
            bytes.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                bytes.push((rest % 128) as u8 | 128);
                rest /= 128;
            }
            bytes.push(rest as u8);
        }
        bytes.extend(text.as_bytes());
    }
    bytes
}

fn head(method: &str, path: &str, key: &str) -> Vec<u8> {
    let bearer = format!("Bearer {key}");
    let headers = [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "x"),
        ("authorization", &bearer),
        ("content-type", "application/json"),
    ];
    headers.iter().flat_map(|(name, value)| header(name, value)).collect()
}

struct Http2 {
    stream: TcpStream,
    /// The id of the last request.
    last: u32,
    /// What the server allows.
    settings: Vec<(u16, u32)>,
}

impl Server {
    /// A connection with these settings of the client.
    async fn http2(&self, settings: &[(u16, u32)]) -> Http2 {
        let payload: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        let mut stream = self.raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        stream.write_all(&frame(SETTINGS, 0, 0, &payload)).await.unwrap();
        let mut http2 = Http2 { stream, last: 0, settings: Vec::new() };
        let allowed = http2.next().await.unwrap();
        assert_eq!((allowed.kind, allowed.flags), (SETTINGS, 0));
        http2.settings = allowed
            .payload
            .chunks(6)
            .map(|one| (u16::from_be_bytes([one[0], one[1]]), u32::from_be_bytes(one[2..].try_into().unwrap())))
            .collect();
        http2.send(&frame(SETTINGS, ACK, 0, &[])).await;
        http2
    }

    fn count(&self, text: &str) -> usize {
        self.fake.calls.lock().unwrap().iter().filter(|call| call.contains(text)).count()
    }

    async fn counts(&self, text: &str, expected: usize) {
        let until = Instant::now() + SOON;
        while self.count(text) < expected {
            assert!(Instant::now() < until, "{} of {expected} requests came", self.count(text));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until requests hold so many bytes, as the metrics say.
    async fn holds(&self, expected: impl Fn(usize) -> bool) {
        let until = Instant::now() + SOON;
        loop {
            let page = client().get(self.url("/metrics")).send().await.unwrap().text().await.unwrap();
            let line = page.lines().find_map(|line| line.strip_prefix("nullspace_http_buffered_bytes "));
            let now = line.unwrap().parse().unwrap();
            if expected(now) {
                return;
            }
            assert!(Instant::now() < until, "{now} bytes are held");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn status(&self, key: &str) -> u16 {
        client().get(self.url("/v1/templates")).bearer_auth(key).send().await.unwrap().status().as_u16()
    }
}

impl Http2 {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The bytes of a request, which is then the last one.
    fn request(&mut self, method: &str, path: &str, key: &str, body: Option<&str>) -> Vec<u8> {
        self.last = if self.last == 0 { 1 } else { self.last + 2 };
        let end = if body.is_some() { END_HEADERS } else { END_HEADERS | END_STREAM };
        let mut bytes = frame(HEADERS, end, self.last, &head(method, path, key));
        if let Some(body) = body {
            bytes.extend(frame(DATA, END_STREAM, self.last, body.as_bytes()));
        }
        bytes
    }

    /// Begins a command, and returns its stream.
    async fn exec(&mut self, command: &str) -> u32 {
        let body = format!("{{\"command\": \"{command}\"}}");
        let bytes = self.request("POST", "/v1/sandboxes/sb_1/exec", KEY, Some(&body));
        self.send(&bytes).await;
        self.last
    }

    async fn get(&mut self, path: &str, key: &str) -> u32 {
        let bytes = self.request("GET", path, key, None);
        self.send(&bytes).await;
        self.last
    }

    /// The next frame; `None` when the server has closed the connection.
    async fn next(&mut self) -> Option<Frame> {
        let read = async {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
            let mut payload = vec![0; length as usize];
            self.stream.read_exact(&mut payload).await.ok()?;
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        };
        tokio::time::timeout(SOON, read).await.expect("the connection is still open, and nothing comes")
    }

    /// The next frame of this kind and stream.
    async fn until(&mut self, kind: u8, stream: u32) -> Frame {
        loop {
            let frame = self.next().await.unwrap_or_else(|| panic!("closed before frame {kind} of {stream}"));
            if (frame.kind, frame.stream) == (kind, stream) {
                return frame;
            }
            assert_ne!(frame.kind, GOAWAY, "{frame:?}");
        }
    }

    /// The body of an answer.
    async fn body(&mut self, stream: u32) -> String {
        let mut body = String::new();
        loop {
            let frame = self.until(DATA, stream).await;
            body.push_str(&frame.text());
            if frame.flags & END_STREAM != 0 {
                return body;
            }
        }
    }

    /// Reads to the connection's end; the reason in the last goodbye.
    async fn closed(&mut self) -> Option<u32> {
        let mut reason = None;
        while let Some(frame) = self.next().await {
            if frame.kind == GOAWAY {
                reason = Some(frame.number(4));
            }
        }
        reason
    }
}

#[tokio::test]
async fn a_connection_has_so_many_requests_at_a_time_and_so_much_unread() {
    let server = start_with(ServerConfig::default(), ConnectionLimits::default()).await;
    let mut flood = server.http2(&[]).await;
    let allowed: Vec<_> =
        [3, INITIAL_WINDOW, 6].map(|id| flood.settings.iter().find(|(known, _)| *known == id).unwrap().1).to_vec();
    assert_eq!(allowed, [64, 64 << 10, 64 << 10], "requests, bytes of a body, bytes of a head");
    for _ in 0..64 {
        flood.exec("hang").await;
    }
    server.counts("hang", 64).await;
    let one_more = flood.get("/v1/templates", KEY).await;
    assert_eq!(flood.until(RST_STREAM, one_more).await.number(0), REFUSED_STREAM);
    // The connection goes on, and others are served.
    flood.send(&frame(PING, 0, 0, b"12345678")).await;
    assert_eq!(flood.until(PING, 0).await.payload, b"12345678");
    assert_eq!((server.status(KEY).await, server.status(OTHER_KEY).await), (200, 200));
    flood.send(&frame(RST_STREAM, 0, 1, &CANCEL.to_be_bytes())).await;
    let until = Instant::now() + SOON;
    loop {
        let again = flood.get("/v1/templates", KEY).await;
        let answer = flood.next().await.unwrap();
        if answer.kind == HEADERS && answer.stream == again {
            break;
        }
        assert!(Instant::now() < until, "the place of a request that was taken back is not free");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_request_that_is_taken_back_gives_up_its_tenants_place() {
    let config = ServerConfig { requests_at_once: 1, ..ServerConfig::default() };
    let server = start_with(config, ConnectionLimits::default()).await;
    let mut client = server.http2(&[]).await;
    for round in 1..=20 {
        let hanging = client.exec("hang").await;
        server.counts("hang", round).await;
        assert_eq!(server.status(KEY).await, 429);
        client.send(&frame(RST_STREAM, 0, hanging, &CANCEL.to_be_bytes())).await;
        let until = Instant::now() + SOON;
        while server.status(KEY).await != 200 {
            assert!(Instant::now() < until, "the place is not given back");
        }
    }
}

/// CVE-2023-44487.
#[tokio::test]
async fn many_requests_that_are_taken_back_at_once_end_the_connection() {
    let server = start_with(ServerConfig::default(), ConnectionLimits::default()).await;
    for key in [KEY, "ns_live_nobody"] {
        let mut flood = server.http2(&[]).await;
        let mut bytes = Vec::new();
        for _ in 0..1000 {
            bytes.extend(flood.request("GET", "/v1/templates/builds/tb_1/logs", key, None));
            bytes.extend(frame(RST_STREAM, 0, flood.last, &CANCEL.to_be_bytes()));
        }
        // It may end while this is being sent.
        let _ = flood.stream.write_all(&bytes).await;
        assert_eq!(flood.closed().await.unwrap_or(CALM), CALM);
        assert_eq!((server.status(KEY).await, server.status(OTHER_KEY).await), (200, 200));
    }
    assert!(server.count("build_logs") < 100, "most were never looked at");
}

/// CVE-2025-8671: the client makes the server take requests back.
#[tokio::test]
async fn many_breaches_of_the_protocol_end_the_connection_and_what_they_began() {
    let server = start_with(ServerConfig::default(), ConnectionLimits::default()).await;
    let mut flood = server.http2(&[]).await;
    let mut ended = false;
    for _ in 0..2000 {
        let mut bytes = flood.request("GET", "/v1/templates/builds/tb_1/logs?follow=true", KEY, None);
        bytes.extend(frame(WINDOW_UPDATE, 0, flood.last, &0x7fff_ffff_u32.to_be_bytes()));
        ended = flood.stream.write_all(&bytes).await.is_err();
        if ended {
            break;
        }
        loop {
            match flood.next().await {
                Some(frame) if frame.kind == GOAWAY => ended = true,
                Some(frame) if frame.kind == RST_STREAM && frame.stream == flood.last => break,
                Some(_) => {}
                None => {
                    ended = true;
                    break;
                }
            }
        }
        if ended {
            break;
        }
    }
    assert!(ended, "2000 breaches, and the connection goes on");
    drop(flood);
    server.holds(|held| held == 0).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_or_does_not_end_is_refused() {
    let server = start_with(ServerConfig::default(), ConnectionLimits::default()).await;
    let mut large = server.http2(&[]).await;
    let mut block = head("GET", "/v1/templates", KEY);
    for number in 0..10 {
        block.extend(header(&format!("x-{number}"), &"a".repeat(10_000)));
    }
    let mut pieces = block.chunks(16_000).peekable();
    let mut bytes = frame(HEADERS, END_STREAM, 1, pieces.next().unwrap());
    while let Some(piece) = pieces.next() {
        bytes.extend(frame(CONTINUATION, if pieces.peek().is_some() { 0 } else { END_HEADERS }, 1, piece));
    }
    large.send(&bytes).await;
    large.last = 1;
    // 431, and the connection is good for another one.
    let answer = large.until(HEADERS, 1).await;
    assert!(answer.flags & END_STREAM != 0 && answer.payload[0] != 0x88, "{answer:?}");
    let another = large.get("/v1/templates", KEY).await;
    assert_eq!(large.until(HEADERS, another).await.payload[0], 0x88, "200");

    let mut endless = server.http2(&[]).await;
    let mut sent = 0;
    let mut open = endless.stream.write_all(&frame(HEADERS, END_STREAM, 1, &head("GET", "/", KEY))).await.is_ok();
    while open && sent < 64 << 20 {
        let piece = header("x-more", &"a".repeat(16_000));
        open = endless.stream.write_all(&frame(CONTINUATION, 0, 1, &piece)).await.is_ok();
        sent += piece.len();
    }
    assert!(!open, "{sent} bytes of one head were taken");
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_and_one_that_waits_for_us_is_not() {
    let short = Duration::from_millis(150);
    let limits = ConnectionLimits { header_timeout: short, stalled_peer_timeout: short, ..ConnectionLimits::default() };
    let server = start_with(ServerConfig::default(), limits).await;
    server.fake.push(TemplateBuildLogKind::Start, "first");
    let mut follower = server.http2(&[]).await;
    let log = follower.get("/v1/templates/builds/tb_1/logs?follow=true", KEY).await;
    assert!(follower.until(DATA, log).await.text().contains("first"));
    // Silent ones, one that has had its answer, and one in the middle of a head: all are closed while the follower waits.
    for kind in 0..6 {
        let mut idle = server.http2(&[]).await;
        match kind % 3 {
            0 => {}
            1 => {
                let asked = idle.get("/healthz", KEY).await;
                assert!(idle.body(asked).await.contains("ok"));
            }
            _ => idle.send(&frame(HEADERS, END_STREAM, 1, &head("GET", "/healthz", KEY))).await,
        }
        assert_eq!(idle.closed().await.unwrap_or(0), 0);
    }
    server.fake.push(TemplateBuildLogKind::Start, "second");
    assert!(follower.until(DATA, log).await.text().contains("second"));
}

#[tokio::test]
async fn an_answer_that_its_client_does_not_take_is_given_up() {
    let short = Duration::from_millis(150);
    let limits = ConnectionLimits { header_timeout: short, stalled_peer_timeout: short, ..ConnectionLimits::default() };
    let config = ServerConfig {
        buffers: BufferLimits { per_tenant: MUCH + (64 << 10), total: 1 << 30 },
        requests_at_once: 3,
        ..ServerConfig::default()
    };
    let server = start_with(config, limits).await;
    // The client reads its connection and answers pings. It opens no window, or not enough of one.
    for window in [0, 1 << 10] {
        let mut client = server.http2(&[(INITIAL_WINDOW, window)]).await;
        let much = client.exec("much").await;
        client.until(HEADERS, much).await;
        let small = client.get("/v1/templates", "ns_live_nobody").await;
        client.until(HEADERS, small).await;
        server.holds(|held| held == 0).await;
        assert_eq!(server.status(KEY).await, 200);
        // With nothing under way, the connection is idle.
        assert_eq!(client.closed().await.unwrap_or(0), 0);
    }
}

#[tokio::test]
async fn an_answer_over_http1_that_its_client_does_not_take_is_given_up_too() {
    let limits = ConnectionLimits { stalled_peer_timeout: Duration::from_millis(500), ..ConnectionLimits::default() };
    let server = start_with(ServerConfig::default(), limits).await;
    let body = r#"{"command": "much"}"#;
    let head = format!(
        "POST /v1/sandboxes/sb_1/exec HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let _unread = server.raw(&head).await;
    server.counts("much", 1).await;
    server.holds(|held| held == 0).await;
}

#[tokio::test]
async fn bodies_of_strangers_hold_no_window() {
    let server = start_with(ServerConfig::default(), ConnectionLimits::default()).await;
    let mut client = server.http2(&[]).await;
    // Each leaves as much of its body as its window takes; together they are more than the connection's window.
    for _ in 0..6 {
        let mut bytes = client.request("POST", "/v1/templates/builds", "ns_live_nobody", None);
        bytes[4] = END_HEADERS;
        for _ in 0..4 {
            bytes.extend(frame(DATA, 0, client.last, &[b' '; 16_000]));
        }
        let stream = client.last;
        client.send(&bytes).await;
        client.until(HEADERS, stream).await;
    }
    let known = client.request("POST", "/v1/templates/builds", KEY, Some(r#"{"name": "x"}"#));
    let stream = client.last;
    client.send(&known).await;
    client.until(HEADERS, stream).await;
    assert!(client.body(stream).await.contains("tb_1"));
}

#[tokio::test]
async fn a_stranger_that_takes_no_answers_is_disconnected_and_one_with_a_wrong_key_is_answered() {
    let server = start_with(ServerConfig::default(), ConnectionLimits::default()).await;
    let mut flood = server.http2(&[(INITIAL_WINDOW, 0)]).await;
    for _ in 0..64 {
        let bytes = flood.request("GET", "/v1/templates", "ns_live_nobody", None);
        if flood.stream.write_all(&bytes).await.is_err() {
            break;
        }
    }
    flood.closed().await;
    // As many at once from a client that takes its answers.
    let mut mistaken = server.http2(&[]).await;
    let mut bytes = Vec::new();
    for _ in 0..64 {
        bytes.extend(mistaken.request("GET", "/v1/templates", "ns_live_nobody", None));
    }
    mistaken.send(&bytes).await;
    let mut answered = 0;
    while answered < 64 {
        let frame = mistaken.next().await.expect("the connection goes on");
        answered += usize::from(frame.kind == DATA && frame.flags & END_STREAM != 0);
    }
    // And from one whose key is good: its answers may wait.
    let mut patient = server.http2(&[(INITIAL_WINDOW, 0)]).await;
    for _ in 0..20 {
        let stream = patient.get("/v1/templates", KEY).await;
        patient.until(HEADERS, stream).await;
    }
    patient.send(&frame(PING, 0, 0, b"12345678")).await;
    patient.until(PING, 0).await;
}
