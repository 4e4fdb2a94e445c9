//! The sandboxes of this host that start or run, and the tasks that watch each.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nullspace_api::ErrorResponseCode;
use nullspace_data::ArtifactStore;
use nullspace_guest::host::AgentError;
use nullspace_host_interface::{Capacity, Due, HostEvents, SandboxEnd};
use nullspace_service::{Error, Result};
use nullspace_types::{SandboxId, TenantId};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fault::Fault;
use super::live::Live;
use crate::admission::{Permit, Refused, Wanted};
use crate::disk::Disk;
use crate::machine::{self, Machines};
use crate::spares::Spares;

/// Time after which a request that was refused for capacity should be retried.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The reason of a sandbox that was ended because it filled the host's disk.
const DISK_FULL: &str = "host_disk_full: the host's disk ran full, and this sandbox had written most recently";

/// State of a sandbox on this host.
#[derive(Clone)]
pub(super) enum Place {
    /// It starts. The token is cancelled at the end of the start, successful or not. The number tells two starts of one id
    /// apart.
    Starting(CancellationToken, u64),
    /// Its machine can be used.
    Running(Arc<Live>),
}

/// The sandboxes of this host, and what they work with.
pub(crate) struct Actors {
    pub(super) machines: Machines,
    pub(super) disk: Arc<Disk>,
    pub(super) files: ArtifactStore,
    pub(super) spares: Arc<Spares>,
    places: Mutex<HashMap<SandboxId, Place>>,
    starts: AtomicU64,
    events: OnceLock<Arc<dyn HostEvents>>,
    /// The tasks that watch sandboxes.
    pub(crate) tasks: TaskTracker,
}

impl Actors {
    pub(crate) fn new(machines: Machines, disk: Arc<Disk>, files: ArtifactStore, spares: Arc<Spares>) -> Actors {
        Actors {
            machines,
            disk,
            files,
            spares,
            places: Mutex::default(),
            starts: AtomicU64::new(0),
            events: OnceLock::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// Sets the receiver of the ends of sandboxes that end by themselves. Only the first call has an effect.
    pub(crate) fn report_to(&self, events: Arc<dyn HostEvents>) {
        let _ = self.events.set(events);
    }

    pub(super) fn places(&self) -> MutexGuard<'_, HashMap<SandboxId, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a sandbox that starts; `None` when it starts or runs already.
    pub(super) fn begin(self: &Arc<Self>, id: SandboxId) -> Option<Starting> {
        let (over, number) = (CancellationToken::new(), self.starts.fetch_add(1, Ordering::Relaxed));
        match self.places().entry(id) {
            Entry::Occupied(_) => return None,
            Entry::Vacant(place) => place.insert(Place::Starting(over.clone(), number)),
        };
        Some(Starting { actors: Arc::clone(self), id, number, over })
    }

    /// Returns a sandbox that runs.
    pub(super) fn running(&self, id: SandboxId) -> Option<Arc<Live>> {
        match self.places().get(&id) {
            Some(Place::Running(live)) => Some(Arc::clone(live)),
            _ => None,
        }
    }

    /// Ends a sandbox, and waits until its resources are released.
    pub(super) async fn end(&self, id: SandboxId) {
        let place = self.places().remove(&id);
        match place {
            Some(Place::Running(live)) => live.end().await,
            // It finds its place taken away, and ends what it has. Bounded, as each step of a start is.
            Some(Place::Starting(over, _)) => over.cancelled().await,
            None => {}
        }
    }

    /// Removes a running sandbox from its place. False when somebody else has: another one of its id may run by now.
    fn take(&self, live: &Arc<Live>) -> bool {
        let mut places = self.places();
        let runs = matches!(places.get(&live.id), Some(Place::Running(found)) if Arc::ptr_eq(found, live));
        if runs {
            places.remove(&live.id);
        }
        runs
    }

    /// Ends a sandbox that is paused: its snapshot is stored.
    pub(super) async fn end_paused(&self, live: &Arc<Live>) {
        live.paused.store(true, Ordering::Relaxed);
        let _ = self.take(live);
        live.end().await;
    }

    /// Ends a sandbox by a fault, and reports it.
    pub(super) async fn end_and_tell(&self, live: &Arc<Live>, end: SandboxEnd) {
        // Whoever has taken it ends it, and knows of it.
        if !self.take(live) {
            return;
        }
        live.end().await;
        if let Some(events) = self.events.get() {
            events.sandbox_ended(live.id, end).await;
        }
    }

    /// Measures the sandbox, reports the limits that it reaches, and ends it when its machine or guest fails.
    pub(super) fn watch(self: &Arc<Self>, live: &Arc<Live>) {
        let measured = Arc::clone(live);
        self.tasks.spawn(async move { measured.keep_measuring().await });
        let (actors, live, id) = (Arc::clone(self), Arc::clone(live), live.id);
        self.tasks.spawn(async move {
            let end = loop {
                tokio::select! {
                    // First: whatever ends a sandbox also ends its machine and its connection.
                    biased;
                    () = live.ended.cancelled() => return,
                    () = live.writing.overran.cancelled() => {
                        tracing::warn!(sandbox_id = %id, "sandbox is ended: the host's disk is nearly full, and it has written most");
                        break SandboxEnd { failed: true, reason: DISK_FULL.to_owned(), fault: None };
                    }
                    ended = live.machine.vm.exited() => break failed(id, &Fault::Machine(ended)),
                    error = live.gate.lost(|agent| async move { agent.closed().await }) => {
                        // A machine that ends takes the connection with it first.
                        let ended = match &error {
                            AgentError::Closed => machine::ended(live.machine.vm.as_ref()).await,
                            _ => None,
                        };
                        break failed(id, &ended.map_or(Fault::Agent(error), Fault::Machine));
                    }
                    due = live.activity.due() => actors.report_due(id, due),
                }
            };
            actors.end_and_tell(&live, end).await;
        });
    }

    /// Reports a limit. A task: control may pause the sandbox in it, and it is watched meanwhile.
    fn report_due(&self, id: SandboxId, due: Due) {
        tracing::info!(sandbox_id = %id, ?due, "sandbox has reached a limit in time");
        if let Some(events) = self.events.get().cloned() {
            self.tasks.spawn(async move { events.sandbox_due(id, due).await });
        }
    }
}

impl Actors {
    /// Reserves memory, processors and a place in the tenant's quota for a sandbox.
    pub(super) fn admit(&self, tenant: TenantId, memory_mib: u32, vcpus: u32) -> Result<Permit> {
        let wanted = Wanted { tenant, memory_mib, vcpus, sandbox: true };
        self.machines.admission.admit(wanted).map_err(|refused| {
            let code = match refused {
                Refused::Full { .. } => ErrorResponseCode::CapacityExceeded,
                Refused::Quota { .. } => ErrorResponseCode::QuotaExceeded,
            };
            Error { retry_after: Some(RETRY_AFTER), ..Error::new(code, refused.to_string()) }
        })
    }
}

impl Actors {
    /// The memory and processors that the host lacks for a sandbox of this size, when all spares are ended for it.
    pub(super) fn lacks_for(&self, tenant: TenantId, memory_mib: u32, vcpus: u32) -> Option<Capacity> {
        let lacks = self.machines.admission.lacks_for(Wanted { tenant, memory_mib, vcpus, sandbox: true })?;
        let spares = self.spares.held();
        let left = Capacity {
            memory_mib: lacks.memory_mib.saturating_sub(spares.memory_mib),
            vcpus: lacks.vcpus.saturating_sub(spares.vcpus),
        };
        (left.memory_mib > 0 || left.vcpus > 0).then_some(left)
    }

    /// The memory and processors with which a sandbox counts.
    pub(super) fn held_by(&self, live: &Live) -> Capacity {
        self.machines.admission.counted(live.size.memory_mib, live.size.vcpus)
    }
}

/// The end of a sandbox with a fault.
pub(super) fn failed(id: SandboxId, fault: &Fault) -> SandboxEnd {
    let (code, why) = (fault.code(), fault.to_string());
    tracing::warn!(sandbox_id = %id, reason = code, why, "sandbox failed and is ended");
    SandboxEnd { failed: true, reason: format!("{code}: {}", fault.shown()), fault: Some(code) }
}

/// A start under way. Dropping it ends the start; without [`Starting::run`] the sandbox never existed.
pub(super) struct Starting {
    pub(super) actors: Arc<Actors>,
    id: SandboxId,
    number: u64,
    over: CancellationToken,
}

impl Starting {
    /// Marks the sandbox's machine as usable. Returns false when the sandbox was ended meanwhile.
    pub(super) fn run(&self, live: &Arc<Live>) -> bool {
        match self.actors.places().get_mut(&self.id) {
            Some(place) if self.is(place) => {
                *place = Place::Running(Arc::clone(live));
                true
            }
            _ => false,
        }
    }

    fn is(&self, place: &Place) -> bool {
        matches!(place, Place::Starting(_, number) if *number == self.number)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut places = self.actors.places();
        if places.get(&self.id).is_some_and(|place| self.is(place)) {
            places.remove(&self.id);
        }
        drop(places);
        self.over.cancel();
    }
}
