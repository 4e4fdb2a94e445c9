//! Files of build contexts: each tenant's own, named by what is in them.
//!
//! ```text
//!   blobs/tn_…/<64 hex digits>            whole or not there
//! ```
//!
//! One tenant's upload is never another's: knowing a digest is not having the bytes.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use nullspace_types::Blob;

use crate::{
    ArtifactStore, Result,
    artifacts::{BLOBS, discard, inside_work, io_error, make_dir, read_dir, remove, rename_over, sync_dir, sync_tree},
};

impl ArtifactStore {
    /// Where a blob's bytes are or would be. Tenant and blob id hold nothing but hex digits, so that the path stays inside.
    pub fn blob_path(&self, blob: &Blob) -> PathBuf {
        self.root().join(BLOBS).join(blob.tenant.to_string()).join(blob.id.sha256())
    }

    /// Makes a file of `work/`, whose digest and size were checked, the blob: durable and whole when this returns. The
    /// same bytes may be published again.
    pub async fn publish_blob(&self, file: &Path, blob: &Blob) -> Result<()> {
        let (from, to) = (file.to_owned(), self.blob_path(blob));
        self.blocking(move |root| {
            let from = inside_work(root, &from)?;
            sync_tree(&from)?;
            if let Some(folder) = to.parent() {
                make_dir(folder)?;
                sync_dir(&root.join(BLOBS))?;
            }
            rename_over(&from, &to)
        })
        .await
    }

    /// Removes a blob's bytes; nothing when there are none. The database must have forgotten it before.
    pub async fn remove_blob(&self, blob: &Blob) -> Result<()> {
        let (path, bin) = (self.blob_path(blob), self.bin());
        self.blocking(move |_| discard(&path, &bin)).await
    }

    /// Removes from `blobs/` what `known` lacks, for the start of the service; returns what `known` has and the disk has
    /// not.
    pub async fn sweep_blobs(&self, known: BTreeSet<Blob>) -> Result<BTreeSet<Blob>> {
        let paths: Vec<(PathBuf, Blob)> = known.into_iter().map(|blob| (self.blob_path(&blob), blob)).collect();
        self.blocking(move |root| {
            let mut missing: std::collections::BTreeMap<PathBuf, Blob> = paths.into_iter().collect();
            for folder in read_dir(&root.join(BLOBS))? {
                if !folder.symlink_metadata().map_err(io_error("read", &folder))?.is_dir() {
                    remove(&folder)?;
                    continue;
                }
                for file in read_dir(&folder)? {
                    if missing.remove(&file).is_none() {
                        remove(&file)?;
                    }
                }
                sync_dir(&folder)?;
            }
            Ok(missing.into_values().collect())
        })
        .await
    }

    /// What `blobs/` takes on the disk, bytes.
    pub async fn blob_usage(&self) -> Result<u64> {
        self.blocking(|root| crate::artifacts::stored_bytes(&root.join(BLOBS))).await
    }
}

#[cfg(test)]
mod tests {
    use nullspace_types::{BlobId, TenantId};

    use super::*;

    const DIGEST: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[tokio::test]
    async fn a_blob_is_published_whole_replaced_and_swept_when_nobody_knows_it() {
        let dir = tempfile::TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        let blob = |bytes| Blob { tenant: TenantId::new(), id: BlobId::new(DIGEST, bytes).unwrap() };
        let (kept, orphan, lost) = (blob(1), blob(2), blob(3));
        for blob in [&kept, &orphan, &kept] {
            let scratch = store.scratch().unwrap();
            std::fs::write(scratch.path().join("upload"), "x").unwrap();
            store.publish_blob(&scratch.path().join("upload"), blob).await.unwrap();
            assert_eq!(std::fs::read(store.blob_path(blob)).unwrap(), b"x");
        }
        let missing = store.sweep_blobs(BTreeSet::from([kept.clone(), lost.clone()])).await.unwrap();
        assert_eq!(missing, BTreeSet::from([lost]));
        assert!(store.blob_path(&kept).exists() && !store.blob_path(&orphan).exists());
        store.remove_blob(&kept).await.unwrap();
        store.remove_blob(&kept).await.unwrap();
        assert!(!store.blob_path(&kept).exists());
    }
}
