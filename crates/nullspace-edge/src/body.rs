//! Bodies on their way: counted, broken off from outside, never buffered.

use std::any::Any;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::course::{Broken, Course, Watch};
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

/// The direction of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    FromClient,
    ToClient,
}

/// What is done when a body has been read to its end.
pub(crate) type AtEnd = Box<dyn FnOnce() + Send>;

/// What a body keeps until it is over.
pub(crate) type Held = Box<dyn Any + Send>;

/// What a body is made of, until it is broken off.
struct Source {
    inner: Incoming,
    at_end: Option<AtEnd>,
    watch: Option<Watch>,
    _held: Option<Held>,
}

impl Source {
    fn finish(&mut self) {
        if let Some(at_end) = self.at_end.take() {
            at_end();
        }
    }
}

enum State {
    /// On its way, and who waits for its next frame.
    Going(Source, Option<Waker>),
    Broken(Broken),
}

/// A body on its way.
pub(crate) struct Flow {
    direction: Direction,
    course: Course,
    state: Arc<Mutex<State>>,
}

/// A body on its way, as it is seen from outside. It does not keep the body.
#[derive(Clone)]
pub(crate) struct Passing(Weak<Mutex<State>>);

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Passing {
    /// Ends the body with an error, and drops what it is made of at once, though nobody reads it.
    pub(crate) fn break_off(&self, why: Broken) {
        let Some(state) = self.0.upgrade() else { return };
        let before = std::mem::replace(&mut *lock(&state), State::Broken(why));
        if let State::Going(source, waker) = before {
            // It may be the last owner of connections, whose ends ask for more than this.
            drop(source);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Keeps the watch as long as the body is on its way.
    pub(crate) fn watched_by(&self, watch: Watch) {
        let Some(state) = self.0.upgrade() else { return };
        if let State::Going(source, _) = &mut *lock(&state) {
            source.watch = Some(watch);
        }
    }
}

impl Flow {
    /// Begins a body.
    pub(crate) fn begin(
        course: Course,
        inner: Incoming,
        direction: Direction,
        at_end: Option<AtEnd>,
        held: Option<Held>,
    ) -> (EdgeBody, Passing) {
        let mut source = Source { inner, at_end, watch: None, _held: held };
        if source.inner.is_end_stream() {
            source.finish();
        }
        let state = Arc::new(Mutex::new(State::Going(source, None)));
        let passing = Passing(Arc::downgrade(&state));
        (Flow { direction, course, state }.boxed_unsync(), passing)
    }
}

impl Body for Flow {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Flow { direction, course, state } = self.get_mut();
        let mut state = lock(state);
        let (source, waker) = match &mut *state {
            State::Going(..) if course.over.is_cancelled() => return Poll::Ready(Some(Err(Broken::Over.into()))),
            State::Going(source, waker) => (source, waker),
            State::Broken(why) => return Poll::Ready(Some(Err((*why).into()))),
        };
        match Pin::new(&mut source.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(mut frame))) => {
                course.pulse.beat();
                if let Some(data) = frame.data_ref() {
                    let bytes = u64::try_from(data.len()).unwrap_or(u64::MAX);
                    match direction {
                        Direction::FromClient => course.count.bytes(bytes, 0),
                        Direction::ToClient => course.count.bytes(0, bytes),
                    }
                } else if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                }
                if source.inner.is_end_stream() {
                    source.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                if *direction == Direction::ToClient {
                    course.count.failed("server_broke_off");
                }
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                source.finish();
                Poll::Ready(None)
            }
            Poll::Pending => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &*lock(&self.state) {
            State::Going(source, _) => source.inner.is_end_stream(),
            State::Broken(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &*lock(&self.state) {
            State::Going(source, _) => source.inner.size_hint(),
            State::Broken(_) => SizeHint::default(),
        }
    }
}
