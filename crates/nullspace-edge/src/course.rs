//! The course of one request or WebSocket: watched from outside of its bodies.
//!
//! ```text
//!   watch ── token over, service stops, nothing moves ──> bodies broken off: places, connection to the port, client's connection
//! ```
//! The HTTP library asks a body for nothing while it cannot be sent on. So a body cannot notice by itself that its client takes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use nullspace_service::PortCount;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::body::{AtEnd, Direction, EdgeBody, Flow, Held, Passing};

/// The time of the last byte of a request or WebSocket, in either direction.
#[derive(Debug)]
pub(crate) struct Pulse {
    start: Instant,
    last: AtomicU64,
}

impl Pulse {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), last: AtomicU64::new(0) })
    }

    /// Something has moved.
    pub(crate) fn beat(&self) {
        let millis = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(millis, Ordering::Relaxed);
    }

    /// Resolves when nothing has moved for so long.
    pub(crate) async fn stopped(&self, quiet: Duration) {
        loop {
            let end = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + quiet;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// Why a request or WebSocket was broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("nothing has moved for too long")]
    Idle,
    #[error("the token has expired or was revoked")]
    Over,
    #[error("the service is stopping")]
    Stopping,
}

/// What both directions of one request or WebSocket share.
#[derive(Clone)]
pub(crate) struct Course {
    pub(crate) pulse: Arc<Pulse>,
    /// Time without a byte after which it is broken off.
    pub(crate) idle: Duration,
    pub(crate) count: Arc<dyn PortCount>,
    pub(crate) over: CancellationToken,
    pub(crate) stopping: CancellationToken,
    /// Closes the client's connection. `None` when other requests may be on it.
    pub(crate) cut: Option<CancellationToken>,
}

/// A watch that ends with its owner.
#[derive(Debug)]
pub(crate) struct Watch(JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Course {
    /// Resolves when it must not go on.
    pub(crate) async fn broken(&self) -> Broken {
        tokio::select! {
            () = self.over.cancelled() => Broken::Over,
            () = self.stopping.cancelled() => Broken::Stopping,
            () = self.pulse.stopped(self.idle) => {
                self.count.failed("idle");
                Broken::Idle
            }
        }
    }

    /// Sends the body of a request on its way. Nobody watches it yet: [`response`](Self::response) does, and until then whoever waits
    /// for the response.
    pub(crate) fn request(&self, inner: Incoming) -> (EdgeBody, Passing) {
        Flow::begin(self.clone(), inner, Direction::FromClient, None, None)
    }

    /// Sends the body of a response on its way, and watches it and the body of its request. `at_end` runs when it was read to its end;
    /// `held` is dropped when it is over, however it ends and whether anybody reads it or not.
    pub(crate) fn response(&self, inner: Incoming, upload: Option<Passing>, at_end: AtEnd, held: Held) -> EdgeBody {
        let over = inner.is_end_stream();
        let (body, passing) = Flow::begin(self.clone(), inner, Direction::ToClient, Some(at_end), Some(held));
        if !over {
            let (course, watched) = (self.clone(), passing.clone());
            let watch = Watch(tokio::spawn(async move {
                let why = course.broken().await;
                for passing in upload.into_iter().chain([watched]) {
                    passing.break_off(why);
                }
                if let Some(cut) = &course.cut {
                    cut.cancel();
                }
            }));
            passing.watched_by(watch);
        }
        body
    }
}
