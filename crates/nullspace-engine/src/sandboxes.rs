//! Sandboxes: machines resumed from a template's snapshot, each its own, until their time is up.
//!
//! ```text
//!  create ──> creating ──restored, new identity──> running ──destroy, timeout──> destroyed
//!                 └── restore failed ──> error         └── machine ended, or cannot be talked to any more ──> error
//! ```
//! Nothing is ever told to a guest that has broken the agent's protocol, or that has not answered its heartbeat for
//! 30 seconds: its sandbox ends then, and gives back what it had.
//! A sandbox lives in this process: when the service stops, its sandboxes end. The database remembers them.
//!
//! Size of a sandbox: a snapshot fixes vCPUs, memory and disk. A create that asks for others gets the template's, and
//! `warnings` in the answer says so.

mod answers;
mod commands;
mod create;
mod fault;
mod files;
mod processes;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{
    CreateSandboxRequest, CreateSandboxResponse, DestroySandboxResponse, ErrorResponseCode, ExecRequest, ExecResponse,
    JsonObject, SandboxInfo, SandboxListPage, SandboxStatus as WireStatus, TemplateFailureDetail,
    TemplateFailureDetailCode, TemplateFailurePhase,
};
use nullspace_guest::host::{AgentError, ExecOutput};
use nullspace_guest::message::{Exec, FailureKind};
use nullspace_service::{Memory, RequestContext, SandboxQuery};
use nullspace_store::{Caller, RootfsPin, SandboxFilter, SandboxId, SandboxStatus, Scratch, StoreError, TenantId};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::answers::{info, status_to_store};
use self::fault::Fault;
use crate::disk::Writing;
use crate::error::{Error, Result, Stored, internal};
use crate::failure::{chain, reason};
use crate::machine::{self, Machine};
use crate::plan::Runtime;
use crate::validate::{check_envs, check_workdir};
use crate::{Engine, Inner};

/// Bytes of stdout and of stderr that an exec answers with.
const MAX_OUTPUT: usize = 10 * 1024 * 1024;
/// Bytes of each stream, its end, that the error of a command has whose time was over.
const MAX_TIMED_OUT_OUTPUT: usize = 64 * 1024;
/// Longest command that `exec` waits for.
const MAX_EXEC_SECS: u64 = 3600;

/// Why a sandbox ended that filled the host's disk.
const DISK_FULL: &str = "host_disk_full: the host's disk ran full, and this sandbox had written most of late";

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
    /// Its folder, among those that are looked at when the host's disk runs full.
    writing: Writing,
    /// What its disk lies on.
    _root: RootfsPin,
    /// Places for commands that somebody follows.
    followed: Arc<Semaphore>,
}

impl Live {
    /// Ends the machine and removes what it had.
    async fn end(&self) {
        self.ended.cancel();
        self.machine.end().await;
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(scratch);
    }
}

/// Where a sandbox of this process stands.
#[derive(Clone)]
enum Place {
    /// It starts. The token is cancelled when that is over, well or badly.
    Starting(CancellationToken),
    /// Its machine can be used.
    Running(Arc<Live>),
}

/// The sandboxes of this process. Who ends one takes its place away first.
#[derive(Default)]
pub(crate) struct Sandboxes {
    places: Mutex<HashMap<SandboxId, Place>>,
    /// Ends that the database did not take: no more than there were machines.
    unrecorded: Mutex<HashMap<SandboxId, (SandboxStatus, Option<String>)>>,
}

impl Sandboxes {
    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sandbox starts.
    fn begin(&self, id: SandboxId) -> Starting<'_> {
        let over = CancellationToken::new();
        self.lock().insert(id, Place::Starting(over.clone()));
        Starting { sandboxes: self, id, over }
    }
}

/// A start under way. Dropping it says that it is over; without [`Starting::run`] the sandbox never came to be.
struct Starting<'a> {
    sandboxes: &'a Sandboxes,
    id: SandboxId,
    over: CancellationToken,
}

impl Starting<'_> {
    /// The sandbox's machine can be used; false when the sandbox was ended meanwhile.
    fn run(&self, live: &Arc<Live>) -> bool {
        match self.sandboxes.lock().get_mut(&self.id) {
            Some(place) => {
                *place = Place::Running(Arc::clone(live));
                true
            }
            None => false,
        }
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        let mut places = self.sandboxes.lock();
        if matches!(places.get(&self.id), Some(Place::Starting(_))) {
            places.remove(&self.id);
        }
        drop(places);
        self.over.cancel();
    }
}

#[async_trait]
impl nullspace_service::Sandboxes for Engine {
    async fn create_sandbox(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        context: &RequestContext,
    ) -> Result<CreateSandboxResponse> {
        let (engine, caller, key) = (self.clone(), caller.clone(), context.idempotency_key.clone());
        let work = async move {
            let began = Instant::now();
            let made = engine.create(&caller, request, key).await;
            engine.inner.metrics.started(made.is_ok(), began.elapsed());
            made
        };
        joined(self.inner.tasks.spawn(work).await)
    }

    async fn get_sandbox(&self, caller: &Caller, id: &str) -> Result<SandboxInfo> {
        let sandbox = self.inner.metadata.get_sandbox(caller, parse(id)?).await;
        info(&sandbox.or_missing(|| Error::sandbox_not_found(id))?)
    }

    async fn list_sandboxes(&self, caller: &Caller, query: SandboxQuery) -> Result<SandboxListPage> {
        let limit = query.limit.unwrap_or(1000).clamp(1, 1000);
        let after = match &query.next_token {
            None => None,
            Some(token) => Some(token.parse().map_err(|_| Error::invalid("next_token is not one that was given out"))?),
        };
        let statuses = query.states.into_iter().map(status_to_store).collect();
        let mut filter = SandboxFilter { statuses, after, limit };
        let mut page = SandboxListPage { items: Vec::new(), next_token: None, has_next: false };
        loop {
            let found = self.inner.metadata.list_sandboxes(caller, filter.clone()).await.stored()?;
            let full = found.len() >= limit as usize;
            for sandbox in found {
                filter.after = Some(sandbox.id);
                let wanted = query.template.as_ref().is_none_or(|template| *template == sandbox.template_ref)
                    && query.metadata.iter().all(|(key, value)| sandbox.metadata.get(key) == Some(value));
                if !wanted {
                    continue;
                }
                if page.items.len() == limit as usize {
                    // Only this one more tells that there is a next page.
                    page.next_token = page.items.last().map(|last| last.id.clone());
                    page.has_next = true;
                    return Ok(page);
                }
                page.items.push(info(&sandbox)?);
            }
            if !full {
                return Ok(page);
            }
        }
    }

    async fn destroy_sandbox(&self, caller: &Caller, id: &str) -> Result<DestroySandboxResponse> {
        let parsed = parse(id)?;
        let missing = || Error::sandbox_not_found(id);
        let sandbox = self.inner.metadata.get_sandbox(caller, parsed).await;
        let sandbox = sandbox.or_missing(missing)?;
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

    async fn exec(&self, caller: &Caller, id: &str, request: ExecRequest, memory: &dyn Memory) -> Result<ExecResponse> {
        let live = self.live(caller, id).await?;
        let exec = command(&live, &request)?;
        let timeout_ms = exec.timeout_ms.unwrap_or_default();
        let failed = |error| exec_error(error, &request.command);
        if request.background == Some(true) {
            let exec = Exec { timeout_ms: None, stdin: true, ..exec };
            let pid = live.machine.agent.start_service(exec).await.map_err(failed)?;
            return Ok(ExecResponse { exit_code: 0, stdout: String::new(), stderr: String::new(), pid: Some(pid) });
        }
        let run = live.machine.agent.exec_collect_while(exec, MAX_OUTPUT, |bytes| memory.grow(bytes).is_ok());
        let output = tokio::select! {
            biased;
            output = run => output.map_err(failed)?,
            () = live.ended.cancelled() => return Err(Error::sandbox_not_found(id)),
        };
        if output.exit.timed_out {
            return Err(timed_out(&output, timeout_ms));
        }
        let kept = output.stdout.len().max(output.stderr.len());
        let (stdout, stdout_cut) = text(output.stdout);
        let (mut stderr, stderr_cut) = text(output.stderr);
        if output.exit.out_of_memory {
            stderr.push_str(
                "\n[nullspace: the machine's memory ran out while this ran; memory_mib of the template sets it]\n",
            );
        }
        if output.exit.first_ended {
            stderr.push_str(
                "\n[nullspace: the image's own command ended while this ran; it is PID 1, so everything beside it ended with it]\n",
            );
        }
        if output.truncated || stdout_cut || stderr_cut {
            let notice = if kept >= MAX_OUTPUT || stdout_cut || stderr_cut {
                format!("\n[nullspace: output beyond {MAX_OUTPUT} bytes was dropped]\n")
            } else {
                let why = "there was no memory for more of it: run fewer commands with much output at once";
                format!("\n[nullspace: output was dropped, {why}]\n")
            };
            stderr.push_str(&notice);
        }
        Ok(ExecResponse { exit_code: output.exit.code, stdout, stderr, pid: Some(output.pid) })
    }
}

impl Engine {
    async fn live(&self, caller: &Caller, id: &str) -> Result<Arc<Live>> {
        let parsed = parse(id)?;
        let place = self.inner.sandboxes.lock().get(&parsed).cloned();
        let starts = match place {
            Some(Place::Running(live)) if live.tenant == caller.tenant => return Ok(live),
            Some(Place::Running(_)) => return Err(Error::sandbox_not_found(id)),
            Some(Place::Starting(_)) => true,
            None => false,
        };
        let sandbox = self.inner.metadata.get_sandbox(caller, parsed).await;
        let sandbox = sandbox.or_missing(|| Error::sandbox_not_found(id))?;
        if starts || sandbox.status == SandboxStatus::Creating {
            let message = format!("sandbox {id} is not running yet; try again");
            return Err(Error::new(ErrorResponseCode::SandboxNotReady, message));
        }
        Err(Error::sandbox_not_found(id))
    }
}

impl Inner {
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
                // First: whoever ends a sandbox also ends its machine and its connection.
                biased;
                () = live.ended.cancelled() => {}
                () = up => {
                    tracing::info!(sandbox_id = %id, "sandbox's time is up");
                    inner.end_sandbox(id, SandboxStatus::Destroyed, Some("its time was up")).await;
                }
                () = live.writing.overran.cancelled() => {
                    tracing::warn!(sandbox_id = %id, "sandbox is ended: the host's disk runs full, and it has written most");
                    inner.end_sandbox(id, SandboxStatus::Error, Some(DISK_FULL)).await;
                }
                ended = live.machine.vm.exited() => inner.fail_sandbox(id, &Fault::Machine(ended)).await,
                error = live.machine.agent.closed() => {
                    // A machine that ends takes the connection with it first.
                    let ended = match &error {
                        AgentError::Closed => machine::ended(live.machine.vm.as_ref()).await,
                        _ => None,
                    };
                    let fault = ended.map_or(Fault::Agent(error), Fault::Machine);
                    inner.fail_sandbox(id, &fault).await;
                }
            }
        });
    }

    /// Ends a sandbox that no longer works.
    async fn fail_sandbox(&self, id: SandboxId, fault: &Fault) {
        let (code, why) = (fault.code(), fault.to_string());
        tracing::warn!(sandbox_id = %id, reason = code, why, "sandbox failed and is ended");
        self.metrics.sandbox_failed(code);
        self.end_sandbox(id, SandboxStatus::Error, Some(&format!("{code}: {}", fault.shown()))).await;
    }

    /// Ends the machine, removes what it had, and records the end. Whoever comes second finds nothing to do.
    async fn end_sandbox(&self, id: SandboxId, status: SandboxStatus, reason: Option<&str>) {
        let place = self.sandboxes.lock().remove(&id);
        match place {
            Some(Place::Running(live)) => live.end().await,
            // It finds its place taken away, and ends what it has. Bounded, as each step of a start is.
            Some(Place::Starting(over)) => over.cancelled().await,
            None => {}
        }
        self.set_status(id, status, reason).await;
        self.collect.notify_one();
    }

    async fn set_status(&self, id: SandboxId, status: SandboxStatus, reason: Option<&str>) {
        match self.metadata.set_sandbox_status(id, status, reason, Timestamp::now()).await {
            // A conflict: it was ended by somebody else meanwhile.
            Ok(_) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => {
                tracing::error!(sandbox_id = %id, error = %chain(&error), "a sandbox's end is not recorded yet");
                let mut unrecorded = self.sandboxes.unrecorded.lock().unwrap_or_else(PoisonError::into_inner);
                unrecorded.insert(id, (status, reason.map(str::to_owned)));
            }
        }
    }

    /// Records ends that the database did not take when they came.
    pub(crate) async fn record_ends(&self) {
        let unrecorded = std::mem::take(&mut *self.sandboxes.unrecorded.lock().unwrap_or_else(PoisonError::into_inner));
        for (id, (status, reason)) in unrecorded {
            self.set_status(id, status, reason.as_deref()).await;
        }
    }

    /// Ends all sandboxes of this process, side by side.
    pub(crate) async fn end_all_sandboxes(&self, reason: &str) {
        let ids: Vec<SandboxId> = self.sandboxes.lock().keys().copied().collect();
        let ends = ids.into_iter().map(|id| self.end_sandbox(id, SandboxStatus::Destroyed, Some(reason)));
        futures::future::join_all(ends).await;
    }
}

/// A command whose time is over, with the end of what it wrote.
fn timed_out(output: &ExecOutput, timeout_ms: u64) -> Error {
    let message = format!("the command did not end within {timeout_ms} ms and was stopped");
    let advice = "Give it a higher timeout_secs, or run it in the background.".to_owned();
    let end = |bytes: &[u8]| {
        let from = bytes.len().saturating_sub(MAX_TIMED_OUT_OUTPUT);
        String::from_utf8_lossy(bytes.get(from..).unwrap_or_default()).into_owned()
    };
    let cut = |bytes: &[u8]| bytes.len() > MAX_TIMED_OUT_OUTPUT;
    let (code, phase) = (TemplateFailureDetailCode::BuildError, TemplateFailurePhase::Interrupted);
    let mut detail = TemplateFailureDetail::new(code, phase, false, message.clone(), advice);
    let mut details = JsonObject::new();
    details.insert("stdout".to_owned(), end(&output.stdout).into());
    details.insert("stderr".to_owned(), end(&output.stderr).into());
    details.insert("truncated".to_owned(), (output.truncated || cut(&output.stdout) || cut(&output.stderr)).into());
    detail.details = Some(details);
    Error {
        detail: Some(Box::new(detail.with_reason(reason::EXEC_TIMEOUT))),
        ..Error::new(ErrorResponseCode::ExecTimeout, format!("{message}; give it a higher timeout_secs"))
    }
}

/// The answer of work that went on by itself.
fn joined<T>(done: std::result::Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    done.unwrap_or_else(|error| Err(internal("a sandbox's task", &error)))
}

/// Output as text of at most [`MAX_OUTPUT`] bytes, and whether some was cut off: a byte that is no text becomes three.
fn text(bytes: Vec<u8>) -> (String, bool) {
    let mut text =
        String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    let cut = text.len() > MAX_OUTPUT;
    if cut {
        text.truncate(text.floor_char_boundary(MAX_OUTPUT));
        text.shrink_to_fit();
    }
    (text, cut)
}

fn parse(id: &str) -> Result<SandboxId> {
    id.parse().map_err(|_| Error::sandbox_not_found(id))
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
        // The template's or the sandbox's own is made when it is missing, as a container's; one that is named for a
        // command has to be there.
        make_cwd: request.cwd.is_none(),
        user: request.user.clone().or_else(|| live.runtime.user.clone()),
        timeout_ms: Some(timeout_secs * 1000),
        ..Exec::default()
    })
}

fn exec_error(error: AgentError, command: &str) -> Error {
    match error {
        AgentError::Failed(failure) => match failure.kind {
            FailureKind::Invalid | FailureKind::UnknownUser | FailureKind::WorkdirNotFound => {
                Error::invalid(failure.message)
            }
            FailureKind::NotFound => Error::new(ErrorResponseCode::NotFound, failure.message),
            FailureKind::StdinClosed => Error::new(ErrorResponseCode::TransitionConflict, failure.message),
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
