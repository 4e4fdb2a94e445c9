//! Faults around a store, for tests: a seeded plan decides for each request.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};

use crate::backend::{Backend, Pages, Put, Reading, Upload};
use crate::{Error, ObjectName, Result};

/// The faults of a store. Clones share their count, so that a test can keep one. Without any call below there is none.
///
/// ```text
///   request n ──hash(seed, n)──> delayed? ──> 503? ──> asked of the store ──> answer lost? ──> body cut in half?
/// ```
#[derive(Debug, Clone, Default)]
pub struct Faults {
    seed: u64,
    unavailable: Chance,
    lost: Chance,
    cut: Chance,
    delayed: Chance,
    delay: Duration,
    fail_after: Option<u64>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    requests: AtomicU64,
    faults: AtomicU64,
    down: AtomicBool,
    healed: AtomicBool,
}

/// Requests of a hundred.
#[derive(Debug, Clone, Copy, Default)]
struct Chance(u64);

/// What happens to one request.
#[derive(Debug, Clone, Copy)]
struct Plan {
    delayed: bool,
    unavailable: bool,
    lost: bool,
    cut: bool,
}

impl Faults {
    /// A plan without faults yet. Equal seeds give equal plans for an equal sequence of requests.
    #[must_use]
    pub fn new(seed: u64) -> Faults {
        Faults { seed, ..Faults::default() }
    }

    /// Answers this many requests of a hundred with 503, without asking the store.
    #[must_use]
    pub fn unavailable(self, percent: u64) -> Faults {
        Faults { unavailable: Chance(percent), ..self }
    }

    /// Carries out this many requests of a hundred and loses the answer.
    #[must_use]
    pub fn lost_answers(self, percent: u64) -> Faults {
        Faults { lost: Chance(percent), ..self }
    }

    /// Cuts this many of a hundred bodies in half.
    #[must_use]
    pub fn cut_bodies(self, percent: u64) -> Faults {
        Faults { cut: Chance(percent), ..self }
    }

    /// Delays this many requests of a hundred.
    #[must_use]
    pub fn delays(self, percent: u64, delay: Duration) -> Faults {
        Faults { delayed: Chance(percent), delay, ..self }
    }

    /// Answers every request after the first `requests` with 503.
    #[must_use]
    pub fn fail_after(self, requests: u64) -> Faults {
        Faults { fail_after: Some(requests), ..self }
    }

    /// Answers every request with 503, until it is called with `false`.
    pub fn set_down(&self, down: bool) {
        self.shared.down.store(down, Ordering::Relaxed);
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.shared.healed.store(true, Ordering::Relaxed);
    }

    /// Requests so far, with those that failed.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Faults so far, without delays.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::Relaxed)
    }

    pub(crate) fn around(self, backend: Arc<dyn Backend>) -> Faulty {
        Faulty { backend, faults: self }
    }

    /// The plan of the next request.
    fn next(&self) -> Plan {
        let number = self.shared.requests.fetch_add(1, Ordering::Relaxed);
        if self.shared.healed.load(Ordering::Relaxed) {
            return Plan { delayed: false, unavailable: false, lost: false, cut: false };
        }
        let happens = |which: u64, chance: Chance| mix(self.seed ^ mix(number * 4 + which)) % 100 < chance.0;
        let down = self.shared.down.load(Ordering::Relaxed) || self.fail_after.is_some_and(|after| number >= after);
        Plan {
            delayed: happens(0, self.delayed),
            unavailable: down || happens(1, self.unavailable),
            lost: happens(2, self.lost),
            cut: happens(3, self.cut),
        }
    }

    /// Lets a request happen to a plan's extent.
    async fn run<T>(&self, request: impl Future<Output = Result<T>>) -> Result<(T, Plan)> {
        let plan = self.next();
        if plan.delayed {
            tokio::time::sleep(self.delay).await;
        }
        if plan.unavailable {
            return Err(self.fault("HTTP status 503, SlowDown"));
        }
        let answer = request.await?;
        if plan.lost {
            return Err(self.fault("the answer broke: connection reset"));
        }
        Ok((answer, plan))
    }

    fn fault(&self, what: &str) -> Error {
        self.shared.faults.fetch_add(1, Ordering::Relaxed);
        Error::unavailable(what)
    }
}

/// Spreads the bits of a number (SplitMix64).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A store with faults.
pub(crate) struct Faulty {
    backend: Arc<dyn Backend>,
    faults: Faults,
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faulty").field("backend", &self.backend).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for Faulty {
    async fn put(&self, name: &ObjectName, data: Bytes) -> Result<Put> {
        Ok(self.faults.run(self.backend.put(name, data)).await?.0)
    }

    async fn begin(&self, name: &ObjectName) -> Result<Box<dyn Upload>> {
        let (upload, _) = self.faults.run(self.backend.begin(name)).await?;
        Ok(Box::new(FaultyUpload { upload, faults: self.faults.clone() }))
    }

    async fn get(&self, name: &ObjectName, range: Option<Range<u64>>) -> Result<Reading> {
        let asked = range.as_ref().map(|range| range.end.saturating_sub(range.start));
        let (reading, plan) = self.faults.run(self.backend.get(name, range)).await?;
        if !plan.cut {
            return Ok(reading);
        }
        let half = asked.unwrap_or(reading.object_bytes) / 2;
        let faults = self.faults.clone();
        let body = stream::unfold((reading.body, half, false), move |(mut body, left, ended)| {
            let faults = faults.clone();
            async move {
                if ended {
                    return None;
                }
                if left == 0 {
                    return Some((Err(faults.fault("the answer broke: connection reset")), (body, 0, true)));
                }
                let item = body.next().await?.map(|bytes| {
                    let most = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes.slice(..most)
                });
                let left = left - item.as_ref().map_or(0, |bytes| bytes.len() as u64);
                Some((item, (body, left, false)))
            }
        });
        Ok(Reading { body: body.boxed(), ..reading })
    }

    async fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        Ok(self.faults.run(self.backend.size(name)).await?.0)
    }

    async fn delete(&self, name: &ObjectName) -> Result<()> {
        self.faults.run(self.backend.delete(name)).await.map(drop)
    }

    fn list(&self, folder: Option<&ObjectName>) -> Box<dyn Pages> {
        Box::new(FaultyPages { pages: self.backend.list(folder), faults: self.faults.clone() })
    }
}

#[derive(Debug)]
struct FaultyUpload {
    upload: Box<dyn Upload>,
    faults: Faults,
}

#[async_trait]
impl Upload for FaultyUpload {
    async fn part(&self, index: usize, data: Bytes) -> Result<()> {
        self.faults.run(self.upload.part(index, data)).await.map(drop)
    }

    async fn complete(&self) -> Result<Put> {
        Ok(self.faults.run(self.upload.complete()).await?.0)
    }

    async fn abort(&self) -> Result<()> {
        self.faults.run(self.upload.abort()).await.map(drop)
    }
}

struct FaultyPages {
    pages: Box<dyn Pages>,
    faults: Faults,
}

#[async_trait]
impl Pages for FaultyPages {
    async fn next(&mut self) -> Result<Option<Vec<crate::Entry>>> {
        // A page whose answer is lost would be skipped by the next call: only what happens before it is asked for.
        let faults = Faults { lost: Chance(0), ..self.faults.clone() };
        Ok(faults.run(self.pages.next()).await?.0)
    }
}
