//! The last output of a service, for those who attach later.

use std::collections::VecDeque;

use nullspace_guest::frame::Kind;

/// Bytes kept of each stream.
const KEPT: usize = 256 * 1024;
/// Writes of one stream in a row are joined up to this size.
const JOINED: usize = 8 * 1024;
/// Pieces kept: bounds the bookkeeping when both streams write by turns, a byte at a time.
const PIECES: usize = 4096;

#[derive(Debug)]
struct Piece {
    kind: Kind,
    /// Bytes of both streams written before this piece.
    start: u64,
    bytes: Vec<u8>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes.len() as u64)
    }
}

/// Stdout and stderr in the order they were read, each bounded on its own, so that a chatty one does not push the other out.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    pieces: VecDeque<Piece>,
    written: u64,
    out_bytes: usize,
    err_bytes: usize,
}

impl Ring {
    /// Adds output and drops what is too old.
    pub(crate) fn push(&mut self, kind: Kind, bytes: &[u8]) {
        let start = self.written;
        self.written = self.written.saturating_add(bytes.len() as u64);
        *self.count(kind) += bytes.len();
        match self.pieces.back_mut() {
            Some(last) if last.kind == kind && last.end() == start && last.bytes.len() + bytes.len() <= JOINED => {
                last.bytes.extend_from_slice(bytes);
            }
            _ => self.pieces.push_back(Piece { kind, start, bytes: bytes.to_vec() }),
        }
        while *self.count(kind) > KEPT {
            let Some(oldest) = self.pieces.iter().position(|piece| piece.kind == kind) else { break };
            self.remove(oldest);
        }
        while self.pieces.len() > PIECES {
            self.remove(0);
        }
    }

    fn remove(&mut self, at: usize) {
        if let Some(piece) = self.pieces.remove(at) {
            let count = self.count(piece.kind);
            *count = count.saturating_sub(piece.bytes.len());
        }
    }

    fn count(&mut self, kind: Kind) -> &mut usize {
        if kind == Kind::Stderr { &mut self.err_bytes } else { &mut self.out_bytes }
    }

    /// At most `most` kept bytes of one stream from `position` on, and the position behind them; 0 is the beginning.
    pub(crate) fn read(&self, position: u64, most: usize) -> Option<(Kind, &[u8], u64)> {
        let at = self.pieces.partition_point(|piece| piece.end() <= position);
        let piece = self.pieces.get(at)?;
        let from = usize::try_from(position.saturating_sub(piece.start)).ok()?;
        let rest = piece.bytes.get(from..)?;
        let part = rest.get(..most).unwrap_or(rest);
        Some((piece.kind, part, piece.start.max(position).saturating_add(part.len() as u64)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_all(ring: &Ring, most: usize) -> Vec<(Kind, Vec<u8>)> {
        let mut position = 0;
        let mut all: Vec<(Kind, Vec<u8>)> = Vec::new();
        while let Some((kind, bytes, next)) = ring.read(position, most) {
            assert!(next > position);
            position = next;
            match all.last_mut() {
                Some((last, joined)) if *last == kind => joined.extend_from_slice(bytes),
                _ => all.push((kind, bytes.to_vec())),
            }
        }
        all
    }

    #[test]
    fn a_chatty_stream_does_not_push_the_other_out() {
        let mut ring = Ring::default();
        ring.push(Kind::Stderr, b"warning");
        for at in 0..200u32 {
            ring.push(Kind::Stdout, &[at as u8; 4000]);
        }
        let all = read_all(&ring, 1000);
        assert_eq!(all[0], (Kind::Stderr, b"warning".to_vec()));
        assert_eq!(all[1].0, Kind::Stdout);
        assert!((KEPT - JOINED..=KEPT).contains(&all[1].1.len()), "{}", all[1].1.len());
        assert!(all[1].1.ends_with(&[199; 4000]));
    }

    #[test]
    fn pieces_are_bounded_too() {
        let mut ring = Ring::default();
        for _ in 0..2 * PIECES {
            ring.push(Kind::Stdout, b"o");
            ring.push(Kind::Stderr, b"e");
        }
        assert_eq!(ring.pieces.len(), PIECES);
        assert_eq!(ring.out_bytes + ring.err_bytes, PIECES);
    }

    proptest! {
        #[test]
        fn what_fits_is_read_back_in_order(writes in prop::collection::vec((any::<bool>(), 1usize..3000), 0..60), most in 1usize..5000) {
            let mut ring = Ring::default();
            let mut expected: Vec<(Kind, Vec<u8>)> = Vec::new();
            for (at, (err, len)) in writes.into_iter().enumerate() {
                let (kind, bytes) = (if err { Kind::Stderr } else { Kind::Stdout }, vec![at as u8; len]);
                ring.push(kind, &bytes);
                match expected.last_mut() {
                    Some((last, joined)) if *last == kind => joined.extend_from_slice(&bytes),
                    _ => expected.push((kind, bytes)),
                }
            }
            prop_assert_eq!(read_all(&ring, most), expected);
        }
    }
}
