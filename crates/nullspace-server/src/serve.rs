//! Listening and serving, within limits, until the shutdown.
//!
//! ```text
//!   accept ──> a place (`connections`) ──> one task a connection ──> router
//!   shutdown: stop accepting ──> event streams end, running requests finish ──> grace over: the rest is dropped
//! ```

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::ConnectionLimits;
use crate::connections::{Connections, Seat};

/// Pause after the kernel failed to accept a connection (for example without file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Time limit of the first request on a connection of the reserve.
const RESERVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Tells handlers of endless answers that the service is stopping.
#[derive(Clone)]
pub(crate) struct Stopping(pub(crate) CancellationToken);

/// The address of the connection's peer.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Serves `router` on `listener` until `shutdown` is ready. Returns when the last connection has ended.
///
/// # Errors
/// When the listener has failed.
pub async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    serve_with_limits(listener, router, ConnectionLimits::default(), shutdown).await
}

/// As [`serve`], with other limits.
///
/// # Errors
/// When the listener has failed.
pub async fn serve_with_limits(
    listener: TcpListener,
    router: Router,
    limits: ConnectionLimits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let stopping = CancellationToken::new();
    let router = router.layer(Extension(Stopping(stopping.clone())));
    let mut connections = JoinSet::new();
    let accepted = tokio::select! {
        () = shutdown => Ok(()),
        Err(error) = accept(&listener, &router, &limits, &stopping, &mut connections) => Err(error),
    };
    drop(listener);
    stopping.cancel();
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(limits.shutdown_grace, all).await.is_err() {
        tracing::warn!(open = connections.len(), "drop the connections that outlast the shutdown's grace");
        connections.shutdown().await;
    }
    accepted
}

/// Accepts connections until it is dropped.
async fn accept(
    listener: &TcpListener,
    router: &Router,
    limits: &ConnectionLimits,
    stopping: &CancellationToken,
    tasks: &mut JoinSet<()>,
) -> io::Result<()> {
    let connections = Connections::new(limits);
    // Those that were told to make room are gone a moment later; more than a moment's worth must not gather.
    let most = limits.max_connections.saturating_add(2 * limits.reserve).saturating_add(64);
    loop {
        while tasks.try_join_next().is_some() {}
        while tasks.len() >= most {
            tasks.join_next().await;
        }
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                return Err(error);
            }
            Err(error) => {
                // The peer gave up in the queue, or the process is out of descriptors or memory: it may get better.
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if let Err(error) = prepare(&stream, limits) {
            // The peer is gone already.
            tracing::debug!(%error, "prepare a connection");
            continue;
        }
        let Some(seat) = connections.enter(peer.ip()) else {
            tracing::debug!(%peer, "all connections are in use, the reserve's too: one is closed unheard");
            continue;
        };
        tasks.spawn(connection(stream, peer, seat, router.clone(), limits.clone(), stopping.clone()));
    }
}

/// Sets the socket's options: answers are sent at once, and a peer that reads nothing is disconnected.
fn prepare(stream: &TcpStream, limits: &ConnectionLimits) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    let millis = u32::try_from(limits.stalled_peer_timeout.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(stream, millis)?;
    Ok(())
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    seat: Seat,
    router: Router,
    limits: ConnectionLimits,
    stopping: CancellationToken,
) {
    let reserved = seat.reserved().is_some();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).max_buf_size(limits.buffer.max(8192)).keep_alive(!reserved);
    builder.header_read_timeout(if reserved {
        limits.header_timeout.min(RESERVE_TIMEOUT)
    } else {
        limits.header_timeout
    });
    let router = TowerToHyperService::new(router);
    // Not layers of the router: those would be built anew for every connection.
    let taken = seat.clone();
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(taken.clone());
        router.call(request)
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = seat.closed() => return,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients go away, and send what is no HTTP; neither is a fault of ours.
        tracing::debug!(%error, "connection ended early");
    }
}
