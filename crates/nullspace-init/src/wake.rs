//! Waking a thread that polls.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd: any thread sets it, the one thread that polls it clears it.
#[derive(Debug)]
pub(crate) struct Wake(EventFd);

impl Wake {
    pub(crate) fn new() -> io::Result<Wake> {
        Ok(Wake(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    /// Makes the poller return, now or when it polls next.
    pub(crate) fn set(&self) {
        // Fails only when the counter is full: then it is set already.
        let _ = self.0.write(1);
    }

    pub(crate) fn clear(&self) {
        // Fails only when it is not set.
        let _ = self.0.read();
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Wakes one thread that serves many things, and tells it which of them have changed.
#[derive(Debug)]
pub(crate) struct Bell {
    wake: Wake,
    rung: Mutex<HashSet<u64>>,
}

impl Bell {
    pub(crate) fn new() -> io::Result<Bell> {
        Ok(Bell { wake: Wake::new()?, rung: Mutex::default() })
    }

    /// Tells that the thing of this number has changed.
    pub(crate) fn ring(&self, number: u64) {
        let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let first = rung.is_empty();
        rung.insert(number);
        drop(rung);
        if first {
            self.wake.set();
        }
    }

    /// What has changed since the last time.
    pub(crate) fn take(&self) -> HashSet<u64> {
        // First: what is rung meanwhile wakes again.
        self.wake.clear();
        std::mem::take(&mut *self.rung.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Polled by the thread.
    pub(crate) fn wake(&self) -> &Wake {
        &self.wake
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    #[test]
    fn a_bell_wakes_for_each_new_number_and_gives_it_once() {
        let bell = Bell::new().unwrap();
        let wakes = || poll(&mut [PollFd::new(bell.wake().as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1);
        assert!(!wakes());
        bell.ring(1);
        bell.ring(2);
        bell.ring(1);
        assert!(wakes());
        assert_eq!(bell.take(), HashSet::from([1, 2]));
        assert!(!wakes() && bell.take().is_empty());
        bell.ring(1);
        assert!(wakes());
    }
}
