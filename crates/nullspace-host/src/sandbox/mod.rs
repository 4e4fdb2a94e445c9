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

mod actors;
mod commands;
mod exec;
mod fault;
mod files;
mod live;
mod processes;
mod start;

use std::time::Duration;

use async_trait::async_trait;
use nullspace_api::ErrorResponseCode;
use nullspace_host_interface::{AdmittedSandbox, Found, SandboxHost, SandboxSpec, SnapshotSize, Unfit, internal};
use nullspace_service::{Error, Result};
use nullspace_types::SandboxId;
use nullspace_vmm::SnapshotSummary;
use serde::Deserialize;
use serde_json::Value;

pub(crate) use self::actors::Actors;
use self::actors::Place;
use self::start::Admitted;
use crate::LocalHost;
use crate::admission::{Refused, Wanted};

/// Time after which a create that was refused for capacity should be retried.
const RETRY_AFTER: Duration = Duration::from_secs(5);

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
            .map_err(|error| internal("read a snapshot's summary", &error))?;
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
