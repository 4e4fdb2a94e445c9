//! Files of build contexts: each tenant's files, and the files that a build needs.

use std::collections::BTreeSet;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{Blob, BlobId, Caller};

#[cfg(doc)]
use crate::DbError;
use crate::{Lease, Result};

/// Stores the names of uploaded files, separately for each tenant.
#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// Returns which of these the tenant has. Their time of last use is renewed, which keeps them from collection.
    async fn find_blobs(&self, caller: &Caller, blobs: &[BlobId], now: Timestamp) -> Result<BTreeSet<BlobId>>;

    /// Records a blob whose bytes are durable. A second call with the same blob only renews its time of last use.
    /// `limit_bytes` is the most that the tenant may have together; beyond it the error is [`DbError::LimitReached`].
    async fn put_blob(&self, caller: &Caller, blob: &BlobId, limit_bytes: u64, now: Timestamp) -> Result<()>;

    /// Returns the files of its context that the build keeps from collection.
    async fn held_blobs(&self, lease: &Lease) -> Result<Vec<HeldBlob>>;

    /// Returns blobs that no unfinished build needs and that were last used before `unused_since`, the oldest first.
    async fn collectable_blobs(&self, unused_since: Timestamp, limit: u32) -> Result<Vec<Blob>>;

    /// Removes such a blob's row, so that its file can be removed. `false` when it was used meanwhile.
    async fn purge_blob(&self, blob: &Blob, unused_since: Timestamp) -> Result<bool>;

    /// Returns every blob that must be on disk.
    async fn known_blobs(&self) -> Result<BTreeSet<Blob>>;
}

/// A file that is kept for a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBlob {
    /// Its id.
    pub id: BlobId,
    /// Its generation when the build was accepted.
    pub generation: u64,
}
