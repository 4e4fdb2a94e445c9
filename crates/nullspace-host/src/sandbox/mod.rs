//! Sandboxes of this host: each a machine resumed from a snapshot, watched by one task until its end.
//!
//! ```text
//!   admit ── Place::Starting ──start──> machine ──run──> Place::Running ──> ended: by control
//!               └─ dropped: gives back                      │ watched         its time was up
//!                                                           └──────────────>  its machine or guest failed
//!                                                                             it filled the host's disk
//! ```
//! The end of a sandbox first removes its place. A guest that breaks the agent's protocol, or does not answer its heartbeat
//! for 30 seconds, ends its sandbox. No message is sent to such a guest.

mod commands;
mod exec;
mod fault;
mod files;
mod live;
mod processes;
mod start;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::ErrorResponseCode;
use nullspace_data::ArtifactStore;
use nullspace_guest::host::AgentError;
use nullspace_host_interface::{
    AdmittedSandbox, Found, HostEvents, SandboxEnd, SandboxHost, SandboxSpec, SnapshotSize, Unfit,
};
use nullspace_service::{Error, Result};
use nullspace_types::SandboxId;
use nullspace_vmm::SnapshotSummary;
use serde::Deserialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::fault::Fault;
use self::live::Live;
use self::start::Admitted;
use crate::LocalHost;
use crate::admission::{Refused, Wanted};
use crate::disk::Disk;
use crate::machine::{self, Machines};

/// The reason of a sandbox that was ended because it filled the host's disk.
const DISK_FULL: &str = "host_disk_full: the host's disk ran full, and this sandbox had written most recently";
/// Time after which a create that was refused for capacity should be retried.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// State of a sandbox on this host.
#[derive(Clone)]
enum Place {
    /// It starts. The token is cancelled at the end of the start, successful or not.
    Starting(CancellationToken),
    /// Its machine can be used.
    Running(Arc<Live>),
}

/// The sandboxes of this host, and what they work with.
pub(crate) struct Actors {
    machines: Machines,
    disk: Arc<Disk>,
    files: ArtifactStore,
    places: Mutex<HashMap<SandboxId, Place>>,
    events: OnceLock<Arc<dyn HostEvents>>,
    /// The tasks that watch sandboxes.
    pub(crate) tasks: TaskTracker,
}

impl Actors {
    pub(crate) fn new(machines: Machines, disk: Arc<Disk>, files: ArtifactStore) -> Actors {
        Actors { machines, disk, files, places: Mutex::default(), events: OnceLock::new(), tasks: TaskTracker::new() }
    }

    /// Sets the receiver of the ends of sandboxes that end by themselves. Only the first call has an effect.
    pub(crate) fn report_to(&self, events: Arc<dyn HostEvents>) {
        let _ = self.events.set(events);
    }

    fn places(&self) -> MutexGuard<'_, HashMap<SandboxId, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a sandbox that starts.
    fn begin(self: &Arc<Self>, id: SandboxId) -> Starting {
        let over = CancellationToken::new();
        self.places().insert(id, Place::Starting(over.clone()));
        Starting { actors: Arc::clone(self), id, over }
    }

    /// Ends a sandbox, and waits until its resources are released.
    async fn end(&self, id: SandboxId) {
        let place = self.places().remove(&id);
        match place {
            Some(Place::Running(live)) => live.end().await,
            // It finds its place taken away, and ends what it has. Bounded, as each step of a start is.
            Some(Place::Starting(over)) => over.cancelled().await,
            None => {}
        }
    }

    /// Ends a sandbox by a fault or timeout, and reports it.
    async fn end_and_tell(&self, id: SandboxId, end: SandboxEnd) {
        self.end(id).await;
        if let Some(events) = self.events.get() {
            events.sandbox_ended(id, end).await;
        }
    }

    /// Ends the sandbox when its time limit has passed or its machine has ended.
    fn watch(self: &Arc<Self>, live: &Arc<Live>, deadline: Option<Timestamp>) {
        let (actors, live, id) = (Arc::clone(self), Arc::clone(live), live.id);
        self.tasks.spawn(async move {
            let up = async {
                match deadline {
                    None => std::future::pending().await,
                    Some(at) => tokio::time::sleep(at.duration_since(Timestamp::now()).unsigned_abs()).await,
                }
            };
            let end = tokio::select! {
                // First: whatever ends a sandbox also ends its machine and its connection.
                biased;
                () = live.ended.cancelled() => return,
                () = up => {
                    tracing::info!(sandbox_id = %id, "sandbox's time is up");
                    SandboxEnd { failed: false, reason: "its time was up".to_owned(), fault: None }
                }
                () = live.writing.overran.cancelled() => {
                    tracing::warn!(sandbox_id = %id, "sandbox is ended: the host's disk is nearly full, and it has written most");
                    SandboxEnd { failed: true, reason: DISK_FULL.to_owned(), fault: None }
                }
                ended = live.machine.vm.exited() => failed(id, &Fault::Machine(ended)),
                error = live.machine.agent.closed() => {
                    // A machine that ends takes the connection with it first.
                    let ended = match &error {
                        AgentError::Closed => machine::ended(live.machine.vm.as_ref()).await,
                        _ => None,
                    };
                    failed(id, &ended.map_or(Fault::Agent(error), Fault::Machine))
                }
            };
            actors.end_and_tell(id, end).await;
        });
    }
}

/// The end of a sandbox with a fault.
fn failed(id: SandboxId, fault: &Fault) -> SandboxEnd {
    let (code, why) = (fault.code(), fault.to_string());
    tracing::warn!(sandbox_id = %id, reason = code, why, "sandbox failed and is ended");
    SandboxEnd { failed: true, reason: format!("{code}: {}", fault.shown()), fault: Some(code) }
}

/// A start under way. Dropping it ends the start; without [`Starting::run`] the sandbox never existed.
struct Starting {
    actors: Arc<Actors>,
    id: SandboxId,
    over: CancellationToken,
}

impl Starting {
    /// Marks the sandbox's machine as usable. Returns false when the sandbox was ended meanwhile.
    fn run(&self, live: &Arc<Live>) -> bool {
        match self.actors.places().get_mut(&self.id) {
            Some(place) => {
                *place = Place::Running(Arc::clone(live));
                true
            }
            None => false,
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut places = self.actors.places();
        if matches!(places.get(&self.id), Some(Place::Starting(_))) {
            places.remove(&self.id);
        }
        drop(places);
        self.over.cancel();
    }
}

#[async_trait]
impl SandboxHost for LocalHost {
    fn judge(&self, summary: &Value) -> std::result::Result<SnapshotSize, Unfit> {
        let summary = SnapshotSummary::deserialize(summary).map_err(|error| Unfit::Corrupt(error.to_string()))?;
        match summary.compatibility.conflict_with(self.inner.machines.vmm.compatibility()) {
            Some(conflict) => Err(Unfit::Incompatible(conflict.to_string())),
            None => Ok(SnapshotSize {
                vcpus: summary.vcpus,
                memory_mib: summary.memory_mib,
                disk_bytes: summary.disk_bytes,
            }),
        }
    }

    async fn admit_sandbox(&self, spec: SandboxSpec) -> Result<Box<dyn AdmittedSandbox>> {
        let actors = &self.inner.actors;
        let summary = SnapshotSummary::deserialize(&spec.snapshot.summary)
            .map_err(|error| crate::failures::internal("read a snapshot's summary", &error))?;
        drop(self.inner.disk.ensure_room(0, None)?);
        let wanted =
            Wanted { tenant: spec.tenant, memory_mib: summary.memory_mib, vcpus: summary.vcpus, sandbox: true };
        let permit = actors.machines.admission.admit(wanted).map_err(|refused| {
            let code = match refused {
                Refused::Full { .. } => ErrorResponseCode::CapacityExceeded,
                Refused::Quota { .. } => ErrorResponseCode::QuotaExceeded,
            };
            Error { retry_after: Some(RETRY_AFTER), ..Error::new(code, refused.to_string()) }
        })?;
        let starting = actors.begin(spec.id);
        Ok(Box::new(Admitted { starting, permit, spec, summary }))
    }

    fn find_sandbox(&self, id: SandboxId) -> Found {
        let place = self.inner.actors.places().get(&id).cloned();
        match place {
            None => Found::Absent,
            Some(Place::Starting(_)) => Found::Starting,
            Some(Place::Running(live)) => {
                let tenant = live.tenant;
                Found::Running(live, tenant)
            }
        }
    }

    async fn end_sandbox(&self, id: SandboxId) {
        self.inner.actors.end(id).await;
    }

    fn sandboxes(&self) -> Vec<SandboxId> {
        self.inner.actors.places().keys().copied().collect()
    }
}
