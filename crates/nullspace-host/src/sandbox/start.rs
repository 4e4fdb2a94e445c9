//! The start of a sandbox: resumes a snapshot and gives the guest its own identity.
//!
//! ```text
//!   Admitted ── root image, snapshot ── VMM ──resumed──> the guest's new identity, resume hooks ──> Started ──run──> Live
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{ErrorResponseCode, TemplateFailureDetail, TemplateFailureDetailCode, TemplateFailurePhase};
use nullspace_data::{DataError, RootfsPin, Scratch};
use nullspace_definition::runtime::Runtime;
use nullspace_guest::host::AgentError;
use nullspace_guest::message::{Exec, FailureKind};
use nullspace_host_interface::{
    AdmittedSandbox, SandboxSettings, SandboxSpec, StartedSandbox, internal, reason, storage_full,
};
use nullspace_service::{Error, Result, chain};
use nullspace_vmm::{Network, RestoreSpec, SnapshotSummary, VmmError};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::actors::Starting;
use super::commands::MAX_FOLLOWED;
use super::live::Live;
use crate::admission::Permit;
use crate::failures::of_data;
use crate::machine::{Machine, MachineError};

/// A sandbox with its place and no machine.
pub(super) struct Admitted {
    pub(super) starting: Starting,
    pub(super) permit: Permit,
    pub(super) spec: SandboxSpec,
    pub(super) summary: SnapshotSummary,
}

/// A sandbox with a machine that is not usable yet.
struct Started {
    starting: Starting,
    spec: SandboxSpec,
    settings: SandboxSettings,
    machine: Machine,
    scratch: Scratch,
    root: RootfsPin,
}

#[async_trait]
impl AdmittedSandbox for Admitted {
    async fn start(
        self: Box<Self>,
        settings: SandboxSettings,
        resumed: oneshot::Sender<()>,
    ) -> Result<Box<dyn StartedSandbox>> {
        let Admitted { starting, permit, spec, summary } = *self;
        let (actors, id, snapshot) = (&starting.actors, spec.id, &spec.snapshot);
        let root = actors.files.open_rootfs(&snapshot.rootfs).await.map_err(|error| match error {
            DataError::Damaged { what } => {
                tracing::error!(artifact = %snapshot.artifact, what, "a template's root image is damaged");
                let message = "the stored disk of this template is damaged: build the template again with skip_cache";
                Error::new(ErrorResponseCode::RebuildRequired, message)
            }
            other => of_data(other),
        })?;
        let snapshot_dir = actors.files.artifact_dir(&snapshot.folder).map_err(of_data)?;
        if !snapshot_dir.is_dir() {
            tracing::error!(artifact = %snapshot.artifact, "a template's snapshot is missing: see `nullspace store verify`");
            let message = "the stored snapshot of this template is missing: build the template again";
            return Err(Error::new(ErrorResponseCode::RebuildRequired, message));
        }
        let scratch = actors.files.scratch().map_err(of_data)?;
        let restore = RestoreSpec {
            id: format!("sb-{}", id.uuid().as_simple()),
            base: Some(root.path().to_owned()),
            snapshot_dir,
            summary,
            network: if settings.internet_access { Network::Internet } else { Network::Isolated },
            work_dir: scratch.path().to_owned(),
        };
        let hook = resume(&snapshot.runtime, &settings.envs, &settings.cwd);
        match Machine::restore(actors.machines.vmm.as_ref(), restore, hook, permit, resumed).await {
            Ok(machine) => Ok(Box::new(Started { starting, spec, settings, machine, scratch, root })),
            Err(MachineError::Agent(AgentError::Failed(failure))) if failure.kind == FailureKind::Resume => {
                tracing::warn!(sandbox_id = %id, %failure, "a sandbox's resume hooks failed");
                Err(resume_failed(failure.message))
            }
            Err(MachineError::Agent(AgentError::Timeout { what: "resume hooks", .. })) => {
                Err(resume_failed("The resume hooks did not end in time, and could not be stopped.".to_owned()))
            }
            Err(MachineError::Vmm(VmmError::Incompatible(why))) => {
                Err(Error::new(ErrorResponseCode::IncompatibleSnapshot, format!("{why}; build the template again")))
            }
            Err(MachineError::Vmm(error)) if error.is_storage_full() => {
                tracing::error!(error = %chain(&error), "no room on the disk for a sandbox");
                Err(storage_full(None))
            }
            Err(error) => Err(internal("resume a snapshot", &error)),
        }
    }
}

#[async_trait]
impl StartedSandbox for Started {
    async fn run(self: Box<Self>, deadline: Option<Timestamp>) -> bool {
        let Started { starting, spec, settings, machine, scratch, root } = *self;
        let actors = Arc::clone(&starting.actors);
        let live = Arc::new(Live {
            id: spec.id,
            tenant: spec.tenant,
            machine,
            runtime: spec.snapshot.runtime,
            envs: settings.envs,
            cwd: settings.cwd,
            ended: CancellationToken::new(),
            writing: actors.disk.enter(scratch.path(), CancellationToken::new()),
            scratch: Mutex::new(Some(scratch)),
            _root: root,
            followed: Arc::new(Semaphore::new(MAX_FOLLOWED)),
        });
        let machine = Arc::downgrade(&live);
        live.writing.count(move || machine.upgrade().map_or(0, |live| live.machine.vm.nameless_bytes()));
        if !starting.run(&live) {
            live.end().await;
            return false;
        }
        actors.watch(&live, deadline);
        true
    }

    async fn discard(self: Box<Self>) {
        let Started { starting, machine, scratch, root, .. } = *self;
        machine.end().await;
        drop((scratch, root, starting));
    }
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
