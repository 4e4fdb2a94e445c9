//! The store that callers use: names, lengths, limits and retries over one backend.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use uuid::Uuid;

use crate::backend::{Backend, Entry, Put};
use crate::counts::{Counters, Counts};
#[cfg(any(test, feature = "faults"))]
use crate::faults::Faults;
use crate::folder::Folder;
use crate::limits::Tries;
use crate::read::{Read, Target};
use crate::s3::{S3, S3Settings};
use crate::upload::{PART_BYTES, PARTS_OF_A_CALL, PartPool, PartsInMemory};
use crate::{Error, Limits, ObjectName, Result, Stop, read, upload};

/// Longest object, bytes: 10,000 parts, 78 GiB.
pub const MOST_OBJECT_BYTES: u64 = 10_000 * PART_BYTES as u64;

/// Most bytes that [`Objects::put`], [`Objects::get`] and [`Objects::get_range`] move: 256 MiB. Longer objects go through
/// files.
pub const MOST_READ_BYTES: u64 = 256 << 20;

/// A store of immutable objects. Cheap to clone; clones share their limits and buffers.
#[derive(Debug, Clone)]
pub struct Objects {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) limits: Limits,
    pub(crate) parts: Arc<PartPool>,
    counters: Counters,
    location: String,
}

impl Objects {
    /// Opens a folder, and makes it when there is none. Unfinished objects of processes that no longer run are removed. Several
    /// processes can use one folder.
    ///
    /// # Errors
    /// [`Error::Io`] when the folder cannot be made or read.
    pub fn folder(path: &Path) -> Result<Objects> {
        let location = format!("folder {}", path.display());
        Ok(Objects::over(Arc::new(Folder::open(path)?), Limits::default(), location))
    }

    /// Uses a bucket of an S3 store. Nothing is asked of the store yet: [`Objects::check`] does.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a setting that breaks a rule; [`Error::Denied`] when the credentials file cannot be read.
    pub fn s3(settings: S3Settings) -> Result<Objects> {
        let location = settings.location();
        Ok(Objects::over(Arc::new(S3::open(settings)?), Limits::default(), location))
    }

    /// The same store behind faults, for tests.
    #[cfg(any(test, feature = "faults"))]
    #[must_use]
    pub fn faulty(inner: &Objects, faults: Faults) -> Objects {
        let backend = Arc::new(faults.around(Arc::clone(&inner.inner.backend)));
        Objects::over(backend, inner.inner.limits, format!("{} with faults", inner.inner.location))
    }

    pub(crate) fn over(backend: Arc<dyn Backend>, limits: Limits, location: String) -> Objects {
        Objects {
            inner: Arc::new(Inner { backend, limits, parts: Arc::default(), counters: Counters::default(), location }),
        }
    }

    /// The same store with other limits, and with buffers of its own.
    #[must_use]
    pub fn with_limits(&self, limits: Limits) -> Objects {
        Objects::over(Arc::clone(&self.inner.backend), limits, self.inner.location.clone())
    }

    /// Where the objects are, for logs: the folder, or bucket and endpoint.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.inner.location
    }

    /// What was moved so far, of this value and its clones.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.inner.counters.now()
    }

    /// Parts of uploads in memory, of this value and its clones.
    #[must_use]
    pub fn parts_in_memory(&self) -> PartsInMemory {
        self.inner.parts.count()
    }

    /// Stores an object of at most [`MOST_READ_BYTES`]. When it returns, the object is durable and visible. An object that exists
    /// with the same length is left as it is.
    ///
    /// # Errors
    /// [`Error::Exists`] when the name is taken by an object of another length; those of the store.
    pub async fn put(&self, name: &ObjectName, data: Bytes) -> Result<()> {
        let bytes = data.len() as u64;
        if bytes > MOST_READ_BYTES {
            return Err(Error::Invalid(format!(
                "object {name} of {bytes} bytes cannot be stored from memory: at most {MOST_READ_BYTES} can"
            )));
        }
        let outcome = self.inner.limits.within(bytes, self.inner.put(name, data)).await;
        self.inner.counters.uploaded(outcome, |()| bytes)
    }

    /// Stores the content of a file, from its first byte to its present length. The file must not change meanwhile. A file longer
    /// than [`PART_BYTES`] is sent in parts, of which at most [`PARTS_OF_A_CALL`] are in memory; when the call fails, is stopped
    /// or its future is dropped, they are discarded. Otherwise like [`Objects::put`]. Returns the length.
    ///
    /// # Errors
    /// [`Error::Exists`] when the name is taken by an object of another length; [`Error::Stopped`]; [`Error::Io`] when the file
    /// cannot be read or became shorter; [`Error::Invalid`] when it is longer than [`MOST_OBJECT_BYTES`]; those of the store.
    pub async fn put_file(&self, name: &ObjectName, file: File, stop: &Stop) -> Result<u64> {
        self.inner.counters.uploaded(upload::put_file(&self.inner, name, file, stop).await, |bytes| *bytes)
    }

    /// Reads an object of at most `limit` bytes, and at most [`MOST_READ_BYTES`].
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::TooLong`]; those of the store.
    pub async fn get(&self, name: &ObjectName, limit: u64) -> Result<Bytes> {
        let limit = limit.min(MOST_READ_BYTES);
        let read = Read { name, range: None, exactly: None, limit };
        let outcome = self.inner.limits.within(limit, read.run(&self.inner, Target::memory())).await;
        self.inner.counters.downloaded(outcome, |read| read.len() as u64)
    }

    /// Reads exactly the bytes of a range, which is at most [`MOST_READ_BYTES`] long. An empty range reads nothing, and does not
    /// ask whether the object exists.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Damaged`] when the object ends before the range; those of the store.
    pub async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes> {
        let bytes = range.end.checked_sub(range.start);
        let Some(bytes) = bytes.filter(|bytes| *bytes <= MOST_READ_BYTES) else {
            return Err(Error::Invalid(format!(
                "bytes {} to {} of object {name} are no range of at most {MOST_READ_BYTES} bytes",
                range.start, range.end
            )));
        };
        if bytes == 0 {
            return Ok(Bytes::new());
        }
        let read = Read { name, range: Some(range), exactly: None, limit: MOST_READ_BYTES };
        let outcome = self.inner.limits.within(bytes, read.run(&self.inner, Target::memory())).await;
        self.inner.counters.downloaded(outcome, |read| read.len() as u64)
    }

    /// Writes an object into a file, from its offset 0. Long ones come in several ranges at a time, and a broken answer is continued
    /// where it broke. When it returns, the file is
    /// `expected_bytes` long, and not flushed. After an error or a dropped future, its content is undefined.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Damaged`] when the object has another length; [`Error::Io`] or [`Error::Full`] when the file
    /// cannot be written; those of the store.
    pub async fn download(&self, name: &ObjectName, file: &File, expected_bytes: u64) -> Result<()> {
        let download = read::download(&self.inner, name, file, expected_bytes);
        let outcome = self.inner.limits.within(expected_bytes, download).await;
        self.inner.counters.downloaded(outcome, |()| expected_bytes)
    }

    /// Length of an object, `None` when there is none.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.inner.counters.asked(self.inner.limits.within(0, self.inner.size(name)).await)
    }

    /// Lists the objects below a folder of names: `packs` lists `packs/a` and `packs/b/c`, not `packs2`. An empty text lists all.
    /// The order is the store's. Objects stored or deleted meanwhile may be missed; the stream ends after its first error. Files
    /// and keys that are no [`ObjectName`] are left out.
    ///
    /// Must be called in a tokio runtime.
    pub fn list(&self, folder: &str) -> BoxStream<'static, Result<Entry>> {
        let below = match folder {
            "" => None,
            folder => match ObjectName::parse(folder) {
                Ok(name) => Some(name),
                Err(error) => return stream::iter([Err(Error::Invalid(error.to_string()))]).boxed(),
            },
        };
        let (pages, limits) = (self.inner.backend.list(below.as_ref()), self.inner.limits);
        let pages = stream::try_unfold(pages, move |mut pages| async move {
            let mut tries = Tries::new(limits);
            loop {
                match limits.request(0, pages.next()).await {
                    Ok(page) => return Ok(page.map(|page| (stream::iter(page.into_iter().map(Ok)), pages))),
                    Err(error) => tries.pause("list", error).await?,
                }
            }
        });
        pages.try_flatten().boxed()
    }

    /// Deletes an object; nothing when there is none.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn delete(&self, name: &ObjectName) -> Result<()> {
        let inner = &self.inner;
        let outcome = inner.limits.within(0, inner.limits.retry("delete", 0, || inner.backend.delete(name))).await;
        inner.counters.asked(outcome)
    }

    /// Puts, reads and deletes a small object under `check/`: the store can be reached, and the credentials allow what is needed.
    ///
    /// # Errors
    /// The first failure.
    pub async fn check(&self) -> Result<()> {
        let id = Uuid::new_v4().as_simple().to_string();
        let name = ObjectName::parse(&format!("check/{id}")).map_err(|error| Error::Invalid(error.to_string()))?;
        self.put(&name, Bytes::from(id.clone())).await?;
        let read = self.get(&name, 64).await;
        // Also when it cannot be read: nothing remains.
        let deleted = self.delete(&name).await;
        if read? != id.as_bytes() {
            return Err(Error::damaged(&name, "the store returned other bytes than were put"));
        }
        deleted
    }
}

impl Inner {
    /// Puts an object, with retries.
    pub(crate) async fn put(&self, name: &ObjectName, data: Bytes) -> Result<()> {
        let bytes = data.len() as u64;
        let put = || async {
            match self.backend.put(name, data.clone()).await? {
                Put::Stored => Ok(()),
                Put::Exists => self.taken(name, bytes).await,
            }
        };
        self.limits.retry("put", bytes, put).await
    }

    /// Length of an object, with retries.
    pub(crate) async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.limits.retry("size", 0, || self.backend.size(name)).await
    }

    /// The outcome of a put of a name that is taken.
    pub(crate) async fn taken(&self, name: &ObjectName, offered: u64) -> Result<()> {
        match self.backend.size(name).await? {
            Some(stored) if stored == offered => Ok(()),
            Some(stored) => Err(Error::Exists { name: name.clone(), stored, offered }),
            None => {
                Err(Error::unavailable(format!("{name} was stored by another caller and deleted at the same time")))
            }
        }
    }
}

const _: () = assert!(PARTS_OF_A_CALL > 0 && MOST_READ_BYTES < MOST_OBJECT_BYTES);
