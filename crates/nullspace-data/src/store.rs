//! The opened data folder: its lock, its scratch folders and its blocking jobs.
//!
//! ```text
//! <data>/lock                              held by one process (flock)
//!        host                              name of the owner of leases and sandboxes
//!        work/<random>/                    scratch; nothing here outlives the process
//!        artifacts/tmpl_….<nonce>/         one build's snapshot: memory, machine state, disk overlay
//!        chunks/                           root images that artifacts share, see `rootfs`
//!        rootfs/<key>.<nonce>.ext4         the same as raw files: a cache
//!        blobs/tn_…/<sha256>               files of build contexts, see `blobs`
//! ```
//!
//! To publish is to flush every file and folder, to rename out of `work/`, and to flush the parent folder. So a name in
//! `artifacts/` or `rootfs/` is always complete. Only the database knows whether it is *used*: [`ArtifactStore::sweep`] removes
//! names that the database does not know.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use crate::folders::{DIR_MODE, io_error, make_dir, read_dir, remove, sync_dir};
use crate::images::Images;
use crate::names::{ARTIFACTS, BLOBS, ROOTFS, WORK};
use crate::promises::Promised;
use crate::{DataError, Result};

/// The file that is locked.
const LOCK: &str = "lock";
/// Default limit of the raw files of root images, bytes.
pub const DEFAULT_CACHE: u64 = 20 << 30;

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
    /// Bytes that are reserved for work under way, see `space`.
    promised: Arc<Promised>,
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
    /// Opens or creates the data folder, takes its lock, and empties `work/`. Raw files of root images may take
    /// [`DEFAULT_CACHE`] bytes.
    ///
    /// # Errors
    /// [`DataError::DataDirInUse`] when another process has the lock.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_with(root, DEFAULT_CACHE)
    }

    /// As [`open`](Self::open), with another limit of the raw files, bytes.
    pub fn open_with(root: &Path, cache_bytes: u64) -> Result<Self> {
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
        for name in [WORK, ARTIFACTS, ROOTFS, BLOBS] {
            make_dir(&root.join(name))?;
        }
        for entry in read_dir(&root.join(WORK))? {
            remove(&entry)?;
        }
        let images = Images::open(&root, cache_bytes)?;
        sync_dir(&root)?;
        Ok(Self { inner: Arc::new(Inner { root, images, promised: Arc::default(), _lock: lock }) })
    }

    /// The data folder, absolute and without symbolic links.
    pub fn root(&self) -> &Path {
        &self.inner.root
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
