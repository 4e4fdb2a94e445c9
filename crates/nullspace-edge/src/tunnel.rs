//! A WebSocket after both sides have agreed: bytes both ways, in bounded memory.

use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::body::Direction;
use crate::course::Course;

/// Buffer of one direction in bytes.
const BUFFER: usize = 16 << 10;

/// Time for the second direction to end after the first.
const LINGER: Duration = Duration::from_secs(30);

/// Carries bytes both ways until both directions have ended, nothing has moved for too long, the token is over, or the service stops.
pub(crate) async fn carry(client: Upgraded, server: Upgraded, course: Course) {
    let (client_read, client_write) = tokio::io::split(TokioIo::new(client));
    let (server_read, server_write) = tokio::io::split(TokioIo::new(server));
    let up = one_way(client_read, server_write, Direction::FromClient, &course);
    let down = one_way(server_read, client_write, Direction::ToClient, &course);
    let both = async {
        tokio::pin!(up, down);
        tokio::select! {
            () = &mut up => { let _ = tokio::time::timeout(LINGER, down).await; }
            () = &mut down => { let _ = tokio::time::timeout(LINGER, up).await; }
        }
    };
    tokio::select! {
        () = both => {}
        why = course.broken() => tracing::debug!(%why, "a WebSocket was broken off"),
    }
}

/// Copies one direction to its end, and passes the end on.
async fn one_way(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    direction: Direction,
    course: &Course,
) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        course.pulse.beat();
        let bytes = u64::try_from(count).unwrap_or(u64::MAX);
        match direction {
            Direction::FromClient => course.count.bytes(bytes, 0),
            Direction::ToClient => course.count.bytes(0, bytes),
        }
        let Some(piece) = buffer.get(..count) else { break };
        if to.write_all(piece).await.is_err() || to.flush().await.is_err() {
            return;
        }
        course.pulse.beat();
    }
    let _ = to.shutdown().await;
}
