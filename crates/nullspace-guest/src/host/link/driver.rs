//! The task that moves a session's frames over one stream.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::{AgentError, FLUSH_LIMIT, Link, Phase, lock};
use crate::frame::{self, Assembler, Decoder, HEADER_LEN, Kind, MAX_PAYLOAD, Seek};

/// A connection on which nothing was heard for so long is asked for a sign of life.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);
/// So many signs of life that did not come, one after the other, end the connection: 30 s of silence. A guest under
/// software emulation that gets a twentieth of a busy processor answers within one.
const HEARTBEAT_MISSES: u32 = 5;

/// The reason why a driver ends.
enum End {
    /// The stream is closed, or was given up for another.
    Lost,
    /// The session is over.
    Final(AgentError),
}

/// Moves frames until the session is over, or another driver has it.
pub(super) async fn drive<S>(stream: S, link: Arc<Link>, mut queue: mpsc::UnboundedReceiver<Vec<u8>>, number: u64)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let flush = Notify::new();
    let reason = tokio::select! {
        reason = read_frames(&mut from_guest, &link) => match reason {
            AgentError::Closed => End::Lost,
            error => End::Final(error),
        },
        reason = write_batches(&mut to_guest, &mut queue, &link, &flush) => reason,
        reason = heartbeat(&link) => End::Final(reason),
        () = link.told_to_leave(number) => End::Lost,
        () = async {
            link.stop.notified().await;
            flush.notify_one();
            tokio::time::sleep(FLUSH_LIMIT).await;
        } => End::Final(AgentError::Closed),
    };
    // The stream first: who hears that the connection is closed may rely on it.
    drop((from_guest, to_guest));
    let reason = match reason {
        // Another driver has the session then.
        End::Lost if link.is_halted() && link.is_rejoined(number).await => return,
        End::Lost => AgentError::Closed,
        End::Final(reason) => reason,
    };
    if !matches!(reason, AgentError::Closed) {
        tracing::debug!(%reason, "agent connection ended");
    }
    lock(&link.gate).over = true;
    link.fail(reason.clone());
    let reason = lock(&link.table).dead.clone().unwrap_or(reason);
    link.closed.send_replace(Some(reason));
}

/// Ends the connection to a guest that no longer answers: halted, frozen, or without its agent. Once the guest was heard
/// of, a HELLO is repeated whenever it has been silent for [`HEARTBEAT_EVERY`]; agents have always acknowledged that.
async fn heartbeat(link: &Link) -> AgentError {
    let mut greeted = link.greeted.subscribe();
    if greeted.wait_for(Option::is_some).await.is_err() {
        // The link is being dropped.
        return std::future::pending().await;
    }
    let mut misses = 0u32;
    loop {
        let asked = Instant::now();
        tokio::time::sleep(HEARTBEAT_EVERY).await;
        // A halted machine stands still while it is captured.
        if link.heard.swap(false, Ordering::Relaxed) || lock(&link.gate).phase == Phase::Halted {
            misses = 0;
            continue;
        }
        // When this process itself did not get to run, nothing is known of the guest.
        if asked.elapsed() > 2 * HEARTBEAT_EVERY {
            continue;
        }
        if misses >= HEARTBEAT_MISSES {
            return AgentError::Silent { secs: HEARTBEAT_EVERY.as_secs().saturating_mul(u64::from(misses) + 1) };
        }
        misses += 1;
        // Behind what a guest has not yet read, one more would be read no sooner.
        if link.queued.load(Ordering::Relaxed) == 0 {
            let mut hello = Vec::with_capacity(HEADER_LEN);
            frame::encode(link.session, 0, Kind::Hello, &[], &mut hello);
            link.send_now(hello);
        }
    }
}

async fn read_frames(from_guest: &mut (impl AsyncRead + Unpin), link: &Link) -> AgentError {
    let mut decoder = Decoder::seeking(Seek::Ack(link.session));
    let mut assembler = Assembler::default();
    let mut piece = vec![0; 2 * MAX_PAYLOAD];
    loop {
        match from_guest.read(&mut piece).await {
            Ok(0) => return AgentError::Closed,
            Ok(len) => decoder.feed(&piece[..len]),
            Err(error) => {
                tracing::debug!(%error, "agent stream failed");
                return AgentError::Closed;
            }
        }
        loop {
            let taken = match decoder.next_frame() {
                Ok(Some(frame)) => match assembler.push(frame) {
                    Ok(Some(frame)) => link.take(frame),
                    Ok(None) => Ok(()),
                    Err(error) => Err(AgentError::Protocol(error.to_string())),
                },
                Ok(None) => break,
                Err(error) => Err(AgentError::Protocol(error.to_string())),
            };
            if let Err(error) = taken {
                return error;
            }
        }
    }
}

async fn write_batches(
    to_guest: &mut (impl AsyncWrite + Unpin),
    queue: &mut mpsc::UnboundedReceiver<Vec<u8>>,
    link: &Link,
    flush: &Notify,
) -> End {
    loop {
        let mut last = false;
        let first = tokio::select! {
            biased;
            first = queue.recv() => first,
            () = flush.notified() => {
                last = true;
                queue.try_recv().ok()
            }
        };
        let mut batch = first.unwrap_or_default();
        // One write for all that waits, but no endless copy.
        while batch.len() < 4 * MAX_PAYLOAD
            && let Ok(more) = queue.try_recv()
        {
            batch.extend_from_slice(&more);
        }
        let len = batch.len();
        let written = async {
            to_guest.write_all(&batch).await?;
            to_guest.flush().await
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "agent stream failed");
            return End::Lost;
        }
        link.queued.fetch_sub(len, Ordering::Relaxed);
        if last {
            return End::Final(AgentError::Closed);
        }
    }
}
