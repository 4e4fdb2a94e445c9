//! A connection's bytes on their way to the HTTP parser: what the parser would read in one way, and a proxy in front of it or a
//! server behind it in another, ends here with 400.
//!
//! ```text
//!   socket ──> Screened: heads and the lengths of bodies ──> hyper
//!                 └── a line without CR, two lengths, a length and a coding, a folded line, CONNECT ──> a byte that no parser takes: 400
//! ```
//! A request that asks for another protocol is screened like any other, and so is what follows it. Only the agreement of the service
//! (`101`) opens the screen: [`Opener`]. `CONNECT`, after which no HTTP follows either, is refused.
//!
//! The parser drops a `Content-Length` beside a `Transfer-Encoding`, takes the same length twice, and takes lines that end with LF alone.
//! A parsed request shows none of that, so the bytes are looked at before. Only the framing is: everything else is the parser's.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much of a line is kept for reading it, bytes. Longer ones pass unless they say where a body ends.
const LINE: usize = 256;

/// Most empty lines before a request.
const EMPTY_LINES: u8 = 4;

/// A byte that is valid nowhere in a head or in the framing of a body.
const REFUSED: u8 = 0;

/// Where in the stream of requests the next byte is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a head. `first`: in the request line or before it.
    Head { first: bool },
    /// In a body of which so many bytes are left.
    Body(u64),
    /// In the line with a chunk's size.
    ChunkSize,
    /// In a chunk of which so many bytes are left.
    Chunk(u64),
    /// At the end of a chunk.
    ChunkEnd,
    /// In the trailers.
    Trailers,
    /// After bytes that were refused.
    Refused,
}

/// What the head says so far.
#[derive(Debug, Clone, Copy, Default)]
struct Head {
    lengths: u8,
    length: u64,
    codings: u8,
    empty_lines: u8,
}

/// The reader of the framing.
#[derive(Debug)]
pub struct Screen {
    place: Place,
    head: Head,
    line: Vec<u8>,
    line_is_longer: bool,
    /// The last byte of the line was CR.
    cr: bool,
}

impl Default for Screen {
    fn default() -> Self {
        let (place, head) = (Place::Head { first: true }, Head::default());
        Self { place, head, line: Vec::with_capacity(LINE), line_is_longer: false, cr: false }
    }
}

impl Screen {
    /// Reads the next bytes. Returns the position of the first one that is refused; nothing passes after it.
    pub fn read(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < bytes.len() {
            match self.place {
                Place::Refused => return Some(at),
                Place::Body(left) | Place::Chunk(left) => {
                    let piece = left.min(u64::try_from(bytes.len() - at).unwrap_or(u64::MAX));
                    let chunk = matches!(self.place, Place::Chunk(_));
                    at += usize::try_from(piece).unwrap_or(usize::MAX);
                    self.place = match (left - piece, chunk) {
                        (0, true) => Place::ChunkEnd,
                        (0, false) => self.next_head(),
                        (left, true) => Place::Chunk(left),
                        (left, false) => Place::Body(left),
                    };
                }
                Place::Head { .. } | Place::ChunkSize | Place::ChunkEnd | Place::Trailers => {
                    let byte = bytes.get(at)?;
                    if !self.byte_of_line(*byte) {
                        self.place = Place::Refused;
                        return Some(at);
                    }
                    at += 1;
                }
            }
        }
        None
    }

    fn next_head(&mut self) -> Place {
        self.head = Head::default();
        Place::Head { first: true }
    }

    /// Takes a byte of a line; false when it is refused.
    fn byte_of_line(&mut self, byte: u8) -> bool {
        match byte {
            b'\n' if self.cr => {
                self.cr = false;
                let line = std::mem::take(&mut self.line);
                let longer = std::mem::take(&mut self.line_is_longer);
                let next = self.end_of_line(&line, longer);
                self.line = line;
                self.line.clear();
                match next {
                    Some(place) => self.place = place,
                    None => return false,
                }
                true
            }
            // LF without CR, or CR without LF.
            b'\n' => false,
            _ if self.cr => false,
            b'\r' => {
                self.cr = true;
                true
            }
            REFUSED => false,
            _ => {
                if self.line.len() < LINE {
                    self.line.push(byte);
                } else {
                    self.line_is_longer = true;
                }
                true
            }
        }
    }

    /// Returns the place after a line; `None` when it is refused.
    fn end_of_line(&mut self, line: &[u8], longer: bool) -> Option<Place> {
        match self.place {
            Place::Head { first: true } if line.is_empty() => {
                self.head.empty_lines += 1;
                (self.head.empty_lines <= EMPTY_LINES).then_some(self.place)
            }
            Place::Head { first: true } => (!line.starts_with(b"CONNECT ")).then_some(Place::Head { first: false }),
            Place::Head { first: false } if line.is_empty() => self.end_of_head(),
            Place::Head { first: false } => self.header(line, longer).then_some(self.place),
            Place::ChunkSize => {
                let digits = line.split(|byte| *byte == b';').next()?;
                let sane = (1..=15).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
                let size = sane.then(|| u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()).flatten()?;
                Some(if size == 0 { Place::Trailers } else { Place::Chunk(size) })
            }
            Place::ChunkEnd => line.is_empty().then_some(Place::ChunkSize),
            Place::Trailers if line.is_empty() => Some(self.next_head()),
            Place::Trailers => (!line.starts_with(b" ") && !line.starts_with(b"\t")).then_some(self.place),
            other => Some(other),
        }
    }

    /// Reads a header; false when it is refused.
    fn header(&mut self, line: &[u8], longer: bool) -> bool {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            // A name that is longer than all that matter here.
            return longer;
        };
        let (name, value) = line.split_at(colon);
        // A folded line, or a space before the colon.
        if name.is_empty() || name.iter().any(|byte| *byte == b' ' || *byte == b'\t') {
            return false;
        }
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            let sane = !longer && (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
            self.head.lengths = self.head.lengths.saturating_add(1);
            match std::str::from_utf8(value).ok().filter(|_| sane).and_then(|digits| digits.parse().ok()) {
                Some(length) => self.head.length = length,
                None => return false,
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.head.codings = self.head.codings.saturating_add(1);
            return !longer && value.eq_ignore_ascii_case(b"chunked");
        }
        true
    }

    fn end_of_head(&mut self) -> Option<Place> {
        let Head { lengths, length, codings, .. } = self.head;
        if lengths.saturating_add(codings) > 1 {
            return None;
        }
        Some(match (codings, length) {
            (1, _) => Place::ChunkSize,
            (_, 0) => self.next_head(),
            (_, length) => Place::Body(length),
        })
    }
}

/// Opens the screen of one connection, for good.
#[derive(Debug, Clone, Default)]
pub struct Opener(Arc<AtomicBool>);

impl Opener {
    /// Lets all further bytes pass as they are. Call it when the last response with HTTP is about to be sent: `101`.
    pub fn open(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A connection whose requests are screened.
#[derive(Debug)]
pub struct Screened<T> {
    inner: T,
    screen: Option<Screen>,
    open: Opener,
    /// Bytes that were read before.
    before: Vec<u8>,
    refused: bool,
}

impl<T> Screened<T> {
    /// Screens a connection from its first byte on.
    pub fn new(inner: T) -> Self {
        Self::after(Vec::new(), inner, true)
    }

    /// A connection of which these first bytes were read already. Without `screen`, its bytes pass as they are.
    pub fn after(before: Vec<u8>, inner: T, screen: bool) -> Self {
        Self { inner, screen: screen.then(Screen::default), open: Opener::default(), before, refused: false }
    }

    /// What opens the screen of this connection.
    pub fn opener(&self) -> Opener {
        self.open.clone()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Screened<T> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.refused {
            return Poll::Ready(Ok(()));
        }
        let start = buf.filled().len();
        if this.before.is_empty() {
            ready!(Pin::new(&mut this.inner).poll_read(context, buf))?;
        } else {
            let piece = this.before.len().min(buf.remaining());
            buf.put_slice(this.before.get(..piece).unwrap_or_default());
            this.before.drain(..piece);
        }
        let Some(screen) = this.screen.as_mut().filter(|_| !this.open.0.load(Ordering::Acquire)) else {
            return Poll::Ready(Ok(()));
        };
        let fresh = buf.filled_mut().get_mut(start..).unwrap_or_default();
        if let Some(at) = screen.read(fresh) {
            if let Some(byte) = fresh.get_mut(at) {
                *byte = REFUSED;
            }
            buf.set_filled(start + at + 1);
            this.refused = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Screened<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(bytes: &[u8]) -> Option<usize> {
        Screen::default().read(bytes)
    }

    #[test]
    fn requests_pass_one_after_the_other() {
        for good in [
            "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "\r\nPOST / HTTP/1.1\r\nContent-Length: 3\r\n\r\na\nbGET / HTTP/1.1\r\nA: b\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3;x=y\r\na\nb\r\n0\r\nT: v\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\n\nGET / HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(refused(good.as_bytes()), None, "{good:?}");
        }
    }

    #[test]
    fn what_is_read_in_two_ways_is_refused() {
        for wrong in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n\n",
            "GET / HTTP/1.1\r\nA: b\rc\r\n\r\n",
            "CONNECT a:80 HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\nGET / HTTP/1.1\nA: b\r\n\r\n",
            "GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length : 3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 3, 3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: -3\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\na\nb\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nabc",
        ] {
            assert!(refused(wrong.as_bytes()).is_some(), "{wrong:?}");
        }
        let long = format!("POST / HTTP/1.1\r\nContent-Length: {}3\r\n\r\n", " ".repeat(500));
        assert!(refused(long.as_bytes()).is_some());
        let long = format!("GET / HTTP/1.1\r\n{}: 1\r\nA: {}\r\n\r\n", "x".repeat(500), "y".repeat(5000));
        assert_eq!(refused(long.as_bytes()), None);
    }

    #[tokio::test]
    async fn bytes_pass_as_they_are_once_the_screen_is_opened() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let (mut client, server) = tokio::io::duplex(1024);
        let mut screened = Screened::new(server);
        client.write_all(b"GET / HTTP/1.1\r\nUpgrade: x\r\n\r\n").await.unwrap();
        let mut read = [0; 30];
        screened.read_exact(&mut read).await.unwrap();
        screened.opener().open();
        client.write_all(b"\n\n\0any").await.unwrap();
        let mut read = [0; 6];
        screened.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"\n\n\0any");
    }

    proptest! {
        #[test]
        fn pieces_change_nothing(
            bytes in "(GET|POST) / HTTP/1.1(\r\n|\n)(Content-Length: [0-9]{1,2}(\r\n|\n)){0,2}(Transfer-Encoding: chunked\r\n){0,1}\r\n[0-9a-f;\r\n]{0,40}",
            cuts in prop::collection::vec(1usize..20, 1..30),
        ) {
            let whole = refused(bytes.as_bytes());
            let mut screen = Screen::default();
            let (mut at, mut found) = (0, None);
            for cut in cuts.into_iter().chain(std::iter::repeat(7)) {
                let piece = &bytes.as_bytes()[at..(at + cut).min(bytes.len())];
                if let Some(bad) = screen.read(piece) {
                    found = Some(at + bad);
                    break;
                }
                at += piece.len();
                if at == bytes.len() {
                    break;
                }
            }
            prop_assert_eq!(found, whole);
        }
    }
}
