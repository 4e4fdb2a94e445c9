//! Sandboxes of this host: each a machine resumed from a snapshot, watched by one task until its end.
//!
//! ```text
//!   admit ── Place::Starting ──start──> machine ──run──> Place::Running ──> ended: by control, which also decides
//!               └─ dropped: gives back                      │ watched              when its time is up
//!                                                           │                    it was paused
//!                                         pause, snapshot,  │                    its machine or guest failed
//!                                         fork: transition <┘                    it filled the host's disk
//! ```
//! The end of a sandbox first removes its place. A guest that breaks the agent's protocol, or does not answer its heartbeat
//! for 30 seconds, ends its sandbox. No message is sent to such a guest.

mod activity;
mod actors;
mod capture;
mod commands;
mod egress;
mod exec;
mod fault;
mod files;
mod followers;
mod frozen;
mod gate;
mod git;
mod held;
mod live;
mod measure;
mod ports;
mod processes;
mod search;
mod spares;
mod start;
mod terminals;
#[cfg(test)]
mod tests;
mod transition;
mod uploads;
mod watches;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::ErrorResponseCode;
use nullspace_data::ArtifactStore;
use nullspace_host_interface::{
    AdmittedSandbox, Adopted, Capacity, Captured, Found, FrozenSandbox, SandboxHost, SandboxSpec, SandboxUse, Snapshot,
    SnapshotSize, SpareSpec, TimeLimits, Unfit,
};
use nullspace_service::{Error, Result};
use nullspace_types::{ArtifactId, EgressPolicy, SandboxId, SpareId, Streams};
use nullspace_vmm::SnapshotSummary;
use serde::Deserialize;
use serde_json::{Value, json};

pub(crate) use self::actors::Actors;
use self::actors::Place;
use crate::LocalHost;

#[async_trait]
impl SandboxHost for LocalHost {
    fn judge(&self, summary: &Value) -> std::result::Result<SnapshotSize, Unfit> {
        let summary = SnapshotSummary::deserialize(summary).map_err(|error| Unfit::Corrupt(error.to_string()))?;
        match self.inner.machines.vmm.conflict(&summary.compatibility) {
            Some(conflict) => Err(Unfit::Incompatible(conflict)),
            None => Ok(SnapshotSize {
                vcpus: summary.vcpus,
                memory_mib: summary.memory_mib,
                disk_bytes: summary.disk_bytes,
            }),
        }
    }

    fn adopt_snapshot(&self, id: ArtifactId, summary: &Value) -> std::result::Result<Adopted, Unfit> {
        let size = self.judge(summary)?;
        let summary = SnapshotSummary::deserialize(summary).map_err(|error| Unfit::Corrupt(error.to_string()))?;
        let folder = ArtifactStore::new_artifact_name(id);
        Ok(Adopted { folder, size, compatibility: json!(summary.compatibility) })
    }

    async fn admit_sandbox(&self, spec: SandboxSpec) -> Result<Box<dyn AdmittedSandbox>> {
        let buildkits = &self.inner.builder.buildkits;
        loop {
            let refused = match start::admit(&self.inner.actors, spec.clone()) {
                Ok(admitted) => return Ok(Box::new(admitted)),
                Err(refused) => refused,
            };
            // Idle builder machines and spares make room; of a quota, the tenant's own alone.
            let of = match refused.code {
                ErrorResponseCode::CapacityExceeded => None,
                ErrorResponseCode::QuotaExceeded => Some(spec.tenant),
                _ => return Err(refused),
            };
            if !buildkits.make_room(of).await && !self.inner.spares.make_room(of).await {
                return Err(refused);
            }
        }
    }

    async fn prepare_spare(&self, spec: SpareSpec) -> Result<()> {
        spares::prepare(&self.inner.actors, spec).await
    }

    async fn spares(&self) -> Vec<SpareId> {
        self.inner.spares.running().await
    }

    async fn end_spare(&self, id: SpareId) {
        self.inner.spares.end(id).await;
    }

    fn find_sandbox(&self, id: SandboxId) -> Found {
        let place = self.inner.actors.places().get(&id).cloned();
        match place {
            None => Found::Absent,
            Some(Place::Starting(..)) => Found::Starting,
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

    async fn freeze_sandbox(&self, id: SandboxId, idle_since: Option<Timestamp>) -> Result<Box<dyn FrozenSandbox>> {
        let frozen = capture::freeze(&self.inner.actors, id, idle_since).await;
        frozen.map(|frozen| Box::new(frozen) as Box<dyn FrozenSandbox>)
    }

    async fn snapshot_sandbox(&self, id: SandboxId, similar: Vec<Streams>) -> Result<Captured> {
        capture::snapshot(&self.inner.actors, id, similar).await
    }

    async fn fork_sandbox(&self, id: SandboxId) -> Result<Snapshot> {
        capture::fork(&self.inner.actors, id).await
    }

    fn set_limits(&self, id: SandboxId, limits: TimeLimits) -> bool {
        let live = self.inner.actors.running(id);
        live.inspect(|live| live.activity.set(limits)).is_some()
    }

    fn enforces_egress(&self) -> bool {
        self.inner.machines.vmm.enforces_egress()
    }

    async fn set_egress(&self, id: SandboxId, policy: &EgressPolicy) -> Result<bool> {
        match self.inner.actors.running(id) {
            Some(live) => egress::set(&live, policy).await.map(|()| true),
            None => Ok(false),
        }
    }

    fn last_active(&self, id: SandboxId) -> Option<Timestamp> {
        self.inner.actors.running(id).map(|live| live.activity.last())
    }

    fn lacks_for(&self, spec: &SandboxSpec) -> Option<Capacity> {
        // Of a description that cannot be read, the admission says more.
        let summary = SnapshotSummary::deserialize(&spec.snapshot.summary).ok()?;
        self.inner.actors.lacks_for(spec.tenant, summary.memory_mib, summary.vcpus)
    }

    fn held_by(&self, id: SandboxId) -> Option<Capacity> {
        self.inner.actors.running(id).map(|live| self.inner.actors.held_by(&live))
    }

    fn idle_since(&self, id: SandboxId) -> Option<Timestamp> {
        self.inner.actors.running(id)?.activity.idle_since()
    }

    async fn sandbox_use(&self, id: SandboxId) -> Result<Vec<SandboxUse>> {
        let live = self.inner.actors.running(id).ok_or_else(|| Error::sandbox_not_found(&id.to_string()))?;
        live.measure().await;
        Ok(live.measured.all())
    }
}
