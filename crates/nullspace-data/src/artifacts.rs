//! Artifacts: one build's snapshot each, in a folder of its own.

use std::path::{Path, PathBuf};

use nullspace_types::ArtifactId;
use uuid::Uuid;

use crate::folders::{discard, inside_work, rename_new, sync_tree};
use crate::names::{ARTIFACTS, artifact_of};
use crate::{ArtifactStore, DataError, Result};

/// What [`ArtifactStore::publish_artifact`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedArtifact {
    /// Name under `artifacts/`: what the database keeps.
    pub folder: String,
    /// What it takes on the disk, bytes (holes not counted).
    pub stored_bytes: u64,
}

impl ArtifactStore {
    /// Where an artifact's folder is or would be.
    ///
    /// # Errors
    /// [`DataError::Corrupt`] when `folder` is not a name that [`publish_artifact`](Self::publish_artifact) could have
    /// made: nothing read from the database leads out of the data directory.
    pub fn artifact_dir(&self, folder: &str) -> Result<PathBuf> {
        if artifact_of(folder).is_none() {
            return Err(DataError::corrupt("folder name of an artifact"));
        }
        Ok(self.root().join(ARTIFACTS).join(folder))
    }

    /// Makes a folder of `work/` the artifact `id`: durable and whole when this returns. Every attempt of a build may
    /// publish, each under a name of its own.
    ///
    /// When the build then ends otherwise than ready, [`remove_artifact`](Self::remove_artifact) what was published. Not
    /// when the transaction that names it failed with anything but a lost lease or a conflict: it may have happened, so
    /// leave the folder to the sweep.
    ///
    /// # Errors
    /// [`DataError::Conflict`] when the folder has anything but files and folders in it.
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

    /// Removes an artifact's folder; nothing when there is none. The database must have forgotten it before,
    /// or it never knew it.
    pub async fn remove_artifact(&self, folder: &str) -> Result<()> {
        let path = self.artifact_dir(folder)?;
        // Out of the way first: a crash half-way through must not leave a folder that looks whole.
        let bin = self.bin();
        self.blocking(move |_| discard(&path, &bin)).await
    }
}
