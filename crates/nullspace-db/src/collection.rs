//! Required and collectable data of the data folder.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, KnownFiles, Rootfs, Streams};

use crate::Result;

/// Lists the stored data, and releases data that nothing refers to.
#[async_trait]
pub trait Collection: Send + Sync + 'static {
    /// Returns unused artifacts. Their template is deleted, or no tag points to them and their retention is over; no sandbox
    /// runs from them, and no snapshot of one has files on top of their root image.
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

    /// Records the streams of an artifact that an older version stored as a folder. `false` when there is no such artifact, or
    /// it has streams.
    async fn set_artifact_streams(&self, folder: &str, streams: &Streams) -> Result<bool>;

    /// Returns every artifact, snapshot of a sandbox and root image that must be on disk. Snapshots that are over are among them
    /// until their files are removed.
    async fn known_files(&self) -> Result<KnownFiles>;

    /// Returns those of these artifacts that a build of this database made or may have made; also of builds whose rows were
    /// removed since the last start.
    async fn allotted(&self, artifacts: &BTreeSet<ArtifactId>) -> Result<BTreeSet<ArtifactId>>;

    /// Marks lost data as unusable: those artifacts, those snapshots of sandboxes, and the artifacts and snapshots on lost root
    /// images. A sandbox that is paused in a lost snapshot ends as `error`. A lost root image is made again when it is needed. The service never calls this itself: only an operator can know that data will not come back.
    async fn forget_lost(&self, lost: &KnownFiles, now: Timestamp) -> Result<()>;

    /// Removes the rows of lost log segments, by what they keep: their entries are missing from the logs of their builds from
    /// then on. For an operator's command, as [`Collection::forget_lost`] is.
    async fn forget_segments(&self, kept: &[Vec<u8>]) -> Result<()>;

    /// Returns what the secrets of rows that are not over were sealed with: the number of each key, which is a sealed secret's
    /// first byte, with the rows that need it.
    async fn sealed(&self) -> Result<BTreeMap<u8, SealedRows>>;
}

/// Numbers of rows with secrets that one key has sealed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SealedRows {
    /// Sandboxes that have not ended, with variables or a token for their ports.
    pub sandboxes: u64,
    /// Snapshots of sandboxes with variables.
    pub snapshots: u64,
    /// Webhooks with a signing secret.
    pub webhooks: u64,
}

/// A collectable artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusedArtifact {
    /// For [`Collection::purge_artifact`].
    pub id: ArtifactId,
    /// Its name in the data folder, to be removed afterwards.
    pub folder: String,
}
