//! The stream to the guest's agent: a vsock connection through Firecracker's Unix socket.
//!
//! The host connects to the socket and says `CONNECT <port>`; Firecracker answers `OK <its port>` once the guest has
//! accepted, and closes when nobody listens there yet. (`docs/vsock.md` of Firecracker.)
//!
//! After a restore the guest's driver is told that the transport was reset and closes every connection that it has.
//! One that the host opened in the same instant is among them: it is accepted, then closed without a byte. So until
//! the guest has sent its first byte, such a close is answered by connecting again and sending the same bytes again,
//! which only repeats the greeting that every session starts with.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::folder::Folder;

/// Where the agent listens.
const AGENT_PORT: u32 = 1024;
/// Longest answer to CONNECT: `OK 4294967295\n`.
const MAX_LINE: usize = 32;
/// One try; Firecracker itself gives a guest 2 s to accept.
const TRY: Duration = Duration::from_secs(5);
/// More than a greeting is never sent twice.
const MAX_REPLAY: usize = 64 << 10;
/// One reset comes with a restore; more than a few mean something else.
const MAX_RECONNECTS: u32 = 5;

/// Connects, again and again until the guest listens or `deadline` has passed.
pub(super) async fn connect(folder: &Folder, socket: &str, deadline: Instant) -> io::Result<UnixStream> {
    let mut pause = Duration::from_millis(1);
    loop {
        let error = match tokio::time::timeout(TRY, handshake(folder, socket)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
        if Instant::now() + pause >= deadline {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

async fn handshake(folder: &Folder, socket: &str) -> io::Result<UnixStream> {
    let mut stream = folder.connect(socket).await?;
    stream.write_all(format!("CONNECT {AGENT_PORT}\n").as_bytes()).await?;
    let mut line = Vec::with_capacity(MAX_LINE);
    // Byte by byte: what follows the line is the agent's.
    while line.last() != Some(&b'\n') {
        if line.len() >= MAX_LINE {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to CONNECT is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    if !line.starts_with(b"OK ") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to CONNECT is not OK"));
    }
    Ok(stream)
}

pub(super) type Reconnect = Pin<Box<dyn Future<Output = io::Result<UnixStream>> + Send>>;

/// How to connect again, for a restored guest.
pub(super) fn reconnecting(folder: Folder, socket: &'static str, limit: Duration) -> Box<dyn Fn() -> Reconnect + Send> {
    Box::new(move || {
        let folder = folder.clone();
        Box::pin(async move { connect(&folder, socket, Instant::now() + limit).await })
    })
}

/// A connected stream that ends when its token is cancelled, and survives the reset of a restore.
pub(super) struct Stream {
    stream: UnixStream,
    superseded: Pin<Box<WaitForCancellationFutureOwned>>,
    greeting: Option<Greeting>,
}

/// What is needed to begin again, until the guest has spoken.
struct Greeting {
    sent: Vec<u8>,
    replayed: usize,
    reconnects_left: u32,
    reconnecting: Option<Reconnect>,
    connect: Box<dyn Fn() -> Reconnect + Send>,
}

impl Stream {
    /// `reconnect`: how to connect again; `None` for a guest that was booted, whose connections nothing resets.
    pub(super) fn new(
        stream: UnixStream,
        superseded: WaitForCancellationFutureOwned,
        reconnect: Option<Box<dyn Fn() -> Reconnect + Send>>,
    ) -> Self {
        let greeting = reconnect.map(|connect| Greeting {
            sent: Vec::new(),
            replayed: 0,
            reconnects_left: MAX_RECONNECTS,
            reconnecting: None,
            connect,
        });
        Self { stream, superseded: Box::pin(superseded), greeting }
    }

    fn poll_superseded(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.superseded.as_mut().poll(cx)
    }

    /// Finishes a reconnection that is under way: connects, then sends again what was sent.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(greeting) = &mut self.greeting else { return Poll::Ready(Ok(())) };
        if let Some(reconnecting) = &mut greeting.reconnecting {
            let stream = ready!(reconnecting.as_mut().poll(cx));
            greeting.reconnecting = None;
            self.stream = stream?;
            greeting.replayed = 0;
        }
        while let Some(rest) = greeting.sent.get(greeting.replayed..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(written) => greeting.replayed += written,
                Err(_) if greeting.begin_again() => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// True when the connection was lost before the guest spoke and is being made again.
    fn begin_again(&mut self) -> bool {
        self.greeting.as_mut().is_some_and(Greeting::begin_again)
    }
}

impl Greeting {
    fn begin_again(&mut self) -> bool {
        if self.reconnects_left == 0 {
            return false;
        }
        self.reconnects_left -= 1;
        self.reconnecting = Some((self.connect)());
        true
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.poll_superseded(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(this.poll_ready(cx))?;
            let before = buf.filled().len();
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, buf));
            if read.is_ok() && buf.filled().len() > before {
                this.greeting = None;
                return Poll::Ready(Ok(()));
            }
            // The end, or a reset.
            if !this.begin_again() {
                return Poll::Ready(read);
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.poll_superseded(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        loop {
            ready!(this.poll_ready(cx))?;
            match ready!(Pin::new(&mut this.stream).poll_write(cx, bytes)) {
                Ok(written) => {
                    this.record(bytes.get(..written).unwrap_or(bytes));
                    return Poll::Ready(Ok(written));
                }
                Err(error) if !this.begin_again() => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_ready(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl Stream {
    fn record(&mut self, bytes: &[u8]) {
        if let Some(greeting) = &mut self.greeting {
            if greeting.sent.len() + bytes.len() > MAX_REPLAY {
                self.greeting = None;
                return;
            }
            greeting.sent.extend_from_slice(bytes);
            greeting.replayed = greeting.sent.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn stage() -> (tempfile::TempDir, Folder, UnixListener) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("v.sock")).unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder, listener)
    }

    async fn accept(listener: &UnixListener) -> UnixStream {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut line = [0; 13];
        peer.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"CONNECT 1024\n");
        peer.write_all(b"OK 1073741824\n").await.unwrap();
        peer
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    async fn open(folder: &Folder, token: &CancellationToken, restored: bool) -> Stream {
        let stream = connect(folder, "v.sock", soon()).await.unwrap();
        let again = reconnecting(folder.clone(), "v.sock", Duration::from_secs(10));
        Stream::new(stream, token.clone().cancelled_owned(), restored.then_some(again))
    }

    #[tokio::test]
    async fn connecting_goes_on_until_the_guest_listens() {
        let (_dir, folder, listener) = stage();
        let guest = async {
            for _ in 0..3 {
                drop(listener.accept().await.unwrap());
            }
            let mut peer = accept(&listener).await;
            peer.write_all(b"hello").await.unwrap();
            peer
        };
        let host = async {
            let mut stream = connect(&folder, "v.sock", soon()).await.unwrap();
            let mut hello = [0; 5];
            stream.read_exact(&mut hello).await.unwrap();
            hello
        };
        let (_peer, hello) = tokio::join!(guest, host);
        assert_eq!(&hello, b"hello");
    }

    #[tokio::test]
    async fn a_guest_that_never_listens_is_given_up() {
        let (_dir, folder, listener) = stage();
        let guest = async {
            loop {
                drop(listener.accept().await);
            }
        };
        let host = connect(&folder, "v.sock", Instant::now() + Duration::from_millis(100));
        tokio::select! {
            () = guest => unreachable!(),
            result = host => assert!(result.is_err()),
        }
    }

    #[tokio::test]
    async fn a_reset_before_the_first_byte_repeats_the_greeting() {
        let (_dir, folder, listener) = stage();
        let guest = async {
            drop(accept(&listener).await);
            let mut half = accept(&listener).await;
            half.read_exact(&mut [0; 3]).await.unwrap();
            drop(half);
            let mut peer = accept(&listener).await;
            let mut greeting = [0; 5];
            peer.read_exact(&mut greeting).await.unwrap();
            assert_eq!(&greeting, b"HELLO");
            peer.write_all(b"ACK").await.unwrap();
            drop(peer);
        };
        let host = async {
            let mut stream = open(&folder, &CancellationToken::new(), true).await;
            stream.write_all(b"HELLO").await.unwrap();
            let mut said = Vec::new();
            stream.read_to_end(&mut said).await.unwrap();
            // After the first byte an end is an end.
            assert_eq!(said, b"ACK");
        };
        tokio::join!(guest, host);
    }

    #[tokio::test]
    async fn a_booted_guests_close_is_a_close_and_a_superseded_stream_ends() {
        let (_dir, folder, listener) = stage();
        let (peer, mut stream) = {
            let token = CancellationToken::new();
            let (peer, stream) = tokio::join!(accept(&listener), open(&folder, &token, false));
            (peer, stream)
        };
        drop(peer);
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);

        let token = CancellationToken::new();
        let (_peer, mut stream) = tokio::join!(accept(&listener), open(&folder, &token, true));
        let (read, ()) = tokio::join!(async { stream.read(&mut [0; 1]).await.unwrap() }, async { token.cancel() });
        assert_eq!(read, 0);
        assert!(stream.write_all(b"x").await.is_err());
    }
}
