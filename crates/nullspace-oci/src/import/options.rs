//! Options and result of an import.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::digest::Digest;
use crate::merge::{ContentSink, MergeLimits, MergedTree};
use crate::stream::StreamLimits;

use super::cache::LayerCache;

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
    /// Layers of earlier imports, which this import uses and adds to; `None`: every layer is downloaded.
    pub cache: Option<Arc<dyn LayerCache>>,
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
            cache: None,
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
            .field("cache", &self.cache.is_some())
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
        /// Compressed bytes of all layers, without those that were found in the cache.
        total: u64,
    },
    /// A layer's blob is here, whole, with the right digest. Comes again for a layer that is read twice.
    LayerFetched {
        /// The blob.
        digest: Digest,
        /// Its length in bytes.
        bytes: u64,
        /// It was in the cache; otherwise it was downloaded.
        cached: bool,
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
