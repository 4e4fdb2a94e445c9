//! Connections to ports and Unix sockets of the guest, as byte streams.
//!
//! ```text
//!   write ──STDIN──> agent ──> 127.0.0.1:port          shutdown: EOF, the server reads its end
//!   read  <─STDOUT── agent <──                         EOF of the agent: the end of what is read
//! ```

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::link::{Handle, Item, OpenChannel};
use super::{Agent, AgentError};
use crate::frame::Kind;
use crate::message::{DIAL_LIMIT_MS, FailureKind, Outcome, Request};

/// Bound from asking until the connection is open. A snapshot may come between.
const OPEN: Duration = Duration::from_millis(DIAL_LIMIT_MS).saturating_add(Duration::from_secs(15));

/// A connection to a TCP port or a Unix socket of the guest. Dropping it closes the connection. It holds at most
/// [`DIAL_WINDOW`](crate::frame::DIAL_WINDOW) bytes that were not read.
///
/// Each direction ends on its own: [`AsyncWrite::poll_shutdown`] is an end of file for the server, and the server's end is one
/// for the reader.
///
/// Errors: `ConnectionReset` when the server has broken off, `ConnectionAborted` when the session with the agent has ended,
/// `BrokenPipe` for writes behind either.
#[derive(Debug)]
pub struct Dialled {
    channel: OpenChannel,
    /// Bytes that came and were not read.
    piece: Bytes,
    read_over: bool,
    write_over: bool,
    /// Keeps the connection to the agent open.
    _handle: Arc<Handle>,
}

impl Agent {
    /// Connects to a TCP port of the guest's loopback: 127.0.0.1, then ::1.
    ///
    /// # Errors
    /// [`AgentError::Failed`] of kind [`FailureKind::ConnectionRefused`] when nothing listens there,
    /// [`FailureKind::ConnectionTimedOut`] when nothing accepts within [`DIAL_LIMIT_MS`], [`FailureKind::Limit`] when there are
    /// [`MAX_DIALLED`](crate::frame::MAX_DIALLED) connections.
    pub async fn dial(&self, port: u16) -> Result<Dialled, AgentError> {
        self.dialled(&Request::Dial { port }).await
    }

    /// Connects to a Unix socket of the guest, as root.
    ///
    /// # Errors
    /// As [`Agent::dial`]; [`FailureKind::ConnectionRefused`] also when there is no such path, and [`AgentError::Lacking`] for an
    /// older agent.
    pub async fn dial_socket(&self, path: &str) -> Result<Dialled, AgentError> {
        self.dialled(&Request::DialSocket { path: path.to_owned() }).await
    }

    async fn dialled(&self, request: &Request) -> Result<Dialled, AgentError> {
        let channel = self.handle.open(request)?;
        let first = tokio::time::timeout(OPEN, channel.next()).await;
        match first.map_err(|_| AgentError::timeout("dial", OPEN))? {
            Item::Reply(Outcome::Done) => Ok(Dialled {
                channel,
                piece: Bytes::new(),
                read_over: false,
                write_over: false,
                _handle: Arc::clone(&self.handle),
            }),
            Item::Reply(Outcome::Failed(failure)) => Err(AgentError::Failed(failure)),
            Item::End(Err(error)) => Err(error),
            Item::Reply(other) | Item::End(Ok(other)) => Err(AgentError::unexpected("dial", &other)),
            Item::Output(..) => Err(AgentError::Protocol("output before the reply".to_owned())),
        }
    }
}

impl AsyncRead for Dialled {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.piece.is_empty() && !self.read_over {
            match ready!(self.channel.poll_next(cx)) {
                Item::Output(Kind::Stdout, bytes) => self.piece = bytes,
                Item::Output(Kind::Eof, _) | Item::End(Ok(Outcome::Done)) => self.read_over = true,
                Item::Output(kind, _) => {
                    return Poll::Ready(Err(io::Error::other(format!("{kind:?} of a connection"))));
                }
                Item::Reply(other) | Item::End(Ok(other)) => {
                    return Poll::Ready(Err(io::Error::other(AgentError::unexpected("dial", &other))));
                }
                Item::End(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let len = self.piece.len().min(buffer.remaining());
        buffer.put_slice(self.piece.get(..len).unwrap_or_default());
        self.piece.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Dialled {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.write_over {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let written = ready!(self.channel.poll_write(cx, bytes));
        // The reader is told the reason.
        Poll::Ready(written.map_err(|_| io::ErrorKind::BrokenPipe.into()))
    }

    /// What was written is on its way: nothing is kept back.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.write_over {
            self.write_over = true;
            self.channel.write_eof();
        }
        Poll::Ready(Ok(()))
    }
}

fn broken(error: AgentError) -> io::Error {
    let kind = match &error {
        AgentError::Failed(failure) if failure.kind == FailureKind::ConnectionReset => io::ErrorKind::ConnectionReset,
        AgentError::Closed => io::ErrorKind::ConnectionAborted,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
