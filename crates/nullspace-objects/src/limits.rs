//! Bounds in time, and retries.

use std::future::Future;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::time::Instant;

use crate::{Error, Result};

/// Bounds in time of calls, and their retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest time of one request, without the body of a read: 60 s by default, and `per_mib` for what it sends.
    pub request: Duration,
    /// Longest wait for the next bytes of a read: 30 s by default.
    pub idle: Duration,
    /// Longest time of one call with all its requests, for its first MiB: 5 minutes by default.
    pub call: Duration,
    /// More time for each further MiB: 2 s by default.
    pub per_mib: Duration,
    /// Tries of one request: 6 by default.
    pub attempts: usize,
    /// First pause between two tries: 100 ms by default. Each pause is twice the one before, with jitter.
    pub backoff: Duration,
    /// Longest pause: 10 s by default.
    pub longest_backoff: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            request: Duration::from_secs(60),
            idle: Duration::from_secs(30),
            call: Duration::from_secs(300),
            per_mib: Duration::from_secs(2),
            attempts: 6,
            backoff: Duration::from_millis(100),
            longest_backoff: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// More time for `bytes`.
    fn moving(&self, bytes: u64) -> Duration {
        self.per_mib.saturating_mul(u32::try_from(bytes >> 20).unwrap_or(u32::MAX))
    }

    /// The pauses between tries.
    fn pauses(&self) -> impl Iterator<Item = Duration> + use<> {
        ExponentialBuilder::default()
            .with_min_delay(self.backoff)
            .with_max_delay(self.longest_backoff)
            .with_max_times(self.attempts.saturating_sub(1))
            .with_jitter()
            .build()
    }

    /// Runs a call that moves `bytes` within its time.
    pub(crate) async fn within<T>(&self, bytes: u64, call: impl Future<Output = Result<T>>) -> Result<T> {
        let longest = self.call.saturating_add(self.moving(bytes));
        tokio::time::timeout(longest, call)
            .await
            .unwrap_or_else(|_| Err(Error::unavailable(format!("no result within {} s", longest.as_secs()))))
    }

    /// Runs a request that sends `bytes` within its time.
    pub(crate) async fn request<T>(&self, bytes: u64, request: impl Future<Output = Result<T>>) -> Result<T> {
        let longest = self.request.saturating_add(self.moving(bytes));
        tokio::time::timeout(longest, request)
            .await
            .unwrap_or_else(|_| Err(Error::unavailable(format!("no answer within {} s", longest.as_secs()))))
    }

    /// Runs a request that sends `bytes`, again after a pause while it fails with something transient.
    pub(crate) async fn retry<T, F>(&self, what: &str, bytes: u64, mut request: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut tries = Tries::new(*self);
        loop {
            match self.request(bytes, request()).await {
                Err(error) => tries.pause(what, error).await?,
                done => return done,
            }
        }
    }
}

/// The tries of one request, or of one read that goes on where it broke.
pub(crate) struct Tries {
    limits: Limits,
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
    tried: usize,
    began: Instant,
}

impl Tries {
    pub(crate) fn new(limits: Limits) -> Tries {
        Tries { limits, pauses: Box::new(limits.pauses()), tried: 0, began: Instant::now() }
    }

    /// Counts from the start: there was progress.
    pub(crate) fn renew(&mut self) {
        *self = Tries::new(self.limits);
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The failure, when it is not transient or was the last try.
    pub(crate) async fn pause(&mut self, what: &str, error: Error) -> Result<()> {
        self.tried += 1;
        if !error.is_transient() {
            return Err(error);
        }
        let Some(pause) = self.pauses.next() else {
            tracing::debug!(what, tries = self.tried, seconds = self.began.elapsed().as_secs(), "no further try");
            return Err(error);
        };
        tracing::debug!(what, %error, tries = self.tried, milliseconds = pause.as_millis(), "try again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tries_end() {
        let limits = Limits { attempts: 4, ..Limits::default() };
        let mut tries = 0;
        let outcome: Result<()> = limits
            .retry("test", 0, || {
                tries += 1;
                async { Err(Error::unavailable("503")) }
            })
            .await;
        assert!(matches!(outcome, Err(Error::Unavailable { .. })), "{outcome:?}");
        assert_eq!(tries, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_not_repeated() {
        let mut tries = 0;
        let outcome: Result<()> = Limits::default()
            .retry("test", 0, || {
                tries += 1;
                async { Err(Error::Invalid("no".to_owned())) }
            })
            .await;
        assert!(matches!(outcome, Err(Error::Invalid(_))), "{outcome:?}");
        assert_eq!(tries, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_answer_and_a_call_without_end_are_bounded() {
        let limits = Limits::default();
        let began = Instant::now();
        let outcome: Result<()> = limits.within(0, limits.retry("test", 0, std::future::pending)).await;
        assert!(matches!(outcome, Err(Error::Unavailable { .. })), "{outcome:?}");
        assert_eq!(began.elapsed(), limits.call);
        let began = Instant::now();
        limits.within::<()>(100 << 20, std::future::pending()).await.unwrap_err();
        assert_eq!(began.elapsed(), Duration::from_secs(300 + 200));
    }

    #[test]
    fn pauses_grow_and_have_a_limit() {
        let limits = Limits { attempts: 20, ..Limits::default() };
        let pauses: Vec<_> = limits.pauses().collect();
        assert_eq!(pauses.len(), 19);
        assert!(pauses[0] >= limits.backoff && pauses[0] <= limits.backoff * 2, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= limits.longest_backoff * 2), "{pauses:?}");
        assert!(pauses[18] >= limits.longest_backoff, "{pauses:?}");
    }
}
