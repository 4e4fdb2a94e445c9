//! Artifacts: one build's snapshot each, in a folder of its own.

use std::path::{Path, PathBuf};

use nullspace_types::ArtifactId;
use uuid::Uuid;

use crate::folders::{discard, inside_work, rename_new, sync_tree};
use crate::names::{ARTIFACTS, artifact_of};
use crate::{ArtifactStore, DataError, Result};

/// The result of [`ArtifactStore::publish_artifact`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedArtifact {
    /// Name under `artifacts/`, for the database.
    pub folder: String,
    /// Size on the disk, bytes, without holes.
    pub stored_bytes: u64,
}

impl ArtifactStore {
    /// The path of an artifact's folder, which need not exist.
    ///
    /// # Errors
    /// [`DataError::Corrupt`] when `folder` is not a name that [`publish_artifact`](Self::publish_artifact) could have made.
    /// So no value from the database leads out of the data folder.
    pub fn artifact_dir(&self, folder: &str) -> Result<PathBuf> {
        if artifact_of(folder).is_none() {
            return Err(DataError::corrupt("folder name of an artifact"));
        }
        Ok(self.root().join(ARTIFACTS).join(folder))
    }

    /// Makes a folder of `work/` the artifact `id`: durable and complete when this returns. Every attempt of a build may publish,
    /// each under its own name.
    ///
    /// If the build then does not become ready, remove the artifact by [`remove_artifact`](Self::remove_artifact). But if the
    /// transaction that names it failed with another error than a lost lease or a conflict, it may have happened: then leave the
    /// folder to the sweep.
    ///
    /// # Errors
    /// [`DataError::Conflict`] when the folder contains anything but files and folders.
    pub async fn publish_artifact(&self, dir: &Path, id: ArtifactId) -> Result<PublishedArtifact> {
        let folder = format!("{id}.{}", Uuid::new_v4().as_simple());
        let from = dir.to_owned();
        let to = self.artifact_dir(&folder)?;
        self.blocking(move |root| {
            let from = inside_work(root, &from)?;
            let stored_bytes = sync_tree(&from)?;
            rename_new(&from, &to)?;
            Ok(PublishedArtifact { folder, stored_bytes })
        })
        .await
    }

    /// Removes an artifact's folder, if there is one. The database must have removed its row before, or never have had one.
    pub async fn remove_artifact(&self, folder: &str) -> Result<()> {
        let path = self.artifact_dir(folder)?;
        // Out of the way first: a crash half-way through must not leave a folder that looks whole.
        let bin = self.bin();
        self.blocking(move |_| discard(&path, &bin)).await
    }
}
