//! Compressed segments of finished builds' logs: their form, and where their bytes are.
//!
//! ```text
//!   rows of a log ──pack──> plain: (time, length, entry), … ──zstd──> bytes ──SegmentBytes::put──> `kept`, in the row
//!   page of a log <──unpack──────────────────────────────── bytes <──SegmentBytes::get── `kept`
//! ```
//! A segment is a run of entries without a gap. Its row has the offsets of the first and last entry, so the entries have none.
//! Zstandard's checksum finds damage.

use std::fmt;

use async_trait::async_trait;
use serde_json::Value;

use crate::{DbError, LogEntry, Result};

/// Most bytes of a segment before compression, unless its only entry is longer. A page of a log unpacks one or two segments,
/// in 0.2 ms each. Segments of 1 MiB would be 3 % smaller, of 64 KiB 13 % larger.
pub(crate) const SEGMENT_BYTES: usize = 256 << 10;
/// Zstandard's level: level 9 would take ten times as long for 6 %.
const LEVEL: i32 = 3;
/// Bytes of an entry's time and length.
const HEAD: usize = 12;

/// Where the bytes of log segments are.
///
/// Bytes are put before the transaction that names them, and removed after the transaction that forgets them. So a crash
/// leaves bytes without a name at most, never a name without bytes.
#[async_trait]
pub trait SegmentBytes: fmt::Debug + Send + Sync + 'static {
    /// Stores bytes durably. Returns what the segment's row keeps to find them.
    ///
    /// # Errors
    /// When they may not be stored. The segment is then made again later.
    async fn put(&self, bytes: Vec<u8>) -> Result<Vec<u8>>;

    /// Returns the bytes that a row keeps this of.
    ///
    /// # Errors
    /// [`DbError::Corrupt`] when they are gone.
    async fn get(&self, kept: Vec<u8>) -> Result<Vec<u8>>;

    /// Removes bytes whose row is gone. Bytes that are gone already are no error.
    ///
    /// # Errors
    /// When they may still be there. Nothing refers to them any more.
    async fn remove(&self, kept: Vec<u8>) -> Result<()>;

    /// Whether the bytes are outside of the row, so that they must be removed after it.
    fn outside(&self) -> bool;
}

/// How a Zstandard frame begins (RFC 8878).
pub(crate) const FRAME: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Whether what a row keeps is the segment itself, as an older version or a database without another place stored it. What a
/// [`SegmentBytes::put`] returns must not be so.
pub fn is_segment_in_row(kept: &[u8]) -> bool {
    kept.starts_with(&FRAME)
}

/// The bytes are in the row itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct InRow;

#[async_trait]
impl SegmentBytes for InRow {
    async fn put(&self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        Ok(bytes)
    }

    async fn get(&self, kept: Vec<u8>) -> Result<Vec<u8>> {
        Ok(kept)
    }

    async fn remove(&self, _kept: Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn outside(&self) -> bool {
        false
    }
}

/// A segment that is being filled.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    plain: Vec<u8>,
    first: i64,
    entries: i64,
}

/// A full segment before compression.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) first: i64,
    pub(crate) last: i64,
    pub(crate) plain: Vec<u8>,
}

impl Packer {
    /// Adds a log's next entry. `false` when it belongs into the next segment: this one is full, or there is a gap.
    pub(crate) fn add(&mut self, position: i64, at_micros: i64, body: &str) -> bool {
        let fits = self.plain.len() + HEAD + body.len() <= SEGMENT_BYTES
            && self.first.checked_add(self.entries) == Some(position);
        let Ok(length) = u32::try_from(body.len()) else { return false };
        if self.entries == 0 {
            self.first = position;
        } else if !fits {
            return false;
        }
        self.plain.extend_from_slice(&at_micros.to_le_bytes());
        self.plain.extend_from_slice(&length.to_le_bytes());
        self.plain.extend_from_slice(body.as_bytes());
        self.entries += 1;
        true
    }

    /// The segment; `None` without an entry.
    pub(crate) fn finish(self) -> Option<Packed> {
        let last = self.first.checked_add(self.entries.checked_sub(1)?)?;
        (self.entries > 0).then_some(Packed { first: self.first, last, plain: self.plain })
    }
}

/// Compresses a segment.
pub(crate) fn compress(plain: &[u8]) -> Result<Vec<u8>> {
    let failed = |source| DbError::Io { context: "compress a build log".to_owned(), source };
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).map_err(failed)?;
    compressor.include_checksum(true).map_err(failed)?;
    compressor.compress(plain).map_err(failed)
}

/// A segment as its row describes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Described {
    pub(crate) first: u64,
    pub(crate) last: u64,
    pub(crate) plain_bytes: usize,
}

/// Unpacks up to `limit` entries of a segment, from offset `from` on.
///
/// # Errors
/// [`DbError::Corrupt`] when the bytes are not those that the row describes.
pub(crate) fn unpack(described: Described, bytes: &[u8], from: u64, limit: usize) -> Result<Vec<LogEntry>> {
    let damaged = || DbError::corrupt("build_log_segments");
    let plain = zstd::bulk::decompress(bytes, described.plain_bytes).map_err(|_| damaged())?;
    if plain.len() != described.plain_bytes {
        return Err(damaged());
    }
    let mut rest = plain.as_slice();
    let mut entries = Vec::new();
    let mut offset = described.first;
    while let Some((head, tail)) = rest.split_first_chunk::<HEAD>() {
        let [a, b, c, d, e, f, g, h, length @ ..] = *head;
        let length = usize::try_from(u32::from_le_bytes(length)).map_err(|_| damaged())?;
        let (body, next) = tail.split_at_checked(length).ok_or_else(damaged)?;
        rest = next;
        if offset >= from && entries.len() < limit {
            let micros = i64::from_le_bytes([a, b, c, d, e, f, g, h]);
            let at = jiff::Timestamp::from_microsecond(micros).map_err(|_| damaged())?;
            let body: Value = serde_json::from_slice(body).map_err(|_| damaged())?;
            entries.push(LogEntry { offset, at, body });
        }
        offset = offset.checked_add(1).ok_or_else(damaged)?;
    }
    if !rest.is_empty() || described.last.checked_add(1) != Some(offset) {
        return Err(damaged());
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(bodies: &[String], first: i64) -> Packed {
        let mut packer = Packer::default();
        for (position, body) in (first..).zip(bodies) {
            assert!(packer.add(position, position * 7 - 3, body));
        }
        packer.finish().unwrap()
    }

    fn described(packed: &Packed) -> Described {
        Described {
            first: packed.first.try_into().unwrap(),
            last: packed.last.try_into().unwrap(),
            plain_bytes: packed.plain.len(),
        }
    }

    proptest! {
        #[test]
        fn what_was_packed_is_unpacked_from_any_offset(
            texts in prop::collection::vec("\\PC{0,40}", 1..60),
            first in 0_i64..1_000_000_000,
            from in 0_u64..80,
            limit in 0_usize..70,
        ) {
            let bodies: Vec<String> = texts.iter().map(|text| serde_json::json!({ "message": text }).to_string()).collect();
            let packed = packed(&bodies, first);
            let start = u64::try_from(first).unwrap();
            let read = unpack(described(&packed), &compress(&packed.plain).unwrap(), start + from, limit).unwrap();
            let expected: Vec<_> = (start..).zip(&texts).skip(from.try_into().unwrap()).take(limit).collect();
            prop_assert_eq!(read.len(), expected.len());
            for (entry, (offset, text)) in read.iter().zip(expected) {
                let micros = i64::try_from(offset).unwrap() * 7 - 3;
                prop_assert_eq!((entry.offset, entry.at.as_microsecond()), (offset, micros));
                prop_assert_eq!(entry.body["message"].as_str(), Some(text.as_str()));
            }
        }

        /// Bytes that were changed or cut are an error, never other entries.
        #[test]
        fn damage_is_found(at in any::<prop::sample::Index>(), bit in 0_u32..8, cut in any::<prop::sample::Index>()) {
            let bodies: Vec<String> = (0..200).map(|line| format!("{{\"message\":\"line {line}\"}}")).collect();
            let packed = packed(&bodies, 5);
            let whole = compress(&packed.plain).unwrap();
            let described = described(&packed);
            let expected = unpack(described, &whole, 0, 1000).unwrap();
            let mut changed = whole.clone();
            changed[at.index(whole.len())] ^= 1 << bit;
            if let Ok(read) = unpack(described, &changed, 0, 1000) {
                // A bit of the frame's head that changes nothing.
                prop_assert_eq!(read, expected);
            }
            prop_assert!(unpack(described, &whole[..cut.index(whole.len())], 0, 1000).is_err());
        }
    }

    #[test]
    fn a_row_that_describes_another_segment_is_damage() {
        let packed = packed(&["{}".to_owned(), "{}".to_owned()], 3);
        let bytes = compress(&packed.plain).unwrap();
        let right = described(&packed);
        assert_eq!(unpack(right, &bytes, 0, 10).unwrap().len(), 2);
        for wrong in [
            Described { last: right.last + 1, ..right },
            Described { last: right.last - 1, ..right },
            Described { plain_bytes: right.plain_bytes - 1, ..right },
            Described { plain_bytes: right.plain_bytes + 1, ..right },
        ] {
            assert!(matches!(unpack(wrong, &bytes, 0, 10), Err(DbError::Corrupt { .. })), "{wrong:?}");
        }
    }

    #[test]
    fn a_segment_is_full_at_its_size_and_ends_at_a_gap() {
        let body = format!("\"{}\"", "x".repeat(100 << 10));
        let mut packer = Packer::default();
        assert!(packer.add(0, 0, &body) && packer.add(1, 0, &body));
        assert!(!packer.add(2, 0, &body), "more than 256 KiB");
        assert!(!packer.add(3, 0, "{}"), "offset 2 is missing");
        assert!(packer.add(2, 0, "{}"));
        let packed = packer.finish().unwrap();
        assert_eq!((packed.first, packed.last), (0, 2));
        // An entry that is longer than a segment has one of its own.
        let long = format!("\"{}\"", "x".repeat(SEGMENT_BYTES));
        let mut packer = Packer::default();
        assert!(packer.add(7, 0, &long) && !packer.add(8, 0, "{}"));
        assert!(Packer::default().finish().is_none());
    }
}
