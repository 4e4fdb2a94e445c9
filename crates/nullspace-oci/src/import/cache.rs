//! A cache of image layers between imports, as a trait. This crate stores nothing itself.
//!
//! ```text
//!  find(digest) ── there ──> hash of the whole file ── right ──> read from the file, nothing is downloaded
//!       │                                           └─ wrong ──> remove ──┐
//!       └── not there ────────────────────────────────────────────────────┴──> download ── digest right ──> store
//! ```
//! A manifest may name any digest, also that of a layer which its registry never had. So a digest is no proof that the caller
//! may have the bytes. The implementation answers for that: a value of it belongs to one caller and one repository, and finds
//! only what that repository has given to that caller or to everybody.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use tokio_util::sync::CancellationToken;

use crate::digest::Digest;

/// The hash is taken in pieces of this many bytes.
const PIECE: usize = 256 << 10;

/// Image layers, compressed as they were downloaded. Methods are called from threads that may block.
pub trait LayerCache: Send + Sync {
    /// The blob with this digest and size in bytes, if it is there and the caller may have it. The import checks its digest
    /// before it uses any byte.
    fn find(&self, digest: &Digest, size: u64) -> Option<CachedLayer>;

    /// Removes a blob that does not have its digest.
    fn remove(&self, digest: &Digest);

    /// Begins to store a blob that is being downloaded. `None` when it is not to be stored: caching is off, the blob is too
    /// large, the disk is full.
    fn begin(&self, digest: &Digest, size: u64) -> Option<Box<dyn NewLayer>>;
}

/// A cached blob, opened.
pub struct CachedLayer {
    /// Its bytes, from offset 0.
    pub file: File,
    /// Dropped when the import needs the file no more. Until then the cache keeps it.
    pub hold: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for CachedLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedLayer").field("file", &self.file).finish_non_exhaustive()
    }
}

/// A blob on its way into the cache. Dropping it before [`store`](NewLayer::store) leaves nothing.
pub trait NewLayer: Send {
    /// Appends downloaded bytes.
    ///
    /// # Errors
    /// The disk's error. The import then goes on without storing this blob.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes the blob findable. Its size and digest have been found right.
    ///
    /// # Errors
    /// The disk's error; nothing is stored then.
    fn store(self: Box<Self>) -> io::Result<()>;
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Checked {
    Right,
    Wrong,
    Cancelled,
}

/// Reads the whole file and compares its size and digest.
pub(super) fn check(file: &File, digest: &Digest, size: u64, cancel: &CancellationToken) -> io::Result<Checked> {
    if file.metadata()?.len() != size {
        return Ok(Checked::Wrong);
    }
    let mut hasher = digest.algorithm().hasher();
    let mut piece = vec![0; PIECE];
    let mut position = 0;
    while position < size {
        if cancel.is_cancelled() {
            return Ok(Checked::Cancelled);
        }
        let left = usize::try_from(size - position).unwrap_or(PIECE).min(PIECE);
        let Some(part) = piece.get_mut(..left) else { break };
        file.read_exact_at(part, position)?;
        hasher.update(part);
        position += left as u64;
    }
    Ok(if hasher.finish() == *digest { Checked::Right } else { Checked::Wrong })
}
