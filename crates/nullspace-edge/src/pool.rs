//! Connections to servers in sandboxes: opened by the sandbox, kept for a short time for the next request.
//!
//! ```text
//!   request ──> kept connection of its port ── none ──> dial ──> HTTP/1.1 (or HTTP/2, for gRPC)
//!                     └──────────────── body read to its end ──────┘
//! ```
//! A kept connection counts as use of the sandbox, so it is kept for seconds only. It ends with the sandbox and with a pause, because its
//! stream does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use nullspace_service::PortStream;
use nullspace_types::SandboxId;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::body::EdgeBody;
use crate::gate::Dial;
use crate::settings::EdgeLimits;

/// Time for a kept connection to become ready again; else a new one is opened.
const READY: Duration = Duration::from_millis(50);

/// Largest head of a response in bytes.
const RESPONSE_HEAD: usize = 64 << 10;

/// Most headers of a response.
const RESPONSE_HEADERS: usize = 256;

/// Window of one HTTP/2 stream, and of a connection, in bytes: what a response may have in memory while its client is slow.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// A port of a sandbox.
pub(crate) type Key = (SandboxId, u16);

/// A task that ends with its last owner.
#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connection with HTTP/1.1, for one request at a time.
pub(crate) struct Line {
    pub(crate) sender: http1::SendRequest<EdgeBody>,
    /// True when it has had a request before: the server may have closed it meanwhile.
    pub(crate) reused: bool,
    driver: Driver,
}

/// A connection with HTTP/2, for many requests at a time.
#[derive(Clone)]
pub(crate) struct Trunk {
    pub(crate) sender: http2::SendRequest<EdgeBody>,
    _driver: Arc<Driver>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoLine {
    #[error(transparent)]
    Refused(#[from] nullspace_service::Error),
    #[error("no connection in time")]
    Late,
    #[error("the server did not agree on HTTP")]
    Handshake(#[from] hyper::Error),
}

#[derive(Default)]
struct Kept {
    lines: HashMap<Key, Vec<(Line, Instant)>>,
    trunks: HashMap<Key, (Trunk, Instant)>,
    count: usize,
    sweeping: bool,
}

/// The kept connections.
pub(crate) struct Pool {
    kept: Mutex<Kept>,
    limits: EdgeLimits,
}

impl Pool {
    pub(crate) fn new(limits: EdgeLimits) -> Arc<Self> {
        Arc::new(Self { kept: Mutex::default(), limits })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a connection to a port.
    async fn dial(&self, sandbox: &Arc<dyn Dial>, port: u16) -> Result<PortStream, NoLine> {
        let dialled = tokio::time::timeout(self.limits.dial_timeout, sandbox.dial(port)).await;
        Ok(dialled.map_err(|_| NoLine::Late)??)
    }

    /// Returns a connection for one request: a kept one if `may_be_kept`, else a new one.
    pub(crate) async fn line(&self, key: Key, sandbox: &Arc<dyn Dial>, may_be_kept: bool) -> Result<Line, NoLine> {
        while may_be_kept && let Some(mut line) = self.take(key) {
            if line.sender.is_closed() {
                continue;
            }
            if let Ok(Ok(())) = tokio::time::timeout(READY, line.sender.ready()).await {
                return Ok(line);
            }
        }
        let stream = self.dial(sandbox, key.1).await?;
        let mut builder = http1::Builder::new();
        builder.max_buf_size(RESPONSE_HEAD).max_headers(RESPONSE_HEADERS);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let driver = Driver(tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a port ended early");
            }
        }));
        Ok(Line { sender, reused: false, driver })
    }

    fn take(&self, key: Key) -> Option<Line> {
        let mut kept = self.lock();
        let lines = kept.lines.get_mut(&key)?;
        let line = lines.pop();
        if lines.is_empty() {
            kept.lines.remove(&key);
        }
        let (mut line, _) = line?;
        kept.count -= 1;
        line.reused = true;
        Some(line)
    }

    /// Keeps a connection whose last response was read to its end.
    pub(crate) fn keep(self: &Arc<Self>, key: Key, line: Line) {
        if line.sender.is_closed() || line.driver.0.is_finished() {
            return;
        }
        let mut kept = self.lock();
        if kept.count >= self.limits.kept {
            return;
        }
        let lines = kept.lines.entry(key).or_default();
        if lines.len() >= self.limits.kept_per_port {
            return;
        }
        lines.push((line, Instant::now()));
        kept.count += 1;
        self.sweep_later(&mut kept);
    }

    /// Returns the HTTP/2 connection of a port, a new one if there is none.
    pub(crate) async fn trunk(self: &Arc<Self>, key: Key, sandbox: &Arc<dyn Dial>) -> Result<Trunk, NoLine> {
        if let Some((trunk, used)) = self.lock().trunks.get_mut(&key)
            && !trunk.sender.is_closed()
        {
            *used = Instant::now();
            return Ok(trunk.clone());
        }
        let stream = self.dial(sandbox, key.1).await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(64 << 10);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let driver = Driver(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "HTTP/2 connection to a port ended early");
            }
        }));
        let trunk = Trunk { sender, _driver: Arc::new(driver) };
        let mut kept = self.lock();
        if kept.trunks.len() < self.limits.kept {
            kept.trunks.insert(key, (trunk.clone(), Instant::now()));
            self.sweep_later(&mut kept);
        }
        Ok(trunk)
    }

    /// Closes unused connections from now on, until none is left.
    fn sweep_later(self: &Arc<Self>, kept: &mut Kept) {
        if std::mem::replace(&mut kept.sweeping, true) {
            return;
        }
        let (pool, kept_for) = (Arc::downgrade(self), self.limits.kept_for);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(kept_for / 2).await;
                let Some(pool) = pool.upgrade() else { return };
                if !pool.sweep() {
                    return;
                }
            }
        });
    }

    /// Closes what is unused for too long or ended; false when nothing is left.
    fn sweep(&self) -> bool {
        let now = Instant::now();
        let kept_for = self.limits.kept_for;
        let mut kept = self.lock();
        let kept = &mut *kept;
        kept.lines.retain(|_, lines| {
            lines.retain(|(line, since)| !line.sender.is_closed() && now.duration_since(*since) < kept_for);
            !lines.is_empty()
        });
        kept.count = kept.lines.values().map(Vec::len).sum();
        // One that has requests under way stays with them.
        kept.trunks.retain(|_, (trunk, used)| !trunk.sender.is_closed() && now.duration_since(*used) < kept_for);
        kept.sweeping = kept.count > 0 || !kept.trunks.is_empty();
        kept.sweeping
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("kept", &self.lock().count).finish_non_exhaustive()
    }
}
