//! Connections of the host to ports and Unix sockets of this guest.
//!
//! ```text
//!   reader thread ── OPEN Dial, STDIN, EOF, WINDOW, RESET ──> channel ── bell ──┐
//!                                                                               │   one thread for all of them
//!   127.0.0.1:port, [::1]:port, path <── sockets that do not block ── epoll ────┴── step: what each can do now
//! ```
//! An idle connection costs its socket and some hundred bytes. What is under way in it is bounded by the channel's credit, in both
//! directions: a peer that does not read, or a host that does not, holds up its own connection alone.

mod connection;
mod socket;

use std::collections::{HashMap, HashSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nullspace_guest::frame::DIAL_PIECE;
use nullspace_guest::message::{Failure, FailureKind, Outcome};

use self::connection::{Connection, Next};
use crate::log;
use crate::session::{Channel, Place};
use crate::wake::Bell;

/// Events taken from the kernel at a time.
const EVENTS: usize = 64;
/// The bell's number among the connections'.
const BELL: u64 = 0;
/// Rest after an error of the kernel's.
const REST: Duration = Duration::from_millis(100);

/// The thread that serves all connections.
#[derive(Debug)]
struct Relay {
    bell: Arc<Bell>,
    arrived: Mutex<Vec<Arrival>>,
}

#[derive(Debug)]
struct Arrival {
    number: u64,
    goal: Goal,
    channel: Arc<Channel>,
}

/// What the host asks to be connected to.
#[derive(Debug)]
pub(crate) enum Goal {
    /// A TCP port of the loopback.
    Port(u16),
    /// A Unix socket, by its absolute path.
    Socket(String),
}

/// Started by the first connection, and kept.
static RELAY: Mutex<Option<Arc<Relay>>> = Mutex::new(None);
static NEXT: AtomicU64 = AtomicU64::new(BELL + 1);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A place for one more connection.
pub(crate) fn place() -> io::Result<Place> {
    Ok(Place { bell: Relay::get()?.bell.clone(), number: NEXT.fetch_add(1, Ordering::Relaxed) })
}

/// Connects a channel that was opened with a [`place`]. It is replied to, and ended, by the thread that serves it.
pub(crate) fn begin(goal: Goal, channel: &Arc<Channel>) {
    let refuse = |kind, message: String| channel.end(&Outcome::Failed(Failure { kind, message }));
    match &goal {
        Goal::Port(0) => return refuse(FailureKind::Invalid, "0 is no port.".to_owned()),
        Goal::Socket(path) if !path.starts_with('/') => {
            return refuse(FailureKind::Invalid, format!("`{path}` is not an absolute path."));
        }
        Goal::Port(_) | Goal::Socket(_) => {}
    }
    match (channel.place(), Relay::get()) {
        (Some(place), Ok(relay)) => {
            let number = place.number;
            lock(&relay.arrived).push(Arrival { number, goal, channel: channel.clone() });
            relay.bell.ring(number);
        }
        (_, Err(error)) => refuse(FailureKind::Limit, format!("The agent can start no thread: {error}.")),
        (None, _) => refuse(FailureKind::Internal, "The connection has no place.".to_owned()),
    }
}

impl Relay {
    fn get() -> io::Result<Arc<Relay>> {
        let mut current = lock(&RELAY);
        if let Some(relay) = &*current {
            return Ok(relay.clone());
        }
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let relay = Arc::new(Relay { bell: Arc::new(Bell::new()?), arrived: Mutex::default() });
        epoll.add(relay.bell.wake(), EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        let runs = relay.clone();
        std::thread::Builder::new().name("ports".into()).spawn(move || runs.run(&epoll))?;
        Ok(current.insert(relay).clone())
    }

    fn run(&self, epoll: &Epoll) {
        let mut connections: HashMap<u64, Connection> = HashMap::new();
        let mut buffer = vec![0; DIAL_PIECE];
        // Those that had more to do than their turn allowed.
        let mut again: HashSet<u64> = HashSet::new();
        // Those that are not open yet, and when they have to be.
        let mut dialling: HashMap<u64, Instant> = HashMap::new();
        loop {
            let mut events = [EpollEvent::empty(); EVENTS];
            let timeout = if again.is_empty() { timeout(&dialling) } else { EpollTimeout::ZERO };
            let came = match epoll.wait(&mut events, timeout) {
                Ok(came) => came,
                Err(nix::Error::EINTR) => 0,
                Err(error) => {
                    log::problem(format_args!("ports: {error}"));
                    std::thread::sleep(REST);
                    0
                }
            };
            let mut due = std::mem::take(&mut again);
            for event in events.iter().take(came).filter(|event| event.data() != BELL) {
                if let Some(connection) = connections.get_mut(&event.data()) {
                    connection.is_ready(event.events());
                    due.insert(event.data());
                }
            }
            due.extend(self.bell.take());
            for Arrival { number, goal, channel } in std::mem::take(&mut *lock(&self.arrived)) {
                connections
                    .extend(Connection::dial(goal, channel, number, epoll).map(|connection| (number, connection)));
                due.insert(number);
            }
            let now = Instant::now();
            due.extend(dialling.iter().filter(|(_, at)| **at <= now).map(|(number, _)| *number));
            for number in due {
                dialling.remove(&number);
                let Some(connection) = connections.get_mut(&number) else { continue };
                // A panic ends its connection only.
                match catch_unwind(AssertUnwindSafe(|| connection.step(epoll, &mut buffer))) {
                    Ok(Next::Wait) => dialling.extend(connection.due().map(|at| (number, at))),
                    Ok(Next::Again) => {
                        again.insert(number);
                    }
                    Ok(Next::Over) => drop(connections.remove(&number)),
                    Err(_) => {
                        if let Some(connection) = connections.remove(&number) {
                            connection.fail("The agent failed while it served this connection.");
                        }
                    }
                }
            }
        }
    }
}

/// The time until a connection that is not open yet has to be.
fn timeout(dialling: &HashMap<u64, Instant>) -> EpollTimeout {
    let Some(at) = dialling.values().min() else { return EpollTimeout::NONE };
    // Rounded up: a wait that ends early would be repeated without pause.
    let left = at.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
    EpollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX))
}
