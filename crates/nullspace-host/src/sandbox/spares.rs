//! Making of spares from stored snapshots.

use std::sync::Arc;
use std::time::Instant;

use nullspace_api::ErrorResponseCode;
use nullspace_data::SnapshotPin;
use nullspace_host_interface::{SnapshotSize, SpareSpec, internal};
use nullspace_service::{Error, Result};
use nullspace_vmm::{Network, RestoreSpec, SnapshotSummary};
use serde::Deserialize;

use super::actors::Actors;
use super::start::{not_restored, open_root, open_stored};
use crate::failures::of_data;
use crate::machine::Machine;
use crate::spares::Spare;

/// Makes a spare and keeps it. Nothing makes room for it: it is refused where something would have to go.
pub(super) async fn prepare(actors: &Arc<Actors>, spec: SpareSpec) -> Result<()> {
    let summary = SnapshotSummary::deserialize(&spec.snapshot.summary)
        .map_err(|error| internal("read a snapshot's summary", &error))?;
    if !summary.halted {
        let message = "the template's processes did not stand still in its snapshot, so that they would run before a sandbox \
             has its identity; build the template again";
        return Err(Error::new(ErrorResponseCode::RebuildRequired, message));
    }
    drop(actors.disk.ensure_room(0, None)?);
    let permit = actors.admit(spec.tenant, summary.memory_mib, summary.vcpus)?;
    let size = SnapshotSize { vcpus: summary.vcpus, memory_mib: summary.memory_mib, disk_bytes: summary.disk_bytes };
    let (root, snapshot): (_, SnapshotPin) =
        tokio::try_join!(open_root(&actors.files, &spec.snapshot), open_stored(&actors.files, &spec.snapshot))?;
    let scratch = actors.files.scratch().map_err(of_data)?;
    let restore = RestoreSpec {
        id: format!("sp-{}", spec.id.uuid().as_simple()),
        base: Some(root.path().to_owned()),
        snapshot_dir: snapshot.path().to_owned(),
        summary,
        network: Network::Internet,
        work_dir: scratch.path().to_owned(),
    };
    let began = Instant::now();
    // A task: a caller that goes away leaves nothing half made.
    let (kept, vmm) = (Arc::clone(&actors.spares), Arc::clone(&actors.machines.vmm));
    let (tenant, artifact, held) =
        (spec.tenant, spec.snapshot.artifact, actors.machines.admission.counted(size.memory_mib, size.vcpus));
    let making = actors.tasks.spawn(async move {
        let machine = Machine::restore_spare(vmm.as_ref(), restore, permit).await.map_err(not_restored)?;
        let spare = Spare { tenant, artifact, machine, size, scratch, root, snapshot, held, made: Instant::now() };
        kept.keep(spec.id, spare).await;
        Ok(())
    });
    let made = making.await.map_err(|error| internal("make a spare", &error))?;
    let ms = began.elapsed().as_millis();
    tracing::debug!(spare = %spec.id, ms, made = made.is_ok(), "a spare");
    made
}
