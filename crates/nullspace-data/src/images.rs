//! Root images of a data folder: the chunk store, and the raw files that are made from it.
//!
//! ```text
//!   chunks/ ── write_back ──> rootfs/<key>.<nonce>.ext4      a cache: least recently used first, never one that is pinned
//!                                  │
//!                                  └── evict ──> work/evicted-…
//! ```
//! Raw files are not trusted after a restart of the host: [`sweep`](Images::sweep) removes them when the kernel's boot id
//! differs from the one at the last opening of the data directory.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nullspace_chunks::{ManifestId, Stop, Store};
use uuid::Uuid;

use crate::Result;
use crate::folders::{io_error, read_dir, remove, sync_dir};
use crate::names::{CHUNKS, ROOTFS, WORK};

/// The kernel's id of the current boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// File with the boot id of the last run.
const LAST_BOOT: &str = "boot_id";

/// The cache of raw root images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheUsage {
    /// Raw files.
    pub files: u64,
    /// Files in use.
    pub pinned: u64,
    /// Size on the disk, bytes, without holes.
    pub bytes: u64,
    /// Files that were made again.
    pub written_back: u64,
    /// Files that were removed for others.
    pub evicted: u64,
}

/// The root images of one data folder.
#[derive(Debug)]
pub(crate) struct Images {
    pub(crate) chunks: Store,
    cache: Mutex<Cache>,
    /// Most bytes of raw files.
    limit: u64,
    /// True if the host has not crashed or restarted since the raw files were written.
    same_boot: bool,
    /// Files that are being made.
    filling: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// The raw files by name.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    pub(crate) files: HashMap<String, Entry>,
    /// Rises with each use.
    clock: u64,
    pub(crate) written_back: u64,
    evicted: u64,
}

/// One raw file.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Size on the disk.
    bytes: u64,
    /// Clock of its last use.
    pub(crate) used: u64,
    pub(crate) pins: usize,
    /// The manifest that it can be made from again; `None`: it must stay.
    pub(crate) manifest: Option<ManifestId>,
}

impl Cache {
    /// The next moment of use.
    pub(crate) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Adds an existing file.
    pub(crate) fn put(&mut self, file: &str, bytes: u64, manifest: Option<ManifestId>) {
        let used = self.tick();
        let entry = self.files.entry(file.to_owned()).or_insert(Entry { bytes, used, pins: 0, manifest });
        (entry.bytes, entry.used) = (bytes, used);
        entry.manifest = manifest.or(entry.manifest);
    }
}

impl Images {
    /// Opens the chunk store of a data folder, with a limit of its raw files, bytes.
    pub(crate) fn open(root: &Path, limit: u64) -> Result<Images> {
        let chunks = Store::open(&root.join(CHUNKS), Default::default())?;
        let boots = (fs::read_to_string(root.join(LAST_BOOT)), fs::read_to_string(BOOT_ID));
        let same_boot = matches!(boots, (Ok(last), Ok(now)) if last == now);
        Ok(Images { chunks, cache: Mutex::default(), limit, same_boot, filling: Mutex::default() })
    }

    /// The raw files, locked.
    pub(crate) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds or removes the files in `rootfs/`; see [`ArtifactStore::sweep`](crate::ArtifactStore::sweep).
    pub(crate) fn sweep(&self, root: &Path, known: &mut BTreeMap<String, Option<String>>) -> Result<Vec<PathBuf>> {
        let dir = root.join(ROOTFS);
        let mut found: Vec<(std::time::SystemTime, PathBuf)> = Vec::new();
        for path in read_dir(&dir)? {
            let metadata = fs::symlink_metadata(&path).map_err(io_error("read", &path))?;
            found.push((metadata.modified().unwrap_or(std::time::UNIX_EPOCH), path));
        }
        // Made first, used first: nothing better is known.
        found.sort();
        let mut removed = Vec::new();
        for (_, path) in found {
            let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
            let row = name.and_then(|name| known.remove_entry(&name));
            let Some((name, manifest)) = row else {
                remove(&path)?;
                removed.push(path);
                continue;
            };
            let manifest = manifest.as_deref().and_then(|id| self.stored(id));
            if manifest.is_some() && !self.same_boot {
                remove(&path)?;
                continue;
            }
            self.cache().put(&name, disk_bytes(&path)?, manifest);
        }
        // Not there, and can be made: not lost.
        known.retain(|_, manifest| manifest.as_deref().and_then(|id| self.stored(id)).is_none());
        sync_dir(&dir)?;
        if let Ok(boot) = fs::read(BOOT_ID) {
            let path = root.join(LAST_BOOT);
            fs::write(&path, boot).map_err(io_error("write", &path))?;
        }
        Ok(removed)
    }

    /// The manifests of all stored images.
    pub(crate) fn manifests(&self) -> Vec<ManifestId> {
        self.chunks.manifests()
    }

    /// The manifest of this name, if it is stored.
    pub(crate) fn stored(&self, id: &str) -> Option<ManifestId> {
        id.parse().ok().filter(|id| self.chunks.contains(id))
    }

    /// Removes unused files until the rest fits into `limit`; all of them for 0.
    pub(crate) fn evict(&self, root: &Path, limit: u64) -> Result<()> {
        let mut bins = Vec::new();
        let mut moved = Ok(());
        {
            let mut cache = self.cache();
            let mut total: u64 = cache.files.values().map(|entry| entry.bytes).sum();
            let free = cache.files.iter().filter(|(_, entry)| entry.pins == 0 && entry.manifest.is_some());
            let mut free: Vec<(u64, String)> = free.map(|(file, entry)| (entry.used, file.clone())).collect();
            free.sort();
            for (_, file) in free {
                if total <= limit {
                    break;
                }
                // Out of the way under the lock, for who opens it next; removing gigabytes takes longer.
                let bin = root.join(WORK).join(format!("evicted-{}", Uuid::new_v4().as_simple()));
                let path = root.join(ROOTFS).join(&file);
                match fs::rename(&path, &bin) {
                    Ok(()) => bins.push(bin),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => {
                        moved = Err(io_error("remove", &path)(error));
                        break;
                    }
                }
                if let Some(entry) = cache.files.remove(&file) {
                    total -= entry.bytes;
                    cache.evicted += 1;
                }
            }
        }
        bins.iter().try_for_each(|bin| remove(bin)).and(moved)
    }

    /// Removes unused files over the limit.
    pub(crate) fn trim(&self, root: &Path) -> Result<()> {
        self.evict(root, self.limit)
    }

    /// Counts the raw files.
    pub(crate) fn usage(&self) -> CacheUsage {
        let cache = self.cache();
        let mut usage =
            CacheUsage { written_back: cache.written_back, evicted: cache.evicted, ..CacheUsage::default() };
        for entry in cache.files.values() {
            usage.files += 1;
            usage.pinned += u64::from(entry.pins > 0);
            usage.bytes += entry.bytes;
        }
        usage
    }

    /// Writes an image into a new file.
    pub(crate) fn write_back(&self, root: &Path, manifest: ManifestId, made: &Path) -> Result<()> {
        let file = File::options().create(true).truncate(true).read(true).write(true).open(made);
        let file = file.map_err(io_error("make", made))?;
        // The nearest image under it that is there as a file: it may share that one's blocks.
        let below = self.chunks.lineage(manifest)?.into_iter().skip(1).find_map(|id| {
            let path = root.join(ROOTFS).join(self.file_of(&id)?);
            Some((id, File::open(path).ok()?))
        });
        let below = below.as_ref().map(|(id, file)| (*id, file));
        self.chunks.materialise(manifest, &file, below, &Stop::default())?;
        Ok(())
    }

    /// A raw file of this image.
    pub(crate) fn file_of(&self, manifest: &ManifestId) -> Option<String> {
        let cache = self.cache();
        cache.files.iter().find(|(_, entry)| entry.manifest == Some(*manifest)).map(|(file, _)| file.clone())
    }

    /// The lock of the one that makes this raw file.
    pub(crate) fn filling_of(&self, file: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        filling.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = filling.get(file).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        filling.insert(file.to_owned(), Arc::downgrade(&lock));
        lock
    }
}

/// What a raw file takes on the disk, bytes.
pub(crate) fn disk_bytes(path: &Path) -> Result<u64> {
    Ok(fs::symlink_metadata(path).map_err(io_error("read", path))?.blocks().saturating_mul(512))
}
