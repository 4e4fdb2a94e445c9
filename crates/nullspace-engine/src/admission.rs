//! Admission of machines: memory and vCPUs are counted before a machine starts, so that a host that is full says so
//! (`capacity_exceeded`) instead of killing somebody's machine for want of memory.

use std::sync::{Arc, Mutex};

/// What this host may give to machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Guest memory of all machines together, MiB.
    pub memory_mib: u64,
    /// Virtual CPUs of all machines together.
    pub vcpus: u64,
}

/// Counts what machines hold. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission {
    limit: Capacity,
    used: Arc<Mutex<Capacity>>,
}

/// What one machine holds; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    held: Capacity,
    used: Arc<Mutex<Capacity>>,
}

/// The host is full: what was asked and what is free.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "this host has no room for a machine of {asked_memory_mib} MiB and {asked_vcpus} vCPUs: {free_memory_mib} MiB and \
     {free_vcpus} vCPUs are free"
)]
pub struct Full {
    /// MiB asked for.
    pub asked_memory_mib: u64,
    /// vCPUs asked for.
    pub asked_vcpus: u64,
    /// MiB free now.
    pub free_memory_mib: u64,
    /// vCPUs free now.
    pub free_vcpus: u64,
}

impl Admission {
    /// Nothing is held yet.
    pub fn new(limit: Capacity) -> Self {
        Admission { limit, used: Arc::new(Mutex::new(Capacity { memory_mib: 0, vcpus: 0 })) }
    }

    /// What the host may give in all.
    pub fn limit(&self) -> Capacity {
        self.limit
    }

    /// True when a machine of this size can never start here, however idle the host.
    pub fn never_fits(&self, memory_mib: u32, vcpus: u32) -> bool {
        u64::from(memory_mib) > self.limit.memory_mib || u64::from(vcpus) > self.limit.vcpus
    }

    /// Takes room for a machine, or says what is free.
    pub fn admit(&self, memory_mib: u32, vcpus: u32) -> Result<Permit, Full> {
        let held = Capacity { memory_mib: memory_mib.into(), vcpus: vcpus.into() };
        let mut used = lock(&self.used);
        let free = Capacity {
            memory_mib: self.limit.memory_mib.saturating_sub(used.memory_mib),
            vcpus: self.limit.vcpus.saturating_sub(used.vcpus),
        };
        if held.memory_mib > free.memory_mib || held.vcpus > free.vcpus {
            return Err(Full {
                asked_memory_mib: held.memory_mib,
                asked_vcpus: held.vcpus,
                free_memory_mib: free.memory_mib,
                free_vcpus: free.vcpus,
            });
        }
        used.memory_mib += held.memory_mib;
        used.vcpus += held.vcpus;
        Ok(Permit { held, used: Arc::clone(&self.used) })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut used = lock(&self.used);
        used.memory_mib = used.memory_mib.saturating_sub(self.held.memory_mib);
        used.vcpus = used.vcpus.saturating_sub(self.held.vcpus);
    }
}

/// The counters stay right after a panic elsewhere: each change is one statement.
fn lock(used: &Mutex<Capacity>) -> std::sync::MutexGuard<'_, Capacity> {
    used.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_host_refuses_and_a_dropped_permit_makes_room() {
        let admission = Admission::new(Capacity { memory_mib: 1024, vcpus: 4 });
        let first = admission.admit(512, 1).unwrap();
        let _second = admission.admit(512, 1).unwrap();
        let full = admission.admit(1, 1).unwrap_err();
        assert_eq!((full.free_memory_mib, full.free_vcpus), (0, 2));
        drop(first);
        admission.admit(512, 2).unwrap();
    }

    #[test]
    fn vcpus_are_counted_apart_from_memory() {
        let admission = Admission::new(Capacity { memory_mib: 10_000, vcpus: 2 });
        let _held = admission.admit(1, 2).unwrap();
        assert!(admission.admit(1, 1).is_err());
        assert!(admission.never_fits(1, 3) && !admission.never_fits(10_000, 2));
    }
}
