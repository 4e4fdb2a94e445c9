//! Authentication and limits before the body is read; the resources of a request until its answer is sent.
//!
//! ```text
//!   key ──> caller ──> rate ──> requests at once ──> handler ──> answer's body
//!                                  └────────── Stay: place, busy connection, key in force ──────────┘
//! ```
//! A request without a key may be signed by one ([`signed`]). It then counts as that key's.
//!
//! A request whose key ends while it is under way is dropped: its handler at the next await, its answer where it is.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use nullspace_api::ErrorResponseCode;
use nullspace_service::Caller;
use secrecy::SecretString;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tracing::Span;

use crate::connections::{Busy, Seat};
use crate::edge::{bearer, drain};
use crate::error::Refusal;
use crate::places::Place;
use crate::signed::{self, Signed};
use crate::standing::{Standing, revoked};
use crate::state::AppState;

/// Answers up to this size are not charged, bytes.
const SMALL_ANSWER: u64 = 64 << 10;

/// What a request of a known caller holds while it lasts.
pub(crate) struct Stay {
    standing: Standing,
    _place: Place,
    _busy: Option<Busy>,
}

impl Stay {
    /// Cancelled when the request's key is not in force any more.
    pub(crate) fn ended(&self) -> &CancellationToken {
        self.standing.ended()
    }
}

/// Marks the answer to a request with a valid key.
#[derive(Clone, Copy)]
pub(crate) struct Known;

/// See the module's documentation. Only `/v1/…` needs a key.
pub(crate) async fn authenticate(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    if !request.uri().path().starts_with("/v1/") {
        return next.run(request).await;
    }
    // Read before the wait: a request's body cannot be shared between threads.
    let (shown, seat) = (Shown::by(&request), request.extensions().get::<Seat>().cloned());
    let reads = only_reads(&request);
    let (caller, stay) = match enter(&state, shown, reads, seat).await {
        Ok(entered) => entered,
        Err(refusal) => {
            drain(request).await;
            return refusal.into_response();
        }
    };
    // Charged by the extractors; given back when the handler is done.
    let room = Arc::new(state.budget.room(caller.tenant));
    let ended = stay.ended().clone();
    let method = request.method().clone();
    request.extensions_mut().insert(caller.clone());
    request.extensions_mut().insert(Arc::clone(&room));
    request.extensions_mut().insert(Arc::clone(&stay));
    let response = tokio::select! {
        biased;
        () = ended.cancelled() => return revoked().into_response(),
        response = next.run(request) => response,
    };
    drop(room);
    let mut response = hold(&state, &caller, &method, response, stay);
    response.extensions_mut().insert(Known);
    response
}

/// What a request shows of its caller.
enum Shown {
    Nothing,
    Key(SecretString),
    Signature(Signed),
}

impl Shown {
    fn by(request: &Request) -> Self {
        match bearer(request.headers()) {
            Some(key) => Self::Key(key),
            None => signed::read(request).map_or(Self::Nothing, Self::Signature),
        }
    }
}

/// Whether a key that may only read is enough. A WebSocket begins as a GET and carries commands; what is below `ports/` gives out
/// tokens for what listens there.
fn only_reads(request: &Request) -> bool {
    let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
    let is_port = request.uri().path().split('/').any(|segment| segment == "ports");
    is_get && !is_port && !request.headers().contains_key(header::UPGRADE)
}

async fn enter(
    state: &AppState,
    shown: Shown,
    reads: bool,
    seat: Option<Seat>,
) -> Result<(Caller, Arc<Stay>), Refusal> {
    let caller = match shown {
        Shown::Nothing => return Err(unauthorized("The Authorization header must be `Bearer <key>`.")),
        Shown::Key(key) => {
            state.service.authenticate(&key).await?.ok_or_else(|| unauthorized("The API key is not valid."))?
        }
        Shown::Signature(Signed::Malformed) => return Err(signed::refused()),
        Shown::Signature(Signed::Asks(asked)) => {
            let (file, token) = asked.parts();
            state.service.signed_caller(file, token).await?.ok_or_else(signed::refused)?
        }
    };
    if caller.read_only && !reads {
        let message = "The API key may only read: use one with the scope `full`.";
        return Err(Refusal::new(StatusCode::FORBIDDEN, ErrorResponseCode::Unauthorized, message));
    }
    Span::current().record("tenant", caller.tenant.to_string());
    state.limiter.take(caller.tenant, Instant::now()).map_err(|wait| {
        let message = "Too many requests at once: wait for as long as Retry-After says.";
        Refusal::new(StatusCode::TOO_MANY_REQUESTS, ErrorResponseCode::RateLimitExceeded, message)
            .with_retry_after(wait)
    })?;
    let key = caller.key.ok_or_else(|| Refusal::internal("a caller without a key"))?;
    let place = state.places.request(caller.tenant, &state.config)?;
    let busy = seat.as_ref().map(Seat::busy);
    let standing = state.standings.begin(key);
    Ok((caller, Arc::new(Stay { standing, _place: place, _busy: busy })))
}

fn unauthorized(message: &str) -> Refusal {
    Refusal::new(StatusCode::UNAUTHORIZED, ErrorResponseCode::Unauthorized, message)
}

/// The answer, holding what it holds until it is sent.
fn hold(state: &AppState, caller: &Caller, method: &Method, response: Response, stay: Arc<Stay>) -> Response {
    let room = state.budget.room(caller.tenant);
    let size = response.body().size_hint().exact().filter(|size| *size > SMALL_ANSWER).unwrap_or(0);
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if let Err(exhausted) = room.grow(size) {
        if *method == Method::GET {
            return Refusal::from(exhausted).into_response();
        }
        // What was done is done, and the answer says so.
        room.force(size);
    }
    let ended = Box::pin(stay.ended().clone().cancelled_owned());
    response.map(|body| Body::new(Answer { body, ended, _held: (stay, room) }))
}

/// A body that breaks off when the key that asked for it ends.
struct Answer<H> {
    body: Body,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    _held: H,
}

impl<H: Unpin> HttpBody for Answer<H> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.ended.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(axum::Error::new("the key of the request was revoked"))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether a path is for operators: answered without a key, also on connections of the reserve.
pub(crate) fn is_for_operators(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz" | "/metrics")
}

/// Refuses what a connection of the reserve may not ask; keeps the connection while operators are answered.
pub(crate) async fn reserve(request: Request, next: Next) -> Response {
    let seat = request.extensions().get::<Seat>().cloned();
    if is_for_operators(request.uri().path()) {
        let _busy = seat.as_ref().map(Seat::busy);
        return next.run(request).await;
    }
    match seat.as_ref().and_then(Seat::reserved) {
        None => next.run(request).await,
        Some(full) => {
            drain(request).await;
            Refusal::from(full).into_response()
        }
    }
}
