//! Changes of files in a running sandbox, told as they happen.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use nullspace_api::FileEventKind;

use crate::{FileAt, Result};

/// A change below a watched directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// What has happened.
    pub kind: FileEventKind,
    /// The entry's path below the directory; empty for [`FileEventKind::Overflow`].
    pub name: String,
    /// The path below the directory that a renamed entry had before.
    pub from: Option<String>,
}

/// A directory that is watched. Dropping it ends the watch.
pub struct WatchedDir {
    /// Its absolute path in the sandbox.
    pub path: String,
    /// Changes. A slow reader misses some, with a [`FileEventKind::Overflow`] in their place. Nothing follows an error.
    pub changes: BoxStream<'static, Result<FileChange>>,
}

/// Changes of files in a running sandbox, told as they happen.
#[async_trait]
pub trait LiveWatches: Send + Sync + 'static {
    /// Watches a directory, with `recursive` also all below it. It goes on over a snapshot of the sandbox, and ends with an
    /// error when the sandbox is paused or ends.
    ///
    /// # Errors
    /// `RateLimitExceeded` when too many directories are watched; `RebuildRequired` when the sandbox's agent is older than this
    /// operation.
    async fn watch_dir(self: Arc<Self>, at: FileAt, recursive: bool) -> Result<WatchedDir>;
}
