//! Sessions and their channels, as the agent sees them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nullspace_guest::frame::{self, Frame, HEADER_LEN, INITIAL_WINDOW, Kind, MAX_CHANNELS};
use nullspace_guest::message::{Failure, FailureKind, Outcome};

use crate::outbox::Outbox;
use crate::wake::Wake;

/// Consumed stdin credit is given back in portions of at least this.
const WINDOW_STEP: u32 = INITIAL_WINDOW / 4;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One session of the host.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    outbox: Arc<Outbox>,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Highest channel number seen: OPEN may be repeated with HELLO and must not run twice.
    last: u32,
    open: HashMap<u32, Arc<Channel>>,
    over: bool,
}

/// What became of an OPEN.
#[derive(Debug)]
pub(crate) enum Opened {
    /// A new channel.
    Channel(Arc<Channel>),
    /// Seen before, or the session is over: nothing to do.
    Stale,
    /// There are too many; the host was told.
    Refused,
}

impl Session {
    /// Begins a session on a connection's outbox.
    pub(crate) fn begin(id: u64, outbox: Arc<Outbox>) -> Arc<Session> {
        outbox.adopt(id);
        Arc::new(Session { id, outbox, table: Mutex::default() })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Resets every channel and opens no further one.
    pub(crate) fn end(&self) {
        let open = {
            let mut table = lock(&self.table);
            table.over = true;
            std::mem::take(&mut table.open)
        };
        open.into_values().for_each(|channel| channel.reset());
    }

    pub(crate) fn open(self: &Arc<Session>, id: u32) -> Opened {
        let mut table = lock(&self.table);
        if table.over || id <= table.last {
            return Opened::Stale;
        }
        table.last = id;
        let channel = if table.open.len() < MAX_CHANNELS { Channel::new(id, self.clone()).ok() } else { None };
        match channel {
            Some(channel) => {
                table.open.insert(id, channel.clone());
                Opened::Channel(channel)
            }
            None => {
                drop(table);
                let message = "The agent has no channel left; wait for an operation to end.".to_owned();
                self.message(id, Kind::End, &Outcome::Failed(Failure { kind: FailureKind::Limit, message }));
                Opened::Refused
            }
        }
    }

    /// Hands a frame to its channel; frames of channels that are over are late, not wrong.
    pub(crate) fn take(&self, frame: &Frame) {
        let channel = match frame.kind {
            Kind::Reset => lock(&self.table).open.remove(&frame.channel),
            _ => lock(&self.table).open.get(&frame.channel).cloned(),
        };
        if let Some(channel) = channel {
            channel.take(frame);
        }
    }

    /// Sends a message; 0 is the session's own channel.
    pub(crate) fn message(&self, channel: u32, kind: Kind, message: &impl serde::Serialize) {
        // Our own types have string keys and no floats: serialising cannot fail.
        let Ok(json) = serde_json::to_vec(message) else { return };
        let mut wire = Vec::with_capacity(HEADER_LEN + json.len());
        frame::encode_message(self.id, channel, kind, &json, &mut wire);
        self.outbox.push(self.id, &wire);
    }
}

/// One operation's channel: the reader thread puts in what the host sends, the operation's thread takes it and answers.
#[derive(Debug)]
pub(crate) struct Channel {
    id: u32,
    session: Arc<Session>,
    state: Mutex<ChannelState>,
    wake: Wake,
}

#[derive(Debug)]
struct ChannelState {
    reset: bool,
    send_credit: u32,
    receive_credit: u32,
    stdin: VecDeque<bytes::Bytes>,
    stdin_over: bool,
    owed: u32,
}

impl Channel {
    fn new(id: u32, session: Arc<Session>) -> std::io::Result<Arc<Channel>> {
        let state = ChannelState {
            reset: false,
            send_credit: INITIAL_WINDOW,
            receive_credit: INITIAL_WINDOW,
            stdin: VecDeque::new(),
            stdin_over: false,
            owed: 0,
        };
        Ok(Arc::new(Channel { id, session, state: Mutex::new(state), wake: Wake::new()? }))
    }

    fn take(&self, frame: &Frame) {
        let mut state = lock(&self.state);
        match frame.kind {
            Kind::Reset => state.reset = true,
            Kind::Eof => state.stdin_over = true,
            Kind::Window => {
                let more = frame.window().unwrap_or(0);
                state.send_credit = state.send_credit.saturating_add(more).min(INITIAL_WINDOW);
            }
            Kind::Stdin => match state.receive_credit.checked_sub(frame::cost(frame.payload.len())) {
                Some(left) => {
                    state.receive_credit = left;
                    state.stdin.push_back(frame.payload.clone());
                }
                // A host that overdraws is broken; the operation ends rather than memory.
                None => state.reset = true,
            },
            _ => {}
        }
        drop(state);
        self.wake.set();
    }

    fn reset(&self) {
        lock(&self.state).reset = true;
        self.wake.set();
    }

    /// Polled by the operation's thread; set by whatever concerns it.
    pub(crate) fn wake(&self) -> &Wake {
        &self.wake
    }

    /// True when the answer is no longer wanted.
    pub(crate) fn is_reset(&self) -> bool {
        lock(&self.state).reset
    }

    /// The operation has begun.
    pub(crate) fn reply(&self, outcome: &Outcome) {
        self.session.message(self.id, Kind::Reply, outcome);
    }

    /// The operation is over; the channel is dead afterwards.
    pub(crate) fn end(&self, outcome: &Outcome) {
        lock(&self.session.table).open.remove(&self.id);
        if !self.is_reset() {
            self.session.message(self.id, Kind::End, outcome);
        }
    }

    /// Waits until what was sent is on its way, at most for `limit`.
    pub(crate) fn flush(&self, limit: std::time::Duration) {
        self.session.outbox.flush(limit);
    }

    /// How many bytes may be sent in one frame now.
    pub(crate) fn room(&self) -> usize {
        frame::affordable(lock(&self.state).send_credit)
    }

    /// Sends output, at most [`Channel::room`] bytes.
    pub(crate) fn output(&self, kind: Kind, bytes: &[u8]) {
        {
            let mut state = lock(&self.state);
            if state.reset {
                return;
            }
            state.send_credit = state.send_credit.saturating_sub(frame::cost(bytes.len()));
        }
        let mut wire = Vec::with_capacity(HEADER_LEN + bytes.len());
        frame::encode(self.session.id, self.id, kind, bytes, &mut wire);
        self.session.outbox.push(self.session.id, &wire);
    }

    /// The next piece of stdin; `Ok(None)` when there is none yet, `Err(())` when none will come.
    pub(crate) fn stdin(&self) -> Result<Option<bytes::Bytes>, StdinOver> {
        let mut state = lock(&self.state);
        match state.stdin.pop_front() {
            Some(bytes) => Ok(Some(bytes)),
            None if state.stdin_over => Err(StdinOver),
            None => Ok(None),
        }
    }

    /// Gives the credit of a consumed piece of `len` bytes back.
    pub(crate) fn consumed(&self, len: usize) {
        let credit = {
            let mut state = lock(&self.state);
            state.owed = state.owed.saturating_add(frame::cost(len));
            if state.owed < WINDOW_STEP {
                return;
            }
            let credit = std::mem::take(&mut state.owed);
            state.receive_credit = state.receive_credit.saturating_add(credit);
            credit
        };
        let mut wire = Vec::with_capacity(HEADER_LEN + 4);
        frame::encode_window(self.session.id, self.id, credit, &mut wire);
        self.session.outbox.push(self.session.id, &wire);
    }
}

/// The host has closed stdin and all of it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StdinOver;
