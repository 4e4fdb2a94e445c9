//! Clients that take nothing: what they hold ends all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nullspace_service::LocalPorts;
use nullspace_types::TenantId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

use super::support::{SOON, Speaks, World, read_head, server};
use crate::{EdgeLimits, LocalListeners, Locals};

/// A server that sends without an end, and counts the connections that it has.
async fn endless(open: Arc<AtomicUsize>) -> std::net::SocketAddr {
    server(move |mut stream| {
        let open = Arc::clone(&open);
        async move {
            open.fetch_add(1, Ordering::SeqCst);
            read_head(&mut stream).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n").await;
            while stream.write_all(&[b'x'; 64 << 10]).await.is_ok() {}
            open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Quiet,
    Token,
    Service,
}

const ENDS: [End; 3] = [End::Quiet, End::Token, End::Service];

fn limits(end: End) -> EdgeLimits {
    let idle = if end == End::Quiet { Duration::from_millis(1500) } else { Duration::from_secs(600) };
    EdgeLimits { idle, per_sandbox: 1, sockets_per_sandbox: 1, ..EdgeLimits::default() }
}

impl World {
    fn bring(&self, end: End) {
        match end {
            End::Quiet => {}
            End::Token => self.doors.over.lock().unwrap().cancel(),
            End::Service => self.stopping.cancel(),
        }
    }
}

/// Waits until it is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let all = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(8), all).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Waits until nothing more is sent to a client that reads nothing.
async fn stalled(world: &World) {
    let mut before = u64::MAX;
    loop {
        let now = world.doors.counts.to_client.load(Ordering::Relaxed);
        if now == before && now > 0 {
            return;
        }
        before = now;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[tokio::test]
async fn a_download_that_nobody_reads_ends_with_its_connections() {
    for end in ENDS {
        let open = Arc::new(AtomicUsize::new(0));
        let world = World::new(Some(endless(Arc::clone(&open)).await), limits(end)).await;
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let request = format!("GET {}/ HTTP/1.1\r\nHost: api\r\n\r\n", world.prefix());
        stream.write_all(request.as_bytes()).await.unwrap();
        stalled(&world).await;
        assert_eq!(open.load(Ordering::SeqCst), 1);
        world.bring(end);
        until("the connection to the port ends", || open.load(Ordering::SeqCst) == 0).await;
        assert!(world.edge.is_empty(), "{end:?}: places are given back");
        // What the kernel has can be read; then the connection is closed.
        let rest = async { while stream.read(&mut [0; 64 << 10]).await.is_ok_and(|count| count > 0) {} };
        tokio::time::timeout(SOON, rest).await.expect("the connection is closed");
        assert_eq!(world.failed(), if end == End::Quiet { vec!["idle"] } else { vec![] });
    }
}

#[tokio::test]
async fn a_local_download_that_nobody_reads_ends_too() {
    let open = Arc::new(AtomicUsize::new(0));
    let world = World::new(Some(endless(Arc::clone(&open)).await), limits(End::Token)).await;
    let listeners = LocalListeners::new(limits(End::Token), CancellationToken::new());
    listeners.lead_to(&world.edge);
    let address = Locals(listeners).listen(TenantId::new(), &world.doors.sandbox.to_string(), 80).await.unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    stalled(&world).await;
    world.bring(End::Token);
    until("the connection to the port ends", || open.load(Ordering::SeqCst) == 0).await;
    assert!(world.edge.is_empty());
    let rest = async { while stream.read(&mut [0; 64 << 10]).await.is_ok_and(|count| count > 0) {} };
    tokio::time::timeout(SOON, rest).await.expect("the connection is closed");
}

#[tokio::test]
async fn an_upload_that_the_server_does_not_read_ends() {
    for end in ENDS {
        let (open, listen) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
        let (counter, listens) = (Arc::clone(&open), Arc::clone(&listen));
        let deaf = server(move |mut stream| {
            let (open, listen) = (Arc::clone(&counter), Arc::clone(&listens));
            async move {
                open.store(true, Ordering::SeqCst);
                read_head(&mut stream).await;
                // An answer whose body does not end, while the request is not read. The end of the connection is behind it.
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok").await;
                listen.notified().await;
                while stream.read(&mut [0; 64 << 10]).await.is_ok_and(|count| count > 0) {}
                open.store(false, Ordering::SeqCst);
            }
        })
        .await;
        let world = World::new(Some(deaf), limits(end)).await;
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let request = format!("POST {}/ HTTP/1.1\r\nHost: api\r\nContent-Length: 100000000000\r\n\r\n", world.prefix());
        stream.write_all(request.as_bytes()).await.unwrap();
        assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200"));
        let sending = async { while stream.write_all(&[b'x'; 64 << 10]).await.is_ok() {} };
        let _ = tokio::time::timeout(Duration::from_millis(700), sending).await;
        assert!(open.load(Ordering::SeqCst));
        world.bring(end);
        until("places are given back", || world.edge.is_empty()).await;
        listen.notify_one();
        until("the connection to the port ends", || !open.load(Ordering::SeqCst)).await;
        let sending = async { while stream.write_all(&[b'x'; 64 << 10]).await.is_ok() {} };
        tokio::time::timeout(SOON, sending).await.expect("the client's connection is closed");
    }
}

#[tokio::test]
async fn a_websocket_that_nobody_reads_ends() {
    for end in ENDS {
        let open = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&open);
        let flood = server(move |stream| {
            let open = Arc::clone(&counter);
            async move {
                let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
                open.fetch_add(1, Ordering::SeqCst);
                while socket.send(Message::binary(vec![b'x'; 64 << 10])).await.is_ok() {}
                open.fetch_sub(1, Ordering::SeqCst);
            }
        })
        .await;
        let world = World::new(Some(flood), limits(end)).await;
        let stream = TcpStream::connect(world.address).await.unwrap();
        let url = format!("ws://api{}/socket", world.prefix());
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
        stalled(&world).await;
        world.bring(end);
        until("the connection to the port ends", || open.load(Ordering::SeqCst) == 0).await;
        until("places are given back", || world.edge.is_empty()).await;
        let rest = async { while let Some(Ok(_)) = socket.next().await {} };
        tokio::time::timeout(SOON, rest).await.expect("the connection is closed");
    }
}

#[tokio::test]
async fn with_http2_a_stalled_response_ends_and_others_of_its_connection_go_on() {
    for end in [End::Quiet, End::Token] {
        let open = Arc::new(AtomicUsize::new(0));
        let server = endless(Arc::clone(&open)).await;
        let world = World::speaking(Speaks::Http2, Some(server), limits(end)).await;
        let stream = TcpStream::connect(world.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let url = format!("http://api{}/", world.prefix());
        let request = || Request::get(&url).body(Empty::<Bytes>::new()).unwrap();
        let first = sender.send_request(request()).await.unwrap();
        stalled(&world).await;
        assert_eq!(sender.send_request(request()).await.unwrap().status(), 503, "the one place is taken");
        world.bring(end);
        until("the connection to the port ends", || open.load(Ordering::SeqCst) == 0).await;
        assert!(world.edge.is_empty());
        *world.doors.over.lock().unwrap() = CancellationToken::new();
        assert_eq!(sender.send_request(request()).await.unwrap().status(), 200, "another request on the connection");
        assert!(first.into_body().collect().await.is_err(), "the first one ends with an error");
    }
}
