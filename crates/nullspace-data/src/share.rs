//! Shares one artifact's files with another artifact.
//!
//! A snapshot's files never change. So hard links are as good as copies, and cost nothing. The filesystem counts them: each
//! artifact can be removed without the other.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use nullspace_types::ArtifactId;

use crate::folders::{io_error, read_dir};
use crate::{ArtifactStore, DataError, PublishedArtifact, Result};

impl ArtifactStore {
    /// Publishes the files of the artifact in `folder` for `id` too. The caller keeps that artifact from collection.
    pub async fn share_artifact(&self, folder: &str, id: ArtifactId) -> Result<PublishedArtifact> {
        let from = self.artifact_dir(folder)?;
        let scratch = self.scratch()?;
        let to = scratch.path().join("artifact");
        let target = to.clone();
        self.blocking(move |_| link_tree(&from, &target)).await?;
        self.publish_artifact(&to, id).await
    }
}

fn link_tree(from: &Path, to: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(to).map_err(io_error("make", to))?;
    for path in read_dir(from)? {
        let Some(name) = path.file_name() else { continue };
        let kind = fs::symlink_metadata(&path).map_err(io_error("read", &path))?.file_type();
        if kind.is_dir() {
            link_tree(&path, &to.join(name))?;
        } else if kind.is_file() {
            fs::hard_link(&path, to.join(name)).map_err(io_error("share", &path))?;
        } else {
            let source = io::Error::from(io::ErrorKind::InvalidData);
            return Err(DataError::Io { context: format!("share {}", path.display()), source });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[tokio::test]
    async fn files_are_shared_and_outlive_the_artifact_that_they_came_from() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        let scratch = store.scratch().unwrap();
        let made = scratch.path().join("snapshot");
        fs::create_dir_all(made.join("deep")).unwrap();
        fs::write(made.join("memory"), "bytes").unwrap();
        fs::write(made.join("deep/state"), "more").unwrap();
        let first = store.publish_artifact(&made, ArtifactId::new()).await.unwrap();
        let second = store.share_artifact(&first.folder, ArtifactId::new()).await.unwrap();
        let file = |folder: &str, name: &str| store.artifact_dir(folder).unwrap().join(name);
        let inode = |folder: &str| fs::metadata(file(folder, "memory")).unwrap().ino();
        assert_eq!(inode(&first.folder), inode(&second.folder));
        store.remove_artifact(&first.folder).await.unwrap();
        assert_eq!(fs::read(file(&second.folder, "memory")).unwrap(), b"bytes");
        assert_eq!(fs::read(file(&second.folder, "deep/state")).unwrap(), b"more");
        assert!(store.share_artifact(&first.folder, ArtifactId::new()).await.is_err());
        assert_eq!(fs::read_dir(dir.path().join("work")).unwrap().count(), 1, "scratch of what failed is gone");
    }
}
