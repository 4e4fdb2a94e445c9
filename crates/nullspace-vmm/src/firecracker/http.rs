//! As much HTTP/1.1 as Firecracker's API speaks: one request, one answer with a `Content-Length`, over a Unix socket.
//!
//! The peer is the VMM, which a guest may have taken over: what it can make us hold is bounded, and so is the wait.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest head of an answer.
const MAX_HEAD: usize = 8 << 10;
/// Longest body of an answer; `GET /vm/config` is a few KiB.
const MAX_BODY: usize = 64 << 10;

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

/// Sends one request and reads its answer. The stream is of no use afterwards when this fails or is dropped.
pub(super) async fn exchange<S>(stream: &mut S, method: &str, path: &str, body: Option<&[u8]>) -> io::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n").into_bytes();
    if let Some(body) = body {
        let head = format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        request.extend_from_slice(head.as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request.extend_from_slice(body.unwrap_or_default());
    stream.write_all(&request).await?;
    read_answer(stream).await
}

async fn read_answer<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Answer> {
    let mut received = Vec::with_capacity(1024);
    let head_end = loop {
        if let Some(at) = find(&received, b"\r\n\r\n") {
            break at;
        }
        if received.len() > MAX_HEAD {
            return Err(malformed("the head is too long"));
        }
        if stream.read_buf(&mut received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let mut body = received.split_off(head_end + 4);
    let head = std::str::from_utf8(&received).map_err(|_| malformed("the head is not text"))?;
    let (status, length) = parse_head(head)?;
    if body.len() > length {
        return Err(malformed("bytes follow the body"));
    }
    let missing = length - body.len();
    let mut rest = vec![0; missing];
    stream.read_exact(&mut rest).await?;
    body.append(&mut rest);
    Ok(Answer { status, body })
}

fn parse_head(head: &str) -> io::Result<(u16, usize)> {
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .filter(|status| (100..600).contains(status))
        .ok_or_else(|| malformed("no status line"))?;
    let mut length = 0;
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(|_| malformed("Content-Length is no number"))?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(malformed("the answer is chunked"));
        }
    }
    if length > MAX_BODY {
        return Err(malformed("the body is too long"));
    }
    Ok((status, length))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed answer: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer_to(bytes: &[u8]) -> io::Result<Answer> {
        read_answer(&mut &*bytes).await
    }

    #[tokio::test]
    async fn an_answer_with_and_without_body() {
        let none =
            answer_to(b"HTTP/1.1 204 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n").await.unwrap();
        assert_eq!(none, Answer { status: 204, body: Vec::new() });
        let some = answer_to(b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
        assert_eq!(some, Answer { status: 200, body: b"{}".to_vec() });
    }

    #[tokio::test]
    async fn a_hostile_answer_is_refused() {
        for bad in [
            &b"HTTP/1.1 200 \r\nContent-Length: 99999999999999999999\r\n\r\n"[..],
            b"HTTP/1.1 200 \r\nContent-Length: 1000000\r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
            b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 999 \r\n\r\n",
            b"OK 1024\n\r\n\r\n",
            b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\n{}",
            b"HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\n{}",
            b"HTTP/1.1 200",
        ] {
            assert!(answer_to(bad).await.is_err(), "{:?}", String::from_utf8_lossy(bad));
        }
        let endless = vec![b'x'; MAX_HEAD * 2];
        assert!(answer_to(&endless).await.is_err());
    }
}
