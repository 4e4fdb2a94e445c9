//! Concurrency limits: requests and WebSockets of one client address, of one sandbox, and to all sandboxes of one tenant.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nullspace_types::{SandboxId, TenantId};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Counted {
    Client(IpAddr),
    Tenant(TenantId),
    Sandbox(SandboxId),
    Sockets(SandboxId),
}

/// The counters.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<HashMap<Counted, usize>>);

/// One place. Dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Place {
    places: Arc<Places>,
    counted: Counted,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, HashMap<Counted, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nobody has a place.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn take(self: &Arc<Self>, counted: Counted, most: usize) -> Option<Place> {
        let mut counts = self.lock();
        let count = counts.get(&counted).copied().unwrap_or(0);
        if count >= most {
            return None;
        }
        counts.insert(counted, count + 1);
        Some(Place { places: Arc::clone(self), counted })
    }

    /// Takes a place of a client's address; `None` when it has as many as it may.
    pub(crate) fn client(self: &Arc<Self>, address: IpAddr, most: usize) -> Option<Place> {
        self.take(Counted::Client(network(address)), most)
    }

    /// Takes a place of a tenant's sandboxes.
    pub(crate) fn tenant(self: &Arc<Self>, tenant: TenantId, most: usize) -> Option<Place> {
        self.take(Counted::Tenant(tenant), most)
    }

    /// Takes a place of a sandbox.
    pub(crate) fn sandbox(self: &Arc<Self>, sandbox: SandboxId, most: usize) -> Option<Place> {
        self.take(Counted::Sandbox(sandbox), most)
    }

    /// Takes a place of a sandbox's WebSockets.
    pub(crate) fn socket(self: &Arc<Self>, sandbox: SandboxId, most: usize) -> Option<Place> {
        self.take(Counted::Sockets(sandbox), most)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.lock();
        match counts.get_mut(&self.counted) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                counts.remove(&self.counted);
            }
        }
    }
}

/// The network of an address: addresses that one user can have in large numbers count as one.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back_and_counted_by_network() {
        let places = Arc::new(Places::default());
        let one = places.client("2001:db8::1".parse().unwrap(), 2).unwrap();
        let two = places.client("2001:db8::2".parse().unwrap(), 2).unwrap();
        assert!(places.client("2001:db8::3".parse().unwrap(), 2).is_none());
        assert!(places.client("2001:db8:0:1::3".parse().unwrap(), 2).is_some());
        let mapped = places.client("::ffff:10.0.0.1".parse().unwrap(), 1).unwrap();
        assert!(places.client("10.0.0.1".parse().unwrap(), 1).is_none());
        drop((one, two, mapped));
        assert!(places.is_empty());
        let sandbox = SandboxId::new();
        let held = (places.sandbox(sandbox, 1), places.socket(sandbox, 1));
        assert!(held.0.is_some() && held.1.is_some());
        assert!(places.sandbox(sandbox, 1).is_none() && places.sandbox(SandboxId::new(), 1).is_some());
        let tenant = TenantId::new();
        let _of_tenant = places.tenant(tenant, 1).unwrap();
        assert!(places.tenant(tenant, 1).is_none() && places.tenant(TenantId::new(), 1).is_some());
    }
}
