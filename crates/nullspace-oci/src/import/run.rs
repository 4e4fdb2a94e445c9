//! The threads of an import and what passes between them.

use std::fmt;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{Builder, Scope};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::digest::Digest;
use crate::manifest::Compression;
use crate::merge::{ContentSink, LayerEnd, LayerError, Merge, MergeLimits, MergedTree};
use crate::registry::{Layer, RegistryError, Repository, ResolvedImage};
use crate::stream::{Decoder, StreamError, StreamLimits, Tally, pump};
use crate::tar::TarError;

use super::error::ImportError;
use super::queue::{BlobQueue, End, QueueReader, Spool};

/// How an import is done.
#[derive(Clone)]
pub struct ImportOptions {
    /// Limits on the merged tree.
    pub merge: MergeLimits,
    /// Limits on what layers unpack to.
    pub stream: StreamLimits,
    /// Downloads at once.
    pub downloads: usize,
    /// Where blobs that arrive before their turn may wait, in unlinked files; `None`: they wait in the network.
    pub spool_directory: Option<PathBuf>,
    /// Most bytes there at any time.
    pub spool_limit: u64,
    /// Called from several threads, often, and must not block; the caller thins it out for its log.
    pub progress: Arc<dyn Fn(Progress) + Send + Sync>,
    /// Ends the import at its next step.
    pub cancel: CancellationToken,
}

impl Default for ImportOptions {
    fn default() -> Self {
        ImportOptions {
            merge: MergeLimits::default(),
            stream: StreamLimits::default(),
            downloads: 3,
            spool_directory: None,
            spool_limit: 4 << 30,
            progress: Arc::new(|_| {}),
            cancel: CancellationToken::new(),
        }
    }
}

impl fmt::Debug for ImportOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImportOptions")
            .field("merge", &self.merge)
            .field("stream", &self.stream)
            .field("downloads", &self.downloads)
            .field("spool_directory", &self.spool_directory)
            .field("spool_limit", &self.spool_limit)
            .finish_non_exhaustive()
    }
}

/// What has happened so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The import begins.
    Started {
        /// Layers in the image.
        layers: usize,
        /// Compressed bytes of all of them.
        bytes: u64,
    },
    /// Bytes came from the registry.
    Downloaded {
        /// Compressed bytes so far, over all layers.
        bytes: u64,
        /// Compressed bytes of all layers.
        total: u64,
    },
    /// A layer is verified and merged.
    LayerDone {
        /// Its blob.
        digest: Digest,
        /// Layers done, this one included.
        done: usize,
        /// Layers in the image.
        layers: usize,
        /// Length of its tar in bytes.
        uncompressed: u64,
    },
}

/// A finished import.
#[derive(Debug)]
pub struct Imported<S: ContentSink> {
    /// The merged tree.
    pub tree: MergedTree<S::Content>,
    /// The sink, with all content in it.
    pub sink: S,
    /// Length of all layers' tars in bytes.
    pub uncompressed: u64,
}

/// Imports an image's layers into `sink`. Runs on blocking threads of the current runtime; dropping the future cancels.
pub async fn import<S>(
    repository: &Repository,
    image: &ResolvedImage,
    sink: S,
    options: ImportOptions,
) -> Result<Imported<S>, ImportError>
where
    S: ContentSink + Send + 'static,
    S::Content: Send + 'static,
{
    let cancel = options.cancel.child_token();
    let _cancel_when_dropped = cancel.clone().drop_guard();
    let (repository, image, runtime) = (repository.clone(), image.clone(), Handle::current());
    let work = move || run(&repository, &image, sink, &options, &cancel, &runtime);
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(error) => Err(ImportError::Io(io::Error::other(error))),
    }
}

/// Imports one tar of a root filesystem, plain or compressed with gzip or zstd. Blocks.
pub fn import_tar<S, R>(reader: R, sink: S, options: &ImportOptions) -> Result<Imported<S>, LayerError>
where
    S: ContentSink,
    R: Read,
{
    let mut merge = Merge::new(sink, options.merge);
    let io = |error| LayerError::Tar(TarError::Read(error));
    let decoder = Decoder::detect(BufReader::with_capacity(256 << 10, reader)).map_err(io)?;
    let decoded = BufReader::with_capacity(256 << 10, decoder);
    let mut tally = Tally::new(decoded, None, u64::MAX, 0, options.stream);
    // A single layer hides nothing of itself that a link could need; this cannot ask for a second reading.
    match merge.add_layer(&mut tally)? {
        LayerEnd::Complete => {}
        LayerEnd::NeedsSecondReading => return Err(LayerError::Changed),
    }
    let uncompressed = tally.total();
    let (tree, sink) = merge.finish()?;
    Ok(Imported { tree, sink, uncompressed })
}

/// What all threads of an import share.
struct Shared<'a> {
    repository: &'a Repository,
    layers: Vec<&'a Layer>,
    options: &'a ImportOptions,
    cancel: &'a CancellationToken,
    runtime: &'a Handle,
    queues: Vec<Arc<BlobQueue>>,
    spool: Arc<Spool>,
    /// The next layer to download.
    next: AtomicUsize,
    downloaded: AtomicU64,
    total: u64,
}

fn run<S: ContentSink>(
    repository: &Repository,
    image: &ResolvedImage,
    sink: S,
    options: &ImportOptions,
    cancel: &CancellationToken,
    runtime: &Handle,
) -> Result<Imported<S>, ImportError> {
    let directory = options.spool_directory.clone();
    let spool = Arc::new(Spool { directory, limit: options.spool_limit, used: AtomicU64::new(0) });
    // Top layer first.
    let layers: Vec<&Layer> = image.layers.iter().rev().collect();
    let queues = layers.iter().map(|_| Arc::new(BlobQueue::new(spool.clone(), cancel.clone()))).collect();
    let total = image.layers_size();
    let shared = Shared {
        repository,
        layers,
        options,
        cancel,
        runtime,
        queues,
        spool,
        next: AtomicUsize::new(0),
        downloaded: AtomicU64::new(0),
        total,
    };
    (options.progress)(Progress::Started { layers: shared.layers.len(), bytes: total });
    std::thread::scope(|scope| {
        let outcome = merge_all(scope, &shared, sink);
        // Whatever the outcome, no thread outlives this call.
        cancel.cancel();
        outcome
    })
}

fn merge_all<'scope, S: ContentSink>(
    scope: &'scope Scope<'scope, '_>,
    shared: &'scope Shared<'_>,
    sink: S,
) -> Result<Imported<S>, ImportError> {
    for _ in 0..shared.options.downloads.clamp(1, 16).min(shared.layers.len()) {
        let name = "layer-download".to_owned();
        Builder::new().name(name).spawn_scoped(scope, || shared.download_all()).map_err(ImportError::Io)?;
    }
    let mut merge = Merge::new(sink, shared.options.merge);
    let mut uncompressed = 0_u64;
    let mut decoding = None;
    for (index, layer) in shared.layers.iter().enumerate() {
        let queue = |index: usize| shared.queues.get(index).cloned();
        let current = match decoding.take() {
            Some(pumped) => pumped,
            None => match queue(index) {
                Some(queue) => start(scope, queue, layer)?,
                None => break,
            },
        };
        if let Some(queue) = queue(index) {
            queue.set_current();
        }
        // The next layer's first pieces are decoded while this one is merged.
        if let (Some(next), Some(queue)) = (shared.layers.get(index + 1), queue(index + 1)) {
            decoding = Some(start(scope, queue, next)?);
        }
        let (size, diff_id) = (layer.size, Some(layer.diff_id.clone()));
        let mut tally = Tally::new(current, diff_id, size, uncompressed, shared.options.stream);
        let end = merge.add_layer(&mut tally).map_err(|error| shared.sort(index, error))?;
        if end == LayerEnd::NeedsSecondReading {
            tracing::debug!(digest = %layer.digest, "layer is read again for the target of a hard link");
            shared.read_again(scope, layer, &mut merge)?;
        }
        uncompressed = uncompressed.saturating_add(tally.total());
        (shared.options.progress)(Progress::LayerDone {
            digest: layer.digest.clone(),
            done: index + 1,
            layers: shared.layers.len(),
            uncompressed: tally.total(),
        });
    }
    let lowest = shared.layers.last().map_or_else(|| Digest::sha256(b""), |layer| layer.digest.clone());
    let (tree, sink) = merge.finish().map_err(|error| ImportError::from_layer(&lowest, error))?;
    Ok(Imported { tree, sink, uncompressed })
}

fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    queue: Arc<BlobQueue>,
    layer: &Layer,
) -> Result<impl io::BufRead + use<>, ImportError> {
    let compression = layer.compression;
    pump(scope, move || decode(queue, compression)).map_err(ImportError::Io)
}

fn decode(queue: Arc<BlobQueue>, compression: Compression) -> io::Result<Decoder<QueueReader>> {
    Decoder::new(QueueReader::new(queue), compression)
}

impl Shared<'_> {
    /// One download thread: takes the next layer until there is none.
    fn download_all(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let (Some(layer), Some(queue)) = (self.layers.get(index), self.queues.get(index)) else { return };
            let end = self.download(layer, queue);
            let complete = matches!(end, End::Complete);
            queue.end(end);
            if !complete {
                return;
            }
        }
    }

    fn download(&self, layer: &Layer, queue: &BlobQueue) -> End {
        let mut blob = self.repository.blob(&layer.digest, layer.size, 0);
        loop {
            let next = async {
                tokio::select! {
                    biased;
                    () = self.cancel.cancelled() => None,
                    next = blob.next() => Some(next),
                }
            };
            let chunk = match self.runtime.block_on(next) {
                Some(Ok(Some(chunk))) => chunk,
                Some(Ok(None)) => return End::Complete,
                Some(Err(error)) => return End::Failed(error),
                None => return End::Cancelled,
            };
            let bytes = chunk.len() as u64;
            if let Err(error) = queue.push(chunk) {
                return match StreamError::find(error) {
                    Ok(_) => End::Cancelled,
                    Err(io) => End::Spool(Arc::new(io)),
                };
            }
            let so_far = self.downloaded.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
            (self.options.progress)(Progress::Downloaded { bytes: so_far.min(self.total), total: self.total });
        }
    }

    /// If a layer's content makes no sense, that may be because it is not the layer: then that is what to report.
    fn sort(&self, index: usize, error: LayerError) -> ImportError {
        let Some(layer) = self.layers.get(index) else { return ImportError::Cancelled };
        let error = ImportError::from_layer(&layer.digest, error);
        if !error.is_about_content() {
            return error;
        }
        match self.queues.get(index).and_then(|queue| queue.abandon()) {
            Some(blob @ (RegistryError::DigestMismatch { .. } | RegistryError::SizeMismatch { .. })) => blob.into(),
            _ => error,
        }
    }

    fn read_again<'scope, S: ContentSink>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        layer: &'scope Layer,
        merge: &mut Merge<S>,
    ) -> Result<(), ImportError> {
        let queue = Arc::new(BlobQueue::new(self.spool.clone(), self.cancel.clone()));
        queue.set_current();
        let download = queue.clone();
        let work = move || download.end(self.download(layer, &download));
        Builder::new().name("layer-download".to_owned()).spawn_scoped(scope, work).map_err(ImportError::Io)?;
        let pumped = start(scope, queue, layer)?;
        let limits = StreamLimits { uncompressed: u64::MAX, ..self.options.stream };
        let mut tally = Tally::new(pumped, Some(layer.diff_id.clone()), layer.size, 0, limits);
        merge.read_again(&mut tally).map_err(|error| ImportError::from_layer(&layer.digest, error))
    }
}
