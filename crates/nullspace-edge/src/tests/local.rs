//! Local listeners.

use std::time::Duration;

use nullspace_service::LocalPorts;
use nullspace_types::SandboxId;
use tokio_util::sync::CancellationToken;

use super::support::{World, send, status};
use crate::{EdgeLimits, LocalListeners, Locals};

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
    let address = locals.listen(&id, 8000).await.unwrap();
    assert_eq!(locals.listen(&id, 8000).await.unwrap(), address);
    assert_ne!(locals.listen(&id, 8001).await.unwrap(), address);
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
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_listener_closes_when_its_sandbox_is_over() {
    let world = World::echoing().await;
    let locals = locals(&world, EdgeLimits::default(), CancellationToken::new());
    let address = locals.listen(&world.doors.sandbox.to_string(), 8000).await.unwrap();
    let request = REQUEST.replace("{HOST}", "localhost");
    assert_eq!(status(&send(address, request.as_bytes()).await), "200");
    // Neither a bad token nor a name of elsewhere closes it.
    assert_eq!(status(&send(address, request.replace("/x", "/?edge_token=bad").as_bytes()).await), "404");
    assert_eq!(status(&send(address, request.replace("localhost", "evil").as_bytes()).await), "404");
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(status(&send(address, request.as_bytes()).await), "200");
    // No tokenless request is let in any more.
    *world.doors.mood.lock().unwrap() = super::support::Mood::Token("none");
    assert_eq!(status(&send(address, request.as_bytes()).await), "404");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
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
    locals.listen(&one, 1).await.unwrap();
    locals.listen(&one, 2).await.unwrap();
    assert!(locals.listen(&one, 3).await.is_err());
    let address = locals.listen(&two, 1).await.unwrap();
    assert!(locals.listen(&two, 2).await.is_err());
    assert!(locals.listen("no id", 2).await.is_err());
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    assert!(locals.listen(&one, 3).await.is_ok());
}
