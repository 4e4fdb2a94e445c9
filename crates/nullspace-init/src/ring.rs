//! A ring buffer with the last output of a service, for later followers.

use std::collections::VecDeque;

use nullspace_guest::frame::Kind;

/// Bytes kept of each stream.
pub(crate) const KEPT: usize = 256 * 1024;
/// Writes of one stream in a row are joined up to this size.
const JOINED: usize = 8 * 1024;
/// Pieces kept: bounds the bookkeeping when both streams write by turns, a byte at a time.
const PIECES: usize = 4096;
/// More than one piece holds, so that dropping whole pieces never reaches into what a follower has yet to read.
const SPARE: usize = 64 * 1024;

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
    out_lost: u64,
    err_lost: u64,
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
            let lost = if piece.kind == Kind::Stderr { &mut self.err_lost } else { &mut self.out_lost };
            *lost = lost.saturating_add(piece.bytes.len() as u64);
        }
    }

    /// Bytes of stdout and of stderr that are kept no more.
    pub(crate) fn lost(&self) -> (u64, u64) {
        (self.out_lost, self.err_lost)
    }

    /// How many bytes may be added without dropping anything that a reader at `position` has not read.
    pub(crate) fn room(&self, position: u64) -> usize {
        let read = self.pieces.partition_point(|piece| piece.end() <= position);
        if self.pieces.len().saturating_sub(read) >= PIECES / 2 {
            return 0;
        }
        let behind = usize::try_from(self.written.saturating_sub(position)).unwrap_or(usize::MAX);
        (KEPT - SPARE).saturating_sub(behind.min(self.out_bytes.saturating_add(self.err_bytes)))
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
        for at in 0..200u8 {
            ring.push(Kind::Stdout, &[at; 4000]);
        }
        let all = read_all(&ring, 1000);
        assert_eq!(all[0], (Kind::Stderr, b"warning".to_vec()));
        assert_eq!(all[1].0, Kind::Stdout);
        assert!((KEPT - JOINED..=KEPT).contains(&all[1].1.len()), "{}", all[1].1.len());
        assert!(all[1].1.ends_with(&[199; 4000]));
    }

    #[test]
    fn what_is_lost_is_counted() {
        let mut ring = Ring::default();
        let written = 3 * KEPT as u64;
        for _ in 0..written / 1024 {
            ring.push(Kind::Stderr, &[0; 1024]);
        }
        assert_eq!(ring.lost(), (0, written - ring.err_bytes as u64));
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
        fn a_reader_whose_room_is_kept_misses_nothing(
            moves in prop::collection::vec((any::<bool>(), any::<bool>(), 1usize..32_768), 1..400),
            late in any::<bool>(),
        ) {
            let mut ring = Ring::default();
            if late {
                // One that comes when much was dropped already misses that, and nothing after it.
                for _ in 0..40 {
                    ring.push(Kind::Stdout, &[1; 20_000]);
                    ring.push(Kind::Stderr, &[2; 3]);
                }
            }
            let before = ring.lost();
            let (mut position, mut written, mut got) = (0, [ring.out_bytes, ring.err_bytes], [0, 0]);
            let mut take = |ring: &Ring, position: &mut u64, most: usize| {
                if let Some((kind, bytes, next)) = ring.read(*position, most) {
                    got[usize::from(kind == Kind::Stderr)] += bytes.len();
                    *position = next;
                }
            };
            for (err, write, len) in moves {
                if write {
                    let len = len.min(ring.room(position));
                    if len > 0 {
                        ring.push(if err { Kind::Stderr } else { Kind::Stdout }, &vec![0; len]);
                        written[usize::from(err)] += len;
                    }
                } else {
                    take(&ring, &mut position, len);
                }
            }
            while ring.read(position, 1).is_some() {
                take(&ring, &mut position, 10_000);
            }
            prop_assert_eq!(got, written);
            prop_assert!(ring.lost() >= before);
        }

        #[test]
        fn what_fits_is_read_back_in_order(writes in prop::collection::vec((any::<bool>(), 1usize..3000), 0..60), most in 1usize..5000) {
            let mut ring = Ring::default();
            let mut expected: Vec<(Kind, Vec<u8>)> = Vec::new();
            for (at, (err, len)) in (0u8..).zip(writes) {
                let (kind, bytes) = (if err { Kind::Stderr } else { Kind::Stdout }, vec![at; len]);
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
