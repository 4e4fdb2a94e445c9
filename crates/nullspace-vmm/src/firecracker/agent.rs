//! The stream to the guest's agent: a vsock connection through Firecracker's Unix socket.
//!
//! The host connects to the socket and says `CONNECT <port>`; Firecracker answers `OK <its port>` once the guest has
//! accepted, and closes when nobody listens there yet. (`docs/vsock.md` of Firecracker.)
//!
//! After a restore the guest's driver is told that the transport was reset and closes every connection that it has.
//! One that the host opened in the same instant is among them: it is accepted, then closed. Whoever greets a restored
//! guest connects again then; see `Agent::connect_restored`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::folder::Folder;

/// The vsock port that the agent listens on.
const AGENT_PORT: u32 = 1024;
/// Longest answer to CONNECT: `OK 4294967295\n`.
const MAX_LINE: usize = 32;
/// One try; Firecracker itself gives a guest 2 s to accept.
const TRY: Duration = Duration::from_secs(5);

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

/// A connected stream that ends when its token is cancelled.
pub(super) struct Stream {
    stream: UnixStream,
    superseded: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Stream {
    pub(super) fn new(stream: UnixStream, superseded: WaitForCancellationFutureOwned) -> Self {
        Self { stream, superseded: Box::pin(superseded) }
    }

    fn poll_superseded(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.superseded.as_mut().poll(cx)
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.poll_superseded(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.poll_superseded(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
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

    async fn open(folder: &Folder, token: &CancellationToken) -> Stream {
        let stream = connect(folder, "v.sock", soon()).await.unwrap();
        Stream::new(stream, token.clone().cancelled_owned())
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
    async fn a_guests_close_is_a_close_and_a_superseded_stream_ends() {
        let (_dir, folder, listener) = stage();
        let (peer, mut stream) = {
            let token = CancellationToken::new();
            let (peer, stream) = tokio::join!(accept(&listener), open(&folder, &token));
            (peer, stream)
        };
        drop(peer);
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);

        let token = CancellationToken::new();
        let (_peer, mut stream) = tokio::join!(accept(&listener), open(&folder, &token));
        let (read, ()) = tokio::join!(async { stream.read(&mut [0; 1]).await.unwrap() }, async { token.cancel() });
        assert_eq!(read, 0);
        assert!(stream.write_all(b"x").await.is_err());
    }
}
