//! A blob as a resuming stream: broken and stalled transfers continue where they stopped.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, Stream};
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};

use crate::digest::{Digest, Hasher};

use super::error::RegistryError;
use super::http::reason;
use super::repository::Repository;

/// Interruptions of one blob that are mended, however much progress was made in between.
const MAX_INTERRUPTIONS: usize = 64;
/// Progress after which the count of attempts starts anew, bytes.
const PROGRESS: u64 = 1 << 20;

/// Reads one blob. Holds at most one chunk of the connection in memory.
#[derive(Debug)]
pub struct BlobReader {
    repository: Repository,
    digest: Digest,
    size: u64,
    /// The next byte that the caller gets.
    position: u64,
    /// Only when reading from the start.
    hasher: Option<Hasher>,
    response: Option<Response>,
    /// Bytes to drop first: a server that ignores `Range` starts again at 0.
    skip: u64,
    rate: Rate,
    /// Failures since the last real progress, and in all.
    failures: usize,
    interruptions: usize,
    progress_at: u64,
    finished: bool,
}

impl Repository {
    /// A blob from `offset` on, streamed. Read from 0, its digest and size are checked before the stream ends well.
    pub fn blob(&self, digest: &Digest, size: u64, offset: u64) -> BlobReader {
        BlobReader::new(self.clone(), digest.clone(), size, offset)
    }
}

/// How much came while waiting for the network. Time the caller takes does not count.
#[derive(Debug, Default)]
struct Rate {
    waited: Duration,
    bytes: u64,
}

impl BlobReader {
    fn new(repository: Repository, digest: Digest, size: u64, offset: u64) -> BlobReader {
        let hasher = (offset == 0).then(|| digest.algorithm().hasher());
        BlobReader {
            repository,
            digest,
            size,
            position: offset,
            hasher,
            response: None,
            skip: 0,
            rate: Rate::default(),
            failures: 0,
            interruptions: 0,
            progress_at: offset,
            finished: false,
        }
    }

    /// Bytes handed out so far, counted from the blob's start.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes; `None` after the last, when size and digest have been found right.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.position >= self.size {
                return self.end().map(|()| None);
            }
            let Some(response) = self.response.as_mut() else {
                self.open().await?;
                continue;
            };
            let timeouts = self.repository.http().config.timeouts;
            let before = Instant::now();
            let chunk = tokio::time::timeout(timeouts.idle, response.chunk()).await;
            self.rate.waited = self.rate.waited.saturating_add(before.elapsed());
            let why = match chunk {
                Ok(Ok(Some(chunk))) => {
                    self.rate.bytes = self.rate.bytes.saturating_add(chunk.len() as u64);
                    if self.is_stalled() {
                        "the transfer is slower than the least rate".to_owned()
                    } else if let Some(chunk) = self.accept(chunk)? {
                        return Ok(Some(chunk));
                    } else {
                        continue;
                    }
                }
                Ok(Ok(None)) => "the connection closed early".to_owned(),
                Ok(Err(error)) => reason(error),
                Err(_) => format!("nothing came for {} s", timeouts.idle.as_secs_f32()),
            };
            self.interrupted(why).await?;
        }
    }

    /// The reader as a [`Stream`], which ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, RegistryError>> + Send {
        stream::unfold(Some(self), |reader| async move {
            let mut reader = reader?;
            match reader.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    fn what(&self) -> String {
        format!("blob {}", self.digest)
    }

    fn mismatch(&self, actual: u64) -> RegistryError {
        RegistryError::SizeMismatch { at: self.repository.at(&self.what()), expected: self.size, actual }
    }

    async fn open(&mut self) -> Result<(), RegistryError> {
        let path = format!("blobs/{}", self.digest);
        let response = self.repository.get(&path, &self.what(), None, self.position).await?;
        let left = self.size - self.position;
        let length = response.content_length();
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
            if range.and_then(range_start) != Some(self.position) {
                return Err(RegistryError::Protocol {
                    at: self.repository.at(&self.what()),
                    reason: "the registry answered another range than was asked for".to_owned(),
                });
            }
            if let Some(length) = length.filter(|&length| length != left) {
                return Err(self.mismatch(self.position.saturating_add(length)));
            }
            self.skip = 0;
        } else {
            if let Some(length) = length.filter(|&length| length != self.size) {
                return Err(self.mismatch(length));
            }
            self.skip = self.position;
        }
        self.response = Some(response);
        self.rate = Rate::default();
        Ok(())
    }

    /// Cuts off what was had before, hashes the rest. `None` if nothing is left.
    fn accept(&mut self, mut chunk: Bytes) -> Result<Option<Bytes>, RegistryError> {
        let drop = usize::try_from(self.skip).unwrap_or(usize::MAX).min(chunk.len());
        let _ = chunk.split_to(drop);
        self.skip -= drop as u64;
        if chunk.is_empty() {
            return Ok(None);
        }
        let end = self.position.saturating_add(chunk.len() as u64);
        if end > self.size {
            return Err(self.mismatch(end));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&chunk);
        }
        self.position = end;
        if end.saturating_sub(self.progress_at) >= PROGRESS {
            self.progress_at = end;
            self.failures = 0;
        }
        Ok(Some(chunk))
    }

    fn is_stalled(&mut self) -> bool {
        let timeouts = self.repository.http().config.timeouts;
        if self.rate.waited < timeouts.rate_window {
            return false;
        }
        // In milliseconds: whole seconds would let a window of less than one pass anything.
        let wanted = u128::from(timeouts.min_rate).saturating_mul(self.rate.waited.as_millis()) / 1000;
        let slow = u128::from(self.rate.bytes) < wanted;
        self.rate = Rate::default();
        slow
    }

    async fn interrupted(&mut self, reason: String) -> Result<(), RegistryError> {
        self.response = None;
        self.failures += 1;
        self.interruptions += 1;
        if self.failures >= self.repository.http().config.attempts || self.interruptions >= MAX_INTERRUPTIONS {
            let at = self.repository.at(&self.what());
            return Err(RegistryError::Interrupted { at, received: self.position, reason });
        }
        tracing::debug!(digest = %self.digest, position = self.position, reason, "blob transfer is resumed");
        self.repository.http().pause(self.failures).await;
        Ok(())
    }

    fn end(&mut self) -> Result<(), RegistryError> {
        self.response = None;
        if std::mem::replace(&mut self.finished, true) {
            return Ok(());
        }
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let actual = hasher.finish();
        if actual == self.digest {
            return Ok(());
        }
        let at = self.repository.at(&self.what());
        Err(RegistryError::DigestMismatch { at, expected: self.digest.clone(), actual })
    }
}

/// The first byte of `bytes 5-9/10`.
fn range_start(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_parse() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes */10"), None);
        assert_eq!(range_start("5-9/10"), None);
    }
}
