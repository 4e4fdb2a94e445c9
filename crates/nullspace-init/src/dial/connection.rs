//! One connection: from the first attempt to the end of both directions.
//!
//! ```text
//!   dialling ── 127.0.0.1, then ::1 ──> open ──┬─ peer ends ──> EOF to the host ──┬──> END Done
//!      │ refused, or no time left              ├─ EOF of the host ──> shutdown ───┘
//!      └──> END Failed                         └─ broken off ──> what came before it, then END Failed
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr, connect, setsockopt, socket, sockopt,
};
use nullspace_guest::frame::Kind;
use nullspace_guest::message::{DIAL_LIMIT_MS, Failure, FailureKind, Outcome};

use super::Goal;
use super::socket::Socket;
use crate::session::Channel;

/// Where servers listen, in the order in which they are tried.
const ADDRESSES: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// Pieces that one connection moves in each direction before it is the others' turn.
const TURN: usize = 8;

/// What a connection needs next.
pub(super) enum Next {
    /// An event of its socket or its channel.
    Wait,
    /// Another turn: it could do more at once.
    Again,
    /// Nothing: it has ended, and the host was told.
    Over,
}

/// A connection to a port or a Unix socket.
pub(super) struct Connection {
    number: u64,
    channel: Arc<Channel>,
    socket: Socket,
    /// Until it is open.
    dialling: Option<Dialling>,
    readable: bool,
    writable: bool,
    /// What is left to be written of a piece that the host has sent, and how long the piece was.
    piece: Bytes,
    piece_len: Option<usize>,
    /// The peer has ended its direction.
    read_over: bool,
    /// The host has ended its own, or the peer takes nothing any more.
    write_over: bool,
    /// The peer has broken off.
    broken: bool,
}

struct Dialling {
    goal: Goal,
    until: Instant,
    /// How many of the goal's addresses were tried.
    tried: usize,
    /// Why the first of them failed: most servers are expected there.
    first: Option<io::Error>,
}

impl Dialling {
    /// Begins the next attempt; `None` when all addresses were tried.
    fn attempt(&mut self, number: u64, epoll: &Epoll) -> Option<Socket> {
        while let Some(begun) = self.begin() {
            let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
            let begun = begun.and_then(|socket| {
                // Once it connects: a socket that does not is ready at once.
                epoll.add(&socket, EpollEvent::new(interest, number))?;
                Ok(socket)
            });
            match begun {
                Ok(socket) => return Some(socket),
                Err(error) => self.failed(error),
            }
        }
        None
    }

    /// Begins to connect to the next address; `None` behind the last.
    fn begin(&mut self) -> Option<io::Result<Socket>> {
        let at = self.tried;
        let begun = match &self.goal {
            Goal::Port(port) => begin(SocketAddr::new(*ADDRESSES.get(at)?, *port)),
            Goal::Socket(path) if at == 0 => begin_local(path),
            Goal::Socket(_) => return None,
        };
        self.tried += 1;
        Some(begun)
    }

    fn failed(&mut self, error: io::Error) {
        self.first.get_or_insert(error);
    }

    fn outcome(&self) -> Outcome {
        let (on, what) = match &self.goal {
            Goal::Port(port) => (format!("port {port}"), format!("Port {port}")),
            Goal::Socket(path) => (format!("`{path}`"), format!("`{path}`")),
        };
        let absent = |kind| kind == io::ErrorKind::ConnectionRefused || kind == io::ErrorKind::NotFound;
        let (kind, message) = match &self.first {
            Some(error) if absent(error.kind()) => {
                (FailureKind::ConnectionRefused, format!("Nothing listens on {on} in this guest."))
            }
            Some(error) if error.kind() == io::ErrorKind::TimedOut => {
                let limit = DIAL_LIMIT_MS / 1000;
                (FailureKind::ConnectionTimedOut, format!("{what} did not accept a connection within {limit} s."))
            }
            Some(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS)) => {
                (FailureKind::Limit, format!("The agent can open no further connection: {error}."))
            }
            Some(error) => (FailureKind::Internal, format!("{what} cannot be connected to: {error}.")),
            None => (FailureKind::Internal, format!("{what} cannot be connected to.")),
        };
        Outcome::Failed(Failure { kind, message })
    }
}

/// Begins to connect.
fn begin(address: SocketAddr) -> io::Result<Socket> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(nix::Error::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let socket = TcpStream::from(socket);
    // What comes from the host comes in its portions already.
    socket.set_nodelay(true)?;
    Ok(Socket::Tcp(socket))
}

/// Connects to a Unix socket, which is done at once or not at all.
fn begin_local(path: &str) -> io::Result<Socket> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(Socket::Local(UnixStream::from(socket)))
}

impl Connection {
    /// Begins to connect; `None` when it has failed at once, and the host was told.
    pub(super) fn dial(goal: Goal, channel: Arc<Channel>, number: u64, epoll: &Epoll) -> Option<Connection> {
        let until = Instant::now() + Duration::from_millis(DIAL_LIMIT_MS);
        let mut dialling = Dialling { goal, until, tried: 0, first: None };
        let Some(socket) = dialling.attempt(number, epoll) else {
            channel.end(&dialling.outcome());
            return None;
        };
        Some(Connection {
            number,
            channel,
            socket,
            dialling: Some(dialling),
            readable: false,
            writable: false,
            piece: Bytes::new(),
            piece_len: None,
            read_over: false,
            write_over: false,
            broken: false,
        })
    }

    /// Notes what the kernel says of its socket.
    pub(super) fn is_ready(&mut self, events: EpollFlags) {
        let failed = EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP;
        self.readable |= events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | failed);
        self.writable |= events.intersects(EpollFlags::EPOLLOUT | failed);
    }

    /// When it has to be open.
    pub(super) fn due(&self) -> Option<Instant> {
        self.dialling.as_ref().map(|dialling| dialling.until)
    }

    /// Does what can be done now.
    pub(super) fn step(&mut self, epoll: &Epoll, buffer: &mut [u8]) -> Next {
        if self.channel.is_reset() {
            self.abort();
            return Next::Over;
        }
        if self.dialling.is_some() && !self.is_open(epoll) {
            return if self.dialling.is_some() { Next::Wait } else { Next::Over };
        }
        let (read, written) = (self.read(buffer), self.write());
        if self.broken && self.read_over {
            self.channel.end(&broken_off());
            return Next::Over;
        }
        if self.read_over && self.write_over {
            self.channel.end(&Outcome::Done);
            return Next::Over;
        }
        if read || written { Next::Again } else { Next::Wait }
    }

    /// Looks how far the attempt has come. Once all have failed it is no longer dialling.
    fn is_open(&mut self, epoll: &Epoll) -> bool {
        let Some(dialling) = &mut self.dialling else { return true };
        let error = match self.socket.take_error() {
            Ok(None) if self.socket.is_connected() => {
                self.dialling = None;
                self.channel.reply(&Outcome::Done);
                return true;
            }
            Ok(None) if Instant::now() < dialling.until => return false,
            Ok(None) => {
                // There is no time for another address.
                dialling.first = Some(io::ErrorKind::TimedOut.into());
                dialling.tried = usize::MAX;
                io::ErrorKind::TimedOut.into()
            }
            Ok(Some(error)) | Err(error) => error,
        };
        dialling.failed(error);
        match dialling.attempt(self.number, epoll) {
            Some(socket) => {
                (self.socket, self.readable, self.writable) = (socket, false, false);
            }
            None => {
                self.channel.end(&dialling.outcome());
                self.dialling = None;
            }
        }
        false
    }

    /// From the peer to the host. True when there may be more at once.
    fn read(&mut self, buffer: &mut [u8]) -> bool {
        for _ in 0..TURN {
            if self.read_over || !self.readable {
                return false;
            }
            let room = self.channel.room().min(buffer.len());
            let Some(piece) = buffer.get_mut(..room).filter(|piece| !piece.is_empty()) else { return false };
            match self.socket.read(piece) {
                Ok(0) => {
                    self.read_over = true;
                    // Once it has broken off, this is no end that the peer has meant.
                    if !self.broken {
                        self.channel.output_over();
                    }
                }
                Ok(len) => self.channel.output(Kind::Stdout, piece.get(..len).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(_) => (self.read_over, self.broken) = (true, true),
            }
        }
        true
    }

    /// From the host to the peer. True when there may be more at once.
    fn write(&mut self) -> bool {
        for _ in 0..TURN {
            if self.piece.is_empty() {
                if let Some(len) = self.piece_len.take() {
                    self.channel.consumed(len);
                }
                match self.channel.stdin() {
                    Ok(Some(piece)) => (self.piece_len, self.piece) = (Some(piece.len()), piece),
                    Ok(None) => return false,
                    Err(_over) => {
                        if !self.write_over {
                            self.write_over = true;
                            let _ = self.socket.end_writing();
                        }
                        return false;
                    }
                }
            }
            if self.write_over {
                // Nobody takes it.
                self.piece.clear();
                continue;
            }
            if !self.writable {
                return false;
            }
            match self.socket.write(&self.piece) {
                Ok(len) => self.piece.advance(len),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                // What the peer has sent before is still read.
                Err(_) => (self.write_over, self.broken, self.readable) = (true, true, true),
            }
        }
        true
    }

    /// Ends it by a fault of the agent.
    pub(super) fn fail(self, message: &str) {
        self.channel.end(&Outcome::Failed(Failure { kind: FailureKind::Internal, message: message.to_owned() }));
    }

    /// The host has given it up. The peer sees a broken connection when it does not get all that was sent.
    fn abort(&self) {
        if !self.piece.is_empty() || self.channel.has_stdin() {
            let _ = setsockopt(&self.socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 });
        }
    }
}

fn broken_off() -> Outcome {
    let message = "The server has broken the connection off.".to_owned();
    Outcome::Failed(Failure { kind: FailureKind::ConnectionReset, message })
}
