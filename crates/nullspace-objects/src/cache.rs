//! Downloaded objects as files of this host: bounded, least recently used first out, kept while in use.
//!
//! ```text
//!   get ──> known? ──yes──────────────────────────────> open, pin ──> Cached
//!             └─no──> one download for all callers        ^
//!                        reserve (evict what is unpinned) │
//!                        work/<random> ──flush, rename──> files/<name> <──flush, rename── insert
//! ```
//! A cache may vanish at any time: what is in it can be downloaded again. It is one process's alone.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use tokio::sync::watch;

use crate::error::io_error;
use crate::folder::blocking;
use crate::folder::draft::{self, Draft, Placed};
use crate::{Error, ObjectName, Objects, Result};

/// Takes the place of `/` in the names of files: no object's name has it.
const SEPARATOR: &str = "+";

/// Tries to get an object that is removed, or asked for with another length, at the same time.
const GET_TRIES: usize = 8;

/// A cache of objects in a folder. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cache {
    inner: Arc<Inner>,
}

/// The contents of a cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Objects.
    pub objects: usize,
    /// Objects in use.
    pub pinned: usize,
    /// Bytes of all objects, with those of downloads under way. Never more than the limit.
    pub bytes: u64,
    /// Calls that found their object, since the cache was opened.
    pub hits: u64,
    /// Downloads, since the cache was opened.
    pub misses: u64,
}

/// An object in the cache. It stays there while this value or a clone lives.
#[derive(Debug, Clone)]
pub struct Cached {
    pin: Arc<Pin>,
}

#[derive(Debug)]
struct Pin {
    cache: Arc<Inner>,
    name: ObjectName,
    id: u64,
    path: PathBuf,
    file: File,
    bytes: u64,
}

#[derive(Debug)]
struct Inner {
    objects: Objects,
    files: PathBuf,
    work: PathBuf,
    most: u64,
    state: Mutex<State>,
    /// Keeps other processes out.
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<ObjectName, Known>,
    downloads: HashMap<ObjectName, Download>,
    /// Bytes of what is known and of what is being downloaded.
    bytes: u64,
    /// Rises with each use: the least is the least recently used. Also tells one download of a name from the next.
    clock: u64,
    hits: u64,
    misses: u64,
}

/// A file of the cache.
#[derive(Debug)]
struct Known {
    id: u64,
    bytes: u64,
    used: u64,
    pins: usize,
}

/// A download that callers wait for.
#[derive(Debug, Clone)]
struct Download {
    id: u64,
    outcome: watch::Sender<Outcome>,
}

/// Nothing while the download runs.
type Outcome = Option<std::result::Result<Cached, Arc<Error>>>;

impl Cache {
    /// Opens a cache of at most `most_bytes` in a folder, and makes the folder when there is none. What was in it is kept, from the
    /// most recently used on, as far as the limit allows.
    ///
    /// # Errors
    /// [`Error::Invalid`] when another process uses the folder; [`Error::Io`] when it cannot be made or read.
    pub fn open(folder: &Path, most_bytes: u64, objects: Objects) -> Result<Cache> {
        let (files, work) = (folder.join("files"), folder.join("work"));
        for path in [folder, &files, &work] {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("make", path))?;
        }
        let path = folder.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(io_error("open", &path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::Invalid(format!("the object cache {} is used by another process", folder.display())));
        }
        draft::sweep(&work)?;
        let mut state = State::default();
        let mut found = find(&files)?;
        found.sort_by_key(|(_, _, used)| *used);
        for (name, bytes, _) in found {
            let id = state.tick();
            state.bytes = state.bytes.saturating_add(bytes);
            state.known.insert(name, Known { id, bytes, used: id, pins: 0 });
        }
        let inner = Inner { objects, files, work, most: most_bytes, state: Mutex::new(state), _lock: lock };
        inner.make_space(&mut inner.state(), 0)?;
        Ok(Cache { inner: Arc::new(inner) })
    }

    /// Returns an object of `bytes`, from the folder or downloaded. Callers that ask for one object at the same time share one
    /// download, which ends when none of them waits any longer.
    ///
    /// # Errors
    /// [`Error::Full`] when the limit is reached by objects in use; [`Error::Damaged`] when the object has another length; those of
    /// [`Objects::download`].
    pub async fn get(&self, name: &ObjectName, bytes: u64) -> Result<Cached> {
        for _ in 0..GET_TRIES {
            let (inner, wanted) = (Arc::clone(&self.inner), name.clone());
            if let Some(cached) = blocking(move || inner.hit(&wanted, bytes)).await? {
                return Ok(cached);
            }
            let Some(mut outcome) = self.inner.join(name, bytes) else { continue };
            let ended = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
            match ended {
                Ok(Some(Ok(cached))) if cached.bytes() == bytes => return Ok(cached),
                // The download of a caller who expects another length.
                Ok(Some(Ok(_)) | None) => {}
                Ok(Some(Err(error))) => return Err(error.again()),
                Err(_) => return Err(Error::unavailable("a download was ended: the process is shutting down")),
            }
        }
        Err(Error::unavailable(format!("{name} is removed from the cache as often as it is downloaded")))
    }

    /// Gives the content of an object that the store has to the cache, so that the first [`Cache::get`] downloads nothing. The file,
    /// which must be on the filesystem of the cache and complete, is moved. When the object is here already, the file stays
    /// where it is.
    ///
    /// # Errors
    /// [`Error::Full`] when the limit is reached by objects in use, or is smaller than the file; [`Error::Io`] when the file cannot
    /// be flushed or moved. The file stays where it is.
    pub async fn insert(&self, name: &ObjectName, file: &Path) -> Result<Cached> {
        let (inner, name, from) = (Arc::clone(&self.inner), name.clone(), file.to_owned());
        blocking(move || inner.insert(&name, &from)).await
    }

    /// Removes an object whose content turned out to be wrong; the next [`Cache::get`] downloads it. Users of the present file keep
    /// what they opened.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be removed.
    pub async fn forget(&self, name: &ObjectName) -> Result<()> {
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        blocking(move || {
            let mut state = inner.state();
            inner.remove(&mut state, &name)
        })
        .await
    }

    /// Removes objects that are not in use, the least recently used first, until the rest has at most `most_bytes`: for a disk that
    /// is full. The cache may grow to its limit again afterwards.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be removed.
    pub async fn shrink(&self, most_bytes: u64) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.evict(&mut inner.state(), most_bytes)).await
    }

    /// The contents now.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let state = self.inner.state();
        CacheStats {
            objects: state.known.len(),
            pinned: state.known.values().filter(|known| known.pins > 0).count(),
            bytes: state.bytes,
            hits: state.hits,
            misses: state.misses,
        }
    }
}

impl Cached {
    /// The path of the file, valid while this value lives, unless [`Cache::forget`] is called. The file must not be changed.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.pin.path
    }

    /// The open file, for reading.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.pin.file
    }

    /// The length, bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pin.bytes
    }

    /// A number that the next download of the same object has not: it tells whether this file was looked at before. Numbers
    /// begin anew when the cache is opened.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.pin.id
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.cache.state();
        if let Some(known) = state.known.get_mut(&self.name)
            && known.id == self.id
        {
            known.pins -= 1;
        }
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, name: &ObjectName) -> PathBuf {
        self.files.join(name.as_str().replace('/', SEPARATOR))
    }

    /// Opens an object that is here with its length. One with another length is removed, unless it is in use.
    fn hit(self: &Arc<Inner>, name: &ObjectName, bytes: u64) -> Result<Option<Cached>> {
        let mut state = self.state();
        if !state.known.contains_key(name) {
            return Ok(None);
        }
        let path = self.path(name);
        let file = match File::open(&path).and_then(|file| Ok((file.metadata()?.len(), file))) {
            Ok((found, file)) if found == bytes => file,
            Ok((found, _)) => {
                if state.known.get(name).is_some_and(|known| known.pins > 0) {
                    let what = format!("it has {found} bytes in the cache, where it is in use, instead of {bytes}");
                    return Err(Error::damaged(name, what));
                }
                tracing::warn!(%name, found, expected = bytes, "an object in the cache has another length and is removed");
                self.remove(&mut state, name)?;
                return Ok(None);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.remove(&mut state, name)?;
                return Ok(None);
            }
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        // For the order after the next start; without it, only that order is worse.
        let _ = file.set_modified(SystemTime::now());
        state.hits += 1;
        let used = state.tick();
        let Some(known) = state.known.get_mut(name) else { return Ok(None) };
        known.used = used;
        known.pins += 1;
        let pin = Pin { cache: Arc::clone(self), name: name.clone(), id: known.id, path, file, bytes };
        Ok(Some(Cached { pin: Arc::new(pin) }))
    }

    /// Joins the download of an object, and starts it when there is none. `None`: it has ended since the object was looked for.
    fn join(self: &Arc<Inner>, name: &ObjectName, bytes: u64) -> Option<watch::Receiver<Outcome>> {
        let mut state = self.state();
        if let Some(download) = state.downloads.get(name) {
            return Some(download.outcome.subscribe());
        }
        if state.known.contains_key(name) {
            return None;
        }
        let (outcome, receiver) = watch::channel(None);
        let download = Download { id: state.tick(), outcome };
        state.downloads.insert(name.clone(), download.clone());
        state.misses += 1;
        let running = Running { cache: Arc::clone(self), name: name.clone(), id: download.id };
        tokio::spawn(run(running, bytes, download.outcome));
        Some(receiver)
    }

    /// Downloads an object into its place.
    async fn download(self: &Arc<Inner>, name: &ObjectName, bytes: u64) -> Result<Cached> {
        let inner = Arc::clone(self);
        let (reserved, draft) = blocking(move || {
            let reserved = Reserved::new(&inner, bytes)?;
            Ok((reserved, Draft::create(&inner.work)?))
        })
        .await?;
        self.objects.download(name, draft.file(), bytes).await?;
        let (inner, name) = (Arc::clone(self), name.clone());
        blocking(move || {
            draft.sync()?;
            inner.keep(&name, reserved, &draft)
        })
        .await
    }

    /// Gives a downloaded file its name.
    fn keep(self: &Arc<Inner>, name: &ObjectName, mut reserved: Reserved, draft: &Draft) -> Result<Cached> {
        let path = self.path(name);
        let mut state = self.state();
        // A file that is there is not known: it was put there by somebody else.
        remove_file(&path)?;
        if draft.place(&path)? != Placed::Done {
            return Err(Error::unavailable(format!("{} cannot take its place in the cache", path.display())));
        }
        let file = File::open(&path).map_err(io_error("open", &path))?;
        Ok(self.known(&mut state, name, &mut reserved, path, file))
    }

    /// Gives a file from elsewhere its name.
    fn insert(self: &Arc<Inner>, name: &ObjectName, from: &Path) -> Result<Cached> {
        let file = File::open(from).map_err(io_error("open", from))?;
        file.sync_all().map_err(io_error("flush", from))?;
        let bytes = file.metadata().map_err(io_error("look at", from))?.len();
        if let Some(cached) = self.hit(name, bytes)? {
            return Ok(cached);
        }
        let mut reserved = Reserved::new(self, bytes)?;
        let path = self.path(name);
        let mut state = self.state();
        fs::rename(from, &path).map_err(io_error("move", from))?;
        Ok(self.known(&mut state, name, &mut reserved, path, file))
    }

    /// Notes a file that has its name now, in use once.
    fn known(
        self: &Arc<Inner>,
        state: &mut State,
        name: &ObjectName,
        reserved: &mut Reserved,
        path: PathBuf,
        file: File,
    ) -> Cached {
        let (bytes, id) = (reserved.take(), state.tick());
        // One that came at the same time has been replaced. Its users keep what they opened.
        if let Some(earlier) = state.known.insert(name.clone(), Known { id, bytes, used: id, pins: 1 }) {
            state.bytes = state.bytes.saturating_sub(earlier.bytes);
        }
        let pin = Pin { cache: Arc::clone(self), name: name.clone(), id, path, file, bytes };
        Cached { pin: Arc::new(pin) }
    }

    /// Removes unpinned objects until `bytes` more are within the limit.
    fn make_space(&self, state: &mut State, bytes: u64) -> Result<()> {
        let full = |state: &State| Error::Full {
            what: format!(
                "the cache of objects on this host has {} of {} bytes in use, and {bytes} more are needed",
                state.bytes, self.most
            ),
        };
        let Some(most) = self.most.checked_sub(bytes) else { return Err(full(state)) };
        self.evict(state, most)?;
        if state.bytes > most { Err(full(state)) } else { Ok(()) }
    }

    /// Removes unpinned objects, the least recently used first, until the rest has at most `most` bytes.
    fn evict(&self, state: &mut State, most: u64) -> Result<()> {
        while state.bytes > most {
            let unpinned = state.known.iter().filter(|(_, known)| known.pins == 0);
            let least = unpinned.min_by_key(|(_, known)| known.used).map(|(name, _)| name.clone());
            let Some(name) = least else { break };
            tracing::debug!(%name, "removed from the cache");
            self.remove(state, &name)?;
        }
        Ok(())
    }

    fn remove(&self, state: &mut State, name: &ObjectName) -> Result<()> {
        if let Some(known) = state.known.get(name) {
            remove_file(&self.path(name))?;
            state.bytes = state.bytes.saturating_sub(known.bytes);
            state.known.remove(name);
        }
        Ok(())
    }
}

/// The download's task. It ends early when nobody waits for it.
async fn run(running: Running, bytes: u64, outcome: watch::Sender<Outcome>) {
    let mut download = Box::pin(running.cache.download(&running.name, bytes));
    let ended = loop {
        tokio::select! {
            ended = &mut download => break ended,
            () = outcome.closed() => {
                let mut state = running.cache.state();
                // A caller may have joined in between.
                if outcome.receiver_count() == 0 {
                    running.leave(&mut state);
                    return;
                }
            }
        }
    };
    running.leave(&mut running.cache.state());
    outcome.send_replace(Some(ended.map_err(Arc::new)));
}

/// A download in the list of downloads. Dropping it takes it from there, however its task ends.
struct Running {
    cache: Arc<Inner>,
    name: ObjectName,
    id: u64,
}

impl Running {
    fn leave(&self, state: &mut State) {
        if state.downloads.get(&self.name).is_some_and(|download| download.id == self.id) {
            state.downloads.remove(&self.name);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.leave(&mut self.cache.state());
    }
}

/// Bytes of the limit that a download will use. Dropping it returns them.
struct Reserved {
    cache: Arc<Inner>,
    bytes: u64,
}

impl Reserved {
    fn new(cache: &Arc<Inner>, bytes: u64) -> Result<Reserved> {
        let mut state = cache.state();
        cache.make_space(&mut state, bytes)?;
        state.bytes += bytes;
        Ok(Reserved { cache: Arc::clone(cache), bytes })
    }

    /// The bytes belong to a file now.
    fn take(&mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let mut state = self.cache.state();
            state.bytes = state.bytes.saturating_sub(self.bytes);
        }
    }
}

/// The objects of an earlier process, with lengths and times of last use.
fn find(files: &Path) -> Result<Vec<(ObjectName, u64, SystemTime)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(files).map_err(io_error("read", files))? {
        let entry = entry.map_err(io_error("read", files))?;
        let metadata = entry.metadata().map_err(io_error("look at", &entry.path()))?;
        let name = entry.file_name().to_str().and_then(|name| ObjectName::parse(&name.replace(SEPARATOR, "/")).ok());
        match name.filter(|_| metadata.is_file()) {
            Some(name) => {
                let used = metadata.modified().map_err(io_error("look at", &entry.path()))?;
                found.push((name, metadata.len(), used));
            }
            None => tracing::warn!(path = %entry.path().display(), "no object of the cache; left alone"),
        }
    }
    Ok(found)
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}
