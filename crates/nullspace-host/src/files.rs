//! Files of build contexts: received, compared with their ids, stored.
//!
//! ```text
//!   blob id, bytes ──> work/ (streamed, hashed, bounded by the size in the id) ──ReceivedFile──publish──> blobs/, or object
//! ```

use std::collections::BTreeSet;
use std::path::PathBuf;

use async_trait::async_trait;
use futures::StreamExt;
use nullspace_api::TemplateFailurePhase;
use nullspace_data::{ArtifactStore, DataError, Scratch};
use nullspace_host_interface::{ContextFiles, HostError, ReceivedFile, upload_detail, upload_refused};
use nullspace_service::{ByteStream, Error, Result};
use nullspace_types::{Blob, BlobId, TenantId};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::LocalHost;
use crate::failures::{of_data, to_control};

#[async_trait]
impl ContextFiles for LocalHost {
    async fn has_files(&self, tenant: TenantId, ids: &[BlobId]) -> BTreeSet<BlobId> {
        self.inner.files.has_blobs(tenant, ids).await
    }

    async fn receive_file(&self, file: Blob, mut content: ByteStream) -> Result<Box<dyn ReceivedFile>> {
        let id = &file.id;
        let mut room = self.inner.disk.ensure_room(id.bytes(), Some(TemplateFailurePhase::BlobUpload))?;
        let scratch = self.inner.files.scratch().map_err(of_data)?;
        let path = scratch.path().join("upload");
        let failed =
            |source: std::io::Error| of_data(DataError::Io { context: "write an uploaded file".to_owned(), source });
        let mut written = tokio::fs::File::create_new(&path).await.map_err(failed)?;
        let mut hash = Sha256::new();
        let mut size: u64 = 0;
        while let Some(chunk) = content.next().await {
            let chunk = chunk.map_err(|error| {
                tracing::debug!(%error, "an upload broke off");
                refused("upload_incomplete", "the body ended before it was whole: send it again")
            })?;
            size = size.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            if size > id.bytes() {
                let actual = format!("more than {}", id.bytes());
                return Err(mismatch("blob_size_mismatch", "size_bytes", id.bytes(), actual));
            }
            hash.update(&chunk);
            written.write_all(&chunk).await.map_err(failed)?;
            room.used(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        }
        written.flush().await.map_err(failed)?;
        drop(written);
        if size != id.bytes() {
            return Err(mismatch("blob_size_mismatch", "size_bytes", id.bytes(), size));
        }
        let digest = hex::encode(hash.finalize());
        if digest != id.sha256() {
            return Err(mismatch("blob_digest_mismatch", "sha256", id.sha256(), digest));
        }
        Ok(Box::new(Received { files: self.inner.files.clone(), file, path, _scratch: scratch }))
    }

    async fn remove_file(&self, file: &Blob) -> std::result::Result<(), HostError> {
        self.inner.files.remove_blob(file).await.map_err(to_control)
    }

    async fn ensure_room(&self, phase: Option<TemplateFailurePhase>) -> Result<()> {
        self.inner.disk.ensure_room(0, phase).map(drop)
    }
}

/// A file of `work/` whose digest and size are those of its id.
struct Received {
    files: ArtifactStore,
    file: Blob,
    path: PathBuf,
    _scratch: Scratch,
}

#[async_trait]
impl ReceivedFile for Received {
    async fn publish(self: Box<Self>) -> std::result::Result<(), HostError> {
        self.files.publish_blob(&self.path, &self.file).await.map_err(to_control)
    }
}

fn refused(reason: &str, message: &str) -> Error {
    upload_refused(upload_detail(reason, message))
}

fn mismatch(
    reason: &str,
    what: &str,
    expected: impl Into<serde_json::Value>,
    actual: impl Into<serde_json::Value>,
) -> Error {
    let message = format!("the uploaded bytes do not have the {what} of their blob id");
    let detail = upload_detail(reason, &message);
    upload_refused(detail.with("field", what).with("expected", expected).with("actual", actual))
}
