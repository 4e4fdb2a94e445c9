//! WebSockets through the edge.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use super::support::{SOON, World, server, status};
use crate::EdgeLimits;

async fn echo() -> std::net::SocketAddr {
    server(|stream| async move {
        let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                break;
            }
        }
    })
    .await
}

async fn connect(world: &World) -> tokio_tungstenite::WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(world.address).await.unwrap();
    let url = format!("ws://api{}/socket", world.prefix());
    let (socket, response) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    assert_eq!(response.status(), 101);
    socket
}

#[tokio::test]
async fn messages_come_back() {
    let world = World::new(Some(echo().await), EdgeLimits::default()).await;
    let mut socket = connect(&world).await;
    for size in [0, 1, 1000, 300_000] {
        let message = Message::binary(vec![b'x'; size]);
        socket.send(message.clone()).await.unwrap();
        let answer = tokio::time::timeout(SOON, socket.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(answer, message);
    }
    socket.close(None).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    assert!(world.doors.counts.from_client.load(std::sync::atomic::Ordering::Relaxed) > 300_000);
}

#[tokio::test]
async fn sockets_end_with_their_token_with_quiet_and_with_the_service() {
    for (idle, end) in [(600, "token"), (600, "service"), (0, "quiet")] {
        let idle = if idle == 0 { Duration::from_millis(300) } else { Duration::from_secs(idle) };
        let world = World::new(Some(echo().await), EdgeLimits { idle, ..EdgeLimits::default() }).await;
        let mut socket = connect(&world).await;
        match end {
            "token" => world.doors.over.lock().unwrap().cancel(),
            "service" => world.stopping.cancel(),
            _ => {}
        }
        let next = tokio::time::timeout(Duration::from_secs(5), socket.next()).await.expect(end);
        assert!(!matches!(next, Some(Ok(_))), "{end}");
    }
}

#[tokio::test]
async fn more_sockets_than_allowed_are_refused_and_a_refusal_of_the_server_passes() {
    let world = World::new(Some(echo().await), EdgeLimits { sockets_per_sandbox: 1, ..EdgeLimits::default() }).await;
    let _first = connect(&world).await;
    let asks = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let request = format!("GET {}/ HTTP/1.1\r\nHost: api\r\n{asks}\r\n", world.prefix());
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
    let head = super::support::read_head(&mut stream).await;
    assert_eq!(status(&head), "503");

    let world = World::echoing().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let request = format!("GET {}/ HTTP/1.1\r\nHost: api\r\n{asks}\r\n", world.prefix());
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
    let head = super::support::read_head(&mut stream).await;
    assert_eq!(status(&head), "200");
}
