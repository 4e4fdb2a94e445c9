//! Listeners on 127.0.0.1, each for one port of one sandbox, for services without a domain.
//!
//! ```text
//!   get_host ──> listen(sandbox, port) ──> 127.0.0.1:41234      one for each port of a sandbox; limits in all, of a tenant, of a sandbox
//!   http://127.0.0.1:41234/ ──> edge ──> the port               closed with its sandbox, or when unused for minutes
//! ```
//! Everybody on this machine reaches them, so they are as open as the machine is. A port that is not public needs its token here too.
//! Pages of elsewhere cannot use their visitor's browser for more than GET and HEAD: [`origin`](crate::origin).

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use hyper::StatusCode;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nullspace_service::LocalPorts;
use nullspace_types::{SandboxId, TenantId};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pool::Key;
use crate::proxy::{Edge, Visit};
use crate::screen::Screened;
use crate::settings::EdgeLimits;
use crate::socket::prepare;

/// Time limit of a request's head, and of an unused connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);

/// Time for the last bytes to a client whose connection is closed.
const FAREWELL: Duration = Duration::from_millis(500);

/// Time between a refused request and the look whether the sandbox has ended; so, many refusals cause one look a second at most.
const DOUBT: Duration = Duration::from_secs(1);

/// Pause after the kernel failed to accept a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The local listeners of a service.
#[derive(Debug)]
pub struct LocalListeners {
    limits: EdgeLimits,
    stopping: CancellationToken,
    /// The service has these listeners, and the edge has the service: one of them must not keep the others.
    edge: OnceLock<Weak<Edge>>,
    open: Mutex<HashMap<Key, Open>>,
    connections: Arc<Semaphore>,
}

/// An open listener.
#[derive(Debug, Clone)]
pub(crate) struct Open {
    tenant: TenantId,
    address: SocketAddr,
    /// Places of connections to the tenant's listeners: all of them have the same.
    places: Arc<Semaphore>,
}

impl LocalListeners {
    /// No listeners yet. All of them close when `stopping` is cancelled.
    pub fn new(limits: EdgeLimits, stopping: CancellationToken) -> Arc<Self> {
        let connections = Arc::new(Semaphore::new(limits.local_connections));
        Arc::new(Self { limits, stopping, edge: OnceLock::new(), open: Mutex::default(), connections })
    }

    /// Says where the requests go. Until then, and once the edge is gone, no listener is opened. A second call changes nothing.
    pub fn lead_to(&self, edge: &Arc<Edge>) {
        let _ = self.edge.set(Arc::downgrade(edge));
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, HashMap<Key, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more may be opened.
    fn has_room(&self, open: &HashMap<Key, Open>, tenant: TenantId, sandbox: SandboxId) -> io::Result<()> {
        let of_sandbox = open.keys().filter(|(other, _)| *other == sandbox).count();
        let of_tenant = open.values().filter(|other| other.tenant == tenant).count();
        let limits = &self.limits;
        for (count, most, whose) in [
            (of_sandbox, limits.listeners_per_sandbox, "the sandbox's"),
            (of_tenant, limits.listeners_per_tenant, "your sandboxes'"),
            (open.len(), limits.listeners, "all sandboxes'"),
        ] {
            if count >= most {
                let message = format!(
                    "{count} of {whose} ports have local addresses, which is the most; one that is not used for {} s is closed",
                    limits.listener_idle.as_secs()
                );
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, message));
            }
        }
        Ok(())
    }
}

/// A listener in the list, until its task ends.
struct Listed {
    listeners: Arc<LocalListeners>,
    key: Key,
    address: SocketAddr,
    /// Of the tenant.
    places: Arc<Semaphore>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut open = self.listeners.lock();
        if open.get(&self.key).is_some_and(|open| open.address == self.address) {
            open.remove(&self.key);
        }
    }
}

/// [`LocalListeners`], as the service asks for them.
#[derive(Debug, Clone)]
pub struct Locals(pub Arc<LocalListeners>);

#[async_trait]
impl LocalPorts for Locals {
    async fn listen(&self, tenant: TenantId, sandbox: &str, port: u16) -> io::Result<SocketAddr> {
        let listeners = &self.0;
        let sandbox: SandboxId = sandbox.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let edge = listeners.edge.get().and_then(Weak::upgrade);
        let edge = edge.ok_or_else(|| io::Error::other("the service is starting or stopping"))?;
        let key = (sandbox, port);
        {
            let open = listeners.lock();
            if let Some(open) = open.get(&key) {
                return Ok(open.address);
            }
            listeners.has_room(&open, tenant, sandbox)?;
        }
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let places;
        {
            let mut open = listeners.lock();
            // Another call may have been quicker.
            if let Some(open) = open.get(&key) {
                return Ok(open.address);
            }
            listeners.has_room(&open, tenant, sandbox)?;
            let of_tenant = open.values().find(|other| other.tenant == tenant).map(|other| Arc::clone(&other.places));
            places =
                of_tenant.unwrap_or_else(|| Arc::new(Semaphore::new(listeners.limits.local_connections_per_tenant)));
            open.insert(key, Open { tenant, address, places: Arc::clone(&places) });
        }
        let listed = Listed { listeners: Arc::clone(listeners), key, address, places };
        tokio::spawn(serve(listener, listed, edge));
        Ok(address)
    }
}

/// Serves one listener until it is unused for too long, its sandbox has ended, or the service stops.
async fn serve(listener: TcpListener, listed: Listed, edge: Arc<Edge>) {
    let over = listed.listeners.stopping.child_token();
    let doubt = Arc::new(Notify::new());
    tokio::select! {
        () = accept(&listener, &listed, &edge, &over, &doubt) => {}
        () = ended(&listed, &edge, &doubt) => {}
        () = over.cancelled() => {}
    }
    // Connections close with their listener; so do requests and WebSockets on them.
    over.cancel();
}

/// Resolves when the sandbox of a listener has ended: looked at now and then, and soon after a request was refused.
async fn ended(listed: &Listed, edge: &Edge, doubt: &Notify) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(listed.listeners.limits.listener_check) => {}
            () = doubt.notified() => tokio::time::sleep(DOUBT).await,
        }
        if edge.has_ended(listed.key.0).await {
            return;
        }
    }
}

/// Accepts connections. Returns when there was none for too long.
async fn accept(
    listener: &TcpListener,
    listed: &Listed,
    edge: &Arc<Edge>,
    over: &CancellationToken,
    doubt: &Arc<Notify>,
) {
    let limits = &listed.listeners.limits;
    let places = Arc::new(Semaphore::new(limits.connections_per_listener));
    let open = Arc::new(AtomicUsize::new(0));
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
        };
        used = Instant::now();
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept a local connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if prepare(&stream, limits.stalled_peer).is_err() {
            continue;
        }
        // The tenant's first: whoever waits for that keeps none of the places of all.
        let Ok(place_of_tenant) = Arc::clone(&listed.places).acquire_owned().await else { return };
        let Ok(place_of_all) = Arc::clone(&listed.listeners.connections).acquire_owned().await else { return };
        open.fetch_add(1, Ordering::AcqRel);
        let hold = Arc::new(Connected { open: Arc::clone(&open), _places: [place, place_of_tenant, place_of_all] });
        let visitor = Visitor {
            peer,
            key: listed.key,
            edge: Arc::clone(edge),
            over: over.clone(),
            doubt: Arc::clone(doubt),
            hold,
        };
        tokio::spawn(connection(stream, visitor));
    }
}

/// The places of a connection, which its WebSocket keeps after it.
struct Connected {
    open: Arc<AtomicUsize>,
    _places: [OwnedSemaphorePermit; 3],
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Where a connection came from, and leads to.
struct Visitor {
    peer: SocketAddr,
    key: Key,
    edge: Arc<Edge>,
    over: CancellationToken,
    doubt: Arc<Notify>,
    hold: Arc<Connected>,
}

/// Serves one connection.
async fn connection(stream: TcpStream, visitor: Visitor) {
    let limits = &visitor.edge.settings().limits;
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.max_buf_size(limits.head_bytes.max(8192)).max_headers(limits.headers + 1);
    let screened = Screened::new(stream);
    let (opener, cut) = (screened.opener(), CancellationToken::new());
    let service = service_fn(|request| {
        let hold = Arc::clone(&visitor.hold);
        let visit = Visit {
            peer: visitor.peer.ip(),
            hold: Box::new(move || Some(Box::new(hold))),
            stopping: visitor.over.clone(),
            cut: Some(cut.clone()),
        };
        let (visitor, opener) = (&visitor, &opener);
        async move {
            let (sandbox, port) = visitor.key;
            let response = visitor.edge.answer_local(request, sandbox, port, visit).await;
            match response.status() {
                StatusCode::SWITCHING_PROTOCOLS => opener.open(),
                StatusCode::NOT_FOUND => visitor.doubt.notify_one(),
                _ => {}
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = builder.serve_connection(TokioIo::new(screened), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = cut.cancelled() => None,
        () = visitor.over.cancelled() => {
            connection.as_mut().graceful_shutdown();
            None
        }
    };
    let ended = match ended {
        Some(ended) => Some(ended),
        // What was broken off is told to a client that takes it.
        None => tokio::time::timeout(FAREWELL, connection).await.ok(),
    };
    if let Some(Err(error)) = ended {
        tracing::debug!(%error, "local connection ended early");
    }
}
