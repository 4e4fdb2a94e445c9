//! Visitors of one tenant's sandboxes leave room for those of others.

use std::time::Duration;

use nullspace_service::LocalPorts;
use nullspace_types::{SandboxId, TenantId};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::support::{SOON, World, header, read_head, send, server, status};
use crate::{EdgeLimits, LocalListeners, Locals};

/// A server that answers `/quick` at once, and anything else with the head of a response whose body does not come.
async fn quick_or_silent() -> std::net::SocketAddr {
    server(|mut stream| async move {
        let head = read_head(&mut stream).await;
        if head.starts_with("GET /quick ") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok").await;
            return;
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n").await;
        tokio::time::sleep(10 * SOON).await;
    })
    .await
}

/// A request whose response has begun and does not end.
async fn visit(world: &World, sandbox: SandboxId) -> TcpStream {
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let request = format!("GET /p/{sandbox}/8000/ HTTP/1.1\r\nHost: api\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    assert_eq!(status(&read_head(&mut stream).await), "200");
    stream
}

#[tokio::test]
async fn visitors_of_a_tenants_sandboxes_are_counted_together() {
    let limits = EdgeLimits { per_tenant: 3, ..EdgeLimits::default() };
    let world = World::new(Some(quick_or_silent().await), limits).await;
    let (one, second, others) = (world.doors.sandbox, world.doors.second, world.doors.others);
    let quick = |sandbox: SandboxId| format!("/p/{sandbox}/8000/quick");
    let mut visitors = vec![visit(&world, one).await, visit(&world, second).await, visit(&world, second).await];
    for sandbox in [one, second] {
        let answer = world.get(&quick(sandbox), "").await;
        assert_eq!((status(&answer), header(&answer, "retry-after")), ("503", Some("1")), "{answer}");
        assert!(answer.contains("too_many_connections") && answer.contains("of this tenant"), "{answer}");
    }
    assert_eq!(status(&world.get(&quick(others), "").await), "200");
    visitors.pop();
    let free = async {
        while status(&world.get(&quick(one), "").await) != "200" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, free).await.expect("the place is not given back");
    drop(visitors);
}

#[tokio::test]
async fn connections_to_a_tenants_listeners_leave_some_to_others() {
    let limits = EdgeLimits { local_connections: 3, local_connections_per_tenant: 2, ..EdgeLimits::default() };
    let world = World::new(Some(quick_or_silent().await), limits.clone()).await;
    let listeners = LocalListeners::new(limits, CancellationToken::new());
    listeners.lead_to(&world.edge);
    let locals = Locals(listeners);
    let (greedy, other) = (TenantId::new(), TenantId::new());
    let listen = async |tenant, sandbox: SandboxId| locals.listen(tenant, &sandbox.to_string(), 80).await.unwrap();
    let first = listen(greedy, world.doors.sandbox).await;
    let second = listen(greedy, world.doors.second).await;
    let others = listen(other, world.doors.others).await;
    let mut held = Vec::new();
    for address in [first, second] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        assert_eq!(status(&read_head(&mut stream).await), "200");
        held.push(stream);
    }
    const QUICK: &[u8] = b"GET /quick HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    // Its further ones wait, and take none of what is left.
    let waiting: Vec<_> = [first, second, first, second].map(|address| tokio::spawn(send(address, QUICK))).into();
    for _ in 0..3 {
        assert_eq!(status(&send(others, QUICK).await), "200");
    }
    assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
    drop(held);
    for waiting in waiting {
        assert_eq!(status(&waiting.await.unwrap()), "200");
    }
}
