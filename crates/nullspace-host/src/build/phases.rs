//! The phases of an attempt, one after the other.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use nullspace_api::TemplateFailurePhase as Phase;
use nullspace_data::PublishedArtifact;
use nullspace_host_interface::{BuildFailure, CacheKind, FinishedArtifact, Made};
use nullspace_vmm::SnapshotSummary;
use serde_json::{Value, json};

use super::cache::Answer;
use super::prepare::Prepared;
use super::steps::{Stage, Staged};
use super::{Attempt, Error, boot, prepare, startup};
use crate::failures;
use crate::machine::{Machine, SharedMachine};

/// Runs all phases. The result is durable on disk, and the database does not name it yet.
pub(crate) async fn run(attempt: &Attempt) -> Result<Made, Error> {
    let Attempt { builder, job, record, cache, .. } = attempt;
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
    }
    let began = Instant::now();
    startup::start(attempt, &machine, &staged.runtime).await?;
    record.phase("startup", booted + began.elapsed());
    let began = Instant::now();
    let (snapshot_dir, summary) = snapshot(attempt, &machine).await?;
    record.phase("snapshot", began.elapsed());

    let began = Instant::now();
    let published = builder.files.publish_artifact(&snapshot_dir, job.artifact).await?;
    record.phase("finalize", began.elapsed());
    // The first sandbox shall not wait for it.
    let (warmer, rootfs) = (Arc::clone(builder), prepared.rootfs.clone());
    builder.tasks.spawn(async move { warmer.warm(&rootfs).await });
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

/// Ends a build without a machine: it shares the files of an earlier one.
async fn reuse(
    attempt: &Attempt,
    staged: &Staged<'_>,
    prepared: &Prepared,
    same: FinishedArtifact,
    final_key: String,
) -> Result<Made, Error> {
    let began = Instant::now();
    let published = attempt.builder.files.share_artifact(&same.folder, attempt.job.artifact).await?;
    attempt.record.phase("finalize", began.elapsed());
    let FinishedArtifact { id: _, folder: _, disk_bytes, compatibility, snapshot } = same;
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

/// Freezes and captures the machine, and ends it.
async fn snapshot(attempt: &Attempt, machine: &SharedMachine) -> Result<(PathBuf, SnapshotSummary), Error> {
    let Attempt { builder, log, scope, .. } = attempt;
    let began = Instant::now();
    let dir = scope.scratch(&builder.files, &builder.disk)?.path().join("snapshot");
    std::fs::create_dir(&dir).map_err(|error| BuildFailure::own(Phase::Snapshot, &error))?;
    machine.agent.freeze().await.map_err(|error| failures::agent(Phase::Snapshot, &error))?;
    // The guest must not remember half a conversation.
    machine.agent.disconnect().await;
    let vm = |error| failures::machine(Phase::Snapshot, &error);
    machine.vm.pause().await.map_err(vm)?;
    whole(machine, Phase::Snapshot)?;
    let summary = machine.vm.snapshot(&dir).await.map_err(vm)?;
    scope.end_machine().await;
    log.say("snapshot", format!("Snapshot taken in {} ms", began.elapsed().as_millis())).await?;
    Ok((dir, summary))
}

/// Refuses a machine with lost writes of its guest. Call it after the guest has flushed.
pub(super) fn whole(machine: &Machine, phase: Phase) -> Result<(), BuildFailure> {
    if machine.vm.has_lost_writes() { Err(BuildFailure::host_disk_full(phase)) } else { Ok(()) }
}
