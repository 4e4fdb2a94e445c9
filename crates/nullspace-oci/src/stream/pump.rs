//! A thread that reads ahead, so that decompression runs beside everything that comes after it.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope};

use tokio_util::sync::CancellationToken;

use super::StreamError;

/// Size of a piece and how many may wait: 2 MiB in flight.
const PIECE: usize = 256 << 10;
const WAITING: usize = 8;

/// The reading end.
pub(crate) struct Pumped {
    pieces: Receiver<io::Result<Vec<u8>>>,
    /// Pieces that were read go back to be filled again.
    used: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    position: usize,
}

/// Starts a thread that opens a reader and reads it to its end. Dropping the reading end ends the thread at its next piece,
/// and so does `cancel`.
pub(crate) fn pump<'scope, R, F>(
    scope: &'scope Scope<'scope, '_>,
    cancel: CancellationToken,
    open: F,
) -> io::Result<Pumped>
where
    F: FnOnce() -> io::Result<R> + Send + 'scope,
    R: Read,
{
    let (filled, pieces) = sync_channel::<io::Result<Vec<u8>>>(WAITING);
    let (used, empty) = sync_channel::<Vec<u8>>(WAITING + 2);
    let work = move || {
        let mut reader = match open() {
            Ok(reader) => reader,
            Err(error) => {
                let _ = filled.send(Err(error));
                return;
            }
        };
        loop {
            let mut piece = empty.try_recv().unwrap_or_default();
            piece.resize(PIECE, 0);
            let filling =
                if cancel.is_cancelled() { Err(StreamError::Cancelled.into()) } else { fill(&mut reader, &mut piece) };
            match filling {
                Ok(0) => return,
                Ok(length) => {
                    piece.truncate(length);
                    if filled.send(Ok(piece)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let _ = filled.send(Err(error));
                    return;
                }
            }
        }
    };
    Builder::new().name("layer-decode".to_owned()).spawn_scoped(scope, work)?;
    Ok(Pumped { pieces, used, piece: Vec::new(), position: 0 })
}

/// Fills the buffer as far as the reader goes; few large pieces are cheaper to hand over than many small ones.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

impl BufRead for Pumped {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position >= self.piece.len() {
            // A closed channel is the end of the stream: the thread sends its error before it ends.
            let next = self.pieces.recv().unwrap_or(Ok(Vec::new()))?;
            let used = std::mem::replace(&mut self.piece, next);
            self.position = 0;
            if used.capacity() > 0 {
                let _ = self.used.try_send(used);
            }
        }
        Ok(self.piece.get(self.position..).unwrap_or(&[]))
    }

    fn consume(&mut self, amount: usize) {
        self.position = self.position.saturating_add(amount).min(self.piece.len());
    }
}

impl Read for Pumped {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pump_hands_over_every_byte_and_then_the_error() {
        let data: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        let failing = |data: Vec<u8>| io::Cursor::new(data).chain(FailingReader);
        std::thread::scope(|scope| {
            let mut out = Vec::new();
            let mut good = pump(scope, CancellationToken::new(), || Ok(&data[..])).unwrap();
            good.read_to_end(&mut out).unwrap();
            assert!(out == data);
            let mut bad = pump(scope, CancellationToken::new(), || Ok(failing(vec![1; 10]))).unwrap();
            assert!(bad.read_to_end(&mut Vec::new()).is_err());
            let mut unopened =
                pump(scope, CancellationToken::new(), || Err::<&[u8], _>(io::Error::other("no"))).unwrap();
            assert_eq!(unopened.fill_buf().unwrap_err().to_string(), "no");
            // Dropped unread: the scope must still end.
            drop(pump(scope, CancellationToken::new(), || Ok(io::repeat(0))).unwrap());
        });
    }

    struct FailingReader;

    impl Read for FailingReader {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("failed"))
        }
    }
}
