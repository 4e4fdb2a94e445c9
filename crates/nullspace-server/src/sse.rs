//! A build's log as server-sent events.
//!
//! ```text
//!   id: 7                      the entry's offset: where to go on after a disconnect is one more
//!   event: log
//!   data: {"build_id":…}       one line of JSON; published clients need the space and the single line
//!                              (an empty line ends the frame)
//!   : heartbeat                a comment, when nothing else was sent for a while
//! ```
//!
//! The stream ends after the final entry. When the service stops, it ends without one, and the client reconnects.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{self, ReadyChunks, Stream, StreamExt};
use nullspace_api::TemplateBuildLogEntry;
use nullspace_service::{Caller, Error, LogStream, chain};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::budget::Room;
use crate::error::Refusal;
use crate::places::Place;
use crate::state::AppState;

const HEARTBEAT: &[u8] = b": heartbeat\n\n";

/// Most entries in one write: a replay takes a few writes, not thousands.
const BATCH: usize = 16;

/// Memory of a follower, bytes, for buffered entries of up to 8 KiB.
const FOLLOWER: usize = 256 << 10;

/// The resources of a stream of entries.
pub(crate) struct Following {
    _place: Place,
    _room: Room,
}

/// Reserves the resources of one more follower, or refuses.
pub(crate) fn follow(state: &AppState, caller: &Caller) -> Result<Following, Refusal> {
    let place = state.places.follower(caller.tenant, &state.config)?;
    let room = state.budget.room(caller.tenant);
    room.grow(FOLLOWER)?;
    Ok(Following { _place: place, _room: room })
}

/// An answer that streams `entries`.
pub(crate) fn response(
    entries: LogStream,
    following: Following,
    heartbeat: Duration,
    stopping: CancellationToken,
) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // nginx would otherwise hold entries back until its buffer is full.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(frames(entries, following, heartbeat, stopping))).into_response()
}

struct State {
    _following: Following,
    entries: Pin<Box<ReadyChunks<LogStream>>>,
    heartbeat: Interval,
    stopping: CancellationToken,
    /// The action after the current entries are sent.
    next: Next,
}

enum Next {
    Read,
    Fail(Refusal),
    End,
}

fn frames(
    entries: LogStream,
    following: Following,
    heartbeat: Duration,
    stopping: CancellationToken,
) -> impl Stream<Item = Result<Bytes, io::Error>> {
    let mut heartbeat = tokio::time::interval_at(Instant::now() + heartbeat, heartbeat);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let entries = Box::pin(entries.ready_chunks(BATCH));
    let state = State { _following: following, entries, heartbeat, stopping, next: Next::Read };
    stream::unfold(state, |mut state| async move {
        loop {
            match std::mem::replace(&mut state.next, Next::Read) {
                Next::End => return None,
                Next::Fail(error) => {
                    tracing::warn!(cause = chain(&error), "log stream broke off");
                    state.next = Next::End;
                    // The status is long sent; a body that breaks off is how the client learns to come back.
                    // The entries before it are flushed while we wait; the error itself drops what is not flushed.
                    tokio::task::yield_now().await;
                    return Some((Err(io::Error::other("log stream broke off")), state));
                }
                Next::Read => {}
            }
            let bytes = tokio::select! {
                biased;
                () = state.stopping.cancelled() => return None,
                batch = state.entries.next() => {
                    let (bytes, next) = encode(batch?);
                    state.next = next;
                    state.heartbeat.reset();
                    bytes
                }
                _ = state.heartbeat.tick() => Bytes::from_static(HEARTBEAT),
            };
            if !bytes.is_empty() {
                return Some((Ok(bytes), state));
            }
        }
    })
}

fn encode(batch: Vec<Result<TemplateBuildLogEntry, Error>>) -> (Bytes, Next) {
    let mut bytes = BytesMut::new();
    for entry in batch {
        match entry.map_err(Refusal::from).and_then(|entry| Ok((frame(&entry, &mut bytes)?, entry.kind.is_terminal())))
        {
            Ok(((), false)) => {}
            Ok(((), true)) => return (bytes.freeze(), Next::End),
            Err(error) => return (bytes.freeze(), Next::Fail(error)),
        }
    }
    (bytes.freeze(), Next::Read)
}

fn frame(entry: &TemplateBuildLogEntry, bytes: &mut BytesMut) -> Result<(), Refusal> {
    // JSON escapes line ends, so this is one line.
    let data = serde_json::to_string(entry).map_err(Refusal::internal)?;
    bytes.put_slice(format!("id: {}\nevent: log\ndata: {data}\n\n", entry.offset).as_bytes());
    Ok(())
}
