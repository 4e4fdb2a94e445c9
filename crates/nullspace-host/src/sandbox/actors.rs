//! The sandboxes of this host that start or run, and the task that watches each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use jiff::Timestamp;
use nullspace_data::ArtifactStore;
use nullspace_guest::host::AgentError;
use nullspace_host_interface::{HostEvents, SandboxEnd};
use nullspace_types::SandboxId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fault::Fault;
use super::live::Live;
use crate::disk::Disk;
use crate::machine::{self, Machines};

/// The reason of a sandbox that was ended because it filled the host's disk.
const DISK_FULL: &str = "host_disk_full: the host's disk ran full, and this sandbox had written most recently";

/// State of a sandbox on this host.
#[derive(Clone)]
pub(super) enum Place {
    /// It starts. The token is cancelled at the end of the start, successful or not.
    Starting(CancellationToken),
    /// Its machine can be used.
    Running(Arc<Live>),
}

/// The sandboxes of this host, and what they work with.
pub(crate) struct Actors {
    pub(super) machines: Machines,
    pub(super) disk: Arc<Disk>,
    pub(super) files: ArtifactStore,
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

    pub(super) fn places(&self) -> MutexGuard<'_, HashMap<SandboxId, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a sandbox that starts.
    pub(super) fn begin(self: &Arc<Self>, id: SandboxId) -> Starting {
        let over = CancellationToken::new();
        self.places().insert(id, Place::Starting(over.clone()));
        Starting { actors: Arc::clone(self), id, over }
    }

    /// Ends a sandbox, and waits until its resources are released.
    pub(super) async fn end(&self, id: SandboxId) {
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
    pub(super) fn watch(self: &Arc<Self>, live: &Arc<Live>, deadline: Option<Timestamp>) {
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
pub(super) struct Starting {
    pub(super) actors: Arc<Actors>,
    id: SandboxId,
    over: CancellationToken,
}

impl Starting {
    /// Marks the sandbox's machine as usable. Returns false when the sandbox was ended meanwhile.
    pub(super) fn run(&self, live: &Arc<Live>) -> bool {
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
