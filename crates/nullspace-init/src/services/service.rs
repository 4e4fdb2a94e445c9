//! One service: its output, its followers, and its stdin.
//!
//! ```text
//!   pipes ──Recorder──> ring ──> follower 1 (its place in the ring, its channel's credit)
//!     ^                     └──> follower 2
//!     └── no room while a follower has not read what would be dropped
//!   stdin <── feeder 1, then feeder 2: one at a time, each as its channel's credit allows
//! ```
//! With followers no output is lost: the slowest follower blocks the process, as a full pipe does. Without one the ring keeps
//! the end and counts the dropped bytes, so that no process waits for a follower that may never come.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nullspace_guest::frame::Kind;
use nullspace_guest::message::{Exec, Exit, Failure, FailureKind, Outcome};
use nullspace_guest::terminal::{Terminal, TerminalSize};

use crate::process::pty;
use crate::process::reaper::{Reaper, Watch};
use crate::process::supervise::Wiring;
use crate::ring::Ring;
use crate::session::{Channel, StdinOver};
use crate::wake::Wake;

/// A process that outlives the channel which started it.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) exec: Exec,
    /// 1 for the first start of this very command.
    pub(super) starts: u32,
    /// Wakes the thread that moves its bytes: there is room again, or something for stdin.
    wake: Wake,
    watch: Arc<Watch>,
    /// Its terminal, if it has one.
    pub(super) screen: Option<Screen>,
    state: Mutex<State>,
}

/// The terminal of a service.
#[derive(Debug)]
pub(super) struct Screen {
    /// The host's name for it.
    name: String,
    /// Closed when the service has ended.
    master: Mutex<Option<OwnedFd>>,
    /// When it was last known.
    size: Mutex<TerminalSize>,
}

impl Screen {
    pub(super) fn new(name: String, master: OwnedFd, size: TerminalSize) -> Screen {
        Screen { name, master: Mutex::new(Some(master)), size: Mutex::new(size) }
    }
}

#[derive(Debug, Default)]
struct State {
    ring: Ring,
    ended: Option<(Exit, Instant)>,
    followers: Vec<Follower>,
    next_follower: u64,
    feeders: VecDeque<Feeder>,
    /// The channel whose bytes are being written into the pipe.
    feeding: Option<Arc<Channel>>,
    stdin_closed: bool,
}

#[derive(Debug)]
struct Follower {
    number: u64,
    channel: Arc<Channel>,
    position: u64,
}

/// A channel whose data goes to stdin.
#[derive(Debug)]
struct Feeder {
    channel: Arc<Channel>,
    /// Stdin is closed behind its data.
    close: bool,
}

/// A follower's position in the output. Dropping it lets the process continue without that follower.
pub(super) struct Place {
    service: Arc<Service>,
    channel: Arc<Channel>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.service.lock().followers.retain(|follower| follower.number != self.number);
        self.service.wake.set();
    }
}

impl Place {
    /// Sends all that is kept, with `wait` also what comes until the service or the channel ends.
    pub(super) fn send_output(&self, wait: bool) -> Outcome {
        let (service, channel) = (&self.service, &self.channel);
        loop {
            if channel.is_reset() {
                return Outcome::Done;
            }
            {
                let mut state = service.lock();
                let State { ring, followers, ended, .. } = &mut *state;
                let Some(follower) = followers.iter_mut().find(|follower| follower.number == self.number) else {
                    return Outcome::Done;
                };
                let room = channel.room();
                match ring.read(follower.position, room.max(1)) {
                    Some((kind, bytes, next)) if room > 0 => {
                        channel.output(kind, bytes);
                        follower.position = next;
                        service.wake.set();
                        continue;
                    }
                    // There is more, and no credit for it.
                    Some(_) => {}
                    None => match ended {
                        Some((exit, _)) => return Outcome::Exit(*exit),
                        None if !wait => return Outcome::Done,
                        None => {}
                    },
                }
            }
            // Woken by output, exit, credit and reset alike.
            let _ = poll(&mut [PollFd::new(channel.wake().as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
            channel.wake().clear();
        }
    }
}

/// A feeder's turn. Dropping it takes the feeder out of the queue.
struct Turn<'a> {
    service: &'a Service,
    channel: &'a Arc<Channel>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.service.lock().feeders.retain(|feeder| !Arc::ptr_eq(&feeder.channel, self.channel));
        self.service.wake.set();
    }
}

impl Service {
    /// `wake` is its own. `watch` belongs to its process and has no reader yet.
    pub(super) fn new(exec: Exec, starts: u32, wake: Wake, watch: Arc<Watch>, screen: Option<Screen>) -> Arc<Service> {
        Arc::new(Service { exec, starts, wake, watch, screen, state: Mutex::default() })
    }

    /// True while its process runs.
    pub(super) fn runs(&self) -> bool {
        self.watch.exit().is_none()
    }

    /// Its process.
    pub(super) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Its terminal, as it is now.
    pub(super) fn terminal(&self) -> Option<Terminal> {
        let Screen { name, master, size } = self.screen.as_ref()?;
        let mut size = size.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Ok(found)) = master.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(pty::size) {
            *size = found;
        }
        Some(Terminal { name: name.clone(), pid: self.watch.shown(), size: *size, exit: self.watch.exit() })
    }

    /// Sets the size of its terminal; false when it has none, or has ended.
    pub(super) fn resize(&self, size: TerminalSize) -> std::io::Result<bool> {
        let Some(screen) = self.screen.as_ref().filter(|_| self.runs()) else { return Ok(false) };
        match screen.master.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
            Some(master) => pty::set_size(master, size).map(|()| true),
            None => Ok(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it ended, if it has.
    pub(super) fn ended(&self) -> Option<Instant> {
        self.lock().ended.map(|(_, at)| at)
    }

    /// Sends a signal to it and to what it has started in its group; false when it has ended.
    pub(super) fn signal(&self, signal: i32) -> bool {
        let runs = self.watch.exit().is_none();
        if runs {
            Reaper::get().signal_group(&self.watch, signal, false);
        }
        runs
    }

    /// Records its end and wakes all waiting threads.
    pub(super) fn end(&self, exit: Exit) {
        if let Some(screen) = &self.screen {
            drop(screen.master.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
        let mut state = self.lock();
        state.ended = Some((exit, Instant::now()));
        state.stdin_closed = true;
        state.wake_all();
    }

    /// Adds a follower: from now on no output is dropped before `channel` has it.
    pub(super) fn follow(self: &Arc<Service>, channel: &Arc<Channel>) -> Place {
        let mut state = self.lock();
        let number = state.next_follower;
        state.next_follower = number.wrapping_add(1);
        state.followers.push(Follower { number, channel: channel.clone(), position: 0 });
        Place { service: self.clone(), channel: channel.clone(), number }
    }

    /// Bytes of stdout and of stderr that were dropped.
    pub(super) fn lost(&self) -> (u64, u64) {
        self.lock().ring.lost()
    }

    /// Writes what comes on `channel` to stdin, until all of it is in the pipe. `close`: closes stdin behind it.
    pub(super) fn take_input(&self, close: bool, channel: &Arc<Channel>) -> Outcome {
        let closed = |state: &State| {
            let what = match state.ended {
                Some(_) => "has ended",
                None => "has closed its stdin, or was started without one",
            };
            Outcome::Failed(Failure { kind: FailureKind::StdinClosed, message: format!("The process {what}.") })
        };
        {
            let mut state = self.lock();
            if state.stdin_closed || !self.exec.stdin {
                return closed(&state);
            }
            state.feeders.push_back(Feeder { channel: channel.clone(), close });
        }
        let turn = Turn { service: self, channel };
        channel.reply(&Outcome::Done);
        loop {
            if channel.is_reset() {
                return Outcome::Done;
            }
            {
                let state = self.lock();
                if !state.feeders.iter().any(|feeder| Arc::ptr_eq(&feeder.channel, channel)) {
                    return Outcome::Done;
                }
                if state.stdin_closed {
                    let outcome = closed(&state);
                    drop(state);
                    drop(turn);
                    return outcome;
                }
            }
            // What the host sends arrives at the channel, and is taken by the thread that writes to the pipe.
            self.wake.set();
            let _ = poll(&mut [PollFd::new(channel.wake().as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
            channel.wake().clear();
        }
    }
}

impl State {
    fn wake_all(&self) {
        self.followers.iter().for_each(|follower| follower.channel.wake().set());
        self.feeders.iter().for_each(|feeder| feeder.channel.wake().set());
    }
}

/// A service's side of the thread that moves its bytes.
pub(super) struct Recorder<'a>(pub(super) &'a Service);

impl Wiring for Recorder<'_> {
    fn room(&self) -> usize {
        let state = self.0.lock();
        state.followers.iter().map(|follower| state.ring.room(follower.position)).min().unwrap_or(usize::MAX)
    }

    fn output(&mut self, kind: Kind, bytes: &[u8]) {
        let mut state = self.0.lock();
        state.ring.push(kind, bytes);
        state.wake_all();
    }

    fn stdin(&mut self) -> Result<Option<bytes::Bytes>, StdinOver> {
        let mut state = self.0.lock();
        while let Some((feeder, close)) = state.feeders.front().map(|front| (front.channel.clone(), front.close)) {
            match feeder.stdin() {
                Ok(Some(piece)) => {
                    state.feeding = Some(feeder);
                    return Ok(Some(piece));
                }
                Ok(None) => return Ok(None),
                // Asked for only when all before it is in the pipe: this feeder is done. Stdin stays open for others, unless it
                // was to be closed.
                Err(StdinOver) => {
                    state.feeders.pop_front();
                    feeder.wake().set();
                    if close {
                        return Err(StdinOver);
                    }
                }
            }
        }
        Ok(None)
    }

    fn consumed(&mut self, len: usize) {
        let feeding = self.0.lock().feeding.take();
        if let Some(feeder) = feeding {
            feeder.consumed(len);
        }
    }

    fn stdin_closed(&mut self) {
        let mut state = self.0.lock();
        if !state.stdin_closed {
            state.stdin_closed = true;
            state.wake_all();
        }
    }

    fn wake(&self) -> Option<&Wake> {
        Some(&self.0.wake)
    }
}
