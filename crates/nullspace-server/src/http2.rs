//! One connection with HTTP/2, within limits.
//!
//! A connection without a request under way is closed after the same time as one with HTTP/1.1. An answer that its client does not take
//! is given up ([`held`](crate::held)), and is then not under way any more.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nullspace_edge::Screened;
use tokio::net::TcpStream;

use crate::config::ConnectionLimits;
use crate::connections::Seat;
use crate::held::Shared;
use crate::serve::{Arrival, UnderWay, Ways};

/// Requests of one connection at a time.
const STREAMS: u32 = 64;

/// What a client may send of one request, and of all of a connection, before it is read: bytes in memory.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;

/// What of one response may wait for its client, bytes.
const SEND_BUFFER: usize = 64 << 10;

/// Largest head in bytes.
const HEAD: u32 = 64 << 10;

/// Requests that a client may take back before they were looked at. One more ends the connection.
const RESETS: usize = 32;

/// Requests of one connection that end by a breach of the protocol. One more ends the connection.
const BREACHES: usize = 256;

/// Time between pings, and for their answer.
const PING: Duration = Duration::from_secs(20);

/// Time for the goodbye on a connection without a request.
const GOODBYE: Duration = Duration::from_secs(1);

/// Serves a connection that has begun with HTTP/2.
pub(crate) async fn connection(
    stream: Screened<TcpStream>,
    peer: SocketAddr,
    seat: Seat,
    ways: Ways,
    limits: ConnectionLimits,
) {
    let stopping = ways.stopping().clone();
    let (under_way, begun) = (Arc::new(Shared::default()), Arc::new(AtomicU64::new(0)));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEAD)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(BREACHES)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let (taken, counter, held) = (seat.clone(), Arc::clone(&begun), Arc::clone(&under_way));
    let service = service_fn(move |request: Request<Incoming>| {
        let ways = ways.clone();
        let under_way = Some(UnderWay { count: Arc::clone(&held), patience: limits.stalled_peer_timeout });
        // Other requests are on the connection, so it is not closed for one. It is when no request is under way any more.
        let arrival = Arrival { peer, seat: taken.clone(), cut: None, under_way };
        counter.fetch_add(1, Ordering::Relaxed);
        let closed = held.cut.is_cancelled();
        async move {
            if closed {
                return Err(io::Error::from(io::ErrorKind::ConnectionAborted));
            }
            Ok(ways.answer(request, arrival).await)
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut before = 0;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = seat.closed() => return,
            () = under_way.cut.cancelled() => {
                tracing::debug!(%peer, "a connection without a key is closed: it takes no answers");
                return;
            }
            () = stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                break connection.await;
            }
            () = tokio::time::sleep(limits.header_timeout) => {
                // The service's own count is one.
                let now = begun.load(Ordering::Relaxed);
                if now == before && Arc::strong_count(&under_way) <= 2 {
                    connection.as_mut().graceful_shutdown();
                    // With no request there is nothing to wait for but the goodbye.
                    let _ = tokio::time::timeout(GOODBYE, connection).await;
                    return;
                }
                before = now;
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP/2 connection ended early");
    }
}
