//! Manifests: images as lists of pieces.
//!
//! ```text
//!   magic 8 | image bytes 8 | depth 4 | pieces 4 | parent 32 (zeros: none) | piece 48 | piece 48 | ...
//!   piece: at 8 | length 4 | skip 4 | chunk 32          skip: bytes of the chunk before those of the piece
//! ```
//! Numbers are little-endian. Pieces are sorted and do not overlap. Bytes without a piece are the parent's, or zeros without
//! a parent. A piece with the skip [`ZEROS`] is zeros, even where the parent has data. The file's name is its BLAKE3, which
//! is also its checksum.

use std::io;

use crate::codec::MAX_CHUNK;
use crate::{ChunkId, ManifestId};

const MAGIC: &[u8; 8] = b"nsimage1";
const HEAD: usize = 56;
const PIECE: usize = 48;
const ZEROS: u32 = u32::MAX;
const NONE: [u8; 32] = [0; 32];
/// Longest chain of parents. Each is one more file to read.
pub(crate) const MAX_DEPTH: u32 = 8;
/// Longest piece of zeros, bytes.
const MAX_ZEROS: u64 = 1 << 30;
/// Largest manifest that is read, bytes: of an image with 128 GiB of content in full chunks.
pub(crate) const MAX_MANIFEST: u64 = 128 << 20;

/// A run of an image's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Offset in the image.
    pub(crate) at: u64,
    /// Bytes, at least 1.
    pub(crate) len: u32,
    pub(crate) content: Content,
}

/// The bytes of a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Zeros, even where the parent has data.
    Zeros,
    /// A chunk's bytes, from `skip` on.
    Chunk { id: ChunkId, skip: u32 },
}

impl Piece {
    pub(crate) fn end(&self) -> u64 {
        // Checked when it was read or made.
        self.at.saturating_add(u64::from(self.len))
    }

    /// Its part before `end`, which is inside it.
    fn until(self, end: u64) -> Piece {
        Piece { len: (end - self.at) as u32, ..self }
    }

    /// Its part from `start` on, which is inside it.
    fn from(self, start: u64) -> Piece {
        let cut = (start - self.at) as u32;
        let content = match self.content {
            Content::Zeros => Content::Zeros,
            Content::Chunk { id, skip } => Content::Chunk { id, skip: skip + cut },
        };
        Piece { at: start, len: self.len - cut, content }
    }

    /// Pieces of zeros for a run of any length.
    pub(crate) fn zeros(mut at: u64, mut len: u64) -> impl Iterator<Item = Piece> {
        std::iter::from_fn(move || {
            let part = len.min(MAX_ZEROS);
            let piece = Piece { at, len: part as u32, content: Content::Zeros };
            at += part;
            len -= part;
            (part > 0).then_some(piece)
        })
    }

    pub(crate) fn chunk(&self) -> Option<ChunkId> {
        match self.content {
            Content::Zeros => None,
            Content::Chunk { id, .. } => Some(id),
        }
    }
}

/// An image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Its length.
    pub(crate) bytes: u64,
    /// Its parent.
    pub(crate) parent: Option<ManifestId>,
    /// Number of parents below it.
    pub(crate) depth: u32,
    /// Sorted, disjoint.
    pub(crate) pieces: Vec<Piece>,
}

/// The fixed part of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    bytes: u64,
    parent: Option<ManifestId>,
    depth: u32,
    pieces: u32,
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a manifest {what}"))
}

impl Head {
    fn decode(bytes: &[u8]) -> io::Result<Head> {
        let mut fields = Fields(bytes);
        if fields.take::<8>()? != *MAGIC {
            return Err(bad("has another format"));
        }
        let bytes = u64::from_le_bytes(fields.take()?);
        let depth = u32::from_le_bytes(fields.take()?);
        let pieces = u32::from_le_bytes(fields.take()?);
        let parent: [u8; 32] = fields.take()?;
        let parent = (parent != NONE).then(|| ManifestId::from_bytes(parent));
        if depth > MAX_DEPTH || parent.is_some() != (depth > 0) {
            return Err(bad("has an impossible depth"));
        }
        Ok(Head { bytes, parent, depth, pieces })
    }
}

impl Manifest {
    pub(crate) fn encode(&self) -> io::Result<Vec<u8>> {
        let count = u32::try_from(self.pieces.len()).map_err(|_| bad("has too many pieces"))?;
        let mut bytes = Vec::with_capacity(HEAD + self.pieces.len() * PIECE);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&self.bytes.to_le_bytes());
        bytes.extend_from_slice(&self.depth.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        bytes.extend_from_slice(self.parent.as_ref().map_or(&NONE, |parent| parent.as_bytes()));
        for piece in &self.pieces {
            let (skip, id) = match &piece.content {
                Content::Zeros => (ZEROS, &NONE),
                Content::Chunk { id, skip } => (*skip, id.as_bytes()),
            };
            bytes.extend_from_slice(&piece.at.to_le_bytes());
            bytes.extend_from_slice(&piece.len.to_le_bytes());
            bytes.extend_from_slice(&skip.to_le_bytes());
            bytes.extend_from_slice(id);
        }
        if bytes.len() as u64 > MAX_MANIFEST { Err(bad("is too large")) } else { Ok(bytes) }
    }

    pub(crate) fn decode(bytes: &[u8]) -> io::Result<Manifest> {
        let head = Head::decode(bytes)?;
        let list = bytes.get(HEAD..).ok_or_else(|| bad("ends too early"))?;
        if list.len() % PIECE != 0 || list.len() / PIECE != head.pieces as usize {
            return Err(bad("has another length than it says"));
        }
        let mut pieces = Vec::with_capacity(head.pieces as usize);
        let mut end = 0;
        for entry in list.chunks_exact(PIECE) {
            let mut fields = Fields(entry);
            let at = u64::from_le_bytes(fields.take()?);
            let len = u32::from_le_bytes(fields.take()?);
            let skip = u32::from_le_bytes(fields.take()?);
            let id: [u8; 32] = fields.take()?;
            let content = if skip == ZEROS {
                Content::Zeros
            } else {
                let whole = skip.checked_add(len).filter(|whole| *whole <= MAX_CHUNK);
                whole.ok_or_else(|| bad("has a piece that is longer than a chunk"))?;
                Content::Chunk { id: ChunkId::from_bytes(id), skip }
            };
            let until = at.checked_add(u64::from(len)).filter(|until| *until <= head.bytes);
            let until = until.ok_or_else(|| bad("has a piece beyond the image's end"))?;
            if len == 0 || at < end {
                return Err(bad("has pieces that overlap"));
            }
            end = until;
            pieces.push(Piece { at, len, content });
        }
        Ok(Manifest { bytes: head.bytes, parent: head.parent, depth: head.depth, pieces })
    }
}

/// Takes fixed fields from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| bad("ends too early"))?;
        self.0 = rest;
        Ok(*field)
    }
}

/// Merges two lists, `above` over `below`. Both are sorted and disjoint, as is the result.
pub(crate) fn overlay(below: &[Piece], above: &[Piece]) -> Vec<Piece> {
    let mut all = Vec::with_capacity(below.len() + above.len());
    let mut above = above.iter().copied().peekable();
    for piece in below {
        let mut rest = Some(*piece);
        while let Some(current) = rest {
            let Some(top) = above.peek().copied().filter(|top| top.at < current.end()) else {
                all.push(current);
                break;
            };
            if top.at > current.at {
                all.push(current.until(top.at));
            }
            if top.end() >= current.end() {
                // It may cover more of what follows: it comes when that is known, in its order all the same.
                rest = None;
            } else {
                all.push(top);
                above.next();
                rest = Some(current.from(current.at.max(top.end())));
            }
        }
        // All that lies before the next piece's end is taken there; what ends before it begins comes first by position.
    }
    all.extend(above);
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(bytes: u32) -> impl Strategy<Value = Vec<Piece>> {
        // Gap, length, and which chunk or zeros.
        prop::collection::vec((0..40_u32, 1..40_u32, 0..4_u8, 0..9_u32), 0..12).prop_map(move |parts| {
            let (mut at, mut all) = (0_u32, Vec::new());
            for (gap, len, chunk, skip) in parts {
                at += gap;
                if at + len > bytes {
                    break;
                }
                let content = match chunk {
                    0 => Content::Zeros,
                    n => Content::Chunk { id: ChunkId::of(&[n]), skip },
                };
                all.push(Piece { at: u64::from(at), len, content });
                at += len;
            }
            all
        })
    }

    /// Each byte's origin.
    fn shown(pieces: &[Piece], map: &mut [Option<(Option<ChunkId>, u32)>]) {
        for piece in pieces {
            for n in 0..piece.len {
                map[piece.at as usize + n as usize] = Some(match piece.content {
                    Content::Zeros => (None, 0),
                    Content::Chunk { id, skip } => (Some(id), skip + n),
                });
            }
        }
    }

    proptest! {
        #[test]
        fn what_lies_above_hides_what_lies_below(below in pieces(300), above in pieces(300)) {
            let mut expected = vec![None; 300];
            shown(&below, &mut expected);
            shown(&above, &mut expected);
            let all = overlay(&below, &above);
            prop_assert!(all.windows(2).all(|pair| pair[0].end() <= pair[1].at));
            let mut found = vec![None; 300];
            shown(&all, &mut found);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_manifest_is_read_as_it_was_written(pieces in pieces(300), parent in any::<bool>()) {
            let parent = parent.then(|| ManifestId::of(b"parent"));
            let manifest = Manifest { bytes: 300, parent, depth: u32::from(parent.is_some()), pieces };
            prop_assert_eq!(Manifest::decode(&manifest.encode().unwrap()).unwrap(), manifest);
        }

        #[test]
        fn hostile_bytes_are_refused_or_make_sense(mut bytes in pieces(300).prop_map(|pieces| {
            Manifest { bytes: 300, parent: None, depth: 0, pieces }.encode().unwrap()
        }), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let index = at.index(bytes.len());
            bytes[index] = byte;
            if let Ok(read) = Manifest::decode(&bytes) {
                prop_assert!(read.pieces.windows(2).all(|pair| pair[0].end() <= pair[1].at));
                prop_assert!(read.pieces.last().is_none_or(|last| last.end() <= read.bytes));
            }
            let shorter = cut.index(bytes.len());
            prop_assert!(Manifest::decode(&bytes[..shorter]).is_err());
        }
    }

    #[test]
    fn a_long_run_of_zeros_is_several_pieces() {
        let all: Vec<Piece> = Piece::zeros(5, MAX_ZEROS * 2 + 1).collect();
        assert_eq!(all.iter().map(|piece| u64::from(piece.len)).sum::<u64>(), MAX_ZEROS * 2 + 1);
        assert_eq!((all[0].at, all[2].at, all[2].len), (5, 5 + 2 * MAX_ZEROS, 1));
    }
}
