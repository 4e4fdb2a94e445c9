//! The start of a sandbox: resumes a snapshot and gives the guest its own identity.
//!
//! ```text
//!   Admitted ── root image, snapshot ── VMM ──resumed──> the guest's new identity, resume hooks ──> Started ──run──> Live
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use nullspace_api::{ErrorResponseCode, TemplateFailureDetail, TemplateFailureDetailCode, TemplateFailurePhase};
use nullspace_data::{ArtifactStore, DataError, RootfsPin, Scratch, SnapshotPin, artifact_of};
use nullspace_definition::runtime::Runtime;
use nullspace_guest::host::AgentError;
use nullspace_guest::message::{Exec, FailureKind};
use nullspace_host_interface::{
    AdmittedSandbox, SandboxSettings, SandboxSpec, Snapshot, SnapshotSize, StartedSandbox, TimeLimits, internal,
    reason, storage_full,
};
use nullspace_service::{Error, Result, chain};
use nullspace_types::SandboxId;
use nullspace_vmm::{Network, RestoreSpec, SnapshotSummary, VmmError};
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::activity::Activity;
use super::actors::{Actors, Starting};
use super::egress;
use super::followers::Followers;
use super::gate::Gate;
use super::held::Held;
use super::live::Live;
use super::measure::Measured;
use crate::admission::Permit;
use crate::failures::{not_started, of_data};
use crate::machine::{Machine, MachineError};
use crate::spares::Spare;

/// Time after which a start that met another one of its id should be tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// A sandbox with its place and no machine.
pub(super) struct Admitted {
    starting: Starting,
    source: Source,
    spec: SandboxSpec,
    summary: SnapshotSummary,
}

/// Where a sandbox's machine comes from.
enum Source {
    /// It is resumed.
    Snapshot(Permit),
    /// It is resumed already.
    Spare(Box<Spare>),
}

/// Reserves memory, processors and a place for a sandbox. The first of a fork has what the fork has reserved.
pub(super) fn admit(actors: &Arc<Actors>, spec: SandboxSpec) -> Result<Admitted> {
    let summary = SnapshotSummary::deserialize(&spec.snapshot.summary)
        .map_err(|error| internal("read a snapshot's summary", &error))?;
    drop(actors.disk.ensure_room(0, None)?);
    let held = spec.snapshot.held.as_ref().map(Held::of).transpose()?;
    let source = match (held.and_then(|held| held.take_permit()), spec.spare) {
        (Some(permit), _) => Source::Snapshot(permit),
        (None, Some(spare)) => {
            let taken = actors.spares.take(spare, spec.tenant, spec.snapshot.artifact);
            Source::Spare(Box::new(taken.ok_or_else(no_spare)?))
        }
        (None, None) => Source::Snapshot(actors.admit(spec.tenant, summary.memory_mib, summary.vcpus)?),
    };
    let starting = actors.begin(spec.id).ok_or_else(|| {
        let message = format!("sandbox {} starts or runs already; ask again", spec.id);
        Error { retry_after: Some(RETRY_AFTER), ..Error::new(ErrorResponseCode::TransitionInProgress, message) }
    })?;
    Ok(Admitted { starting, source, spec, summary })
}

/// The error of a sandbox whose spare has ended.
fn no_spare() -> Error {
    Error {
        retry_after: Some(RETRY_AFTER),
        ..Error::new(ErrorResponseCode::WarmPoolUnavailable, "the machine of the warm pool has ended; try again")
    }
}

/// A sandbox with a machine that is not usable yet.
struct Started {
    starting: Starting,
    spec: SandboxSpec,
    settings: SandboxSettings,
    machine: Machine,
    size: SnapshotSize,
    scratch: Scratch,
    root: RootfsPin,
    snapshot: SnapshotFiles,
}

/// The raw files that a sandbox was resumed from, which stay in their place while this lives.
pub(super) enum SnapshotFiles {
    /// Those of a stored snapshot.
    Stored(SnapshotPin),
    /// Those of a fork.
    Held(Arc<Held>),
}

impl SnapshotFiles {
    /// The folder with the files.
    pub(super) fn path(&self) -> &Path {
        match self {
            SnapshotFiles::Stored(pin) => pin.path(),
            SnapshotFiles::Held(held) => held.path(),
        }
    }
}

#[async_trait]
impl AdmittedSandbox for Admitted {
    async fn start(
        self: Box<Self>,
        settings: SandboxSettings,
        resumed: oneshot::Sender<()>,
    ) -> Result<Box<dyn StartedSandbox>> {
        let Admitted { starting, source, spec, summary } = *self;
        let (actors, id, snapshot) = (&starting.actors, spec.id, &spec.snapshot);
        let hook = resume(&snapshot.runtime, &settings.envs, &settings.cwd);
        let vmm = actors.machines.vmm.as_ref();
        let permit = match source {
            Source::Snapshot(permit) => permit,
            Source::Spare(spare) => {
                // Nobody may be waiting for it any more.
                let _ = resumed.send(());
                let Spare { machine, size, scratch, root, snapshot, .. } = *spare;
                let machine = machine.claim(vmm, machine_id(id), hook).await.map_err(not_restored)?;
                let snapshot = SnapshotFiles::Stored(snapshot);
                return Ok(Box::new(Started { starting, spec, settings, machine, size, scratch, root, snapshot }));
            }
        };
        let size =
            SnapshotSize { vcpus: summary.vcpus, memory_mib: summary.memory_mib, disk_bytes: summary.disk_bytes };
        let network = egress::network(&settings, vmm.enforces_egress())?;
        let (root, opened, scratch, restore) = open(&actors.files, &spec, summary, network).await?;
        let machine = Machine::restore(vmm, restore, hook, permit, resumed).await.map_err(not_restored)?;
        Ok(Box::new(Started { starting, spec, settings, machine, size, scratch, root, snapshot: opened }))
    }

    async fn try_out(self: Box<Self>) -> Result<()> {
        let Admitted { starting, source, spec, summary } = *self;
        let Source::Snapshot(permit) = source else {
            return Err(Error::new(ErrorResponseCode::InternalError, "a spare is nothing to try out"));
        };
        let actors = &starting.actors;
        let (root, opened, scratch, restore) = open(&actors.files, &spec, summary, Network::Isolated).await?;
        let never = CancellationToken::new();
        let tried = Machine::restore_in_trial(actors.machines.vmm.as_ref(), restore, permit, &never).await;
        let tried = match tried {
            Ok(machine) => {
                machine.end().await;
                Ok(())
            }
            Err(MachineError::Vmm(error)) if error.is_storage_full() => Err(storage_full(None)),
            Err(MachineError::Vmm(VmmError::Incompatible(why))) => {
                Err(Error::new(ErrorResponseCode::IncompatibleSnapshot, why))
            }
            Err(error @ MachineError::Ended(_)) => Err(not_started(&error)),
            Err(error) => {
                tracing::error!(sandbox_id = %spec.id, error = %chain(&error), "a snapshot failed its trial");
                let message = "the snapshot could not be resumed in trial; try again, or take another snapshot";
                Err(Error::new(ErrorResponseCode::InternalError, message))
            }
        };
        drop((root, opened, scratch, starting));
        tried
    }
}

/// The caller's error for a machine that was not resumed, or did not get its identity.
pub(super) fn not_restored(error: MachineError) -> Error {
    match error {
        MachineError::Agent(AgentError::Failed(failure)) if failure.kind == FailureKind::Resume => {
            tracing::warn!(%failure, "a sandbox's resume hooks failed");
            resume_failed(failure.message)
        }
        MachineError::Agent(AgentError::Timeout { what: "resume hooks", .. }) => {
            resume_failed("The resume hooks did not end in time, and could not be stopped.".to_owned())
        }
        MachineError::Agent(error @ (AgentError::Abi { .. } | AgentError::Lacking { .. })) => {
            Error::new(ErrorResponseCode::RebuildRequired, error.to_string())
        }
        MachineError::Vmm(VmmError::Incompatible(why)) => {
            Error::new(ErrorResponseCode::IncompatibleSnapshot, format!("{why}; build the template again"))
        }
        MachineError::Vmm(error) if error.is_storage_full() => {
            tracing::error!(error = %chain(&error), "no room on the disk for a sandbox");
            storage_full(None)
        }
        error => not_started(&error),
    }
}

/// The name of a sandbox's machine and guest.
fn machine_id(id: SandboxId) -> String {
    format!("sb-{}", id.uuid().as_simple())
}

/// Opens the files that a machine is restored from, and makes a folder for it.
async fn open(
    files: &ArtifactStore,
    spec: &SandboxSpec,
    summary: SnapshotSummary,
    network: Network,
) -> Result<(RootfsPin, SnapshotFiles, Scratch, RestoreSpec)> {
    // Side by side: each may have to be written back from its chunks first.
    let (root, opened) = tokio::try_join!(open_root(files, &spec.snapshot), open_snapshot(files, &spec.snapshot))?;
    let scratch = files.scratch().map_err(of_data)?;
    let restore = RestoreSpec {
        id: machine_id(spec.id),
        base: Some(root.path().to_owned()),
        snapshot_dir: opened.path().to_owned(),
        summary,
        network,
        work_dir: scratch.path().to_owned(),
    };
    Ok((root, opened, scratch, restore))
}

#[async_trait]
impl StartedSandbox for Started {
    async fn run(self: Box<Self>, limits: TimeLimits) -> bool {
        let Started { starting, spec, settings, machine, size, scratch, root, snapshot } = *self;
        let actors = Arc::clone(&starting.actors);
        let (machine, agent) = machine.into_parts();
        let source = spec.snapshot;
        let live = Arc::new(Live {
            id: spec.id,
            tenant: spec.tenant,
            machine,
            size,
            gate: Gate::new(agent),
            activity: Activity::new(),
            measured: Measured::default(),
            artifact: source.artifact,
            rootfs: source.rootfs,
            streams: source.streams,
            runtime: source.runtime,
            envs: settings.envs,
            cwd: settings.cwd,
            ended: CancellationToken::new(),
            paused: AtomicBool::new(false),
            turn: Arc::default(),
            writing: actors.disk.enter(scratch.path(), CancellationToken::new()),
            scratch: Mutex::new(Some(scratch)),
            _root: root,
            snapshot,
            followers: Followers::new(),
        });
        let machine = Arc::downgrade(&live);
        live.writing.count(move || machine.upgrade().map_or(0, |live| live.machine.vm.nameless_bytes()));
        live.activity.set(limits);
        if !starting.run(&live) {
            live.end().await;
            return false;
        }
        actors.watch(&live);
        true
    }

    async fn discard(self: Box<Self>) {
        let Started { starting, machine, scratch, root, snapshot, .. } = *self;
        machine.end().await;
        drop((scratch, root, snapshot, starting));
    }
}

/// Opens the root image under a sandbox's disk.
pub(super) async fn open_root(files: &ArtifactStore, snapshot: &Snapshot) -> Result<RootfsPin> {
    files.open_rootfs(&snapshot.rootfs).await.map_err(|error| match error {
        DataError::Damaged { what } => {
            tracing::error!(artifact = %snapshot.artifact, what, "a template's root image is damaged");
            let message = "the stored disk of this template is damaged: build the template again with skip_cache";
            Error::new(ErrorResponseCode::RebuildRequired, message)
        }
        other => of_data(other),
    })
}

/// Opens the files that a sandbox resumes from.
async fn open_snapshot(files: &ArtifactStore, snapshot: &Snapshot) -> Result<SnapshotFiles> {
    match &snapshot.held {
        Some(held) => Held::of(held).map(SnapshotFiles::Held),
        None => open_stored(files, snapshot).await.map(SnapshotFiles::Stored),
    }
}

/// Opens the files of a stored snapshot.
pub(super) async fn open_stored(files: &ArtifactStore, snapshot: &Snapshot) -> Result<SnapshotPin> {
    let opened = files.open_snapshot(&snapshot.folder, snapshot.streams.as_ref()).await;
    opened.map_err(|error| match error {
        DataError::Damaged { what } => {
            tracing::error!(
                artifact = %snapshot.artifact, folder = snapshot.folder, what,
                "a snapshot is damaged: see `nullspace store verify`"
            );
            // A template's has the name of its artifact.
            let message = if artifact_of(&snapshot.folder) == Some(snapshot.artifact) {
                "the stored snapshot of this template is missing or damaged: build the template again with skip_cache"
            } else {
                "the stored snapshot of this sandbox is missing or damaged: it cannot be resumed; create a new sandbox"
            };
            Error::new(ErrorResponseCode::RebuildRequired, message)
        }
        other => of_data(other),
    })
}

/// The template's resume command: run like its start command, in the sandbox's folder and with its variables.
fn resume(runtime: &Runtime, envs: &BTreeMap<String, String>, cwd: &str) -> Option<Exec> {
    let line = runtime.resume.as_ref()?;
    let mut all = runtime.envs.clone();
    all.extend(envs.clone());
    Some(Exec {
        argv: ["sh", "-c", line].map(str::to_owned).to_vec(),
        envs: all,
        cwd: Some(cwd.to_owned()),
        make_cwd: true,
        user: runtime.user.clone(),
        ..Exec::default()
    })
}

/// The error of a sandbox whose own hooks fail: a fault of the template, not of the host.
fn resume_failed(message: String) -> Error {
    let advice =
        "Correct the template's resume_cmd, or the hooks in /etc/nullspace/resume.d of its image, and build it again.";
    let (code, phase) = (TemplateFailureDetailCode::BuildError, TemplateFailurePhase::Interrupted);
    let detail = TemplateFailureDetail::new(code, phase, false, message.clone(), advice.to_owned());
    Error {
        detail: Some(Box::new(detail.with_reason(reason::RESUME_FAILED))),
        ..Error::new(ErrorResponseCode::ExecFailed, message)
    }
}
