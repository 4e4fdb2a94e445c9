//! The opened data folder: its lock, its scratch folders and its blocking jobs.
//!
//! ```text
//! <data>/lock                              held by one process (flock)
//!        host                              name of the owner of leases and sandboxes
//!        store                             id of the store, which the database has too
//!        work/<random>/                    scratch; nothing here outlives the process
//!        chunks/                           root images and snapshots, see `rootfs` and `artifacts`
//!        snapshots/<digest>/               snapshots as raw files: a cache
//!        artifacts/tmpl_….<nonce>/         snapshots of older versions, as files
//!        captures/<name>/                  paused sandboxes that are not stored as chunks yet, see `captures`
//!        rootfs/<key>.<nonce>.ext4         the same as raw files: a cache
//!        object_store                      where packs, uploads and logs are kept besides, see `object_id`
//!        blobs/tn_…/<sha256>               files of build contexts, see `blobs`
//!        uploads/                          the same from an object store: a cache
//!        logs/<2 digits>/<32 digits>       segments of finished builds' logs, see `logs`
//!        layers/<key>.tn_…                 image layers as they were downloaded: a cache, see `layers`
//! ```
//!
//! Files come into a folder by a rename out of `work/`. So a name in `snapshots/` or `rootfs/` is always complete. Only the
//! database knows whether it is *used*: [`ArtifactStore::sweep`] removes names that the database does not know.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use nullspace_objects::{Objects, Stop};
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use crate::artifacts::Unnamed;
use crate::blobs::StoredBlobs;
use crate::captures::Published;
use crate::folders::{DIR_MODE, io_error, make_dir, read_dir, remove, sync_dir};
use crate::images::Images;
use crate::layers::Layers;
use crate::names::{ARTIFACTS, BLOBS, CAPTURES, ROOTFS, SNAPSHOTS, WORK};
use crate::promises::Promised;
use crate::remote::ObjectSettings;
use crate::{DataError, Result};

/// The file that is locked.
const LOCK: &str = "lock";
/// Default limit of the raw files of root images, bytes.
pub const DEFAULT_CACHE: u64 = 20 << 30;

/// How a data folder is opened.
#[derive(Debug, Clone)]
pub struct OpenSettings {
    /// Most bytes of the raw files of root images and snapshots: [`DEFAULT_CACHE`] by default.
    pub cache_bytes: u64,
    /// The object store that keeps everything durable; by default the data folder does.
    pub objects: Option<ObjectSettings>,
}

impl Default for OpenSettings {
    fn default() -> OpenSettings {
        OpenSettings { cache_bytes: DEFAULT_CACHE, objects: None }
    }
}

/// The data folder's artifacts. Cheap to clone. Dropping the last clone releases the lock.
///
/// Methods that are not `async` use at most names. Methods that write or remove run on the blocking pool.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    images: Images,
    layers: Layers,
    unnamed: Unnamed,
    published: Published,
    /// Bytes that are reserved for work under way, see `space`.
    promised: Arc<Promised>,
    objects: Option<ObjectSettings>,
    /// Uploaded files in the object store.
    blobs: Option<StoredBlobs>,
    /// Ends calls of the object store.
    stop: Stop,
    /// Locked while it is open.
    _lock: File,
}

/// An empty folder under `work/`. Dropping it removes it with its contents.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Keeps the lock while scratch exists, so that no other process sweeps it.
    _store: ArtifactStore,
}

impl Scratch {
    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // The next start's sweep of work/ takes it.
            tracing::warn!(path = %self.path.display(), %error, "remove scratch folder");
        }
    }
}

impl ArtifactStore {
    /// Opens or creates the data folder, takes its lock, and empties `work/`, with the default settings.
    ///
    /// # Errors
    /// [`DataError::DataDirInUse`] when another process has the lock.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_with(root, OpenSettings::default())
    }

    /// As [`open`](Self::open), with other settings. With an object store, call it from a blocking thread of a tokio runtime: the
    /// store is listed, and the runtime must outlive the returned value.
    ///
    /// # Errors
    /// [`DataError::Objects`] when the object store does not answer: what it has would look lost.
    pub fn open_with(root: &Path, settings: OpenSettings) -> Result<Self> {
        make_dir(root)?;
        let root = fs::canonicalize(root).map_err(io_error("resolve", root))?;
        let lock_path = root.join(LOCK);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io_error("open", &lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(DataError::DataDirInUse { path: root.display().to_string() });
            }
            Err(errno) => return Err(io_error("lock", &lock_path)(errno.into())),
        }
        for name in [WORK, ARTIFACTS, CAPTURES, SNAPSHOTS, ROOTFS, BLOBS] {
            make_dir(&root.join(name))?;
        }
        for entry in read_dir(&root.join(WORK))? {
            remove(&entry)?;
        }
        let (objects, stop) = (settings.objects, Stop::new());
        let images = Images::open(&root, settings.cache_bytes, objects.as_ref(), &stop)?;
        let layers = Layers::open(&root)?;
        let blobs = objects.as_ref().map(|settings| StoredBlobs::open(&root, settings)).transpose()?;
        sync_dir(&root)?;
        Ok(Self {
            inner: Arc::new(Inner {
                root,
                images,
                layers,
                unnamed: Unnamed::default(),
                published: Published::default(),
                promised: Arc::default(),
                objects,
                blobs,
                stop,
                _lock: lock,
            }),
        })
    }

    /// The data folder, absolute and without symbolic links.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The object store that keeps everything durable; `None` when the data folder does.
    pub fn objects(&self) -> Option<&Objects> {
        self.inner.objects.as_ref().map(|settings| &settings.objects)
    }

    /// Ends the chunk store's calls of the object store, now and from now on, so that the end of a service does not wait for them.
    pub fn stop_objects(&self) {
        self.inner.stop.stop();
    }

    /// Uploaded files in the object store.
    pub(crate) fn stored_blobs(&self) -> Option<&StoredBlobs> {
        self.inner.blobs.as_ref()
    }

    /// Stops calls of the object store.
    pub(crate) fn stop(&self) -> &Stop {
        &self.inner.stop
    }

    /// Makes an empty scratch folder, on the same filesystem as published files.
    pub fn scratch(&self) -> Result<Scratch> {
        let path = self.inner.root.join(WORK).join(Uuid::new_v4().as_simple().to_string());
        DirBuilder::new().mode(DIR_MODE).create(&path).map_err(io_error("make", &path))?;
        Ok(Scratch { path, _store: self.clone() })
    }

    /// The promises of room on the disk.
    pub(crate) fn promised(&self) -> &Arc<Promised> {
        &self.inner.promised
    }

    /// The root images.
    pub(crate) fn images(&self) -> &Images {
        &self.inner.images
    }

    /// Published artifacts without a row.
    pub(crate) fn unnamed(&self) -> &Unnamed {
        &self.inner.unnamed
    }

    /// Captures that are stored as chunks by now.
    pub(crate) fn published(&self) -> &Published {
        &self.inner.published
    }

    /// The cached image layers.
    pub(crate) fn layers(&self) -> &Layers {
        &self.inner.layers
    }

    /// A new path in `work/` for something that is to be removed.
    pub(crate) fn bin(&self) -> PathBuf {
        let name = format!("removed-{}", Uuid::new_v4().as_simple());
        self.inner.root.join(WORK).join(name)
    }

    /// Runs `job` on the blocking pool. It runs to its end even if the caller stops waiting.
    pub(crate) async fn blocking<T, F>(&self, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Path) -> Result<T> + Send + 'static,
    {
        let store = self.clone();
        tokio::task::spawn_blocking(move || job(&store.inner.root)).await.map_err(|error| DataError::Io {
            context: "run a job on the blocking pool".to_owned(),
            source: io::Error::other(error),
        })?
    }
}
