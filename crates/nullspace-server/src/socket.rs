//! Commands over a WebSocket.
//!
//! ```text
//!            ┌ reader: messages ──> one task a command ──events──┐
//!   socket ──┤                                                   v  4 messages wait at most
//!            └ writer: <──────────────────────────────────── queue, and a ping now and then
//! ```
//! A slow client fills the queue and so blocks its commands: no output is dropped. A client that reads nothing, or sends
//! nothing and answers no ping, is disconnected after [`SocketLimits::patience`]. Its commands keep running.

mod text;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use nullspace_api::{ErrorResponseCode, ExecClientMessage, ExecConnect, ExecOutput, ExecServerMessage, ExecStart};
use nullspace_service::{Caller, CommandEvent, Error, FollowedCommand};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::text::Text;
use crate::admit::Stay;
use crate::config::SocketLimits;
use crate::extract::without_value;
use crate::places::Place;
use crate::state::AppState;

/// Most messages that wait for the writer.
const QUEUE: usize = 4;
/// Time limit of the closing message.
const FAREWELL: Duration = Duration::from_secs(2);

/// One client's socket and its session.
pub(crate) struct Session {
    pub(crate) state: AppState,
    pub(crate) caller: Caller,
    pub(crate) sandbox: String,
    pub(crate) stopping: CancellationToken,
    /// Released when the socket has ended.
    pub(crate) place: Place,
    /// The resources of the request that became the socket: its key must stay valid.
    pub(crate) stay: Option<Arc<Stay>>,
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
    pub(crate) async fn serve(self, socket: WebSocket) {
        let limits = self.state.config.sockets.clone();
        let (mut sink, mut stream) = socket.split();
        let (queue, queued) = mpsc::channel(QUEUE);
        let alive = Alive(Mutex::new(Instant::now()));
        let revoked = self.stay.as_ref().map(|stay| stay.ended().clone()).unwrap_or_default();
        let farewell = {
            let reader = self.read(&mut stream, queue, &alive, &limits);
            let writer = write(&mut sink, queued, &alive, &limits);
            tokio::select! {
                biased;
                // Also while a client that takes nothing holds the reader up.
                () = revoked.cancelled() => Some((close_code::POLICY, "the key was revoked")),
                farewell = reader => farewell,
                () = writer => None,
            }
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

    /// Reads messages until the socket ends. Returns the closing message if this side ends it.
    async fn read(
        &self,
        stream: &mut SplitStream<WebSocket>,
        queue: mpsc::Sender<ExecServerMessage>,
        alive: &Alive,
        limits: &SocketLimits,
    ) -> Option<(u16, &'static str)> {
        // Dropping it lets all commands go; they run on.
        let mut commands = JoinSet::new();
        let mut idle_since = Instant::now();
        loop {
            let idle = limits.idle.saturating_sub(idle_since.elapsed());
            let message = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return Some((close_code::AWAY, "the service stops")),
                Some(_) = commands.join_next(), if !commands.is_empty() => {
                    idle_since = Instant::now();
                    continue;
                }
                () = tokio::time::sleep(idle), if commands.is_empty() => {
                    return Some((close_code::NORMAL, "no command for a long time"));
                }
                message = stream.next() => message,
            };
            alive.now();
            let parsed = match message {
                Some(Ok(Message::Text(text))) => parse(text.as_bytes()),
                Some(Ok(Message::Binary(bytes))) => parse(&bytes),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                None | Some(Ok(Message::Close(_))) => return None,
                Some(Err(error)) => {
                    // Too large, or no WebSocket any more.
                    tracing::debug!(%error, "a socket broke off");
                    return Some((close_code::SIZE, "a message is too large, or no WebSocket message"));
                }
            };
            idle_since = Instant::now();
            let parsed = parsed.and_then(|message| match self.state.limiter.take(self.caller.tenant, Instant::now()) {
                Ok(()) => Ok(message),
                Err(wait) => Err(refusal(
                    Some(id(&message)),
                    ErrorResponseCode::RateLimitExceeded,
                    format!("too many requests at once: wait {} s", wait.as_secs().saturating_add(1)),
                )),
            });
            match parsed {
                Ok(message) if commands.len() >= limits.commands => {
                    let text = format!("{} commands run over this socket already: let one end", limits.commands);
                    let refused = refusal(Some(id(&message)), ErrorResponseCode::RateLimitExceeded, text);
                    queue.send(refused).await.ok()?;
                }
                Ok(message) => {
                    let (state, caller) = (self.state.clone(), self.caller.clone());
                    let (sandbox, queue) = (self.sandbox.clone(), queue.clone());
                    commands.spawn(follow(state, caller, sandbox, message, queue));
                }
                Err(refused) => queue.send(refused).await.ok()?,
            }
        }
    }
}

fn id(message: &ExecClientMessage) -> String {
    match message {
        ExecClientMessage::ExecStart(start) => start.id.clone(),
        ExecClientMessage::ExecConnect(connect) => connect.id.clone(),
    }
}

fn refusal(id: Option<String>, code: ErrorResponseCode, message: String) -> ExecServerMessage {
    ExecServerMessage::Error { id, code, message }
}

fn parse(bytes: &[u8]) -> Result<ExecClientMessage, ExecServerMessage> {
    serde_json::from_slice(bytes).map_err(|error| {
        let what = without_value(&error.to_string());
        refusal(None, ErrorResponseCode::InvalidRequest, format!("invalid message: {what}"))
    })
}

/// Runs or follows one command and sends its events. Ends early when the client is gone.
async fn follow(
    state: AppState,
    caller: Caller,
    sandbox: String,
    message: ExecClientMessage,
    queue: mpsc::Sender<ExecServerMessage>,
) {
    let id = id(&message);
    let command = async {
        let sandbox = state.service.live_sandbox(&caller, &sandbox).await?;
        match message {
            ExecClientMessage::ExecStart(ExecStart { request, .. }) => sandbox.run_command(request).await,
            ExecClientMessage::ExecConnect(ExecConnect { pid, .. }) => sandbox.connect_command(pid).await,
        }
    };
    // Sending fails when the socket is gone.
    let _ = match command.await {
        Ok(command) => tell(&id, command, &queue).await,
        Err(error) => queue.send(failure(&id, error)).await.map_err(drop),
    };
}

async fn tell(id: &str, command: FollowedCommand, queue: &mpsc::Sender<ExecServerMessage>) -> Result<(), ()> {
    let FollowedCommand { pid, lost: (lost_stdout_bytes, lost_stderr_bytes), mut events } = command;
    let send = async |message| queue.send(message).await.map_err(drop);
    send(ExecServerMessage::ExecStarted { id: id.to_owned(), pid, lost_stdout_bytes, lost_stderr_bytes }).await?;
    let (mut out, mut err) = (Text::default(), Text::default());
    let said = |piece: Option<(String, Option<String>)>| {
        piece.map(|(data, data_base64)| ExecOutput { id: id.to_owned(), data, data_base64 })
    };
    while let Some(event) = events.next().await {
        let message = match event {
            Ok(CommandEvent::Stdout(bytes)) => said(out.push(&bytes)).map(ExecServerMessage::ExecStdout),
            Ok(CommandEvent::Stderr(bytes)) => said(err.push(&bytes)).map(ExecServerMessage::ExecStderr),
            Ok(CommandEvent::Exit { code, timed_out }) => {
                if let Some(rest) = said(out.finish()) {
                    send(ExecServerMessage::ExecStdout(rest)).await?;
                }
                if let Some(rest) = said(err.finish()) {
                    send(ExecServerMessage::ExecStderr(rest)).await?;
                }
                if timed_out {
                    let text = "the command did not end in its time and was stopped; give it a higher timeout_secs";
                    let id = Some(id.to_owned());
                    send(refusal(id, ErrorResponseCode::ExecTimeout, text.to_owned())).await?;
                }
                Some(ExecServerMessage::ExecExit { id: id.to_owned(), pid, exit_code: code })
            }
            Err(error) => Some(failure(id, error)),
        };
        if let Some(message) = message {
            send(message).await?;
        }
    }
    Ok(())
}

fn failure(id: &str, error: Error) -> ExecServerMessage {
    if let Some(source) = &error.source {
        tracing::warn!(error = %error.message, cause = nullspace_service::chain(&**source), "a command over a socket failed");
    }
    refusal(Some(id.to_owned()), error.code, error.message)
}

/// Sends the queue and pings, until the client stops reading.
async fn write(
    sink: &mut SplitSink<WebSocket, Message>,
    mut queued: mpsc::Receiver<ExecServerMessage>,
    alive: &Alive,
    limits: &SocketLimits,
) {
    let mut ping = tokio::time::interval(limits.ping);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let (message, is_data) = tokio::select! {
            message = queued.recv() => {
                // Our own type has string keys and no floats: serialising cannot fail.
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
