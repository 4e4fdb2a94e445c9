//! Listening, within limits, until told to stop.
//!
//! ```text
//!   accept (while below max_connections) ──> one task a connection ──> router
//!   shutdown: stop accepting ──> event streams end, running requests finish ──> grace over: the rest is dropped
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::ConnectionLimits;

/// How long to wait after the kernel could not hand out a connection (out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Tells handlers that answer without end that the service is stopping.
#[derive(Clone)]
pub(crate) struct Stopping(pub(crate) CancellationToken);

/// Who is at the other end of the connection.
#[derive(Clone, Copy)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// Serve `router` on `listener` until `shutdown` is ready; return when the last connection has ended.
///
/// # Errors
/// When the listener does not work any more.
pub async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    serve_with_limits(listener, router, ConnectionLimits::default(), shutdown).await
}

/// As [`serve`], with other limits.
///
/// # Errors
/// When the listener does not work any more.
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

/// Take connections for ever.
async fn accept(
    listener: &TcpListener,
    router: &Router,
    limits: &ConnectionLimits,
    stopping: &CancellationToken,
    connections: &mut JoinSet<()>,
) -> io::Result<()> {
    let slots = Arc::new(Semaphore::new(limits.max_connections));
    loop {
        let slot = Arc::clone(&slots).acquire_owned().await.map_err(io::Error::other)?;
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
        let connection =
            connection(stream, router.clone().layer(Extension(Peer(peer))), limits.header_timeout, stopping.clone());
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
        // Forget what has ended.
        while connections.try_join_next().is_some() {}
    }
}

/// Answers are small and wanted at once; a peer that takes nothing in must not hold its connection for ever.
fn prepare(stream: &TcpStream, limits: &ConnectionLimits) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    let millis = u32::try_from(limits.stalled_peer_timeout.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(stream, millis)?;
    Ok(())
}

async fn connection(stream: TcpStream, router: Router, header_timeout: Duration, stopping: CancellationToken) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(header_timeout);
    let service = TowerToHyperService::new(router);
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
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
