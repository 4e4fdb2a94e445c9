//! Backpressure from a sandbox to an SSH client, and the end of a connection.
//!
//! ```text
//!   socket ──read, while there is space──> SSH ──> input of channels (counted here) ──> programs
//!   socket <───────── written always ───── SSH <── output of channels
//! ```
//! The SSH library gives clients new windows as soon as data arrives, so windows bound nothing. The space for input that no program
//! has taken bounds it: a connection without space is not read, and TCP slows its client down. Output goes on meanwhile.
//!
//! A client's permission to send it more output may stand behind input in the stream. So a connection whose output waits is read a
//! little further: `cat` with much input would stand still otherwise, because it reads no more before it has written. That further
//! space is bounded for each connection and for the server.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of input that a connection may have waiting.
const SPACE: usize = 256 << 10;
/// Bytes of input that it may have waiting while its output waits: more than what sockets on both sides hold.
const FURTHER: usize = 6 << 20;
/// Bytes beyond [`SPACE`] that all connections may have waiting.
const FURTHER_TOTAL: usize = 192 << 20;
/// What an input costs besides its bytes.
const ITEM: usize = 128;

/// Bytes of input of all connections of a server.
#[derive(Debug, Default)]
pub(crate) struct Total(AtomicUsize);

/// The flow of one connection.
#[derive(Debug)]
pub(crate) struct Flow {
    total: Arc<Total>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes of input that wait.
    waiting: usize,
    /// Channels whose output waits.
    outputs: usize,
    cut: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Input that is counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted<T> {
    pub(crate) item: T,
    bytes: usize,
    flow: Arc<Flow>,
}

/// Output that waits.
pub(crate) struct Waiting<'a>(&'a Flow);

impl Flow {
    pub(crate) fn new(total: Arc<Total>) -> Arc<Self> {
        Arc::new(Self { total, state: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts input of so many bytes.
    pub(crate) fn count<T>(self: &Arc<Self>, item: T, bytes: usize) -> Counted<T> {
        let bytes = bytes.saturating_add(ITEM);
        self.lock().waiting += bytes;
        self.total.0.fetch_add(bytes, Ordering::Relaxed);
        Counted { item, bytes, flow: Arc::clone(self) }
    }

    /// Output begins to wait.
    pub(crate) fn output(&self) -> Waiting<'_> {
        let reader = {
            let mut state = self.lock();
            state.outputs += 1;
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
        Waiting(self)
    }

    /// True when the client is not read for want of space.
    pub(crate) fn is_full(&self) -> bool {
        self.lock().waiting >= SPACE
    }

    /// Ends the connection: nothing is read or written any more.
    pub(crate) fn cut(&self) {
        let (reader, writer) = {
            let mut state = self.lock();
            state.cut = true;
            (state.reader.take(), state.writer.take())
        };
        for waker in [reader, writer].into_iter().flatten() {
            waker.wake();
        }
    }

    /// Ready when the client may be read.
    fn poll_space(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.lock();
        if state.cut {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let further =
            state.outputs > 0 && state.waiting < FURTHER && self.total.0.load(Ordering::Relaxed) < FURTHER_TOTAL;
        // Also kept while it is read: a cut wakes it.
        state.reader = Some(cx.waker().clone());
        if state.waiting < SPACE || further { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    fn poll_uncut(&self, cx: &Context<'_>) -> io::Result<()> {
        let mut state = self.lock();
        if state.cut {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        state.writer = Some(cx.waker().clone());
        Ok(())
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        self.flow.total.0.fetch_sub(self.bytes, Ordering::Relaxed);
        let reader = {
            let mut state = self.flow.lock();
            state.waiting = state.waiting.saturating_sub(self.bytes);
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.outputs = state.outputs.saturating_sub(1);
    }
}

/// A client's socket, read as far as there is space.
pub(crate) struct Transport<S> {
    socket: S,
    flow: Arc<Flow>,
}

impl<S> Transport<S> {
    pub(crate) fn new(socket: S, flow: Arc<Flow>) -> Self {
        Self { socket, flow }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Transport<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        std::task::ready!(this.flow.poll_space(cx))?;
        Pin::new(&mut this.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Transport<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.flow.poll_uncut(cx)?;
        Pin::new(&mut this.socket).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.flow.poll_uncut(cx)?;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn a_connection_without_space_is_not_read_until_input_is_taken() {
        let (mut client, server) = tokio::io::duplex(64);
        let total = Arc::new(Total::default());
        let flow = Flow::new(Arc::clone(&total));
        let mut server = Transport::new(server, Arc::clone(&flow));
        client.write_all(b"a").await.unwrap();
        let input = flow.count((), SPACE);
        let mut byte = [0];
        assert!(timeout(SOON, server.read_exact(&mut byte)).await.is_err(), "it was read without space");
        server.write_all(b"out").await.unwrap();
        let reading = tokio::spawn(async move { server.read_exact(&mut byte).await.map(|_| byte) });
        tokio::task::yield_now().await;
        drop(input);
        assert_eq!(timeout(SOON, reading).await.unwrap().unwrap().unwrap(), *b"a");
        assert_eq!(total.0.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_connection_whose_output_waits_is_read_further_but_not_for_ever() {
        let (mut client, server) = tokio::io::duplex(64);
        let flow = Flow::new(Arc::default());
        let mut server = Transport::new(server, Arc::clone(&flow));
        client.write_all(b"ab").await.unwrap();
        let _input = flow.count((), SPACE);
        let output = flow.output();
        let mut byte = [0];
        timeout(SOON, server.read_exact(&mut byte)).await.expect("it was not read").unwrap();
        let _more = flow.count((), FURTHER);
        assert!(timeout(SOON, server.read_exact(&mut byte)).await.is_err(), "it is read without a bound");
        drop(output);
    }

    #[tokio::test]
    async fn a_cut_ends_a_read_and_a_write_that_wait() {
        let (_client, server) = tokio::io::duplex(1);
        let flow = Flow::new(Arc::default());
        let (mut read, mut write) = tokio::io::split(Transport::new(server, Arc::clone(&flow)));
        let reading = tokio::spawn(async move { read.read(&mut [0]).await });
        let writing = tokio::spawn(async move { write.write_all(b"more than fits").await });
        tokio::time::sleep(SOON).await;
        flow.cut();
        assert!(timeout(SOON, reading).await.unwrap().unwrap().is_err());
        assert!(timeout(SOON, writing).await.unwrap().unwrap().is_err());
    }
}
