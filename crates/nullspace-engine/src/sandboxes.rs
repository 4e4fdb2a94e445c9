//! Sandboxes: machines resumed from a template's snapshot, each its own, until their time is up.
//!
//! ```text
//!  create ──> creating ──restored, new identity──> running ──destroy, timeout──> destroyed
//!                 └── restore failed ──> error         └── machine ended by itself ──> error
//! ```
//! A sandbox lives in this process: when the service stops, its sandboxes end. The database remembers them.
//!
//! Size of a sandbox: a snapshot fixes vCPUs, memory and disk. A create that asks for others gets the template's, and
//! `warnings` in the answer says so.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nullspace_api::{
    CreateSandboxRequest, CreateSandboxResponse, DestroySandboxResponse, ErrorResponseCode, ExecRequest, ExecResponse,
    JsonObject, LifecycleConfigOnTimeout, ProcessInfo, SandboxConfig, SandboxInfo, SandboxStatus as WireStatus,
    SandboxTimeoutAction,
};
use nullspace_guest::host::AgentError;
use nullspace_guest::message::{Exec, FailureKind};
use nullspace_store::{
    Caller, Idempotency, Inserted, NewSandbox, Resolved, Sandbox, SandboxFilter, SandboxId, SandboxStatus, Scratch,
    StoreError, TenantId,
};
use nullspace_vmm::{Network, RestoreSpec, SnapshotSummary, VmmError};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::failure::chain;
use crate::machine::{Machine, MachineError};
use crate::plan::Runtime;
use crate::records::column;
use crate::validate::{check_envs, check_workdir};
use crate::{Engine, Inner};

/// Longest life that a create may ask for.
const MAX_TIMEOUT_MS: u64 = 24 * 3600 * 1000;
/// Bytes of stdout and of stderr that an exec answers with.
const MAX_OUTPUT: usize = 10 * 1024 * 1024;
/// Longest command that `exec` waits for.
const MAX_EXEC_SECS: u64 = 3600;

/// What the database keeps of a sandbox's size and settings.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Config {
    vcpus: u32,
    memory_mb: u32,
    disk_mb: u32,
    timeout_ms: u64,
    cwd: String,
    internet_access: bool,
}

/// A sandbox whose machine runs here.
struct Live {
    tenant: TenantId,
    machine: Machine,
    runtime: Runtime,
    envs: BTreeMap<String, String>,
    cwd: String,
    /// Stops the task that watches over it.
    ended: CancellationToken,
    scratch: Mutex<Option<Scratch>>,
}

/// The sandboxes of this process.
#[derive(Default)]
pub(crate) struct Sandboxes {
    live: Mutex<HashMap<SandboxId, Arc<Live>>>,
}

impl Sandboxes {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxId, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A page of sandboxes.
#[derive(Debug)]
pub struct SandboxPage {
    /// Newest first.
    pub sandboxes: Vec<SandboxInfo>,
    /// Where the next page begins.
    pub next_token: Option<String>,
}

/// Which sandboxes to list.
#[derive(Debug, Clone, Default)]
pub struct SandboxQuery {
    /// In one of these; empty: those that are not over.
    pub statuses: Vec<WireStatus>,
    /// At most so many, 1 to 1000; `None`: 1000.
    pub limit: Option<u32>,
    /// Where to go on.
    pub next_token: Option<String>,
    /// Made from this reference, as it was written.
    pub template: Option<String>,
    /// Having all these labels.
    pub metadata: JsonObject,
}

impl Engine {
    /// Resumes a template's snapshot. Returns when the guest is a new one and answers.
    ///
    /// Dropping the future does not stop the work: a caller who hangs up leaves a sandbox that lists and times out, never
    /// half of one.
    pub async fn create_sandbox(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        idempotency_key: Option<String>,
    ) -> Result<CreateSandboxResponse> {
        let (engine, caller) = (self.clone(), caller.clone());
        let work = async move { engine.create(&caller, request, idempotency_key).await };
        joined(self.inner.tasks.spawn(work).await)
    }

    async fn create(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        idempotency_key: Option<String>,
    ) -> Result<CreateSandboxResponse> {
        let began = Instant::now();
        refuse_unserved(&request)?;
        let envs = check_envs("envs", request.envs.as_ref())?;
        let timeout_ms = request.timeout_ms.unwrap_or(CreateSandboxRequest::DEFAULT_TIMEOUT_MS);
        if !(1..=MAX_TIMEOUT_MS).contains(&timeout_ms) {
            return Err(Error::invalid(format!("timeout_ms is {timeout_ms}: it must be 1 to {MAX_TIMEOUT_MS}")));
        }
        if let Some(cwd) = &request.cwd {
            check_workdir("cwd", cwd)?;
        }
        let reference = request.template.as_deref().unwrap_or(CreateSandboxRequest::DEFAULT_TEMPLATE);
        let inner = &self.inner;
        let resolved = inner.resolve(caller, reference).await?;
        let runtime: Runtime = column("artifacts.runtime", &resolved.artifact.runtime.0)?;
        let summary: SnapshotSummary = column("artifacts.snapshot", &resolved.artifact.snapshot)?;
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
        let permit = inner.admission.admit(config.memory_mb, config.vcpus).map_err(|full| Error {
            retry_after: Some(Duration::from_secs(5)),
            ..Error::new(ErrorResponseCode::CapacityExceeded, full.to_string())
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
        let inserted = inner.metadata.insert_sandbox(caller, row, now).await;
        match inserted.map_err(|error| Error::store(error, || Error::template_not_found(reference)))? {
            Inserted::Repeated(sandbox) => return created(&sandbox, Vec::new()),
            Inserted::New(_) => {}
        }
        let restored = inner.restore(id, &resolved, summary, &config, permit).await;
        let (machine, scratch) = match restored {
            Ok(restored) => restored,
            Err(error) => {
                let status = (SandboxStatus::Error, Some("the snapshot could not be resumed"));
                inner.set_status(id, status.0, status.1).await;
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
            scratch: Mutex::new(Some(scratch)),
        });
        inner.sandboxes.lock().insert(id, Arc::clone(&live));
        let status = inner.metadata.set_sandbox_status(id, SandboxStatus::Running, None, Timestamp::now()).await;
        let sandbox = match status {
            Ok(sandbox) => sandbox,
            Err(error) => {
                inner.end_sandbox(id, SandboxStatus::Error, Some("its start could not be recorded")).await;
                return Err(error.into());
            }
        };
        inner.watch(id, &live, sandbox.timeout_at);
        let ms = began.elapsed().as_millis();
        tracing::info!(sandbox_id = %id, template = reference, ms, "sandbox is running");
        created(&sandbox, warnings(&request, &config))
    }

    /// One sandbox of the caller's, also one that has ended.
    pub async fn get_sandbox(&self, caller: &Caller, id: &str) -> Result<SandboxInfo> {
        let sandbox = self.inner.metadata.get_sandbox(caller, parse(id)?).await;
        info(&sandbox.map_err(|error| Error::store(error, || Error::sandbox_not_found(id)))?)
    }

    /// The caller's sandboxes, newest first.
    pub async fn list_sandboxes(&self, caller: &Caller, query: SandboxQuery) -> Result<SandboxPage> {
        let limit = query.limit.unwrap_or(1000).clamp(1, 1000);
        let after = match &query.next_token {
            None => None,
            Some(token) => Some(token.parse().map_err(|_| Error::invalid("next_token is not one that was given out"))?),
        };
        let statuses = query.statuses.into_iter().map(status_to_store).collect();
        let mut filter = SandboxFilter { statuses, after, limit };
        let mut page = SandboxPage { sandboxes: Vec::new(), next_token: None };
        loop {
            let found = self.inner.metadata.list_sandboxes(caller, filter.clone()).await?;
            let full = found.len() >= limit as usize;
            for sandbox in found {
                filter.after = Some(sandbox.id);
                let wanted = query.template.as_ref().is_none_or(|template| *template == sandbox.template_ref)
                    && query.metadata.iter().all(|(key, value)| sandbox.metadata.get(key) == Some(value));
                if !wanted {
                    continue;
                }
                page.sandboxes.push(info(&sandbox)?);
                if page.sandboxes.len() == limit as usize {
                    page.next_token = filter.after.map(|id| id.to_string());
                    return Ok(page);
                }
            }
            if !full {
                return Ok(page);
            }
        }
    }

    /// Ends a sandbox; returns when nothing of it is left.
    pub async fn destroy_sandbox(&self, caller: &Caller, id: &str) -> Result<DestroySandboxResponse> {
        let parsed = parse(id)?;
        let missing = || Error::sandbox_not_found(id);
        let sandbox = self.inner.metadata.get_sandbox(caller, parsed).await;
        let sandbox = sandbox.map_err(|error| Error::store(error, missing))?;
        if sandbox.status.is_final() {
            return Err(missing());
        }
        let inner = Arc::clone(&self.inner);
        let work = async move {
            inner.end_sandbox(parsed, SandboxStatus::Destroyed, None).await;
            Ok(())
        };
        joined(self.inner.tasks.spawn(work).await)?;
        Ok(DestroySandboxResponse { id: id.to_owned(), status: WireStatus::Destroyed })
    }

    /// Runs a command in a sandbox and waits for its end.
    pub async fn exec(&self, caller: &Caller, id: &str, request: ExecRequest) -> Result<ExecResponse> {
        let live = self.live(caller, id).await?;
        let exec = command(&live, &request)?;
        let timeout_ms = exec.timeout_ms.unwrap_or_default();
        let failed = |error| exec_error(error, &request.command);
        if request.background == Some(true) {
            let exec = Exec { timeout_ms: None, ..exec };
            let pid = live.machine.agent.start_service(exec).await.map_err(failed)?;
            return Ok(ExecResponse { exit_code: 0, stdout: String::new(), stderr: String::new(), pid: Some(pid) });
        }
        let run = live.machine.agent.exec_collect(exec, MAX_OUTPUT);
        let output = tokio::select! {
            biased;
            output = run => output.map_err(failed)?,
            () = live.ended.cancelled() => return Err(Error::sandbox_not_found(id)),
        };
        if output.exit.timed_out {
            return Err(Error::new(
                ErrorResponseCode::ExecTimeout,
                format!(
                    "the command did not end within {timeout_ms} ms and was stopped; give it a higher timeout_secs"
                ),
            ));
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut stderr = text(&output.stderr);
        if output.truncated {
            stderr.push_str(&format!("\n[nullspace: output beyond {MAX_OUTPUT} bytes was dropped]\n"));
        }
        let stdout = text(&output.stdout);
        Ok(ExecResponse { exit_code: output.exit.code, stdout, stderr, pid: Some(output.pid) })
    }

    /// The processes in a sandbox.
    pub async fn processes(&self, caller: &Caller, id: &str) -> Result<Vec<ProcessInfo>> {
        let live = self.live(caller, id).await?;
        let processes = live.machine.agent.processes().await.map_err(|error| exec_error(error, "processes"))?;
        let shown = |process: nullspace_guest::message::Process| ProcessInfo {
            pid: process.pid,
            command: process.command,
            running: process.running,
        };
        Ok(processes.into_iter().map(shown).collect())
    }

    async fn live(&self, caller: &Caller, id: &str) -> Result<Arc<Live>> {
        let parsed = parse(id)?;
        let live = self.inner.sandboxes.lock().get(&parsed).cloned();
        match live {
            Some(live) if live.tenant == caller.tenant => Ok(live),
            Some(_) => Err(Error::sandbox_not_found(id)),
            None => {
                let sandbox = self.inner.metadata.get_sandbox(caller, parsed).await;
                let sandbox = sandbox.map_err(|error| Error::store(error, || Error::sandbox_not_found(id)))?;
                if sandbox.status == SandboxStatus::Creating {
                    let message = format!("sandbox {id} is not running yet; try again");
                    return Err(Error::new(ErrorResponseCode::SandboxNotReady, message));
                }
                Err(Error::sandbox_not_found(id))
            }
        }
    }
}

impl Inner {
    async fn restore(
        &self,
        id: SandboxId,
        resolved: &Resolved,
        summary: SnapshotSummary,
        config: &Config,
        permit: crate::admission::Permit,
    ) -> Result<(Machine, Scratch)> {
        let scratch = self.files.scratch()?;
        let spec = RestoreSpec {
            id: format!("sb-{}", id.uuid().as_simple()),
            base: Some(self.files.rootfs_path(&resolved.artifact.rootfs.file)?),
            snapshot_dir: self.files.artifact_dir(&resolved.artifact.folder)?,
            summary,
            network: if config.internet_access { Network::Internet } else { Network::Isolated },
            work_dir: scratch.path().to_owned(),
        };
        match Machine::restore(self.vmm.as_ref(), spec, permit).await {
            Ok(machine) => Ok((machine, scratch)),
            Err(MachineError::Vmm(VmmError::Incompatible(why))) => {
                Err(Error::new(ErrorResponseCode::IncompatibleSnapshot, format!("{why}; build the template again")))
            }
            Err(error) => Err(Error::internal("resume a snapshot", &error)),
        }
    }

    /// Ends the sandbox when its time is up or its machine has ended.
    fn watch(self: &Arc<Self>, id: SandboxId, live: &Arc<Live>, timeout_at: Option<Timestamp>) {
        let inner = Arc::clone(self);
        let live = Arc::clone(live);
        self.tasks.spawn(async move {
            let up = async {
                match timeout_at {
                    None => std::future::pending().await,
                    Some(at) => tokio::time::sleep(at.duration_since(Timestamp::now()).unsigned_abs()).await,
                }
            };
            tokio::select! {
                () = live.ended.cancelled() => {}
                () = up => {
                    tracing::info!(sandbox_id = %id, "sandbox's time is up");
                    inner.end_sandbox(id, SandboxStatus::Destroyed, Some("its time was up")).await;
                }
                how = live.machine.vm.exited() => {
                    tracing::warn!(sandbox_id = %id, how, "sandbox's machine ended by itself");
                    inner.end_sandbox(id, SandboxStatus::Error, Some("its machine ended by itself")).await;
                }
            }
        });
    }

    /// Ends the machine, removes what it had, and records the end. Whoever comes second finds nothing to do.
    async fn end_sandbox(&self, id: SandboxId, status: SandboxStatus, reason: Option<&str>) {
        let live = self.sandboxes.lock().remove(&id);
        if let Some(live) = live {
            live.ended.cancel();
            live.machine.end().await;
            let scratch = live.scratch.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(scratch);
        }
        self.set_status(id, status, reason).await;
        self.collect.notify_one();
    }

    async fn set_status(&self, id: SandboxId, status: SandboxStatus, reason: Option<&str>) {
        match self.metadata.set_sandbox_status(id, status, reason, Timestamp::now()).await {
            // A conflict: it was ended by somebody else meanwhile.
            Ok(_) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => {
                tracing::error!(sandbox_id = %id, error = %chain(&error), "a sandbox's end could not be recorded");
            }
        }
    }

    /// Ends all sandboxes of this process, side by side.
    pub(crate) async fn end_all_sandboxes(&self, reason: &str) {
        let ids: Vec<SandboxId> = self.sandboxes.lock().keys().copied().collect();
        let ends = ids.into_iter().map(|id| self.end_sandbox(id, SandboxStatus::Destroyed, Some(reason)));
        futures::future::join_all(ends).await;
    }
}

/// The answer of work that went on by itself.
fn joined<T>(done: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    done.unwrap_or_else(|error| Err(Error::internal("a sandbox's task", &error)))
}

fn parse(id: &str) -> Result<SandboxId> {
    id.parse().map_err(|_| Error::sandbox_not_found(id))
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

fn warnings(request: &CreateSandboxRequest, config: &Config) -> Vec<String> {
    [
        ("vcpus", request.vcpus, config.vcpus),
        ("memory_mb", request.memory_mb, config.memory_mb),
        ("disk_mb", request.disk_mb, config.disk_mb),
    ]
    .into_iter()
    .filter_map(|(field, asked, has)| match asked {
        Some(asked) if asked != has => Some(format!("{field} is {has}, as in the template, not {asked}")),
        _ => None,
    })
    .collect()
}

/// Digest of a request, to tell a repetition from another request under the same idempotency key.
fn digest(request: &CreateSandboxRequest) -> Result<String> {
    let bytes = serde_json::to_vec(request).map_err(|error| Error::internal("digest a request", &error))?;
    Ok(blake3::hash(&bytes).to_hex().to_string())
}

fn command(live: &Live, request: &ExecRequest) -> Result<Exec> {
    if request.command.is_empty() {
        return Err(Error::invalid("command is empty"));
    }
    let args = request.args.clone().unwrap_or_default();
    if request.command.contains('\0') || args.iter().any(|arg| arg.contains('\0')) {
        return Err(Error::invalid("command or args contain a NUL character"));
    }
    if let Some(cwd) = &request.cwd {
        check_workdir("cwd", cwd)?;
    }
    let timeout_secs = request.timeout_secs.unwrap_or(ExecRequest::DEFAULT_TIMEOUT_SECS);
    if !(1..=MAX_EXEC_SECS).contains(&timeout_secs) {
        return Err(Error::invalid(format!("timeout_secs is {timeout_secs}: it must be 1 to {MAX_EXEC_SECS}")));
    }
    let mut argv = Vec::with_capacity(args.len() + 4);
    if request.shell == Some(true) {
        // `sh -c line sh args…`: the arguments are $1, $2, …, never part of the line.
        argv.extend(["sh".to_owned(), "-c".to_owned(), request.command.clone()]);
        if !args.is_empty() {
            argv.push("sh".to_owned());
        }
    } else {
        argv.push(request.command.clone());
    }
    argv.extend(args);
    let mut envs = live.runtime.envs.clone();
    envs.extend(live.envs.clone());
    envs.extend(check_envs("envs", request.envs.as_ref())?);
    Ok(Exec {
        argv,
        envs,
        cwd: Some(request.cwd.clone().unwrap_or_else(|| live.cwd.clone())),
        user: request.user.clone().or_else(|| live.runtime.user.clone()),
        timeout_ms: Some(timeout_secs * 1000),
        stdin: false,
    })
}

fn exec_error(error: AgentError, command: &str) -> Error {
    match error {
        AgentError::Failed(failure) => match failure.kind {
            FailureKind::Invalid | FailureKind::UnknownUser | FailureKind::WorkdirNotFound => {
                Error::invalid(failure.message)
            }
            FailureKind::NotFound => Error::new(ErrorResponseCode::NotFound, failure.message),
            _ => Error::new(ErrorResponseCode::ExecFailed, failure.message),
        },
        AgentError::Timeout { .. } => Error::new(
            ErrorResponseCode::ExecTimeout,
            format!("the sandbox did not answer in time while it ran {command:?}"),
        ),
        other => {
            tracing::warn!(error = %chain(&other), "exec failed");
            Error::new(ErrorResponseCode::ExecFailed, "the sandbox stopped answering; create a new one")
        }
    }
}

fn created(sandbox: &Sandbox, warnings: Vec<String>) -> Result<CreateSandboxResponse> {
    let info = info(sandbox)?;
    Ok(CreateSandboxResponse {
        id: info.id,
        status: info.status,
        config: info.config,
        template: info.template,
        created_at: info.created_at,
        metadata: info.metadata,
        started_at: info.started_at,
        timeout_ms: info.timeout_ms,
        timeout_at: info.timeout_at,
        expires_at: info.expires_at,
        timeout_action: info.timeout_action,
        cwd: info.cwd,
        traffic_access_token: None,
        warm_pool_checkout: None,
        warnings,
    })
}

fn info(sandbox: &Sandbox) -> Result<SandboxInfo> {
    let config: Config = column("sandboxes.config", &sandbox.config)?;
    let metadata: JsonObject = column("sandboxes.metadata", &sandbox.metadata)?;
    let left = |at: Timestamp| u64::try_from(at.duration_since(Timestamp::now()).as_millis()).unwrap_or(0);
    Ok(SandboxInfo {
        id: sandbox.id.to_string(),
        status: status_to_wire(sandbox.status),
        config: SandboxConfig { vcpus: config.vcpus, memory_mb: config.memory_mb, disk_mb: Some(config.disk_mb) },
        template: sandbox.template_ref.clone(),
        created_at: sandbox.created_at.into(),
        metadata: Some(metadata),
        started_at: sandbox.started_at.map(Into::into),
        timeout_ms: Some(config.timeout_ms),
        timeout_at: sandbox.timeout_at.map(Into::into),
        expires_at: sandbox.timeout_at.map(Into::into),
        remaining_ms: sandbox.timeout_at.filter(|_| !sandbox.status.is_final()).map(left),
        timeout_action: Some(SandboxTimeoutAction::Destroy),
        last_active_at: None,
        inactivity_timeout_ms: None,
        auto_delete_after_ms: None,
        ephemeral: None,
        cwd: Some(config.cwd),
        snapshot_id: None,
        warm_pool_checkout: None,
    })
}

fn status_to_wire(status: SandboxStatus) -> WireStatus {
    match status {
        SandboxStatus::Creating => WireStatus::Creating,
        SandboxStatus::Running => WireStatus::Running,
        SandboxStatus::Paused => WireStatus::Paused,
        SandboxStatus::Destroyed => WireStatus::Destroyed,
        SandboxStatus::Error => WireStatus::Error,
    }
}

fn status_to_store(status: WireStatus) -> SandboxStatus {
    match status {
        WireStatus::Creating => SandboxStatus::Creating,
        WireStatus::Running => SandboxStatus::Running,
        WireStatus::Paused => SandboxStatus::Paused,
        WireStatus::Destroyed => SandboxStatus::Destroyed,
        WireStatus::Error => SandboxStatus::Error,
    }
}
