//! Root images: stored as chunks, used as raw files.
//!
//! ```text
//!   publish_rootfs (a file) ──────> chunks/  <── publish_layer (what a machine changed)
//!                       │              │
//!                       │ moved        │ written back when wanted, parents' files shared where the filesystem can
//!                       v              v
//!                     rootfs/<key>.<nonce>.ext4      a cache: least recently used first, never one that is pinned
//!                                      ^
//!                       open_rootfs ───┘ pin
//! ```
//! The chunks are durable. A raw file is a cache to boot from, and can be made again at any time. Raw files are not flushed,
//! so they are not trusted after a crash of the host: [`sweep`](ArtifactStore::sweep) removes them when the kernel's boot id
//! has changed since the data folder was last opened. Root images of versions without chunks are files only. They stay until
//! [`adopt_rootfs`](ArtifactStore::adopt_rootfs) has stored them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nullspace_chunks::{Changes, Collected, ManifestId, Pin, Stats, Stop, Store, Stored, Verified};
use nullspace_types::{KnownFiles, Rootfs};
use uuid::Uuid;

use crate::folders::{inside_work, io_error, remove};
use crate::images::{Cache, CacheUsage, Origin, disk_bytes, raw_root};
use crate::names::{CHUNKS, ROOTFS, is_rootfs_file, is_rootfs_key};
use crate::remote::{ObjectSettings, remote_settings};
use crate::{ArtifactStore, DataError, Result};

/// A durable root image. A collection keeps it while this lives, that is until its row exists.
#[derive(Debug, Clone)]
pub struct PublishedRootfs {
    /// Name under `rootfs/`, for the database.
    pub file: String,
    /// Length of the image, bytes.
    pub bytes: u64,
    /// Growth of the chunk store, bytes.
    pub stored_bytes: u64,
    /// Its manifest in the chunk store, also for the database.
    pub manifest: String,
    _keep: Arc<Pin>,
}

impl PublishedRootfs {
    /// Its row for the database.
    pub fn row(&self, key: &str, info: serde_json::Value) -> Rootfs {
        Rootfs {
            key: key.to_owned(),
            file: self.file.clone(),
            bytes: self.bytes,
            manifest: Some(self.manifest.clone()),
            info,
        }
    }
}

/// A root image as a raw file, which stays in its place while a clone of this lives.
#[derive(Debug, Clone)]
pub struct RootfsPin {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    store: ArtifactStore,
    file: String,
    path: PathBuf,
}

impl RootfsPin {
    /// The file. Read it only.
    pub fn path(&self) -> &Path {
        &self.held.path
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.store.images().cache().unpin(&raw_root(&self.file));
    }
}

impl ArtifactStore {
    /// The path of a root image, which need not exist.
    ///
    /// # Errors
    /// [`DataError::Corrupt`] when `file` is not a name that [`publish_rootfs`](Self::publish_rootfs) could have made.
    pub fn rootfs_path(&self, file: &str) -> Result<PathBuf> {
        if !is_rootfs_file(file) {
            return Err(DataError::corrupt("file name of a root image"));
        }
        Ok(self.root().join(ROOTFS).join(file))
    }

    /// Makes a new name for a root image of this key.
    fn new_rootfs_name(&self, key: &str) -> Result<String> {
        if !is_rootfs_key(key) {
            return Err(DataError::conflict("the key of a root image is 32 to 128 lower-case hexadecimal digits"));
        }
        Ok(format!("{key}.{}.ext4", Uuid::new_v4().as_simple()))
    }

    /// Stores a file of `work/` as a root image: durable when this returns, with a raw file. The same key may be published
    /// many times, each time under its own name. `key` is lower-case hex, 32 to 128 digits.
    pub async fn publish_rootfs(&self, file: &Path, key: &str) -> Result<PublishedRootfs> {
        let name = self.new_rootfs_name(key)?;
        let to = self.rootfs_path(&name)?;
        let (from, store) = (file.to_owned(), self.clone());
        self.blocking(move |root| {
            let from = inside_work(root, &from)?;
            let metadata = fs::symlink_metadata(&from).map_err(io_error("read", &from))?;
            if !metadata.is_file() {
                return Err(DataError::conflict("a root image is a regular file"));
            }
            let image = File::open(&from).map_err(io_error("open", &from))?;
            let images = store.images();
            let stored = images.chunks.put_image(&image, &Stop::default())?;
            fs::rename(&from, &to).map_err(io_error("publish", &to))?;
            images.cache().put(raw_root(&name), disk_bytes(&to)?, Origin::Image(stored.id()));
            images.trim(root)?;
            Ok(published(name, stored))
        })
        .await
    }

    /// Stores a machine's changes of a root image as another root image: durable when this returns, at the cost of the
    /// changes. It has no raw file until it is opened.
    pub async fn publish_layer(
        &self,
        parent: &Rootfs,
        key: &str,
        changes: Arc<dyn Changes + Send + Sync>,
    ) -> Result<PublishedRootfs> {
        let name = self.new_rootfs_name(key)?;
        let parent = match &parent.manifest {
            Some(manifest) => manifest_id(manifest)?,
            // Of an older version, and its turn has not come yet.
            None => self.store_file(&parent.file).await?.id(),
        };
        let store = self.clone();
        self.blocking(move |root| {
            let images = store.images();
            // What was written over with the same bytes is left out when the parent is at hand.
            let file = images.file_of(&parent).and_then(|path| File::open(root.join(path)).ok());
            let stored = images.chunks.put_changes(parent, &*changes, file.as_ref(), &Stop::default())?;
            Ok(published(name, stored))
        })
        .await
    }

    /// Opens a root image as a raw file. Makes the file from its chunks if it is missing, and keeps it while the pin lives.
    ///
    /// # Errors
    /// [`DataError::Damaged`] when it can no longer be made.
    pub async fn open_rootfs(&self, rootfs: &Rootfs) -> Result<RootfsPin> {
        let path = self.rootfs_path(&rootfs.file)?;
        if let Some(pin) = self.pin(rootfs, &path) {
            return Ok(pin);
        }
        let Some(manifest) = &rootfs.manifest else {
            return Err(DataError::Damaged { what: format!("the root image {} is missing", rootfs.file) });
        };
        let manifest = manifest_id(manifest)?;
        let alone = self.images().filling_of(&raw_root(&rootfs.file));
        let _alone = alone.lock().await;
        if let Some(pin) = self.pin(rootfs, &path) {
            return Ok(pin);
        }
        let (store, file) = (self.clone(), rootfs.file.clone());
        self.blocking(move |root| {
            let images = store.images();
            let scratch = store.scratch()?;
            let made = scratch.path().join("rootfs.ext4");
            let began = std::time::Instant::now();
            if let Err(error) = images.write_back(root, manifest, &made) {
                if !error.is_storage_full() {
                    return Err(error);
                }
                tracing::warn!("no room for a root image: all that are not in use make room");
                images.evict(root, 0)?;
                images.write_back(root, manifest, &made)?;
            }
            let pin = {
                let mut cache = images.cache();
                fs::rename(&made, &path).map_err(io_error("publish", &path))?;
                cache.put(raw_root(&file), disk_bytes(&path)?, Origin::Image(manifest));
                cache.written_back += 1;
                store.held(&mut cache, &file, &path)
            };
            tracing::info!(file, ms = began.elapsed().as_millis(), "root image written back");
            images.trim(root)?;
            // Dropped with the answer, should nobody wait for it any more.
            pin.ok_or_else(|| DataError::corrupt("cache of root images"))
        })
        .await
    }

    /// Stores the chunks of a root image that an older version left only as a file. Its row then needs the manifest.
    pub async fn adopt_rootfs(&self, file: &str) -> Result<PublishedRootfs> {
        let stored = self.store_file(file).await?;
        if let Some(entry) = self.images().cache().files.get_mut(&raw_root(file)) {
            entry.origin = Origin::Image(stored.id());
        }
        Ok(published(file.to_owned(), stored))
    }

    /// Removes a root image's raw file, if there is one. The database must have removed the image's row before, or never have
    /// had one. The next [`collect_images`](Self::collect_images) removes its chunks.
    pub async fn remove_rootfs(&self, file: &str) -> Result<()> {
        let path = self.rootfs_path(file)?;
        let bin = self.bin();
        let (store, file) = (self.clone(), file.to_owned());
        self.blocking(move |_| {
            {
                let mut cache = store.images().cache();
                cache.files.remove(&raw_root(&file));
                match fs::rename(&path, &bin) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    Err(error) => return Err(io_error("remove", &path)(error)),
                }
            }
            remove(&bin)
        })
        .await
    }

    /// Removes chunks that no root image and no snapshot needs, and raw snapshots that no artifact has. `known` is called after
    /// the collection has begun, so images that are published meanwhile stay.
    ///
    /// # Errors
    /// The error of `known`, and [`DataError`] for the chunks.
    pub async fn collect_images<F, E>(&self, known: F) -> std::result::Result<Collected, E>
    where
        F: Future<Output = std::result::Result<KnownFiles, E>>,
        E: From<DataError>,
    {
        let collection = self.images().chunks.start_collection().map_err(DataError::from)?;
        let known = known.await?;
        let (live, store) = (manifests(&known), self.clone());
        Ok(self
            .blocking(move |root| {
                let collected = collection.finish(live, &Stop::default())?;
                store.images().drop_unknown_snapshots(root, &store.snapshot_names(&known))?;
                Ok(collected)
            })
            .await?)
    }

    /// Reads every stored root image and snapshot, and every chunk.
    pub async fn verify_images(&self, known: &KnownFiles) -> Result<Verified> {
        let (wanted, store) = (manifests(known), self.clone());
        self.blocking(move |_| Ok(store.images().chunks.verify(wanted, &Stop::default())?)).await
    }

    /// Those of the root images and files of snapshots of which a chunk is stored nowhere that is known of. Reads the manifests.
    ///
    /// # Errors
    /// [`DataError::Io`] or [`DataError::Objects`] when a manifest cannot be read.
    pub async fn incomplete_images(&self, known: &KnownFiles) -> Result<Vec<ManifestId>> {
        let (wanted, store) = (manifests(known), self.clone());
        self.blocking(move |_| Ok(store.images().chunks.incomplete(wanted)?)).await
    }

    /// The contents of the chunk store.
    pub fn image_stats(&self) -> Stats {
        self.images().chunks.stats()
    }

    /// The use of the cache of raw files.
    pub fn cache_usage(&self) -> CacheUsage {
        self.images().usage()
    }

    /// Removes raw files above the limit. The end of a pin alone removes nothing.
    pub async fn trim_rootfs(&self) -> Result<()> {
        let store = self.clone();
        self.blocking(move |root| store.images().trim(root)).await
    }

    /// Removes every unused raw file that can be made again, for a full disk.
    pub async fn drop_raw_rootfs(&self) -> Result<()> {
        let store = self.clone();
        self.blocking(move |root| store.images().evict(root, 0)).await
    }

    fn pin(&self, rootfs: &Rootfs, path: &Path) -> Option<RootfsPin> {
        // Something else may have taken or shortened it.
        let whole = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.len() == rootfs.bytes);
        if whole { self.held(&mut self.images().cache(), &rootfs.file, path) } else { None }
    }

    fn held(&self, cache: &mut Cache, file: &str, path: &Path) -> Option<RootfsPin> {
        if !cache.pin(&raw_root(file)) {
            return None;
        }
        Some(RootfsPin { held: Arc::new(Held { store: self.clone(), file: file.to_owned(), path: path.to_owned() }) })
    }

    async fn store_file(&self, file: &str) -> Result<Stored> {
        let (path, store) = (self.rootfs_path(file)?, self.clone());
        self.blocking(move |_| {
            let image = File::open(&path).map_err(io_error("open", &path))?;
            Ok(store.images().chunks.put_image(&image, &Stop::default())?)
        })
        .await
    }
}

fn published(file: String, stored: Stored) -> PublishedRootfs {
    PublishedRootfs {
        file,
        bytes: stored.image_bytes,
        stored_bytes: stored.put.stored_bytes,
        manifest: stored.id().to_string(),
        _keep: Arc::new(stored.pin),
    }
}

fn manifest_id(text: &str) -> Result<ManifestId> {
    text.parse().map_err(|_| DataError::corrupt("rootfs.manifest"))
}

fn manifests(known: &KnownFiles) -> Vec<ManifestId> {
    let roots = known.rootfs.values().flatten();
    let streams = known.artifacts.values().flatten().flat_map(|streams| streams.0.values());
    roots.chain(streams).filter_map(|id| id.parse().ok()).collect()
}

/// Opens a data folder's chunks to read them, beside a running service, with the service's object store. The service collects
/// nothing meanwhile, and nothing comes into its folder. With an object store, call this and what reads from the result on a blocking
/// thread of a tokio runtime.
///
/// # Errors
/// [`DataError::Conflict`] during a collection; [`DataError::Objects`] when the object store does not answer.
pub fn look_at_chunks(data_dir: &Path, objects: Option<&ObjectSettings>) -> Result<Store> {
    let remote = objects.map(|settings| remote_settings(settings, &nullspace_objects::Stop::new())).transpose()?;
    Ok(Store::open_read_only_with(&data_dir.join(CHUNKS), Default::default(), remote)?)
}
