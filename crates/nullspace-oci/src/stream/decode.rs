//! Decompression.

use std::io::{self, BufRead, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

use crate::manifest::Compression;

use super::StreamError;

/// Largest zstd window, log2 bytes. zstd's own tool goes no further without being told to (`--long`).
const MAX_ZSTD_WINDOW: u32 = 27;

type Source<R> = Chain<Cursor<Vec<u8>>, R>;

/// A layer's uncompressed bytes.
pub struct Decoder<R: BufRead> {
    inner: Inner<R>,
}

enum Inner<R: BufRead> {
    Plain(Source<R>),
    Gzip(Box<MultiGzDecoder<Source<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, Source<R>>),
}

impl<R: BufRead> std::fmt::Debug for Decoder<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Decoder({})", self.compression())
    }
}

impl<R: BufRead> Decoder<R> {
    /// Looks at the first bytes of `source`, which must be what `declared` says.
    pub fn new(mut source: R, declared: Compression) -> io::Result<Decoder<R>> {
        let magic = first_bytes(&mut source)?;
        let found = recognise(&magic);
        // A blob too short for any magic number is a truncated stream, which the decompressor reports.
        let agrees = match (declared, found) {
            (Compression::None, Found::Other) => true,
            (Compression::Gzip, found) => found == Found::Gzip || magic.len() < 2,
            (Compression::Zstd, found) => found == Found::Zstd || magic.len() < 4,
            _ => false,
        };
        if !agrees {
            return Err(StreamError::WrongCompression { declared, found: found.name() }.into());
        }
        Decoder::open(magic, source, declared)
    }

    /// Takes the compression from the first bytes of `source`.
    pub fn detect(mut source: R) -> io::Result<Decoder<R>> {
        let magic = first_bytes(&mut source)?;
        let compression = match recognise(&magic) {
            Found::Gzip => Compression::Gzip,
            Found::Zstd => Compression::Zstd,
            Found::Other => Compression::None,
            found @ (Found::Bzip2 | Found::Xz) => {
                return Err(StreamError::WrongCompression { declared: Compression::None, found: found.name() }.into());
            }
        };
        Decoder::open(magic, source, compression)
    }

    fn open(magic: Vec<u8>, source: R, compression: Compression) -> io::Result<Decoder<R>> {
        let source = Cursor::new(magic).chain(source);
        let inner = match compression {
            Compression::None => Inner::Plain(source),
            Compression::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(source))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(MAX_ZSTD_WINDOW)?;
                Inner::Zstd(decoder)
            }
        };
        Ok(Decoder { inner })
    }

    fn compression(&self) -> Compression {
        match self.inner {
            Inner::Plain(_) => Compression::None,
            Inner::Gzip(_) => Compression::Gzip,
            Inner::Zstd(_) => Compression::Zstd,
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.inner {
            Inner::Plain(source) => source.read(buffer),
            Inner::Gzip(decoder) => decoder.read(buffer),
            Inner::Zstd(decoder) => decoder.read(buffer),
        };
        read.map_err(|error| {
            // An error of the source keeps what it is; one of the decompressor's own is about the data.
            if error.get_ref().is_some_and(|inner| inner.is::<StreamError>()) {
                return error;
            }
            let compression = self.compression();
            match error.kind() {
                io::ErrorKind::UnexpectedEof => StreamError::Truncated { compression }.into(),
                _ => StreamError::Corrupt { compression, reason: error.to_string() }.into(),
            }
        })
    }
}

fn first_bytes(source: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut magic = Vec::with_capacity(6);
    source.take(6).read_to_end(&mut magic)?;
    Ok(magic)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Gzip,
    Zstd,
    Bzip2,
    Xz,
    Other,
}

impl Found {
    fn name(self) -> &'static str {
        match self {
            Found::Gzip => "gzip",
            Found::Zstd => "zstd",
            Found::Bzip2 => "bzip2",
            Found::Xz => "xz",
            Found::Other => "not compressed, or in an unknown way",
        }
    }
}

fn recognise(magic: &[u8]) -> Found {
    match magic {
        [0x1f, 0x8b, ..] => Found::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Found::Zstd,
        // A skippable frame, as zstd:chunked and seekable zstd put one first (RFC 8878, 3.1.2).
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Found::Zstd,
        [b'B', b'Z', b'h', ..] => Found::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Found::Xz,
        _ => Found::Other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn decode(blob: &[u8], declared: Compression) -> Result<Vec<u8>, StreamError> {
        let mut out = Vec::new();
        let read = Decoder::new(blob, declared).and_then(|mut decoder| decoder.read_to_end(&mut out));
        read.map(|_| out).map_err(|error| StreamError::find(error).unwrap())
    }

    #[test]
    fn all_compressions_decode_with_several_members_and_frames() {
        let two_members = [gzip(b"hello "), gzip(b"world")].concat();
        assert_eq!(decode(&two_members, Compression::Gzip).unwrap(), b"hello world");
        let frames = [
            zstd::encode_all(&b"hello "[..], 1).unwrap(),
            vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3],
            zstd::encode_all(&b"world"[..], 1).unwrap(),
        ];
        assert_eq!(decode(&frames.concat(), Compression::Zstd).unwrap(), b"hello world");
        let skippable_first = [&frames[1][..], &frames[0][..]].concat();
        assert_eq!(decode(&skippable_first, Compression::Zstd).unwrap(), b"hello ");
        assert_eq!(decode(b"plain", Compression::None).unwrap(), b"plain");
        assert_eq!(decode(b"", Compression::None).unwrap(), b"");
    }

    #[test]
    fn bytes_that_contradict_the_media_type_are_refused() {
        let zst = zstd::encode_all(&b"x"[..], 1).unwrap();
        let wrong = |blob: &[u8], declared| matches!(decode(blob, declared), Err(StreamError::WrongCompression { .. }));
        assert!(wrong(&zst, Compression::Gzip));
        assert!(wrong(&zst, Compression::None));
        assert!(wrong(&gzip(b"x"), Compression::Zstd));
        assert!(wrong(&gzip(b"x"), Compression::None));
        assert!(wrong(b"plain text", Compression::Gzip));
        assert!(wrong(b"BZh91AY", Compression::None));
    }

    #[test]
    fn broken_streams_are_told_apart() {
        let gz = gzip(&[7; 100_000]);
        let zst = zstd::encode_all(&[7; 100_000][..], 1).unwrap();
        for (blob, compression) in [(&gz, Compression::Gzip), (&zst, Compression::Zstd)] {
            for cut in [0, 1, 5, blob.len() / 2, blob.len() - 1] {
                let error = decode(&blob[..cut], compression).err();
                // An empty zstd stream is zero frames, which is a valid stream of nothing.
                let nothing = cut == 0 && error.is_none();
                assert!(
                    nothing || matches!(error, Some(StreamError::Truncated { .. })),
                    "{compression} {cut} {error:?}"
                );
            }
        }
        let mut flipped = gz.clone();
        let middle = flipped.len() - 6;
        flipped[middle] ^= 0xff;
        assert!(matches!(decode(&flipped, Compression::Gzip), Err(StreamError::Corrupt { .. })));
        let garbage = [&gz[..], b"garbage after the last member"].concat();
        assert!(decode(&garbage, Compression::Gzip).is_err());
    }
}
