//! Real connections: limits of time and number, and an orderly end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nullspace_api::{ErrorResponse, TemplateBuildLogKind};
use nullspace_server::{ConnectionLimits, ServerConfig, serve_with_limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Fake, KEY};

const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    pub(crate) fake: Arc<Fake>,
    pub(crate) address: SocketAddr,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<io::Result<()>>,
}

async fn start(limits: ConnectionLimits) -> Server {
    start_with(ServerConfig::default(), limits).await
}

pub(crate) async fn start_with(config: ServerConfig, limits: ConnectionLimits) -> Server {
    let fake = Fake::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let serving = serve_with_limits(listener, fake.router(config), limits, shutdown.clone().cancelled_owned());
    let task = tokio::spawn(serving);
    Server { fake, address, shutdown, task }
}

impl Server {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn raw(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }
}

/// All that comes until the peer closes. The limits of these tests are a tenth of a second, or none that would close it.
pub(crate) async fn rest(mut stream: TcpStream) -> String {
    let mut text = String::new();
    let read = tokio::time::timeout(SOON, stream.read_to_string(&mut text)).await;
    read.expect("the connection is still open").unwrap();
    text
}

pub(crate) fn client() -> reqwest::Client {
    // The client wants one even for plain HTTP; a second installation is refused, which is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

#[tokio::test]
async fn a_body_beyond_the_default_limit_gets_its_answer_even_while_it_is_being_sent() {
    let server = start(ConnectionLimits::default()).await;
    for key in [KEY, "ns_live_wrong"] {
        let response = client()
            .post(server.url("/v1/templates/builds"))
            .bearer_auth(key)
            .header("content-type", "application/json")
            .body(vec![b' '; (16 << 20) + 1])
            .send()
            .await
            .unwrap();
        assert_eq!(response.status().as_u16(), if key == KEY { 413 } else { 401 });
        response.json::<ErrorResponse>().await.unwrap();
    }
    // One byte less is read and only then found to be no definition.
    let response = client()
        .post(server.url("/v1/templates/builds"))
        .bearer_auth(KEY)
        .header("content-type", "application/json")
        .body(vec![b' '; 16 << 20])
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 400);
}

#[tokio::test]
async fn a_client_that_asks_first_is_not_told_to_send_what_will_be_refused() {
    let server = start(ConnectionLimits::default()).await;
    let head = format!(
        "POST /v1/templates/builds HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n\
         content-length: 100000000\r\nexpect: 100-continue\r\n\r\n"
    );
    let text = rest(server.raw(&head).await).await;
    assert!(text.starts_with("HTTP/1.1 413 Payload Too Large\r\n"), "{text}");
}

#[tokio::test]
async fn a_head_that_does_not_come_closes_the_connection() {
    let limits = ConnectionLimits { header_timeout: Duration::from_millis(100), ..ConnectionLimits::default() };
    let server = start(limits).await;
    rest(server.raw("GET /healthz HTTP/1.1\r\nhost: x\r\nx-slow: ").await).await;
    rest(server.raw("").await).await;
    // And so does idling between requests.
    let text = rest(server.raw("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await).await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408() {
    let config = ServerConfig { body_timeout: Duration::from_millis(100), ..ServerConfig::default() };
    let server = start_with(config, ConnectionLimits::default()).await;
    let head = format!(
        "POST /v1/templates/builds HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n\
         content-length: 100\r\nconnection: close\r\n\r\n{{"
    );
    let text = rest(server.raw(&head).await).await;
    assert!(text.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{text}");
    assert!(text.contains("\"code\":\"invalid_request\""), "{text}");
}

#[tokio::test]
async fn a_shutdown_lets_running_requests_end_and_takes_no_new_ones() {
    const GRACE: Duration = Duration::from_secs(120);
    let server = start(ConnectionLimits { shutdown_grace: GRACE, ..ConnectionLimits::default() }).await;
    server.fake.push(TemplateBuildLogKind::Start, "x");
    let exec = client().post(server.url("/v1/sandboxes/sb_1/exec")).bearer_auth(KEY);
    let running = tokio::spawn(exec.json(&serde_json::json!({"command": "sleep"})).send());
    let logs = client().get(server.url("/v1/templates/builds/tb_1/logs?follow=true")).bearer_auth(KEY).send();
    let logs = logs.await.unwrap();
    let mut idle = server.raw("GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    idle.read_exact(&mut [0; 12]).await.unwrap();
    let until = Instant::now() + SOON;
    while !server.fake.last_call().contains("sleep") && server.fake.calls.lock().unwrap().len() < 2 {
        assert!(Instant::now() < until, "the command does not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let asked = Instant::now();
    server.shutdown.cancel();
    let response = running.await.unwrap().unwrap();
    assert_eq!(response.json::<serde_json::Value>().await.unwrap()["stdout"], "slept");
    assert!(logs.text().await.unwrap().starts_with("id: 0\n"), "the stream ended cleanly");
    rest(idle).await;
    server.task.await.unwrap().unwrap();
    assert!(asked.elapsed() < GRACE, "{:?}", asked.elapsed());
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test]
async fn a_request_that_does_not_end_is_dropped_when_the_grace_is_over() {
    let limits = ConnectionLimits { shutdown_grace: Duration::from_millis(100), ..ConnectionLimits::default() };
    let server = start(limits).await;
    let exec = client().post(server.url("/v1/sandboxes/sb_1/exec")).bearer_auth(KEY);
    let hanging = tokio::spawn(exec.json(&serde_json::json!({"command": "hang"})).send());
    let until = Instant::now() + SOON;
    while server.fake.calls.lock().unwrap().is_empty() {
        assert!(Instant::now() < until, "the command does not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.shutdown.cancel();
    tokio::time::timeout(SOON, server.task).await.unwrap().unwrap().unwrap();
    assert!(hanging.await.unwrap().is_err());
}
