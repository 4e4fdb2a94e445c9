//! Reads that go on where they broke.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};

use crate::folder::blocking;
use crate::limits::Tries;
use crate::objects::Inner;
use crate::{Error, ObjectName, PART_BYTES, Result};

/// Length of the ranges that a long download consists of: that of parts, which stores read best.
const RANGE_BYTES: u64 = PART_BYTES as u64;
/// Ranges of one download that are read at the same time.
const RANGES_AT_ONCE: usize = 4;
/// Bytes that are gathered before they are written into a file.
const WRITE_BYTES: usize = 1 << 20;

/// One read of an object.
#[derive(Debug, Clone)]
pub(crate) struct Read<'a> {
    pub(crate) name: &'a ObjectName,
    /// The bytes that are read; all when it is `None`.
    pub(crate) range: Option<Range<u64>>,
    /// The length that the object must have.
    pub(crate) exactly: Option<u64>,
    /// Longest object that is read whole.
    pub(crate) limit: u64,
}

/// Writes an object of `bytes` into a file: several ranges at a time when it is long.
pub(crate) async fn download(inner: &Inner, name: &ObjectName, file: &File, bytes: u64) -> Result<()> {
    let file =
        file.try_clone().map_err(|source| Error::Io { what: "open a file to download into".to_owned(), source })?;
    let file = Arc::new(file);
    let target = |at| Target::File { file: Arc::clone(&file), at, gathered: BytesMut::new() };
    if bytes <= RANGE_BYTES {
        let read = Read { name, range: None, exactly: Some(bytes), limit: u64::MAX };
        read.run(inner, target(0)).await?;
    } else {
        let ranges = (0..bytes.div_ceil(RANGE_BYTES)).map(|index| {
            let start = index * RANGE_BYTES;
            let range = start..bytes.min(start + RANGE_BYTES);
            let (read, target) =
                (Read { name, range: Some(range), exactly: Some(bytes), limit: u64::MAX }, target(start));
            async move { read.run(inner, target).await.map(drop) }
        });
        stream::iter(ranges).buffer_unordered(RANGES_AT_ONCE).try_collect::<()>().await?;
    }
    blocking(move || file.set_len(bytes).map_err(write_error)).await
}

/// What is known of a read under way.
struct Progress {
    at: u64,
    /// Where the read ends, once the object's length is known.
    end: Option<u64>,
    mark: Option<String>,
}

impl Read<'_> {
    /// Reads all bytes into a target.
    pub(crate) async fn run(&self, inner: &Inner, mut target: Target) -> Result<Bytes> {
        let mut progress = Progress {
            at: self.range.as_ref().map_or(0, |range| range.start),
            end: self.range.as_ref().map(|range| range.end),
            mark: None,
        };
        let mut tries = Tries::new(inner.limits);
        loop {
            let before = progress.at;
            match self.attempt(inner, &mut progress, &mut target).await {
                Ok(()) => return target.finish().await,
                Err(error) => {
                    if progress.at > before {
                        tries.renew();
                    }
                    tries.pause("read", error).await?;
                }
            }
        }
    }

    /// One request, from where the last one broke.
    async fn attempt(&self, inner: &Inner, progress: &mut Progress, target: &mut Target) -> Result<()> {
        let range = match progress.end {
            // The last byte came, and then the answer broke.
            Some(end) if progress.at == end && progress.at > 0 => return Ok(()),
            Some(end) if self.range.is_some() || progress.at > 0 => Some(progress.at..end),
            _ => None,
        };
        let mut reading = inner.limits.request(0, inner.backend.get(self.name, range)).await?;
        let end = self.judge(reading.object_bytes)?;
        if *progress.end.get_or_insert(end) != end || progress.mark.is_some() && progress.mark != reading.mark {
            return Err(Error::damaged(self.name, "it changed while it was read"));
        }
        progress.mark = reading.mark.take();
        while progress.at < end {
            let next = tokio::time::timeout(inner.limits.idle, reading.body.next()).await;
            let Ok(next) = next else {
                return Err(Error::unavailable(format!("no data for {} s", inner.limits.idle.as_secs())));
            };
            let Some(bytes) = next.transpose()? else {
                return Err(Error::unavailable(format!("the answer ended {} bytes early", end - progress.at)));
            };
            if bytes.len() as u64 > end - progress.at {
                return Err(Error::damaged(self.name, "the store sent more bytes than it announced"));
            }
            progress.at += bytes.len() as u64;
            target.write(bytes).await?;
        }
        Ok(())
    }

    /// Where the read ends in an object of this length.
    fn judge(&self, object_bytes: u64) -> Result<u64> {
        match (&self.range, self.exactly) {
            (_, Some(exactly)) if exactly != object_bytes => {
                Err(Error::damaged(self.name, format!("it has {object_bytes} bytes instead of {exactly}")))
            }
            (Some(range), _) if range.end > object_bytes => Err(Error::damaged(
                self.name,
                format!("it has {object_bytes} bytes, and bytes {} to {} were to be read", range.start, range.end),
            )),
            (Some(range), _) => Ok(range.end),
            (None, _) if object_bytes > self.limit => {
                Err(Error::TooLong { name: self.name.clone(), bytes: object_bytes, limit: self.limit })
            }
            (None, _) => Ok(object_bytes),
        }
    }
}

/// Where the bytes of a read go. Memory grows with what arrives, not with what the store announces.
#[derive(Debug)]
pub(crate) enum Target {
    Memory(BytesMut),
    File { file: Arc<File>, at: u64, gathered: BytesMut },
}

impl Target {
    pub(crate) fn memory() -> Target {
        Target::Memory(BytesMut::new())
    }

    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        match self {
            Target::Memory(memory) => memory.extend_from_slice(&bytes),
            Target::File { gathered, .. } => {
                gathered.extend_from_slice(&bytes);
                if gathered.len() >= WRITE_BYTES {
                    self.flush().await?;
                }
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        let Target::File { file, at, gathered } = self else { return Ok(()) };
        let (file, data, offset) = (Arc::clone(file), gathered.split().freeze(), *at);
        *at += data.len() as u64;
        blocking(move || file.write_all_at(&data, offset).map_err(write_error)).await
    }

    async fn finish(mut self) -> Result<Bytes> {
        self.flush().await?;
        match self {
            Target::Memory(memory) => Ok(memory.freeze()),
            Target::File { .. } => Ok(Bytes::new()),
        }
    }
}

fn write_error(source: std::io::Error) -> Error {
    let what = "write a downloaded object";
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            Error::Full { what: format!("{what} to this host's disk: {source}") }
        }
        _ => Error::Io { what: what.to_owned(), source },
    }
}
