//! The agent's stream: one end of a socket whose other end QEMU inherited.
//!
//! QEMU keeps its end for the machine's life, so the socket itself never ends while the machine lives. "A second call
//! closes the first" is done on our side: a [`Connection`] that was superseded reads as ended and refuses to write. What
//! an older connection left half sent or unread in the socket is told apart by the session number in each frame.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Our end of the socket, kept to make connections from.
#[derive(Debug)]
pub(super) struct AgentPort {
    socket: StdUnixStream,
    current: Mutex<CancellationToken>,
}

impl AgentPort {
    /// Takes our end; it must not be blocking.
    pub(super) fn new(socket: StdUnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, current: Mutex::default() })
    }

    /// A connection; an earlier one is closed.
    pub(super) fn connect(&self) -> io::Result<Connection> {
        let stream = UnixStream::from_std(self.socket.try_clone()?)?;
        let closed = CancellationToken::new();
        let older =
            std::mem::replace(&mut *self.current.lock().unwrap_or_else(PoisonError::into_inner), closed.clone());
        older.cancel();
        Ok(Connection { stream, superseded: Box::pin(closed.clone().cancelled_owned()), closed })
    }
}

/// One use of the agent's stream.
pub(super) struct Connection {
    stream: UnixStream,
    closed: CancellationToken,
    /// Wakes a reader or writer that waits when the connection is superseded.
    superseded: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    fn is_closed(&mut self, context: &mut Context<'_>) -> bool {
        self.closed.is_cancelled() || self.superseded.as_mut().poll(context).is_ready()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_closed(context) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        // Looked at, and not waited for: a reader of this connection owns the waker. QEMU drains the socket, so that a
        // write does not wait for long.
        if self.closed.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    /// Does not shut the socket down, which a later connection will use.
    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.closed.cancel();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_second_connection_closes_the_first_and_has_the_stream() {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let mut theirs = UnixStream::from_std(theirs).unwrap();
        let port = AgentPort::new(ours).unwrap();
        let mut first = port.connect().unwrap();
        first.write_all(b"one").await.unwrap();
        let waiting = tokio::spawn(async move {
            let mut byte = [0];
            let count = first.read(&mut byte).await.unwrap();
            (first, count)
        });
        tokio::task::yield_now().await;
        let mut second = port.connect().unwrap();
        let (mut first, count) = waiting.await.unwrap();
        assert_eq!(count, 0, "the first reads as ended");
        assert_eq!(first.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        drop(first);
        second.write_all(b"two").await.unwrap();
        let mut got = [0; 6];
        theirs.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"onetwo");
        theirs.write_all(b"answer").await.unwrap();
        second.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"answer");
    }

    #[tokio::test]
    async fn the_end_of_qemu_is_the_end_of_the_stream() {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        let mut connection = AgentPort::new(ours).unwrap().connect().unwrap();
        drop(theirs);
        assert_eq!(connection.read(&mut [0]).await.unwrap(), 0);
    }
}
