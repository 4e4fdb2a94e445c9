//! Making a sandbox.
//!
//! ```text
//!   resolve, admit ──┬── machine:  start the VMM ──resumed──> give the guest its identity ──┬── live
//!                    └── database: insert `creating` ········> set `running` ───────────────┘
//! ```
//! Each commit waits for the disk, so the two go side by side. What keeps this safe:
//! - Who loses the race against a deleted template learns it from the insert, whose answer comes before the machine's:
//!   the machine, whatever became of it, is ended. Once the row is there, the artifact is in use and stays.
//! - A request with an idempotency key is inserted first: a repetition starts no machine.
//! - A sandbox that is ended while it starts loses its place among those of this process. Its start finds that out when
//!   the machine could be used, and ends it; who ended it waits for that.
//! - A killed service takes its machines along, and the next start ends the rows that it left.

use std::collections::BTreeMap;
use std::future::ready;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::Either;
use jiff::{SignedDuration, Timestamp};
use nullspace_api::{
    CreateSandboxRequest, CreateSandboxResponse, ErrorResponseCode, LifecycleConfigOnTimeout, SandboxTimeoutAction,
    TemplateFailureDetail, TemplateFailureDetailCode, TemplateFailurePhase,
};
use nullspace_guest::host::AgentError;
use nullspace_guest::message::{Exec, FailureKind};
use nullspace_store::{
    Caller, Idempotency, Inserted, NewSandbox, Resolved, RootfsPin, SandboxId, SandboxStatus, Scratch, StoreError,
};
use nullspace_vmm::{Network, RestoreSpec, SnapshotSummary, VmmError};
use serde_json::json;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::answers::created;
use super::commands::MAX_FOLLOWED;
use super::{Config, Live};
use crate::admission::{Permit, Refused, Wanted};
use crate::disk;
use crate::error::{Error, Result, Stored, internal, of_store};
use crate::failure::{chain, reason};
use crate::machine::{Machine, MachineError};
use crate::plan::Runtime;
use crate::records::column;
use crate::validate::check_create;
use crate::{Engine, Inner};

impl Engine {
    /// Resumes a template's snapshot; see [`nullspace_service::Sandboxes::create_sandbox`].
    pub(super) async fn create(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        idempotency_key: Option<String>,
    ) -> Result<CreateSandboxResponse> {
        let began = Instant::now();
        refuse_unserved(&request)?;
        check_create(&request)?;
        let envs = request.envs.clone().unwrap_or_default().0;
        let timeout_ms = request.timeout_ms.unwrap_or(CreateSandboxRequest::DEFAULT_TIMEOUT_MS);
        let reference = request.template.as_deref().unwrap_or(CreateSandboxRequest::DEFAULT_TEMPLATE);
        let inner = &self.inner;
        let resolved = inner.resolve(caller, reference).await?;
        let runtime: Runtime = column("artifacts.runtime", &resolved.artifact.runtime.0).stored()?;
        let summary: SnapshotSummary = column("artifacts.snapshot", &resolved.artifact.snapshot).stored()?;
        if let Some(conflict) = summary.compatibility.conflict_with(inner.vmm.compatibility()) {
            return Err(Error::new(
                ErrorResponseCode::RebuildRequired,
                format!("template {reference} cannot run on this host: {conflict}; build it again"),
            ));
        }
        let config = Config {
            vcpus: summary.vcpus,
            memory_mb: summary.memory_mib,
            disk_mb: u32::try_from(summary.disk_bytes >> 20).unwrap_or(u32::MAX),
            timeout_ms,
            cwd: request.cwd.clone().unwrap_or_else(|| runtime.workdir.clone()),
            internet_access: request.internet_access.unwrap_or(true),
        };
        fits(&request, &config)?;
        let _room = inner.ensure_room(0, None)?;
        let wanted = Wanted { tenant: caller.tenant, memory_mib: config.memory_mb, vcpus: config.vcpus, sandbox: true };
        let permit = inner.admission.admit(wanted).map_err(|refused| {
            let code = match refused {
                Refused::Full { .. } => ErrorResponseCode::CapacityExceeded,
                Refused::Quota { .. } => ErrorResponseCode::QuotaExceeded,
            };
            Error { retry_after: Some(Duration::from_secs(5)), ..Error::new(code, refused.to_string()) }
        })?;

        let id = SandboxId::new();
        let now = Timestamp::now();
        let idempotency = match idempotency_key {
            None => None,
            Some(key) => Some(Idempotency { key, request_digest: digest(&request)? }),
        };
        let row = NewSandbox {
            id,
            artifact: resolved.artifact.id,
            template_ref: reference.to_owned(),
            config: json!(config),
            metadata: json!(request.metadata.clone().unwrap_or_default()),
            timeout_at: Some(now + SignedDuration::from_millis(timeout_ms.try_into().unwrap_or(i64::MAX))),
            host: inner.config.host.clone(),
            idempotency,
        };
        let starting = inner.sandboxes.begin(id);
        let repeatable = row.idempotency.is_some();
        let insert = async {
            match inner.metadata.insert_sandbox(caller, row, now).await {
                Ok(Inserted::New(_)) => Ok(None),
                Ok(Inserted::Repeated(sandbox)) => Ok(Some(sandbox)),
                Err(error) => Err(error).or_missing(|| Error::template_not_found(reference)),
            }
        };
        let insert = if repeatable {
            match insert.await? {
                Some(sandbox) => return created(&sandbox, Vec::new()),
                None => Either::Left(ready(Ok(None))),
            }
        } else {
            Either::Right(insert)
        };
        let (resumed, is_resumed) = oneshot::channel();
        let record = async {
            insert.await?;
            if is_resumed.await.is_err() {
                return Ok(Err(StoreError::Conflict { what: "the sandbox has no machine".to_owned() }));
            }
            Ok(inner.metadata.set_sandbox_status(id, SandboxStatus::Running, None, Timestamp::now()).await)
        };
        let resume = resume(&runtime, &envs, &config.cwd);
        let restore = inner.restore(id, &resolved, summary, resume, &config, permit, resumed);
        let (sandbox, machine, (scratch, root)) = match tokio::join!(record, restore) {
            (Ok(Ok(sandbox)), Ok((machine, had))) => (sandbox, machine, had),
            (Ok(Err(error)), Ok((machine, had))) => {
                discard(machine, had).await;
                inner.give_up(id, "its start could not be recorded").await;
                return Err(of_store(error));
            }
            (Ok(_), Err(error)) => {
                let failed = error.detail.is_some().then(|| error.message.clone());
                inner.give_up(id, failed.as_deref().unwrap_or("the snapshot could not be resumed")).await;
                return Err(error);
            }
            (Err(error), restored) => {
                if let Ok((machine, had)) = restored {
                    discard(machine, had).await;
                }
                return Err(error);
            }
        };
        let live = Arc::new(Live {
            tenant: caller.tenant,
            machine,
            runtime,
            envs,
            cwd: config.cwd.clone(),
            ended: CancellationToken::new(),
            writing: inner.disk.enter(scratch.path(), CancellationToken::new()),
            scratch: Mutex::new(Some(scratch)),
            _root: root,
            followed: Arc::new(Semaphore::new(MAX_FOLLOWED)),
        });
        let machine = Arc::downgrade(&live);
        live.writing.count(move || machine.upgrade().map_or(0, |live| live.machine.vm.nameless_bytes()));
        if !starting.run(&live) {
            live.end().await;
            return Err(Error::sandbox_not_found(&id.to_string()));
        }
        inner.watch(id, &live, sandbox.timeout_at);
        let ms = began.elapsed().as_millis();
        tracing::info!(sandbox_id = %id, template = reference, ms, "sandbox is running");
        created(&sandbox, warnings(&request, &config))
    }
}

impl Inner {
    /// Records that a sandbox has failed to start.
    async fn give_up(&self, id: SandboxId, reason: &str) {
        self.set_status(id, SandboxStatus::Error, Some(reason)).await;
        self.collect.notify_one();
    }

    /// Resumes the snapshot for a sandbox. `resumed` is told when the machine runs, and dropped when it never will.
    #[allow(clippy::too_many_arguments, reason = "each is another thing of a sandbox's start, used once")]
    async fn restore(
        &self,
        id: SandboxId,
        resolved: &Resolved,
        summary: SnapshotSummary,
        resume: Option<Exec>,
        config: &Config,
        permit: Permit,
        resumed: oneshot::Sender<()>,
    ) -> Result<(Machine, (Scratch, RootfsPin))> {
        let root = self.files.open_rootfs(&resolved.artifact.rootfs).await.map_err(|error| match error {
            StoreError::Damaged { what } => {
                tracing::error!(artifact = %resolved.artifact.id, what, "a template's root image is damaged");
                let message = "the stored disk of this template is damaged: build the template again with skip_cache";
                Error::new(ErrorResponseCode::RebuildRequired, message)
            }
            other => of_store(other),
        })?;
        let snapshot_dir = self.files.artifact_dir(&resolved.artifact.folder).stored()?;
        if !snapshot_dir.is_dir() {
            tracing::error!(artifact = %resolved.artifact.id, "a template's snapshot is missing: see `nullspace store verify`");
            let message = "the stored snapshot of this template is missing: build the template again";
            return Err(Error::new(ErrorResponseCode::RebuildRequired, message));
        }
        let scratch = self.files.scratch().stored()?;
        let spec = RestoreSpec {
            id: format!("sb-{}", id.uuid().as_simple()),
            base: Some(root.path().to_owned()),
            snapshot_dir,
            summary,
            network: if config.internet_access { Network::Internet } else { Network::Isolated },
            work_dir: scratch.path().to_owned(),
        };
        match Machine::restore(self.vmm.as_ref(), spec, resume, permit, resumed).await {
            Ok(machine) => Ok((machine, (scratch, root))),
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
                Err(disk::full(None))
            }
            Err(error) => Err(internal("resume a snapshot", &error)),
        }
    }
}

/// What the template runs at every resume: as its start command, in the sandbox's folder and with its variables.
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

/// A sandbox that its own hooks refuse: the template's fault, not the host's.
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

/// Ends a machine that nobody will use, and removes what it had.
async fn discard(machine: Machine, had: (Scratch, RootfsPin)) {
    machine.end().await;
    drop(had);
}

/// What the contract knows and this version does not serve is refused, never ignored.
fn refuse_unserved(request: &CreateSandboxRequest) -> Result<()> {
    let network = request.network.as_ref().is_some_and(|network| *network != Default::default());
    let pauses = request.lifecycle.as_ref().and_then(|lifecycle| lifecycle.on_timeout);
    for (field, given) in [
        ("snapshot_id", request.snapshot_id.is_some()),
        ("warm_pool", request.warm_pool.is_some()),
        ("desktop", request.desktop.is_some()),
        ("network", network),
        ("volumes", request.volumes.as_ref().is_some_and(|volumes| !volumes.is_empty())),
        ("timeout_action hibernate", request.timeout_action == Some(SandboxTimeoutAction::Hibernate)),
        ("lifecycle.on_timeout pause", pauses == Some(LifecycleConfigOnTimeout::Pause)),
        ("inactivity_timeout_ms", request.inactivity_timeout_ms.is_some()),
        ("auto_delete_after_ms", request.auto_delete_after_ms.is_some()),
        ("auto_resume", request.auto_resume == Some(true)),
    ] {
        if given {
            return Err(Error::not_implemented(format!("{field} is not in this version: leave it out")));
        }
    }
    Ok(())
}

/// `disk_mb` is the least that a sandbox's disk must have: what the template's has not, none of its sandboxes can.
fn fits(request: &CreateSandboxRequest, config: &Config) -> Result<()> {
    match request.disk_mb {
        Some(asked) if asked > config.disk_mb => Err(Error::invalid(format!(
            "disk_mb is {asked}: it must be at most {}, which the template's disk has; a template with a larger one is \
             built with build_config.disk_mb",
            config.disk_mb
        ))),
        _ => Ok(()),
    }
}

/// `vcpus` and `memory_mb` are the snapshot's, whatever is asked for.
fn warnings(request: &CreateSandboxRequest, config: &Config) -> Vec<String> {
    [("vcpus", request.vcpus, config.vcpus), ("memory_mb", request.memory_mb, config.memory_mb)]
        .into_iter()
        .filter_map(|(field, asked, has)| match asked {
            Some(asked) if asked != has => Some(format!("{field} is {has}, as in the template, not {asked}")),
            _ => None,
        })
        .collect()
}

/// Digest of a request, to tell a repetition from another request under the same idempotency key.
fn digest(request: &CreateSandboxRequest) -> Result<String> {
    let bytes = serde_json::to_vec(request).map_err(|error| internal("digest a request", &error))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}
