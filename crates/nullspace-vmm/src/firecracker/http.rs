//! One request to Firecracker's API and its answer, over a stream: hyper's client within limits of ours.
//!
//! ```text
//!   method, path, JSON ── hyper, one connection a request ──> stream ──> head: at most 8 KiB, body: at most 64 KiB
//! ```
//! The peer is the VMM, which a guest may have taken over. The caller bounds the time.

use std::io;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Longest head of an answer, bytes; hyper reads no more at once either. The least that hyper takes as a limit.
const MAX_HEAD: usize = 8 << 10;
/// Longest body of an answer, bytes; `GET /vm/config` is a few KiB.
const MAX_BODY: usize = 64 << 10;
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// Status, 100 to 999.
    pub(super) status: u16,
    /// The body, at most [`MAX_BODY`] bytes; empty when there is none.
    pub(super) body: Bytes,
}

/// Sends one request and reads its answer. The stream ends with it.
pub(super) async fn exchange<S>(stream: S, method: &str, path: &str, body: Option<Vec<u8>>) -> io::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost").header(ACCEPT, JSON);
    if body.is_some() {
        request = request.header(CONTENT_TYPE, JSON);
    }
    let request = request.body(Full::new(Bytes::from(body.unwrap_or_default()))).map_err(io::Error::other)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .title_case_headers(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), MAX_BODY).collect().await.map_err(malformed)?.to_bytes();
        Ok(Answer { status, body })
    };
    tokio::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // What the connection has to say, an error too, has reached the answer.
        _ = connection => answer.await,
    }
}

fn failed(error: hyper::Error) -> io::Error {
    if error.is_parse() || error.is_parse_too_large() {
        return malformed(error);
    }
    if error.is_incomplete_message() {
        return io::Error::new(io::ErrorKind::UnexpectedEof, error);
    }
    io::Error::other(error)
}

fn malformed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed answer: {}", error.into()))
}

/// A peer that answers any request with the same bytes, in pieces, and then ends the stream.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) struct Scripted<'a> {
    rest: &'a [u8],
    piece: usize,
    /// An answer before its request is an error of its own.
    asked: bool,
    reader: Option<std::task::Waker>,
}

#[cfg(any(test, feature = "fuzzing"))]
mod scripted {
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

    use super::Scripted;

    impl<'a> Scripted<'a> {
        /// A peer that answers with `answer`, at most `piece` bytes (at least 1) at a time.
        pub(crate) fn new(answer: &'a [u8], piece: usize) -> Self {
            Self { rest: answer, piece, asked: false, reader: None }
        }
    }

    impl AsyncRead for Scripted<'_> {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            if !self.asked {
                self.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let (now, rest) = self.rest.split_at(self.piece.min(self.rest.len()).min(out.remaining()));
            out.put_slice(now);
            self.rest = rest;
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Scripted<'_> {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.asked = true;
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Reads these bytes, then the stream's end, as the answer to a request.
    async fn answer_to(bytes: &[u8]) -> io::Result<Answer> {
        exchange(Scripted::new(bytes, 1000), "GET", "/", None).await
    }

    #[tokio::test]
    async fn an_answer_with_and_without_body() {
        let none =
            answer_to(b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n").await.unwrap();
        assert_eq!(none, Answer { status: 204, body: Bytes::new() });
        let some = answer_to(b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
        assert_eq!(some, Answer { status: 200, body: "{}".into() });
    }

    #[tokio::test]
    async fn an_answer_is_whole_before_the_connection_ends() {
        let (near, mut far) = tokio::io::duplex(1 << 10);
        let peer = async {
            let mut request = [0; 4096];
            let length = far.read(&mut request).await.unwrap();
            far.write_all(b"HTTP/1.1 400 \r\nContent-Length: 4\r\nConnection: keep-alive\r\n\r\nab").await.unwrap();
            tokio::task::yield_now().await;
            far.write_all(b"cd").await.unwrap();
            // The peer keeps the connection, as Firecracker does.
            (far, String::from_utf8(request[..length].to_vec()).unwrap())
        };
        let (answer, (_far, request)) =
            tokio::join!(exchange(near, "PUT", "/vsock", Some(b"{\"a\":1}".to_vec())), peer);
        assert_eq!(answer.unwrap(), Answer { status: 400, body: "abcd".into() });
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        let mut lines: Vec<&str> = head.split("\r\n").collect();
        lines[1..].sort_unstable();
        assert_eq!(
            lines,
            [
                "PUT /vsock HTTP/1.1",
                "Accept: application/json",
                "Content-Length: 7",
                "Content-Type: application/json",
                "Host: localhost"
            ]
        );
        assert_eq!(body, "{\"a\":1}");
    }

    #[tokio::test]
    async fn a_hostile_answer_is_refused() {
        let too_long = format!("HTTP/1.1 200 \r\nContent-Length: {}\r\n\r\n{}", MAX_BODY + 1, "x".repeat(MAX_BODY + 1));
        let chunked = format!("HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n{}", "x".repeat(0x20000));
        let until_end = format!("HTTP/1.1 200 \r\n\r\n{}", "x".repeat(2 * MAX_BODY));
        for bad in [
            &b"HTTP/1.1 200 \r\nContent-Length: 99999999999999999999\r\n\r\n"[..],
            b"HTTP/1.1 200 \r\nContent-Length: 1000000\r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffffff\r\n\r\n",
            b"HTTP/1.1 99 \r\n\r\n",
            b"OK 1024\n\r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\n{}",
            b"HTTP/1.1 200",
            too_long.as_bytes(),
            chunked.as_bytes(),
            until_end.as_bytes(),
        ] {
            let shown = String::from_utf8_lossy(&bad[..bad.len().min(100)]);
            assert!(answer_to(bad).await.is_err(), "{shown:?}");
        }
        for endless in [&b"x"[..], b"HTTP/1.1 200 \r\nA: b\r\n", b"\r\n"] {
            let refused = answer_to(&endless.repeat(4 * MAX_HEAD)).await;
            assert!(refused.is_err(), "{:?}", String::from_utf8_lossy(endless));
        }
    }
}
