//! The body of an answer over HTTP/2: under way until it is sent, or until its client takes nothing for too long.
//!
//! ```text
//!   body ── piece ──> the client's window ── open ──> sent, the next piece is asked for
//!                          └── closed for too long ──> body dropped: its memory, places and key are released
//! ```
//! The kernel ends a connection whose client takes nothing. It cannot see a stream: a client that reads its connection and opens no
//! window leaves an answer waiting. The HTTP library asks a body for nothing while the window is closed, so a body cannot notice
//! that itself.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Answers without a valid key that may wait for their client on one connection. They are short, and one whose window is open is sent at
/// once, so that even many requests with a wrong key leave none waiting.
const STRANGERS: usize = 8;

/// What the answers of one connection share.
#[derive(Default)]
pub(crate) struct Shared {
    /// Answers without a valid key that are not sent yet.
    strangers: AtomicUsize,
    /// Cancelled when there are too many of these: the connection is closed.
    pub(crate) cut: CancellationToken,
}

/// See the module's documentation.
pub(crate) struct Held(Arc<Mutex<State>>);

enum State {
    Going(Going),
    /// Its client took nothing for too long.
    GivenUp,
}

struct Going {
    body: Body,
    /// Since when a piece waits for the client. `None`: the body itself has nothing to send.
    waits: Option<Instant>,
    /// Dropped with the body.
    under_way: Arc<Shared>,
    /// Whether the request had a valid key.
    known: bool,
    watch: Watch,
}

impl Drop for Going {
    fn drop(&mut self) {
        if !self.known {
            self.under_way.strangers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A task that ends with its owner.
#[derive(Default)]
struct Watch(Option<JoinHandle<()>>);

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Held {
    /// Holds `under_way` until the body is over. A client may take nothing for `patience`. `known`: the request had a valid key.
    pub(crate) fn new(body: Body, under_way: Arc<Shared>, patience: Duration, known: bool) -> Self {
        if !known && under_way.strangers.fetch_add(1, Ordering::Relaxed) >= STRANGERS {
            under_way.cut.cancel();
        }
        let going = Going { body, waits: Some(Instant::now()), under_way, known, watch: Watch::default() };
        let state = Arc::new(Mutex::new(State::Going(going)));
        let task = tokio::spawn(watch(Arc::downgrade(&state), patience));
        if let State::Going(going) = &mut *lock(&state) {
            going.watch = Watch(Some(task));
        }
        Self(state)
    }
}

/// Drops the body when its client has taken nothing for so long.
async fn watch(state: Weak<Mutex<State>>, patience: Duration) {
    loop {
        let Some(held) = state.upgrade() else { return };
        let until = match given_up(&mut lock(&held), patience) {
            Ok(before) => {
                tracing::debug!("an answer is given up: its client took nothing for too long");
                // Not under the lock. It has the handle of this task, too, which has no await any more at which it could end.
                drop(before);
                return;
            }
            Err(until) => until,
        };
        drop(held);
        tokio::time::sleep_until(until).await;
    }
}

/// What was under way, when it is given up now; else when to look again.
fn given_up(state: &mut State, patience: Duration) -> Result<State, Instant> {
    let now = Instant::now();
    match state {
        State::Going(going) if going.waits.is_none_or(|since| now < since + patience) => {
            Err(going.waits.unwrap_or(now) + patience)
        }
        _ => Ok(std::mem::replace(state, State::GivenUp)),
    }
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match &mut *lock(&self.0) {
            State::Going(going) => {
                let polled = Pin::new(&mut going.body).poll_frame(context);
                going.waits = polled.is_ready().then(Instant::now);
                polled
            }
            State::GivenUp => Poll::Ready(Some(Err(axum::Error::new("the client took nothing for too long")))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &*lock(&self.0) {
            State::Going(going) => going.body.is_end_stream(),
            State::GivenUp => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &*lock(&self.0) {
            State::Going(going) => going.body.size_hint(),
            State::GivenUp => SizeHint::default(),
        }
    }
}
