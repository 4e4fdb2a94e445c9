//! The phases of an attempt, one after the other.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use nullspace_api::TemplateFailurePhase as Phase;
use nullspace_data::{ArtifactStore, PublishedArtifact};
use nullspace_guest::capability::Capability;
use nullspace_guest::host::{Agent, AgentError};
use nullspace_host_interface::{BuildFailure, CacheKind, FinishedArtifact, Made, reason};
use nullspace_vmm::SnapshotSummary;
use serde_json::{Value, json};

use super::cache::Answer;
use super::prepare::Prepared;
use super::steps::{Stage, Staged};
use super::trial::Trial;
use super::{Attempt, Error, boot, prepare, startup};
use crate::admission::Permit;
use crate::failures;
use crate::machine::{Machine, SharedMachine};

/// Runs all phases. The result is durable on disk, and the database does not name it yet.
pub(crate) async fn run(attempt: &Attempt) -> Result<Made, Error> {
    let Attempt { builder, job, record, cache, scope, .. } = attempt;
    prepare::context(attempt).await?;
    let began = Instant::now();
    let mut prepared = prepare::run(attempt).await?;
    record.phase("prepare", began.elapsed());
    prepare::say_disk(attempt, &prepared).await?;
    let stage = Stage { attempt };
    let staged = stage.look_up(&mut prepared).await?;
    if let Some((same, final_key)) = stage.finished(&staged, &prepared).await? {
        return reuse(attempt, &staged, &prepared, same, final_key).await;
    }

    let began = Instant::now();
    let permit = boot::admit(attempt).await?;
    record.phase("admission", began.elapsed());
    let began = Instant::now();
    let machine = boot::boot(attempt, &prepared, permit).await?;
    let booted = began.elapsed();
    if !staged.is_known() {
        let began = Instant::now();
        stage.run(&staged, &machine, &mut prepared).await?;
        record.phase("build_step", began.elapsed());
        // The trial, and after it the first sandbox, need it as a raw file: it is made while the start command starts.
        let (warmer, rootfs) = (Arc::clone(builder), prepared.rootfs.clone());
        builder.tasks.spawn(async move { warmer.warm(&rootfs).await });
    }
    let began = Instant::now();
    startup::start(attempt, &machine, &staged.runtime).await?;
    record.phase("startup", booted + began.elapsed());
    let began = Instant::now();
    let (snapshot_dir, mut summary, permit) = snapshot(attempt, &machine).await?;
    record.phase("snapshot", began.elapsed());

    let trial = Trial::prepare(attempt, &snapshot_dir, summary.clone(), permit)?;
    let publish = async {
        let began = Instant::now();
        let similar = attempt.record.similar_snapshots().await?;
        let published = scope.publish(&builder.files, snapshot_dir, job.artifact, similar).await?;
        record.phase("finalize", began.elapsed());
        Ok(published)
    };
    let (published, touched) = tokio::try_join!(publish, trial.run(attempt, &prepared))?;
    summary.touched = touched;
    cache.count(CacheKind::FinalArtifact, Answer::Stored);
    let final_key = stage.final_key(&staged, &prepared);
    let snapshot = Snapshot {
        disk_bytes: summary.disk_bytes,
        compatibility: json!(summary.compatibility),
        summary: json!(summary),
    };
    Ok(made(published, snapshot, &staged, prepared, final_key))
}

/// The stored description of a snapshot.
struct Snapshot {
    disk_bytes: u64,
    compatibility: Value,
    summary: Value,
}

/// Ends a build without a machine: it has the snapshot of an earlier one.
async fn reuse(
    attempt: &Attempt,
    staged: &Staged<'_>,
    prepared: &Prepared,
    same: FinishedArtifact,
    final_key: String,
) -> Result<Made, Error> {
    let began = Instant::now();
    let FinishedArtifact { id: _, folder, streams, disk_bytes, compatibility, snapshot } = same;
    let streams = match streams {
        Some(streams) => streams,
        // The work of the background has not come so far.
        None => attempt.builder.files.adopt_artifact(&folder).await?,
    };
    let folder = ArtifactStore::new_artifact_name(attempt.job.artifact);
    let published = PublishedArtifact { folder, stored_bytes: 0, streams };
    attempt.record.phase("finalize", began.elapsed());
    let snapshot = Snapshot { disk_bytes, compatibility, summary: snapshot };
    // Found by the same key from now on: the earlier one may go first.
    Ok(made(published, snapshot, staged, prepared.clone(), final_key))
}

fn made(
    published: PublishedArtifact,
    snapshot: Snapshot,
    staged: &Staged<'_>,
    prepared: Prepared,
    final_key: String,
) -> Made {
    Made {
        folder: published.folder,
        streams: published.streams,
        stored_bytes: published.stored_bytes,
        rootfs_key: prepared.rootfs.key,
        disk_bytes: snapshot.disk_bytes,
        compatibility: snapshot.compatibility,
        snapshot: snapshot.summary,
        runtime: staged.runtime.clone(),
        oci_metadata: prepared.oci_metadata,
        final_key,
    }
}

/// Halts and captures the machine, and ends it. Returns its admission, for the trial.
async fn snapshot(attempt: &Attempt, machine: &SharedMachine) -> Result<(PathBuf, SnapshotSummary, Permit), Error> {
    let Attempt { builder, log, scope, .. } = attempt;
    let began = Instant::now();
    let dir = scope.scratch(&builder.files, &builder.disk)?.path().join("snapshot");
    std::fs::create_dir(&dir).map_err(|error| BuildFailure::own(Phase::Snapshot, &error))?;
    let halted = stop(&machine.agent).await.map_err(|error| failures::agent(Phase::Snapshot, &error))?;
    let vm = |error| failures::machine(Phase::Snapshot, &error);
    machine.vm.pause().await.map_err(vm)?;
    whole(machine, Phase::Snapshot)?;
    let mut summary = machine.vm.snapshot(&dir).await.map_err(vm)?;
    // The guest image may be older than the service.
    summary.compatibility.agent_abi = machine.agent.info().abi;
    summary.halted = halted;
    let Some(permit) = scope.end_machine().await else {
        let message = "the build machine could not be ended after its snapshot";
        return Err(BuildFailure::infrastructure(Phase::Snapshot, reason::MACHINE_FAILED, message).into());
    };
    log.say("snapshot", format!("Snapshot taken in {} ms", began.elapsed().as_millis())).await?;
    Ok((dir, summary, permit))
}

/// Stops a guest, and parts with it: it must not remember half a conversation. Processes that stand still go on when the sandbox
/// has its identity, and the connections to reset are known by then. Where they do not stop, only writers do: false.
async fn stop(agent: &Agent) -> Result<bool, AgentError> {
    if agent.info().can(Capability::Halt) {
        match agent.halt().await {
            Ok(()) => return agent.part().await.map(|()| true),
            Err(AgentError::Failed(failure)) => tracing::warn!(%failure, "the processes of a guest do not stop"),
            Err(error) => return Err(error),
        }
    }
    agent.freeze().await?;
    agent.disconnect().await;
    Ok(false)
}

/// Refuses a machine with lost writes of its guest. Call it after the guest has flushed.
pub(super) fn whole(machine: &Machine, phase: Phase) -> Result<(), BuildFailure> {
    if machine.vm.has_lost_writes() { Err(BuildFailure::host_disk_full(phase)) } else { Ok(()) }
}
