//! Listening, within limits, until told to stop.
//!
//! ```text
//!   accept (while below max_connections) ──> one task a connection ──> router
//!   shutdown: stop accepting ──> every connection finishes its request ──> grace over: the rest is dropped
//! ```

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::config::ServerConfig;

/// How long to wait after the kernel refused to hand out a connection (out of file descriptors, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Serve `router` on `listener` until `config.shutdown` is cancelled; return when the last connection has ended.
pub async fn serve(listener: TcpListener, router: Router, config: ServerConfig) {
    let slots = Arc::new(Semaphore::new(config.max_connections));
    let mut connections = JoinSet::new();
    loop {
        let slot = tokio::select! {
            () = config.shutdown.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => match slot {
                Ok(slot) => slot,
                // Nobody closes the semaphore.
                Err(_) => break,
            },
        };
        let stream = tokio::select! {
            () = config.shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        if let Err(error) = prepare(&stream, &config) {
            // The peer is gone already.
            tracing::debug!(%error, "prepare a connection");
            continue;
        }
        let connection = connection(stream, router.clone(), config.clone());
        connections.spawn(async move {
            connection.await;
            drop(slot);
        });
        // Reap what has ended.
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(config.shutdown_grace, all).await.is_err() {
        tracing::warn!(open = connections.len(), "connections dropped at the end of the shutdown's grace");
        connections.shutdown().await;
    }
}

/// Answers are small and wanted at once; a peer that takes nothing in must not hold its connection for ever.
fn prepare(stream: &TcpStream, config: &ServerConfig) -> io::Result<()> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    let millis = u32::try_from(config.stalled_peer_timeout.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(stream, millis)?;
    Ok(())
}

async fn connection(stream: TcpStream, router: Router, config: ServerConfig) {
    let service = TowerToHyperService::new(router);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(config.header_timeout);
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = config.shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients go away, and send what is no HTTP; neither is a fault of ours.
        tracing::debug!(%error, "connection ended early");
    }
}
