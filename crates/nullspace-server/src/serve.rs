//! Listening and serving, within limits, until the shutdown.
//!
//! ```text
//!   accept ──> a place (`connections`) ──> one task a connection ──> HTTP/1.1, screened ─┬─> router
//!                                                               └──> HTTP/2             └─> edge: ports of sandboxes
//!   shutdown: stop accepting ──> event streams end, running requests finish ──> grace over: the rest is dropped
//! ```
//! A connection speaks HTTP/2 if it begins with that protocol's first bytes (prior knowledge, as a proxy has it for gRPC).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Response, StatusCode, Uri};
use axum::{Extension, Router};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nullspace_edge::{Edge, Hold, Screened, Visit};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admit::Known;
use crate::config::ConnectionLimits;
use crate::connections::{Connections, Seat};
use crate::held::{Held, Shared};
use crate::http2;

/// Pause after the kernel failed to accept a connection (for example without file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Time limit of the first request on a connection of the reserve.
const RESERVE_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for the last bytes to a client whose connection is closed.
const FAREWELL: Duration = Duration::from_millis(500);

/// Most headers of a request.
const MAX_HEADERS: usize = 129;

/// The first bytes of HTTP/2.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Where requests go.
#[derive(Clone)]
pub(crate) struct Ways {
    router: TowerToHyperService<Router>,
    edge: Option<Arc<Edge>>,
    stopping: CancellationToken,
}

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
    serve_with_edge(listener, router, None, limits, shutdown).await
}

/// As [`serve_with_limits`]. Requests that the edge claims go there, and never to the router.
///
/// # Errors
/// When the listener has failed.
pub async fn serve_with_edge(
    listener: TcpListener,
    router: Router,
    edge: Option<Arc<Edge>>,
    limits: ConnectionLimits,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let stopping = CancellationToken::new();
    let router = TowerToHyperService::new(router.layer(Extension(Stopping(stopping.clone()))));
    let ways = Ways { router, edge, stopping: stopping.clone() };
    let mut connections = JoinSet::new();
    let accepted = tokio::select! {
        () = shutdown => Ok(()),
        Err(error) = accept(&listener, &ways, &limits, &mut connections) => Err(error),
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
    ways: &Ways,
    limits: &ConnectionLimits,
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
        if let Err(error) = nullspace_edge::prepare(&stream, limits.stalled_peer_timeout) {
            // The peer is gone already.
            tracing::debug!(%error, "prepare a connection");
            continue;
        }
        let proxied = ways.edge.as_ref().is_some_and(|edge| edge.is_proxy(peer.ip()));
        let Some(seat) = connections.enter(peer.ip(), proxied) else {
            tracing::debug!(%peer, "all connections are in use, the reserve's too: one is closed unheard");
            continue;
        };
        tasks.spawn(connection(stream, peer, seat, ways.clone(), limits.clone()));
    }
}

/// The connection of a request.
pub(crate) struct Arrival {
    pub(crate) peer: SocketAddr,
    pub(crate) seat: Seat,
    /// Closes the connection, when no other requests can be on it.
    pub(crate) cut: Option<CancellationToken>,
    /// With HTTP/2: kept until the request is over.
    pub(crate) under_way: Option<UnderWay>,
}

/// A request among others on its connection.
pub(crate) struct UnderWay {
    /// Its clones are counted.
    pub(crate) count: Arc<Shared>,
    /// Time for which the client may take nothing of the answer.
    pub(crate) patience: Duration,
}

impl Ways {
    /// Cancelled when the service stops.
    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Answers a request.
    pub(crate) async fn answer(&self, mut request: Request<Incoming>, arrival: Arrival) -> Response<Body> {
        let Arrival { peer, seat, cut, under_way } = arrival;
        if let Some(edge) = self.edge.as_ref().filter(|edge| edge.claims(&request)) {
            if seat.reserved().is_none() {
                // The edge watches its answers itself.
                let under_way = under_way.map(|under_way| under_way.count);
                let hold = move || seat.visits().map(|busy| Box::new((busy, under_way)) as Hold);
                let visit = Visit { peer: peer.ip(), hold: Box::new(hold), stopping: self.stopping.clone(), cut };
                return edge.answer(request, visit).await.map(Body::new);
            }
            // The reserve is not for ports. The router says so of every path but the operators', so it gets a path that is none.
            *request.uri_mut() = Uri::from_static("/p");
        }
        // Not layers of the router: those would be built anew for every connection.
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(seat);
        let response = self.router.call(request).await.unwrap_or_else(|never: Infallible| match never {});
        match under_way {
            Some(UnderWay { count, patience }) => {
                let known = response.extensions().get::<Known>().is_some();
                response.map(|body| Body::new(Held::new(body, count, patience, known)))
            }
            None => response,
        }
    }
}

/// Reads the first bytes of a connection, until they are or are not those of HTTP/2.
async fn opening(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut read = Vec::with_capacity(PREFACE.len());
    while PREFACE.starts_with(&read) && read.len() < PREFACE.len() {
        let left = PREFACE.len() - read.len();
        if (&mut *stream).take(u64::try_from(left).unwrap_or(0)).read_buf(&mut read).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(read)
}

async fn connection(mut stream: TcpStream, peer: SocketAddr, seat: Seat, ways: Ways, limits: ConnectionLimits) {
    let reserved = seat.reserved().is_some();
    let header_timeout = if reserved { limits.header_timeout.min(RESERVE_TIMEOUT) } else { limits.header_timeout };
    let read = tokio::select! {
        read = tokio::time::timeout(header_timeout, opening(&mut stream)) => read,
        () = seat.closed() => return,
        () = ways.stopping.cancelled() => return,
    };
    let Ok(Ok(read)) = read else { return };
    if read == PREFACE {
        // The reserve's requests are few and short: it needs no second protocol.
        if !reserved {
            http2::connection(Screened::after(read, stream, false), peer, seat, ways, limits).await;
        }
        return;
    }
    let stopping = ways.stopping.clone();
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).max_buf_size(limits.buffer.max(8192)).keep_alive(!reserved);
    builder.header_read_timeout(header_timeout).max_headers(MAX_HEADERS);
    let screened = Screened::after(read, stream, true);
    let (opener, cut, taken) = (screened.opener(), CancellationToken::new(), seat.clone());
    let cutting = cut.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (ways, opener) = (ways.clone(), opener.clone());
        let arrival = Arrival { peer, seat: taken.clone(), cut: Some(cutting.clone()), under_way: None };
        async move {
            let response = ways.answer(request, arrival).await;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                opener.open();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = builder.serve_connection(TokioIo::new(screened), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = seat.closed() => return,
        () = cut.cancelled() => last_words(connection.as_mut()).await,
        () = stopping.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = cut.cancelled() => last_words(connection.as_mut()).await,
            }
        }
    };
    if let Err(error) = ended {
        // Clients go away, and send what is no HTTP; neither is a fault of ours.
        tracing::debug!(%error, "connection ended early");
    }
}

/// Lets a connection that is to be closed send what its client takes at once.
async fn last_words(connection: impl Future<Output = hyper::Result<()>>) -> hyper::Result<()> {
    tokio::time::timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
}
