//! The queue of frames to the host.
//!
//! ```text
//!   push ──> bytes ──take──> the stream                push_last: bytes, and held from then on
//!              ^
//!              └── release ── later <── push while held        continue_on: what is held moves to another stream's queue
//! ```

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The queue between the threads that answer and the one thread that writes. It does not bound itself: output is bounded by
/// credit, and every channel sends one reply and one end.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    session: u64,
    bytes: Vec<u8>,
    /// True while the session is halted: frames are kept in `later`, whether the stream lives or not.
    held: bool,
    later: Vec<u8>,
    writing: bool,
    closed: bool,
}

impl Outbox {
    /// Drops what older sessions queued and takes only `session`'s bytes from here on.
    pub(crate) fn adopt(&self, session: u64) {
        let mut state = self.lock();
        state.session = session;
        state.bytes.clear();
        (state.held, state.later) = (false, Vec::new());
    }

    /// Queues whole frames of `session`; dropped when another session was adopted or the stream is gone.
    pub(crate) fn push(&self, session: u64, frames: &[u8]) {
        let mut state = self.lock();
        if state.session == session && state.held {
            state.later.extend_from_slice(frames);
        } else {
            self.push_into(&mut state, session, frames);
        }
    }

    /// As [`Outbox::push`], of frames that do not wait for the end of a halt.
    pub(crate) fn push_now(&self, session: u64, frames: &[u8]) {
        self.push_into(&mut self.lock(), session, frames);
    }

    /// Queues the last frames before a halt: those that are pushed later are held.
    pub(crate) fn push_last(&self, session: u64, frames: &[u8]) {
        let mut state = self.lock();
        self.push_into(&mut state, session, frames);
        state.held |= state.session == session;
    }

    /// Ends the halt of `session`: what was held is sent.
    pub(crate) fn release(&self, session: u64) {
        let mut state = self.lock();
        if state.session == session && state.held {
            state.held = false;
            let later = std::mem::take(&mut state.later);
            self.push_into(&mut state, session, &later);
        }
    }

    /// Moves a halted session to the outbox of another stream. False when it is not halted here.
    pub(crate) fn continue_on(&self, session: u64, other: &Outbox) -> bool {
        let later = {
            let mut state = self.lock();
            if state.session != session || !state.held {
                return false;
            }
            (state.held, state.closed, state.bytes) = (false, true, Vec::new());
            self.changed.notify_all();
            std::mem::take(&mut state.later)
        };
        other.adopt(session);
        let mut state = other.lock();
        (state.held, state.later) = (true, later);
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push_into(&self, state: &mut State, session: u64, frames: &[u8]) {
        if state.session == session && !state.closed {
            state.bytes.extend_from_slice(frames);
            self.changed.notify_all();
        }
    }

    /// Waits for bytes and takes them all; `None` once closed.
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        state.writing = false;
        self.changed.notify_all();
        loop {
            if state.closed {
                return None;
            }
            if !state.bytes.is_empty() {
                state.writing = true;
                return Some(std::mem::take(&mut state.bytes));
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until all is written, at most for `limit`.
    pub(crate) fn flush(&self, limit: std::time::Duration) {
        let state = self.lock();
        let busy = |state: &mut State| !state.closed && (state.writing || !state.bytes.is_empty());
        drop(self.changed.wait_timeout_while(state, limit, busy).unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.bytes = Vec::new();
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halted_session_keeps_its_frames_over_a_change_of_streams() {
        let (first, second) = (Outbox::default(), Outbox::default());
        first.adopt(7);
        first.push(7, b"a");
        first.push_last(7, b"b");
        first.push(7, b"c");
        assert_eq!(first.take().unwrap(), b"ab");
        first.push_now(7, b"ack");
        assert_eq!(first.take().unwrap(), b"ack");
        // The stream ends; what comes meanwhile is kept.
        first.close();
        first.push(7, b"d");
        assert!(!first.continue_on(8, &second), "another session");
        assert!(first.continue_on(7, &second));
        second.push(7, b"e");
        second.push_now(7, b"ack");
        assert_eq!(second.take().unwrap(), b"ack");
        second.release(7);
        second.push(7, b"f");
        assert_eq!(second.take().unwrap(), b"cdef");
        assert!(!second.continue_on(7, &first), "it is not halted any more");
    }

    #[test]
    fn a_new_session_gets_nothing_of_what_was_held() {
        let outbox = Outbox::default();
        outbox.adopt(1);
        outbox.push_last(1, b"a");
        outbox.push(1, b"b");
        outbox.adopt(2);
        outbox.push(2, b"c");
        outbox.release(1);
        assert_eq!(outbox.take().unwrap(), b"c");
    }
}
