//! A store whose files are kept in another place, too: an object store.
//!
//! ```text
//!   put ── packs/, manifests/ ──upload──> Remote        a put returns when both places have all of it
//!              │      ^                     │
//!      evict ──┘      └──── download ───────┘           packs here are a cache then: least recently used first
//!
//!   collection ── removed here ── doomed ──grace──> deleted there
//! ```
//! With a remote, a pack here may go at any time: it is fetched again when a chunk of it is read. Only packs that the remote
//! has are evicted. Files that only this folder has, because the remote was added later or could not be reached, are
//! uploaded by [`Store::upload_missing`](crate::Store::upload_missing); until that has succeeded once, an image there may lack what it has in common with them.
//!
//! A collection removes here at once, and there after a grace: whoever reads there has time to finish. What is doomed is
//! remembered in memory only. After a restart the remote's list has it again, so the next collection finds it unused again.

mod places;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::{self, Seek};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::io_error;
use crate::files::{Draft, remove};
use crate::pack::{PackName, read_index, read_index_by};
use crate::store::{Inner, Stop};
use crate::{Error, ManifestId, Result};

/// Kinds of files in a [`Remote`]. Names of one kind are unique for ever, and a file never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RemoteKind {
    /// Chunks.
    Pack,
    /// The list of an image's pieces.
    Manifest,
}

/// A file in a [`Remote`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its name.
    pub name: String,
    /// Its length, bytes.
    pub bytes: u64,
}

/// A place that keeps files durably. All calls block, and return within a time that the implementation bounds.
///
/// Errors of kind [`io::ErrorKind::NotFound`] mean that there is no such file; any other that the place could not answer.
pub trait Remote: Send + Sync + fmt::Debug {
    /// Keeps a file: durable and complete when this returns. The same file may be put again.
    fn put(&self, kind: RemoteKind, name: &str, file: &File) -> io::Result<()>;

    /// Copies a file of so many bytes into an empty one.
    fn get(&self, kind: RemoteKind, name: &str, bytes: u64, to: &File) -> io::Result<()>;

    /// Reads exactly `len` bytes from `at` on.
    fn read(&self, kind: RemoteKind, name: &str, at: u64, len: usize) -> io::Result<Vec<u8>>;

    /// Lists all files of a kind.
    fn list(&self, kind: RemoteKind) -> io::Result<Vec<RemoteFile>>;

    /// Removes a file. A missing file is no error.
    fn delete(&self, kind: RemoteKind, name: &str) -> io::Result<()>;
}

/// A remote, and how the files here relate to it.
#[derive(Debug, Clone)]
pub struct RemoteSettings {
    /// The place.
    pub remote: Arc<dyn Remote>,
    /// Most bytes of packs that are kept here as a cache.
    pub cache_bytes: u64,
    /// Time between the removal of a file here and there.
    pub grace: Duration,
}

/// The remote of an open store.
#[derive(Debug)]
pub(crate) struct Elsewhere {
    settings: RemoteSettings,
    /// Packs that are both here and there.
    cached: Mutex<Cached>,
    /// Locks of files that are being downloaded.
    fetching: Mutex<HashMap<String, Arc<Mutex<()>>>>,
    /// Removed here, and to be deleted there.
    doomed: Mutex<Vec<(RemoteKind, String, Instant)>>,
    /// What is there.
    there: Mutex<There>,
    /// Packs that a store that is only read has downloaded last: files without a name.
    looked: Mutex<VecDeque<(PackName, File)>>,
}

/// What the remote has, doomed files included.
#[derive(Debug, Default)]
struct There {
    packs: HashMap<PackName, u64>,
    manifests: HashSet<ManifestId>,
}

/// Where the files of a store with a remote are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemoteStats {
    /// Packs in the remote, also those that are unused and not deleted yet.
    pub packs: u64,
    /// Bytes of them.
    pub pack_bytes: u64,
    /// Images in the remote.
    pub manifests: u64,
    /// Packs of the remote that are also in the folder, as a cache.
    pub cached_packs: u64,
    /// Bytes of them.
    pub cached_bytes: u64,
    /// Packs that only the folder has: they are not uploaded yet.
    pub missing_packs: u64,
    /// Bytes of them.
    pub missing_bytes: u64,
}

#[derive(Debug, Default)]
struct Cached {
    packs: HashMap<PackName, Entry>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    used: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Downloaded packs that a store that is only read keeps open for other threads.
const MOST_LOOKED: usize = 4;

/// The error of a remote that could not be asked.
fn unreachable(what: &str, name: &str) -> impl FnOnce(io::Error) -> Error {
    let what = format!("{what} {name} of the object store");
    move |source| Error::Io { what, source }
}

impl Elsewhere {
    pub(crate) fn new(settings: RemoteSettings, listed: &Listed) -> Elsewhere {
        let there =
            There { packs: listed.packs.clone(), manifests: listed.manifests.iter().map(|(id, _)| *id).collect() };
        Elsewhere {
            settings,
            cached: Mutex::default(),
            fetching: Mutex::default(),
            doomed: Mutex::default(),
            there: Mutex::new(there),
            looked: Mutex::default(),
        }
    }

    pub(crate) fn remote(&self) -> &dyn Remote {
        &*self.settings.remote
    }

    /// Notes that a pack is both here and there.
    pub(crate) fn has_both(&self, name: PackName, bytes: u64) {
        let mut cached = lock(&self.cached);
        cached.clock += 1;
        let used = cached.clock;
        cached.packs.insert(name, Entry { bytes, used });
    }

    /// Notes that a pack here was used.
    pub(crate) fn used(&self, name: PackName) {
        let mut cached = lock(&self.cached);
        cached.clock += 1;
        let used = cached.clock;
        if let Some(entry) = cached.packs.get_mut(&name) {
            entry.used = used;
        }
    }

    /// Notes that a file was removed here, by a collection.
    pub(crate) fn doom(&self, kind: RemoteKind, name: String) {
        lock(&self.doomed).push((kind, name, Instant::now()));
    }

    fn forget(&self, name: PackName) {
        lock(&self.cached).packs.remove(&name);
    }

    fn delete(&self, kind: RemoteKind, name: &str) -> Result<()> {
        self.remote().delete(kind, name).map_err(unreachable("delete", name))?;
        let mut there = lock(&self.there);
        match kind {
            RemoteKind::Pack => drop(name.parse().map(|name: PackName| there.packs.remove(&name))),
            RemoteKind::Manifest => drop(name.parse().map(|id: ManifestId| there.manifests.remove(&id))),
        }
        Ok(())
    }

    /// A pack that was downloaded to be looked at, if it is one of the last ones.
    fn looked(&self, name: PackName) -> Option<File> {
        let looked = lock(&self.looked);
        looked.iter().find(|(known, _)| *known == name).and_then(|(_, file)| file.try_clone().ok())
    }

    fn look(&self, name: PackName, file: File) {
        let mut looked = lock(&self.looked);
        if looked.len() >= MOST_LOOKED {
            looked.pop_front();
        }
        looked.push_back((name, file));
    }

    /// The lock of the one that downloads this file.
    fn fetching(&self, name: &str) -> Arc<Mutex<()>> {
        let mut fetching = lock(&self.fetching);
        fetching.retain(|_, one| Arc::strong_count(one) > 1);
        Arc::clone(fetching.entry(name.to_owned()).or_default())
    }
}

impl Inner {
    /// Uploads a pack that is durable here. Call it before its chunks are known: a manifest that names them may be uploaded
    /// from then on.
    pub(crate) fn upload_pack(&self, name: PackName, bytes: u64) -> Result<()> {
        let Some(elsewhere) = &self.elsewhere else { return Ok(()) };
        let path = name.path(&self.packs());
        let file = File::open(&path).map_err(io_error("open", &path))?;
        let text = name.to_string();
        elsewhere.remote().put(RemoteKind::Pack, &text, &file).map_err(unreachable("upload pack", &text))?;
        lock(&elsewhere.there).packs.insert(name, bytes);
        elsewhere.has_both(name, bytes);
        self.evict_packs();
        Ok(())
    }

    /// Uploads a manifest that is durable here. Its packs were uploaded before.
    pub(crate) fn upload_manifest(&self, id: &ManifestId) -> Result<()> {
        let Some(elsewhere) = &self.elsewhere else { return Ok(()) };
        let path = self.manifest_path(id);
        let file = File::open(&path).map_err(io_error("open", &path))?;
        let text = id.to_string();
        // Not while the same one, which a collection removed earlier, is deleted.
        let alone = elsewhere.fetching(&text);
        let _alone = lock(&alone);
        elsewhere.remote().put(RemoteKind::Manifest, &text, &file).map_err(unreachable("upload manifest", &text))?;
        lock(&elsewhere.there).manifests.insert(*id);
        Ok(())
    }

    /// Opens a pack, and downloads it first if it is not here. The outer error is one of the remote, which says nothing of the
    /// pack.
    pub(crate) fn open_pack(&self, name: PackName) -> Result<io::Result<File>> {
        let path = name.path(&self.packs());
        let missing = match (File::open(&path), &self.elsewhere) {
            (Err(error), Some(elsewhere)) if error.kind() == io::ErrorKind::NotFound => elsewhere,
            (opened, elsewhere) => {
                if let (Ok(_), Some(elsewhere)) = (&opened, elsewhere) {
                    elsewhere.used(name);
                }
                return Ok(opened);
            }
        };
        // Rewritten or collected meanwhile: the caller looks again.
        let Some(bytes) = self.state().pack_bytes(name) else { return Ok(Err(io::ErrorKind::NotFound.into())) };
        let text = name.to_string();
        let alone = missing.fetching(&text);
        let _alone = lock(&alone);
        if let Ok(file) = File::open(&path) {
            missing.used(name);
            return Ok(Ok(file));
        }
        let only_read = self.looking.is_some();
        if let Some(file) = missing.looked(name) {
            return Ok(Ok(file));
        }
        let draft = Draft::create(&self.work())?;
        match missing.remote().get(RemoteKind::Pack, &text, bytes, &draft.file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Err(error)),
            Err(error) => return Err(unreachable("download pack", &text)(error)),
        }
        if let Err(error) = read_index(&draft.file) {
            tracing::error!(pack = text, %error, "a pack of the object store is damaged");
            return Ok(Err(error));
        }
        let file = draft.file.try_clone().map_err(io_error("open", draft.path()))?;
        if only_read {
            missing.look(name, draft.file.try_clone().map_err(io_error("open", draft.path()))?);
            return Ok(Ok(file));
        }
        // Not flushed: it can be downloaded again. A start checks its index, and every read its chunk.
        draft.place(&path)?;
        missing.has_both(name, bytes);
        self.evict_packs();
        Ok(Ok(file))
    }

    /// Downloads a manifest that is not here, and opens it. `None`: it is not there either.
    pub(crate) fn bring_manifest(&self, id: &ManifestId) -> Result<Option<File>> {
        let Some(elsewhere) = &self.elsewhere else { return Ok(None) };
        let text = id.to_string();
        let alone = elsewhere.fetching(&text);
        let _alone = lock(&alone);
        let path = self.manifest_path(id);
        if let Ok(file) = File::open(&path) {
            return Ok(Some(file));
        }
        let Some(bytes) = self.state().manifest_bytes(id) else { return Ok(None) };
        let draft = Draft::create(&self.work())?;
        match elsewhere.remote().get(RemoteKind::Manifest, &text, bytes, &draft.file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreachable("download manifest", &text)(error)),
        }
        let mut file = draft.file.try_clone().map_err(io_error("open", draft.path()))?;
        file.rewind().map_err(io_error("read", draft.path()))?;
        if self.looking.is_none() {
            draft.place(&path)?;
        }
        Ok(Some(file))
    }

    /// Removes packs here that the remote has, the least recently used first, until the others fit into the cache.
    pub(crate) fn evict_packs(&self) {
        let Some(elsewhere) = &self.elsewhere else { return };
        let mut gone = Vec::new();
        {
            let mut cached = lock(&elsewhere.cached);
            let mut total: u64 = cached.packs.values().map(|entry| entry.bytes).sum();
            let mut order: Vec<(u64, PackName)> =
                cached.packs.iter().map(|(name, entry)| (entry.used, *name)).collect();
            order.sort_unstable();
            for (_, name) in order {
                if total <= elsewhere.settings.cache_bytes {
                    break;
                }
                if let Some(entry) = cached.packs.remove(&name) {
                    total -= entry.bytes;
                    gone.push(name);
                }
            }
        }
        for name in gone {
            // One that is read now stays open, and is downloaded again for the next reader.
            if let Err(error) = remove(&name.path(&self.packs())) {
                tracing::warn!(%error, "a cached pack could not be removed");
            }
        }
    }

    /// Notes that a collection has removed a pack here.
    pub(crate) fn doom_pack(&self, name: PackName) {
        if let Some(elsewhere) = &self.elsewhere {
            elsewhere.forget(name);
            elsewhere.doom(RemoteKind::Pack, name.to_string());
        }
    }

    /// Notes that a collection has removed a manifest here.
    pub(crate) fn doom_manifest(&self, id: &ManifestId) {
        if let Some(elsewhere) = &self.elsewhere {
            elsewhere.doom(RemoteKind::Manifest, id.to_string());
        }
    }

    /// Deletes what was removed here longer than the grace ago, and is still unknown here.
    pub(crate) fn delete_doomed(&self, stop: &Stop) -> Result<()> {
        let Some(elsewhere) = &self.elsewhere else { return Ok(()) };
        let grace = elsewhere.settings.grace;
        let due: Vec<_> = {
            let mut doomed = lock(&elsewhere.doomed);
            let (due, rest) =
                std::mem::take(&mut *doomed).into_iter().partition(|(.., since)| since.elapsed() >= grace);
            *doomed = rest;
            due
        };
        for (index, (kind, name, _)) in due.iter().enumerate() {
            let alone = elsewhere.fetching(name);
            let _alone = lock(&alone);
            let again = match kind {
                RemoteKind::Pack => false,
                // The same image may have been put again.
                RemoteKind::Manifest => name.parse().is_ok_and(|id| self.state().has_manifest(&id)),
            };
            let deleted = stop.check().and_then(|()| if again { Ok(()) } else { elsewhere.delete(*kind, name) });
            if let Err(error) = deleted {
                // Later, with those behind it.
                lock(&elsewhere.doomed).extend(due.get(index..).unwrap_or_default().iter().cloned());
                return Err(error);
            }
        }
        Ok(())
    }
}

/// What a remote has.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    pub(crate) manifests: Vec<(ManifestId, u64)>,
    pub(crate) packs: HashMap<PackName, u64>,
}

impl Listed {
    /// Manifests first: their packs were there before them.
    pub(crate) fn of(remote: &dyn Remote) -> Result<Listed> {
        let list = |kind| remote.list(kind).map_err(unreachable("list", "files"));
        let strange = |name: &str| tracing::warn!(name, "an object that is no file of this store is left alone");
        let mut listed = Listed::default();
        for file in list(RemoteKind::Manifest)? {
            match file.name.parse() {
                Ok(id) => listed.manifests.push((id, file.bytes)),
                Err(_) => strange(&file.name),
            }
        }
        for file in list(RemoteKind::Pack)? {
            match file.name.parse() {
                Ok(name) => drop(listed.packs.insert(name, file.bytes)),
                Err(()) => strange(&file.name),
            }
        }
        Ok(listed)
    }
}

/// A pack that only the remote has, its length, and its index.
type Index = (PackName, u64, io::Result<Vec<crate::pack::Entry>>);

/// Reads the indexes of packs that only the remote has, several at a time.
pub(crate) fn read_indexes(remote: &dyn Remote, packs: &[(PackName, u64)], threads: usize) -> Result<Vec<Index>> {
    let next = Mutex::new(packs.iter());
    let thread = || {
        let mut read = Vec::new();
        loop {
            let Some((name, bytes)) = lock(&next).next() else { return Ok::<_, Error>(read) };
            let text = name.to_string();
            let index = read_index_by(*bytes, |at, len| remote.read(RemoteKind::Pack, &text, at, len));
            match index {
                Err(error) if !matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotFound) => {
                    return Err(unreachable("read the index of pack", &text)(error));
                }
                index => read.push((*name, *bytes, index)),
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(thread)).collect();
        let mut all = Vec::new();
        for thread in threads {
            match thread.join() {
                Ok(read) => all.extend(read?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    })
}
