//! Files of build contexts: each tenant's own, named by their content.
//!
//! ```text
//!   blobs/tn_…/<64 hex digits>            complete or absent
//! ```
//!
//! Tenants do not share uploads: a digest is no proof of having the bytes.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use nullspace_types::Blob;

use crate::{
    ArtifactStore, Result,
    folders::{
        discard, inside_work, io_error, make_dir, read_dir, remove, rename_over, stored_bytes, sync_dir, sync_tree,
    },
    names::BLOBS,
};

impl ArtifactStore {
    /// The path of a blob's bytes. Tenant and blob id have only hex digits, so the path stays inside the folder.
    pub fn blob_path(&self, blob: &Blob) -> PathBuf {
        self.root().join(BLOBS).join(blob.tenant.to_string()).join(blob.id.sha256())
    }

    /// Makes a file of `work/` the blob, after its digest and size were checked. The blob is durable and complete when this
    /// returns. The same bytes may be published again.
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

    /// Removes a blob's bytes, if there are any. The database must have removed its row before.
    pub async fn remove_blob(&self, blob: &Blob) -> Result<()> {
        let (path, bin) = (self.blob_path(blob), self.bin());
        self.blocking(move |_| discard(&path, &bin)).await
    }

    /// Removes blobs that are not in `known` from `blobs/`, at the start of the service. Returns the blobs in `known` that
    /// are not on the disk.
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

    /// Size of `blobs/` on the disk, bytes.
    pub async fn blob_usage(&self) -> Result<u64> {
        self.blocking(|root| stored_bytes(&root.join(BLOBS))).await
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
