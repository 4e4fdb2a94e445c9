//! A connected socket of either family.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// A socket that does not block.
#[derive(Debug)]
pub(super) enum Socket {
    /// To a TCP port.
    Tcp(TcpStream),
    /// To a Unix socket.
    Local(UnixStream),
}

impl Socket {
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => Read::read(&mut { socket }, buffer),
            Socket::Local(socket) => Read::read(&mut { socket }, buffer),
        }
    }

    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Tcp(socket) => Write::write(&mut { socket }, bytes),
            Socket::Local(socket) => Write::write(&mut { socket }, bytes),
        }
    }

    /// Takes the error that its connecting has ended with.
    pub(super) fn take_error(&self) -> io::Result<Option<io::Error>> {
        match self {
            Socket::Tcp(socket) => socket.take_error(),
            Socket::Local(socket) => socket.take_error(),
        }
    }

    /// True when it has a peer.
    pub(super) fn is_connected(&self) -> bool {
        match self {
            Socket::Tcp(socket) => socket.peer_addr().is_ok(),
            Socket::Local(socket) => socket.peer_addr().is_ok(),
        }
    }

    /// Tells the peer that nothing more comes.
    pub(super) fn end_writing(&self) -> io::Result<()> {
        match self {
            Socket::Tcp(socket) => socket.shutdown(Shutdown::Write),
            Socket::Local(socket) => socket.shutdown(Shutdown::Write),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Local(socket) => socket.as_fd(),
        }
    }
}
