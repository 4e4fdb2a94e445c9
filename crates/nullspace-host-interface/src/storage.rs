//! What a host stores for control, by name; and how it goes.

use async_trait::async_trait;
use nullspace_types::KnownFiles;
use std::collections::BTreeSet;

use nullspace_types::Blob;

use crate::{HostError, RecordError};

/// What is known to the database, asked for at the right moment of a collection.
#[async_trait]
pub trait KnownImages: Send + Sync {
    /// Every artifact and root image that is supposed to be stored.
    async fn known_files(&self) -> Result<KnownFiles, RecordError>;
}

/// What a collection of chunks came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Manifests that were removed.
    pub manifests: u64,
    /// Chunks that were removed.
    pub chunks: u64,
    /// Packs that were removed or written anew.
    pub packs: u64,
    /// What that freed, bytes.
    pub freed_bytes: u64,
    /// Root images that cannot be read.
    pub lost: Vec<String>,
}

/// What a host stores. Control decides what goes, and forgets it in the database first: a file without a row is swept later, a
/// row without a file would lie.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// Removes artifacts, root images and context files that are not known, and what work of an earlier run left. For the start,
    /// when the database was found to belong to this data folder. Names what was removed.
    async fn sweep(&self, known: KnownFiles, files: BTreeSet<Blob>) -> Result<Vec<String>, HostError>;

    /// Removes an artifact's files. One that is not there is no error.
    async fn remove_artifact(&self, folder: &str) -> Result<(), HostError>;

    /// Removes a root image: its manifest and raw file. Its chunks go with [`Storage::collect_images`].
    async fn remove_rootfs(&self, file: &str) -> Result<(), HostError>;

    /// Removes raw root images over the cache's limit, those that were used longest ago first.
    async fn trim_rootfs(&self) -> Result<(), HostError>;

    /// Removes chunks that no root image needs. `known` is asked once the collection has begun, so that what is published
    /// meanwhile stays.
    async fn collect_images(&self, known: &dyn KnownImages) -> Result<Collected, HostError>;

    /// Takes a root image that an older version left as a raw file into the chunk store; its manifest.
    async fn adopt_rootfs(&self, file: &str) -> Result<String, HostError>;
}
