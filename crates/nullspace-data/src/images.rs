//! The chunk store of a data folder, and the raw files that are made from it.
//!
//! ```text
//!   chunks/ ── write_back ──┬─> rootfs/<key>.<nonce>.ext4    root images    one cache: least recently used first,
//!                           └─> snapshots/<digest>/          snapshots      never one that is pinned
//!                                  │
//!                                  └── evict ──> work/evicted-…
//! ```
//! Raw files are not trusted after a restart of the host: [`sweep`](Images::sweep) removes them when the kernel's boot id
//! differs from the one at the last opening of the data directory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nullspace_chunks::{ManifestId, Stop as ChunkStop, Store};
use nullspace_objects::Stop;
use uuid::Uuid;

use crate::Result;
use crate::folders::{io_error, read_dir, remove, stored_bytes, sync_dir};
use crate::names::{CHUNKS, ROOTFS, SNAPSHOTS, WORK};
use crate::remote::{ObjectSettings, remote_settings};

/// The kernel's id of the current boot.
pub(crate) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// File with the boot id of the last run.
const LAST_BOOT: &str = "boot_id";

/// The cache of raw root images and snapshots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheUsage {
    /// Raw root images, and snapshots.
    pub files: u64,
    /// Those in use.
    pub pinned: u64,
    /// Size on the disk, bytes, without holes.
    pub bytes: u64,
    /// Those that were made again.
    pub written_back: u64,
    /// Those that were removed for others.
    pub evicted: u64,
}

/// The stored images of one data folder.
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

/// The raw root images and snapshots, by path in the data folder.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    pub(crate) files: HashMap<String, Entry>,
    /// Rises with each use.
    clock: u64,
    pub(crate) written_back: u64,
    evicted: u64,
}

/// One raw root image, or one snapshot.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Size on the disk.
    bytes: u64,
    /// Clock of its last use.
    pub(crate) used: u64,
    pub(crate) pins: usize,
    pub(crate) origin: Origin,
}

/// The chunks that something can be made from again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// None: it must stay.
    Nowhere,
    /// An image's.
    Image(ManifestId),
    /// Those of a snapshot's files.
    Snapshot,
}

impl Origin {
    /// That of a root image with this manifest.
    pub(crate) fn of(manifest: Option<ManifestId>) -> Origin {
        manifest.map_or(Origin::Nowhere, Origin::Image)
    }
}

impl Cache {
    /// The next moment of use.
    pub(crate) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Adds something that is there.
    pub(crate) fn put(&mut self, path: String, bytes: u64, origin: Origin) {
        let used = self.tick();
        let entry = self.files.entry(path).or_insert(Entry { bytes, used, pins: 0, origin });
        (entry.bytes, entry.used) = (bytes, used);
        if origin != Origin::Nowhere {
            entry.origin = origin;
        }
    }

    /// Pins something that is there.
    pub(crate) fn pin(&mut self, path: &str) -> bool {
        let used = self.tick();
        let Some(entry) = self.files.get_mut(path) else { return false };
        entry.pins += 1;
        entry.used = used;
        true
    }

    /// Ends one pin.
    pub(crate) fn unpin(&mut self, path: &str) {
        if let Some(entry) = self.files.get_mut(path) {
            entry.pins = entry.pins.saturating_sub(1);
        }
    }
}

impl Images {
    /// Opens the chunk store of a data folder, with a limit of its raw files, bytes.
    pub(crate) fn open(root: &Path, limit: u64, objects: Option<&ObjectSettings>, stop: &Stop) -> Result<Images> {
        let remote = objects.map(|settings| remote_settings(settings, stop)).transpose()?;
        let chunks = Store::open_with(&root.join(CHUNKS), Default::default(), remote)?;
        let boots = (fs::read_to_string(root.join(LAST_BOOT)), fs::read_to_string(BOOT_ID));
        let same_boot = matches!(boots, (Ok(last), Ok(now)) if last == now);
        Ok(Images { chunks, cache: Mutex::default(), limit, same_boot, filling: Mutex::default() })
    }

    /// The raw files, locked.
    pub(crate) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds or removes the files in `rootfs/`; see [`ArtifactStore::sweep`](crate::ArtifactStore::sweep).
    /// `snapshots` are the names of known snapshots.
    pub(crate) fn sweep(
        &self,
        root: &Path,
        known: &mut BTreeMap<String, Option<String>>,
        snapshots: &BTreeSet<String>,
    ) -> Result<Vec<PathBuf>> {
        let dir = root.join(ROOTFS);
        let mut found: Vec<(std::time::SystemTime, PathBuf)> = Vec::new();
        for path in read_dir(&dir)? {
            let metadata = fs::symlink_metadata(&path).map_err(io_error("read", &path))?;
            found.push((metadata.modified().unwrap_or(std::time::UNIX_EPOCH), path));
        }
        // Made first, used first: nothing better is known.
        found.sort();
        let mut removed = self.sweep_snapshots(root, snapshots)?;
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
            self.cache().put(raw_root(&name), disk_bytes(&path)?, Origin::of(manifest));
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

    fn sweep_snapshots(&self, root: &Path, known: &BTreeSet<String>) -> Result<Vec<PathBuf>> {
        let dir = root.join(SNAPSHOTS);
        let mut removed = Vec::new();
        for path in read_dir(&dir)? {
            let name = path.file_name().and_then(|name| name.to_str()).filter(|name| known.contains(*name));
            match name {
                Some(name) if self.same_boot => {
                    self.cache().put(raw_snapshot(name), stored_bytes(&path)?, Origin::Snapshot);
                }
                Some(_) => remove(&path)?,
                None => {
                    remove(&path)?;
                    removed.push(path);
                }
            }
        }
        sync_dir(&dir)?;
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
            let free = cache.files.iter().filter(|(_, entry)| entry.pins == 0 && entry.origin != Origin::Nowhere);
            let mut free: Vec<(u64, String)> = free.map(|(file, entry)| (entry.used, file.clone())).collect();
            free.sort();
            for (_, file) in free {
                if total <= limit {
                    break;
                }
                // Out of the way under the lock, for who opens it next; removing gigabytes takes longer.
                let bin = root.join(WORK).join(format!("evicted-{}", Uuid::new_v4().as_simple()));
                let path = root.join(&file);
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
        let below = self
            .chunks
            .lineage(manifest)?
            .into_iter()
            .skip(1)
            .find_map(|id| Some((id, File::open(root.join(self.file_of(&id)?)).ok()?)));
        let below = below.as_ref().map(|(id, file)| (*id, file));
        self.chunks.materialise(manifest, &file, below, &ChunkStop::default())?;
        Ok(())
    }

    /// Path of a raw file of this image, in the data folder.
    pub(crate) fn file_of(&self, manifest: &ManifestId) -> Option<String> {
        let cache = self.cache();
        let origin = Origin::Image(*manifest);
        cache.files.iter().find(|(_, entry)| entry.origin == origin).map(|(path, _)| path.clone())
    }

    /// Removes snapshots from the cache that are not among these names and that nobody uses.
    pub(crate) fn drop_unknown_snapshots(&self, root: &Path, known: &BTreeSet<String>) -> Result<()> {
        let mut bins = Vec::new();
        {
            let mut cache = self.cache();
            let known: BTreeSet<String> = known.iter().map(|name| raw_snapshot(name)).collect();
            let unknown = cache
                .files
                .iter()
                .filter(|(path, entry)| entry.origin == Origin::Snapshot && entry.pins == 0 && !known.contains(*path));
            let unknown: Vec<String> = unknown.map(|(path, _)| path.clone()).collect();
            for path in unknown {
                let bin = root.join(WORK).join(format!("evicted-{}", Uuid::new_v4().as_simple()));
                match fs::rename(root.join(&path), &bin) {
                    Ok(()) => bins.push(bin),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(io_error("remove", &root.join(&path))(error)),
                }
                cache.files.remove(&path);
            }
        }
        bins.iter().try_for_each(|bin| remove(bin))
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

/// Path of a raw root image in the data folder.
pub(crate) fn raw_root(file: &str) -> String {
    format!("{ROOTFS}/{file}")
}

/// Path of a snapshot's raw files in the data folder.
pub(crate) fn raw_snapshot(name: &str) -> String {
    format!("{SNAPSHOTS}/{name}")
}

/// What a raw file takes on the disk, bytes.
pub(crate) fn disk_bytes(path: &Path) -> Result<u64> {
    Ok(fs::symlink_metadata(path).map_err(io_error("read", path))?.blocks().saturating_mul(512))
}
