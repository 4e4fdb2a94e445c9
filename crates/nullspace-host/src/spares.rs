//! Spares: machines that are resumed ahead of the sandboxes that take them.
//!
//! ```text
//!   prepare ── admitted ── snapshot resumed, its agent answers ──> kept ──┬── taken: a sandbox's machine from now on
//!                                                                         ├── its machine has ended: forgotten
//!                                                                         └── ended: by control, for room, with the host
//! ```
//! A spare is made of a halted snapshot alone: no process of its guest runs, its disk takes no writes and its network has no address
//! before [`Machine::claim`]. So it has done nothing that another one of the same snapshot would do, too. It counts in admission as a
//! sandbox of its tenant, and goes first when others need room.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures::FutureExt;
use nullspace_data::{RootfsPin, Scratch, SnapshotPin};
use nullspace_host_interface::{Capacity, SnapshotSize};
use nullspace_types::{ArtifactId, SpareId, TenantId};

use crate::machine::Machine;

/// A machine without identity, and what it stands on.
pub(crate) struct Spare {
    /// The tenant whose sandboxes may take it.
    pub(crate) tenant: TenantId,
    /// The artifact that it was resumed from.
    pub(crate) artifact: ArtifactId,
    pub(crate) machine: Machine,
    pub(crate) size: SnapshotSize,
    pub(crate) scratch: Scratch,
    pub(crate) root: RootfsPin,
    /// The raw files of its snapshot.
    pub(crate) snapshot: SnapshotPin,
    /// What it counts with in admission.
    pub(crate) held: Capacity,
    pub(crate) made: Instant,
}

impl Spare {
    /// Ends its machine. Returns when its resources are released.
    pub(crate) async fn end(self) {
        let Spare { machine, scratch, root, snapshot, .. } = self;
        machine.end().await;
        drop((scratch, root, snapshot));
    }

    /// True when its machine has ended, or its agent is lost.
    fn is_over(&self) -> bool {
        self.machine.vm.exited().now_or_never().is_some() || self.machine.agent.closed().now_or_never().is_some()
    }
}

/// The spares of this host. As many as were admitted.
#[derive(Default)]
pub(crate) struct Spares {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    spares: HashMap<SpareId, Spare>,
    /// The host ends: no more are kept.
    closed: bool,
}

impl Spares {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a spare. Ends it when the host ends.
    pub(crate) async fn keep(&self, id: SpareId, spare: Spare) {
        let spare = {
            let mut kept = self.lock();
            if kept.closed { Some(spare) } else { kept.spares.insert(id, spare) }
        };
        if let Some(spare) = spare {
            spare.end().await;
        }
    }

    /// Takes a spare for a sandbox of this tenant and artifact. `None`: there is none of that id for it.
    pub(crate) fn take(&self, id: SpareId, tenant: TenantId, artifact: ArtifactId) -> Option<Spare> {
        let mut kept = self.lock();
        let fits = kept.spares.get(&id).is_some_and(|spare| spare.tenant == tenant && spare.artifact == artifact);
        if fits { kept.spares.remove(&id) } else { None }
    }

    /// The spares whose machines run. Ends the others.
    pub(crate) async fn running(&self) -> Vec<SpareId> {
        let (running, over): (Vec<SpareId>, Vec<Spare>) = {
            let mut kept = self.lock();
            let over: Vec<SpareId> =
                kept.spares.iter().filter(|(_, spare)| spare.is_over()).map(|(id, _)| *id).collect();
            let over = over.iter().filter_map(|id| kept.spares.remove(id)).collect();
            (kept.spares.keys().copied().collect(), over)
        };
        for spare in over {
            tracing::warn!(machine = spare.machine.vm.id(), "the machine of a spare has ended");
            spare.end().await;
        }
        running
    }

    /// Ends a spare, if it is still there.
    pub(crate) async fn end(&self, id: SpareId) {
        let spare = self.lock().spares.remove(&id);
        if let Some(spare) = spare {
            spare.end().await;
        }
    }

    /// Ends the oldest spare, of this tenant or of any. False when there is none.
    pub(crate) async fn make_room(&self, of: Option<TenantId>) -> bool {
        let oldest = {
            let mut kept = self.lock();
            let fitting = kept.spares.iter().filter(|(_, spare)| of.is_none_or(|of| spare.tenant == of));
            let oldest = fitting.min_by_key(|(_, spare)| spare.made).map(|(id, _)| *id);
            oldest.and_then(|id| kept.spares.remove(&id))
        };
        let Some(spare) = oldest else { return false };
        tracing::info!(machine = spare.machine.vm.id(), tenant = %spare.tenant, "a spare makes room for others");
        spare.end().await;
        true
    }

    /// What all spares hold together.
    pub(crate) fn held(&self) -> Capacity {
        let mut sum = Capacity { memory_mib: 0, vcpus: 0 };
        for spare in self.lock().spares.values() {
            sum.memory_mib += spare.held.memory_mib;
            sum.vcpus += spare.held.vcpus;
        }
        sum
    }

    /// Ends all spares, and those that come.
    pub(crate) async fn close(&self) {
        let all: Vec<Spare> = {
            let mut kept = self.lock();
            kept.closed = true;
            kept.spares.drain().map(|(_, spare)| spare).collect()
        };
        futures::future::join_all(all.into_iter().map(Spare::end)).await;
    }
}
