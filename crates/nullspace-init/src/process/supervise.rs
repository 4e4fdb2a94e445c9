//! From a running child to its exit: output out, stdin in, timeouts kept.
//!
//! ```text
//!  running --timeout--> SIGTERM to the group --1 s--> SIGKILL
//!     |  \--cancelled-> SIGKILL
//!     v
//!  exited: up to 200 ms for the pipes to reach their ends; then what is in them is read and no more, so that a
//!          background process that holds stdout does not hold the operation
//! ```

#![allow(unsafe_code, reason = "FIONREAD has no safe wrapper for pipes here")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nullspace_guest::frame::Kind;
use nullspace_guest::message::{Exit, KILL_AFTER_MS};

use super::memory;
use super::reaper::Reaper;
use super::sink;
use super::spawn::Child;
use crate::session::StdinOver;
use crate::wake::Wake;

/// How long pipes may stay open after the exit before what is in them counts as all.
const DRAIN: Duration = Duration::from_millis(200);
/// How long a killed process may take to be gone: one in uninterruptible sleep (a frozen filesystem) stays.
const KILLED_LIMIT: Duration = Duration::from_secs(10);
/// Bytes read from a pipe at a time; a pipe holds twice as many.
const PIECE: usize = 32 * 1024;
/// Bytes that are still read of a terminal whose session has ended: more than the kernel keeps of one.
const TERMINAL_REST: usize = 128 * 1024;

/// Where a process's output goes and its stdin comes from.
pub(crate) trait Wiring {
    /// How many bytes of output can be taken now.
    fn room(&self) -> usize;
    /// Takes output, at most [`Wiring::room`] bytes.
    fn output(&mut self, kind: Kind, bytes: &[u8]);
    /// The next piece for stdin, as [`crate::session::Channel::stdin`].
    fn stdin(&mut self) -> Result<Option<bytes::Bytes>, StdinOver> {
        Err(StdinOver)
    }
    /// A piece of stdin of `len` bytes was written.
    fn consumed(&mut self, _len: usize) {}
    /// Stdin is closed: nothing more can be written.
    fn stdin_closed(&mut self) {}
    /// True when the process is to be killed and its output forgotten.
    fn cancelled(&self) -> bool {
        false
    }
    /// Set when any of the above may answer differently.
    fn wake(&self) -> Option<&Wake> {
        None
    }
}

/// Stdin on its way: a piece and how much of it was written.
struct Feed {
    pipe: OwnedFd,
    piece: bytes::Bytes,
    written: usize,
}

struct Outlet {
    kind: Kind,
    pipe: Option<OwnedFd>,
    /// After the drain time: how many bytes are still to be delivered.
    left: Option<usize>,
    /// The master of a terminal. It does not say how much is in it, and its end is EIO.
    terminal: bool,
}

/// Why a child was not followed to its exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfinished {
    /// It was killed because its answer is no longer wanted.
    Cancelled,
    /// It is not gone even after SIGKILL: it sleeps in the kernel.
    Stuck,
}

/// Follows a child to its end.
pub(crate) fn supervise(child: Child, timeout: Option<Duration>, wiring: &mut dyn Wiring) -> Result<Exit, Unfinished> {
    let reaper = Reaper::get();
    let began = child.began;
    let (watch, namespace) = (child.watch, child.namespace);
    let mut feed = child.stdin.map(|pipe| Feed { pipe, piece: bytes::Bytes::new(), written: 0 });
    let mut outlets = [
        Outlet { kind: Kind::Stdout, pipe: Some(child.stdout), left: None, terminal: child.stderr.is_none() },
        Outlet { kind: Kind::Stderr, pipe: child.stderr, left: None, terminal: false },
    ];
    let mut buffer = vec![0; PIECE];
    // What happens next by the clock: SIGTERM, SIGKILL, giving up.
    let mut term_at = timeout.and_then(|limit| Instant::now().checked_add(limit));
    let (mut kill_at, mut give_up_at, mut drained_at) = (None::<Instant>, None::<Instant>, None::<Instant>);
    let mut timed_out = false;

    loop {
        let now = Instant::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if wiring.cancelled() {
            reaper.signal_group(&watch, libc::SIGKILL, timed_out);
            return Err(Unfinished::Cancelled);
        }
        if let Some(exit) = watch.exit() {
            (term_at, kill_at, give_up_at) = (None, None, None);
            feed = None;
            drained_at = drained_at.or(Some(now + DRAIN));
            if due(drained_at) {
                outlets.iter_mut().for_each(Outlet::limit_to_what_is_there);
            }
            if outlets.iter().all(|outlet| outlet.pipe.is_none()) {
                if timed_out {
                    // What of the group outlived its leader's SIGTERM.
                    reaper.signal_group(&watch, libc::SIGKILL, true);
                }
                let out_of_memory = exit.code != 0 && !timed_out && memory::ran_out_since(began);
                let killed = exit.signal == Some(libc::SIGKILL) && !timed_out && !out_of_memory;
                let first_ended = killed && namespace.is_some_and(|namespace| namespace.ends());
                return Ok(Exit { timed_out, out_of_memory, first_ended, ..exit });
            }
        } else if due(term_at) {
            timed_out = true;
            reaper.signal_group(&watch, libc::SIGTERM, false);
            (term_at, kill_at) = (None, Some(now + Duration::from_millis(KILL_AFTER_MS)));
        } else if due(kill_at) {
            reaper.signal_group(&watch, libc::SIGKILL, false);
            (kill_at, give_up_at) = (None, Some(now + KILLED_LIMIT));
        } else if due(give_up_at) {
            return Err(Unfinished::Stuck);
        }
        if let Some(open) = &mut feed
            && !open.write(wiring)
        {
            feed = None;
        }
        if feed.is_none() {
            wiring.stdin_closed();
            // Nobody reads it: forgotten, so that its sender does not wait for credit.
            while let Ok(Some(piece)) = wiring.stdin() {
                wiring.consumed(piece.len());
            }
        }

        let has_room = wiring.room() > 0;
        let mut waits = vec![PollFd::new(watch.wake().as_fd(), PollFlags::POLLIN)];
        if let Some(wake) = wiring.wake() {
            waits.push(PollFd::new(wake.as_fd(), PollFlags::POLLIN));
        }
        if let Some(open) = &feed {
            let wanted = if open.piece.is_empty() { PollFlags::empty() } else { PollFlags::POLLOUT };
            // With no bytes to write, only the reader's leave (POLLERR) is of interest, and that is told always.
            waits.push(PollFd::new(open.pipe.as_fd(), wanted));
        }
        let outlets_at = waits.len();
        for outlet in outlets.iter().filter(|_| has_room) {
            waits.extend(outlet.pipe.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        }
        let next = [term_at, kill_at, give_up_at, drained_at.filter(|at| *at > now)].into_iter().flatten().min();
        let timeout = next.map_or(PollTimeout::NONE, |at| {
            // Rounded up: a wait that ends early would be repeated without pause.
            let left = at.saturating_duration_since(now) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let polled = poll(&mut waits, timeout);
        let mut ready = waits.split_off(outlets_at.min(waits.len())).into_iter().map(|wait| wait.any().unwrap_or(true));
        let ready: [bool; 2] =
            std::array::from_fn(|at| has_room && outlets[at].pipe.is_some() && ready.next().unwrap_or(false));
        drop(waits);
        watch.wake().clear();
        if let Some(wake) = wiring.wake() {
            wake.clear();
        }
        if polled.is_err() {
            continue;
        }
        for (outlet, ready) in outlets.iter_mut().zip(ready) {
            if ready {
                outlet.read(&mut buffer, wiring);
            }
        }
    }
}

impl Feed {
    /// Writes what can be written now; false when stdin is over.
    fn write(&mut self, wiring: &mut dyn Wiring) -> bool {
        loop {
            if self.written == self.piece.len() {
                if !self.piece.is_empty() {
                    wiring.consumed(self.piece.len());
                }
                (self.piece, self.written) = match wiring.stdin() {
                    Ok(Some(piece)) => (piece, 0),
                    Ok(None) => (bytes::Bytes::new(), 0),
                    Err(StdinOver) => return false,
                };
                if self.piece.is_empty() {
                    return !self.reader_left();
                }
            }
            match nix::unistd::write(&self.pipe, self.piece.get(self.written..).unwrap_or_default()) {
                Ok(len) => self.written += len,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return true,
                // The process has closed its stdin: the rest is of no use, as with a shell's pipe.
                Err(_) => return false,
            }
        }
    }

    fn reader_left(&self) -> bool {
        let mut wait = [PollFd::new(self.pipe.as_fd(), PollFlags::empty())];
        matches!(poll(&mut wait, PollTimeout::ZERO), Ok(1))
    }
}

impl Outlet {
    fn limit_to_what_is_there(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        if self.terminal {
            // Its session has ended, and the kernel has hung it up. Somebody outside the session may hold it.
            let left = *self.left.get_or_insert(TERMINAL_REST);
            let more = matches!(poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO), Ok(1));
            if left == 0 || !more {
                self.pipe = None;
            }
            return;
        }
        if self.left.is_some() {
            return;
        }
        let mut waiting: libc::c_int = 0;
        // SAFETY: FIONREAD writes an int.
        let answer = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut waiting) };
        let left = if answer == 0 { usize::try_from(waiting).unwrap_or(0) } else { 0 };
        self.left = Some(left);
        self.let_go_when_done();
    }

    fn let_go_when_done(&mut self) {
        if self.left == Some(0)
            && !self.terminal
            && let Some(pipe) = self.pipe.take()
        {
            sink::drain(pipe);
        }
    }

    fn read(&mut self, buffer: &mut [u8], wiring: &mut dyn Wiring) {
        let most = wiring.room().min(buffer.len()).min(self.left.unwrap_or(usize::MAX));
        let (Some(pipe), Some(buffer)) = (&self.pipe, buffer.get_mut(..most)) else { return };
        if buffer.is_empty() {
            return;
        }
        match nix::unistd::read(pipe, buffer) {
            Ok(0) => self.pipe = None,
            Ok(len) => {
                wiring.output(self.kind, buffer.get(..len).unwrap_or_default());
                self.left = self.left.map(|left| left.saturating_sub(len));
                self.let_go_when_done();
            }
            Err(nix::Error::EINTR | nix::Error::EAGAIN) => {}
            Err(nix::Error::EIO) if self.terminal => self.pipe = None,
            Err(error) => {
                debug_assert!(false, "read a pipe: {}", io::Error::from(error));
                self.pipe = None;
            }
        }
    }
}
