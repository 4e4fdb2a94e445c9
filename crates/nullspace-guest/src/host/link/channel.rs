//! The channels of a session: the frames of one operation, in both directions, under credit.
//!
//! ```text
//!   driver ── Channel::take ──> reply, output, end ── OpenChannel::next, poll_read ──> the operation
//!   driver <── queue ────────── STDIN, EOF, RESET  <── OpenChannel::write, poll_write ── the operation
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;

use super::{AgentError, Link, lock, parse};
use crate::frame::{self, DIAL_PIECE, DIAL_WINDOW, Frame, HEADER_LEN, INITIAL_WINDOW, Kind};
use crate::message::Outcome;

/// A channel's state on the host.
#[derive(Debug)]
pub(super) struct Channel {
    /// It is a connection to a port: each direction ends on its own, and the credit is smaller.
    pub(super) dialled: bool,
    state: Mutex<ChannelState>,
    /// Something to take for the one that waits for replies, output or the end.
    readable: Notify,
    /// Credit to send, or the end.
    writable: Notify,
}

#[derive(Debug)]
struct ChannelState {
    reply: Option<Outcome>,
    replied: bool,
    output: VecDeque<(Kind, Bytes)>,
    /// The guest has ended its direction of a connection, behind the output.
    output_over: bool,
    end: Option<Result<Outcome, AgentError>>,
    over: bool,
    /// The tasks that poll a connection.
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Credit of the guest.
    receive_credit: u32,
    /// Credit that was consumed and not yet given back to the guest.
    owed: u32,
    /// Credit of the host.
    send_credit: u32,
}

impl Channel {
    pub(super) fn new(dialled: bool) -> Channel {
        let window = if dialled { DIAL_WINDOW } else { INITIAL_WINDOW };
        Channel {
            dialled,
            state: Mutex::new(ChannelState {
                reply: None,
                replied: false,
                output: VecDeque::new(),
                output_over: false,
                end: None,
                over: false,
                reader: None,
                writer: None,
                receive_credit: window,
                owed: 0,
                send_credit: window,
            }),
            readable: Notify::new(),
            writable: Notify::new(),
        }
    }

    /// The credit that each direction starts with.
    fn window(&self) -> u32 {
        if self.dialled { DIAL_WINDOW } else { INITIAL_WINDOW }
    }

    fn wake_reader(&self, mut state: MutexGuard<'_, ChannelState>) {
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
        self.readable.notify_one();
    }

    fn wake_writer(&self, mut state: MutexGuard<'_, ChannelState>) {
        let writer = state.writer.take();
        drop(state);
        writer.into_iter().for_each(Waker::wake);
        self.writable.notify_one();
    }

    pub(super) fn take(&self, frame: &Frame) -> Result<(), AgentError> {
        match frame.kind {
            Kind::Reply => {
                let reply = parse(frame)?;
                let mut state = lock(&self.state);
                if state.replied {
                    return Err(AgentError::Protocol("a second reply".to_owned()));
                }
                state.replied = true;
                state.reply = Some(reply);
                self.wake_reader(state);
            }
            Kind::End => {
                let outcome = parse(frame)?;
                self.finish(match outcome {
                    Outcome::Failed(failure) => Err(AgentError::Failed(failure)),
                    outcome => Ok(outcome),
                });
            }
            Kind::Stdout | Kind::Stderr => {
                let mut state = lock(&self.state);
                if state.output_over {
                    return Err(AgentError::Protocol("output behind its end".to_owned()));
                }
                let cost = frame::cost(frame.payload.len());
                state.receive_credit = state
                    .receive_credit
                    .checked_sub(cost)
                    .ok_or_else(|| AgentError::Protocol("more output than it has credit for".to_owned()))?;
                state.output.push_back((frame.kind, frame.payload.clone()));
                self.wake_reader(state);
            }
            Kind::Eof if self.dialled => {
                let mut state = lock(&self.state);
                if state.output_over {
                    return Err(AgentError::Protocol("a second end of its output".to_owned()));
                }
                state.output_over = true;
                state.output.push_back((Kind::Eof, Bytes::new()));
                self.wake_reader(state);
            }
            Kind::Window => {
                let more = frame.window().ok_or_else(|| AgentError::Protocol("a malformed window".to_owned()))?;
                let mut state = lock(&self.state);
                state.send_credit = state.send_credit.saturating_add(more).min(self.window());
                self.wake_writer(state);
            }
            other => return Err(AgentError::Protocol(format!("{other:?} from a guest"))),
        }
        Ok(())
    }

    pub(super) fn finish(&self, end: Result<Outcome, AgentError>) {
        let mut state = lock(&self.state);
        if !state.over {
            state.over = true;
            state.end = Some(end);
        }
        self.wake_reader(state);
        self.wake_writer(lock(&self.state));
    }
}

/// The next item for a channel's reader.
pub(in crate::host) enum Item {
    /// The operation has begun.
    Reply(Outcome),
    /// Bytes of the process, or of the port's server. With `Kind::Eof`: the server has ended its direction.
    Output(Kind, Bytes),
    /// The channel is over; nothing follows.
    End(Result<Outcome, AgentError>),
}

/// A handle's side of an open channel. Dropping it before its end resets the channel.
#[derive(Debug)]
pub(in crate::host) struct OpenChannel {
    pub(super) link: Arc<Link>,
    pub(super) channel: Arc<Channel>,
    pub(super) id: u32,
}

impl OpenChannel {
    /// The next item, in order; after the end it is the same error for ever.
    pub(in crate::host) async fn next(&self) -> Item {
        loop {
            if let Ok(item) = self.take(lock(&self.channel.state)) {
                return item;
            }
            self.channel.readable.notified().await;
        }
    }

    /// As [`OpenChannel::next`]. The task that polls last is woken.
    pub(in crate::host) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Item> {
        match self.take(lock(&self.channel.state)) {
            Ok(item) => Poll::Ready(item),
            Err(mut state) => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Sends some of `bytes`, which are not empty: at most [`DIAL_PIECE`], as credit allows. Closed when the channel is over. The
    /// task that polls last is woken.
    pub(in crate::host) fn poll_write(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, AgentError>> {
        let part = {
            let mut state = lock(&self.channel.state);
            if state.over {
                return Poll::Ready(Err(AgentError::Closed));
            }
            let part = bytes.len().min(DIAL_PIECE).min(frame::affordable(state.send_credit));
            if part == 0 {
                state.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
            state.send_credit = state.send_credit.saturating_sub(frame::cost(part));
            part
        };
        self.stdin(bytes.get(..part).unwrap_or_default());
        Poll::Ready(Ok(part))
    }

    /// The next item, if there is one; else the state.
    fn take<'a>(&self, mut state: MutexGuard<'a, ChannelState>) -> Result<Item, MutexGuard<'a, ChannelState>> {
        if let Some(reply) = state.reply.take() {
            return Ok(Item::Reply(reply));
        }
        if let Some((kind, bytes)) = state.output.pop_front() {
            state.owed = state.owed.saturating_add(frame::cost(bytes.len()));
            // Consumed credit is given back in portions of at least a quarter.
            if state.owed >= self.channel.window() / 4 && !state.over {
                let credit = std::mem::take(&mut state.owed);
                state.receive_credit = state.receive_credit.saturating_add(credit);
                drop(state);
                let mut wire = Vec::with_capacity(HEADER_LEN + 4);
                frame::encode_window(self.link.session, self.id, credit, &mut wire);
                self.link.send(wire);
            }
            return Ok(Item::Output(kind, bytes));
        }
        if let Some(end) = state.end.take() {
            return Ok(Item::End(end));
        }
        if state.over {
            return Ok(Item::End(Err(AgentError::Closed)));
        }
        Err(state)
    }

    /// Waits for the end, dropping what comes before it.
    pub(in crate::host) async fn end(&self, limit: Duration) -> Result<Outcome, AgentError> {
        let wait = async {
            loop {
                if let Item::End(end) = self.next().await {
                    return end;
                }
            }
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(end) => end,
            Err(_) => Err(AgentError::timeout("the request", limit)),
        }
    }

    /// Sends bytes to the process as credit allows. Closed when the channel is over.
    pub(in crate::host) async fn write(&self, mut bytes: &[u8]) -> Result<(), AgentError> {
        while !bytes.is_empty() {
            let part = {
                let mut state = lock(&self.channel.state);
                if state.over {
                    return Err(AgentError::Closed);
                }
                let part = bytes.len().min(frame::affordable(state.send_credit));
                if part > 0 {
                    state.send_credit = state.send_credit.saturating_sub(frame::cost(part));
                }
                part
            };
            if part == 0 {
                self.channel.writable.notified().await;
                continue;
            }
            let (now, later) = bytes.split_at(part);
            self.stdin(now);
            bytes = later;
        }
        Ok(())
    }

    fn stdin(&self, bytes: &[u8]) {
        let mut wire = Vec::with_capacity(HEADER_LEN + bytes.len());
        frame::encode(self.link.session, self.id, Kind::Stdin, bytes, &mut wire);
        self.link.send(wire);
    }

    /// Says that no more stdin follows.
    pub(in crate::host) fn write_eof(&self) {
        if !lock(&self.channel.state).over {
            self.signal(Kind::Eof);
        }
    }

    /// Gives the channel up, unless it is over: the agent kills what runs in it. Idempotent.
    pub(in crate::host) fn reset(&self) {
        let open = lock(&self.link.table).open.remove(&self.id).is_some();
        if open {
            self.signal(Kind::Reset);
            self.channel.finish(Err(AgentError::Closed));
        }
    }

    fn signal(&self, kind: Kind) {
        let mut wire = Vec::with_capacity(HEADER_LEN);
        frame::encode(self.link.session, self.id, kind, &[], &mut wire);
        self.link.send(wire);
    }
}

impl Drop for OpenChannel {
    fn drop(&mut self) {
        self.reset();
    }
}
