//! One connection: the task that moves frames, and the table of channels.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::{AgentError, refused};
use crate::frame::{
    self, Assembler, Decoder, Frame, HEADER_LEN, INITIAL_WINDOW, Kind, MAX_CHANNELS, MAX_MESSAGE, MAX_PAYLOAD, Seek,
};
use crate::message::{AGENT_ABI, AgentInfo, FailureKind, Outcome, Request};

/// Interval at which HELLO is repeated until it is answered.
const HELLO_EVERY: Duration = Duration::from_millis(250);
/// Every so many HELLOs, one is preceded by [`flush_pad`].
const PAD_EVERY: u32 = 4;
/// Time limit for a closing connection to send its queue.
const FLUSH_LIMIT: Duration = Duration::from_secs(1);
/// Most bytes queued towards a guest. Credit keeps honest use far below; beyond it the guest does not read.
const MAX_QUEUED: usize = 32 * 1024 * 1024;
/// A connection on which nothing was heard for so long is asked for a sign of life.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);
/// So many signs of life that did not come, one after the other, end the connection: 30 s of silence. A guest under
/// software emulation that gets a twentieth of a busy processor answers within one.
const HEARTBEAT_MISSES: u32 = 5;
/// Limit, in bytes, of a guest's frames that belong to no open channel: frames of channels that were just reset, of an older
/// session, repeated acknowledgements. Each channel opened and each byte sent to the guest allows for more.
const STRAY: u64 = 4 << 20;
/// Consumed credit is given back in portions of at least this.
const WINDOW_STEP: u32 = INITIAL_WINDOW / 4;

/// Locks even when another thread panicked while it held the lock: every holder leaves the state whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// State that handles and the driver task share.
#[derive(Debug)]
struct Link {
    session: u64,
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
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

#[derive(Debug)]
struct Table {
    next: u32,
    open: HashMap<u32, Arc<Channel>>,
    /// Set with `closed`, under this lock, so that no channel is opened behind it and waits for ever.
    dead: Option<AgentError>,
}

/// A channel's state on the host.
#[derive(Debug)]
struct Channel {
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
    end: Option<Result<Outcome, AgentError>>,
    over: bool,
    /// Credit of the guest.
    receive_credit: u32,
    /// Credit that was consumed and not yet given back to the guest.
    owed: u32,
    /// Credit of the host.
    send_credit: u32,
}

impl Link {
    fn send(&self, bytes: Vec<u8>) {
        let queued = self.queued.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        self.sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if queued > MAX_QUEUED {
            self.fail(AgentError::Protocol("it does not read what it is sent".to_owned()));
            self.stop.notify_one();
            return;
        }
        // The driver being gone means that the channels were told already.
        let _ = self.outgoing.send(bytes);
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
            if self.greeted.borrow().is_some() {
                return self.stray(&frame);
            }
            let info: AgentInfo = parse(&frame)?;
            if info.abi != AGENT_ABI {
                return Err(AgentError::Abi { expected: AGENT_ABI, found: info.abi });
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

impl Channel {
    fn new() -> Channel {
        Channel {
            state: Mutex::new(ChannelState {
                reply: None,
                replied: false,
                output: VecDeque::new(),
                end: None,
                over: false,
                receive_credit: INITIAL_WINDOW,
                owed: 0,
                send_credit: INITIAL_WINDOW,
            }),
            readable: Notify::new(),
            writable: Notify::new(),
        }
    }

    fn take(&self, frame: &Frame) -> Result<(), AgentError> {
        match frame.kind {
            Kind::Reply => {
                let reply = parse(frame)?;
                let mut state = lock(&self.state);
                if state.replied {
                    return Err(AgentError::Protocol("a second reply".to_owned()));
                }
                state.replied = true;
                state.reply = Some(reply);
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
                let cost = frame::cost(frame.payload.len());
                state.receive_credit = state
                    .receive_credit
                    .checked_sub(cost)
                    .ok_or_else(|| AgentError::Protocol("more output than it has credit for".to_owned()))?;
                state.output.push_back((frame.kind, frame.payload.clone()));
            }
            Kind::Window => {
                let more = frame.window().ok_or_else(|| AgentError::Protocol("a malformed window".to_owned()))?;
                let mut state = lock(&self.state);
                state.send_credit = state.send_credit.saturating_add(more).min(INITIAL_WINDOW);
                drop(state);
                self.writable.notify_one();
                return Ok(());
            }
            other => return Err(AgentError::Protocol(format!("{other:?} from a guest"))),
        }
        self.readable.notify_one();
        Ok(())
    }

    fn finish(&self, end: Result<Outcome, AgentError>) {
        let mut state = lock(&self.state);
        if !state.over {
            state.over = true;
            state.end = Some(end);
        }
        drop(state);
        self.readable.notify_one();
        self.writable.notify_one();
    }
}

/// The next item for a channel's reader.
pub(super) enum Item {
    /// The operation has begun.
    Reply(Outcome),
    /// Bytes of the process.
    Output(Kind, Bytes),
    /// The channel is over; nothing follows.
    End(Result<Outcome, AgentError>),
}

/// A handle's side of an open channel. Dropping it before its end resets the channel.
#[derive(Debug)]
pub(super) struct OpenChannel {
    link: Arc<Link>,
    channel: Arc<Channel>,
    id: u32,
}

impl OpenChannel {
    /// The next item, in order; after the end it is the same error for ever.
    pub(super) async fn next(&self) -> Item {
        loop {
            {
                let mut state = lock(&self.channel.state);
                if let Some(reply) = state.reply.take() {
                    return Item::Reply(reply);
                }
                if let Some((kind, bytes)) = state.output.pop_front() {
                    state.owed = state.owed.saturating_add(frame::cost(bytes.len()));
                    if state.owed >= WINDOW_STEP && !state.over {
                        let credit = std::mem::take(&mut state.owed);
                        state.receive_credit = state.receive_credit.saturating_add(credit);
                        drop(state);
                        let mut wire = Vec::with_capacity(HEADER_LEN + 4);
                        frame::encode_window(self.link.session, self.id, credit, &mut wire);
                        self.link.send(wire);
                    }
                    return Item::Output(kind, bytes);
                }
                if let Some(end) = state.end.take() {
                    return Item::End(end);
                }
                if state.over {
                    return Item::End(Err(AgentError::Closed));
                }
            }
            self.channel.readable.notified().await;
        }
    }

    /// Waits for the end, dropping what comes before it.
    pub(super) async fn end(&self, limit: Duration) -> Result<Outcome, AgentError> {
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
    pub(super) async fn write(&self, mut bytes: &[u8]) -> Result<(), AgentError> {
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
            let mut wire = Vec::with_capacity(HEADER_LEN + part);
            frame::encode(self.link.session, self.id, Kind::Stdin, now, &mut wire);
            self.link.send(wire);
            bytes = later;
        }
        Ok(())
    }

    /// Says that no more stdin follows.
    pub(super) fn write_eof(&self) {
        if !lock(&self.channel.state).over {
            self.signal(Kind::Eof);
        }
    }

    /// Gives the channel up, unless it is over: the agent kills what runs in it. Idempotent.
    pub(super) fn reset(&self) {
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
            outgoing,
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
        tokio::spawn(drive(stream, link.clone(), queue));
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
                self.link.send(wire);
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
        let channel = Arc::new(Channel::new());
        let id = {
            let mut table = lock(&self.link.table);
            if let Some(error) = &table.dead {
                return Err(error.clone());
            }
            if table.open.len() >= MAX_CHANNELS {
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

    /// Opens a channel.
    pub(super) fn open(&self, request: &Request) -> Result<OpenChannel, AgentError> {
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

async fn drive<S>(stream: S, link: Arc<Link>, mut queue: mpsc::UnboundedReceiver<Vec<u8>>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut from_guest, mut to_guest) = tokio::io::split(stream);
    let flush = Notify::new();
    let reason = tokio::select! {
        reason = read_frames(&mut from_guest, &link) => reason,
        reason = write_batches(&mut to_guest, &mut queue, &link, &flush) => reason,
        reason = heartbeat(&link) => reason,
        () = async {
            link.stop.notified().await;
            flush.notify_one();
            tokio::time::sleep(FLUSH_LIMIT).await;
        } => AgentError::Closed,
    };
    // The stream first: who hears that the connection is closed may rely on it.
    drop((from_guest, to_guest));
    if !matches!(reason, AgentError::Closed) {
        tracing::debug!(%reason, "agent connection ended");
    }
    link.fail(reason.clone());
    let reason = lock(&link.table).dead.clone().unwrap_or(reason);
    link.closed.send_replace(Some(reason));
}

/// Ends the connection to a guest that no longer answers: halted, frozen, or without its agent. Once the guest was heard
/// of, a HELLO is repeated whenever it has been silent for [`HEARTBEAT_EVERY`]; agents have always acknowledged that.
async fn heartbeat(link: &Link) -> AgentError {
    let mut greeted = link.greeted.subscribe();
    if greeted.wait_for(Option::is_some).await.is_err() {
        // The link is being dropped.
        return std::future::pending().await;
    }
    let mut misses = 0u32;
    loop {
        let asked = Instant::now();
        tokio::time::sleep(HEARTBEAT_EVERY).await;
        if link.heard.swap(false, Ordering::Relaxed) {
            misses = 0;
            continue;
        }
        // When this process itself did not get to run, nothing is known of the guest.
        if asked.elapsed() > 2 * HEARTBEAT_EVERY {
            continue;
        }
        if misses >= HEARTBEAT_MISSES {
            return AgentError::Silent { secs: HEARTBEAT_EVERY.as_secs().saturating_mul(u64::from(misses) + 1) };
        }
        misses += 1;
        // Behind what a guest has not yet read, one more would be read no sooner.
        if link.queued.load(Ordering::Relaxed) == 0 {
            let mut hello = Vec::with_capacity(HEADER_LEN);
            frame::encode(link.session, 0, Kind::Hello, &[], &mut hello);
            link.send(hello);
        }
    }
}

async fn read_frames(from_guest: &mut (impl AsyncRead + Unpin), link: &Link) -> AgentError {
    let mut decoder = Decoder::seeking(Seek::Ack(link.session));
    let mut assembler = Assembler::default();
    let mut piece = vec![0; 2 * MAX_PAYLOAD];
    loop {
        match from_guest.read(&mut piece).await {
            Ok(0) => return AgentError::Closed,
            Ok(len) => decoder.feed(&piece[..len]),
            Err(error) => {
                tracing::debug!(%error, "agent stream failed");
                return AgentError::Closed;
            }
        }
        loop {
            let taken = match decoder.next_frame() {
                Ok(Some(frame)) => match assembler.push(frame) {
                    Ok(Some(frame)) => link.take(frame),
                    Ok(None) => Ok(()),
                    Err(error) => Err(AgentError::Protocol(error.to_string())),
                },
                Ok(None) => break,
                Err(error) => Err(AgentError::Protocol(error.to_string())),
            };
            if let Err(error) = taken {
                return error;
            }
        }
    }
}

async fn write_batches(
    to_guest: &mut (impl AsyncWrite + Unpin),
    queue: &mut mpsc::UnboundedReceiver<Vec<u8>>,
    link: &Link,
    flush: &Notify,
) -> AgentError {
    loop {
        let mut last = false;
        let first = tokio::select! {
            biased;
            first = queue.recv() => first,
            () = flush.notified() => {
                last = true;
                queue.try_recv().ok()
            }
        };
        let mut batch = first.unwrap_or_default();
        // One write for all that waits, but no endless copy.
        while batch.len() < 4 * MAX_PAYLOAD
            && let Ok(more) = queue.try_recv()
        {
            batch.extend_from_slice(&more);
        }
        let len = batch.len();
        let written = async {
            to_guest.write_all(&batch).await?;
            to_guest.flush().await
        };
        if let Err(error) = written.await {
            tracing::debug!(%error, "agent stream failed");
            return AgentError::Closed;
        }
        link.queued.fetch_sub(len, Ordering::Relaxed);
        if last {
            return AgentError::Closed;
        }
    }
}
