//! Reuse of earlier builds' results. A result in use is kept from collection until the build is over.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, BuildId, Rootfs, Streams};

#[cfg(doc)]
use crate::DbError;
use crate::{Artifact, Lease, Result};

/// Finds and records root images, layers and artifacts for a build under its lease.
#[async_trait]
pub trait Reuse: Send + Sync + 'static {
    /// Returns the root image of this key, kept from collection until the build is over.
    async fn find_rootfs(&self, lease: &Lease, key: &str, now: Timestamp) -> Result<Option<Rootfs>>;

    /// Records a published root image, kept from collection until the build is over. If another build has recorded the key
    /// before, its record is returned, and the caller removes its own file.
    async fn put_rootfs(&self, lease: &Lease, rootfs: Rootfs, now: Timestamp) -> Result<Rootfs>;

    /// Returns the newest root image that a step of this key made, kept from collection until the build is over.
    async fn find_layer(&self, lease: &Lease, layer_key: &str, now: Timestamp) -> Result<Option<Rootfs>>;

    /// As [`put_rootfs`](Self::put_rootfs), for a step's root image. The image's own key is new each time: two runs of a step
    /// make two trees, and a machine continues on its own.
    async fn put_layer(&self, lease: &Lease, rootfs: Rootfs, layer_key: &str, now: Timestamp) -> Result<Rootfs>;

    /// Returns an artifact that a build starts from, kept from collection until the build is over; [`DbError::NotFound`] when
    /// it is not usable or not visible to the build's tenant.
    async fn hold_artifact(&self, lease: &Lease, artifact: ArtifactId) -> Result<Artifact>;

    /// Returns the newest usable artifact of this key ([`FinishReady::final_key`](crate::FinishReady::final_key)), kept from
    /// collection until the build is over.
    async fn find_final(&self, lease: &Lease, key: &str) -> Result<Option<Artifact>>;

    /// Returns snapshots that this build's is likely to be much like, at most three: the newest of its template, of its tenant
    /// and of the system's namespaces. They are not kept from collection.
    async fn similar_snapshots(&self, build: BuildId) -> Result<Vec<Streams>>;
}
