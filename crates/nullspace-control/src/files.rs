//! Files of build contexts, uploaded before the build that uses them.
//!
//! ```text
//!   preflight   path, sha256, size  ──>  blob_id, missing?
//!   upload      blob_id, bytes      ──>  the host (streamed, compared with the id), then the row
//! ```
//! The id has the digest and the size. So an upload needs no memory of its preflight, and a second upload changes nothing. A
//! file that no request has used for [`KEEP`] is collected.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use nullspace_api::{
    TemplateBlobPreflightRequest, TemplateBlobPreflightResponse, TemplateBlobPreflightResult, TemplateBuildContext,
    TemplateContextEntryType,
};
use nullspace_db::DbError;
use nullspace_definition::context::{MAX_ENTRIES, check_path, octal};
use nullspace_definition::problems::Wrong;
use nullspace_host_interface::{HostError, invalid, upload_detail, upload_refused};
use nullspace_service::{Blobs, ByteStream};
use nullspace_types::{Blob, BlobId, Caller};
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use crate::collect::Broken;
use crate::error::{Error, Result, Stored, internal, of_host};
use crate::{Control, Inner};

/// Time for which an unused file is kept.
pub(crate) const KEEP: SignedDuration = SignedDuration::from_hours(24);

/// Number of locks that all files share.
const LOCKS: usize = 64;

/// State that uploads share.
#[derive(Debug)]
pub(crate) struct State {
    /// One of them is held while an uploaded file and its row change together. Storing a file can take minutes, and others do not
    /// wait for it, but for the few that share its lock.
    alone: [Mutex<()>; LOCKS],
}

impl Default for State {
    fn default() -> State {
        State { alone: std::array::from_fn(|_| Mutex::default()) }
    }
}

impl State {
    /// The lock of a file. Two tenants' files of one content have two.
    fn lock(&self, blob: &Blob) -> &Mutex<()> {
        let mut hash = Sha256::new();
        hash.update(blob.tenant.to_string());
        hash.update(blob.id.sha256());
        let first = usize::from(hash.finalize().first().copied().unwrap_or_default());
        let [zero, ..] = &self.alone;
        self.alone.get(first % LOCKS).unwrap_or(zero)
    }
}

#[async_trait]
impl Blobs for Control {
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
            check_path(&format!("{field}.path"), &file.path, &mut wrong);
            if let Some(mode) = &file.mode {
                octal(&format!("{field}.mode"), mode, &mut wrong);
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
        wrong.result().map_err(invalid)?;
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

    async fn upload_blob(&self, caller: &Caller, blob_id: &str, bytes: ByteStream) -> Result<()> {
        let inner = &self.inner;
        let id: BlobId = blob_id.parse().map_err(|_| {
            refused("unknown_blob", "this is no blob id: take one that POST /v1/templates/blobs/preflight gives")
        })?;
        if id.bytes() > inner.config.blob_bytes_per_tenant {
            return Err(refused("blob_too_large", "the file is larger than what a tenant may upload together"));
        }
        inner.store(caller, id, bytes).await
    }
}

impl Inner {
    /// Has the host receive a file, and makes it the caller's blob.
    async fn store(&self, caller: &Caller, id: BlobId, content: ByteStream) -> Result<()> {
        let blob = Blob { tenant: caller.tenant, id };
        let received = self.host.receive_file(blob.clone(), content).await?;
        // Against the collector, which forgets a row and removes its file in two steps.
        let _alone = self.files.lock(&blob).lock().await;
        received.publish().await.map_err(of_host)?;
        let limit = self.config.blob_bytes_per_tenant;
        match self.db.put_blob(caller, &blob.id, limit, Timestamp::now()).await {
            Ok(()) => Ok(()),
            Err(error) => {
                // Nobody knows it; when that is not certain the next start's sweep sees to it.
                if matches!(error, DbError::LimitReached { .. }) {
                    self.host.remove_file(&blob).await.map_err(of_host)?;
                }
                Err(error).or_missing(|| Error::invalid("the blob cannot be stored"))
            }
        }
    }

    /// Returns the wanted files that are stored. A file that another program has removed counts as missing.
    async fn found_blobs(&self, caller: &Caller, wanted: &[BlobId]) -> Result<BTreeSet<BlobId>> {
        let known = self.db.find_blobs(caller, wanted, Timestamp::now()).await.stored()?;
        let known: Vec<BlobId> = known.into_iter().collect();
        Ok(self.host.has_files(caller.tenant, &known).await)
    }

    /// Stores the files that came inside a checked request. The build can then run later and on another host.
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
        for (id, text) in contents.into_iter().filter(|(id, _)| !there.contains(id)) {
            let bytes = Bytes::from(decoded(text)?);
            self.store(caller, id, stream::once(async move { Ok(bytes) }).boxed()).await?;
        }
        Ok(())
    }

    /// Removes files that were not used for [`KEEP`].
    pub(crate) async fn collect_blobs(&self, now: Timestamp, batch: u32) -> std::result::Result<(), Broken> {
        let unused_since = now - KEEP;
        for blob in self.db.collectable_blobs(unused_since, batch).await? {
            // One that is being uploaded is not unused any more, and the collector does not wait for it.
            let Ok(_alone) = self.files.lock(&blob).try_lock() else { continue };
            if self.db.purge_blob(&blob, unused_since).await? {
                match self.host.remove_file(&blob).await {
                    Ok(()) => tracing::info!(blob = %blob.id, tenant = %blob.tenant, "uploaded file removed"),
                    // The sweep at a later start removes it. The rest of the collection needs no store.
                    Err(error @ HostError::StoreAway(_)) => {
                        tracing::warn!(blob = %blob.id, %error, "an uploaded file without a row stays in the object store");
                        return Ok(());
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

/// Decodes the content of a file in a checked request.
fn decoded(text: &str) -> Result<Vec<u8>> {
    STANDARD.decode(text).map_err(|_| Error::invalid("build_context has content_base64 that is not base64"))
}

fn refused(reason: &str, message: &str) -> Error {
    upload_refused(upload_detail(reason, message))
}
