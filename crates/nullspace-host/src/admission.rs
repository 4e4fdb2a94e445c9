//! Admission of machines: memory and vCPUs are counted before a machine starts. A full host answers `capacity_exceeded`, and
//! does not run out of memory under running machines. A tenant's quota leaves capacity for other tenants (`QUOTA_EXCEEDED`).
//!
//! A machine counts with its guest's memory, the VMM's own memory, and the VMM's buffer of translated guest code. Memory that
//! the driver holds for templates counts as used. The part of it that no machine uses is released when memory is short.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nullspace_host_interface::Capacity;
use nullspace_types::TenantId;

/// Limits of one tenant's machines on this host at a time, those of its builds included. `None`: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TenantQuota {
    /// Sandboxes that start or run.
    pub sandboxes: Option<u64>,
    /// Virtual CPUs.
    pub vcpus: Option<u64>,
    /// Memory as [`Capacity::memory_mib`] counts it, MiB.
    pub memory_mib: Option<u64>,
}

/// Memory of machines beyond their guests', as the driver counts it.
pub(crate) trait Memory: Send + Sync {
    /// Overhead of a machine of so many vCPUs, MiB.
    fn overhead_mib(&self, vcpus: u32) -> u32;
    /// Memory held for templates now, MiB.
    fn templates_mib(&self) -> u64;
    /// Releases the templates' memory that no machine uses.
    fn trim(&self);
}

/// A machine that asks for admission.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) tenant: TenantId,
    /// Memory of the guest, MiB.
    pub(crate) memory_mib: u32,
    pub(crate) vcpus: u32,
    /// True for a sandbox, false for a build.
    pub(crate) sandbox: bool,
}

/// Counts the resources of admitted machines. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Admission {
    limit: Capacity,
    quota: TenantQuota,
    memory: Arc<dyn Memory>,
    used: Arc<Mutex<Used>>,
}

#[derive(Debug, Default)]
struct Used {
    all: Capacity,
    /// Tenants with admitted machines.
    tenants: HashMap<TenantId, Share>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Share {
    sandboxes: u64,
    held: Capacity,
}

/// The resources of one admitted machine. Dropping it returns them.
#[derive(Debug)]
pub(crate) struct Permit {
    tenant: TenantId,
    share: Share,
    used: Arc<Mutex<Used>>,
}

/// The reasons for which a machine may not start now.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The host is full. Names the requested and the free amount.
    #[error(
        "this host has no room for a machine of {} MiB and {} vCPUs: {} MiB and {} vCPUs are free",
        .asked.memory_mib, .asked.vcpus, .free.memory_mib, .free.vcpus
    )]
    Full { asked: Capacity, free: Capacity },
    /// The tenant's quota is used up.
    #[error("the quota of {limit} {what} is used: {used} are in use and {asked} more are asked for; end some first")]
    Quota { what: &'static str, limit: u64, used: u64, asked: u64 },
}

impl Admission {
    /// An admission without machines.
    pub(crate) fn new(limit: Capacity, quota: TenantQuota, memory: Arc<dyn Memory>) -> Self {
        Admission { limit, quota, memory, used: Arc::default() }
    }

    /// The largest guest of so many vCPUs on a host that runs nothing else.
    pub(crate) fn largest(&self, vcpus: u32) -> Capacity {
        let within = |limit: u64, quota: Option<u64>| quota.map_or(limit, |quota| quota.min(limit));
        let overhead = u64::from(self.memory.overhead_mib(vcpus));
        Capacity {
            memory_mib: within(self.limit.memory_mib, self.quota.memory_mib).saturating_sub(overhead),
            vcpus: within(self.limit.vcpus, self.quota.vcpus),
        }
    }

    /// Admits a machine, or refuses it and names the free amount.
    pub(crate) fn admit(&self, wanted: Wanted) -> Result<Permit, Refused> {
        let asked = self.asked(wanted);
        let share = Share { sandboxes: wanted.sandbox.into(), held: asked };
        let mut used = lock(&self.used);
        self.check(&used, wanted, share)?;
        used.all.memory_mib += asked.memory_mib;
        used.all.vcpus += asked.vcpus;
        let of_tenant = used.tenants.entry(wanted.tenant).or_default();
        of_tenant.sandboxes += share.sandboxes;
        of_tenant.held.memory_mib += asked.memory_mib;
        of_tenant.held.vcpus += asked.vcpus;
        Ok(Permit { tenant: wanted.tenant, share, used: Arc::clone(&self.used) })
    }

    /// What the host lacks for a machine that its tenant's quota allows; `None`: nothing.
    pub(crate) fn lacks_for(&self, wanted: Wanted) -> Option<Capacity> {
        let share = Share { sandboxes: wanted.sandbox.into(), held: self.asked(wanted) };
        match self.check(&lock(&self.used), wanted, share) {
            Err(Refused::Full { asked, free }) => Some(Capacity {
                memory_mib: asked.memory_mib.saturating_sub(free.memory_mib),
                vcpus: asked.vcpus.saturating_sub(free.vcpus),
            }),
            _ => None,
        }
    }

    /// What a machine counts with.
    fn asked(&self, wanted: Wanted) -> Capacity {
        self.counted(wanted.memory_mib, wanted.vcpus)
    }

    /// What a machine of this size counts with.
    pub(crate) fn counted(&self, memory_mib: u32, vcpus: u32) -> Capacity {
        let overhead = self.memory.overhead_mib(vcpus);
        Capacity { memory_mib: u64::from(memory_mib).saturating_add(overhead.into()), vcpus: vcpus.into() }
    }

    /// Refuses a machine beyond its tenant's quota or the host's limit.
    fn check(&self, used: &Used, wanted: Wanted, share: Share) -> Result<(), Refused> {
        let asked = share.held;
        self.within_quota(used.tenants.get(&wanted.tenant).copied().unwrap_or_default(), share)?;
        let mut free = self.free(used.all);
        if asked.memory_mib > free.memory_mib && asked.vcpus <= free.vcpus {
            self.memory.trim();
            free = self.free(used.all);
        }
        if asked.memory_mib > free.memory_mib || asked.vcpus > free.vcpus {
            return Err(Refused::Full { asked, free });
        }
        Ok(())
    }

    fn within_quota(&self, used: Share, more: Share) -> Result<(), Refused> {
        for (what, limit, used, asked) in [
            ("sandboxes", self.quota.sandboxes, used.sandboxes, more.sandboxes),
            ("vCPUs", self.quota.vcpus, used.held.vcpus, more.held.vcpus),
            ("MiB of memory", self.quota.memory_mib, used.held.memory_mib, more.held.memory_mib),
        ] {
            if let Some(limit) = limit
                && used.saturating_add(asked) > limit
                && asked > 0
            {
                return Err(Refused::Quota { what, limit, used, asked });
            }
        }
        Ok(())
    }

    fn free(&self, used: Capacity) -> Capacity {
        Capacity {
            memory_mib: self
                .limit
                .memory_mib
                .saturating_sub(used.memory_mib)
                .saturating_sub(self.memory.templates_mib()),
            vcpus: self.limit.vcpus.saturating_sub(used.vcpus),
        }
    }

    /// Returns the resources in use, and the limits.
    pub(crate) fn usage(&self) -> (Capacity, Capacity) {
        (lock(&self.used).all, self.limit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Share { sandboxes, held } = self.share;
        let mut used = lock(&self.used);
        used.all.memory_mib = used.all.memory_mib.saturating_sub(held.memory_mib);
        used.all.vcpus = used.all.vcpus.saturating_sub(held.vcpus);
        if let Some(share) = used.tenants.get_mut(&self.tenant) {
            share.sandboxes = share.sandboxes.saturating_sub(sandboxes);
            share.held.memory_mib = share.held.memory_mib.saturating_sub(held.memory_mib);
            share.held.vcpus = share.held.vcpus.saturating_sub(held.vcpus);
            if *share == Share::default() {
                used.tenants.remove(&self.tenant);
            }
        }
    }
}

/// Locks the counters. They are right even after a panic elsewhere, because nothing between two changes can panic.
fn lock(used: &Mutex<Used>) -> MutexGuard<'_, Used> {
    used.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A driver that takes 100 MiB a machine, and holds memory of templates that it can let go.
    #[derive(Default)]
    struct Driver(AtomicU64);

    impl Memory for Driver {
        fn overhead_mib(&self, _: u32) -> u32 {
            100
        }
        fn templates_mib(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
        fn trim(&self) {
            self.0.fetch_min(50, Ordering::Relaxed);
        }
    }

    fn admission(memory_mib: u64, vcpus: u64, quota: TenantQuota) -> (Admission, Arc<Driver>) {
        let driver = Arc::new(Driver::default());
        (Admission::new(Capacity { memory_mib, vcpus }, quota, driver.clone()), driver)
    }

    fn wanted(tenant: TenantId, memory_mib: u32, vcpus: u32) -> Wanted {
        Wanted { tenant, memory_mib, vcpus, sandbox: true }
    }

    #[test]
    fn a_machine_counts_with_what_its_vmm_takes_and_gives_all_of_it_back() {
        let (admission, _) = admission(1200, 4, TenantQuota::default());
        let tenant = TenantId::new();
        let first = admission.admit(wanted(tenant, 500, 1)).unwrap();
        let _second = admission.admit(wanted(tenant, 500, 1)).unwrap();
        let full = admission.admit(wanted(tenant, 1, 1)).unwrap_err();
        let (asked, free) = (Capacity { memory_mib: 101, vcpus: 1 }, Capacity { memory_mib: 0, vcpus: 2 });
        assert_eq!(full, Refused::Full { asked, free });
        let lacks = |memory_mib, vcpus| admission.lacks_for(wanted(tenant, memory_mib, vcpus));
        assert_eq!(lacks(1, 1), Some(Capacity { memory_mib: 101, vcpus: 0 }));
        assert_eq!(lacks(1, 5), Some(Capacity { memory_mib: 101, vcpus: 3 }));
        drop(first);
        assert_eq!(lacks(500, 1), None);
        assert_eq!(admission.counted(500, 1), Capacity { memory_mib: 600, vcpus: 1 });
        admission.admit(wanted(tenant, 500, 2)).unwrap();
    }

    #[test]
    fn vcpus_are_counted_apart_from_memory() {
        let (admission, _) = admission(10_000, 2, TenantQuota::default());
        let _held = admission.admit(wanted(TenantId::new(), 1, 2)).unwrap();
        assert!(admission.admit(wanted(TenantId::new(), 1, 1)).is_err());
        assert_eq!(admission.largest(2), Capacity { memory_mib: 9_900, vcpus: 2 });
    }

    #[test]
    fn templates_memory_counts_and_what_is_not_used_makes_room() {
        let (admission, driver) = admission(1000, 9, TenantQuota::default());
        driver.0.store(700, Ordering::Relaxed);
        // 700 are held, 650 of them for nobody.
        let _held = admission.admit(wanted(TenantId::new(), 800, 1)).unwrap();
        let full = admission.admit(wanted(TenantId::new(), 1, 1)).unwrap_err();
        assert!(matches!(full, Refused::Full { free: Capacity { memory_mib: 50, vcpus: 8 }, .. }), "{full}");
    }

    #[test]
    fn a_tenant_at_its_quota_is_refused_and_others_are_not() {
        let (one, other) = (TenantId::new(), TenantId::new());
        for (quota, what) in [
            (TenantQuota { sandboxes: Some(2), ..TenantQuota::default() }, "sandboxes"),
            (TenantQuota { vcpus: Some(2), ..TenantQuota::default() }, "vCPUs"),
            (TenantQuota { memory_mib: Some(450), ..TenantQuota::default() }, "MiB of memory"),
        ] {
            let (admission, _) = admission(10_000, 64, quota);
            let first = admission.admit(wanted(one, 100, 1)).unwrap();
            let _second = admission.admit(wanted(one, 100, 1)).unwrap();
            let refused = admission.admit(wanted(one, 100, 1)).unwrap_err();
            assert!(matches!(refused, Refused::Quota { what: found, .. } if found == what), "{refused}");
            assert_eq!(admission.lacks_for(wanted(one, 100, 1)), None, "it is the tenant that has enough");
            let _others = admission.admit(wanted(other, 100, 1)).unwrap();
            drop(first);
            let _again = admission.admit(wanted(one, 100, 1)).unwrap();
            assert_eq!(lock(&admission.used).tenants.len(), 2);
        }
    }

    #[test]
    fn builds_count_in_memory_and_vcpus_and_not_as_sandboxes() {
        let quota = TenantQuota { sandboxes: Some(1), vcpus: Some(3), memory_mib: None };
        let (admission, _) = admission(10_000, 64, quota);
        let tenant = TenantId::new();
        let build = Wanted { sandbox: false, ..wanted(tenant, 100, 1) };
        let _builds = [admission.admit(build).unwrap(), admission.admit(build).unwrap()];
        let _sandbox = admission.admit(wanted(tenant, 100, 1)).unwrap();
        assert!(matches!(admission.admit(build), Err(Refused::Quota { what: "vCPUs", .. })));
        assert_eq!(admission.largest(1).vcpus, 3);
    }

    #[test]
    fn nothing_is_kept_of_tenants_that_hold_nothing() {
        let (admission, _) = admission(10_000, 64, TenantQuota::default());
        for _ in 0..100 {
            drop(admission.admit(wanted(TenantId::new(), 100, 1)).unwrap());
        }
        assert!(lock(&admission.used).tenants.is_empty());
        assert_eq!(admission.usage().0, Capacity::default());
    }
}
