//! The object store beside the data folder: packs and manifests are kept in it durably, and here as a cache.
//!
//! ```text
//!   chunks (blocking threads) ── Remote ──> ObjectRemote ── block_on ──> Objects     packs/NAME, manifests/ID
//!   blobs, logs (async) ────────────────────────────────────────────────^            blobs/…, logs/…, store
//! ```
//! Without object settings the data folder alone is the durable place, and nothing here is used.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::TryStreamExt;
use nullspace_chunks::{Remote, RemoteFile, RemoteKind, RemoteSettings};
use nullspace_objects::{Error, ObjectName, Objects, Stop};
use tokio::runtime::Handle;

use crate::{DataError, Result};

/// Most objects of one kind that are listed: more are an error, so that a store's answer does not fill the memory.
const MOST_LISTED: usize = 4_000_000;
/// Longest time of one listing.
const LONGEST_LIST: Duration = Duration::from_secs(600);

/// An object store that keeps everything durable, and how the data folder relates to it.
#[derive(Debug, Clone)]
pub struct ObjectSettings {
    /// The store.
    pub objects: Objects,
    /// Most bytes of packs and uploaded files that the data folder keeps as a cache. Packs take at most three quarters of it.
    pub cache_bytes: u64,
    /// Time between the removal of a file in the data folder and in the store.
    pub grace: Duration,
}

impl ObjectSettings {
    /// Part of the cache that packs may take, bytes.
    pub(crate) fn pack_cache_bytes(&self) -> u64 {
        self.cache_bytes - self.blob_cache_bytes()
    }

    /// Part of the cache that uploaded files may take, bytes.
    pub(crate) fn blob_cache_bytes(&self) -> u64 {
        self.cache_bytes / 4
    }
}

/// The object store as the chunk store uses it: from blocking threads.
#[derive(Debug)]
pub(crate) struct ObjectRemote {
    objects: Objects,
    runtime: Handle,
    stop: Stop,
}

impl ObjectRemote {
    /// The adapter, for the runtime that the caller is in.
    ///
    /// # Errors
    /// [`DataError::Conflict`] outside of a runtime.
    pub(crate) fn new(objects: Objects, stop: Stop) -> Result<ObjectRemote> {
        let runtime =
            Handle::try_current().map_err(|_| DataError::conflict("an object store needs a runtime to be asked in"))?;
        Ok(ObjectRemote { objects, runtime, stop })
    }

    /// Runs a call to its end, or until the store is stopped.
    fn run<T>(&self, call: impl Future<Output = nullspace_objects::Result<T>>) -> nullspace_objects::Result<T> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.stop.stopped() => Err(Error::Stopped),
                done = call => done,
            }
        })
    }
}

impl Remote for ObjectRemote {
    fn put(&self, kind: RemoteKind, name: &str, file: &File) -> io::Result<()> {
        let name = object_name(kind, name)?;
        let file = file.try_clone()?;
        self.run(self.objects.put_file(&name, file, &self.stop)).map(drop).map_err(failure)
    }

    fn get(&self, kind: RemoteKind, name: &str, bytes: u64, to: &File) -> io::Result<()> {
        let name = object_name(kind, name)?;
        self.run(self.objects.download(&name, to, bytes)).map_err(|error| match error {
            // Of the file that is written: a read of the store does not fill it.
            Error::Full { .. } => io::Error::new(io::ErrorKind::StorageFull, error),
            error => failure(error),
        })
    }

    fn read(&self, kind: RemoteKind, name: &str, at: u64, len: usize) -> io::Result<Vec<u8>> {
        let name = object_name(kind, name)?;
        let end = at.saturating_add(len as u64);
        self.run(self.objects.get_range(&name, at..end)).map(Vec::from).map_err(failure)
    }

    fn list(&self, kind: RemoteKind) -> io::Result<Vec<RemoteFile>> {
        let found = self.run(list_below(&self.objects, folder(kind))).map_err(failure)?;
        Ok(found.into_iter().map(|(name, bytes, _)| RemoteFile { name, bytes }).collect())
    }

    fn delete(&self, kind: RemoteKind, name: &str) -> io::Result<()> {
        let name = object_name(kind, name)?;
        self.run(self.objects.delete(&name)).map_err(failure)
    }
}

/// Lists the objects below a folder of names, within bounds: the rest of their names, with lengths and ages. An object whose time
/// is in the future has no age.
pub(crate) async fn list_below(
    objects: &Objects,
    folder: &str,
) -> nullspace_objects::Result<Vec<(String, u64, Duration)>> {
    let (below, now) = (format!("{folder}/"), SystemTime::now());
    let listing = async {
        let (mut found, mut entries) = (Vec::new(), objects.list(folder));
        while let Some(entry) = entries.try_next().await? {
            if found.len() == MOST_LISTED {
                return Err(Error::Invalid(format!(
                    "the object store has more than {MOST_LISTED} objects in {folder}"
                )));
            }
            if let Some(rest) = entry.name.as_str().strip_prefix(&below) {
                found.push((rest.to_owned(), entry.bytes, now.duration_since(entry.modified).unwrap_or_default()));
            }
        }
        Ok(found)
    };
    tokio::time::timeout(LONGEST_LIST, listing).await.unwrap_or_else(|_| {
        let what = format!("the list of its {folder} took over {} s", LONGEST_LIST.as_secs());
        Err(Error::Unavailable { what })
    })
}

fn folder(kind: RemoteKind) -> &'static str {
    match kind {
        RemoteKind::Pack => "packs",
        RemoteKind::Manifest => "manifests",
    }
}

fn object_name(kind: RemoteKind, name: &str) -> io::Result<ObjectName> {
    let name = ObjectName::parse(&format!("{}/{name}", folder(kind)));
    name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// The store's error as one of the system, of which the chunk store knows three kinds: there is no such file, its bytes are wrong,
/// and everything else. A store that is full is no disk that is full here.
fn failure(error: Error) -> io::Error {
    let kind = match &error {
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        Error::Damaged { .. } | Error::TooLong { .. } => io::ErrorKind::InvalidData,
        Error::Denied { .. } => io::ErrorKind::PermissionDenied,
        Error::Unavailable { .. } => io::ErrorKind::TimedOut,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

/// The store as the chunk store's remote.
pub(crate) fn remote_settings(settings: &ObjectSettings, stop: &Stop) -> Result<RemoteSettings> {
    let remote = ObjectRemote::new(settings.objects.clone(), stop.clone())?;
    Ok(RemoteSettings { remote: Arc::new(remote), cache_bytes: settings.pack_cache_bytes(), grace: settings.grace })
}

/// What the chunk store reports of its files, with an error of the object store told apart from one of the disk.
pub(crate) fn chunk_error(what: String, source: io::Error) -> DataError {
    let of_the_store =
        source.kind() != io::ErrorKind::StorageFull && source.get_ref().is_some_and(|inner| inner.is::<Error>());
    if !of_the_store {
        return DataError::Io { context: what, source };
    }
    match source.into_inner().map(|inner| inner.downcast::<Error>()) {
        Some(Ok(source)) => DataError::Objects { context: what, source: *source },
        Some(Err(other)) => DataError::Io { context: what, source: io::Error::other(other) },
        None => DataError::Io { context: what, source: io::ErrorKind::Other.into() },
    }
}
