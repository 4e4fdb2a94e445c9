//! Files of build contexts: which a tenant has, and which a build needs.

use std::collections::BTreeSet;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{Blob, BlobId, Caller};

#[cfg(doc)]
use crate::DbError;
use crate::{Lease, Result};

/// Keeps the names of uploaded files, each tenant's own.
#[async_trait]
pub trait Blobs: Send + Sync + 'static {
    /// Which of these the tenant has. Those found are kept from collection for another while.
    async fn find_blobs(&self, caller: &Caller, blobs: &[BlobId], now: Timestamp) -> Result<BTreeSet<BlobId>>;

    /// Records a blob whose bytes are durable; the same one again changes only when it was last used. `limit_bytes` is
    /// what the tenant may have together, else [`DbError::LimitReached`].
    async fn put_blob(&self, caller: &Caller, blob: &BlobId, limit_bytes: u64, now: Timestamp) -> Result<()>;

    /// What the build keeps from collection of its context's files.
    async fn held_blobs(&self, lease: &Lease) -> Result<Vec<HeldBlob>>;

    /// Blobs that no unfinished build needs, last used before `unused_since`, longest ago first.
    async fn collectable_blobs(&self, unused_since: Timestamp, limit: u32) -> Result<Vec<Blob>>;

    /// Forgets such a blob, so that its file can be removed. `false` when it was used meanwhile.
    async fn purge_blob(&self, blob: &Blob, unused_since: Timestamp) -> Result<bool>;

    /// Every blob that is supposed to be on disk.
    async fn known_blobs(&self) -> Result<BTreeSet<Blob>>;
}

/// A file that is kept for a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldBlob {
    /// Which.
    pub id: BlobId,
    /// Its generation when the build was accepted.
    pub generation: u64,
}
