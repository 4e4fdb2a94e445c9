//! Waking a thread that polls.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

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
