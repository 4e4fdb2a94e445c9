//! Connections to ports, over pauses, snapshots and ends of their sandbox.

use std::io::ErrorKind;

use nullspace_service::{LivePorts, PortStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fake::CLOSED_PORT;
use super::*;

/// Sends bytes to a port that sends them back.
async fn echo(stream: &mut PortStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    let mut back = vec![0; bytes.len()];
    tokio::time::timeout(20 * SECOND, stream.read_exact(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, bytes);
}

/// Waits until a read fails.
async fn broken(stream: &mut PortStream) -> ErrorKind {
    let read = tokio::time::timeout(20 * SECOND, stream.read(&mut [0; 8])).await.unwrap();
    read.unwrap_err().kind()
}

#[tokio::test]
async fn a_connection_counts_as_use_until_it_is_closed() {
    let host = Host::start(true).await;
    let mut stream = host.live().dial(80).await.unwrap();
    echo(&mut stream, b"hello").await;
    assert_eq!(host.live().activity.idle_since(), None);
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    assert!(stream.write_all(b"more").await.is_err(), "its direction is over");
    drop(stream);
    assert!(host.live().activity.idle_since().is_some());
    for (port, code) in [(0, ErrorResponseCode::InvalidRequest), (CLOSED_PORT, ErrorResponseCode::NotFound)] {
        let refused = host.live().dial(port).await.map(drop).unwrap_err();
        assert_eq!(refused.code, code, "{refused:?}");
    }
}

#[tokio::test]
async fn a_snapshot_does_not_wait_for_connections_and_they_go_on() {
    let host = Host::start(true).await;
    let mut stream = host.live().dial(80).await.unwrap();
    echo(&mut stream, b"before").await;
    capture::snapshot(&host.actors, host.id, Vec::new()).await.unwrap();
    echo(&mut stream, b"after").await;
    // With an older agent its session ends, and each connection with it.
    let host = Host::start(false).await;
    let mut stream = host.live().dial(80).await.unwrap();
    capture::snapshot(&host.actors, host.id, Vec::new()).await.unwrap();
    assert_eq!(broken(&mut stream).await, ErrorKind::ConnectionAborted);
    echo(&mut host.live().dial(80).await.unwrap(), b"anew").await;
}

#[tokio::test]
async fn a_pause_closes_connections_at_its_beginning() {
    let host = Host::start(true).await;
    let mut stream = host.live().dial(80).await.unwrap();
    let reading = tokio::spawn(async move { (broken(&mut stream).await, stream.write_all(b"x").await.is_err()) });
    tokio::time::sleep(SECOND / 10).await;
    let frozen = capture::freeze(&host.actors, host.id, None).await.unwrap();
    assert!(frozen.captured().frozen < SECOND, "nothing was waited for");
    assert_eq!(reading.await.unwrap(), (ErrorKind::ConnectionAborted, true));
    let refused = host.live().dial(80).await.map(drop).unwrap_err();
    assert_eq!(refused.code, ErrorResponseCode::TransitionInProgress, "{refused:?}");
    // A sandbox that goes on all the same takes new ones.
    Box::new(frozen).go_on(false).await.unwrap();
    echo(&mut host.live().dial(80).await.unwrap(), b"anew").await;
}

#[tokio::test]
async fn both_directions_hear_of_the_end_of_the_sandbox_in_different_tasks() {
    let host = Host::start(true).await;
    let (mut reads, mut writes) = tokio::io::split(host.live().dial(80).await.unwrap());
    let reading = tokio::spawn(async move { reads.read_to_end(&mut Vec::new()).await.unwrap_err().kind() });
    // Nobody gives credit back for what is not read: the writer waits at last.
    let writing = tokio::spawn(async move {
        loop {
            if let Err(error) = writes.write_all(&[0; 1000]).await {
                return error.kind();
            }
            tokio::time::sleep(SECOND / 1000).await;
        }
    });
    tokio::time::sleep(SECOND / 5).await;
    host.actors.end(host.id).await;
    let both = async { (reading.await.unwrap(), writing.await.unwrap()) };
    let (read, wrote) = tokio::time::timeout(20 * SECOND, both).await.unwrap();
    assert_eq!(read, ErrorKind::ConnectionAborted);
    assert!(matches!(wrote, ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe), "{wrote:?}");
}
