//! Files of build contexts, uploaded before the build that uses them.
//!
//! ```text
//!   preflight   path, sha256, size  ──>  blob_id, missing?
//!   upload      blob_id, bytes      ──>  work/ (streamed, hashed, bounded by the size in the id) ──> blobs/, then the row
//! ```
//! The id says digest and size, so an upload needs no memory of its preflight, and doing it twice changes nothing. What no
//! request has asked for in [`KEEP`] is collected.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use nullspace_api::{
    ErrorResponseCode, TemplateBlobPreflightRequest, TemplateBlobPreflightResponse, TemplateBlobPreflightResult,
    TemplateBuildContext, TemplateContextEntryType, TemplateFailureDetail, TemplateFailureDetailCode,
    TemplateFailurePhase,
};
use nullspace_service::{Blobs, ByteStream};
use nullspace_store::{Blob, BlobId, Caller, StoreError};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::context::{self, MAX_ENTRIES};
use crate::error::{Error, Result, Stored, internal};
use crate::validate::Wrong;
use crate::{Engine, Inner};

/// A file that nobody asks for is kept so long.
pub(crate) const KEEP: SignedDuration = SignedDuration::from_hours(24);

#[async_trait]
impl Blobs for Engine {
    async fn preflight_blobs(
        &self,
        caller: &Caller,
        request: TemplateBlobPreflightRequest,
    ) -> Result<TemplateBlobPreflightResponse> {
        if request.files.len() > MAX_ENTRIES {
            return Err(Error::invalid(format!("files has more than {MAX_ENTRIES} entries")));
        }
        let mut wrong = Wrong::default();
        let mut ids = Vec::with_capacity(request.files.len());
        for (index, file) in request.files.iter().enumerate() {
            let field = format!("files[{index}]");
            context::check_path(&format!("{field}.path"), &file.path, &mut wrong);
            if let Some(mode) = &file.mode {
                context::octal(&format!("{field}.mode"), mode, &mut wrong);
            }
            ids.push(match (file.entry_type, &file.sha256, file.size_bytes) {
                (TemplateContextEntryType::Dir, ..) => None,
                (TemplateContextEntryType::File, Some(sha256), Some(bytes)) => match BlobId::new(sha256, bytes) {
                    Ok(id) => {
                        if bytes > self.inner.config.blob_bytes_per_tenant {
                            let most = self.inner.config.blob_bytes_per_tenant;
                            wrong.say(&format!("{field}.size_bytes"), format_args!("is more than {most}"));
                        }
                        Some(id)
                    }
                    Err(_) => {
                        wrong.say(&format!("{field}.sha256"), "must be 64 lower-case hexadecimal digits");
                        None
                    }
                },
                (TemplateContextEntryType::File, ..) => {
                    wrong.say(&field, "is a file: sha256 and size_bytes must be given");
                    None
                }
            });
        }
        wrong.result()?;
        let wanted: Vec<BlobId> = ids.iter().flatten().cloned().collect::<BTreeSet<_>>().into_iter().collect();
        let found = self.inner.found_blobs(caller, &wanted).await?;
        let files = request.files.into_iter().zip(ids).map(|(file, id)| TemplateBlobPreflightResult {
            path: file.path,
            entry_type: file.entry_type,
            missing: id.as_ref().is_some_and(|id| file.force_upload == Some(true) || !found.contains(id)),
            mode: file.mode,
            blob_id: id.map(|id| id.to_string()),
        });
        Ok(TemplateBlobPreflightResponse { files: files.collect() })
    }

    async fn upload_blob(&self, caller: &Caller, blob_id: &str, mut bytes: ByteStream) -> Result<()> {
        let inner = &self.inner;
        let id: BlobId = blob_id.parse().map_err(|_| {
            refused("unknown_blob", "this is no blob id: take one that POST /v1/templates/blobs/preflight gives")
        })?;
        if id.bytes() > inner.config.blob_bytes_per_tenant {
            return Err(refused("blob_too_large", "the file is larger than what a tenant may upload together"));
        }
        let mut room = inner.ensure_room(id.bytes(), Some(TemplateFailurePhase::BlobUpload))?;
        let scratch = inner.files.scratch().stored()?;
        let path = scratch.path().join("upload");
        let failed = |source: std::io::Error| StoreError::Io { context: "write an uploaded file".to_owned(), source };
        let mut file = tokio::fs::File::create_new(&path).await.map_err(failed).stored()?;
        let mut hash = Sha256::new();
        let mut size: u64 = 0;
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(|error| {
                tracing::debug!(%error, "an upload broke off");
                refused("upload_incomplete", "the body ended before it was whole: send it again")
            })?;
            size = size.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            if size > id.bytes() {
                return Err(mismatch(
                    "blob_size_mismatch",
                    "size_bytes",
                    id.bytes(),
                    format!("more than {}", id.bytes()),
                ));
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(failed).stored()?;
            room.used(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        }
        file.flush().await.map_err(failed).stored()?;
        drop(file);
        if size != id.bytes() {
            return Err(mismatch("blob_size_mismatch", "size_bytes", id.bytes(), size));
        }
        let digest = hex::encode(hash.finalize());
        if digest != id.sha256() {
            return Err(mismatch("blob_digest_mismatch", "sha256", id.sha256(), digest));
        }
        inner.publish(caller, &path, id).await
    }
}

impl Inner {
    /// Makes a file of `work/`, whose digest and size were checked, a blob of the caller's.
    async fn publish(&self, caller: &Caller, path: &Path, id: BlobId) -> Result<()> {
        let blob = Blob { tenant: caller.tenant, id };
        // Against the collector, which forgets a row and removes its file in two steps.
        let _alone = self.blobs.lock().await;
        self.files.publish_blob(path, &blob).await.stored()?;
        let limit = self.config.blob_bytes_per_tenant;
        match self.metadata.put_blob(caller, &blob.id, limit, Timestamp::now()).await {
            Ok(()) => Ok(()),
            Err(error) => {
                // Nobody knows it; when that is not certain the next start's sweep sees to it.
                if matches!(error, StoreError::LimitReached { .. }) {
                    self.files.remove_blob(&blob).await.stored()?;
                }
                Err(error).or_missing(|| Error::invalid("the blob cannot be stored"))
            }
        }
    }

    /// Those of the wanted files that are stored. One that something else has removed is asked for again.
    async fn found_blobs(&self, caller: &Caller, wanted: &[BlobId]) -> Result<BTreeSet<BlobId>> {
        let mut found = self.metadata.find_blobs(caller, wanted, Timestamp::now()).await.stored()?;
        found.retain(|id| self.files.blob_path(&Blob { tenant: caller.tenant, id: id.clone() }).exists());
        Ok(found)
    }

    /// Stores the files that came with a checked request, so that a build finds them whenever and wherever it runs.
    pub(crate) async fn keep_inline(&self, caller: &Caller, context: Option<&TemplateBuildContext>) -> Result<()> {
        let mut contents: BTreeMap<BlobId, &str> = BTreeMap::new();
        for text in context.iter().flat_map(|context| &context.files).filter_map(|file| file.content_base64.as_ref()) {
            let bytes = decoded(text)?;
            let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            let id = BlobId::new(&hex::encode(Sha256::digest(&bytes)), size);
            contents.insert(id.map_err(|error| internal("name a file of a context", &error))?, text);
        }
        let wanted: Vec<BlobId> = contents.keys().cloned().collect();
        let there = self.found_blobs(caller, &wanted).await?;
        let missing: Vec<_> = contents.into_iter().filter(|(id, _)| !there.contains(id)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let bytes = missing.iter().map(|(id, _)| id.bytes()).fold(0, u64::saturating_add);
        let _room = self.ensure_room(bytes, Some(TemplateFailurePhase::BlobUpload))?;
        let scratch = self.files.scratch().stored()?;
        for (number, (id, text)) in missing.into_iter().enumerate() {
            let path = scratch.path().join(number.to_string());
            let written = tokio::fs::write(&path, decoded(text)?).await;
            written
                .map_err(|source| StoreError::Io { context: "write a file of a context".to_owned(), source })
                .stored()?;
            self.publish(caller, &path, id).await?;
        }
        Ok(())
    }

    /// Removes files that nobody asked for in a while.
    pub(crate) async fn collect_blobs(&self, now: Timestamp, batch: u32) -> std::result::Result<(), StoreError> {
        let unused_since = now - KEEP;
        for blob in self.metadata.collectable_blobs(unused_since, batch).await? {
            let _alone = self.blobs.lock().await;
            if self.metadata.purge_blob(&blob, unused_since).await? {
                self.files.remove_blob(&blob).await?;
                tracing::info!(blob = %blob.id, tenant = %blob.tenant, "uploaded file removed");
            }
        }
        Ok(())
    }
}

/// Content that a checked request has.
fn decoded(text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|_| Error::invalid("build_context has content_base64 that is not base64"))
}

fn detail(reason: &str, message: &str) -> TemplateFailureDetail {
    TemplateFailureDetail::new(
        TemplateFailureDetailCode::FileUploadError,
        TemplateFailurePhase::BlobUpload,
        false,
        message,
        "Ask POST /v1/templates/blobs/preflight for the file's blob_id and send exactly its bytes.",
    )
    .with_reason(reason)
}

fn refused(reason: &str, message: &str) -> Error {
    let detail = Box::new(detail(reason, message));
    Error { detail: Some(detail), ..Error::new(ErrorResponseCode::FileUploadError, message) }
}

fn mismatch(
    reason: &str,
    what: &str,
    expected: impl Into<serde_json::Value>,
    actual: impl Into<serde_json::Value>,
) -> Error {
    let message = format!("the uploaded bytes do not have the {what} of their blob id");
    let detail = detail(reason, &message).with("field", what).with("expected", expected).with("actual", actual);
    Error { detail: Some(Box::new(detail)), ..Error::new(ErrorResponseCode::FileUploadError, message) }
}
