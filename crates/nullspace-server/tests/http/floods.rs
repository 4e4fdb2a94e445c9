//! Floods of connections, bodies and followers: others are served, operators are answered, memory is bounded.

use std::time::{Duration, Instant};

use nullspace_api::{ErrorResponse, ErrorResponseCode, TemplateBuildLogKind};
use nullspace_server::{BufferLimits, ConnectionLimits, ServerConfig};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::connections::{Server, client, rest, start_with};
use crate::support::{KEY, MUCH, OTHER_KEY};

const SOON: Duration = Duration::from_secs(30);
const HEALTH: &str = "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

fn limits(max_connections: usize, per_peer: usize, reserve: usize) -> ConnectionLimits {
    ConnectionLimits { max_connections, per_peer, reserve, ..ConnectionLimits::default() }
}

fn buffers(per_tenant: usize, total: usize) -> ServerConfig {
    ServerConfig { buffers: BufferLimits { per_tenant, total }, ..ServerConfig::default() }
}

impl Server {
    /// A request of a tenant on a connection of its own: status, code if it is an error, and whether it says when to come back.
    async fn ask(&self, key: &str, path: &str) -> (u16, Option<ErrorResponseCode>, bool) {
        let answer = client().get(self.url(path)).bearer_auth(key).send().await.unwrap();
        let (status, retry) = (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
        (status, answer.json::<ErrorResponse>().await.ok().map(|error| error.code), retry)
    }

    async fn follow(&self, key: &str) -> TcpStream {
        let head = "GET /v1/templates/builds/tb_1/logs?follow=true HTTP/1.1\r\nhost: x\r\nauthorization: Bearer";
        self.raw(&format!("{head} {key}\r\n\r\n")).await
    }

    async fn followers(&self, count: usize) {
        let until = Instant::now() + SOON;
        while self.fake.calls.lock().unwrap().iter().filter(|call| call.starts_with("build_logs")).count() < count {
            assert!(Instant::now() < until, "the followers do not come");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What requests hold in memory, as the metrics say.
    async fn buffered(&self) -> usize {
        let page = client().get(self.url("/metrics")).send().await.unwrap().text().await.unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix("nullspace_http_buffered_bytes "));
        line.unwrap().parse().unwrap()
    }

    async fn buffered_is(&self, expected: impl Fn(usize) -> bool) {
        let until = Instant::now() + SOON;
        loop {
            let now = self.buffered().await;
            if expected(now) {
                return;
            }
            assert!(Instant::now() < until, "{now} bytes are held");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn unfinished(&self, key: &str, path: &str, sent: usize) -> TcpStream {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
             content-length: 1000000\r\n\r\n"
        );
        let mut stream = self.raw(&head).await;
        stream.write_all(&vec![b' '; sent]).await.unwrap();
        stream
    }
}

#[tokio::test]
async fn silent_connections_and_half_heads_shut_nobody_out() {
    let server = start_with(ServerConfig::default(), limits(8, 8, 2)).await;
    let mut flood = Vec::new();
    for at in 0..60 {
        flood.push(server.raw(if at % 2 == 0 { "" } else { "GET /v1/templates HTTP/1.1\r\nx-slow: " }).await);
    }
    assert_eq!(server.ask(KEY, "/v1/templates").await.0, 200);
    assert!(rest(server.raw(HEALTH).await).await.contains("\"ok\""));
    // Requests without a valid key hold nothing, either: their connections go first.
    for _ in 0..60 {
        flood.push(server.unfinished("ns_live_wrong", "/v1/templates/builds", 10).await);
    }
    assert_eq!(server.ask(KEY, "/v1/templates").await.0, 200);
}

#[tokio::test]
async fn one_tenants_followers_leave_room_for_others() {
    let config = ServerConfig { followers: 3, requests_at_once: 5, ..ServerConfig::default() };
    let server = start_with(config, ConnectionLimits::default()).await;
    server.fake.push(TemplateBuildLogKind::Start, "x");
    let mut followers = Vec::new();
    for _ in 0..3 {
        followers.push(server.follow(KEY).await);
    }
    server.followers(3).await;
    let limited = (429, Some(ErrorResponseCode::RateLimitExceeded), true);
    assert_eq!(server.ask(KEY, "/v1/templates/builds/tb_1/logs?follow=true").await, limited);
    assert_eq!(server.ask(KEY, "/v1/templates").await.0, 200);
    let unfinished =
        [server.unfinished(KEY, "/v1/sandboxes", 1).await, server.unfinished(KEY, "/v1/sandboxes", 1).await];
    server.buffered_is(|held| held >= 3 * (256 << 10) + 2).await;
    assert_eq!(server.ask(KEY, "/v1/templates").await, limited);
    assert_eq!(server.ask(OTHER_KEY, "/v1/templates").await.0, 200);
    drop((followers, unfinished));
    server.buffered_is(|held| held == 0).await;
    assert_eq!(server.ask(KEY, "/v1/templates").await.0, 200);
}

#[tokio::test]
async fn operators_are_answered_when_every_connection_is_in_use() {
    for (per_peer, expected) in [
        (100, (503, Some(ErrorResponseCode::FeatureUnavailable), true)),
        (3, (429, Some(ErrorResponseCode::RateLimitExceeded), true)),
    ] {
        let server = start_with(ServerConfig::default(), limits(3, per_peer, 4)).await;
        server.fake.push(TemplateBuildLogKind::Start, "x");
        let mut followers = vec![server.follow(KEY).await, server.follow(KEY).await];
        server.followers(2).await;
        // A WebSocket is a connection, too, although it speaks HTTP no more.
        let socket = server.socket().await;
        for path in ["/healthz", "/readyz", "/metrics"] {
            let answer = client().get(server.url(path)).send().await.unwrap();
            assert_eq!(answer.status(), 200, "{path}");
        }
        assert_eq!(server.ask(KEY, "/v1/templates").await, expected);
        // Whoever fills the reserve with silence is closed first.
        let silent = [server.raw("").await, server.raw("").await, server.raw("").await, server.raw("").await];
        assert!(rest(server.raw(HEALTH).await).await.contains("\"ok\""));
        drop((silent, followers.pop(), socket));
        let until = Instant::now() + SOON;
        while server.ask(KEY, "/v1/templates").await.0 != 200 {
            assert!(Instant::now() < until, "the connections are not given back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn bodies_that_do_not_end_are_held_within_the_tenants_bound_and_that_of_all() {
    let server = start_with(buffers(400_000, 450_000), ConnectionLimits::default()).await;
    let first = server.unfinished(KEY, "/v1/templates/builds", 200_000).await;
    server.buffered_is(|held| held >= 200_000).await;
    for (key, sent, status) in [(KEY, 300_000, 429), (OTHER_KEY, 390_000, 503)] {
        let answer = rest(server.unfinished(key, "/v1/templates/builds", sent).await).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains("\r\nretry-after: 1\r\n"),
            "{answer}"
        );
    }
    let small = client().post(server.url("/v1/templates/builds")).bearer_auth(OTHER_KEY).json(&json!({"name": "x"}));
    assert_eq!(small.send().await.unwrap().status(), 202);
    drop(first);
    server.buffered_is(|held| held == 0).await;
}

#[tokio::test]
async fn what_parsing_makes_of_a_body_is_charged_too() {
    let server = start_with(buffers(1 << 20, 1 << 20), ConnectionLimits::default()).await;
    let post = async |metadata: Value| {
        let request = client().post(server.url("/v1/sandboxes")).bearer_auth(KEY);
        request.json(&json!({ "metadata": metadata })).send().await.unwrap().status().as_u16()
    };
    assert_eq!(post(json!({"a": "x".repeat(100_000)})).await, 201);
    assert_eq!(post(json!({"a": vec![0; 50_000]})).await, 429);
    server.buffered_is(|held| held == 0).await;
}

#[tokio::test]
async fn a_long_answer_is_whole_and_charged_until_it_is_sent() {
    let server = start_with(buffers(MUCH + (64 << 10), 1 << 30), ConnectionLimits::default()).await;
    let exec = |key: &str| {
        client().post(server.url("/v1/sandboxes/sb_1/exec")).bearer_auth(key).json(&json!({"command": "much"}))
    };
    let answer: Value = exec(KEY).send().await.unwrap().json().await.unwrap();
    assert_eq!(answer, json!({"exit_code": 0, "stdout": "\0".repeat(MUCH), "stderr": "", "pid": 9}));
    server.buffered_is(|held| held == 0).await;
    // 24 MiB of JSON, of which the client has taken the head: what is to be said is still held.
    let slow = exec(KEY).send().await.unwrap();
    assert_eq!(slow.status(), 200);
    assert!(server.buffered().await >= MUCH);
    assert_eq!(exec(KEY).send().await.unwrap().status(), 429);
    drop(slow);
    server.buffered_is(|held| held == 0).await;
}

#[tokio::test]
async fn another_tenants_sandbox_is_refused_before_its_body_is_read() {
    let server = start_with(ServerConfig::default(), ConnectionLimits::default()).await;
    for (method, path) in [
        ("POST", "exec"),
        ("PUT", "file?path=x"),
        ("POST", "file?path=x"),
        ("POST", "files/read"),
        ("POST", "files/write"),
        ("POST", "files/info"),
        ("POST", "files/exists"),
        ("POST", "files/mkdir"),
        ("POST", "files/remove"),
        ("POST", "files/rename"),
        ("POST", "files/permissions"),
        ("POST", "processes/1/stdin"),
    ] {
        for kind in ["application/json", "multipart/form-data; boundary=XX"] {
            // Nothing of the body is ever sent.
            let head = format!(
                "{method} /v1/sandboxes/sb_1/{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {OTHER_KEY}\r\n\
                 content-type: {kind}\r\ncontent-length: 1000\r\n\r\n"
            );
            let answer = rest(server.raw(&head).await).await;
            assert!(answer.starts_with("HTTP/1.1 404 ") && answer.contains("sandbox_not_found"), "{path}: {answer}");
        }
    }
}

#[tokio::test]
async fn any_word_may_be_a_method_and_leaves_no_counter() {
    let server = start_with(ServerConfig::default(), ConnectionLimits::default()).await;
    for at in 0..50 {
        rest(server.raw(&format!("BREW{at} /coffee{at} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).await).await;
    }
    let page = client().get(server.url("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(page.contains("method=\"other\"") && !page.contains("BREW"), "{page}");
}
