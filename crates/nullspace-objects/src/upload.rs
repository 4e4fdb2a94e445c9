//! Files into objects: parts with bounded memory, and their end.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::backend::{Put, Upload};
use crate::folder::blocking;
use crate::objects::{Inner, MOST_OBJECT_BYTES};
use crate::{Error, Limits, ObjectName, Result, Stop};

/// Length of a part, bytes: 8 MiB.
pub const PART_BYTES: usize = 8 << 20;
/// Most parts of one upload that are in memory.
pub const PARTS_OF_A_CALL: usize = 4;
/// Most parts of all uploads of one store that are in memory.
pub const PARTS_IN_MEMORY: usize = 16;

/// Longest wait of a failed or stopped upload for its parts to be discarded.
const ABORT_WAIT: Duration = Duration::from_secs(10);

/// Parts of uploads in memory, each of at most [`PART_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartsInMemory {
    /// Parts now.
    pub now: usize,
    /// Most parts at a time since the store was opened; never more than [`PARTS_IN_MEMORY`].
    pub most: usize,
}

/// The buffers of all uploads of one store.
#[derive(Debug)]
pub(crate) struct PartPool {
    permits: Arc<Semaphore>,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Default for PartPool {
    fn default() -> PartPool {
        let permits = Arc::new(Semaphore::new(PARTS_IN_MEMORY));
        PartPool { permits, now: AtomicUsize::new(0), most: AtomicUsize::new(0) }
    }
}

impl PartPool {
    pub(crate) fn count(&self) -> PartsInMemory {
        PartsInMemory { now: self.now.load(Ordering::Relaxed), most: self.most.load(Ordering::Relaxed) }
    }

    /// Waits until one more part may be in memory. The wait is bounded by that of the call.
    async fn reserve(self: &Arc<PartPool>) -> Result<Reserved> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| Error::unavailable("the process is shutting down"))?;
        let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
        self.most.fetch_max(now, Ordering::Relaxed);
        Ok(Reserved { pool: Arc::clone(self), _permit: permit })
    }
}

/// Memory for one part.
#[derive(Debug)]
struct Reserved {
    pool: Arc<PartPool>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.pool.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See [`Objects::put_file`](crate::Objects::put_file).
pub(crate) async fn put_file(inner: &Inner, name: &ObjectName, file: File, stop: &Stop) -> Result<u64> {
    stop.check()?;
    let (file, bytes) = blocking(move || {
        let bytes = file.metadata().map_err(|error| read_error(error, "look at"))?.len();
        Ok((Arc::new(file), bytes))
    })
    .await?;
    if bytes > MOST_OBJECT_BYTES {
        return Err(Error::Invalid(format!(
            "object {name} of {bytes} bytes is too long: at most {MOST_OBJECT_BYTES} can be stored"
        )));
    }
    if bytes <= PART_BYTES as u64 {
        let put = async {
            let (_reserved, data) = read_part(inner, &file, 0, bytes).await?;
            inner.put(name, data).await
        };
        stoppable(stop, inner.limits.within(bytes, put)).await?;
        return Ok(bytes);
    }
    // The store's own answer to a name that is taken would come after all parts.
    if let Some(stored) = stoppable(stop, inner.limits.within(0, inner.size(name))).await? {
        return if stored == bytes {
            Ok(bytes)
        } else {
            Err(Error::Exists { name: name.clone(), stored, offered: bytes })
        };
    }
    let began = inner.limits.retry("begin", 0, || inner.backend.begin(name));
    let upload = Unfinished::new(stoppable(stop, inner.limits.within(0, began)).await?.into(), inner.limits);
    let sent = async {
        stoppable(stop, send_parts(inner, &*upload.upload, &file, bytes)).await?;
        complete(inner, name, &*upload.upload, bytes).await
    };
    let outcome = inner.limits.within(bytes, sent).await;
    upload.end(outcome.is_ok()).await;
    outcome.map(|()| bytes)
}

/// Ends a future when it is stopped.
async fn stoppable<T>(stop: &Stop, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        () = stop.stopped() => Err(Error::Stopped),
        outcome = work => outcome,
    }
}

/// Sends all parts, several at a time.
async fn send_parts(inner: &Inner, upload: &dyn Upload, file: &Arc<File>, bytes: u64) -> Result<()> {
    let parts = bytes.div_ceil(PART_BYTES as u64);
    stream::iter(0..parts)
        .map(|index| async move {
            let (reserved, data) = read_part(inner, file, index, bytes).await?;
            let index = usize::try_from(index).map_err(|_| Error::Invalid("too many parts".to_owned()))?;
            inner.limits.retry("part", data.len() as u64, || upload.part(index, data.clone())).await?;
            drop(reserved);
            Ok(())
        })
        .buffer_unordered(PARTS_OF_A_CALL)
        .try_collect()
        .await
}

/// Reads part `index` of a file of `bytes`.
async fn read_part(inner: &Inner, file: &Arc<File>, index: u64, bytes: u64) -> Result<(Reserved, Bytes)> {
    let reserved = inner.parts.reserve().await?;
    let file = Arc::clone(file);
    blocking(move || {
        let offset = index * PART_BYTES as u64;
        let length = (bytes - offset).min(PART_BYTES as u64);
        let mut buffer = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut buffer, offset).map_err(|error| read_error(error, "read"))?;
        Ok((reserved, Bytes::from(buffer)))
    })
    .await
}

fn read_error(source: std::io::Error, what: &str) -> Error {
    let what = match source.kind() {
        std::io::ErrorKind::UnexpectedEof => "a file became shorter while it was stored as an object".to_owned(),
        _ => format!("{what} the file that is to be stored as an object"),
    };
    Error::Io { what, source }
}

/// Makes an upload visible. A lost answer is told from a lost upload by the object's length.
async fn complete(inner: &Inner, name: &ObjectName, upload: &dyn Upload, bytes: u64) -> Result<()> {
    let completed = || async {
        match upload.complete().await {
            Ok(Put::Stored) => Ok(()),
            Ok(Put::Exists) => inner.taken(name, bytes).await,
            Err(Error::NotFound { .. }) => match inner.backend.size(name).await? {
                Some(stored) if stored == bytes => Ok(()),
                _ => Err(Error::Damaged {
                    name: name.clone(),
                    what: "the store lost its parts: store it again".to_owned(),
                }),
            },
            Err(error) => Err(error),
        }
    };
    inner.limits.retry("complete", 0, completed).await?;
    match inner.size(name).await? {
        Some(stored) if stored == bytes => Ok(()),
        Some(stored) => Err(Error::damaged(name, format!("{bytes} bytes were stored, and the store has {stored}"))),
        None => Err(Error::damaged(name, "the store took it and does not have it")),
    }
}

/// An upload whose parts are discarded unless it ends well.
struct Unfinished {
    upload: Arc<dyn Upload>,
    limits: Limits,
    ended: bool,
}

impl Unfinished {
    fn new(upload: Arc<dyn Upload>, limits: Limits) -> Unfinished {
        Unfinished { upload, limits, ended: false }
    }

    /// Ends the upload. Discarding its parts goes on in the background where the store is slow to answer.
    async fn end(mut self, well: bool) {
        if well {
            self.ended = true;
        } else if let Some(aborting) = self.abort() {
            let _ = tokio::time::timeout(ABORT_WAIT, aborting).await;
        }
    }

    fn abort(&mut self) -> Option<JoinHandle<()>> {
        self.ended = true;
        let (upload, limits) = (Arc::clone(&self.upload), self.limits);
        // Without a runtime the process ends, and the store's own rule removes the parts.
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        Some(runtime.spawn(async move { abort(&*upload, limits).await }))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.ended {
            self.abort();
        }
    }
}

/// Discards the parts of an upload.
async fn abort(upload: &dyn Upload, limits: Limits) {
    let aborted = limits.within(0, limits.retry("abort", 0, || upload.abort())).await;
    match aborted {
        Ok(()) | Err(Error::NotFound { .. }) => {}
        Err(error) => {
            tracing::warn!(%error, "parts of an unfinished object remain in the store until its own rule removes them")
        }
    }
}
