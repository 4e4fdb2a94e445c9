//! The byte stream to the host, as one thread reads it and another writes it.
//!
//! Edge-triggered epoll, because a virtio-serial port without a host is always "readable" (with nothing) and always hung
//! up: a level-triggered wait would spin, a sleep would delay the first answer after a restore. The driver wakes its
//! wait queue when the host comes back (`VIRTIO_CONSOLE_PORT_OPEN`), and that edge is all that is waited for.

#![allow(unsafe_code, reason = "a descriptor that may be a socket is shut down")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// How the stream's end is to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamKind {
    /// A virtio-serial port: the host comes and goes, the port stays.
    Port,
    /// A connection: over when it is over.
    Connection,
}

/// What a read gave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// So many bytes.
    Bytes(usize),
    /// The host has left; the next read waits for its return.
    Away,
    /// Nothing will come any more.
    Over,
}

/// A duplex stream for two threads.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    kind: StreamKind,
    readable: Epoll,
    writable: Epoll,
}

impl Stream {
    /// Takes a port or a connected socket.
    pub fn new(fd: OwnedFd, kind: StreamKind) -> io::Result<Stream> {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let edge = |interest| -> io::Result<Epoll> {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            epoll.add(&fd, EpollEvent::new(interest | EpollFlags::EPOLLET, 0))?;
            Ok(epoll)
        };
        let (readable, writable) = (edge(EpollFlags::EPOLLIN)?, edge(EpollFlags::EPOLLOUT)?);
        Ok(Stream { fd, kind, readable, writable })
    }

    /// Waits for bytes, the host's leave or the end.
    pub(crate) fn read(&self, buffer: &mut [u8], mut was_away: bool) -> io::Result<Input> {
        loop {
            match nix::unistd::read(&self.fd, buffer) {
                Ok(0) if self.kind == StreamKind::Connection => return Ok(Input::Over),
                Ok(0) if !was_away => return Ok(Input::Away),
                Ok(0) => {}
                Ok(len) => return Ok(Input::Bytes(len)),
                Err(nix::Error::EINTR) => continue,
                // Connected and silent: a later leave is news again.
                Err(nix::Error::EAGAIN) => was_away = false,
                Err(error) => return Err(error.into()),
            }
            wait(&self.readable, EpollTimeout::NONE)?;
        }
    }

    /// Writes all, waiting for as long as the host is away.
    pub(crate) fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match nix::unistd::write(&self.fd, bytes) {
                Ok(len) => bytes = bytes.get(len..).unwrap_or_default(),
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => {
                    // The edge may be older than the refusal when the queue is drained without an interrupt.
                    wait(&self.writable, EpollTimeout::from(100u8))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Ends a connection from another thread: its reader and writer return.
    pub(crate) fn shut_down(&self) {
        // SAFETY: a plain system call on a descriptor that `self` owns. It fails on ports, which nobody shuts down.
        unsafe { libc::shutdown(self.fd.as_fd().as_raw_fd(), libc::SHUT_RDWR) };
    }
}

fn wait(epoll: &Epoll, timeout: EpollTimeout) -> io::Result<()> {
    let mut events = [EpollEvent::empty()];
    match epoll.wait(&mut events, timeout) {
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
