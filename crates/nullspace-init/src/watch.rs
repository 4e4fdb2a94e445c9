//! Changes of files below a directory, by inotify.
//!
//! ```text
//!   kernel's queue ── events ──> Tree: which directory, which path ── lines ──> buffer ── credit ──> host
//!     │ full: IN_Q_OVERFLOW        │ a new directory is watched, and what is in it is told
//!     └──> overflow event,         └ a renamed one keeps its watch under its new path
//!          all is watched anew
//! ```
//! A host that takes nothing fills the buffer. Then nothing is read from the kernel, whose queue is bounded. What one reading brings
//! beyond the buffer's limit is dropped. So events are lost with an overflow event in their place, and no memory grows.

mod tree;

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nullspace_guest::frame::Kind;
use nullspace_guest::message::{Failure, FailureKind, Outcome};
use nullspace_guest::watch::{MAX_WATCHES, WatchCall, WatchEvent, WatchKind};

use self::tree::Tree;
use crate::files::place;
use crate::session::Channel;
use crate::user_thread;

/// Lines that wait for credit, bytes. With as many, no events are read.
const BUFFER: usize = 256 * 1024;
/// Most bytes of lines that wait, whatever one reading brings: a directory that appears is told with what is in it.
const MAX_BUFFER: usize = 2 * BUFFER;
/// Time in which the second half of a rename follows the first, ms.
const PAIR_MS: u8 = 20;

/// Watches of this guest.
static WATCHES: AtomicUsize = AtomicUsize::new(0);

/// One of the guest's watches.
struct Place;

impl Place {
    fn take() -> Result<Place, Failure> {
        let more = |count| (count < MAX_WATCHES).then_some(count + 1);
        WATCHES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map(|_| Place).map_err(|_| {
            limit(format!("{MAX_WATCHES} directories of this sandbox are watched already: stop watching one first."))
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        WATCHES.fetch_sub(1, Ordering::Relaxed);
    }
}

fn limit(message: String) -> Failure {
    Failure { kind: FailureKind::Limit, message }
}

/// Watches until the channel is reset, or the directory is gone.
pub(crate) fn serve(call: &WatchCall, channel: &Channel) -> Outcome {
    let watched = || {
        let _place = Place::take()?;
        let account = user_thread::account(call.user.as_deref())?;
        let cwd = call.cwd.as_deref().unwrap_or(&account.home);
        let root = place(Some(cwd), &call.path)?;
        user_thread::run(&account, || watch(&root, call.recursive, channel))
    };
    match watched() {
        Ok(()) => Outcome::Done,
        Err(failure) => Outcome::Failed(failure),
    }
}

fn watch(root: &Path, recursive: bool, channel: &Channel) -> Result<(), Failure> {
    let mut tree = Tree::new(root, recursive)?;
    channel.reply(&Outcome::Watching { path: root.to_string_lossy().into_owned() });
    let mut lines = Lines::default();
    loop {
        channel.wake().clear();
        if channel.is_reset() {
            return Ok(());
        }
        lines.send(channel);
        let reads = lines.buffer.len() < BUFFER;
        let wanted = if reads { PollFlags::POLLIN } else { PollFlags::empty() };
        let timeout = if tree.waits_for_a_pair() { PollTimeout::from(PAIR_MS) } else { PollTimeout::NONE };
        let ready = {
            let mut waits = [PollFd::new(channel.wake().as_fd(), PollFlags::POLLIN), PollFd::new(tree.queue(), wanted)];
            match poll(&mut waits, timeout) {
                // Interrupted: look again.
                Err(_) => continue,
                Ok(0) => None,
                Ok(_) => Some(waits[1].any().unwrap_or(true)),
            }
        };
        match ready {
            Some(true) if reads => {
                if let Err(over) = tree.read(&mut |event| lines.add(&event)) {
                    // What came before the end is told before it.
                    lines.send_all(channel);
                    return Err(over);
                }
            }
            Some(_) => {}
            None => tree.settle(&mut |event| lines.add(&event)),
        }
    }
}

/// Events on their way to the host.
#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
    /// The last event, while it waits here: an equal one behind it says nothing new.
    last: Option<WatchEvent>,
    /// The buffer was full: an overflow event is its last line, and events are dropped until there is space again.
    full: bool,
}

impl Lines {
    fn add(&mut self, event: &WatchEvent) {
        let repeats = matches!(event.kind, WatchKind::Modify | WatchKind::Chmod | WatchKind::Overflow);
        if self.full || repeats && self.last.as_ref() == Some(event) {
            return;
        }
        let before = self.buffer.len();
        self.write(event);
        if self.buffer.len() > MAX_BUFFER {
            self.buffer.truncate(before);
            self.full = true;
            self.write(&WatchEvent::overflow());
        }
    }

    fn write(&mut self, event: &WatchEvent) {
        // Our own type has string keys and no floats: serialising cannot fail.
        let _ = serde_json::to_writer(&mut self.buffer, event);
        self.buffer.push(b'\n');
        self.last = Some(event.clone());
    }

    /// Sends all of it, waiting for credit until the channel is reset.
    fn send_all(&mut self, channel: &Channel) {
        loop {
            channel.wake().clear();
            self.send(channel);
            if self.buffer.is_empty() || channel.is_reset() {
                return;
            }
            // Interrupted: look again.
            let _ = poll(&mut [PollFd::new(channel.wake().as_fd(), PollFlags::POLLIN)], PollTimeout::NONE);
        }
    }

    fn send(&mut self, channel: &Channel) {
        let mut sent = 0;
        while sent < self.buffer.len() {
            let room = channel.room().min(self.buffer.len() - sent);
            if room == 0 {
                break;
            }
            channel.output(Kind::Stdout, self.buffer.get(sent..sent + room).unwrap_or_default());
            sent += room;
        }
        self.buffer.drain(..sent);
        self.full &= self.buffer.len() >= BUFFER;
        if self.buffer.is_empty() {
            self.last = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(name: String) -> WatchEvent {
        WatchEvent { kind: WatchKind::Create, name, from: None }
    }

    #[test]
    fn what_one_reading_brings_is_bounded_and_ends_with_an_overflow() {
        let mut lines = Lines::default();
        for number in 0..10_000 {
            lines.add(&create(format!("{number}{}", "\u{1}".repeat(1000))));
        }
        assert!(lines.buffer.len() <= MAX_BUFFER + 100, "{}", lines.buffer.len());
        let text = String::from_utf8(lines.buffer.clone()).unwrap();
        let told: Vec<WatchEvent> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let (last, before) = told.split_last().unwrap();
        assert_eq!(*last, WatchEvent::overflow());
        assert!(before.len() > 10 && before.iter().all(|event| event.kind == WatchKind::Create));
        // With space again, events are told again.
        lines.buffer.truncate(10);
        lines.full &= lines.buffer.len() >= BUFFER;
        lines.add(&create("later".into()));
        assert!(lines.buffer.ends_with(b"\"later\"}\n"));
    }
}
