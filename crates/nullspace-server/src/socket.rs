//! WebSockets: one task a socket.
//!
//! ```text
//!            ┌ reader: messages ──> conversation ── answers ─────┐
//!   socket ──┤                      (commands, events, watches)           v  4 messages wait at most
//!            └ writer: <──────────────────────────────────── queue, and a ping now and then
//! ```
//! A slow client fills the queue and so blocks the conversation. A client that reads nothing, or sends nothing and answers no
//! ping, is disconnected after [`SocketLimits::patience`].

mod commands;
mod events;
mod terminals;
mod text;
mod watches;

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use nullspace_service::{Caller, Error, chain};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub(crate) use self::commands::Commands;
pub(crate) use self::events::Events;
pub(crate) use self::terminals::Terminals;
pub(crate) use self::watches::Watches;
use crate::admit::Stay;
use crate::config::SocketLimits;
use crate::extract::without_value;
use crate::places::Place;
use crate::state::AppState;

/// Most messages that wait for the writer.
const QUEUE: usize = 4;
/// Time limit of the last messages, and of the closing message.
const FAREWELL: Duration = Duration::from_secs(2);

/// Code and reason of a closing message.
type Farewell = (u16, &'static str);

/// The closing message when the service stops.
const STOPPING: Farewell = (close_code::AWAY, "the service stops");

/// One client's socket.
pub(crate) struct Session {
    pub(crate) state: AppState,
    pub(crate) caller: Caller,
    pub(crate) stopping: CancellationToken,
    /// Released when the socket has ended.
    pub(crate) place: Place,
    /// The resources of the request that became the socket: its key must stay valid.
    pub(crate) stay: Option<Arc<Stay>>,
}

/// The meaning of a socket's messages.
pub(crate) trait Conversation: Send + Sync + 'static {
    /// A message of the service.
    type Message: Serialize + Send;

    /// Reads messages and queues answers until the socket ends. Returns the closing message if this side ends it.
    fn read(
        &self,
        session: &Session,
        incoming: Incoming<'_>,
        queue: mpsc::Sender<Self::Message>,
    ) -> impl Future<Output = Option<Farewell>> + Send;
}

/// The client's messages.
pub(crate) struct Incoming<'a> {
    stream: &'a mut SplitStream<WebSocket>,
    alive: &'a Alive,
}

impl Incoming<'_> {
    /// The next message. An error is the socket's end, with the closing message if this side ends it.
    async fn next(&mut self) -> Result<Bytes, Option<Farewell>> {
        loop {
            let message = self.stream.next().await;
            self.alive.now();
            match message {
                Some(Ok(Message::Text(text))) => return Ok(text.into()),
                Some(Ok(Message::Binary(bytes))) => return Ok(bytes),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                None | Some(Ok(Message::Close(_))) => return Err(None),
                Some(Err(error)) => {
                    // Too large, or no WebSocket any more.
                    tracing::debug!(%error, "a socket broke off");
                    return Err(Some((close_code::SIZE, "a message is too large, or no WebSocket message")));
                }
            }
        }
    }
}

/// The tasks of a conversation: one for each command, terminal, watch or subscription of its client. Dropping it drops them.
struct Tasks<T> {
    running: JoinSet<T>,
    /// Time of the last message, or of the last end of a task.
    idle_since: Instant,
}

/// What a conversation goes on with.
enum Heard<T> {
    /// A message of the client.
    Message(Bytes),
    /// A task has ended, with its result unless it was aborted.
    Ended(Option<T>),
}

impl<T: Send + 'static> Tasks<T> {
    fn new() -> Self {
        Self { running: JoinSet::new(), idle_since: Instant::now() }
    }

    /// Waits for a message or the end of a task. An error is the socket's end, as of [`Incoming::next`]: also when the service stops,
    /// and, with the reason `idle`, when no task runs and no message comes for [`SocketLimits::idle`].
    async fn next(
        &mut self,
        session: &Session,
        incoming: &mut Incoming<'_>,
        idle: &'static str,
    ) -> Result<Heard<T>, Option<Farewell>> {
        let left = session.state.config.sockets.idle.saturating_sub(self.idle_since.elapsed());
        let heard = tokio::select! {
            biased;
            () = session.stopping.cancelled() => return Err(Some(STOPPING)),
            Some(over) = self.running.join_next(), if !self.running.is_empty() => Heard::Ended(over.ok()),
            () = tokio::time::sleep(left), if self.running.is_empty() => return Err(Some((close_code::NORMAL, idle))),
            message = incoming.next() => Heard::Message(message?),
        };
        self.idle_since = Instant::now();
        Ok(heard)
    }
}

/// Reads a message. The error is a sentence for the client.
fn parsed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes).map_err(|error| format!("invalid message: {}", without_value(&error.to_string())))
}

/// Puts the cause of an error into the log. `what` failed: the beginning of the sentence.
fn log_cause(error: &Error, what: &str) {
    if let Some(source) = &error.source {
        tracing::warn!(error = %error.message, cause = chain(&**source), "{what} over a socket failed");
    }
}

/// Time at which the client last sent or read something.
struct Alive(Mutex<Instant>);

impl Alive {
    fn now(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn since(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

impl Session {
    /// Serves the socket until either side ends it.
    pub(crate) async fn serve(self, conversation: impl Conversation, socket: WebSocket) {
        let limits = self.state.config.sockets.clone();
        let (mut sink, mut stream) = socket.split();
        let (queue, queued) = mpsc::channel(QUEUE);
        let alive = Alive(Mutex::new(Instant::now()));
        let revoked = self.stay.as_ref().map(|stay| stay.ended().clone()).unwrap_or_default();
        let farewell = {
            let mut writer = pin!(write(&mut sink, queued, &alive, &limits));
            let incoming = Incoming { stream: &mut stream, alive: &alive };
            let ended = tokio::select! {
                biased;
                // Also while a client that takes nothing holds the reader up.
                () = revoked.cancelled() => Err(Some((close_code::POLICY, "the key was revoked"))),
                farewell = conversation.read(&self, incoming, queue) => Ok(farewell),
                () = &mut writer => Err(None),
            };
            if let Ok(Some(_)) = ended {
                // The queue has no sender any more: the writer ends with the last message.
                let _ = tokio::time::timeout(FAREWELL, writer).await;
            }
            ended.unwrap_or_else(|farewell| farewell)
        };
        let close = async {
            if let Some((code, reason)) = farewell {
                let _ = sink.send(Message::Close(Some(CloseFrame { code, reason: reason.into() }))).await;
            }
            let _ = sink.close().await;
        };
        // A client that is gone need not hear it.
        let _ = tokio::time::timeout(FAREWELL, close).await;
        drop((self.place, self.stay));
    }

    /// Counts a message as a request of its tenant, as soon as there may be one more.
    async fn admitted(&self) {
        while let Err(wait) = self.state.limiter.take(self.caller.tenant, Instant::now()) {
            tokio::time::sleep(wait).await;
        }
    }

    /// Counts a message as a request of its tenant. The error says how long to wait.
    fn admit(&self) -> Result<(), String> {
        let taken = self.state.limiter.take(self.caller.tenant, Instant::now());
        taken.map_err(|wait| format!("too many requests at once: wait {} s", wait.as_secs().saturating_add(1)))
    }
}

/// Sends the queue and pings, until the client stops reading.
async fn write<M: Serialize>(
    sink: &mut SplitSink<WebSocket, Message>,
    mut queued: mpsc::Receiver<M>,
    alive: &Alive,
    limits: &SocketLimits,
) {
    let mut ping = tokio::time::interval(limits.ping);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (message, is_data) = tokio::select! {
            message = queued.recv() => {
                // Our own types have string keys: serialising cannot fail.
                let Some(Ok(json)) = message.map(|message| serde_json::to_string(&message)) else { return };
                (Message::Text(json.into()), true)
            }
            _ = ping.tick() => {
                if alive.since() > limits.patience {
                    tracing::debug!("a socket's client answers no ping");
                    return;
                }
                (Message::Ping(bytes::Bytes::new()), false)
            }
        };
        match tokio::time::timeout(limits.patience, sink.send(message)).await {
            // A ping is taken by the kernel, and says nothing of the client.
            Ok(Ok(())) if is_data => alive.now(),
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}
