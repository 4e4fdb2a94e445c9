//! What the data folder must have, and what of it can go.

use std::collections::BTreeSet;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, KnownFiles, Rootfs};

use crate::Result;

/// Lists what is stored, and gives up what nothing refers to.
#[async_trait]
pub trait Collection: Send + Sync + 'static {
    /// Artifacts that nothing uses: their template is deleted, or no tag points to them and their retention is over;
    /// and no sandbox runs from them.
    async fn collectable_artifacts(&self, now: Timestamp, limit: u32) -> Result<Vec<UnusedArtifact>>;

    /// Makes a collectable artifact unusable for ever, so that its folder can be removed. `false` when it is in use after
    /// all.
    async fn purge_artifact(&self, artifact: ArtifactId, now: Timestamp) -> Result<bool>;

    /// Root images that no artifact and no unfinished build uses, last used before `unused_since`, longest ago first.
    async fn collectable_rootfs(&self, unused_since: Timestamp, limit: u32) -> Result<Vec<Rootfs>>;

    /// Forgets such a root image, so that its file can be removed. `false` when it is in use after all.
    async fn purge_rootfs(&self, key: &str, unused_since: Timestamp) -> Result<bool>;

    /// Records the manifest of a root image that an older version stored without one. `false` when there is no such root
    /// image, or it has one.
    async fn set_rootfs_manifest(&self, file: &str, manifest: &str) -> Result<bool>;

    /// Every artifact and root image that is supposed to be on disk.
    async fn known_files(&self) -> Result<KnownFiles>;

    /// Those of these artifacts that a build of this database, of whatever state, has made or may have made.
    async fn allotted(&self, artifacts: &BTreeSet<ArtifactId>) -> Result<BTreeSet<ArtifactId>>;

    /// Stops offering what is gone from the disk : those artifacts, and those whose
    /// root image is lost, can be used no more, and a lost root image is made anew when next needed. Only an operator can
    /// know that something will not come back: never called by the service itself.
    async fn forget_lost(&self, lost: &KnownFiles, now: Timestamp) -> Result<()>;
}

/// An artifact that can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedArtifact {
    /// For [`Collection::purge_artifact`].
    pub id: ArtifactId,
    /// Name of its folder in the data folder, to be removed afterwards.
    pub folder: String,
}
