//! Builder machines: BuildKit in a microVM of its own, one for each tenant at most.
//!
//! ```text
//!   build ── lease ──> the tenant's slot ── none runs ──> disk (disks) ── machine, engine (machine) ──> BuildKit
//!              │
//!              └─ dropped ──> idle ── long enough, or somebody needs its room ──> machine ends, disk is kept
//!   lost, full or silent ──> machine ends at once, disk is removed: the next lease makes both anew
//! ```
//! A tenant's images, results and cache mounts are on its own disk alone, so nothing of them is found by another tenant, and a
//! step runs behind the walls of a sandbox. A builder counts in admission as a machine of its tenant, also while it is idle. An
//! idle one makes room for whatever is refused for want of it.
//!
//! A builder is started by a task of its own, which ends by itself when the build that wanted it is cancelled. Everything ends
//! with [`Builders::stop`].

mod disks;
mod machine;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nullspace_api::TemplateFailurePhase as Phase;
use nullspace_buildkit::BuildKit;
use nullspace_data::ArtifactStore;
use nullspace_host_interface::{BuildFailure, Capacity, reason};
use nullspace_types::TenantId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::disks::{BuilderDisks, builder_disks};

use self::disks::Disks;
use self::machine::Running;
use crate::admission::{Permit, Refused, Wanted};
use crate::disk::Disk;
use crate::failures;
use crate::machine::Machines;

/// Longest wait for a place among the builders, and for admission.
const ADMISSION: Duration = Duration::from_secs(300);
/// Time between two looks whether there is room.
const AGAIN: Duration = Duration::from_millis(500);
/// Time between two looks for idle and lost builders.
const TEND: Duration = Duration::from_secs(1);

/// The host's settings for builder machines.
#[derive(Debug, Clone)]
pub struct BuilderConfig {
    /// Tar of the root tree with the engine.
    pub tar: PathBuf,
    /// Memory of a machine, MiB.
    pub memory_mib: u32,
    /// Virtual CPUs of a machine.
    pub vcpus: u32,
    /// Size of a tenant's disk, MiB: the engine's programs, images and cache. It takes only what was written.
    pub disk_mib: u64,
    /// Time after which a builder without a build ends.
    pub idle: Duration,
    /// Builders that run at once.
    pub most: usize,
    /// Options of the engine besides its own: mirrors, and registries in plain HTTP.
    pub engine_options: Vec<String>,
}

impl BuilderConfig {
    /// Says why no builder starts on a host or within a quota whose largest machine is this.
    fn too_large_for(&self, largest: Capacity) -> Option<String> {
        let BuilderConfig { memory_mib, vcpus, .. } = *self;
        let fits = u64::from(memory_mib) <= largest.memory_mib && u64::from(vcpus) <= largest.vcpus;
        let Capacity { memory_mib: most_mib, vcpus: most_vcpus } = largest;
        (!fits).then(|| {
            format!(
                "a builder machine needs {memory_mib} MiB of memory and {vcpus} vCPUs, and a machine has at most {most_mib} MiB and \
                 {most_vcpus} here: the operator can lower builder_memory_mib, or raise memory_mib, vcpus or the quota of a tenant"
            )
        })
    }
}

/// The builder machines of this host.
pub(crate) struct Builders {
    config: BuilderConfig,
    extra_ca_pem: Option<Vec<u8>>,
    machines: Machines,
    disk: Arc<Disk>,
    files: ArtifactStore,
    disks: Disks,
    slots: Mutex<HashMap<TenantId, Arc<Slot>>>,
    places: Arc<Semaphore>,
    stopping: CancellationToken,
    /// Starts under way, and the threads of imports.
    tasks: TaskTracker,
}

/// A tenant's place for a builder.
struct Slot {
    tenant: TenantId,
    /// Leases, also of those that wait for the start.
    users: AtomicUsize,
    /// Time of the last change of `users`.
    used: Mutex<Instant>,
    /// Held while the builder starts or ends.
    running: Arc<tokio::sync::Mutex<Option<Arc<Running>>>>,
}

impl Slot {
    fn idle_for(&self) -> Option<Duration> {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        (self.users.load(Ordering::SeqCst) == 0).then(|| used.elapsed())
    }
}

/// Counts a user of a slot while it lives.
struct Using(Arc<Slot>);

impl Using {
    fn new(slot: Arc<Slot>) -> Using {
        slot.users.fetch_add(1, Ordering::SeqCst);
        Using(slot)
    }
}

impl Drop for Using {
    fn drop(&mut self) {
        *self.0.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.users.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A running builder, which does not become idle while this lives.
pub(crate) struct Lease {
    using: Using,
    running: Arc<Running>,
}

impl Lease {
    /// The builder's BuildKit.
    pub(crate) fn kit(&self) -> Arc<BuildKit> {
        Arc::clone(&self.running.kit)
    }

    /// True when there is little room on the builder's disk.
    pub(crate) async fn is_full(&self) -> bool {
        self.running.is_full().await
    }

    /// True when other builds have used the disk, too: a new one would have more room for this build.
    pub(crate) fn had_others(&self) -> bool {
        !self.running.is_fresh() || self.running.leases() > 1
    }

    /// Size of the builder's disk, MiB.
    pub(crate) fn disk_mib(&self) -> u64 {
        self.running.disk_mib
    }

    /// Ends the builder, and removes its disk. Builds that use it lose their BuildKit.
    pub(crate) async fn discard(self, why: &str) {
        let slot = &self.using.0;
        let mut running = slot.running.lock().await;
        if running.as_ref().is_some_and(|found| Arc::ptr_eq(found, &self.running)) {
            tracing::warn!(tenant = %slot.tenant, why, "a builder machine is thrown away, with its cache");
            *running = None;
            self.running.discard().await;
        }
    }
}

impl Builders {
    /// The builders of a host, none of which runs.
    pub(crate) fn new(
        config: BuilderConfig,
        extra_ca_pem: Option<Vec<u8>>,
        machines: Machines,
        disk: Arc<Disk>,
        files: ArtifactStore,
    ) -> Builders {
        let disks = Disks::new(files.root(), &config);
        let places = Arc::new(Semaphore::new(config.most));
        let (slots, stopping, tasks) = (Mutex::default(), CancellationToken::new(), TaskTracker::new());
        Builders { config, extra_ca_pem, machines, disk, files, disks, slots, places, stopping, tasks }
    }

    /// Says why no builder ever starts here.
    pub(crate) fn never(&self) -> Option<String> {
        self.config.too_large_for(self.machines.admission.largest(self.config.vcpus))
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<TenantId, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all(&self) -> Vec<Arc<Slot>> {
        self.slots().values().cloned().collect()
    }

    /// Enters a tenant's slot. Under the lock of the slots, so that it is not removed in between.
    fn enter(&self, tenant: TenantId) -> Using {
        let mut slots = self.slots();
        let slot = slots.entry(tenant).or_insert_with(|| {
            let (users, used, running) = (AtomicUsize::new(0), Mutex::new(Instant::now()), Arc::default());
            Arc::new(Slot { tenant, users, used, running })
        });
        Using::new(Arc::clone(slot))
    }

    /// True when the tenant's builder runs and nobody starts or ends it.
    pub(crate) fn runs(&self, tenant: TenantId) -> bool {
        let slot = self.slots().get(&tenant).cloned();
        slot.is_some_and(|slot| slot.running.try_lock().is_ok_and(|running| running.is_some()))
    }

    /// The tenant's builder, started if none runs. A start goes on when this future is dropped.
    pub(crate) async fn lease(self: &Arc<Self>, tenant: TenantId) -> Result<Lease, BuildFailure> {
        let using = self.enter(tenant);
        let starting = self.tasks.spawn({
            // The slot stays while the start goes on.
            let (builders, held) = (Arc::clone(self), Using::new(Arc::clone(&using.0)));
            async move {
                let place = Arc::clone(&held.0.running);
                let mut running = place.lock_owned().await;
                match running.take() {
                    Some(found) if !found.has_ended() => {
                        *running = Some(Arc::clone(&found));
                        return Ok(found);
                    }
                    Some(lost) => builders.lost(tenant, &lost).await,
                    None => {}
                }
                let started = builders.start(tenant).await?;
                *running = Some(Arc::clone(&started));
                Ok(started)
            }
        });
        let started = starting.await.map_err(|error| BuildFailure::internal(Phase::Prepare, &error))?;
        let running = started?;
        running.leased();
        Ok(Lease { using, running })
    }

    async fn lost(&self, tenant: TenantId, running: &Running) {
        tracing::warn!(%tenant, console = running.console(), "a builder machine has ended by itself: its cache is removed");
        running.discard().await;
    }

    /// Starts a builder: on the disk that was kept, and where that fails on a new one.
    async fn start(&self, tenant: TenantId) -> Result<Arc<Running>, BuildFailure> {
        loop {
            let place = self.place().await?;
            let permit = self.admit(tenant).await?;
            if self.disk.room(0).is_err() {
                self.disks.trim(0).await;
            }
            drop(self.disk.room(0).map_err(|error| failures::data(Phase::Prepare, &error))?);
            let kept = self.disks.open(tenant, &self.stopping, self.tasks.token()).await?;
            let fresh = kept.is_fresh();
            match Running::start(self, tenant, kept, permit, place).await {
                Ok(running) => return Ok(Arc::new(running)),
                Err(failure) if !fresh && !self.stopping.is_cancelled() => {
                    tracing::warn!(%tenant, %failure, "a builder machine does not start: it is made anew, without its cache");
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Waits for a place among the builders of this host.
    async fn place(&self) -> Result<OwnedSemaphorePermit, BuildFailure> {
        let deadline = Instant::now() + ADMISSION;
        loop {
            if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
                return Ok(place);
            }
            if !self.make_room(None).await {
                self.wait(deadline, || format!("this host runs {} builder machines already", self.config.most)).await?;
            }
        }
    }

    async fn admit(&self, tenant: TenantId) -> Result<Permit, BuildFailure> {
        let (memory_mib, vcpus) = (self.config.memory_mib, self.config.vcpus);
        let wanted = Wanted { tenant, memory_mib, vcpus, sandbox: false };
        let deadline = Instant::now() + ADMISSION;
        loop {
            let refused = match self.machines.admission.admit(wanted) {
                Ok(permit) => return Ok(permit),
                Err(refused) => refused,
            };
            // Of a quota, the tenant's own builder holds a part, and it is this one.
            if matches!(refused, Refused::Quota { .. }) || !self.make_room(None).await {
                self.wait(deadline, || format!("no builder machine: {refused}")).await?;
            }
        }
    }

    async fn wait(&self, deadline: Instant, why: impl Fn() -> String) -> Result<(), BuildFailure> {
        if Instant::now() >= deadline || self.stopping.is_cancelled() {
            return Err(BuildFailure::infrastructure(Phase::Prepare, reason::CAPACITY, why()));
        }
        tokio::time::sleep(AGAIN).await;
        Ok(())
    }

    /// Ends the builder that has been idle for the longest time, of this tenant or of any. False when there is none.
    pub(crate) async fn make_room(&self, of: Option<TenantId>) -> bool {
        let mut idle: Vec<_> = self.all().into_iter().filter_map(|slot| Some((slot.idle_for()?, slot))).collect();
        idle.retain(|(_, slot)| of.is_none_or(|tenant| slot.tenant == tenant));
        idle.sort_by_key(|(since, _)| std::cmp::Reverse(*since));
        for (_, slot) in idle {
            if self.end_idle(&slot, Duration::ZERO).await {
                return true;
            }
        }
        false
    }

    /// Ends a slot's builder if it has been idle for so long. False when there was none to end.
    async fn end_idle(&self, slot: &Slot, bound: Duration) -> bool {
        let Ok(mut running) = slot.running.try_lock() else { return false };
        let ended = running.as_ref().is_some_and(|running| running.has_ended());
        if !ended && slot.idle_for().is_none_or(|idle| idle < bound) {
            return false;
        }
        let Some(found) = running.take() else { return false };
        if ended {
            self.lost(slot.tenant, &found).await;
        } else {
            found.finish().await;
            tracing::debug!(tenant = %slot.tenant, "an idle builder machine has ended");
        }
        true
    }

    /// Ends idle builders, and removes lost ones, until the service stops.
    pub(crate) async fn tend(&self) {
        if let Some(why) = self.never() {
            tracing::warn!(why, "Dockerfile builds are refused");
        }
        self.disks.sweep().await;
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(TEND) => {}
            }
            for slot in self.all() {
                self.end_idle(&slot, self.config.idle).await;
            }
            let empty = |slot: &Slot| slot.running.try_lock().is_ok_and(|running| running.is_none());
            self.slots().retain(|_, slot| slot.idle_for().is_none() || !empty(slot));
        }
    }

    /// Machines that run or start, and the disks.
    pub(crate) async fn usage(&self) -> (u64, BuilderDisks) {
        let machines = self.config.most.saturating_sub(self.places.available_permits());
        (u64::try_from(machines).unwrap_or(u64::MAX), self.disks.usage().await)
    }

    /// Ends all builders, and waits until nothing of them is left but their disks.
    pub(crate) async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let ending = self.all().into_iter().map(|slot| async move {
            if let Some(running) = slot.running.lock().await.take() {
                running.finish().await;
            }
        });
        futures::future::join_all(ending).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_that_fits_nowhere_is_told_of() {
        let (tar, engine_options) = (PathBuf::new(), Vec::new());
        let config = BuilderConfig {
            tar,
            memory_mib: 1536,
            vcpus: 2,
            disk_mib: 4096,
            idle: Duration::ZERO,
            most: 1,
            engine_options,
        };
        let within = |memory_mib, vcpus| config.too_large_for(Capacity { memory_mib, vcpus });
        assert_eq!(within(1536, 2), None);
        for (memory_mib, vcpus) in [(1535, 2), (1536, 1), (0, 0)] {
            assert!(within(memory_mib, vcpus).unwrap().contains("builder_memory_mib"), "{memory_mib} {vcpus}");
        }
    }
}
