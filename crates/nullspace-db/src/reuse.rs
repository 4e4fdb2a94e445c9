//! What earlier builds left that a build can use again. All of it is kept from collection until the build is over.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, Rootfs};

#[cfg(doc)]
use crate::DbError;
use crate::{Artifact, Lease, Result};

/// Finds and records root images, layers and artifacts for a build under its lease.
#[async_trait]
pub trait Reuse: Send + Sync + 'static {
    /// The root image of this key, kept from collection until the build is over.
    async fn find_rootfs(&self, lease: &Lease, key: &str, now: Timestamp) -> Result<Option<Rootfs>>;

    /// Records a published root image, kept from collection until the build is over. When another build was quicker, its
    /// record is returned and the file of this one is to be removed.
    async fn put_rootfs(&self, lease: &Lease, rootfs: Rootfs, now: Timestamp) -> Result<Rootfs>;

    /// The newest root image that a step of this key left behind, kept from collection until the build is over.
    async fn find_layer(&self, lease: &Lease, layer_key: &str, now: Timestamp) -> Result<Option<Rootfs>>;

    /// As [`put_rootfs`](Self::put_rootfs), for what a step left behind. The image's own key is new each time: two runs of
    /// a step leave two trees, and a machine that goes on runs over its own.
    async fn put_layer(&self, lease: &Lease, rootfs: Rootfs, layer_key: &str, now: Timestamp) -> Result<Rootfs>;

    /// An artifact that a build starts from, kept from collection until the build is over; [`DbError::NotFound`] when
    /// it can be used no more or is not visible to the build's tenant.
    async fn hold_artifact(&self, lease: &Lease, artifact: ArtifactId) -> Result<Artifact>;

    /// An artifact of this key ([`FinishReady::final_key`](crate::FinishReady::final_key)) that can be used, the newest, kept from collection until the
    /// build is over.
    async fn find_final(&self, lease: &Lease, key: &str) -> Result<Option<Artifact>>;
}
