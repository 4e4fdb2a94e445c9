//! Imports from an OCI image layout that is already on this machine.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::thread::Scope;

use crate::digest::{Digest, Hasher};
use crate::layout::LocalImage;
use crate::manifest::Layer;
use crate::merge::ContentSink;
use crate::stream::{StreamError, pump};

use super::error::ImportError;
use super::options::{ImportOptions, Imported, Progress};
use super::pipeline::{Blob, Blobs, merge_all};

/// Imports an image of a layout into `sink`, every digest checked as if it came from a registry. Blocks.
pub fn import_local<S: ContentSink>(
    image: &LocalImage,
    sink: S,
    options: &ImportOptions,
) -> Result<Imported<S>, ImportError> {
    let layers: Vec<&Layer> = image.layers.iter().rev().collect();
    let bytes = layers.iter().fold(0, |sum: u64, layer| sum.saturating_add(layer.size));
    (options.progress)(Progress::Started { layers: layers.len(), bytes });
    let files = Files { image, layers, options };
    std::thread::scope(|scope| merge_all(scope, &files, &files.layers, sink, options, &options.cancel))
}

struct Files<'a> {
    image: &'a LocalImage,
    /// Top layer first.
    layers: Vec<&'a Layer>,
    options: &'a ImportOptions,
}

impl Blobs for Files<'_> {
    fn open<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, index: usize, _: bool) -> io::Result<Blob<'scope>> {
        let layer = self.layers.get(index).ok_or_else(|| io::Error::other("no such layer"))?;
        let (mut file, start) = self.image.open_blob(&layer.digest).map_err(io::Error::other)?;
        file.seek(SeekFrom::Start(start))?;
        let inner = BufReader::with_capacity(256 << 10, file.take(layer.size));
        let hasher = Some(layer.digest.algorithm().hasher());
        let checked = Checked { inner, expected: layer.digest.clone(), hasher, ahead: 0 };
        // On a thread of its own, as a download is: decompression is what takes longest and shall not wait for the hash.
        Ok(Box::new(pump(scope, self.options.cancel.clone(), move || Ok(checked))?))
    }
}

/// Hashes what is read; the end of the stream is only reached if the digest is right.
struct Checked<R> {
    inner: R,
    expected: Digest,
    hasher: Option<Hasher>,
    /// Bytes at the front of the buffer that are hashed but not consumed.
    ahead: usize,
}

impl<R: BufRead> BufRead for Checked<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.ahead == 0 {
            let buffer = self.inner.fill_buf()?;
            self.ahead = buffer.len();
            if let Some(hasher) = &mut self.hasher {
                hasher.update(buffer);
            }
            if self.ahead == 0
                && let Some(hasher) = self.hasher.take()
            {
                let actual = hasher.finish();
                if actual != self.expected {
                    return Err(StreamError::BlobMismatch { expected: self.expected.clone(), actual }.into());
                }
            }
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.ahead = self.ahead.saturating_sub(amount);
        self.inner.consume(amount);
    }
}

impl<R: BufRead> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}
