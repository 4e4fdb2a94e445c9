//! Rate limits of tenants: each has a token bucket, and each request takes one token.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nullspace_service::TenantId;

/// Number of buckets above which full ones are dropped: a full bucket has no state.
const MANY: usize = 10_000;

/// A rate with bursts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestRate {
    /// Requests per second in the long run.
    pub per_second: u32,
    /// Most requests at once after a pause.
    pub burst: u32,
}

/// The buckets of all tenants.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: RequestRate,
    buckets: Mutex<HashMap<TenantId, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Limiter {
    pub(crate) fn new(rate: RequestRate) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    /// Takes a token, or returns the time until there is one.
    pub(crate) fn take(&self, tenant: TenantId, now: Instant) -> Result<(), Duration> {
        let (per_second, burst) = (f64::from(self.rate.per_second.max(1)), f64::from(self.rate.burst.max(1)));
        let filled = |bucket: &Bucket| {
            (bucket.tokens + now.saturating_duration_since(bucket.at).as_secs_f64() * per_second).min(burst)
        };
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MANY && !buckets.contains_key(&tenant) {
            buckets.retain(|_, bucket| filled(bucket) < burst);
        }
        let bucket = buckets.entry(tenant).or_insert(Bucket { tokens: burst, at: now });
        let tokens = filled(bucket);
        *bucket = Bucket { tokens, at: now };
        if tokens >= 1.0 {
            bucket.tokens = tokens - 1.0;
            Ok(())
        } else {
            Err(Duration::from_secs_f64((1.0 - tokens) / per_second))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::tenant;

    #[test]
    fn a_burst_is_let_through_and_then_the_rate_holds_for_each_tenant_by_itself() {
        let limiter = Limiter::new(RequestRate { per_second: 10, burst: 3 });
        let (a, b) = (tenant('a'), tenant('b'));
        let start = Instant::now();
        for _ in 0..3 {
            assert_eq!(limiter.take(a, start), Ok(()));
        }
        let wait = limiter.take(a, start).unwrap_err();
        assert!(wait > Duration::from_millis(99) && wait <= Duration::from_millis(101), "{wait:?}");
        assert_eq!(limiter.take(b, start), Ok(()));
        let later = start + Duration::from_millis(101);
        assert_eq!(limiter.take(a, later), Ok(()));
        assert!(limiter.take(a, later).is_err());
        // A long quiet time gives a burst, not more.
        let much_later = start + Duration::from_secs(1000);
        let let_through = (0..100).filter(|_| limiter.take(a, much_later).is_ok()).count();
        assert_eq!(let_through, 3);
    }

    #[test]
    fn tenants_that_ask_no_more_are_forgotten() {
        let limiter = Limiter::new(RequestRate { per_second: 1000, burst: 1 });
        let start = Instant::now();
        for _ in 0..MANY {
            let _ = limiter.take(TenantId::new(), start);
        }
        let _ = limiter.take(TenantId::new(), start + Duration::from_secs(1));
        assert_eq!(limiter.buckets.lock().unwrap_or_else(PoisonError::into_inner).len(), 1);
    }
}
