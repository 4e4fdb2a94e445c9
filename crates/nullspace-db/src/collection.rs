//! Required and collectable data of the data folder.

use std::collections::BTreeSet;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, KnownFiles, Rootfs};

use crate::Result;

/// Lists the stored data, and releases data that nothing refers to.
#[async_trait]
pub trait Collection: Send + Sync + 'static {
    /// Returns unused artifacts. Their template is deleted, or no tag points to them and their retention is over; and no
    /// sandbox runs from them.
    async fn collectable_artifacts(&self, now: Timestamp, limit: u32) -> Result<Vec<UnusedArtifact>>;

    /// Makes a collectable artifact unusable for ever, so that its folder can be removed. `false` when it is in use again.
    async fn purge_artifact(&self, artifact: ArtifactId, now: Timestamp) -> Result<bool>;

    /// Returns root images that no artifact and no unfinished build uses and that were last used before `unused_since`, the
    /// oldest first.
    async fn collectable_rootfs(&self, unused_since: Timestamp, limit: u32) -> Result<Vec<Rootfs>>;

    /// Removes such a root image's row, so that its file can be removed. `false` when it is in use again.
    async fn purge_rootfs(&self, key: &str, unused_since: Timestamp) -> Result<bool>;

    /// Records the manifest of a root image that an older version stored without one. `false` when there is no such root
    /// image, or it has a manifest.
    async fn set_rootfs_manifest(&self, file: &str, manifest: &str) -> Result<bool>;

    /// Returns every artifact and root image that must be on disk.
    async fn known_files(&self) -> Result<KnownFiles>;

    /// Returns those of these artifacts that a build of this database made or may have made.
    async fn allotted(&self, artifacts: &BTreeSet<ArtifactId>) -> Result<BTreeSet<ArtifactId>>;

    /// Marks lost data as unusable: those artifacts, and the artifacts of the lost root images. A lost root image is made
    /// again when it is needed. The service never calls this itself: only an operator can know that data will not come back.
    async fn forget_lost(&self, lost: &KnownFiles, now: Timestamp) -> Result<()>;
}

/// A collectable artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedArtifact {
    /// For [`Collection::purge_artifact`].
    pub id: ArtifactId,
    /// Name of its folder in the data folder, to be removed afterwards.
    pub folder: String,
}
