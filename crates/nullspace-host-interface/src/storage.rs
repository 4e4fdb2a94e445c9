//! A host's stored data, by name, and its removal.

use async_trait::async_trait;
use std::collections::BTreeSet;

use nullspace_types::{Blob, KnownFiles, Streams};
use tokio_util::sync::CancellationToken;

use crate::{HostError, RecordError};

/// The database's answers during a collection.
#[async_trait]
pub trait KnownImages: Send + Sync {
    /// Returns every artifact and root image that must stay.
    async fn known_files(&self) -> Result<KnownFiles, RecordError>;
}

/// The result of a collection of chunks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Manifests that were removed.
    pub manifests: u64,
    /// Chunks that were removed.
    pub chunks: u64,
    /// Packs that were removed or rewritten.
    pub packs: u64,
    /// Space that was freed, bytes.
    pub freed_bytes: u64,
    /// Root images and files of snapshots that cannot be read.
    pub lost: Vec<String>,
}

/// A capture that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedCapture {
    /// Its files.
    pub streams: Streams,
    /// Growth of the host's store, bytes.
    pub stored_bytes: u64,
}

/// What is left of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureLeft {
    /// It can be resumed and published.
    Whole,
    /// The host has crashed since it was made, and it was not flushed before: it may be incomplete.
    Torn,
    /// The host does not have it.
    Missing,
}

/// A host's stored data. Control removes a row first and then the file: a file without a row is swept later, but a row
/// without a file would be wrong.
#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// Removes unknown artifacts, root images and context files, and leftovers of an earlier run. Call it at the start, once
    /// the database is known to belong to this data folder. Returns the removed names.
    async fn sweep(&self, known: KnownFiles, files: BTreeSet<Blob>) -> Result<Vec<String>, HostError>;

    /// Says that the database names an artifact that a build has made. Until then the host keeps its files from collection.
    fn artifact_named(&self, folder: &str);

    /// Stores a capture ([`Captured::folder`](crate::Captured::folder)): durable, as an artifact of a build is, and kept from collection
    /// until [`artifact_named`](Self::artifact_named). It can be resumed meanwhile and afterwards, and published again. `similar`: snapshots
    /// that it is likely to be much like. Cancelled, it ends early with an error.
    async fn publish_capture(
        &self,
        folder: &str,
        similar: Vec<Streams>,
        cancel: CancellationToken,
    ) -> Result<PublishedCapture, HostError>;

    /// Says that the database has the files of a capture that was published: its raw ones go, unless a machine uses them.
    async fn drop_capture(&self, folder: &str) -> Result<(), HostError>;

    /// Makes a capture outlive a crash of the host before it is published.
    async fn flush_capture(&self, folder: &str) -> Result<(), HostError>;

    /// What is left of a capture.
    async fn capture_left(&self, folder: &str) -> Result<CaptureLeft, HostError>;

    /// Imports a snapshot that an older version stored as a folder of files into the chunk store. Returns its streams. The
    /// folder stays until the next start.
    async fn adopt_artifact(&self, folder: &str) -> Result<Streams, HostError>;

    /// Removes an artifact's files. Missing files are no error.
    async fn remove_artifact(&self, folder: &str) -> Result<(), HostError>;

    /// Removes a root image: its manifest and raw file. [`Storage::collect_images`] removes its chunks.
    async fn remove_rootfs(&self, file: &str) -> Result<(), HostError>;

    /// Removes raw root images and snapshots above the cache's limit, the least recently used first.
    async fn trim_rootfs(&self) -> Result<(), HostError>;

    /// Removes chunks that no root image and no snapshot needs. `known` is called after the collection has begun, so images that are
    /// published meanwhile stay.
    async fn collect_images(&self, known: &dyn KnownImages) -> Result<Collected, HostError>;

    /// Imports a root image that an older version stored as a raw file into the chunk store. Returns its manifest.
    async fn adopt_rootfs(&self, file: &str) -> Result<String, HostError>;
}
