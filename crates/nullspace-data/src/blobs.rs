//! Files of build contexts: each tenant's own, named by their content.
//!
//! ```text
//!   without an object store    work/ ──flush, rename──> blobs/tn_…/<64 hex digits>              complete or absent
//!   with one                   work/ ──put──> object blobs/tn_…/<64 hex digits>
//!                                └──rename──> uploads/: a cache <──download, digest checked── object
//! ```
//!
//! Tenants do not share uploads: a digest is no proof of having the bytes. With an object store, `blobs/` has only the files of
//! the time before it: [`ArtifactStore::upload_missing_blobs`] moves them there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};
use nullspace_objects::{Cache, Cached, Error, ObjectName, Objects, Stop};
use nullspace_types::{Blob, BlobId, TenantId};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    ArtifactStore, DataError, Result, Scratch,
    folders::{
        discard, inside_work, io_error, make_dir, read_dir, remove, rename_over, stored_bytes, sync_dir, sync_tree,
    },
    names::{BLOBS, UPLOADS},
    remote::{ObjectSettings, list_below},
};

/// Age from which an object without a row is an orphan. Another process may be about to write the row of a younger one.
pub(crate) const ORPHAN_AGE: Duration = Duration::from_secs(24 * 3600);
/// Small requests of the store at a time.
pub(crate) const REQUESTS: usize = 16;
/// Uploads at a time of files of the time before the store.
pub(crate) const UPLOADS_AT_ONCE: usize = 4;
/// Longest time of asking the store which files it has. Files of which it did not say so by then count as present.
const LONGEST_ASK: Duration = Duration::from_secs(30);
/// Longest time of the removal of one object, for which uploads of the same file wait.
const LONGEST_REMOVE: Duration = Duration::from_secs(30);
/// Most files that are remembered as checked, and as damaged. Beyond them, they are checked again.
const REMEMBERED: usize = 100_000;
/// Bytes that are hashed at a time.
const PIECE: usize = 256 << 10;

/// Uploaded files in an object store.
#[derive(Debug)]
pub(crate) struct StoredBlobs {
    objects: Objects,
    cache: Cache,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Downloads whose digest was right, by the number that the cache gave them.
    checked: HashMap<ObjectName, u64>,
    /// Objects whose bytes are wrong. The next upload replaces them.
    damaged: HashSet<ObjectName>,
}

/// Files that were uploaded to an object store that came after them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UploadedFiles {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl UploadedFiles {
    /// The sum with one more file.
    #[must_use]
    pub(crate) fn and(self, bytes: u64) -> UploadedFiles {
        UploadedFiles { files: self.files.saturating_add(1), bytes: self.bytes.saturating_add(bytes) }
    }
}

impl StoredBlobs {
    pub(crate) fn open(root: &Path, settings: &ObjectSettings) -> Result<StoredBlobs> {
        let cache = Cache::open(&root.join(UPLOADS), settings.blob_cache_bytes(), settings.objects.clone());
        let cache = cache.map_err(of_objects("open the cache of uploaded files"))?;
        Ok(StoredBlobs { objects: settings.objects.clone(), cache, seen: Mutex::default() })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes in the cache.
    pub(crate) fn cache_bytes(&self) -> u64 {
        self.cache.stats().bytes
    }

    fn is_damaged(&self, name: &ObjectName) -> bool {
        self.seen().damaged.contains(name)
    }

    fn note_checked(&self, name: &ObjectName, id: u64) {
        let mut seen = self.seen();
        if seen.checked.len() >= REMEMBERED {
            seen.checked.clear();
        }
        seen.checked.insert(name.clone(), id);
    }

    /// The error of an object whose bytes are not those of its name. It stays until the file is uploaded again.
    fn damaged(&self, name: &ObjectName, blob: &Blob) -> DataError {
        tracing::error!(%name, "an uploaded file is damaged in the object store; the next upload of it replaces it");
        let mut seen = self.seen();
        if seen.damaged.len() < REMEMBERED {
            seen.damaged.insert(name.clone());
        }
        DataError::Damaged {
            what: format!("uploaded file {} is damaged in the object store: upload it again", blob.id),
        }
    }

    /// Stores a file whose digest and size are those of the blob.
    async fn put(&self, blob: &Blob, file: &Path, stop: &Stop) -> Result<()> {
        let name = object_name(blob)?;
        let failed = || of_objects("store an uploaded file");
        if self.is_damaged(&name) {
            self.cache.forget(&name).await.map_err(failed())?;
            self.objects.delete(&name).await.map_err(failed())?;
        }
        let open = || File::open(file).map_err(io_error("open", file));
        match self.objects.put_file(&name, open()?, stop).await {
            Ok(_) => {}
            Err(Error::Exists { stored, .. }) => {
                // The name says what the bytes are, and these were compared with it.
                tracing::warn!(%name, stored, "an uploaded file had another length in the object store and is replaced");
                self.objects.delete(&name).await.map_err(failed())?;
                self.objects.put_file(&name, open()?, stop).await.map_err(failed())?;
            }
            Err(error) => return Err(failed()(error)),
        }
        self.seen().damaged.remove(&name);
        match self.cache.insert(&name, file).await {
            Ok(cached) => self.note_checked(&name, cached.id()),
            // It is downloaded when it is needed.
            Err(error) => tracing::debug!(%error, "an uploaded file is not in the cache"),
        }
        Ok(())
    }

    /// Makes a blob's bytes the file `to`. `false` when there is no such object.
    async fn get(&self, store: &ArtifactStore, blob: &Blob, to: &Path) -> Result<bool> {
        let name = object_name(blob)?;
        // A download can be damaged on its way. An object that is damaged is so twice.
        for last in [false, true] {
            let (hash, cached) = match self.cache.get(&name, blob.id.bytes()).await {
                Ok(cached) => {
                    let checked = self.seen().checked.get(&name) == Some(&cached.id());
                    if checked && link(store, cached.path(), to).await? {
                        return Ok(true);
                    }
                    let found = cached.path().to_owned();
                    // The cache may forget it at any time, unlike what is linked.
                    if !link(store, &found, to).await? {
                        continue;
                    }
                    (sha256(store, to).await?, Some(cached))
                }
                // Larger than the cache, or everything in it is in use.
                Err(Error::Full { .. }) => {
                    self.download(store, &name, blob, to).await?;
                    (sha256(store, to).await?, None)
                }
                Err(Error::NotFound { .. }) => return Ok(false),
                Err(Error::Damaged { .. }) => return Err(self.damaged(&name, blob)),
                Err(error) => return Err(of_objects("read an uploaded file")(error)),
            };
            if hash == blob.id.sha256() {
                if let Some(cached) = cached {
                    self.note_checked(&name, cached.id());
                }
                return Ok(true);
            }
            fs::remove_file(to).map_err(io_error("remove", to))?;
            self.forget(&name, cached).await?;
            tracing::warn!(%name, last, "a download of an uploaded file has another digest");
        }
        Err(self.damaged(&name, blob))
    }

    async fn forget(&self, name: &ObjectName, cached: Option<Cached>) -> Result<()> {
        drop(cached);
        self.cache.forget(name).await.map_err(of_objects("remove an uploaded file from the cache"))
    }

    async fn download(&self, store: &ArtifactStore, name: &ObjectName, blob: &Blob, to: &Path) -> Result<()> {
        let path = to.to_owned();
        let file = store
            .blocking(move |_| {
                let file = File::options().create_new(true).write(true).open(&path);
                file.map_err(io_error("make", &path))
            })
            .await?;
        self.objects.download(name, &file, blob.id.bytes()).await.map_err(of_objects("read an uploaded file"))
    }

    /// Whether an object is there with its length. `true` when the store does not say.
    async fn has(&self, blob: &Blob) -> bool {
        let Ok(name) = object_name(blob) else { return false };
        if self.is_damaged(&name) {
            return false;
        }
        match self.objects.size(&name).await {
            Ok(size) => size == Some(blob.id.bytes()),
            Err(error) => {
                tracing::warn!(%error, "the object store does not say whether it has an uploaded file");
                true
            }
        }
    }
}

/// The name of a blob's object.
fn object_name(blob: &Blob) -> Result<ObjectName> {
    let name = format!("{BLOBS}/{}/{}", blob.tenant, blob.id.sha256());
    ObjectName::parse(&name).map_err(|_| DataError::corrupt("name of an uploaded file"))
}

/// For `map_err`: the object store's error of an operation.
pub(crate) fn of_objects(what: &str) -> impl FnOnce(Error) -> DataError + '_ {
    move |source| match source {
        // Of a file here, not of the store.
        Error::Io { what, source } => DataError::Io { context: what, source },
        source => DataError::Objects { context: what.to_owned(), source },
    }
}

/// The objects below a folder of names; see [`list_below`].
pub(crate) async fn listed(objects: &Objects, folder: &str) -> Result<Vec<(String, u64, Duration)>> {
    let listed = list_below(objects, folder).await;
    listed.map_err(|source| DataError::Objects { context: format!("list {folder}"), source })
}

/// Whether a file was removed before it was opened.
pub(crate) fn is_gone(error: &DataError) -> bool {
    matches!(error, DataError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
}

/// Gives a file a second name. `false` when it is gone.
async fn link(store: &ArtifactStore, from: &Path, to: &Path) -> Result<bool> {
    let (from, to) = (from.to_owned(), to.to_owned());
    store
        .blocking(move |_| match fs::hard_link(&from, &to) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(io_error("link", &from)(error)),
        })
        .await
}

async fn sha256(store: &ArtifactStore, path: &Path) -> Result<String> {
    let path = path.to_owned();
    store
        .blocking(move |_| {
            let mut file = File::open(&path).map_err(io_error("open", &path))?;
            let (mut hash, mut piece) = (Sha256::new(), vec![0; PIECE]);
            loop {
                match io::Read::read(&mut file, &mut piece).map_err(io_error("read", &path))? {
                    0 => return Ok(hex::encode(hash.finalize())),
                    read => hash.update(piece.get(..read).unwrap_or_default()),
                }
            }
        })
        .await
}

impl ArtifactStore {
    /// The path in `blobs/`. Tenant and blob id have only hex digits, so the path stays inside the folder.
    pub(crate) fn blob_path(&self, blob: &Blob) -> PathBuf {
        self.root().join(BLOBS).join(blob.tenant.to_string()).join(blob.id.sha256())
    }

    /// Returns the path of a blob's bytes, which stays valid while `scratch` lives; `None` when they are not stored. The file must
    /// not be changed. From an object store it is downloaded, unless it is in the cache, and its digest is compared once.
    ///
    /// # Errors
    /// [`DataError::Damaged`] when the stored bytes are not the blob's: it has to be uploaded again; [`DataError::Objects`] when the
    /// object store does not give it; [`DataError::Io`].
    pub async fn blob_file(&self, blob: &Blob, scratch: &Scratch) -> Result<Option<PathBuf>> {
        let (path, bytes) = (self.blob_path(blob), blob.id.bytes());
        let is_here = self.blocking(move |_| Ok(path.metadata().is_ok_and(|found| found.len() == bytes))).await?;
        let Some(stored) = self.stored_blobs() else { return Ok(is_here.then(|| self.blob_path(blob))) };
        let to = scratch.path().join(format!("blob-{}", Uuid::new_v4().as_simple()));
        // A second name of the file: it may be uploaded and moved, or removed from the cache, at any time.
        if is_here && link(self, &self.blob_path(blob), &to).await? {
            return Ok(Some(to));
        }
        Ok(stored.get(self, blob, &to).await?.then_some(to))
    }

    /// Returns those of a tenant's blobs that are stored. When an object store does not answer, all count as stored: a build finds
    /// out which are not.
    pub async fn has_blobs(&self, tenant: TenantId, ids: &[BlobId]) -> BTreeSet<BlobId> {
        let blobs: Vec<Blob> = ids.iter().map(|id| Blob { tenant, id: id.clone() }).collect();
        let paths: Vec<(PathBuf, Blob)> = blobs.iter().map(|blob| (self.blob_path(blob), blob.clone())).collect();
        let here = self.blocking(move |_| {
            let (here, elsewhere): (Vec<_>, Vec<_>) = paths.into_iter().partition(|(path, _)| path.exists());
            let blobs = |paths: Vec<(PathBuf, Blob)>| paths.into_iter().map(|(_, blob)| blob).collect::<Vec<Blob>>();
            Ok((blobs(here), blobs(elsewhere)))
        });
        let (here, elsewhere) = here.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "look for uploaded files");
            (Vec::new(), blobs)
        });
        let mut found: BTreeSet<BlobId> = here.into_iter().map(|blob| blob.id).collect();
        let Some(stored) = self.stored_blobs() else { return found };
        let mut unanswered: BTreeSet<BlobId> = elsewhere.iter().map(|blob| blob.id.clone()).collect();
        let asked = async {
            let mut answers = stream::iter(elsewhere)
                .map(|blob| async move { (stored.has(&blob).await, blob.id) })
                .buffer_unordered(REQUESTS);
            while let Some((has, id)) = answers.next().await {
                unanswered.remove(&id);
                if has {
                    found.insert(id);
                }
            }
        };
        if tokio::time::timeout(LONGEST_ASK, asked).await.is_err() {
            tracing::warn!(files = unanswered.len(), "the object store is slow to say which uploaded files it has");
        }
        found.extend(unanswered);
        found
    }

    /// Makes a file of `work/` the blob, after its digest and size were checked. The blob is durable and complete when this
    /// returns. The same bytes may be published again.
    ///
    /// # Errors
    /// [`DataError::Conflict`] for a file that is not in `work/`; [`DataError::Objects`] when the object store does not take it;
    /// [`DataError::Io`].
    pub async fn publish_blob(&self, file: &Path, blob: &Blob) -> Result<()> {
        let (from, to) = (file.to_owned(), self.blob_path(blob));
        if let Some(stored) = self.stored_blobs() {
            let from = self.blocking(move |root| inside_work(root, &from)).await?;
            return stored.put(blob, &from, self.stop()).await;
        }
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

    /// Removes a blob's bytes, if there are any: the file here, then the object. The database must have removed its row before.
    ///
    /// # Errors
    /// [`DataError::Io`] or [`DataError::Objects`] when they may still be there; the sweep at a later start removes them.
    pub async fn remove_blob(&self, blob: &Blob) -> Result<()> {
        let (path, bin) = (self.blob_path(blob), self.bin());
        self.blocking(move |_| discard(&path, &bin)).await?;
        let Some(stored) = self.stored_blobs() else { return Ok(()) };
        let name = object_name(blob)?;
        stored.forget(&name, None).await?;
        stored.seen().damaged.remove(&name);
        let deleted = tokio::time::timeout(LONGEST_REMOVE, stored.objects.delete(&name)).await.unwrap_or_else(|_| {
            Err(Error::Unavailable { what: format!("no answer within {} s", LONGEST_REMOVE.as_secs()) })
        });
        deleted.map_err(of_objects("remove an uploaded file"))
    }

    /// Removes blobs that are not in `known` from `blobs/` and, when they are older than a day, from the object store, at the start
    /// of the service. Returns the blobs in `known` that are in neither.
    ///
    /// # Errors
    /// [`DataError::Objects`] when the object store does not list what it has; [`DataError::Io`].
    pub async fn sweep_blobs(&self, known: BTreeSet<Blob>) -> Result<BTreeSet<Blob>> {
        let names: BTreeMap<String, Blob> =
            known.iter().map(|blob| (format!("{}/{}", blob.tenant, blob.id.sha256()), blob.clone())).collect();
        let paths: Vec<(PathBuf, Blob)> = known.into_iter().map(|blob| (self.blob_path(&blob), blob)).collect();
        let missing = self.blocking(move |root| {
            let mut missing: BTreeMap<PathBuf, Blob> = paths.into_iter().collect();
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
            Ok(missing.into_values().collect::<BTreeSet<Blob>>())
        });
        let mut missing = missing.await?;
        let Some(stored) = self.stored_blobs() else { return Ok(missing) };
        let mut orphans = Vec::new();
        for (name, bytes, age) in listed(&stored.objects, BLOBS).await? {
            match names.get(&name) {
                Some(blob) if blob.id.bytes() == bytes => drop(missing.remove(blob)),
                // Of another length: the next upload replaces it.
                Some(_) => {}
                None if age > ORPHAN_AGE => orphans.push(name),
                None => {}
            }
        }
        let removed = remove_objects(&stored.objects, BLOBS, orphans).await;
        if removed > 0 {
            tracing::info!(removed, "uploaded files without a row removed from the object store");
        }
        Ok(missing)
    }

    /// The blobs in the object store: folders, one for each tenant, and the digests that are in each. Empty without one.
    ///
    /// # Errors
    /// [`DataError::Objects`] when the object store does not list what it has.
    pub(crate) async fn blob_objects(&self) -> Result<BTreeMap<String, BTreeSet<String>>> {
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let Some(stored) = self.stored_blobs() else { return Ok(found) };
        for (name, ..) in listed(&stored.objects, BLOBS).await? {
            if let Some((tenant, digest)) = name.split_once('/') {
                found.entry(tenant.to_owned()).or_default().insert(digest.to_owned());
            }
        }
        Ok(found)
    }

    /// Removes all objects of a tenant's blobs, of which an operator said that no database has them.
    ///
    /// # Errors
    /// [`DataError::Objects`] when one cannot be removed or listed.
    pub(crate) async fn remove_blob_objects(&self, tenant: TenantId) -> Result<()> {
        let Some(stored) = self.stored_blobs() else { return Ok(()) };
        let folder = format!("{BLOBS}/{tenant}");
        for (name, ..) in listed(&stored.objects, &folder).await? {
            let Ok(name) = ObjectName::parse(&format!("{folder}/{name}")) else { continue };
            stored.forget(&name, None).await?;
            stored.objects.delete(&name).await.map_err(of_objects("remove an uploaded file"))?;
        }
        Ok(())
    }

    /// Uploads the files of `blobs/`, which are of the time before the object store, and moves them to its cache. Nothing without
    /// an object store. After an error, the next call goes on with the rest.
    ///
    /// # Errors
    /// The first failure: [`DataError::Objects`] when the object store does not take a file; [`DataError::Io`].
    pub async fn upload_missing_blobs(&self) -> Result<UploadedFiles> {
        let Some(stored) = self.stored_blobs() else { return Ok(UploadedFiles::default()) };
        let found = self.blocking(|root| {
            let mut found = Vec::new();
            for folder in read_dir(&root.join(BLOBS))? {
                let tenant = folder.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
                let Some(tenant) = tenant.filter(|_| folder.is_dir()) else { continue };
                for file in read_dir(&folder)? {
                    let Ok(metadata) = file.symlink_metadata() else { continue };
                    let digest = file.file_name().and_then(|name| name.to_str());
                    let id = digest.filter(|_| metadata.is_file()).map(|digest| BlobId::new(digest, metadata.len()));
                    if let Some(Ok(id)) = id {
                        found.push((file, Blob { tenant, id }));
                    }
                }
            }
            Ok(found)
        });
        let uploads = stream::iter(found.await?).map(Ok).map_ok(|(file, blob)| async move {
            match sha256(self, &file).await {
                Ok(hash) if hash == blob.id.sha256() => {}
                Ok(_) => {
                    tracing::warn!(blob = %blob.id, tenant = %blob.tenant, "a damaged uploaded file stays in the data folder");
                    return Ok(None);
                }
                // Removed meanwhile, with its row.
                Err(error) if is_gone(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
            match stored.put(&blob, &file, self.stop()).await {
                Err(error) if is_gone(&error) => return Ok(None),
                done => done?,
            }
            // Still there when the cache did not take it.
            self.blocking(move |_| match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &file)(error)),
                _ => Ok(()),
            })
            .await?;
            Ok::<Option<u64>, DataError>(Some(blob.id.bytes()))
        });
        let uploads = uploads.try_buffer_unordered(UPLOADS_AT_ONCE).try_filter_map(|bytes| async move { Ok(bytes) });
        uploads.try_fold(UploadedFiles::default(), |all, bytes| async move { Ok(all.and(bytes)) }).await
    }

    /// Removes the cached files of the object store that are not in use, for a full disk. Nothing without an object store.
    ///
    /// # Errors
    /// [`DataError::Io`] when a file cannot be removed.
    pub async fn drop_cached_blobs(&self) -> Result<()> {
        let Some(stored) = self.stored_blobs() else { return Ok(()) };
        stored.cache.shrink(0).await.map_err(of_objects("remove cached uploaded files"))
    }

    /// Size of `blobs/` on the disk, bytes.
    pub async fn blob_usage(&self) -> Result<u64> {
        self.blocking(|root| stored_bytes(&root.join(BLOBS))).await
    }
}

/// Removes objects below a folder of names, some at a time. Returns how many are removed; the others stay for the next sweep.
pub(crate) async fn remove_objects(objects: &Objects, folder: &str, names: Vec<String>) -> u64 {
    let removals = stream::iter(names).map(|name| async move {
        let Ok(name) = ObjectName::parse(&format!("{folder}/{name}")) else { return 0 };
        match objects.delete(&name).await {
            Ok(()) => 1,
            Err(error) => {
                tracing::warn!(%name, %error, "an object without a row stays until the next start");
                0
            }
        }
    });
    removals.buffer_unordered(REQUESTS).fold(0, |sum, removed| async move { sum + removed }).await
}

#[cfg(test)]
mod tests;
