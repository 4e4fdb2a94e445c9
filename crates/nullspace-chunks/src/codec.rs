//! The stored form of a chunk: zstd, or plain bytes if compression saves too little.

use std::io;

/// Longest chunk of any store, bytes: bounds what a damaged index can make a reader allocate.
pub(crate) const MAX_CHUNK: u32 = 1 << 20;

/// Compresses chunks one after the other.
pub(crate) struct Encoder {
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl Encoder {
    /// `level` 0 compresses nothing.
    pub(crate) fn new(level: i32) -> io::Result<Encoder> {
        let zstd = if level == 0 { None } else { Some(zstd::bulk::Compressor::new(level)?) };
        Ok(Encoder { zstd })
    }

    /// What to store: shorter than `plain` when compressed, else `plain` itself.
    pub(crate) fn encode(&mut self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let Some(zstd) = &mut self.zstd else { return Ok(plain.to_vec()) };
        let packed = zstd.compress(plain)?;
        // Below an eighth the reader's time is worth more than the room.
        Ok(if packed.len() <= plain.len() - plain.len() / 8 { packed } else { plain.to_vec() })
    }
}

/// Decompresses chunks one after the other.
pub(crate) struct Decoder {
    zstd: zstd::bulk::Decompressor<'static>,
}

impl Decoder {
    pub(crate) fn new() -> io::Result<Decoder> {
        Ok(Decoder { zstd: zstd::bulk::Decompressor::new()? })
    }

    /// The plain bytes, which must be `length` many, into `plain`.
    pub(crate) fn decode(&mut self, stored: &[u8], length: usize, plain: &mut Vec<u8>) -> io::Result<()> {
        plain.clear();
        if stored.len() == length {
            plain.extend_from_slice(stored);
            return Ok(());
        }
        plain.reserve(length);
        let found = self.zstd.decompress_to_buffer(stored, plain)?;
        if found == length {
            Ok(())
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk's length is wrong"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_shrink_is_stored_as_it_is() {
        let random: Vec<u8> = (0..2000_u32).flat_map(|n| *ChunkBytes::of(n)).collect();
        for (plain, level, smaller) in
            [(&random, 1, false), (&vec![7; 64_000], 1, true), (&vec![7; 64_000], 0, false), (&vec![1], 3, false)]
        {
            let stored = Encoder::new(level).unwrap().encode(plain).unwrap();
            assert_eq!(stored.len() < plain.len(), smaller);
            let mut back = vec![9; 3];
            Decoder::new().unwrap().decode(&stored, plain.len(), &mut back).unwrap();
            assert_eq!(&back, plain);
        }
    }

    #[test]
    fn a_wrong_length_is_an_error() {
        let stored = Encoder::new(1).unwrap().encode(&[7; 1000]).unwrap();
        for length in [999, 1001] {
            Decoder::new().unwrap().decode(&stored, length, &mut Vec::new()).unwrap_err();
        }
    }

    struct ChunkBytes;
    impl ChunkBytes {
        fn of(n: u32) -> Box<[u8; 32]> {
            Box::new(*blake3::hash(&n.to_le_bytes()).as_bytes())
        }
    }
}
