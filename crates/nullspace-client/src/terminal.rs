//! Terminals of a sandbox, over a WebSocket.
//!
//! ```text
//!   open_terminal, connect_terminal ──> TerminalOutput: next ── Output … Exit
//!                                  └──> TerminalInput:  type_in, resize, kill
//! ```
//! Both halves are used at the same time: a program may read nothing until its output is read. Dropping both leaves the terminal
//! open in the sandbox.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use nullspace_api::{
    PtyClientMessage, PtyConnect, PtyInput, PtyKill, PtyResize, PtyServerMessage, PtySessionInfo, PtyStart,
};
use reqwest::{Method, StatusCode, Upgraded, header};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::{Client, Error, MACHINE_TIMEOUT, Result, TIMEOUT, refused};

/// The word for the one terminal of a socket.
const ID: &str = "1";
/// Largest message of the service, bytes. Its pieces of output are far smaller.
const MAX_MESSAGE: usize = 4 << 20;
/// Bytes that are typed with one message: base64 is a third longer, and the service takes 256 KiB.
const PIECE: usize = 32 << 10;
/// Time limit of the socket to take a message, beyond the 30 s that the service waits for a program to read.
const SEND_TIMEOUT: Duration = Duration::from_secs(90);

type Socket = WebSocketStream<Upgraded>;

/// An event of a terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TerminalEvent {
    /// Output, as the programs wrote it.
    Output(Vec<u8>),
    /// Its session has ended: exit code, 128 + signal when a signal ended it. The last event.
    Exit(i32),
    /// An operation on it failed, and it goes on: typing into a program that reads nothing, say.
    Refused(String),
}

/// The output of a terminal.
#[derive(Debug)]
pub struct TerminalOutput {
    stream: SplitStream<Socket>,
    session: PtySessionInfo,
    lost: u64,
    over: bool,
}

/// The input of a terminal.
#[derive(Debug)]
pub struct TerminalInput {
    sink: SplitSink<Socket, Message>,
}

impl Client {
    /// Open a terminal in a sandbox. `id` of the request is not used.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn open_terminal(&self, sandbox: &str, start: PtyStart) -> Result<(TerminalOutput, TerminalInput)> {
        let start = PtyClientMessage::PtyStart(PtyStart { id: ID.to_owned(), ..start });
        self.terminal(sandbox, start, "open a terminal").await
    }

    /// Follow a terminal that is open: what is kept of its output, at most 256 KiB, then what comes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn connect_terminal(&self, sandbox: &str, session_id: &str) -> Result<(TerminalOutput, TerminalInput)> {
        let connect = PtyConnect { id: ID.to_owned(), session_id: Some(session_id.to_owned()), pid: None };
        self.terminal(sandbox, PtyClientMessage::PtyConnect(connect), "connect to the terminal").await
    }

    /// The open terminals of a sandbox.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list_terminals(&self, sandbox: &str) -> Result<Vec<PtySessionInfo>> {
        self.get(self.url(&["v1", "sandboxes", sandbox, "pty"])?, "list terminals").await
    }

    /// End a terminal's session, with all of its processes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn kill_terminal(&self, sandbox: &str, session_id: &str) -> Result<()> {
        let url = self.url(&["v1", "sandboxes", sandbox, "pty", session_id])?;
        self.send(Method::DELETE, url, None, TIMEOUT, "end the terminal").await.map(drop)
    }

    async fn terminal(
        &self,
        sandbox: &str,
        first: PtyClientMessage,
        operation: &'static str,
    ) -> Result<(TerminalOutput, TerminalInput)> {
        let opening = async {
            let (sink, mut stream) = self.socket(sandbox, operation).await?.split();
            let mut input = TerminalInput { sink };
            input.say(&first).await?;
            match heard(&mut stream, operation).await? {
                PtyServerMessage::PtyStarted { session, lost_bytes, .. } => {
                    Ok((TerminalOutput { stream, session, lost: lost_bytes, over: false }, input))
                }
                PtyServerMessage::Error { code, message, .. } => Err(Error::Refused { operation, code, message }),
                other => Err(Error::Unreadable { operation, what: format!("{other:?} before the terminal") }),
            }
        };
        match tokio::time::timeout(MACHINE_TIMEOUT, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(Error::Lost { operation, what: "no answer in time".to_owned() }),
        }
    }

    /// Asks for a WebSocket of the channel `pty`.
    async fn socket(&self, sandbox: &str, operation: &'static str) -> Result<Socket> {
        let mut url = self.url(&["v1", "sandboxes", sandbox, "ws"])?;
        url.query_pairs_mut().append_pair("channel", "pty");
        let key = generate_key();
        let request = self
            .request(Method::GET, url)
            .version(reqwest::Version::HTTP_11)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, &key);
        let response = request.send().await.map_err(|source| Error::Transport { operation, source })?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refused(response, operation).await);
        }
        let accepted = response.headers().get(header::SEC_WEBSOCKET_ACCEPT).map(header::HeaderValue::as_bytes);
        if accepted != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
            return Err(Error::Unreadable { operation, what: "a WebSocket for another request".to_owned() });
        }
        let upgraded = response.upgrade().await.map_err(|source| Error::Transport { operation, source })?;
        let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
        Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await)
    }
}

/// The next message of the service.
async fn heard(stream: &mut SplitStream<Socket>, operation: &'static str) -> Result<PtyServerMessage> {
    loop {
        let lost = |what: String| Err(Error::Lost { operation, what });
        match stream.next().await {
            Some(Ok(Message::Text(text))) => {
                return serde_json::from_str(&text)
                    .map_err(|source| Error::Unreadable { operation, what: source.to_string() });
            }
            Some(Ok(Message::Close(Some(close)))) => return lost(format!("closed by the service: {}", close.reason)),
            Some(Ok(Message::Close(None))) | None => return lost("closed by the service".to_owned()),
            Some(Ok(_)) => {}
            Some(Err(error)) => return lost(error.to_string()),
        }
    }
}

impl TerminalOutput {
    /// The terminal, as it was when it was followed.
    #[must_use]
    pub fn session(&self) -> &PtySessionInfo {
        &self.session
    }

    /// Bytes of output from before it was followed that are kept no more.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// The next event; `None` after [`TerminalEvent::Exit`]. May be cancelled without losing an event.
    ///
    /// # Errors
    /// [`Error::Lost`] when the connection ends before the terminal. It stays open in the sandbox.
    pub async fn next(&mut self) -> Result<Option<TerminalEvent>> {
        const OPERATION: &str = "follow the terminal";
        if self.over {
            return Ok(None);
        }
        match heard(&mut self.stream, OPERATION).await? {
            PtyServerMessage::PtyOutput { data_base64: Some(base64), .. } => match STANDARD.decode(base64) {
                Ok(bytes) => Ok(Some(TerminalEvent::Output(bytes))),
                Err(error) => Err(Error::Unreadable { operation: OPERATION, what: error.to_string() }),
            },
            PtyServerMessage::PtyOutput { data, .. } => Ok(Some(TerminalEvent::Output(data.into_bytes()))),
            PtyServerMessage::PtyExited { exit_code, .. } => {
                self.over = true;
                Ok(Some(TerminalEvent::Exit(exit_code)))
            }
            PtyServerMessage::Error { code, message, .. } if is_passing(code) => {
                Ok(Some(TerminalEvent::Refused(message)))
            }
            PtyServerMessage::Error { code, message, .. } => {
                self.over = true;
                Err(Error::Refused { operation: OPERATION, code, message })
            }
            PtyServerMessage::PtyStarted { .. } => {
                Err(Error::Unreadable { operation: OPERATION, what: "a second terminal".to_owned() })
            }
        }
    }
}

/// True for the errors of an order that was not obeyed; others end the following.
fn is_passing(code: nullspace_api::ErrorResponseCode) -> bool {
    use nullspace_api::ErrorResponseCode as Code;
    matches!(code, Code::ExecTimeout | Code::InvalidRequest | Code::RateLimitExceeded)
}

impl TerminalInput {
    /// Type bytes into the terminal. Waits while its program does not read.
    ///
    /// # Errors
    /// [`Error::Lost`] when the connection has ended.
    pub async fn type_in(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(PIECE) {
            let input =
                PtyInput { id: ID.to_owned(), data_base64: Some(STANDARD.encode(piece)), ..PtyInput::default() };
            self.say(&PtyClientMessage::PtyInput(input)).await?;
        }
        Ok(())
    }

    /// Set the terminal's size.
    ///
    /// # Errors
    /// As [`TerminalInput::type_in`].
    pub async fn resize(&mut self, cols: u32, rows: u32) -> Result<()> {
        let resize = PtyResize { id: ID.to_owned(), session_id: None, cols, rows };
        self.say(&PtyClientMessage::PtyResize(resize)).await
    }

    /// End the terminal's session. Its end is an event of the output.
    ///
    /// # Errors
    /// As [`TerminalInput::type_in`].
    pub async fn kill(&mut self) -> Result<()> {
        self.say(&PtyClientMessage::PtyKill(PtyKill { id: ID.to_owned(), session_id: None })).await
    }

    async fn say(&mut self, message: &PtyClientMessage) -> Result<()> {
        let operation = "type into the terminal";
        let json = serde_json::to_string(message)
            .map_err(|source| Error::Unreadable { operation, what: source.to_string() })?;
        match tokio::time::timeout(SEND_TIMEOUT, self.sink.send(Message::text(json))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Error::Lost { operation, what: error.to_string() }),
            Err(_) => Err(Error::Lost { operation, what: "the service reads nothing".to_owned() }),
        }
    }
}
