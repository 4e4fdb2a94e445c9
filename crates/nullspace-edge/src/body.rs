//! Bodies on their way: counted, ended when nothing moves, never buffered.

use std::any::Any;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use nullspace_service::PortCount;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::headers;

/// An error of a body. The text is for the log.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body, wherever it comes from.
pub type EdgeBody = UnsyncBoxBody<Bytes, BodyError>;

/// A body with these bytes.
pub(crate) fn full(bytes: impl Into<Bytes>) -> EdgeBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body without bytes.
pub(crate) fn empty() -> EdgeBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

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

    /// The time at which nothing will have moved for so long.
    pub(crate) fn end_of(&self, quiet: Duration) -> Instant {
        self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + quiet
    }

    /// Resolves when nothing has moved for so long.
    pub(crate) async fn stopped(&self, quiet: Duration) {
        loop {
            let end = self.end_of(quiet);
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

/// The direction of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    FromClient,
    ToClient,
}

/// Why a body was broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("nothing has moved for too long")]
    Idle,
    #[error("the token has expired or was revoked")]
    Over,
    #[error("the service is stopping")]
    Stopping,
}

/// What is done when a body has been read to its end.
type AtEnd = Box<dyn FnOnce() + Send>;

/// What a body keeps until it is over.
type Held = Box<dyn Any + Send>;

/// A body on its way.
pub(crate) struct Flow {
    inner: Incoming,
    direction: Direction,
    pulse: Arc<Pulse>,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    count: Arc<dyn PortCount>,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    stopping: Pin<Box<WaitForCancellationFutureOwned>>,
    at_end: Option<AtEnd>,
    _held: Option<Held>,
}

/// What the flows of one request share.
#[derive(Clone)]
pub(crate) struct Course {
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) idle: Duration,
    pub(crate) count: Arc<dyn PortCount>,
    pub(crate) over: CancellationToken,
    pub(crate) stopping: CancellationToken,
}

impl Course {
    /// Sends a body on its way. `at_end` runs when it was read to its end; `held` is dropped when it is over, however it ends.
    pub(crate) fn flow(
        &self,
        inner: Incoming,
        direction: Direction,
        at_end: Option<AtEnd>,
        held: Option<Held>,
    ) -> EdgeBody {
        let mut flow = Flow {
            inner,
            direction,
            pulse: Arc::clone(&self.pulse),
            idle: self.idle,
            timer: Box::pin(tokio::time::sleep_until(self.pulse.end_of(self.idle))),
            count: Arc::clone(&self.count),
            over: Box::pin(self.over.clone().cancelled_owned()),
            stopping: Box::pin(self.stopping.clone().cancelled_owned()),
            at_end,
            _held: held,
        };
        if flow.inner.is_end_stream() {
            flow.finish();
        }
        flow.boxed_unsync()
    }
}

impl Flow {
    fn finish(&mut self) {
        if let Some(at_end) = self.at_end.take() {
            at_end();
        }
    }

    /// Ends with an error when it must not go on.
    fn poll_broken(&mut self, context: &mut Context<'_>) -> Poll<Broken> {
        if self.over.as_mut().poll(context).is_ready() {
            return Poll::Ready(Broken::Over);
        }
        if self.stopping.as_mut().poll(context).is_ready() {
            return Poll::Ready(Broken::Stopping);
        }
        loop {
            ready!(self.timer.as_mut().poll(context));
            // The other direction may have moved since.
            let end = self.pulse.end_of(self.idle);
            if Instant::now() >= end {
                return Poll::Ready(Broken::Idle);
            }
            self.timer.as_mut().reset(end);
        }
    }
}

impl Body for Flow {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let flow = self.get_mut();
        if flow.over.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Broken::Over.into())));
        }
        match Pin::new(&mut flow.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(mut frame))) => {
                flow.pulse.beat();
                if let Some(data) = frame.data_ref() {
                    let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    match flow.direction {
                        Direction::FromClient => flow.count.bytes(bytes, 0),
                        Direction::ToClient => flow.count.bytes(0, bytes),
                    }
                } else if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                }
                if flow.inner.is_end_stream() {
                    flow.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                if flow.direction == Direction::ToClient {
                    flow.count.failed("server_broke_off");
                }
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                flow.finish();
                Poll::Ready(None)
            }
            Poll::Pending => match flow.poll_broken(context) {
                Poll::Ready(broken) => Poll::Ready(Some(Err(broken.into()))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
