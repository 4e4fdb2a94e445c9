//! The store: its folder, opening it, pins.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

use crate::codec::MAX_CHUNK;
use crate::error::io_error;
use crate::files::{list, make_dir, sync_dir};
use crate::manifest::{MAX_MANIFEST, Manifest};
use crate::pack::{PackName, read_index};
use crate::remote::{Elsewhere, Listed, RemoteSettings, read_indexes};
use crate::source::BLOCK;
use crate::state::State;
use crate::streams::PageTables;
use crate::{Error, ManifestId, Result};

const PACKS: &str = "packs";
const MANIFESTS: &str = "manifests";
const WORK: &str = "work";
/// The lock file: shared by readers in other processes, exclusive for a collection.
const LOCK: &str = "lock";

/// Settings of chunks and their compression. Reading does not depend on them. They may change from start to start, but puts
/// do not find chunks of other settings again.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Longest chunk, bytes: a power of two from 4 KiB to 1 MiB.
    pub chunk_bytes: u32,
    /// zstd's level; 0 compresses nothing.
    pub level: i32,
    /// Threads of one put, materialisation or check.
    pub threads: usize,
}

impl Default for Settings {
    /// The default, as measured by the example `chunk_sizes`; its figures are in `docs/architecture.md`.
    fn default() -> Settings {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        Settings { chunk_bytes: 64 << 10, level: 1, threads }
    }
}

/// Stops running calls early, with [`Error::Stopped`].
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Stops the calls with this value.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::Stopped) } else { Ok(()) }
    }
}

/// A folder of chunks and manifests. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    root: PathBuf,
    pub(crate) settings: Settings,
    state: Mutex<State>,
    pub(crate) tables: PageTables,
    pub(crate) elsewhere: Option<Elsewhere>,
    /// Pack files whose index cannot be read.
    unreadable: Vec<(PathBuf, String)>,
    /// Blocks collections by other processes. The store is only read then.
    pub(crate) looking: Option<File>,
    /// Called at each step between which a crash can fall.
    #[cfg(test)]
    pub(crate) at_step: Mutex<Option<AtStep>>,
}

#[cfg(test)]
pub(crate) type AtStep = Box<dyn FnMut(&'static str) + Send>;

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("root", &self.root).finish_non_exhaustive()
    }
}

/// The contents of a store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Images.
    pub manifests: u64,
    /// Pack files.
    pub packs: u64,
    /// Their total length, bytes, without overhead of the filesystem.
    pub pack_bytes: u64,
    /// Chunks, each counted once.
    pub chunks: u64,
    /// Bytes of them before compression.
    pub plain_bytes: u64,
    /// Bytes of them as they are stored. The rest of `pack_bytes` is indexes and collectable chunks.
    pub stored_bytes: u64,
    /// Pack files that cannot be read.
    pub unreadable_packs: u64,
}

/// Keeps an image from collection while it lives.
#[derive(Debug)]
pub struct Pin {
    inner: Arc<Inner>,
    id: ManifestId,
}

impl Pin {
    /// For a manifest that was pinned in the state.
    pub(crate) fn new(inner: &Arc<Inner>, id: ManifestId) -> Pin {
        Pin { inner: Arc::clone(inner), id }
    }

    /// The image.
    pub fn id(&self) -> ManifestId {
        self.id
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.inner.state().unpin(&self.id);
    }
}

impl Store {
    /// Opens the store in `root`, or creates it, and removes leftovers of a crash in `work/`. Reads the index of every pack.
    ///
    /// The caller makes sure that no other process has it open for writing.
    pub fn open(root: &Path, settings: Settings) -> Result<Store> {
        Store::open_with(root, settings, None)
    }

    /// As [`open`](Self::open), with a remote that keeps all files, too. Lists the remote, and reads the indexes of packs
    /// that only it has.
    ///
    /// # Errors
    /// [`Error::Io`] when the remote does not answer: what it has would look lost.
    pub fn open_with(root: &Path, settings: Settings, remote: Option<RemoteSettings>) -> Result<Store> {
        for name in [PACKS, MANIFESTS, WORK] {
            make_dir(&root.join(name))?;
        }
        for path in list(&root.join(WORK))? {
            crate::files::remove(&path)?;
        }
        sync_dir(root)?;
        let store = Store::load(root, settings, None, remote)?;
        store.inner.evict_packs();
        Ok(store)
    }

    /// Opens a store for reading, beside a process that may be writing to it. Nothing is changed, and that process collects
    /// nothing while this is open.
    ///
    /// # Errors
    /// [`Error::Busy`] during a collection.
    pub fn open_read_only(root: &Path, settings: Settings) -> Result<Store> {
        Store::open_read_only_with(root, settings, None)
    }

    /// As [`open_read_only`](Self::open_read_only), with the remote of that process. What only the remote has is read from there,
    /// and does not come into the folder.
    ///
    /// # Errors
    /// [`Error::Busy`] during a collection; [`Error::Io`] when the remote does not answer.
    pub fn open_read_only_with(root: &Path, settings: Settings, remote: Option<RemoteSettings>) -> Result<Store> {
        let lock = lock(root, FlockOperation::NonBlockingLockShared)?;
        Store::load(root, settings, Some(lock), remote)
    }

    fn load(root: &Path, settings: Settings, looking: Option<File>, remote: Option<RemoteSettings>) -> Result<Store> {
        let Settings { chunk_bytes, threads, .. } = settings;
        if !chunk_bytes.is_power_of_two() || !(BLOCK as u32..=MAX_CHUNK).contains(&chunk_bytes) || threads == 0 {
            return Err(Error::invalid("the store's settings make no sense"));
        }
        let mut state = State::default();
        // Manifests first: a process beside us makes its packs durable, here and there, before the manifests that need them.
        for path in list(&root.join(MANIFESTS))? {
            match path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok()) {
                Some(id) => state.add_manifest(id, fs::metadata(&path).map_or(0, |metadata| metadata.len())),
                None => tracing::warn!(path = %path.display(), "a file that is no manifest is left alone"),
            }
        }
        let there = remote.as_ref().map(|remote| Listed::of(&*remote.remote)).transpose()?.unwrap_or_default();
        for (id, bytes) in &there.manifests {
            state.add_manifest(*id, *bytes);
        }
        let elsewhere = remote.map(|settings| Elsewhere::new(settings, &there));
        let (mut unreadable, mut here) = (Vec::new(), HashSet::new());
        for path in list(&root.join(PACKS))? {
            let Some(name) = PackName::of(&path) else {
                tracing::warn!(path = %path.display(), "a file that is no pack is left alone");
                continue;
            };
            match File::open(&path).and_then(|file| read_index(&file)) {
                Ok((entries, bytes)) => {
                    state.add_pack(name, bytes, &entries);
                    here.insert(name);
                    if let (Some(elsewhere), true) = (&elsewhere, there.packs.contains_key(&name)) {
                        elsewhere.has_both(name, bytes);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => {
                    tracing::error!(path = %path.display(), %error, "a pack of the chunk store is damaged");
                    let only_read = looking.is_some();
                    if there.packs.contains_key(&name) && (only_read || crate::files::remove(&path).is_ok()) {
                        // A download that the host's end cut off.
                        continue;
                    }
                    unreadable.push((path, error.to_string()));
                }
                Err(error) => return Err(io_error("read", &path)(error)),
            }
        }
        if let Some(elsewhere) = &elsewhere {
            let absent = there.packs.iter().filter(|(name, _)| !here.contains(name));
            let absent: Vec<(PackName, u64)> = absent.map(|(name, bytes)| (*name, *bytes)).collect();
            for (name, bytes, index) in read_indexes(elsewhere.remote(), &absent, threads)? {
                match index {
                    Ok(entries) => state.add_pack(name, bytes, &entries),
                    Err(error) => {
                        tracing::error!(pack = %name, %error, "a pack of the object store is damaged");
                        unreadable.push((name.path(&root.join(PACKS)), error.to_string()));
                    }
                }
            }
        }
        let inner = Inner {
            root: root.to_owned(),
            settings,
            state: Mutex::new(state),
            tables: PageTables::default(),
            elsewhere,
            unreadable,
            looking,
            #[cfg(test)]
            at_step: Mutex::default(),
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Keeps an image from collection.
    ///
    /// # Errors
    /// [`Error::Unknown`] when there is no such image.
    pub fn pin(&self, id: ManifestId) -> Result<Pin> {
        if !self.inner.state().pin(id) {
            return Err(Error::Unknown(id));
        }
        Ok(Pin::new(&self.inner, id))
    }

    /// Whether this image is stored.
    pub fn contains(&self, id: &ManifestId) -> bool {
        self.inner.state().has_manifest(id)
    }

    /// The image and its parents, in order.
    pub fn lineage(&self, id: ManifestId) -> Result<Vec<ManifestId>> {
        let _pin = self.pin(id)?;
        Ok(self.inner.chain(&id)?.into_iter().map(|(id, _)| id).collect())
    }

    /// All images.
    pub fn manifests(&self) -> Vec<ManifestId> {
        self.inner.state().manifests()
    }

    /// Totals. Reads every chunk's entry: for once a minute, not for each request.
    pub fn stats(&self) -> Stats {
        let totals = self.inner.state().totals();
        Stats {
            manifests: totals.manifests,
            packs: totals.packs,
            pack_bytes: totals.pack_bytes,
            chunks: totals.chunks,
            plain_bytes: totals.plain_bytes,
            stored_bytes: totals.stored_bytes,
            unreadable_packs: self.inner.unreadable.len() as u64,
        }
    }

    /// Size of the store's files on the disk, bytes.
    pub fn disk_bytes(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        let mut bytes = 0_u64;
        for folder in [self.inner.packs(), self.inner.manifests(), self.inner.work()] {
            for path in list(&folder)? {
                // What went meanwhile takes nothing.
                bytes += fs::symlink_metadata(&path).map_or(0, |metadata| metadata.blocks() * 512);
            }
        }
        Ok(bytes)
    }
}

/// The store's lock, released when the file is closed.
fn lock(root: &Path, how: FlockOperation) -> Result<File> {
    let path = root.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(io_error("open", &path))?;
    match flock(&file, how) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Busy),
        Err(error) => Err(io_error("lock", &path)(error.into())),
    }
}

impl Inner {
    /// Locks out readers of other processes while the file is open.
    pub(crate) fn alone(&self) -> Result<File> {
        lock(&self.root, FlockOperation::NonBlockingLockExclusive)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn packs(&self) -> PathBuf {
        self.root.join(PACKS)
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.root.join(MANIFESTS)
    }

    pub(crate) fn work(&self) -> PathBuf {
        self.root.join(WORK)
    }

    pub(crate) fn manifest_path(&self, id: &ManifestId) -> PathBuf {
        self.manifests().join(id.to_string())
    }

    pub(crate) fn unreadable(&self) -> &[(PathBuf, String)] {
        &self.unreadable
    }

    /// A step between which a crash can fall.
    pub(crate) fn step(&self, _name: &'static str) {
        #[cfg(test)]
        if let Some(at_step) = self.at_step.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            at_step(_name);
        }
    }

    /// A manifest's file, whole and verified.
    pub(crate) fn manifest(&self, id: &ManifestId) -> Result<Manifest> {
        let path = self.manifest_path(id);
        let damaged = |what: String| Error::Damaged { manifest: *id, what };
        let opened = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => match self.bring_manifest(id)? {
                Some(file) => Ok(file),
                None => Err(error),
            },
            opened => opened,
        };
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged("its manifest is missing".to_owned()));
            }
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_MANIFEST + 1).read_to_end(&mut bytes).map_err(io_error("read", &path))?;
        if ManifestId::of(&bytes) != *id {
            return Err(damaged("its manifest does not have its checksum".to_owned()));
        }
        Manifest::decode(&bytes).map_err(|error| damaged(error.to_string()))
    }

    /// An image's manifests: itself first, then its parents.
    pub(crate) fn chain(&self, id: &ManifestId) -> Result<Vec<(ManifestId, Manifest)>> {
        let mut chain: Vec<(ManifestId, Manifest)> = Vec::new();
        let mut next = Some(*id);
        while let Some(current) = next {
            let manifest = self.manifest(&current).map_err(|error| match error {
                // Said of the image that was asked for.
                Error::Damaged { what, .. } => Error::Damaged { manifest: *id, what },
                other => other,
            })?;
            // Depth falls by one with each, which also ends a circle.
            let expected = chain.last().is_none_or(|(_, above)| manifest.depth + 1 == above.depth);
            if !expected {
                return Err(Error::Damaged { manifest: *id, what: "what it lies on has another depth".to_owned() });
            }
            next = manifest.parent;
            chain.push((current, manifest));
        }
        Ok(chain)
    }
}
