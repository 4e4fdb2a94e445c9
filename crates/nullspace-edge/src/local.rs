//! Listeners on 127.0.0.1, each for one port of one sandbox, for services without a domain.
//!
//! ```text
//!   get_host ──> listen(sandbox, port) ──> 127.0.0.1:41234      one for each port of a sandbox, with limits
//!   http://127.0.0.1:41234/ ──> edge ──> the port               closed with its sandbox, or when unused for minutes
//! ```
//! Everybody on this machine reaches them, so they are as open as the machine is. A port that is not public needs its token here too.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nullspace_service::LocalPorts;
use nullspace_types::SandboxId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pool::Key;
use crate::proxy::{Edge, Shows, Visit};
use crate::screen::Screened;
use crate::settings::EdgeLimits;

/// Time limit of a request's head, and of an unused connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// Time for the last answer of a listener whose sandbox is over.
const FAREWELL: Duration = Duration::from_millis(500);

/// Pause after the kernel failed to accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The local listeners of a service.
#[derive(Debug)]
pub struct LocalListeners {
    limits: EdgeLimits,
    stopping: CancellationToken,
    /// The service has these listeners, and the edge has the service: one of them must not keep the others.
    edge: OnceLock<Weak<Edge>>,
    open: Mutex<HashMap<Key, SocketAddr>>,
}

impl LocalListeners {
    /// No listeners yet. All of them close when `stopping` is cancelled.
    pub fn new(limits: EdgeLimits, stopping: CancellationToken) -> Arc<Self> {
        Arc::new(Self { limits, stopping, edge: OnceLock::new(), open: Mutex::default() })
    }

    /// Says where the requests go. Until then, and once the edge is gone, no listener is opened. A second call changes nothing.
    pub fn lead_to(&self, edge: &Arc<Edge>) {
        let _ = self.edge.set(Arc::downgrade(edge));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, SocketAddr>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listener in the list, until its task ends.
struct Listed {
    listeners: Arc<LocalListeners>,
    key: Key,
    address: SocketAddr,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut open = self.listeners.lock();
        if open.get(&self.key) == Some(&self.address) {
            open.remove(&self.key);
        }
    }
}

/// [`LocalListeners`], as the service asks for them.
#[derive(Debug, Clone)]
pub struct Locals(pub Arc<LocalListeners>);

#[async_trait]
impl LocalPorts for Locals {
    async fn listen(&self, sandbox: &str, port: u16) -> io::Result<SocketAddr> {
        let listeners = &self.0;
        let sandbox: SandboxId = sandbox.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let edge = listeners.edge.get().and_then(Weak::upgrade);
        let edge = edge.ok_or_else(|| io::Error::other("the service is starting or stopping"))?;
        let key = (sandbox, port);
        if let Some(address) = listeners.lock().get(&key) {
            return Ok(*address);
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        {
            let mut open = listeners.lock();
            // Another call may have been quicker.
            if let Some(address) = open.get(&key) {
                return Ok(*address);
            }
            let own = open.keys().filter(|(other, _)| *other == sandbox).count();
            if own >= listeners.limits.listeners_per_sandbox || open.len() >= listeners.limits.listeners {
                let message =
                    "too many local addresses of ports are open; those that are not used are closed after minutes";
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, message));
            }
            open.insert(key, address);
        }
        let listed = Listed { listeners: Arc::clone(listeners), key, address };
        tokio::spawn(serve(listener, listed, edge));
        Ok(address)
    }
}

/// Serves one listener until it is unused for too long, its sandbox is over, or the service stops.
async fn serve(listener: TcpListener, listed: Listed, edge: Arc<Edge>) {
    let (limits, stopping) = (&listed.listeners.limits, &listed.listeners.stopping);
    let places = Arc::new(Semaphore::new(limits.connections_per_listener));
    let open = Arc::new(AtomicUsize::new(0));
    let over = stopping.child_token();
    let was_open = Arc::new(AtomicBool::new(false));
    let mut used = Instant::now();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tokio::time::sleep_until(used + limits.listener_idle) => {
                if open.load(Ordering::Acquire) == 0 {
                    return;
                }
                used = Instant::now();
                continue;
            }
            () = over.cancelled() => return,
        };
        used = Instant::now();
        match accepted {
            Ok((stream, peer)) => {
                open.fetch_add(1, Ordering::AcqRel);
                let connection =
                    connection(stream, peer, listed.key, Arc::clone(&edge), over.clone(), Arc::clone(&was_open));
                let open = Arc::clone(&open);
                tokio::spawn(async move {
                    connection.await;
                    open.fetch_sub(1, Ordering::AcqRel);
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept a local connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    key: Key,
    edge: Arc<Edge>,
    over: CancellationToken,
    was_open: Arc<AtomicBool>,
) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let limits = &edge.settings().limits;
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.max_buf_size(limits.head_bytes.max(8192)).max_headers(limits.headers + 1);
    let service = service_fn(|request| {
        let visit = Visit { peer: peer.ip(), hold: Box::new(|| Box::new(())), stopping: over.clone() };
        let (edge, over, was_open) = (Arc::clone(&edge), over.clone(), Arc::clone(&was_open));
        async move {
            let (response, shows) = edge.answer_local(request, key.0, key.1, visit).await;
            match shows {
                Shows::Open => was_open.store(true, Ordering::Release),
                // Who may reach a port does not change: one that was open to everybody is gone with its sandbox. The answer is sent
                // before the listener is closed.
                Shows::Closed if was_open.load(Ordering::Acquire) => {
                    tokio::spawn(async move {
                        tokio::time::sleep(FAREWELL).await;
                        over.cancel();
                    });
                }
                Shows::Closed | Shows::Nothing => {}
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = builder.serve_connection(TokioIo::new(Screened::new(stream)), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "local connection ended early");
            }
        }
        () = over.cancelled() => connection.as_mut().graceful_shutdown(),
    }
}
