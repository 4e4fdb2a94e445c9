//! Memory limits of requests: of each tenant, and of all together.
//!
//! Memory that a caller can make grow is charged: JSON bodies while they arrive and are handled (with their parsed form), output
//! of commands and files that are kept for an answer, listings, large answers until they are sent, and a flat amount for each
//! follower of a log. Bodies that are streamed cost nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nullspace_service::{Exhausted, Memory, TenantId};

/// Memory limits of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufferLimits {
    /// Limit of one tenant's requests, bytes. Beyond it the answer is 429.
    pub per_tenant: usize,
    /// Limit of all requests, bytes. Beyond it the answer is 503.
    pub total: usize,
}

/// Memory in use, by tenant.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: BufferLimits,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    total: usize,
    tenants: HashMap<TenantId, usize>,
}

/// The memory of one request. Dropping it releases all of it.
#[derive(Debug)]
pub(crate) struct Room {
    budget: Arc<Budget>,
    tenant: TenantId,
    /// Changed only under the budget's lock.
    bytes: Mutex<usize>,
}

impl Budget {
    pub(crate) fn new(limits: BufferLimits) -> Arc<Self> {
        Arc::new(Self { limits, held: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The account of a new request of this tenant.
    pub(crate) fn room(self: &Arc<Self>, tenant: TenantId) -> Room {
        Room { budget: Arc::clone(self), tenant, bytes: Mutex::new(0) }
    }

    /// Memory of all requests now, bytes.
    pub(crate) fn held(&self) -> usize {
        self.lock().total
    }
}

impl Room {
    fn bytes(&self) -> MutexGuard<'_, usize> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Charges so many more bytes.
    ///
    /// # Errors
    /// [`Exhausted`] at the limit. Nothing is charged then.
    pub(crate) fn grow(&self, bytes: usize) -> Result<(), Exhausted> {
        self.take(bytes, false)
    }

    /// Charges so many more bytes, even beyond the limits: for data that already exists and is small or short-lived.
    pub(crate) fn force(&self, bytes: usize) {
        // With force it cannot fail.
        let _ = self.take(bytes, true);
    }

    fn take(&self, bytes: usize, force: bool) -> Result<(), Exhausted> {
        if bytes == 0 {
            return Ok(());
        }
        let mut own = self.bytes();
        let mut held = self.budget.lock();
        let limits = self.budget.limits;
        let tenant = held.tenants.get(&self.tenant).copied().unwrap_or(0).saturating_add(bytes);
        let total = held.total.saturating_add(bytes);
        if !force && tenant > limits.per_tenant {
            return Err(Exhausted::Tenant);
        }
        if !force && total > limits.total {
            return Err(Exhausted::Service);
        }
        held.total = total;
        held.tenants.insert(self.tenant, tenant);
        *own = own.saturating_add(bytes);
        Ok(())
    }
}

impl Memory for Room {
    fn grow(&self, bytes: usize) -> Result<(), Exhausted> {
        Room::grow(self, bytes)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let bytes = *self.bytes();
        if bytes == 0 {
            return;
        }
        let mut held = self.budget.lock();
        held.total = held.total.saturating_sub(bytes);
        if let Some(tenant) = held.tenants.get_mut(&self.tenant) {
            *tenant = tenant.saturating_sub(bytes);
            if *tenant == 0 {
                held.tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::http::StatusCode;

    use super::*;
    use crate::error::Refusal;
    use crate::tests::tenant;

    #[test]
    fn one_tenant_cannot_take_what_all_share_and_all_together_have_a_bound() {
        let budget = Budget::new(BufferLimits { per_tenant: 100, total: 150 });
        let (a, b) = (tenant('a'), tenant('b'));
        let (one, two, other) = (budget.room(a), budget.room(a), budget.room(b));
        one.grow(60).unwrap();
        two.grow(40).unwrap();
        assert_eq!(two.grow(1), Err(Exhausted::Tenant));
        other.grow(50).unwrap();
        assert_eq!(other.grow(1), Err(Exhausted::Service));
        drop(one);
        other.grow(50).unwrap();
        assert_eq!(budget.held(), 140);
        two.force(1000);
        assert_eq!(budget.held(), 1140);
        drop((two, other));
        let held = budget.lock();
        assert!(held.total == 0 && held.tenants.is_empty());
    }

    #[test]
    fn what_is_refused_says_when_to_try_again() {
        for (exhausted, status) in
            [(Exhausted::Tenant, StatusCode::TOO_MANY_REQUESTS), (Exhausted::Service, StatusCode::SERVICE_UNAVAILABLE)]
        {
            let refusal = Refusal::from(exhausted);
            assert_eq!((refusal.status, refusal.error.retry_after), (status, Some(Duration::from_secs(1))));
        }
    }
}
