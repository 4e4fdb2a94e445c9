//! What goes between the data folder and its object store as a whole.
//!
//! ```text
//!   data folder ── upload_missing ──> object store      a store that was added to a folder with data
//!               <── fetch_all ───────                   a folder that is to do without its store again
//! ```

use std::io;
use std::path::Path;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use nullspace_chunks::{RemoteStats, Stop as ChunkStop};
use nullspace_objects::{Counts, Error, ObjectName, Objects};
use nullspace_types::TenantId;
use uuid::Uuid;

use crate::blobs::{UPLOADS_AT_ONCE, UploadedFiles, listed, of_objects};
use crate::folders::{io_error, make_dir, rename_over, sync_dir, sync_tree};
use crate::names::{BLOBS, LOGS};
use crate::{ArtifactStore, Result};

/// What [`ArtifactStore::upload_missing`] uploaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UploadedAll {
    /// Packs and manifests.
    pub packs: u64,
    /// Uploaded files of build contexts.
    pub blobs: UploadedFiles,
    /// Segments of logs.
    pub logs: UploadedFiles,
}

/// What [`ArtifactStore::fetch_all`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FetchedAll {
    /// Packs that the folder has now.
    pub packs: u64,
    /// Packs that the object store has and that could not be brought here: the store lost them meanwhile, or the cache is too small.
    pub missing_packs: u64,
    /// Uploaded files and segments of logs that were downloaded.
    pub files: u64,
    /// Bytes of them.
    pub file_bytes: u64,
}

/// The object store of a data folder, and the cache of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ObjectUsage {
    /// What was moved since the start.
    pub counts: Counts,
    /// Where packs are.
    pub packs: RemoteStats,
    /// Bytes of packs and uploaded files in the data folder, which the object store has, too.
    pub cache_bytes: u64,
}

impl ArtifactStore {
    /// Puts, reads and deletes a small object, to see whether the object store can be used. `None` without one.
    ///
    /// # Errors
    /// [`DataError::Objects`](crate::DataError::Objects) when it cannot, or did not answer within `limit`.
    pub async fn check_objects(&self, limit: Duration) -> Option<Result<()>> {
        let objects = self.objects()?;
        Some(check_objects(objects, limit).await)
    }

    /// The object store's use; `None` without one. Reads every pack's name: for metrics, not for requests.
    pub fn object_usage(&self) -> Option<ObjectUsage> {
        let (objects, packs) = (self.objects()?, self.images().chunks.remote_stats()?);
        let blobs = self.stored_blobs().map_or(0, |blobs| blobs.cache_bytes());
        let cache_bytes = packs.cached_bytes.saturating_add(blobs);
        Some(ObjectUsage { counts: objects.counts(), packs, cache_bytes })
    }

    /// Uploads everything that only the data folder has: of the time before it had an object store. Nothing without one. It runs
    /// beside everything else.
    ///
    /// # Errors
    /// [`DataError::Objects`](crate::DataError::Objects) when the object store does not answer: the next call goes on with the rest.
    pub async fn upload_missing(&self, stop: ChunkStop) -> Result<UploadedAll> {
        let store = self.clone();
        let packs = self.blocking(move |_| Ok(store.images().chunks.upload_missing(&stop)?)).await?;
        let blobs = self.upload_missing_blobs().await?;
        let logs = self.logs().upload_missing().await?;
        Ok(UploadedAll { packs, blobs, logs })
    }

    /// Brings everything that only the object store has into the data folder, which must have been opened with a cache that is
    /// large enough for it. Nothing without an object store.
    ///
    /// # Errors
    /// [`DataError::Objects`](crate::DataError::Objects) when the object store does not answer, and
    /// [`DataError::Io`](crate::DataError::Io) when the disk fails or is full: the next call goes on with the rest.
    pub async fn fetch_all(&self) -> Result<FetchedAll> {
        let Some(objects) = self.objects() else { return Ok(FetchedAll::default()) };
        let store = self.clone();
        let missing_packs =
            self.blocking(move |_| Ok(store.images().chunks.download_missing(&ChunkStop::default())?)).await?;
        let packs = self.image_stats().packs.saturating_sub(missing_packs);
        let mut fetched = FetchedAll { packs, missing_packs, ..FetchedAll::default() };
        for (folder, belongs) in [(BLOBS, is_blob as fn(&str) -> bool), (LOGS, is_segment)] {
            let names = listed(objects, folder).await?;
            let names = names.into_iter().filter(|(name, ..)| belongs(name));
            let files =
                stream::iter(names)
                    .map(|(name, bytes, _)| async move {
                        self.fetch_file(objects, &format!("{folder}/{name}"), bytes).await
                    })
                    .buffer_unordered(UPLOADS_AT_ONCE);
            let (files, bytes) = files
                .try_fold((0, 0_u64), |(files, total), bytes| async move {
                    Ok(bytes.map_or((files, total), |bytes| (files + 1, total.saturating_add(bytes))))
                })
                .await?;
            fetched.files += files;
            fetched.file_bytes = fetched.file_bytes.saturating_add(bytes);
        }
        Ok(fetched)
    }

    /// Downloads one object to the path of its name, durably. `None`: it is there already, or no longer in the store.
    async fn fetch_file(&self, objects: &Objects, name: &str, bytes: u64) -> Result<Option<u64>> {
        let Ok(object) = ObjectName::parse(name) else { return Ok(None) };
        let to = self.root().join(name);
        let path = to.clone();
        if self.blocking(move |_| Ok(path.metadata().is_ok_and(|found| found.len() == bytes))).await? {
            return Ok(None);
        }
        let scratch = self.scratch()?;
        let made = scratch.path().join(Uuid::new_v4().as_simple().to_string());
        let path = made.clone();
        let file = self.blocking(move |_| new_file(&path).map_err(io_error("make", &path))).await?;
        match objects.download(&object, &file, bytes).await {
            Ok(()) => {}
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(of_objects("download a file")(error)),
        }
        self.blocking(move |root| {
            let _scratch = scratch;
            sync_tree(&made)?;
            if let Some(folder) = to.parent() {
                make_dir(folder)?;
                sync_dir(root)?;
            }
            rename_over(&made, &to)
        })
        .await?;
        Ok(Some(bytes))
    }
}

/// As [`ArtifactStore::check_objects`], for a store that no data folder was opened with.
///
/// # Errors
/// [`DataError::Objects`](crate::DataError::Objects) when it cannot be used, or did not answer within `limit`.
pub async fn check_objects(objects: &Objects, limit: Duration) -> Result<()> {
    let checked = tokio::time::timeout(limit, objects.check())
        .await
        .unwrap_or_else(|_| Err(Error::Unavailable { what: format!("no answer within {} s", limit.as_secs()) }));
    checked.map_err(of_objects("use the object store"))
}

fn new_file(path: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::File::options().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// `tn_…/<64 hex digits>`
fn is_blob(name: &str) -> bool {
    name.split_once('/').is_some_and(|(tenant, digest)| tenant.parse::<TenantId>().is_ok() && is_hex(digest, 64))
}

/// `<2 hex digits>/<32 hex digits>`
fn is_segment(name: &str) -> bool {
    name.split_once('/')
        .is_some_and(|(first, digits)| is_hex(digits, 32) && first == digits.get(..2).unwrap_or_default())
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}
