//! Local listeners.

use std::sync::atomic::Ordering;
use std::time::Duration;

use nullspace_service::LocalPorts;
use nullspace_types::{SandboxId, TenantId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::support::{Mood, SOON, World, read_head, send, status};
use crate::{EdgeLimits, LocalListeners, Locals};

fn tenant() -> TenantId {
    TenantId::new()
}

fn locals(world: &World, limits: EdgeLimits, stopping: CancellationToken) -> Locals {
    let listeners = LocalListeners::new(limits, stopping);
    listeners.lead_to(&world.edge);
    Locals(listeners)
}

const REQUEST: &str = "GET /x HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n";

#[tokio::test]
async fn a_listener_leads_to_its_port_alone_and_to_hosts_of_the_loopback() {
    let world = World::echoing().await;
    let stopping = CancellationToken::new();
    let locals = locals(&world, EdgeLimits::default(), stopping.clone());
    let id = world.doors.sandbox.to_string();
    let address = locals.listen(tenant(), &id, 8000).await.unwrap();
    assert_eq!(locals.listen(tenant(), &id, 8000).await.unwrap(), address);
    assert_ne!(locals.listen(tenant(), &id, 8001).await.unwrap(), address);
    assert!(address.ip().is_loopback());
    for (host, expected) in [
        (address.to_string(), "200"),
        (format!("localhost:{}", address.port()), "200"),
        ("rebound.example.com".to_owned(), "404"),
        (format!("8000-{id}.ports.example.com"), "404"),
    ] {
        let answer = send(address, REQUEST.replace("{HOST}", &host).as_bytes()).await;
        assert_eq!(status(&answer), expected, "{host}: {answer}");
    }
    let answer = send(address, REQUEST.replace("{HOST}", "localhost").replace("/x", "/p/x/80/").as_bytes()).await;
    assert!(answer.contains("GET /p/x/80/\n"), "{answer}");
    stopping.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_listener_and_what_is_on_it_close_when_its_sandbox_is_over() {
    let silent = super::support::server(|mut stream| async move {
        super::support::read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok").await;
        tokio::time::sleep(SOON).await;
    })
    .await;
    // The one is looked at soon after a refusal, the other now and then.
    for check in [Duration::from_secs(600), Duration::from_millis(200)] {
        let limits = EdgeLimits { listener_check: check, ..EdgeLimits::default() };
        let world = World::new(Some(silent), limits.clone()).await;
        let locals = locals(&world, limits, CancellationToken::new());
        let address = locals.listen(tenant(), &world.doors.sandbox.to_string(), 8000).await.unwrap();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(REQUEST.replace("{HOST}", "localhost").as_bytes()).await.unwrap();
        assert_eq!(status(&read_head(&mut stream).await), "200");
        // A private one whose token is bad is there still.
        *world.doors.mood.lock().unwrap() = Mood::Token("good");
        let request = REQUEST.replace("{HOST}", "localhost");
        for _ in 0..50 {
            assert_eq!(status(&send(address, request.as_bytes()).await), "404");
        }
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert!(world.doors.looks.load(Ordering::SeqCst) < 10, "many refusals cause few looks");
        assert!(TcpStream::connect(address).await.is_ok());
        world.doors.ended.store(true, Ordering::SeqCst);
        if check > Duration::from_secs(1) {
            assert_eq!(status(&send(address, request.as_bytes()).await), "404");
        }
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "its requests end");
        assert!(TcpStream::connect(address).await.is_err());
        assert!(locals.0.lock().is_empty());
    }
}

#[tokio::test]
async fn pages_of_elsewhere_only_read() {
    let world = World::echoing().await;
    let locals = locals(&world, EdgeLimits::default(), CancellationToken::new());
    let address = locals.listen(tenant(), &world.doors.sandbox.to_string(), 8000).await.unwrap();
    let own = format!("Origin: http://{address}\r\n");
    let socket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for (method, more, expected) in [
        ("GET", "Origin: https://evil.com\r\n".to_owned(), "200"),
        ("POST", "Origin: https://evil.com\r\n".to_owned(), "403"),
        ("POST", "Origin: null\r\n".to_owned(), "403"),
        ("POST", format!("Origin: http://127.0.0.1:{}\r\n", address.port() ^ 1), "403"),
        ("DELETE", "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\n".to_owned(), "403"),
        (
            "POST",
            "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n".to_owned(),
            "403",
        ),
        ("OPTIONS", "Origin: https://evil.com\r\n".to_owned(), "403"),
        ("POST", own.clone(), "200"),
        ("POST", String::new(), "200"),
        ("GET", format!("Origin: https://evil.com\r\n{socket}"), "403"),
        // The server there answers with no agreement.
        ("GET", format!("{own}{socket}"), "200"),
        ("GET", socket.to_owned(), "200"),
    ] {
        let request = format!(
            "{method} / HTTP/1.1\r\nHost: {address}\r\n{more}\r\nGET / HTTP/1.1\r\nHost: end\r\nConnection: close\r\n\r\n"
        );
        let answer = send(address, request.as_bytes()).await;
        assert_eq!(status(&answer), expected, "{method} {more}: {answer}");
    }
}

#[tokio::test]
async fn a_request_that_asks_for_another_protocol_hides_none() {
    let world = World::echoing().await;
    let locals = locals(&world, EdgeLimits::default(), CancellationToken::new());
    let address = locals.listen(tenant(), &world.doors.sandbox.to_string(), 8000).await.unwrap();
    let smuggled =
        "POST /two HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    for first in [
        "POST /one HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nok",
        "GET /one HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\n\r\n",
    ] {
        let answer = send(address, format!("{first}{smuggled}").as_bytes()).await;
        let statuses: Vec<_> = answer.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(statuses, ["200", "400"], "{answer}");
        assert!(!answer.contains("/two"), "{answer}");
    }
    let connect = format!("CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n{smuggled}");
    let answer = send(address, connect.as_bytes()).await;
    assert!(status(&answer) == "400" && answer.matches("HTTP/1.1 ").count() == 1, "{answer}");
}

#[tokio::test]
async fn listeners_are_few_and_close_when_they_are_not_used() {
    let world = World::echoing().await;
    let limits = EdgeLimits {
        listeners: 3,
        listeners_per_sandbox: 2,
        listener_idle: Duration::from_millis(200),
        ..EdgeLimits::default()
    };
    let locals = locals(&world, limits, CancellationToken::new());
    let (one, two) = (SandboxId::new().to_string(), SandboxId::new().to_string());
    locals.listen(tenant(), &one, 1).await.unwrap();
    locals.listen(tenant(), &one, 2).await.unwrap();
    assert!(locals.listen(tenant(), &one, 3).await.is_err());
    let address = locals.listen(tenant(), &two, 1).await.unwrap();
    assert!(locals.listen(tenant(), &two, 2).await.is_err());
    assert!(locals.listen(tenant(), "no id", 2).await.is_err());
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(TcpStream::connect(address).await.is_err());
    assert!(locals.listen(tenant(), &one, 3).await.is_ok());
}

#[tokio::test]
async fn a_tenant_leaves_listeners_to_others() {
    let world = World::echoing().await;
    let limits = EdgeLimits { listeners_per_tenant: 2, ..EdgeLimits::default() };
    let locals = locals(&world, limits, CancellationToken::new());
    let (one, other) = (tenant(), tenant());
    for _ in 0..2 {
        locals.listen(one, &SandboxId::new().to_string(), 80).await.unwrap();
    }
    let error = locals.listen(one, &SandboxId::new().to_string(), 80).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::QuotaExceeded);
    assert!(error.to_string().contains("2 of your sandboxes' ports"), "{error}");
    locals.listen(other, &SandboxId::new().to_string(), 80).await.unwrap();
}
