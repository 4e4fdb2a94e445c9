//! A process that is held by a descriptor, so that a signal reaches no other which has got its number meanwhile.

#![allow(unsafe_code, reason = "pidfds have no safe wrapper here")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A process, also one that has ended.
#[derive(Debug)]
pub(crate) struct Handle(OwnedFd);

impl Handle {
    /// Holds the process that has this number now. `None`: there is none. What the caller knows of the number is to be checked
    /// behind this call.
    pub(crate) fn open(pid: i32) -> io::Result<Option<Handle>> {
        // SAFETY: a plain system call.
        let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        match i32::try_from(opened) {
            // SAFETY: just opened, and owned by nobody else.
            Ok(fd) if fd >= 0 => Ok(Some(Handle(unsafe { OwnedFd::from_raw_fd(fd) }))),
            _ => match io::Error::last_os_error() {
                // The number of none, or of a thread that is not its process's first.
                error if matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EINVAL | libc::ENOENT)) => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Sends a signal; 0 only looks whether it could be sent. False when the process has ended.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<bool> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: a system call on a descriptor that is open, without a pointer.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal, none, 0) };
        match sent {
            0 => Ok(true),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(false),
                error => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_signal_reaches_its_process_and_no_other_afterwards() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let handle = Handle::open(i32::try_from(child.id()).unwrap()).unwrap().unwrap();
        assert!(handle.signal(0).unwrap() && handle.signal(libc::SIGTERM).unwrap());
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM));
        assert!(!handle.signal(0).unwrap(), "its number is free, and the handle does not mean its next owner");
        assert!(Handle::open(i32::try_from(child.id()).unwrap()).unwrap().is_none());
    }
}
