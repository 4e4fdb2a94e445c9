//! The merging end of an import: layers are decoded ahead, checked and merged, wherever their blobs come from.

use std::io::{self, BufRead, BufReader, Read};
use std::thread::Scope;

use tokio_util::sync::CancellationToken;

use crate::digest::Digest;
use crate::merge::{ContentSink, LayerEnd, LayerError, Merge};
use crate::registry::{Layer, RegistryError};
use crate::stream::{Decoder, StreamError, StreamLimits, Tally, pump};
use crate::tar::TarError;

use super::error::ImportError;
use super::options::{ImportOptions, Imported, Progress};

/// A blob being read. At its end it has been found to have its digest, or the reading has failed.
pub(super) type Blob<'scope> = Box<dyn BufRead + Send + 'scope>;

/// The blobs of an image, by index into its layers, top layer first.
pub(super) trait Blobs: Sync {
    /// Opens a blob; `again` if it has been read before.
    fn open<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        index: usize,
        again: bool,
    ) -> io::Result<Blob<'scope>>;

    /// From now on this blob is what the import waits for.
    fn turn(&self, _index: usize) {}

    /// After content made no sense: whether the blob was the wrong one, which then is what to report.
    fn verdict(&self, _index: usize) -> Option<RegistryError> {
        None
    }
}

/// Merges all layers. `layers` and `blobs` begin with the top layer.
pub(super) fn merge_all<'scope, B: Blobs, S: ContentSink>(
    scope: &'scope Scope<'scope, '_>,
    blobs: &'scope B,
    layers: &[&Layer],
    sink: S,
    options: &ImportOptions,
    cancel: &CancellationToken,
) -> Result<Imported<S>, ImportError> {
    let start = |index: usize, layer: &Layer, again| {
        let compression = layer.compression;
        let open = move || Decoder::new(blobs.open(scope, index, again)?, compression);
        pump(scope, cancel.clone(), open).map_err(ImportError::Io)
    };
    let sort = |index: usize, layer: &Layer, error: LayerError| {
        let error = ImportError::from_layer(&layer.digest, error);
        let wrong_blob = if error.is_about_content() { blobs.verdict(index) } else { None };
        wrong_blob.map_or(error, ImportError::Registry)
    };
    // Compressed data can be long and unpack to nothing; its length has the same limit.
    let limit = options.stream.uncompressed;
    let mut compressed = 0_u64;
    for layer in layers {
        compressed = compressed.saturating_add(layer.size);
        if compressed > limit {
            return Err(ImportError::Stream { layer: layer.digest.clone(), source: StreamError::TooLarge { limit } });
        }
    }
    let mut merge = Merge::new(sink, options.merge);
    let mut uncompressed = 0_u64;
    let mut ahead = None;
    for (index, layer) in layers.iter().enumerate() {
        let current = match ahead.take() {
            Some(pumped) => pumped,
            None => start(index, layer, false)?,
        };
        blobs.turn(index);
        // The next layer's first pieces are decoded while this one is merged.
        if let Some(next) = layers.get(index + 1) {
            ahead = Some(start(index + 1, next, false)?);
        }
        let diff_id = Some(layer.diff_id.clone());
        let mut tally = Tally::new(current, diff_id.clone(), layer.size, uncompressed, options.stream);
        let end = merge.add_layer(&mut tally).map_err(|error| sort(index, layer, error))?;
        if end == LayerEnd::NeedsSecondReading {
            tracing::debug!(digest = %layer.digest, "layer is read again for the target of a hard link");
            let limits = StreamLimits { uncompressed: u64::MAX, ..options.stream };
            let mut again = Tally::new(start(index, layer, true)?, diff_id, layer.size, 0, limits);
            merge.read_again(&mut again).map_err(|error| ImportError::from_layer(&layer.digest, error))?;
        }
        uncompressed = uncompressed.saturating_add(tally.total());
        (options.progress)(Progress::LayerDone {
            digest: layer.digest.clone(),
            done: index + 1,
            layers: layers.len(),
            uncompressed: tally.total(),
        });
    }
    let lowest = layers.last().map_or_else(|| Digest::sha256(b""), |layer| layer.digest.clone());
    let (tree, sink) = merge.finish().map_err(|error| ImportError::from_layer(&lowest, error))?;
    Ok(Imported { tree, sink, uncompressed })
}

/// Imports one tar of a root filesystem, plain or compressed with gzip or zstd. Blocks.
pub fn import_tar<S, R>(reader: R, sink: S, options: &ImportOptions) -> Result<Imported<S>, LayerError>
where
    S: ContentSink,
    R: Read + Send,
{
    let io = |error| LayerError::Tar(TarError::Read(error));
    std::thread::scope(|scope| {
        let open = || Decoder::detect(BufReader::with_capacity(256 << 10, reader));
        let decoded = pump(scope, options.cancel.clone(), open).map_err(io)?;
        let mut merge = Merge::new(sink, options.merge);
        let mut tally = Tally::new(decoded, None, u64::MAX, 0, options.stream);
        // A single layer hides nothing of itself that a link could need; this cannot ask for a second reading.
        match merge.add_layer(&mut tally)? {
            LayerEnd::Complete => {}
            LayerEnd::NeedsSecondReading => return Err(LayerError::Changed),
        }
        let uncompressed = tally.total();
        let (tree, sink) = merge.finish()?;
        Ok(Imported { tree, sink, uncompressed })
    })
}
