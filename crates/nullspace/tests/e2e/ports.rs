//! Servers in sandboxes, reached from outside: by path, by host name, by local listener.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::fixture::{Registry, Service, debian, until};

const DOMAIN: &str = "ports.test";

/// An HTTP server with a page, events that are sent apart, a large file, an upload that is counted, and a WebSocket that echoes short
/// messages.
const SERVER: &str = r#"
import base64, hashlib, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Set-Cookie", "app=1; Path=/; Domain=ports.test")
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        if self.path == "/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            for number in range(3):
                self.wfile.write(b"data: %d\n\n" % number)
                time.sleep(1)
            self.close_connection = True
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/there")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/large":
            self.send_response(200)
            self.send_header("Content-Length", str(20 << 20))
            self.end_headers()
            for _ in range(20):
                self.wfile.write(bytes(1 << 20))
        elif self.headers["Upgrade"]:
            proof = hashlib.sha1((self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(proof).decode())
            self.end_headers()
            self.close_connection = True
            while head := self.rfile.read(2):
                mask = self.rfile.read(4)
                body = bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.rfile.read(head[1] & 127)))
                self.wfile.write(head[:1] + bytes([len(body)]) + body)
                if head[0] & 15 == 8:
                    return
        else:
            self.answer(f"{self.path}\n{self.headers}".encode())
    def do_POST(self):
        left = int(self.headers["Content-Length"])
        read = 0
        while read < left:
            read += len(self.rfile.read(min(1 << 16, left - read)))
        self.answer(b"read %d" % read)
    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", 8000), App).serve_forever()
"#;

/// Sends a request without a body on a connection of its own, and returns what comes until it ends.
async fn raw(address: &str, host: &str, path: &str) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.expect("connect");
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("send");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        answer
    };
    tokio::time::timeout(Duration::from_secs(120), exchange).await.expect("an answer in time")
}

async fn template(api: &crate::fixture::Api, registry: &Registry) {
    let start = format!("cat > /srv.py <<'END'\n{SERVER}\nEND\nexec python3 /srv.py");
    api.ready(json!({
        "name": "web", "base_image": registry.reference("python:3"), "start_cmd": start,
        "runtime_config": {"readiness": {"kind": "tcp", "port": 8000, "timeout_secs": 120}},
    }))
    .await;
}

#[tokio::test]
async fn a_server_in_a_sandbox_is_reached_by_path_and_by_local_listener() {
    let registry = Registry::start();
    registry.push("python", "3", &debian::image()).await;
    // Guests of these tests reach the loopback, so listeners must be asked for.
    let mut service = Service::with([("NULLSPACE_LOCAL_PORTS", "true".to_owned())]).await;
    let api = service.api();
    template(&api, &registry).await;
    let sandbox = api.sandbox("web").await;
    let address = service.url().strip_prefix("http://").expect("plain HTTP").to_owned();
    let prefix = format!("/p/{}/8000", sandbox.id);

    let answer = raw(&address, "service", &format!("{prefix}/a?b=c")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("/a?b=c\n"), "{answer}");
    let seen = answer.to_ascii_lowercase();
    assert!(
        seen.contains(&format!("x-forwarded-prefix: {prefix}")) && seen.contains("x-forwarded-for: 127.0.0.1"),
        "{answer}"
    );
    assert!(answer.contains(&format!("app=1; Path={prefix}/")) && !answer.contains("Domain="), "{answer}");
    let answer = raw(&address, "service", &format!("{prefix}/moved")).await;
    assert!(answer.to_ascii_lowercase().contains(&format!("location: {prefix}/there\r\n")), "{answer}");

    // Events arrive when they are sent.
    let mut stream = TcpStream::connect(&address).await.expect("connect");
    let request = format!("GET {prefix}/events HTTP/1.1\r\nHost: service\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("send");
    let mut read = String::new();
    while !read.contains("data: 0") {
        let mut piece = [0; 4096];
        let count = stream.read(&mut piece).await.expect("read");
        assert!(count > 0, "{read}");
        read.push_str(&String::from_utf8_lossy(&piece[..count]));
    }
    assert!(!read.contains("data: 2"), "{read}");

    // Bodies both ways.
    let large = api.anonymous(reqwest::Method::GET, &format!("{prefix}/large")).send().await.expect("send");
    assert_eq!(large.bytes().await.expect("a body").len(), 20 << 20);
    let upload = api.anonymous(reqwest::Method::POST, &format!("{prefix}/up")).body(vec![b'x'; 5 << 20]);
    assert_eq!(upload.send().await.expect("send").text().await.expect("text"), format!("read {}", 5 << 20));

    // A WebSocket.
    let stream = TcpStream::connect(&address).await.expect("connect");
    let request = format!("ws://{address}{prefix}/socket").into_client_request().expect("a request");
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("a WebSocket");
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.expect("send");
        assert_eq!(socket.next().await.expect("a message").expect("a message"), Message::text(text));
    }

    // One that came with a preview URL ends when that is revoked, and the other goes on.
    let made: Value = api
        .post(
            &format!("/v1/sandboxes/{}/ports/8000/signed-preview-url", sandbox.id),
            json!({"expires_in_seconds": 600}),
        )
        .await
        .ok(200);
    let token = made["url"].as_str().and_then(|url| url.split("edge_token=").nth(1)).expect("a token");
    let stream = TcpStream::connect(&address).await.expect("connect");
    let request = format!("ws://{address}{prefix}/socket?edge_token={token}").into_client_request().expect("a request");
    let (mut signed, _) = tokio_tungstenite::client_async(request, stream).await.expect("a WebSocket");
    signed.send(Message::text("three")).await.expect("send");
    assert_eq!(signed.next().await.expect("a message").expect("a message"), Message::text("three"));
    let grant = made["grant"]["id"].as_str().expect("a grant");
    let revoked = api.delete(&format!("/v1/sandboxes/{}/preview-urls/{grant}", sandbox.id)).await;
    assert_eq!(revoked.status, 200, "{}", revoked.text());
    let ended = async { while let Some(Ok(_)) = signed.next().await {} };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the socket ends with its preview URL");
    let answer = raw(&address, "service", &format!("{prefix}/?edge_token={token}")).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    socket.send(Message::text("four")).await.expect("send");
    assert_eq!(socket.next().await.expect("a message").expect("a message"), Message::text("four"));

    // Nothing listens, no such sandbox, and the sandbox of the request alone.
    let answer = raw(&address, "service", &format!("/p/{}/8001/", sandbox.id)).await;
    assert!(answer.starts_with("HTTP/1.1 502") && answer.contains("port_not_listening"), "{answer}");
    let answer = raw(&address, "service", "/p/sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506/8000/").await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");

    // The listener.
    let host: Value = api.post(&format!("/v1/sandboxes/{}/host", sandbox.id), json!({"port": 8000})).await.ok(200);
    let host = host["host"].as_str().expect("a host").to_owned();
    assert!(host.starts_with("127.0.0.1:"), "{host}");
    assert!(raw(&host, &host, "/x").await.contains("/x\n"));
    assert!(raw(&host, "rebound.example.com", "/x").await.starts_with("HTTP/1.1 404"));

    // After the end of the sandbox there is nothing, and the socket has ended.
    sandbox.delete().await;
    assert!(raw(&address, "service", &format!("{prefix}/")).await.starts_with("HTTP/1.1 404"));
    let ended = async { while let Some(Ok(_)) = socket.next().await {} };
    tokio::time::timeout(Duration::from_secs(60), ended).await.expect("the socket ends with its sandbox");
    until("the listener closes with its sandbox", Duration::from_secs(30), async || {
        TcpStream::connect(&host).await.is_err()
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn a_server_in_a_sandbox_is_reached_by_its_host_name_and_the_api_is_not() {
    let registry = Registry::start();
    registry.push("python", "3", &debian::image()).await;
    let settings = [("NULLSPACE_PREVIEW_DOMAIN", DOMAIN.to_owned()), ("NULLSPACE_PREVIEW_SCHEME", "http".to_owned())];
    let mut service = Service::with(settings).await;
    let api = service.api();
    template(&api, &registry).await;
    let sandbox = api.sandbox("web").await;
    let address = service.url().strip_prefix("http://").expect("plain HTTP").to_owned();
    let name = format!("8000-{}.{DOMAIN}", sandbox.id);
    let host: Value = api.post(&format!("/v1/sandboxes/{}/host", sandbox.id), json!({"port": 8000})).await.ok(200);
    assert_eq!(host["host"], json!(name));
    for host in [name.clone(), format!("{name}:3000"), format!("{name}.")] {
        let answer = raw(&address, &host, "/a").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("/a\n"), "{host}: {answer}");
    }
    // Below the domain there are ports and nothing else, and the paths of ports are off.
    for (host, path) in [
        (format!("api.{DOMAIN}"), "/healthz".to_owned()),
        (format!("0-{}.{DOMAIN}", sandbox.id), "/healthz".to_owned()),
        (name.to_uppercase(), "/healthz".to_owned()),
        ("service".to_owned(), format!("/p/{}/8000/", sandbox.id)),
    ] {
        let answer = raw(&address, &host, &path).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{host}{path}: {answer}");
    }
    assert!(raw(&address, "service", "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(raw(&address, &name, "/healthz").await.contains("/healthz\n"), "the sandbox's own path");
    service.stop().await;
}
