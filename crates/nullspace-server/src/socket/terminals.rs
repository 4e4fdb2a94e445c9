//! Terminals over a sandbox's WebSocket.
//!
//! ```text
//!   pty_start, pty_connect ──> one task a terminal ── events ──> queue
//!   pty_input, pty_resize ───> its orders, in their order ──> guest      16 wait at most; then the socket is not read
//!   pty_kill ────────────────> overtakes the orders
//! ```
//! A slow client fills the queue and so blocks its terminals. A program that reads nothing blocks the input, and the client with
//! it, for 30 s a message at most. A client that is disconnected leaves its terminals open.

use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use nullspace_api::{
    ErrorResponseCode, PtyClientMessage, PtyConnect, PtyInput, PtyKill, PtyResize, PtyServerMessage, PtyStart,
    ResizeRequest,
};
use nullspace_service::{Caller, Error, FollowedTerminal, Result as Served, TerminalAt, TerminalEvent};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::text::Text;
use super::{Conversation, Farewell, Heard, Incoming, STOPPING, Session, Tasks, log_cause, parsed};
use crate::state::AppState;

/// Most orders of one terminal that wait.
const ORDERS: usize = 16;

/// The terminals of one socket.
pub(crate) struct Terminals {
    pub(crate) sandbox: String,
}

/// What is done with a terminal, in order.
enum Order {
    Type(Bytes),
    Resize(ResizeRequest),
}

/// A terminal that the socket follows.
struct Known {
    /// The client's word for it.
    id: String,
    /// Its session's id, once it is followed.
    session: Arc<OnceLock<String>>,
    orders: mpsc::Sender<Order>,
    kill: CancellationToken,
}

/// What its task has of it.
struct Followed {
    id: String,
    session: Arc<OnceLock<String>>,
    orders: mpsc::Receiver<Order>,
    kill: CancellationToken,
}

impl Conversation for Terminals {
    type Message = PtyServerMessage;

    async fn read(
        &self,
        session: &Session,
        mut incoming: Incoming<'_>,
        queue: mpsc::Sender<PtyServerMessage>,
    ) -> Option<Farewell> {
        let limits = &session.state.config.sockets;
        // Dropping it lets all terminals go; they stay open.
        let mut followed = Tasks::new();
        let mut known: Vec<Known> = Vec::new();
        loop {
            let bytes = match followed.next(session, &mut incoming, "no terminal for a long time").await {
                Ok(Heard::Message(bytes)) => bytes,
                Ok(Heard::Ended(_)) => continue,
                Err(farewell) => return farewell,
            };
            // Those whose tasks have ended.
            known.retain(|terminal| !terminal.orders.is_closed());
            let message = match parse(&bytes) {
                Ok(message) => message,
                Err(refused) => {
                    queue.send(refused).await.ok()?;
                    continue;
                }
            };
            // Typing is not refused for its rate: it is slowed down.
            tokio::select! {
                () = session.admitted() => {}
                () = session.stopping.cancelled() => return Some(STOPPING),
            }
            let refused = match message {
                PtyClientMessage::PtyStart(PtyStart { ref id, .. })
                | PtyClientMessage::PtyConnect(PtyConnect { ref id, .. }) => {
                    if known.iter().any(|terminal| terminal.id == *id) {
                        let text = "this socket follows a terminal with this id already: choose another id";
                        Some(refusal(Some(id.clone()), ErrorResponseCode::InvalidRequest, text.to_owned()))
                    } else if known.len() >= limits.commands {
                        let text =
                            format!("{} terminals are followed over this socket already: let one end", limits.commands);
                        Some(refusal(Some(id.clone()), ErrorResponseCode::RateLimitExceeded, text))
                    } else {
                        let (terminal, task) = pair(id.clone());
                        known.push(terminal);
                        let (state, caller) = (session.state.clone(), session.caller.clone());
                        followed.running.spawn(follow(
                            state,
                            caller,
                            self.sandbox.clone(),
                            message,
                            task,
                            queue.clone(),
                        ));
                        None
                    }
                }
                PtyClientMessage::PtyInput(PtyInput { id, session_id, data, data_base64 }) => {
                    match typed(data, data_base64) {
                        Err(text) => Some(refusal(Some(id), ErrorResponseCode::InvalidRequest, text)),
                        Ok(bytes) => {
                            let terminal = of(&known, &id, session_id.as_deref());
                            tokio::select! {
                                refused = order(terminal, id, Order::Type(bytes)) => refused,
                                () = session.stopping.cancelled() => None,
                            }
                        }
                    }
                }
                PtyClientMessage::PtyResize(PtyResize { id, session_id, cols, rows }) => {
                    let terminal = of(&known, &id, session_id.as_deref());
                    tokio::select! {
                        refused = order(terminal, id, Order::Resize(ResizeRequest { cols, rows })) => refused,
                        () = session.stopping.cancelled() => None,
                    }
                }
                PtyClientMessage::PtyKill(PtyKill { id, session_id }) => match of(&known, &id, session_id.as_deref()) {
                    Some(terminal) => {
                        terminal.kill.cancel();
                        None
                    }
                    None => Some(unknown(id)),
                },
            };
            if let Some(refused) = refused {
                queue.send(refused).await.ok()?;
            }
        }
    }
}

fn pair(id: String) -> (Known, Followed) {
    let (sender, orders) = mpsc::channel(ORDERS);
    let (session, kill) = (Arc::<OnceLock<String>>::default(), CancellationToken::new());
    let known = Known { id: id.clone(), session: Arc::clone(&session), orders: sender, kill: kill.clone() };
    (known, Followed { id, session, orders, kill })
}

/// The terminal of a message: by the client's word for it, else by its session.
fn of<'a>(known: &'a [Known], id: &str, session_id: Option<&str>) -> Option<&'a Known> {
    let by_session =
        |terminal: &&Known| session_id.is_some() && terminal.session.get().map(String::as_str) == session_id;
    known.iter().find(|terminal| terminal.id == id).or_else(|| known.iter().find(by_session))
}

/// Gives an order, as soon as there is space for it. Returns the refusal.
async fn order(terminal: Option<&Known>, id: String, order: Order) -> Option<PtyServerMessage> {
    let Some(terminal) = terminal else { return Some(unknown(id)) };
    terminal.orders.send(order).await.is_err().then(|| unknown(id))
}

/// The bytes of an input.
fn typed(data: Option<String>, data_base64: Option<String>) -> Result<Bytes, String> {
    match (data, data_base64) {
        (Some(text), None) => Ok(text.into()),
        (None, Some(base64)) => {
            STANDARD.decode(base64).map(Bytes::from).map_err(|_| "data_base64 is not base64".to_owned())
        }
        _ => Err("an input has either data or data_base64".to_owned()),
    }
}

fn unknown(id: String) -> PtyServerMessage {
    let text = "this socket follows no such terminal, or it has ended: connect to it first";
    refusal(Some(id), ErrorResponseCode::NotFound, text.to_owned())
}

fn refusal(id: Option<String>, code: ErrorResponseCode, message: String) -> PtyServerMessage {
    PtyServerMessage::Error { id, code, message }
}

fn failure(id: &str, error: Error) -> PtyServerMessage {
    log_cause(&error, "a terminal");
    refusal(Some(id.to_owned()), error.code, error.message)
}

fn parse(bytes: &[u8]) -> Result<PtyClientMessage, PtyServerMessage> {
    parsed(bytes).map_err(|text| refusal(None, ErrorResponseCode::InvalidRequest, text))
}

/// The sandbox of a socket, looked up anew for each operation: the socket may outlive it.
#[derive(Clone)]
struct Sandbox {
    state: AppState,
    caller: Caller,
    id: String,
}

impl Sandbox {
    async fn open(&self, message: PtyClientMessage) -> Served<FollowedTerminal> {
        let live = self.state.service.live_sandbox(&self.caller, &self.id).await?;
        match message {
            PtyClientMessage::PtyConnect(PtyConnect { session_id: Some(session), pid: None, .. }) => {
                live.connect_terminal(TerminalAt::Session(session)).await
            }
            PtyClientMessage::PtyConnect(PtyConnect { session_id: None, pid: Some(pid), .. }) => {
                live.connect_terminal(TerminalAt::Pid(pid)).await
            }
            PtyClientMessage::PtyStart(start) => live.open_terminal(start).await,
            _ => Err(Error::invalid("a terminal is named either by session_id or by pid")),
        }
    }

    async fn obey(&self, order: Order, pid: u32) -> Served<()> {
        let live = self.state.service.live_sandbox(&self.caller, &self.id).await?;
        match order {
            Order::Type(bytes) => live.type_into_terminal(pid, &bytes).await,
            Order::Resize(size) => live.resize_terminal(TerminalAt::Pid(pid), size).await,
        }
    }

    async fn kill(&self, pid: u32) -> Served<()> {
        self.state.service.live_sandbox(&self.caller, &self.id).await?.kill_terminal(TerminalAt::Pid(pid)).await
    }
}

/// Follows one terminal and obeys its orders until it ends. Ends early when the client is gone.
async fn follow(
    state: AppState,
    caller: Caller,
    id: String,
    message: PtyClientMessage,
    task: Followed,
    queue: mpsc::Sender<PtyServerMessage>,
) {
    let sandbox = Sandbox { state, caller, id };
    let Followed { id, session, orders, kill } = task;
    let terminal = match sandbox.open(message).await {
        Ok(terminal) => terminal,
        Err(error) => {
            // The client may use the id again as soon as it hears of it.
            drop(orders);
            // Sending fails when the socket is gone.
            let _ = queue.send(failure(&id, error)).await;
            return;
        }
    };
    let _ = session.set(terminal.session.session_id.clone());
    let pid = terminal.session.pid;
    let last = tokio::select! {
        biased;
        last = tell(&id, terminal, &queue) => last,
        () = obey(&id, &sandbox, pid, orders, &queue) => None,
        () = end(&id, &sandbox, pid, kill, &queue) => None,
    };
    // Behind the end of the orders: from now on the id is free.
    if let Some(last) = last {
        let _ = queue.send(last).await;
    }
}

/// Sends the events of a terminal but the last one, which it returns; `None` when the client is gone.
async fn tell(
    id: &str,
    terminal: FollowedTerminal,
    queue: &mpsc::Sender<PtyServerMessage>,
) -> Option<PtyServerMessage> {
    let FollowedTerminal { session, lost, mut events } = terminal;
    let send = async |message| queue.send(message).await.ok();
    let session_id = session.session_id.clone();
    send(PtyServerMessage::PtyStarted { id: id.to_owned(), session, lost_bytes: lost }).await?;
    let mut text = Text::default();
    let said = |piece: Option<(String, Option<String>)>| {
        let (id, session_id) = (id.to_owned(), session_id.clone());
        piece.map(|(data, data_base64)| PtyServerMessage::PtyOutput { id, session_id, data, data_base64 })
    };
    while let Some(event) = events.next().await {
        let message = match event {
            Ok(TerminalEvent::Output(bytes)) => said(text.push(&bytes)),
            Ok(TerminalEvent::Exit { code }) => {
                if let Some(rest) = said(text.finish()) {
                    send(rest).await?;
                }
                return Some(PtyServerMessage::PtyExited { id: id.to_owned(), session_id, exit_code: code });
            }
            Err(error) => return Some(failure(id, error)),
        };
        if let Some(message) = message {
            send(message).await?;
        }
    }
    None
}

/// Obeys orders, one after the other, until the client is gone.
async fn obey(
    id: &str,
    sandbox: &Sandbox,
    pid: u32,
    mut orders: mpsc::Receiver<Order>,
    queue: &mpsc::Sender<PtyServerMessage>,
) {
    while let Some(order) = orders.recv().await {
        if let Err(error) = sandbox.obey(order, pid).await {
            // What is typed into a terminal that has just ended is of no use, and its end is told.
            if error.code == ErrorResponseCode::TransitionConflict {
                continue;
            }
            if queue.send(failure(id, error)).await.is_err() {
                return;
            }
        }
    }
    // The socket has ended, and this task is about to.
    std::future::pending().await
}

/// Ends the terminal's session when it is asked to. Its end is told by the events.
async fn end(id: &str, sandbox: &Sandbox, pid: u32, kill: CancellationToken, queue: &mpsc::Sender<PtyServerMessage>) {
    kill.cancelled().await;
    if let Err(error) = sandbox.kill(pid).await {
        let _ = queue.send(failure(id, error)).await;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_text_or_base64() {
        assert_eq!(typed(Some("a\u{3}".into()), None).unwrap(), "a\u{3}");
        assert_eq!(typed(None, Some("AP8=".into())).unwrap(), &b"\0\xff"[..]);
        assert!(typed(None, Some("?".into())).is_err());
        assert!(typed(None, None).is_err());
        assert!(typed(Some(String::new()), Some(String::new())).is_err());
    }

    #[test]
    fn a_terminal_is_found_by_the_clients_word_then_by_its_session() {
        let (first, _task) = pair("a".into());
        let (second, task) = pair("b".into());
        task.session.set("pty_2".into()).unwrap();
        let known = [first, second];
        let found = |id: &str, session: Option<&str>| of(&known, id, session).map(|terminal| terminal.id.clone());
        assert_eq!(found("a", Some("pty_2")).as_deref(), Some("a"));
        assert_eq!(found("", Some("pty_2")).as_deref(), Some("b"));
        assert_eq!(found("", Some("pty_3")), None);
        assert_eq!(found("", None), None);
    }
}
