//! Artifacts on disk.
//!
//! ```text
//! <data>/lock                              held by one process (flock)
//!        host                              who this is among the owners of leases and sandboxes
//!        work/<random>/                    scratch; nothing here outlives the process
//!        artifacts/tmpl_….<nonce>/         one build's snapshot: memory, machine state, disk overlay
//!        chunks/                           root images that artifacts share, see `images`
//!        rootfs/<key>.<nonce>.ext4         the same as raw files: a cache
//!        blobs/tn_…/<sha256>               files of build contexts, see `blobs`
//! ```
//!
//! Publishing: flush every file and folder, rename out of `work/`, flush the parent folder. A name in `artifacts/` or
//! `rootfs/` is therefore always whole. Whether it is *used* is the database's to say: [`ArtifactStore::sweep`] removes
//! what the database does not know.
//!
//! Names carry a nonce because the same thing may be published more than once. Two builds make the same root image at
//! the same time while a third is collected; an attempt that was interrupted after it published is followed by another
//! that publishes again, and may still be writing itself. With one name for all, removing or replacing one's files could
//! hit another's. Which files count is decided by the database, in the transaction that names them.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use crate::images::{CHUNKS, Images};
use crate::space::Promised;
use crate::{ArtifactId, DataError, KnownFiles, Result};

const LOCK: &str = "lock";
pub(crate) const WORK: &str = "work";
pub(crate) const ARTIFACTS: &str = "artifacts";
pub(crate) const ROOTFS: &str = "rootfs";
pub(crate) const BLOBS: &str = "blobs";
/// What raw files of root images may take together, bytes, unless something else is said.
pub const DEFAULT_CACHE: u64 = 20 << 30;
/// Tenants' memory is in these folders: nobody else on the host may look.
const DIR_MODE: u32 = 0o700;

/// The data directory's artifacts. Cheap to clone; the last clone gives the lock back.
///
/// Methods that are not `async` touch at most a name; those that write or remove run on the blocking pool.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    images: Images,
    /// Bytes that work under way has been promised, see `space`.
    promised: Arc<Promised>,
    /// Locked as long as it is open.
    _lock: File,
}

/// What [`ArtifactStore::publish_artifact`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedArtifact {
    /// Name under `artifacts/`: what the database keeps.
    pub folder: String,
    /// What it takes on the disk, bytes (holes not counted).
    pub stored_bytes: u64,
}

/// What [`ArtifactStore::sweep`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Names removed, relative to the data directory.
    pub removed: Vec<String>,
    /// What the database knows and the disk lacks: lost by something other than this service.
    pub missing: KnownFiles,
}

/// What lies in the data directory, bytes on the disk (holes not counted).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Under `artifacts/`.
    pub artifacts: u64,
    /// Under `chunks/`: root images, durably.
    pub chunks: u64,
    /// Under `rootfs/`: the same as raw files, as many as the cache may hold.
    pub rootfs: u64,
    /// Under `work/`.
    pub work: u64,
}

/// An empty folder under `work/`, removed with everything in it when this is dropped.
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
    /// Opens (or makes) the data directory, takes its lock and empties `work/`. Raw files of root images may take
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

    /// The data directory, absolute and without symbolic links.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// A new empty scratch folder, on the same file system as what is published.
    pub fn scratch(&self) -> Result<Scratch> {
        let path = self.inner.root.join(WORK).join(Uuid::new_v4().as_simple().to_string());
        DirBuilder::new().mode(DIR_MODE).create(&path).map_err(io_error("make", &path))?;
        Ok(Scratch { path, _store: self.clone() })
    }

    /// Where an artifact's folder is or would be.
    ///
    /// # Errors
    /// [`DataError::Corrupt`] when `folder` is not a name that [`publish_artifact`](Self::publish_artifact) could have
    /// made: nothing read from the database leads out of the data directory.
    pub fn artifact_dir(&self, folder: &str) -> Result<PathBuf> {
        if !is_artifact_folder(folder) {
            return Err(DataError::corrupt("folder name of an artifact"));
        }
        Ok(self.inner.root.join(ARTIFACTS).join(folder))
    }

    /// Where a root image is or would be.
    ///
    /// # Errors
    /// [`DataError::Corrupt`] when `file` is not a name that [`publish_rootfs`](Self::publish_rootfs) could have made.
    pub fn rootfs_path(&self, file: &str) -> Result<PathBuf> {
        if !is_rootfs_file(file) {
            return Err(DataError::corrupt("file name of a root image"));
        }
        Ok(self.inner.root.join(ROOTFS).join(file))
    }

    /// Makes a folder of `work/` the artifact `id`: durable and whole when this returns. Every attempt of a build may
    /// publish, each under a name of its own.
    ///
    /// When the build then ends otherwise than ready, [`remove_artifact`](Self::remove_artifact) what was published. Not
    /// when the transaction that names it failed with anything but a lost lease or a conflict: it may have happened, so
    /// leave the folder to the sweep.
    ///
    /// # Errors
    /// [`DataError::Conflict`] when the folder has anything but files and folders in it.
    pub async fn publish_artifact(&self, dir: &Path, id: ArtifactId) -> Result<PublishedArtifact> {
        let folder = format!("{id}.{}", Uuid::new_v4().as_simple());
        let from = dir.to_owned();
        let to = self.artifact_dir(&folder)?;
        self.blocking(move |root| {
            let from = inside_work(root, &from)?;
            let stored_bytes = sync_tree(&from)?;
            rename_new(&from, &to)?;
            Ok(PublishedArtifact { folder, stored_bytes })
        })
        .await
    }

    /// A new name for a root image of this key.
    pub(crate) fn new_rootfs_name(&self, key: &str) -> Result<String> {
        if !is_rootfs_key(key) {
            return Err(DataError::conflict("the key of a root image is 32 to 128 lower-case hexadecimal digits"));
        }
        Ok(format!("{key}.{}.ext4", Uuid::new_v4().as_simple()))
    }

    pub(crate) fn promised(&self) -> &Arc<Promised> {
        &self.inner.promised
    }

    pub(crate) fn images(&self) -> &Images {
        &self.inner.images
    }

    /// Removes an artifact's folder; nothing when there is none. The database must have forgotten it before,
    /// or it never knew it.
    pub async fn remove_artifact(&self, folder: &str) -> Result<()> {
        let path = self.artifact_dir(folder)?;
        // Out of the way first: a crash half-way through must not leave a folder that looks whole.
        let bin = self.bin();
        self.blocking(move |_| discard(&path, &bin)).await
    }

    /// Removes from `artifacts/` and `rootfs/` what `known` lacks. For the start of the service, before any build runs:
    /// what is published but not yet named by a transaction looks the same as what a crash left. Only after
    /// [`inventory`](Self::inventory) was compared with the database: what belongs to another one looks the same, too. A root image
    /// without a raw file is not missing while its chunks are there.
    pub async fn sweep(&self, known: KnownFiles) -> Result<SweepReport> {
        let store = self.clone();
        self.blocking(move |root| {
            let mut report = SweepReport { removed: Vec::new(), missing: known };
            let mut removed = store.images().sweep(root, &mut report.missing.rootfs)?;
            let dir = root.join(ARTIFACTS);
            for path in read_dir(&dir)? {
                let name = path.file_name().and_then(|name| name.to_str());
                // Each name found is struck from the list; what stays on it is missing.
                if !name.is_some_and(|name| report.missing.artifacts.remove(name)) {
                    remove(&path)?;
                    removed.push(path);
                }
            }
            sync_dir(&dir)?;
            let shown = |path: &PathBuf| path.strip_prefix(root).unwrap_or(path).display().to_string();
            report.removed = removed.iter().map(shown).collect();
            report.removed.sort();
            Ok(report)
        })
        .await
    }

    /// What everything takes on the disk. Reads every folder: for metrics by the minute, not by the request.
    pub async fn usage(&self) -> Result<DiskUsage> {
        self.blocking(|root| {
            Ok(DiskUsage {
                artifacts: stored_bytes(&root.join(ARTIFACTS))?,
                chunks: stored_bytes(&root.join(CHUNKS))?,
                rootfs: stored_bytes(&root.join(ROOTFS))?,
                work: stored_bytes(&root.join(WORK))?,
            })
        })
        .await
    }

    pub(crate) fn bin(&self) -> PathBuf {
        let name = format!("removed-{}", Uuid::new_v4().as_simple());
        self.inner.root.join(WORK).join(name)
    }

    /// Runs `job` where it may block. It runs to its end even when the caller stops waiting.
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

fn is_rootfs_key(key: &str) -> bool {
    (32..=128).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_nonce(text: &str) -> bool {
    text.len() == 32 && is_rootfs_key(text)
}

fn is_artifact_folder(folder: &str) -> bool {
    artifact_of(folder).is_some()
}

/// The artifact whose folder has this name; `None` for a name that no artifact's folder has.
pub fn artifact_of(folder: &str) -> Option<ArtifactId> {
    let (id, nonce) = folder.split_once('.')?;
    id.parse().ok().filter(|_| is_nonce(nonce))
}

fn is_rootfs_file(file: &str) -> bool {
    let mut parts = file.split('.');
    let (Some(key), Some(nonce), Some("ext4"), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return false;
    };
    is_rootfs_key(key) && is_nonce(nonce)
}

pub(crate) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DataError + 'a {
    move |source| DataError::Io { context: format!("{what} {}", path.display()), source }
}

pub(crate) fn make_dir(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(DIR_MODE).create(path).map_err(io_error("make", path))
}

pub(crate) fn read_dir(path: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(io_error("read", path))
}

pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("flush", path))
}

/// The path without symbolic links or `..`, if it is something inside `work/`.
pub(crate) fn inside_work(root: &Path, path: &Path) -> Result<PathBuf> {
    let real = fs::canonicalize(path).map_err(io_error("resolve", path))?;
    let work = root.join(WORK);
    if real.starts_with(&work) && real != work {
        Ok(real)
    } else {
        Err(DataError::conflict("only what is in the work folder can be published"))
    }
}

/// Flushes a file, or a folder and all it holds, children before parents. Returns what it takes on the disk.
pub(crate) fn sync_tree(path: &Path) -> Result<u64> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("read", path))?;
    let kind = metadata.file_type();
    let mut stored = metadata.blocks().saturating_mul(512);
    if kind.is_dir() {
        for child in read_dir(path)? {
            stored = stored.saturating_add(sync_tree(&child)?);
        }
    } else if !kind.is_file() {
        return Err(DataError::conflict("an artifact holds files and folders only"));
    }
    sync_dir(path)?;
    Ok(stored)
}

/// What a file or folder takes on the disk. What vanishes meanwhile takes nothing.
pub(crate) fn stored_bytes(path: &Path) -> Result<u64> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if gone(&error) => return Ok(0),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let mut stored = metadata.blocks().saturating_mul(512);
    if metadata.is_dir() {
        let children = match read_dir(path) {
            Ok(children) => children,
            Err(DataError::Io { source, .. }) if gone(&source) => return Ok(0),
            Err(error) => return Err(error),
        };
        for child in children {
            stored = stored.saturating_add(stored_bytes(&child)?);
        }
    }
    Ok(stored)
}

/// Renames without replacing, and makes both parent folders remember it.
fn rename_new(from: &Path, to: &Path) -> Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST) => {
            return Err(DataError::conflict("this artifact exists already"));
        }
        Err(errno) => return Err(io_error("publish", to)(errno.into())),
    }
    for path in [to, from] {
        if let Some(parent) = path.parent() {
            sync_dir(parent)?;
        }
    }
    Ok(())
}

/// Renames, replacing what has the same name and so the same bytes.
pub(crate) fn rename_over(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(io_error("publish", to))?;
    for path in [to, from] {
        if let Some(parent) = path.parent() {
            sync_dir(parent)?;
        }
    }
    Ok(())
}

pub(crate) fn discard(path: &Path, bin: &Path) -> Result<()> {
    match fs::rename(path, bin) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("remove", path)(error)),
    }
    if let Some(parent) = path.parent() {
        sync_dir(parent)?;
    }
    remove(bin)
}

/// Removes a file, a link (not what it points to), or a folder with all it holds.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("read", path))?;
    if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.map_err(io_error("remove", path))
}
