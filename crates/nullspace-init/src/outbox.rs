//! The queue of frames to the host.

use std::sync::{Condvar, Mutex, PoisonError};

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
    writing: bool,
    closed: bool,
}

impl Outbox {
    /// Drops what older sessions queued and takes only `session`'s bytes from here on.
    pub(crate) fn adopt(&self, session: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.session = session;
        state.bytes.clear();
    }

    /// Queues whole frames of `session`; dropped when another session was adopted or the stream is gone.
    pub(crate) fn push(&self, session: u64, frames: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.session == session && !state.closed {
            state.bytes.extend_from_slice(frames);
            self.changed.notify_all();
        }
    }

    /// Waits for bytes and takes them all; `None` once closed.
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
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
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let busy = |state: &mut State| !state.closed && (state.writing || !state.bytes.is_empty());
        drop(self.changed.wait_timeout_while(state, limit, busy).unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn close(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.closed = true;
        state.bytes = Vec::new();
        self.changed.notify_all();
    }
}
