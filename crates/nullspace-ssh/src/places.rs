//! Counts of connections: of the server, of an address before authentication, of a sandbox and a tenant after it.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nullspace_types::{SandboxId, TenantId};

use crate::settings::SshLimits;

/// The connections of one server.
#[derive(Debug)]
pub(crate) struct Places {
    limits: SshLimits,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    unauthenticated: usize,
    addresses: HashMap<IpAddr, usize>,
    sandboxes: HashMap<SandboxId, usize>,
    tenants: HashMap<TenantId, usize>,
}

/// A connection's place. Dropping it releases it.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    counted: Counted,
}

#[derive(Debug, Clone, Copy)]
enum Counted {
    Address(IpAddr),
    Sandbox(SandboxId, TenantId),
}

/// The network of an address: addresses that one user can have in large numbers count as one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Counts one more, if that is within the limit.
fn count<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K, most: usize) -> bool {
    let known = counts.get(&key).copied().unwrap_or(0);
    let fits = known < most;
    if fits {
        counts.insert(key, known + 1);
    }
    fits
}

fn uncount<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl Places {
    pub(crate) fn new(limits: SshLimits) -> Arc<Self> {
        Arc::new(Self { limits, open: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a new connection; `None` when there is none.
    pub(crate) fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let (address, mut open) = (network(address), self.lock());
        let (limits, open) = (&self.limits, &mut *open);
        if open.all >= limits.connections || open.unauthenticated >= limits.unauthenticated {
            return None;
        }
        if !count(&mut open.addresses, address, limits.unauthenticated_per_address) {
            return None;
        }
        open.all += 1;
        open.unauthenticated += 1;
        Some(Place { places: Arc::clone(self), counted: Counted::Address(address) })
    }
}

impl Place {
    /// Counts an authenticated connection for its sandbox and tenant, no longer for its address. False when one of them has too many.
    pub(crate) fn authenticate(&mut self, sandbox: SandboxId, tenant: TenantId) -> bool {
        let Counted::Address(address) = self.counted else { return false };
        let (limits, mut open) = (&self.places.limits, self.places.lock());
        let open = &mut *open;
        if !count(&mut open.tenants, tenant, limits.per_tenant) {
            return false;
        }
        if !count(&mut open.sandboxes, sandbox, limits.per_sandbox) {
            uncount(&mut open.tenants, &tenant);
            return false;
        }
        uncount(&mut open.addresses, &address);
        open.unauthenticated = open.unauthenticated.saturating_sub(1);
        self.counted = Counted::Sandbox(sandbox, tenant);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.places.lock();
        let open = &mut *open;
        open.all = open.all.saturating_sub(1);
        match self.counted {
            Counted::Address(address) => {
                open.unauthenticated = open.unauthenticated.saturating_sub(1);
                uncount(&mut open.addresses, &address);
            }
            Counted::Sandbox(sandbox, tenant) => {
                uncount(&mut open.sandboxes, &sandbox);
                uncount(&mut open.tenants, &tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Arc<Places> {
        let limits = SshLimits {
            connections: 4,
            unauthenticated: 3,
            unauthenticated_per_address: 2,
            per_sandbox: 1,
            per_tenant: 2,
            ..SshLimits::default()
        };
        Places::new(limits)
    }

    #[test]
    fn an_address_without_certificate_takes_few_places_and_gives_them_back() {
        let places = places();
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let (_first, second) = (places.enter(one).unwrap(), places.enter(one).unwrap());
        assert!(places.enter("::ffff:192.0.2.1".parse().unwrap()).is_none());
        let _other = places.enter("192.0.2.2".parse().unwrap()).unwrap();
        assert!(places.enter("192.0.2.3".parse().unwrap()).is_none(), "three are not authenticated");
        drop(second);
        assert!(places.enter(one).is_some());
    }

    #[test]
    fn addresses_of_one_network_count_as_one() {
        let places = places();
        let _held = [places.enter("2001:db8::1".parse().unwrap()), places.enter("2001:db8::2".parse().unwrap())];
        assert!(places.enter("2001:db8::3".parse().unwrap()).is_none());
        assert!(places.enter("2001:db8:0:1::1".parse().unwrap()).is_some());
    }

    #[test]
    fn an_authenticated_connection_counts_for_its_sandbox_and_tenant_alone() {
        let places = places();
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let (sandbox, tenant) = (SandboxId::new(), TenantId::new());
        let mut first = places.enter(one).unwrap();
        assert!(first.authenticate(sandbox, tenant));
        let (mut second, mut third) = (places.enter(one).unwrap(), places.enter(one).unwrap());
        assert!(!second.authenticate(sandbox, tenant), "the sandbox has one already");
        assert!(second.authenticate(SandboxId::new(), tenant));
        assert!(!third.authenticate(SandboxId::new(), tenant), "the tenant has two already");
        assert!(third.authenticate(SandboxId::new(), TenantId::new()));
        let _fourth = places.enter(one).unwrap();
        assert!(places.enter("192.0.2.2".parse().unwrap()).is_none(), "the server has four");
        drop(first);
        assert!(places.enter("192.0.2.2".parse().unwrap()).is_some());
        drop((second, third));
        let open = places.lock();
        assert!(open.sandboxes.is_empty() && open.tenants.is_empty());
    }
}
