//! Commands over a sandbox's WebSocket.
//!
//! ```text
//!   messages ──> one task a command ── events ──> queue
//! ```
//! A slow client fills the queue and so blocks its commands: no output is dropped. A client that is disconnected leaves its
//! commands running.

use futures::StreamExt;
use nullspace_api::{ErrorResponseCode, ExecClientMessage, ExecConnect, ExecOutput, ExecServerMessage, ExecStart};
use nullspace_service::{Caller, CommandEvent, Error, FollowedCommand};
use tokio::sync::mpsc;

use super::text::Text;
use super::{Conversation, Farewell, Heard, Incoming, Session, Tasks, log_cause, parsed};
use crate::state::AppState;

/// The commands of one socket.
pub(crate) struct Commands {
    pub(crate) sandbox: String,
}

impl Conversation for Commands {
    type Message = ExecServerMessage;

    async fn read(
        &self,
        session: &Session,
        mut incoming: Incoming<'_>,
        queue: mpsc::Sender<ExecServerMessage>,
    ) -> Option<Farewell> {
        let limits = &session.state.config.sockets;
        // Dropping it lets all commands go; they run on.
        let mut commands = Tasks::new();
        loop {
            let bytes = match commands.next(session, &mut incoming, "no command for a long time").await {
                Ok(Heard::Message(bytes)) => bytes,
                Ok(Heard::Ended(_)) => continue,
                Err(farewell) => return farewell,
            };
            let parsed = parse(&bytes).and_then(|message| match session.admit() {
                Ok(()) => Ok(message),
                Err(text) => Err(refusal(Some(id(&message)), ErrorResponseCode::RateLimitExceeded, text)),
            });
            match parsed {
                Ok(message) if commands.running.len() >= limits.commands => {
                    let text = format!("{} commands run over this socket already: let one end", limits.commands);
                    let refused = refusal(Some(id(&message)), ErrorResponseCode::RateLimitExceeded, text);
                    queue.send(refused).await.ok()?;
                }
                Ok(message) => {
                    let (state, caller) = (session.state.clone(), session.caller.clone());
                    commands.running.spawn(follow(state, caller, self.sandbox.clone(), message, queue.clone()));
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
    parsed(bytes).map_err(|text| refusal(None, ErrorResponseCode::InvalidRequest, text))
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
    let has = match &message {
        ExecClientMessage::ExecStart(_) => (0, 0),
        ExecClientMessage::ExecConnect(connect) => (connect.stdout_offset, connect.stderr_offset),
    };
    let command = async {
        let sandbox = state.service.live_sandbox(&caller, &sandbox).await?;
        match message {
            ExecClientMessage::ExecStart(ExecStart { request, .. }) => sandbox.run_command(request).await,
            ExecClientMessage::ExecConnect(ExecConnect { pid, .. }) => sandbox.connect_command(pid).await,
        }
    };
    // Sending fails when the socket is gone.
    let _ = match command.await {
        Ok(command) => tell(&id, command, has, &queue).await,
        Err(error) => queue.send(failure(&id, error)).await.map_err(drop),
    };
}

/// Tells a command's output behind what the client has of stdout and stderr.
async fn tell(
    id: &str,
    command: FollowedCommand,
    has: (u64, u64),
    queue: &mpsc::Sender<ExecServerMessage>,
) -> Result<(), ()> {
    let FollowedCommand { pid, lost, mut events } = command;
    let (mut out, mut err) = (Output::new(lost.0, has.0), Output::new(lost.1, has.1));
    let (lost_stdout_bytes, lost_stderr_bytes) = (out.missing(), err.missing());
    let send = async |message| queue.send(message).await.map_err(drop);
    send(ExecServerMessage::ExecStarted { id: id.to_owned(), pid, lost_stdout_bytes, lost_stderr_bytes }).await?;
    let said = |piece: Option<Piece>| {
        piece.map(|Piece { text: (data, data_base64), end }| ExecOutput { id: id.to_owned(), data, data_base64, end })
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

/// One stream of a command's output, from where the client wants it.
struct Output {
    text: Text,
    /// Bytes from the command's start to the next piece.
    position: u64,
    /// Bytes from the command's start that the client has.
    has: u64,
    /// Bytes at the start that are kept no more.
    lost: u64,
}

/// A piece of output, and the bytes from the command's start to its end.
struct Piece {
    text: (String, Option<String>),
    end: u64,
}

impl Output {
    fn new(lost: u64, has: u64) -> Output {
        Output { text: Text::default(), position: lost, has, lost }
    }

    /// Bytes that the client does not have, and cannot get.
    fn missing(&self) -> u64 {
        self.lost.saturating_sub(self.has)
    }

    fn push(&mut self, bytes: &[u8]) -> Option<Piece> {
        let known = usize::try_from(self.has.saturating_sub(self.position)).unwrap_or(usize::MAX).min(bytes.len());
        self.position = self.position.saturating_add(bytes.len() as u64);
        let text = self.text.push(bytes.get(known..).unwrap_or_default())?;
        let end = self.position.saturating_sub(self.text.held_back());
        Some(Piece { text, end })
    }

    fn finish(&mut self) -> Option<Piece> {
        let text = self.text.finish()?;
        Some(Piece { text, end: self.position })
    }
}

fn failure(id: &str, error: Error) -> ExecServerMessage {
    log_cause(&error, "a command");
    refusal(Some(id.to_owned()), error.code, error.message)
}
