//! An image's blobs from the cache or a registry, several at once and ahead of the merge.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{Builder, Scope};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::merge::ContentSink;
use crate::registry::{Layer, RegistryError, Repository, ResolvedImage};
use crate::stream::StreamError;

use super::cache::{CachedLayer, Checked, NewLayer, check};
use super::error::ImportError;
use super::options::{ImportOptions, Imported, Progress};
use super::pipeline::{Blob, Blobs, merge_all};
use super::queue::{BlobQueue, End, QueueReader, Spool, WAKE};

/// Layers that are downloaded before their turn.
const MAX_AHEAD: usize = 16;

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

/// What all threads of an import share.
struct Downloads<'a> {
    repository: &'a Repository,
    /// Top layer first.
    layers: Vec<&'a Layer>,
    options: &'a ImportOptions,
    cancel: &'a CancellationToken,
    runtime: &'a Handle,
    queues: Vec<Arc<BlobQueue>>,
    spool: Arc<Spool>,
    /// The next layer to download.
    next: AtomicUsize,
    /// The layer that is being merged.
    turn: AtomicUsize,
    downloaded: AtomicU64,
    /// Bytes to download: all layers, less those that were found in the cache.
    total: AtomicU64,
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
    let spool = Arc::new(Spool::new(directory, options.spool_limit));
    let layers: Vec<&Layer> = image.layers.iter().rev().collect();
    let downloads = Downloads {
        repository,
        queues: layers.iter().map(|_| Arc::new(BlobQueue::new(spool.clone(), cancel.clone()))).collect(),
        layers,
        options,
        cancel,
        runtime,
        spool,
        next: AtomicUsize::new(0),
        turn: AtomicUsize::new(0),
        downloaded: AtomicU64::new(0),
        total: AtomicU64::new(image.layers_size()),
    };
    (options.progress)(Progress::Started { layers: downloads.layers.len(), bytes: image.layers_size() });
    std::thread::scope(|scope| {
        for _ in 0..options.downloads.clamp(1, 16).min(downloads.layers.len()) {
            named(scope, || downloads.download_all()).map_err(ImportError::Io)?;
        }
        let outcome = merge_all(scope, &downloads, &downloads.layers, sink, options, cancel);
        // Whatever the outcome, no thread outlives this call.
        cancel.cancel();
        outcome
    })
}

fn named<'scope>(scope: &'scope Scope<'scope, '_>, work: impl FnOnce() + Send + 'scope) -> io::Result<()> {
    Builder::new().name("layer-download".to_owned()).spawn_scoped(scope, work).map(drop)
}

impl Blobs for Downloads<'_> {
    fn open<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        index: usize,
        again: bool,
    ) -> io::Result<Blob<'scope>> {
        let (Some(layer), Some(queue)) = (self.layers.get(index), self.queues.get(index)) else {
            return Err(io::Error::other("no such layer"));
        };
        if !again {
            return Ok(Box::new(QueueReader::new(queue.clone())));
        }
        let queue = Arc::new(BlobQueue::new(self.spool.clone(), self.cancel.clone()));
        queue.set_current();
        let download = queue.clone();
        named(scope, move || {
            self.fetch(layer, &download, true);
        })?;
        Ok(Box::new(QueueReader::new(queue)))
    }

    fn turn(&self, index: usize) {
        self.turn.store(index, Ordering::Relaxed);
        if let Some(queue) = self.queues.get(index) {
            queue.set_current();
        }
    }

    fn verdict(&self, index: usize) -> Option<RegistryError> {
        let verdict = self.queues.get(index)?.abandon()?;
        matches!(verdict, RegistryError::DigestMismatch { .. } | RegistryError::SizeMismatch { .. }).then_some(verdict)
    }
}

impl Downloads<'_> {
    /// One download thread: takes the next layer until there is none.
    fn download_all(&self) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            let (Some(layer), Some(queue)) = (self.layers.get(index), self.queues.get(index)) else { return };
            // Each layer ahead may hold an open file.
            while index > self.turn.load(Ordering::Relaxed).saturating_add(MAX_AHEAD) {
                if self.cancel.is_cancelled() {
                    return;
                }
                std::thread::sleep(WAKE);
            }
            if !self.fetch(layer, queue, false) {
                return;
            }
        }
    }

    /// Brings a layer into its queue and ends the queue; `again` for its second reading. Whether all of it came.
    fn fetch(&self, layer: &Layer, queue: &BlobQueue, again: bool) -> bool {
        if let Some(cached) = self.cached(layer) {
            if !again {
                self.total.fetch_sub(layer.size, Ordering::Relaxed);
            }
            queue.give(cached, layer.size);
            self.fetched(layer, true);
            queue.end(End::Complete);
            return true;
        }
        let mut copy = self.options.cache.as_ref().and_then(|cache| cache.begin(&layer.digest, layer.size));
        let end = self.download(layer, queue, &mut copy);
        let complete = matches!(end, End::Complete);
        if complete {
            self.fetched(layer, false);
        }
        // Before the copy is flushed: the reader need not wait for that.
        queue.end(end);
        if complete
            && let Some(copy) = copy
            && let Err(error) = copy.store()
        {
            tracing::warn!(digest = %layer.digest, %error, "an image layer cannot be added to the cache");
        }
        complete
    }

    fn fetched(&self, layer: &Layer, cached: bool) {
        (self.options.progress)(Progress::LayerFetched { digest: layer.digest.clone(), bytes: layer.size, cached });
    }

    /// The layer from the cache, if it is there undamaged.
    fn cached(&self, layer: &Layer) -> Option<CachedLayer> {
        let cache = self.options.cache.as_ref()?;
        let found = cache.find(&layer.digest, layer.size)?;
        match check(&found.file, &layer.digest, layer.size, self.cancel) {
            Ok(Checked::Right) => return Some(found),
            Ok(Checked::Cancelled) => return None,
            Ok(Checked::Wrong) => {
                tracing::warn!(digest = %layer.digest, "a cached image layer is damaged: it is downloaded again");
            }
            Err(error) => {
                tracing::warn!(digest = %layer.digest, %error, "a cached image layer cannot be read: it is downloaded again");
            }
        }
        cache.remove(&layer.digest);
        None
    }

    fn download(&self, layer: &Layer, queue: &BlobQueue, copy: &mut Option<Box<dyn NewLayer>>) -> End {
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
            if let Some(Err(error)) = copy.as_mut().map(|copy| copy.write(&chunk)) {
                tracing::warn!(digest = %layer.digest, %error, "an image layer cannot be added to the cache");
                *copy = None;
            }
            if let Err(error) = queue.push(chunk) {
                return match StreamError::find(error) {
                    Ok(_) => End::Cancelled,
                    Err(io) => End::Spool(Arc::new(io)),
                };
            }
            let so_far = self.downloaded.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
            let total = self.total.load(Ordering::Relaxed);
            (self.options.progress)(Progress::Downloaded { bytes: so_far.min(total), total });
        }
    }
}
