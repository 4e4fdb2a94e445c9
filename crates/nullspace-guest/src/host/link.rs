//! One session: the way of frames to and from its channels.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use self::driver::drive;
use self::halt::Turns;
use super::{AgentError, refused};
use crate::frame::{
    self, Frame, HEADER_LEN, INITIAL_WINDOW, Kind, MAX_CHANNELS, MAX_DIALLED, MAX_MESSAGE, MAX_PAYLOAD,
};
use crate::message::{AgentInfo, FailureKind, Request};

mod channel;
mod driver;
mod halt;

use self::channel::Channel;
pub(super) use self::channel::{Item, OpenChannel};
pub use self::halt::REJOIN_LIMIT;

/// Interval at which HELLO is repeated until it is answered.
const HELLO_EVERY: Duration = Duration::from_millis(250);
/// Every so many HELLOs, one is preceded by [`flush_pad`].
const PAD_EVERY: u32 = 4;
/// Time limit for a closing connection to send its queue.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// Most bytes queued towards a guest. Credit keeps honest use below 32 MiB; beyond this limit the guest does not read.
const MAX_QUEUED: usize = 48 * 1024 * 1024;
/// Limit, in bytes, of a guest's frames that belong to no open channel: frames of channels that were just reset, of an older
/// session, repeated acknowledgements. Each channel opened and each byte sent to the guest allows for more.
const STRAY: u64 = 4 << 20;
/// Locks even when another thread panicked while it held the lock: every holder leaves the state whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// State that handles and the driver task share.
#[derive(Debug)]
struct Link {
    session: u64,
    gate: Mutex<Gate>,
    turns: Turns,
    /// Acknowledgements of HELLO, counted.
    acknowledged: watch::Sender<u64>,
    /// Bytes queued towards the guest and not written.
    queued: AtomicUsize,
    /// Bytes ever queued towards the guest.
    sent: AtomicU64,
    /// Bytes that came and belonged to no open channel; see [`STRAY`].
    stray: AtomicU64,
    table: Mutex<Table>,
    /// Held from the choice of a channel's number until its OPEN is queued: the agent takes an OPEN with a lower number
    /// than it has seen for a repetition, and does not answer it.
    opening: Mutex<()>,
    /// Something of this session was heard since the heartbeat looked last.
    heard: AtomicBool,
    /// The agent's description of itself, once it has come.
    greeted: watch::Sender<Option<AgentInfo>>,
    /// The reason why the connection ended, once it has.
    closed: watch::Sender<Option<AgentError>>,
    stop: Notify,
}

/// The way of bytes to the driver task.
#[derive(Debug)]
struct Gate {
    phase: Phase,
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
    /// The driver's number. Each stream of a session has a driver of its own.
    driver: u64,
    /// Frames of a session that is halting or halted, in their order.
    waiting: Vec<u8>,
    /// The session has ended.
    over: bool,
}

/// Whether frames leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// The halt's request has left, behind all frames before it. Others wait.
    Halting,
    /// It was answered: every frame of both directions has arrived.
    Halted,
}

#[derive(Debug)]
struct Table {
    next: u32,
    open: HashMap<u32, Arc<Channel>>,
    /// Set with `closed`, under this lock, so that no channel is opened behind it and waits for ever.
    dead: Option<AgentError>,
}

impl Link {
    fn send(&self, bytes: Vec<u8>) {
        self.queue(bytes, false);
    }

    /// Sends bytes that do not wait for the end of a halt.
    fn send_now(&self, bytes: Vec<u8>) {
        self.queue(bytes, true);
    }

    fn queue(&self, bytes: Vec<u8>, now: bool) {
        let mut gate = lock(&self.gate);
        if gate.phase != Phase::Open && !now {
            if gate.waiting.len().saturating_add(bytes.len()) > MAX_QUEUED {
                drop(gate);
                self.fail(AgentError::Protocol("too much waits for the end of its halt".to_owned()));
                self.stop.notify_one();
                return;
            }
            gate.waiting.extend_from_slice(&bytes);
            return;
        }
        let queued = self.queued.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if queued > MAX_QUEUED {
            drop(gate);
            self.fail(AgentError::Protocol("it does not read what it is sent".to_owned()));
            self.stop.notify_one();
            return;
        }
        // The driver being gone means that the channels were told already, or that HELLO is repeated on the next stream.
        let _ = gate.outgoing.send(bytes);
    }

    /// Ends every channel with `error`; the first reason stays.
    fn fail(&self, error: AgentError) {
        let channels = {
            let mut table = lock(&self.table);
            if table.dead.is_none() {
                table.dead = Some(error.clone());
            }
            std::mem::take(&mut table.open)
        };
        for channel in channels.into_values() {
            channel.finish(Err(error.clone()));
        }
    }

    /// Handles a frame of this session.
    fn take(&self, frame: Frame) -> Result<(), AgentError> {
        if frame.session != self.session {
            return self.stray(&frame);
        }
        self.heard.store(true, Ordering::Relaxed);
        if frame.kind == Kind::HelloAck {
            self.acknowledged.send_modify(|count| *count = count.wrapping_add(1));
            if self.greeted.borrow().is_some() {
                return self.stray(&frame);
            }
            let info: AgentInfo = parse(&frame)?;
            if !info.is_spoken() {
                return Err(AgentError::Abi { found: info.abi });
            }
            self.greeted.send_if_modified(|known| known.is_none() && known.replace(info).is_none());
            return Ok(());
        }
        let channel = match frame.kind {
            Kind::End => lock(&self.table).open.remove(&frame.channel),
            _ => lock(&self.table).open.get(&frame.channel).cloned(),
        };
        // Frames of a channel that was just reset are still under way: not an error.
        let Some(channel) = channel else { return self.stray(&frame) };
        if frame.kind == Kind::Window {
            self.stray(&frame)?;
        }
        let taken = channel.take(&frame);
        if let Err(error) = &taken
            && frame.kind == Kind::End
        {
            // Out of the table already, so `fail` will not reach it.
            channel.finish(Err(error.clone()));
        }
        taken
    }
}

impl Link {
    /// Counts a frame that costs the host work and the guest nothing: a guest that floods its channel is dropped.
    fn stray(&self, frame: &Frame) -> Result<(), AgentError> {
        let cost = u64::from(frame::cost(frame.payload.len()));
        let came = self.stray.fetch_add(cost, Ordering::Relaxed).saturating_add(cost);
        let opened = u64::from(lock(&self.table).next).saturating_mul(INITIAL_WINDOW.into());
        let allowed = STRAY.saturating_add(opened).saturating_add(self.sent.load(Ordering::Relaxed));
        if came > allowed {
            return Err(AgentError::Protocol(format!("{came} bytes that nobody asked for")));
        }
        Ok(())
    }
}

fn parse<T: serde::de::DeserializeOwned>(frame: &Frame) -> Result<T, AgentError> {
    serde_json::from_slice(&frame.payload)
        .map_err(|error| AgentError::Protocol(format!("{:?} is no valid message: {error}", frame.kind)))
}

/// Owns a connection: dropping it closes the stream.
#[derive(Debug)]
pub(super) struct Handle {
    link: Arc<Link>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.link.stop.notify_one();
    }
}

impl Handle {
    /// Starts the driver task over `stream`.
    pub(super) fn spawn<S>(stream: S) -> Handle
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (outgoing, queue) = mpsc::unbounded_channel();
        let link = Arc::new(Link {
            session: rand::random(),
            gate: Mutex::new(Gate { phase: Phase::Open, outgoing, driver: 1, waiting: Vec::new(), over: false }),
            turns: Turns::default(),
            acknowledged: watch::Sender::new(0),
            queued: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            stray: AtomicU64::new(0),
            table: Mutex::new(Table { next: 1, open: HashMap::new(), dead: None }),
            opening: Mutex::new(()),
            heard: AtomicBool::new(false),
            greeted: watch::Sender::new(None),
            closed: watch::Sender::new(None),
            stop: Notify::new(),
        });
        tokio::spawn(drive(stream, link.clone(), queue, 1));
        Handle { link }
    }

    /// Sends HELLO and `also` until the agent acknowledges.
    pub(super) async fn greet(&self, also: &[u8], limit: Duration) -> Result<AgentInfo, AgentError> {
        let mut hello = Vec::with_capacity(HEADER_LEN + also.len());
        frame::encode(self.link.session, 0, Kind::Hello, &[], &mut hello);
        hello.extend_from_slice(also);
        let mut greeted = self.link.greeted.subscribe();
        let mut closed = self.link.closed.subscribe();
        let until = Instant::now() + limit;
        let mut sent = 0u32;
        loop {
            // A guest that does not read yet needs no second copy.
            if self.link.queued.load(Ordering::Relaxed) == 0 {
                sent = sent.wrapping_add(1);
                let mut wire = Vec::new();
                if sent.is_multiple_of(PAD_EVERY) {
                    wire = flush_pad();
                }
                wire.extend_from_slice(&hello);
                self.link.send_now(wire);
            }
            let pause = (Instant::now() + HELLO_EVERY).min(until);
            tokio::select! {
                biased;
                Ok(info) = greeted.wait_for(Option::is_some) => {
                    if let Some(info) = info.clone() {
                        return Ok(info);
                    }
                }
                error = ended(&mut closed) => return Err(error),
                () = tokio::time::sleep_until(pause) => {}
            }
            if Instant::now() >= until {
                return Err(AgentError::timeout("hello", limit));
            }
        }
    }

    /// Takes a channel and encodes its OPEN without sending it.
    pub(super) fn prepare(&self, request: &Request) -> Result<(OpenChannel, Vec<u8>), AgentError> {
        let message = serde_json::to_vec(request)
            .map_err(|error| refused(FailureKind::Invalid, format!("The request cannot be encoded: {error}")))?;
        if message.len() > MAX_MESSAGE {
            let text =
                format!("Arguments and environment take {} bytes; at most {MAX_MESSAGE} are possible.", message.len());
            return Err(refused(FailureKind::Invalid, text));
        }
        let dialled = request.dials();
        let channel = Arc::new(Channel::new(dialled));
        let id = {
            let mut table = lock(&self.link.table);
            if let Some(error) = &table.dead {
                return Err(error.clone());
            }
            let open = table.open.values().filter(|channel| channel.dialled == dialled).count();
            if dialled && open >= MAX_DIALLED {
                let text = format!("{MAX_DIALLED} connections to ports of this guest are open already; close one.");
                return Err(refused(FailureKind::Limit, text));
            }
            if !dialled && open >= MAX_CHANNELS {
                let text = format!("{MAX_CHANNELS} operations run in this guest already; wait for one to end.");
                return Err(refused(FailureKind::Limit, text));
            }
            let id = table.next;
            // Numbers do not wrap: a session with 2^32 operations has to be begun anew.
            table.next = id.checked_add(1).ok_or(AgentError::Closed)?;
            table.open.insert(id, channel.clone());
            id
        };
        let mut wire = Vec::with_capacity(HEADER_LEN + message.len());
        frame::encode_message(self.link.session, id, Kind::Open, &message, &mut wire);
        Ok((OpenChannel { link: self.link.clone(), channel, id }, wire))
    }

    /// An error when the agent lacks the capability for the request.
    fn check(&self, request: &Request) -> Result<(), AgentError> {
        let capability = request.needs();
        match self.link.greeted.borrow().as_ref() {
            Some(info) if !info.can(capability) => Err(AgentError::Lacking { capability, version: info.abi }),
            _ => Ok(()),
        }
    }

    /// Opens a channel, unless the agent lacks the capability for the request.
    pub(super) fn open(&self, request: &Request) -> Result<OpenChannel, AgentError> {
        self.check(request)?;
        let _in_order = lock(&self.link.opening);
        let (channel, wire) = self.prepare(request)?;
        self.link.send(wire);
        Ok(channel)
    }

    pub(super) async fn closed(&self) -> AgentError {
        ended(&mut self.link.closed.subscribe()).await
    }

    pub(super) async fn disconnect(&self) {
        self.link.stop.notify_one();
        // The driver bounds itself by FLUSH_LIMIT; twice that is for a starved runtime.
        let _ = tokio::time::timeout(2 * FLUSH_LIMIT, self.closed()).await;
    }
}

async fn ended(closed: &mut watch::Receiver<Option<AgentError>>) -> AgentError {
    match closed.wait_for(Option::is_some).await {
        Ok(reason) => reason.clone().unwrap_or(AgentError::Closed),
        Err(_) => AgentError::Closed,
    }
}

/// Returns as many zeros as the rest of any half frame can have. A snapshot may have been taken while the agent had read half of an
/// older session's frame: it would swallow HELLO as that frame's payload. The pad fills the frame, and what is left
/// of it makes the agent search for the next HELLO.
fn flush_pad() -> Vec<u8> {
    vec![0; HEADER_LEN + MAX_PAYLOAD]
}
