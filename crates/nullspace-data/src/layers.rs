//! The cache of image layers: blobs of registries, compressed as they were downloaded.
//!
//! ```text
//!   new_image_layer ── work/layer-… ── flushed ── renamed ──> layers/<key>.tn_…   complete, or no name
//!                                                                 │
//!        find_image_layer ──> opened file, held while in use <────┤
//!                                                                 └── not in use: of the tenant that holds most, the least
//!                                                                     recently used ──> removed
//! ```
//! The key is the caller's: it names a blob and who may have it. This module neither reads nor checks contents: whoever uses a
//! blob checks its digest first, and removes a damaged one.
//!
//! Files are limited in total by [`set_image_layer_limit`](ArtifactStore::set_image_layer_limit). Each counts for the tenant that
//! downloaded it, whoever else may use it. Space is made from the tenant that holds most, as long as that is more than an equal
//! share: no tenant pushes others below theirs. The time of the last use is
//! the file's modification time, so the order survives a restart. The database knows nothing of these files, and each of them
//! may be removed at any time.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nullspace_types::TenantId;
use uuid::Uuid;

use crate::folders::{io_error, make_dir, read_dir, remove};
use crate::names::{LAYERS, WORK, is_rootfs_key};
use crate::{ArtifactStore, DataError, Result};

/// Default limit of the cache, bytes.
pub const DEFAULT_LAYERS: u64 = 4 << 30;
/// A file counts as at least so many bytes. So many tiny layers cannot fill memory and folder.
const LEAST: u64 = 64 << 10;

/// The cached image layers of a data folder.
#[derive(Debug)]
pub(crate) struct Layers {
    state: Mutex<State>,
    /// Most bytes of all files.
    limit: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<String, Entry>,
    /// What all files count.
    total: u64,
    /// What files that are being written will count.
    writing: u64,
    /// Rises with each use.
    clock: u64,
    found: u64,
}

#[derive(Debug)]
struct Entry {
    /// For whom it counts; `None` for a file of an older version.
    owner: Option<TenantId>,
    counts: u64,
    /// Clock of its last use.
    used: u64,
    /// Cloned by each user; see [`Entry::is_used`].
    hold: Arc<()>,
}

impl Entry {
    fn is_used(&self) -> bool {
        Arc::strong_count(&self.hold) > 1
    }
}

/// A cached image layer, opened. It is not removed for others while this lives.
#[derive(Debug)]
pub struct ImageLayer {
    /// The blob. Read it only, and check its digest: a disk may have damaged it.
    pub file: File,
    /// Keeps it from removal, also without the file's descriptor.
    pub hold: Arc<()>,
}

/// A blob on its way into the cache. Dropping it removes it.
#[derive(Debug)]
pub struct NewImageLayer {
    store: ArtifactStore,
    key: String,
    owner: TenantId,
    path: PathBuf,
    file: File,
    size: u64,
    written: u64,
}

/// The use of the cache of image layers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageLayerUsage {
    /// Files.
    pub files: u64,
    /// Bytes of all files; a small one counts 64 KiB.
    pub bytes: u64,
    /// Layers that were found since the start.
    pub found: u64,
}

fn counts(size: u64) -> u64 {
    size.max(LEAST)
}

/// The name of a file under `layers/`.
fn file_name(key: &str, owner: Option<TenantId>) -> String {
    owner.map_or_else(|| key.to_owned(), |owner| format!("{key}.{owner}"))
}

/// The key and owner that a name under `layers/` has.
fn parse_name(name: &str) -> Option<(String, Option<TenantId>)> {
    let (key, owner) = match name.split_once('.') {
        Some((key, owner)) => (key, Some(owner.parse().ok()?)),
        None => (name, None),
    };
    // Only the one name that `file_name` gives.
    (is_rootfs_key(key) && file_name(key, owner) == name).then(|| (key.to_owned(), owner))
}

impl Layers {
    /// Reads the folder. What cannot be a layer's file is removed.
    pub(crate) fn open(root: &Path) -> Result<Layers> {
        let dir = root.join(LAYERS);
        make_dir(&dir)?;
        let mut found: Vec<(SystemTime, String, Option<TenantId>, u64)> = Vec::new();
        for path in read_dir(&dir)? {
            let metadata = fs::symlink_metadata(&path).map_err(io_error("read", &path))?;
            match path.file_name().and_then(|name| name.to_str()).and_then(parse_name) {
                Some((key, owner)) if metadata.is_file() => {
                    found.push((metadata.modified().unwrap_or(UNIX_EPOCH), key, owner, metadata.len()));
                }
                _ => remove(&path)?,
            }
        }
        found.sort();
        let mut state = State::default();
        for (_, key, owner, size) in found {
            if let Some(earlier) = state.put(key.clone(), owner, counts(size)).filter(|earlier| *earlier != owner) {
                // A crash between the publication of one and the removal of the other.
                remove(&dir.join(file_name(&key, earlier)))?;
            }
        }
        Ok(Layers { state: Mutex::new(state), limit: AtomicU64::new(DEFAULT_LAYERS) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }
}

impl State {
    /// Adds a file. Returns the owner of the one with this key that it replaces.
    fn put(&mut self, key: String, owner: Option<TenantId>, counts: u64) -> Option<Option<TenantId>> {
        self.clock += 1;
        let entry = Entry { owner, counts, used: self.clock, hold: Arc::default() };
        let earlier = self.files.insert(key, entry);
        let freed = earlier.as_ref().map_or(0, |entry| entry.counts);
        self.total = self.total.saturating_sub(freed).saturating_add(counts);
        earlier.map(|entry| entry.owner)
    }

    fn take(&mut self, key: &str) -> Option<Entry> {
        let entry = self.files.remove(key)?;
        self.total = self.total.saturating_sub(entry.counts);
        Some(entry)
    }

    /// Moves files that are not in use out of the way until the rest counts at most `most`. `coming` is what is to be added for an
    /// owner afterwards. Returns where the files are now.
    fn evict(&mut self, root: &Path, most: u64, coming: Option<(TenantId, u64)>) -> Result<Vec<PathBuf>> {
        let mut moved = Vec::new();
        for key in self.victims(most, coming) {
            let Some(entry) = self.files.get(&key) else { continue };
            let path = root.join(LAYERS).join(file_name(&key, entry.owner));
            let bin = in_work(root, "removed");
            match fs::rename(&path, &bin) {
                Ok(()) => moved.push(bin),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io_error("remove", &path)(error)),
            }
            self.take(&key);
        }
        Ok(moved)
    }

    /// The files to remove, until the rest counts at most `most`. Each is the least recently used one of the owner that holds
    /// most, of those that hold more than an equal share and have a file that is not in use. Without such an owner, it is the
    /// least recently used one of all.
    fn victims(&self, most: u64, coming: Option<(TenantId, u64)>) -> Vec<String> {
        let mut victims = Vec::new();
        let mut total = self.total;
        if total <= most {
            return victims;
        }
        let mut owners: HashMap<Option<TenantId>, Held> = HashMap::new();
        let room = most.saturating_add(coming.map_or(0, |(_, counts)| counts));
        if let Some((owner, counts)) = coming {
            owners.entry(Some(owner)).or_default().counts = counts;
        }
        for (key, entry) in &self.files {
            let held = owners.entry(entry.owner).or_default();
            held.counts = held.counts.saturating_add(entry.counts);
            if !entry.is_used() {
                held.free.push((entry.used, key, entry.counts));
            }
        }
        for held in owners.values_mut() {
            // The last one is taken first.
            held.free.sort_unstable_by(|a, b| b.cmp(a));
        }
        let share = room / (owners.len() as u64).max(1);
        while total > most {
            let free = || owners.iter().filter(|(_, held)| !held.free.is_empty());
            let oldest = |held: &Held| held.free.last().map(|(used, ..)| std::cmp::Reverse(*used));
            let above = free().filter(|(_, held)| held.counts > share);
            let chosen = above.max_by_key(|(_, held)| (held.counts, oldest(held)));
            let chosen = chosen.or_else(|| free().max_by_key(|(_, held)| oldest(held))).map(|(owner, _)| *owner);
            let Some(held) = chosen.and_then(|owner| owners.get_mut(&owner)) else { break };
            let Some((_, key, counts)) = held.free.pop() else { break };
            held.counts = held.counts.saturating_sub(counts);
            total = total.saturating_sub(counts);
            victims.push(key.clone());
        }
        victims
    }
}

/// What one owner has in the cache.
#[derive(Debug, Default)]
struct Held<'a> {
    counts: u64,
    /// Files that are not in use: clock of the last use, key, and what it counts.
    free: Vec<(u64, &'a String, u64)>,
}

fn in_work(root: &Path, what: &str) -> PathBuf {
    root.join(WORK).join(format!("{what}-{}", Uuid::new_v4().as_simple()))
}

impl ArtifactStore {
    /// Sets the limit of cached image layers, bytes, and removes those above it. 0 switches the cache off.
    ///
    /// # Errors
    /// [`DataError::Io`] when a file cannot be removed.
    pub fn set_image_layer_limit(&self, bytes: u64) -> Result<()> {
        self.layers().limit.store(bytes, Ordering::Relaxed);
        self.trim_image_layers(bytes)
    }

    /// Removes every cached image layer that is not in use, for a full disk.
    pub async fn drop_image_layers(&self) -> Result<()> {
        let store = self.clone();
        self.blocking(move |_| store.trim_image_layers(0)).await
    }

    fn trim_image_layers(&self, most: u64) -> Result<()> {
        let moved = self.layers().lock().evict(self.root(), most, None)?;
        moved.iter().try_for_each(|path| remove(path))
    }

    /// The cached image layer with this key and size in bytes. Blocks for a moment.
    pub fn find_image_layer(&self, key: &str, size: u64) -> Option<ImageLayer> {
        let (path, hold) = {
            let mut state = self.layers().lock();
            state.clock += 1;
            let now = state.clock;
            let entry = state.files.get_mut(key)?;
            entry.used = now;
            (self.root().join(LAYERS).join(file_name(key, entry.owner)), Arc::clone(&entry.hold))
        };
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((length, file)) if length == size => {
                // The order of use, for the next start. A cache that cannot note it works all the same.
                if let Err(error) = file.set_modified(SystemTime::now()) {
                    tracing::debug!(%error, "note the use of an image layer");
                }
                self.layers().lock().found += 1;
                Some(ImageLayer { file, hold })
            }
            // A new download decides which size is right, and replaces the file.
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(key, %error, "a cached image layer cannot be opened");
                // Something else removed it. One that is there counts, whatever keeps it from being opened now.
                if error.kind() == io::ErrorKind::NotFound {
                    let mut state = self.layers().lock();
                    // Not another one that has replaced it meanwhile.
                    if state.files.get(key).is_some_and(|entry| Arc::ptr_eq(&entry.hold, &hold)) {
                        state.take(key);
                    }
                }
                None
            }
        }
    }

    /// Begins to add an image layer of `size` bytes under a key of 32 to 128 lower-case hexadecimal digits. It counts for its
    /// owner: the tenant whose build downloads it. `None` when it is
    /// larger than the limit, or when what is being written already uses the limit.
    ///
    /// # Errors
    /// [`DataError::Conflict`] for another key; [`DataError::Io`] when the file cannot be made.
    pub fn new_image_layer(&self, key: &str, size: u64, owner: TenantId) -> Result<Option<NewImageLayer>> {
        check_key(key)?;
        let layers = self.layers();
        {
            let mut state = layers.lock();
            let writing = state.writing.saturating_add(counts(size));
            if writing > layers.limit() {
                return Ok(None);
            }
            state.writing = writing;
        }
        let path = in_work(self.root(), "layer");
        match File::options().create_new(true).write(true).mode(0o600).open(&path) {
            Ok(file) => {
                let (store, key) = (self.clone(), key.to_owned());
                Ok(Some(NewImageLayer { store, key, owner, path, file, size, written: 0 }))
            }
            Err(error) => {
                let mut state = layers.lock();
                state.writing = state.writing.saturating_sub(counts(size));
                Err(io_error("make", &path)(error))
            }
        }
    }

    /// Removes a cached image layer, if there is one. Blocks.
    ///
    /// # Errors
    /// [`DataError::Conflict`] for what is no key; [`DataError::Io`] when the file cannot be removed.
    pub fn remove_image_layer(&self, key: &str) -> Result<()> {
        check_key(key)?;
        let mut state = self.layers().lock();
        let Some(entry) = state.take(key) else { return Ok(()) };
        let path = self.root().join(LAYERS).join(file_name(key, entry.owner));
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path)(error)),
            _ => Ok(()),
        }
    }

    /// The use of the cache.
    pub fn image_layer_usage(&self) -> ImageLayerUsage {
        let state = self.layers().lock();
        ImageLayerUsage { files: state.files.len() as u64, bytes: state.total, found: state.found }
    }
}

fn check_key(key: &str) -> Result<()> {
    if is_rootfs_key(key) {
        return Ok(());
    }
    Err(DataError::conflict("the key of an image layer is 32 to 128 lower-case hexadecimal digits"))
}

impl NewImageLayer {
    /// Appends bytes.
    ///
    /// # Errors
    /// The disk's error; [`io::ErrorKind::InvalidInput`] beyond the announced size.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.written.saturating_add(bytes.len() as u64);
        if end > self.size {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "more bytes than were announced"));
        }
        self.file.write_all(bytes)?;
        self.written = end;
        Ok(())
    }

    /// Flushes the file, removes what has to make room for it, and gives it its name. When everything else is in use, and there
    /// is no room, it is not kept.
    ///
    /// # Errors
    /// [`DataError::Io`] when the disk fails; [`DataError::Conflict`] when bytes are missing. Nothing is stored then.
    pub fn store(self) -> Result<()> {
        if self.written != self.size {
            return Err(DataError::conflict("an image layer is stored whole or not at all"));
        }
        self.file.sync_all().map_err(io_error("flush", &self.path))?;
        let (root, layers, counts) = (self.store.root(), self.store.layers(), counts(self.size));
        let owner = Some(self.owner);
        let to = root.join(LAYERS).join(file_name(&self.key, owner));
        let moved = {
            let mut state = layers.lock();
            // Of an earlier one with this key, which is replaced.
            let earlier = state.files.get(&self.key).map_or(0, |entry| entry.counts);
            let Some(most) = layers.limit().checked_sub(counts) else { return Ok(()) };
            let mut moved = state.evict(root, most.saturating_add(earlier), Some((self.owner, counts)))?;
            let earlier = state.files.get(&self.key).map_or(0, |entry| entry.counts);
            if state.total.saturating_sub(earlier) <= most {
                fs::rename(&self.path, &to).map_err(io_error("publish", &to))?;
                let replaced = state.put(self.key.clone(), owner, counts).filter(|earlier| *earlier != owner);
                moved.extend(replaced.map(|earlier| root.join(LAYERS).join(file_name(&self.key, earlier))));
            }
            moved
        };
        moved.iter().try_for_each(|path| remove(path))
    }
}

impl Drop for NewImageLayer {
    fn drop(&mut self) {
        let mut state = self.store.layers().lock();
        state.writing = state.writing.saturating_sub(counts(self.size));
        drop(state);
        // Renamed if it was stored.
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // The next start empties work/.
            tracing::warn!(path = %self.path.display(), %error, "remove an image layer that was not stored");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use tempfile::TempDir;

    use super::*;

    fn key(n: u8) -> String {
        format!("{n:02x}").repeat(32)
    }

    /// The tenant with this number.
    fn tenant(number: u8) -> TenantId {
        format!("tn_{}", format!("{number:02x}").repeat(16)).parse().unwrap()
    }

    fn file(n: u8) -> String {
        file_name(&key(n), Some(tenant(1)))
    }

    fn add(store: &ArtifactStore, n: u8, size: usize) {
        add_for(store, 1, n, size);
    }

    fn add_for(store: &ArtifactStore, owner: u8, n: u8, size: usize) {
        let new = store.new_image_layer(&key(n), size as u64, tenant(owner)).unwrap();
        let mut new = new.expect("there is room");
        for piece in vec![n; size].chunks(30_000) {
            new.write(piece).unwrap();
        }
        new.store().unwrap();
    }

    fn read(store: &ArtifactStore, n: u8, size: usize) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        store.find_image_layer(&key(n), size as u64)?.file.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }

    fn kept(store: &ArtifactStore) -> Vec<String> {
        let mut names: Vec<String> = read_dir(&store.root().join(LAYERS))
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap()[..2].to_owned())
            .collect();
        names.sort();
        names
    }

    const SIZE: usize = 100_000;

    #[test]
    fn the_least_recently_used_makes_room_also_after_a_restart() {
        let dir = TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        store.set_image_layer_limit(3 * SIZE as u64).unwrap();
        for n in 1..=3 {
            add(&store, n, SIZE);
        }
        assert_eq!(read(&store, 1, SIZE), Some(vec![1; SIZE]));
        add(&store, 4, SIZE);
        assert_eq!(kept(&store), ["01", "03", "04"]);
        assert_eq!(read(&store, 2, SIZE), None);
        // Files of one moment are told apart by their times: set ones that are.
        for (n, seconds) in [(4, 10), (1, 20), (3, 30)] {
            let file = File::open(store.root().join(LAYERS).join(file(n))).unwrap();
            file.set_modified(UNIX_EPOCH + std::time::Duration::from_secs(seconds)).unwrap();
        }
        let usage = ImageLayerUsage { files: 3, bytes: 3 * SIZE as u64, found: 1 };
        assert_eq!(store.image_layer_usage(), usage);
        drop(store);
        fs::write(dir.path().join("layers/stray"), "x").unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        assert_eq!(store.image_layer_usage(), ImageLayerUsage { found: 0, ..usage });
        store.set_image_layer_limit(2 * SIZE as u64).unwrap();
        assert_eq!(kept(&store), ["01", "03"]);
        // Used now: it outlives the other, which was younger, at the next start.
        read(&store, 1, SIZE).unwrap();
        drop(store);
        let store = ArtifactStore::open(dir.path()).unwrap();
        store.set_image_layer_limit(SIZE as u64).unwrap();
        assert_eq!(kept(&store), ["01"]);
        store.set_image_layer_limit(0).unwrap();
        assert!(kept(&store).is_empty() && store.new_image_layer(&key(1), 1, tenant(1)).unwrap().is_none());
    }

    #[test]
    fn a_tenant_that_fills_the_cache_loses_its_own_layers_first() {
        let dir = TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        store.set_image_layer_limit(6 * SIZE as u64).unwrap();
        for n in [1, 2] {
            add_for(&store, 1, n, SIZE);
        }
        // The others' are the oldest, and stay whatever the second tenant brings.
        for n in 0x10..0x30 {
            add_for(&store, 2, n, SIZE);
            assert_eq!(kept(&store)[..2], ["01", "02"]);
        }
        assert_eq!(kept(&store), ["01", "02", "2c", "2d", "2e", "2f"]);
        // Up to its share, the first gets space from the second; above it, it pays itself.
        add_for(&store, 1, 3, SIZE);
        assert_eq!(kept(&store), ["01", "02", "03", "2d", "2e", "2f"]);
        add_for(&store, 1, 4, SIZE);
        assert_eq!(kept(&store), ["02", "03", "04", "2d", "2e", "2f"]);
        // After a restart as before. A third tenant lowers the shares of both.
        drop(store);
        let store = ArtifactStore::open(dir.path()).unwrap();
        store.set_image_layer_limit(6 * SIZE as u64).unwrap();
        for n in 0x50..0x60 {
            add_for(&store, 3, n, SIZE);
        }
        let kept = kept(&store);
        for (owner, first) in [(1, '0'), (2, '2'), (3, '5')] {
            assert_eq!(kept.iter().filter(|name| name.starts_with(first)).count(), 2, "tenant {owner}: {kept:?}");
        }
    }

    #[test]
    fn a_share_that_is_in_use_is_not_taken_from_others_in_vain() {
        let dir = TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        store.set_image_layer_limit(3 * SIZE as u64).unwrap();
        add_for(&store, 2, 1, SIZE);
        add_for(&store, 2, 2, SIZE);
        let _used: Vec<_> = [1, 2].map(|n| store.find_image_layer(&key(n), SIZE as u64).unwrap()).into();
        add_for(&store, 1, 3, SIZE);
        // The second has more than its share, and all of it is in use: the cache goes on with what is free.
        add_for(&store, 1, 4, SIZE);
        assert_eq!(kept(&store), ["01", "02", "04"]);
    }

    #[test]
    fn a_layer_is_the_last_downloaders_and_one_of_an_older_version_is_found() {
        let dir = TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        fs::write(store.root().join(LAYERS).join(key(7)), [7; 100]).unwrap();
        drop(store);
        let store = ArtifactStore::open(dir.path()).unwrap();
        assert_eq!(read(&store, 7, 100), Some(vec![7; 100]));
        add_for(&store, 1, 7, SIZE);
        add_for(&store, 2, 7, SIZE);
        let names = || read_dir(&store.root().join(LAYERS)).unwrap();
        assert_eq!(names(), [store.root().join(LAYERS).join(file_name(&key(7), Some(tenant(2))))]);
        assert_eq!((read(&store, 7, SIZE), store.image_layer_usage().bytes), (Some(vec![7; SIZE]), SIZE as u64));
        store.remove_image_layer(&key(7)).unwrap();
        assert!(names().is_empty());
        // A crash between the two left both.
        add_for(&store, 1, 7, SIZE);
        fs::write(store.root().join(LAYERS).join(key(7)), [7; 100]).unwrap();
        drop(store);
        let store = ArtifactStore::open(dir.path()).unwrap();
        assert_eq!((read_dir(&store.root().join(LAYERS)).unwrap().len(), store.image_layer_usage().files), (1, 1));
    }

    #[test]
    fn what_is_in_use_is_not_removed_for_others() {
        let dir = TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        store.set_image_layer_limit(2 * SIZE as u64).unwrap();
        add(&store, 1, SIZE);
        add(&store, 2, SIZE);
        let used = store.find_image_layer(&key(1), SIZE as u64).unwrap();
        // Older by use than the other, and held.
        read(&store, 2, SIZE).unwrap();
        add(&store, 3, SIZE);
        assert_eq!(kept(&store), ["01", "03"]);
        let also = store.find_image_layer(&key(3), SIZE as u64).unwrap();
        add(&store, 4, SIZE);
        assert_eq!(kept(&store), ["01", "03"], "there is no room for another");
        drop((used, also));
        add(&store, 4, SIZE);
        assert_eq!(kept(&store), ["03", "04"]);
    }

    #[test]
    fn nothing_half_written_has_a_name() {
        let dir = TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        store.set_image_layer_limit(SIZE as u64).unwrap();
        let work = dir.path().join(WORK);
        let mut half = store.new_image_layer(&key(1), SIZE as u64, tenant(1)).unwrap().unwrap();
        half.write(&[1; 1000]).unwrap();
        assert!(
            store.new_image_layer(&key(2), SIZE as u64, tenant(1)).unwrap().is_none(),
            "the limit is being written"
        );
        assert!(half.store().is_err());
        let mut over = store.new_image_layer(&key(1), 10, tenant(1)).unwrap().unwrap();
        assert!(over.write(&[1; 11]).is_err());
        drop(over);
        assert!(kept(&store).is_empty() && read_dir(&work).unwrap().is_empty());
        // A crash: nothing runs that would clean up.
        let mut lost = store.new_image_layer(&key(1), SIZE as u64, tenant(1)).unwrap().unwrap();
        lost.write(&[1; 1000]).unwrap();
        let left = fs::read(&lost.path).unwrap();
        drop((lost, store));
        fs::write(work.join("layer-crashed"), left).unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        assert!(kept(&store).is_empty() && read_dir(&work).unwrap().is_empty());
    }

    #[test]
    fn a_damaged_file_is_replaced_and_another_size_is_not_found() {
        let dir = TempDir::new().unwrap();
        let store = ArtifactStore::open(dir.path()).unwrap();
        add(&store, 1, SIZE);
        let path = dir.path().join(LAYERS).join(file(1));
        fs::write(&path, "short").unwrap();
        assert!(read(&store, 1, SIZE).is_none());
        add(&store, 1, SIZE);
        assert_eq!(read(&store, 1, SIZE), Some(vec![1; SIZE]));
        assert_eq!(store.image_layer_usage().bytes, SIZE as u64, "counted once");
        store.remove_image_layer(&key(1)).unwrap();
        store.remove_image_layer(&key(1)).unwrap();
        assert_eq!(store.image_layer_usage().files, 0);
        // Removed by something else.
        add(&store, 2, 10);
        assert_eq!(store.image_layer_usage().bytes, LEAST);
        fs::remove_file(dir.path().join(LAYERS).join(file(2))).unwrap();
        assert!(read(&store, 2, 10).is_none() && store.image_layer_usage().files == 0);
        for bad in ["../lock", "", "ABCDEF"] {
            assert!(
                store.new_image_layer(bad, 1, tenant(1)).is_err() && store.remove_image_layer(bad).is_err(),
                "{bad}"
            );
            assert!(store.find_image_layer(bad, 1).is_none());
        }
    }
}
