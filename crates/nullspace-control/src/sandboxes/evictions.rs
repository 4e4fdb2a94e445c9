//! Evictions: idle sandboxes are paused to free capacity on a full host (`pause_when_full`).
//!
//! ```text
//!   start ──host full──> one at a time: do idle ones hold what is missing? ──no──> `capacity_exceeded`, nothing is paused
//!                            └──yes──> those that are needed ──pause──> admitted
//! ```
//! The caller's own sandboxes come first, then those of tenants that hold more memory of the host than the caller's. A tenant can
//! therefore not evict the sandboxes of one that holds less. A sandbox in use, an ephemeral one, and one of a tenant that has
//! enough evicted ones are left alone.
//!
//! An evicted sandbox keeps its timeout: it ends when it would have ended, or, with `timeout_action: hibernate`, becomes one that
//! its owner has paused. Its owner gets the event of the pause, with the reason `host_full`.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nullspace_db::SandboxStatus;
use nullspace_host_interface::{AdmittedSandbox, Capacity, Found, SandboxSpec};
use nullspace_types::{SandboxId, TenantId};

use super::pause::Cause;
use super::spec::Config;
use super::timeouts::for_tenant;
use crate::Inner;
use crate::error::Result;

/// Most sandboxes that are paused for one start.
const MOST: usize = 4;
/// Most pauses that one start tries.
const TRIES: usize = 8;
/// Time for which a sandbox that could not be paused is left alone.
const REST: Duration = Duration::from_secs(60);
/// Longest wait of a start for the evictions of others.
const TURN: Duration = Duration::from_secs(20);

/// Sandboxes that could not be paused, with the time of the try. There are at most as many as machines: those that rest no longer
/// are removed at each eviction.
#[derive(Debug, Default)]
pub(super) struct Failed(HashMap<SandboxId, Instant>);

impl Failed {
    fn has(&self, id: SandboxId) -> bool {
        self.0.contains_key(&id)
    }

    fn forget_old(&mut self) {
        self.0.retain(|_, at| at.elapsed() < REST);
    }
}

/// A sandbox that may be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Idle {
    id: SandboxId,
    tenant: TenantId,
    since: Timestamp,
    /// What its end frees.
    size: Capacity,
}

/// The sandboxes that may be evicted for one start.
#[derive(Debug)]
struct Candidates {
    /// The tenant of the start.
    caller: TenantId,
    idle: Vec<Idle>,
    /// Memory of each tenant's running sandboxes, MiB.
    held: HashMap<TenantId, u64>,
}

impl Inner {
    /// Has the host admit a sandbox. On a full host, evicts others for it if the operator wants that.
    pub(super) async fn admit(&self, spec: SandboxSpec) -> Result<Box<dyn AdmittedSandbox>> {
        if let Some(least) = self.config.life.pause_when_full
            // A fork has reserved its capacity before the capture.
            && spec.snapshot.held.is_none()
            && spec.spare.is_none()
            && self.host.lacks_for(&spec).is_some()
            // Until it is admitted, no other start gets what was freed for this one in its turn.
            && let Ok(mut failed) = tokio::time::timeout(TURN, self.sandboxes.evictions.lock()).await
        {
            self.evict_for(&spec, least, &mut failed).await;
            return self.host.admit_sandbox(spec).await;
        }
        self.host.admit_sandbox(spec).await
    }

    /// Evicts what one start needs, or nothing when that would not suffice.
    async fn evict_for(&self, spec: &SandboxSpec, least: Duration, failed: &mut Failed) {
        failed.forget_old();
        if self.host.lacks_for(spec).is_none() {
            return;
        }
        let mut candidates = self.candidates(spec.tenant, least, failed).await;
        let mut evicted = 0;
        for _ in 0..TRIES {
            let Some(lacks) = self.host.lacks_for(spec) else { return };
            let Some(next) = candidates.needed(lacks, MOST - evicted) else { return };
            candidates.remove(&next);
            match self.pause(&for_tenant(next.tenant), next.id, Cause::HostFull { idle_since: next.since }).await {
                Ok(_) => {
                    evicted += 1;
                    tracing::info!(sandbox_id = %next.id, for_sandbox = %spec.id, "an idle sandbox is evicted: the host is full");
                }
                Err(error) => {
                    failed.0.insert(next.id, Instant::now());
                    tracing::debug!(sandbox_id = %next.id, %error, "an idle sandbox is not evicted for another");
                }
            }
        }
    }

    /// The sandboxes that may be evicted for a tenant's start, those that idle longest first.
    async fn candidates(&self, caller: TenantId, least: Duration, failed: &Failed) -> Candidates {
        let until = Timestamp::now().checked_sub(SignedDuration::try_from(least).unwrap_or(SignedDuration::MAX));
        let until = until.unwrap_or(Timestamp::MIN);
        let mut found = Candidates { caller, idle: Vec::new(), held: HashMap::new() };
        let mut idle = Vec::new();
        for id in self.host.sandboxes() {
            let (Found::Running(_, tenant), Some(size)) = (self.host.find_sandbox(id), self.host.held_by(id)) else {
                continue;
            };
            *found.held.entry(tenant).or_default() += size.memory_mib;
            if let Some(since) = self.host.idle_since(id)
                && since <= until
                && !failed.has(id)
            {
                idle.push(Idle { id, tenant, since, size });
            }
        }
        idle.sort_by_key(|idle| idle.since);
        let mut left = HashMap::<TenantId, u64>::new();
        for one in idle {
            if !found.may_give(one.tenant) {
                continue;
            }
            let left = match left.entry(one.tenant) {
                Entry::Occupied(left) => left.into_mut(),
                Entry::Vacant(entry) => entry.insert(self.evictions_left(one.tenant).await),
            };
            if *left > 0 && self.may_be_evicted(&one).await {
                *left -= 1;
                found.idle.push(one);
            }
        }
        found
    }

    async fn may_be_evicted(&self, one: &Idle) -> bool {
        let Ok(row) = self.db.get_sandbox(&for_tenant(one.tenant), one.id).await else { return false };
        row.status == SandboxStatus::Running && Config::stored(&row.config).is_ok_and(|config| !config.ephemeral)
    }

    /// How many more sandboxes of a tenant may be evicted.
    async fn evictions_left(&self, tenant: TenantId) -> u64 {
        match self.db.count_snapshots(&for_tenant(tenant)).await {
            Ok(stored) => u64::from(self.config.life.evicted_per_tenant()).saturating_sub(stored.evicted),
            Err(_) => 0,
        }
    }
}

impl Candidates {
    fn held(&self, tenant: TenantId) -> u64 {
        self.held.get(&tenant).copied().unwrap_or_default()
    }

    /// Whether a tenant's sandboxes may be evicted for the caller's: its own, and those of a tenant that holds more.
    fn may_give(&self, tenant: TenantId) -> bool {
        tenant == self.caller || self.held(tenant) > self.held(self.caller)
    }

    fn remove(&mut self, one: &Idle) {
        self.idle.retain(|idle| idle.id != one.id);
        if let Some(held) = self.held.get_mut(&one.tenant).filter(|_| one.tenant != self.caller) {
            *held = held.saturating_sub(one.size.memory_mib);
        }
    }

    /// The first of at most `most` sandboxes that hold together what is missing. `None`: no such set is found.
    fn needed(&self, lacks: Capacity, most: usize) -> Option<Idle> {
        let fair = self.set(lacks, |one, held| (one.tenant == self.caller, held, Reverse(one.since)));
        let fair = fair.filter(|set| set.len() <= most);
        // Many small ones are passed over for few large ones.
        let set = fair.or_else(|| self.set(lacks, |one, _| (one.size.memory_mib, one.size.vcpus)));
        set.filter(|set| set.len() <= most)?.first().copied()
    }

    /// Sandboxes that hold together what is missing, none of them needlessly; those with the largest rank first. A rank gets the
    /// sandbox and the memory that its tenant would hold by then.
    fn set<R: Ord>(&self, lacks: Capacity, rank: impl Fn(&Idle, u64) -> R) -> Option<Vec<Idle>> {
        let mut rest = Candidates { caller: self.caller, idle: self.idle.clone(), held: self.held.clone() };
        let mut set = Vec::new();
        while !covers(&set, lacks) {
            let able = rest.idle.iter().filter(|one| rest.may_give(one.tenant));
            let next = *able.max_by_key(|one| rank(one, rest.held(one.tenant)))?;
            rest.remove(&next);
            set.push(next);
        }
        let mut at = 0;
        while at < set.len() {
            let one = set.remove(at);
            if !covers(&set, lacks) {
                set.insert(at, one);
                at += 1;
            }
        }
        Some(set)
    }
}

fn covers(set: &[Idle], lacks: Capacity) -> bool {
    set.iter().map(|one| one.size.memory_mib).sum::<u64>() >= lacks.memory_mib
        && set.iter().map(|one| one.size.vcpus).sum::<u64>() >= lacks.vcpus
}

#[cfg(test)]
mod tests {
    use super::*;

    const LACKS: Capacity = Capacity { memory_mib: 100, vcpus: 0 };

    fn candidates(caller: TenantId, idle: &[(TenantId, i64, u64)], held: &[(TenantId, u64)]) -> Candidates {
        let idle = idle.iter().map(|(tenant, since, memory_mib)| Idle {
            id: SandboxId::new(),
            tenant: *tenant,
            since: Timestamp::from_second(*since).unwrap(),
            size: Capacity { memory_mib: *memory_mib, vcpus: 1 },
        });
        Candidates { caller, idle: idle.collect(), held: held.iter().copied().collect() }
    }

    #[test]
    fn the_callers_own_come_first_and_then_those_of_who_holds_most() {
        let (own, most, more, less) = (TenantId::new(), TenantId::new(), TenantId::new(), TenantId::new());
        let held = [(own, 200), (most, 500), (more, 400), (less, 200)];
        let all = [(less, 1, 100), (more, 2, 100), (most, 4, 100), (most, 3, 100), (own, 9, 100)];
        let mut found = candidates(own, &all, &held);
        let mut order = Vec::new();
        while let Some(next) = found.needed(LACKS, MOST) {
            order.push((next.tenant, next.since.as_second()));
            found.remove(&next);
        }
        // A tenant that holds no more than the caller's gives nothing.
        assert_eq!(order, [(own, 9), (most, 3), (more, 2), (most, 4)]);
    }

    #[test]
    fn nothing_is_evicted_that_does_not_suffice_or_is_not_needed() {
        let (own, other) = (TenantId::new(), TenantId::new());
        let held = [(own, 100), (other, 900)];
        let small = [(own, 1, 60), (other, 2, 30)];
        assert_eq!(candidates(own, &small, &held).needed(LACKS, MOST), None, "90 of 100 MiB");
        let one_large = [(own, 1, 60), (other, 2, 100)];
        let next = candidates(own, &one_large, &held).needed(LACKS, MOST).unwrap();
        assert_eq!(next.since.as_second(), 2, "the own one would be paused in vain");
        // Of many small ones and one large one, not more than may be paused.
        let many = [(own, 1, 20), (own, 2, 20), (own, 3, 20), (own, 4, 20), (own, 5, 20), (own, 6, 99), (own, 7, 1)];
        let found = candidates(own, &many, &held);
        assert_eq!(found.needed(LACKS, 4).unwrap().since.as_second(), 6);
        assert_eq!(found.needed(LACKS, 1), None);
        // Processors count, too.
        let lacks = Capacity { memory_mib: 0, vcpus: 2 };
        assert_eq!(candidates(own, &small, &held).needed(lacks, 2).unwrap().since.as_second(), 1);
        assert_eq!(candidates(own, &small[..1], &held).needed(lacks, 2), None);
    }

    #[test]
    fn a_tenant_does_not_take_another_one_below_itself() {
        let (busy, small) = (TenantId::new(), TenantId::new());
        let found = candidates(busy, &[(small, 1, 100)], &[(busy, 900), (small, 100)]);
        assert_eq!(found.needed(LACKS, MOST), None);
        // Two of three are taken, and then it holds as much as the caller's.
        let three = [(busy, 1, 100), (busy, 2, 100), (busy, 3, 100)];
        let found = candidates(small, &three, &[(busy, 300), (small, 100)]);
        assert!(found.needed(Capacity { memory_mib: 200, vcpus: 0 }, MOST).is_some());
        assert_eq!(found.needed(Capacity { memory_mib: 300, vcpus: 0 }, MOST), None);
    }
}
