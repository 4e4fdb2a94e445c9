//! Artifacts: one build's snapshot each, stored as chunks.
//!
//! ```text
//!   publish_artifact ── put ──> chunks/      streams: file name -> manifest, for the database
//!        │                        │
//!        │ moved                  │ written back when wanted
//!        v                        v
//!      snapshots/<digest of the streams>/    memory, device state, disk changes: a cache to restore from
//!                   ^
//!     open_snapshot ┘ pin
//! ```
//! The chunks are durable. Artifacts with the same streams have one folder in the cache, so an artifact that reuses another's
//! snapshot is a row and nothing else. Folders in the cache are not flushed, see [`rootfs`](crate::rootfs).
//!
//! Published chunks are kept from collection until the database names them ([`ArtifactStore::artifact_named`]), or the
//! artifact is removed.
//!
//! Snapshots of versions before that lie in `artifacts/<folder>/` as files. They are used there until
//! [`ArtifactStore::adopt_artifact`] has stored them. Those of paused sandboxes lie in `captures/` first, see
//! [`crate::captures`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nullspace_chunks::{ManifestId, Pin, Stop};
use nullspace_types::{ArtifactId, KnownFiles, Streams};
use uuid::Uuid;

use crate::captures;
use crate::folders::{DIR_MODE, discard, inside_work, io_error, read_dir, remove, stored_bytes};
use crate::images::{Images, Origin, raw_snapshot};
use crate::names::{ARTIFACTS, artifact_of, is_stream};
use crate::store::Scratch;
use crate::{ArtifactStore, DataError, Result};

/// The result of [`ArtifactStore::publish_artifact`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedArtifact {
    /// Name of the artifact, for the database.
    pub folder: String,
    /// Growth of the chunk store, bytes.
    pub stored_bytes: u64,
    /// Its snapshot, for the database.
    pub streams: Streams,
}

/// A snapshot as raw files, which stay in their place while a clone of this lives.
#[derive(Debug, Clone)]
pub struct SnapshotPin {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    path: PathBuf,
    /// The store and the path in its cache; `None` for a snapshot of an older version, and a capture.
    cached: Option<(ArtifactStore, String)>,
    /// The links to a capture's files.
    _links: Option<Scratch>,
}

impl SnapshotPin {
    fn new(path: PathBuf, cached: Option<(ArtifactStore, String)>, links: Option<Scratch>) -> SnapshotPin {
        SnapshotPin { held: Arc::new(Held { path, cached, _links: links }) }
    }

    /// The folder with the files. Read them only.
    pub fn path(&self) -> &Path {
        &self.held.path
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((store, key)) = &self.cached {
            store.images().cache().unpin(key);
        }
    }
}

/// Published artifacts without a row: their chunks are kept from collection.
#[derive(Debug, Default)]
pub(crate) struct Unnamed(Mutex<HashMap<String, (Streams, Vec<Pin>)>>);

impl Unnamed {
    fn all(&self) -> MutexGuard<'_, HashMap<String, (Streams, Vec<Pin>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ArtifactStore {
    /// The folder of an artifact that an older version stored, which need not exist.
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

    /// A name for the artifact `id`, for a row that reuses another artifact's snapshot.
    pub fn new_artifact_name(id: ArtifactId) -> String {
        format!("{id}.{}", Uuid::new_v4().as_simple())
    }

    /// Stores the files in a folder of `work/` as the snapshot of the artifact `id`: durable and complete when this returns. The
    /// folder is gone then. Every attempt of a build may publish, each under its own name. What is equal to pages of `similar`
    /// snapshots is not stored again.
    ///
    /// Call [`artifact_named`](Self::artifact_named) once a row names it, and [`remove_artifact`](Self::remove_artifact) when
    /// none will. When the outcome of that transaction is unknown, call neither: a start without the row collects it.
    ///
    /// # Errors
    /// [`DataError::Conflict`] when the folder contains anything but files.
    pub async fn publish_artifact(
        &self,
        dir: &Path,
        id: ArtifactId,
        similar: Vec<Streams>,
    ) -> Result<PublishedArtifact> {
        let folder = Self::new_artifact_name(id);
        let (from, store) = (dir.to_owned(), self.clone());
        self.blocking(move |root| {
            let from = inside_work(root, &from)?;
            store.publish(root, &from, folder, &similar, &Stop::default())
        })
        .await
    }

    /// Stores the files in a folder of `work/` under a name, and makes the folder the raw files. Blocks.
    pub(crate) fn publish(
        &self,
        root: &Path,
        from: &Path,
        folder: String,
        similar: &[Streams],
        stop: &Stop,
    ) -> Result<PublishedArtifact> {
        let images = self.images();
        let (streams, pins, stored_bytes) = put_folder(images, from, similar, stop)?;
        // Named before it is in the cache: a collection in between would take it out again.
        let before = self.unnamed().all().insert(folder.clone(), (streams.clone(), pins));
        drop(before);
        enter(images, root, from, &streams)?;
        images.trim(root)?;
        Ok(PublishedArtifact { folder, stored_bytes, streams })
    }

    /// Says that the database names this artifact: its row keeps the snapshot from now on.
    pub fn artifact_named(&self, folder: &str) {
        // The pins go after the lock: they take another.
        let _named = self.unnamed().all().remove(folder);
    }

    /// Removes an artifact that the database does not name: the files of an older version, its capture, and the hold on its chunks, which
    /// the next [`collect_images`](Self::collect_images) removes.
    pub async fn remove_artifact(&self, folder: &str) -> Result<()> {
        let path = self.artifact_dir(folder)?;
        self.artifact_named(folder);
        self.published().forget(folder);
        // Out of the way first: a crash half-way through must not leave a folder that looks whole.
        let bin = self.bin();
        self.blocking(move |_| discard(&path, &bin)).await?;
        self.drop_capture(folder).await
    }

    /// Stores the snapshot of an older version, which stays until [`remove_artifact`](Self::remove_artifact). Its row then
    /// needs the streams.
    pub async fn adopt_artifact(&self, folder: &str) -> Result<Streams> {
        let (path, store, folder) = (self.artifact_dir(folder)?, self.clone(), folder.to_owned());
        self.blocking(move |_| {
            let (streams, pins, _) = put_folder(store.images(), &path, &[], &Stop::default())?;
            store.unnamed().all().insert(folder, (streams.clone(), pins));
            Ok(streams)
        })
        .await
    }

    /// Whether a snapshot can be opened, as far as its names tell.
    pub fn has_snapshot(&self, folder: &str, streams: Option<&Streams>) -> Result<bool> {
        let Some(streams) = streams else {
            return Ok(self.artifact_dir(folder)?.is_dir() || self.capture_dir(folder)?.is_dir());
        };
        Ok(is_stored(self.images(), streams))
    }

    /// Opens a snapshot as raw files. Makes the files from their chunks if they are missing, and keeps them while the pin lives.
    ///
    /// # Errors
    /// [`DataError::Damaged`] when it can no longer be made.
    pub async fn open_snapshot(&self, folder: &str, streams: Option<&Streams>) -> Result<SnapshotPin> {
        let Some(streams) = streams else { return self.open_files(folder).await };
        let key = raw_snapshot(&cache_name(streams));
        let path = self.root().join(&key);
        if let Some(pin) = self.pin_snapshot(&key, &path) {
            return Ok(pin);
        }
        let files = manifests_of(streams)?;
        let alone = self.images().filling_of(&key);
        let _alone = alone.lock().await;
        if let Some(pin) = self.pin_snapshot(&key, &path) {
            return Ok(pin);
        }
        let store = self.clone();
        self.blocking(move |root| {
            let images = store.images();
            let began = std::time::Instant::now();
            let scratch = store.scratch()?;
            let made = scratch.path().join("snapshot");
            if let Err(error) = write_files(images, &files, &made) {
                if !error.is_storage_full() {
                    return Err(error);
                }
                tracing::warn!("no room for a snapshot: raw files that are not in use make room");
                images.evict(root, 0)?;
                write_files(images, &files, &made)?;
            }
            let bytes = stored_bytes(&made)?;
            let bin = store.bin();
            let pin = {
                let mut cache = images.cache();
                // Something of another program's may be in its place.
                discard(&path, &bin)?;
                fs::rename(&made, &path).map_err(io_error("publish", &path))?;
                cache.put(key.clone(), bytes, Origin::Snapshot);
                cache.written_back += 1;
                cache.pin(&key)
            };
            let pin = pin.then(|| SnapshotPin::new(path, Some((store.clone(), key)), None));
            tracing::info!(bytes, ms = began.elapsed().as_millis(), "snapshot written back");
            images.trim(root)?;
            // Dropped with the answer, should nobody wait for it any more.
            pin.ok_or_else(|| DataError::corrupt("cache of snapshots"))
        })
        .await
    }

    /// Opens a snapshot that is not stored as chunks: a folder of an older version, or a capture.
    async fn open_files(&self, folder: &str) -> Result<SnapshotPin> {
        let path = self.artifact_dir(folder)?;
        if path.is_dir() {
            return Ok(SnapshotPin::new(path, None, None));
        }
        let (store, name) = (self.clone(), folder.to_owned());
        if let Some((links, path)) = self.blocking(move |_| store.link_capture(&name)).await? {
            return Ok(SnapshotPin::new(path, None, Some(links)));
        }
        // Since the caller has asked for its row.
        let streams = self.published().streams_of(folder).ok_or_else(|| captures::missing(folder))?;
        Box::pin(self.open_snapshot(folder, Some(&streams))).await
    }

    fn pin_snapshot(&self, key: &str, path: &Path) -> Option<SnapshotPin> {
        let mut cache = self.images().cache();
        if !path.is_dir() || !cache.pin(key) {
            return None;
        }
        let cached = Some((self.clone(), key.to_owned()));
        Some(SnapshotPin::new(path.to_owned(), cached, None))
    }

    /// Names in the cache of these artifacts' snapshots, and of those that are published and not named yet.
    pub(crate) fn snapshot_names(&self, known: &KnownFiles) -> BTreeSet<String> {
        let mut names: BTreeSet<String> = known.artifacts.values().flatten().map(cache_name).collect();
        names.extend(self.unnamed().all().values().map(|(streams, _)| cache_name(streams)));
        names
    }
}

/// Whether every file's manifest is stored.
pub(crate) fn is_stored(images: &Images, streams: &Streams) -> bool {
    !streams.0.is_empty() && streams.0.values().all(|id| images.stored(id).is_some())
}

/// Folder name of a snapshot in the cache: 32 hex digits.
fn cache_name(streams: &Streams) -> String {
    let mut text = String::new();
    for (name, manifest) in &streams.0 {
        text.extend([name, " ", manifest, "\n"]);
    }
    ManifestId::of(text.as_bytes()).to_string().chars().take(32).collect()
}

/// The manifests of a snapshot's files. File names become paths, so they are checked.
fn manifests_of(streams: &Streams) -> Result<BTreeMap<String, ManifestId>> {
    let checked = streams.0.iter().map(|(name, id)| match id.parse() {
        Ok(id) if is_stream(name) => Ok((name.clone(), id)),
        _ => Err(DataError::corrupt("artifacts.streams")),
    });
    checked.collect()
}

/// The images of similar snapshots.
fn similar_images(similar: &[Streams]) -> Vec<ManifestId> {
    similar.iter().flat_map(|streams| streams.0.values()).filter_map(|id| id.parse().ok()).collect()
}

/// Stores the files of a folder. Returns their streams, pinned, and the growth of the chunk store.
fn put_folder(images: &Images, from: &Path, similar: &[Streams], stop: &Stop) -> Result<(Streams, Vec<Pin>, u64)> {
    let mut files = BTreeMap::new();
    for path in read_dir(from)? {
        let name = path.file_name().and_then(|name| name.to_str()).filter(|name| is_stream(name));
        let name = name.ok_or_else(|| DataError::conflict("a snapshot has a file of an impossible name"))?;
        if !fs::symlink_metadata(&path).map_err(io_error("read", &path))?.is_file() {
            return Err(DataError::conflict("a snapshot holds files only"));
        }
        files.insert(name.to_owned(), File::open(&path).map_err(io_error("open", &path))?);
    }
    let opened: Vec<&File> = files.values().collect();
    let stored = images.chunks.put_files(&opened, &similar_images(similar), stop)?;
    let stored_bytes = stored.iter().map(|stored| stored.put.stored_bytes).sum();
    let (mut streams, mut pins) = (Streams::default(), Vec::new());
    for (name, stored) in files.into_keys().zip(stored) {
        streams.0.insert(name, stored.id().to_string());
        pins.push(stored.pin);
    }
    Ok((streams, pins, stored_bytes))
}

/// Makes a folder of `work/` the raw files of a snapshot, unless they are there.
fn enter(images: &Images, root: &Path, from: &Path, streams: &Streams) -> Result<()> {
    let key = raw_snapshot(&cache_name(streams));
    let (path, bytes) = (root.join(&key), stored_bytes(from)?);
    let mut cache = images.cache();
    if cache.files.contains_key(&key) && path.is_dir() {
        drop(cache);
        return remove(from);
    }
    match fs::rename(from, &path) {
        Ok(()) => {}
        // Not in the cache's list, so not known to be whole.
        Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
            remove(&path)?;
            fs::rename(from, &path).map_err(io_error("publish", &path))?;
        }
        Err(error) => return Err(io_error("publish", &path)(error)),
    }
    cache.put(key, bytes, Origin::Snapshot);
    Ok(())
}

/// Writes a snapshot's files into a new folder.
fn write_files(images: &Images, files: &BTreeMap<String, ManifestId>, to: &Path) -> Result<()> {
    if to.exists() {
        remove(to)?;
    }
    DirBuilder::new().mode(DIR_MODE).create(to).map_err(io_error("make", to))?;
    for (name, manifest) in files {
        let path = to.join(name);
        let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(io_error("make", &path))?;
        images.chunks.materialise(*manifest, &file, None, &Stop::default())?;
    }
    Ok(())
}
