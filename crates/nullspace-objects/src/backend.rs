//! What a store can do: single requests, without retries.

use std::fmt;
use std::ops::Range;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

use crate::{ObjectName, Result};

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: ObjectName,
    /// Its length.
    pub bytes: u64,
    /// The time at which it was stored, by the store's clock.
    pub modified: SystemTime,
}

/// The outcome of a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// The object is stored and durable.
    Stored,
    /// The name is taken. The stored object is durable and was not changed.
    Exists,
}

/// An answer whose body is still to be read.
pub(crate) struct Reading {
    /// Length of the whole object, also when a range was asked for.
    pub(crate) object_bytes: u64,
    /// The store's mark of this version of the object.
    pub(crate) mark: Option<String>,
    /// The body. It ends early, or with an error, when the answer breaks.
    pub(crate) body: BoxStream<'static, Result<Bytes>>,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").field("object_bytes", &self.object_bytes).finish_non_exhaustive()
    }
}

/// A store. Each method is one try; [`Objects`](crate::Objects) repeats what failed, bounds it in time and checks lengths.
#[async_trait]
pub(crate) trait Backend: fmt::Debug + Send + Sync {
    /// Stores a whole object, never in place of another one.
    async fn put(&self, name: &ObjectName, data: Bytes) -> Result<Put>;

    /// Starts an object that comes in parts.
    async fn begin(&self, name: &ObjectName) -> Result<Box<dyn Upload>>;

    /// Opens an object or a range of it. The range is not empty.
    async fn get(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Reading>;

    /// Length of an object, `None` when there is none.
    async fn size(&self, name: &ObjectName) -> Result<Option<u64>>;

    /// Removes an object; nothing when there is none.
    async fn delete(&self, name: &ObjectName) -> Result<()>;

    /// All objects below a folder, or all when it is `None`, in no particular order.
    fn list(&self, folder: Option<&ObjectName>) -> Box<dyn Pages>;
}

/// A listing under way.
#[async_trait]
pub(crate) trait Pages: Send {
    /// Some more entries, `None` after the last. After an error, or when its future was dropped, the call can be repeated.
    async fn next(&mut self) -> Result<Option<Vec<Entry>>>;
}

/// An object that comes in parts. Invisible until it is complete.
#[async_trait]
pub(crate) trait Upload: fmt::Debug + Send + Sync {
    /// Takes part `index`. All parts but the last have [`PART_BYTES`](crate::PART_BYTES). Repeatable, in any order and
    /// concurrently.
    async fn part(&self, index: usize, data: Bytes) -> Result<()>;

    /// Makes the object of the parts visible. [`Error::NotFound`](crate::Error::NotFound): there is no such upload, because
    /// an earlier call completed or aborted it.
    async fn complete(&self) -> Result<Put>;

    /// Discards the parts.
    async fn abort(&self) -> Result<()>;
}
