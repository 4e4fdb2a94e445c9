//! Sessions and their channels, as the agent sees them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nullspace_guest::frame::{self, DIAL_WINDOW, Frame, HEADER_LEN, INITIAL_WINDOW, Kind, MAX_CHANNELS, MAX_DIALLED};
use nullspace_guest::message::{Failure, FailureKind, Outcome};

use crate::outbox::Outbox;
use crate::wake::{Bell, Wake};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One session of the host.
#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    /// Of its stream. A halted session may go on over another one.
    outbox: Mutex<Arc<Outbox>>,
    halted: AtomicBool,
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
        Arc::new(Session { id, outbox: Mutex::new(outbox), halted: AtomicBool::new(false), table: Mutex::default() })
    }

    /// HELLO of this session has come over a stream with this outbox. A halted session goes on there.
    pub(crate) fn hello(&self, outbox: &Arc<Outbox>) {
        let mut own = lock(&self.outbox);
        if !Arc::ptr_eq(&own, outbox) && own.continue_on(self.id, outbox) {
            *own = outbox.clone();
        }
    }

    /// Ends a halt: the host has sent a frame that is not HELLO.
    pub(crate) fn go_on(&self) {
        if self.halted.swap(false, Ordering::Relaxed) {
            lock(&self.outbox).release(self.id);
        }
    }

    /// Acknowledges HELLO, also of a halted session.
    pub(crate) fn acknowledge(&self, info: &impl serde::Serialize) {
        let wire = self.encode(0, Kind::HelloAck, info);
        // The lock stays until it is queued: the session may not change its stream between.
        lock(&self.outbox).push_now(self.id, &wire);
    }

    fn encode(&self, channel: u32, kind: Kind, message: &impl serde::Serialize) -> Vec<u8> {
        // Our own types have string keys and no floats: serialising cannot fail.
        let json = serde_json::to_vec(message).unwrap_or_default();
        let mut wire = Vec::with_capacity(HEADER_LEN + json.len());
        frame::encode_message(self.id, channel, kind, &json, &mut wire);
        wire
    }

    fn push(&self, wire: &[u8]) {
        lock(&self.outbox).push(self.id, wire);
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

    /// Opens a channel. `place`: it is a connection to a port, served with others by one thread.
    pub(crate) fn open(self: &Arc<Session>, id: u32, place: Option<Place>) -> Opened {
        let mut table = lock(&self.table);
        if table.over || id <= table.last {
            return Opened::Stale;
        }
        table.last = id;
        let dialled = place.is_some();
        let open = table.open.values().filter(|channel| channel.place().is_some() == dialled).count();
        let channel = if open >= if dialled { MAX_DIALLED } else { MAX_CHANNELS } {
            None
        } else {
            let waker = place.map_or_else(|| Wake::new().map(Waker::Own), |place| Ok(Waker::Shared(place)));
            waker.ok().map(|waker| Channel::new(id, self.clone(), waker))
        };
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
        let wire = self.encode(channel, kind, message);
        self.push(&wire);
    }
}

/// A connection's place with the thread that serves all of them.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Wakes the thread.
    pub(crate) bell: Arc<Bell>,
    /// The connection's number there.
    pub(crate) number: u64,
}

/// How the thread that serves a channel is woken.
#[derive(Debug)]
enum Waker {
    /// It serves this channel alone.
    Own(Wake),
    /// It serves many.
    Shared(Place),
}

/// One operation's channel: the reader thread puts in what the host sends, the operation's thread takes it and answers.
#[derive(Debug)]
pub(crate) struct Channel {
    id: u32,
    session: Arc<Session>,
    state: Mutex<ChannelState>,
    waker: Waker,
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
    fn new(id: u32, session: Arc<Session>, waker: Waker) -> Arc<Channel> {
        let window = waker.window();
        let state = ChannelState {
            reset: false,
            send_credit: window,
            receive_credit: window,
            stdin: VecDeque::new(),
            stdin_over: false,
            owed: 0,
        };
        Arc::new(Channel { id, session, state: Mutex::new(state), waker })
    }

    /// Wakes the thread that serves it.
    fn notify(&self) {
        match &self.waker {
            Waker::Own(wake) => wake.set(),
            Waker::Shared(place) => place.bell.ring(place.number),
        }
    }

    /// Of a connection to a port: its place.
    pub(crate) fn place(&self) -> Option<&Place> {
        match &self.waker {
            Waker::Own(_) => None,
            Waker::Shared(place) => Some(place),
        }
    }

    fn take(&self, frame: &Frame) {
        let mut state = lock(&self.state);
        match frame.kind {
            Kind::Reset => state.reset = true,
            Kind::Eof => state.stdin_over = true,
            Kind::Window => {
                let more = frame.window().unwrap_or(0);
                state.send_credit = state.send_credit.saturating_add(more).min(self.waker.window());
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
        self.notify();
    }

    fn reset(&self) {
        lock(&self.state).reset = true;
        self.notify();
    }

    /// Polled by the operation's thread; set by whatever concerns it.
    pub(crate) fn wake(&self) -> &Wake {
        match &self.waker {
            Waker::Own(wake) => wake,
            Waker::Shared(place) => place.bell.wake(),
        }
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

    /// As [`Channel::end`], with the last frame that the session sends until the host ends the halt. False when the host no
    /// longer wants it.
    pub(crate) fn end_and_halt(&self, outcome: &Outcome) -> bool {
        let session = &self.session;
        let wanted = lock(&session.table).open.remove(&self.id).is_some();
        if !wanted || self.is_reset() {
            return false;
        }
        let wire = session.encode(self.id, Kind::End, outcome);
        let outbox = lock(&session.outbox);
        session.halted.store(true, Ordering::Relaxed);
        outbox.push_last(session.id, &wire);
        true
    }

    /// Waits until what was sent is on its way, at most for `limit`.
    pub(crate) fn flush(&self, limit: std::time::Duration) {
        let outbox = lock(&self.session.outbox).clone();
        outbox.flush(limit);
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
        self.session.push(&wire);
    }

    /// Of a connection to a port: says that no output follows.
    pub(crate) fn output_over(&self) {
        if !self.is_reset() {
            let mut wire = Vec::with_capacity(HEADER_LEN);
            frame::encode(self.session.id, self.id, Kind::Eof, &[], &mut wire);
            self.session.push(&wire);
        }
    }

    /// True when the host has sent something that was not taken yet.
    pub(crate) fn has_stdin(&self) -> bool {
        !lock(&self.state).stdin.is_empty()
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
            // Given back in portions of at least a quarter.
            if state.owed < self.waker.window() / 4 {
                return;
            }
            let credit = std::mem::take(&mut state.owed);
            state.receive_credit = state.receive_credit.saturating_add(credit);
            credit
        };
        let mut wire = Vec::with_capacity(HEADER_LEN + 4);
        frame::encode_window(self.session.id, self.id, credit, &mut wire);
        self.session.push(&wire);
    }
}

impl Waker {
    /// The credit that each direction of the channel starts with.
    fn window(&self) -> u32 {
        match self {
            Waker::Own(_) => INITIAL_WINDOW,
            Waker::Shared(_) => DIAL_WINDOW,
        }
    }
}

/// The host has closed stdin and all of it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StdinOver;
