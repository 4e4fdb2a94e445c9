//! A reader that hashes and counts its bytes.

use std::io::{self, BufRead, Read};

use crate::digest::{Digest, Hasher};

use super::StreamError;

/// How much an image may unpack to.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Bytes of all layers' tars together; also of all their blobs.
    pub uncompressed: u64,
    /// Most a layer may expand. gzip cannot exceed 1032; this stops zstd bombs.
    pub ratio: u64,
    /// Below this many bytes the ratio is not looked at.
    pub ratio_from: u64,
}

impl Default for StreamLimits {
    fn default() -> Self {
        StreamLimits { uncompressed: 64 << 30, ratio: 2000, ratio_from: 64 << 20 }
    }
}

/// Hashes and counts what is read through it. At the end of the stream the hash must be `expected`.
#[derive(Debug)]
pub struct Tally<R> {
    inner: R,
    hasher: Option<Hasher>,
    expected: Option<Digest>,
    /// Bytes at the front of `inner`'s buffer that have been counted but not consumed.
    ahead: usize,
    total: u64,
    limits: StreamLimits,
    /// Bytes of earlier layers.
    before: u64,
    compressed: u64,
}

impl<R: BufRead> Tally<R> {
    /// `compressed`: length of the layer's blob; `before`: what earlier layers unpacked to.
    pub fn new(inner: R, expected: Option<Digest>, compressed: u64, before: u64, limits: StreamLimits) -> Tally<R> {
        let hasher = expected.as_ref().map(|digest| digest.algorithm().hasher());
        Tally { inner, hasher, expected, ahead: 0, total: 0, limits, before, compressed }
    }

    /// Bytes seen so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    fn account(&mut self, length: usize) -> Result<(), StreamError> {
        self.total = self.total.saturating_add(length as u64);
        if self.before.saturating_add(self.total) > self.limits.uncompressed {
            return Err(StreamError::TooLarge { limit: self.limits.uncompressed });
        }
        let proportion = self.compressed.saturating_mul(self.limits.ratio).max(self.limits.ratio_from);
        if self.total > proportion {
            return Err(StreamError::Ratio { limit: self.limits.ratio });
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), StreamError> {
        if let (Some(hasher), Some(expected)) = (self.hasher.take(), &self.expected) {
            let actual = hasher.finish();
            if actual != *expected {
                return Err(StreamError::DiffIdMismatch { expected: expected.clone(), actual });
            }
        }
        Ok(())
    }
}

impl<R: BufRead> BufRead for Tally<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.ahead == 0 {
            let buffer = self.inner.fill_buf()?;
            let length = buffer.len();
            if length == 0 {
                self.check()?;
                return Ok(&[]);
            }
            // Whole buffers at once: hashing 512 bytes at a time would cost twice as much.
            if let Some(hasher) = &mut self.hasher {
                hasher.update(buffer);
            }
            self.account(length)?;
            self.ahead = length;
        }
        // The same buffer again; nothing was consumed in between.
        let buffer = self.inner.fill_buf()?;
        Ok(buffer.get(..self.ahead).unwrap_or(buffer))
    }

    fn consume(&mut self, amount: usize) {
        self.ahead = self.ahead.saturating_sub(amount);
        self.inner.consume(amount);
    }
}

impl<R: BufRead> Read for Tally<R> {
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

    fn read(data: &[u8], expected: Option<Digest>, compressed: u64, limits: StreamLimits) -> Result<u64, StreamError> {
        let mut tally = Tally::new(io::BufReader::with_capacity(7, data), expected, compressed, 10, limits);
        match tally.read_to_end(&mut Vec::new()) {
            Ok(_) => Ok(tally.total()),
            Err(error) => Err(StreamError::find(error).unwrap()),
        }
    }

    #[test]
    fn tally_checks_digest_size_and_ratio() {
        let data = vec![3_u8; 1000];
        let limits = StreamLimits { uncompressed: 2000, ratio: 10, ratio_from: 100 };
        assert_eq!(read(&data, Some(Digest::sha256(&data)), 100, limits).unwrap(), 1000);
        assert_eq!(read(&data, None, 100, limits).unwrap(), 1000);
        let wrong = read(&data, Some(Digest::sha256(b"")), 100, limits);
        assert!(matches!(wrong, Err(StreamError::DiffIdMismatch { .. })));
        let small = StreamLimits { uncompressed: 1009, ..limits };
        assert!(matches!(read(&data, None, 100, small), Err(StreamError::TooLarge { limit: 1009 })));
        assert!(matches!(read(&data, None, 99, limits), Err(StreamError::Ratio { limit: 10 })));
        assert_eq!(read(&[1; 100], Some(Digest::sha256(&[1; 100])), 1, limits).unwrap(), 100);
    }
}
