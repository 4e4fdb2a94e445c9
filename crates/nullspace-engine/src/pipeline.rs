//! One build from its plan to a snapshot.
//!
//! ```text
//!  prepare    source -> immutable root image, shared by its key           (prepare.rs)
//!  steps      known layers found, the others made in the machine          (steps/)
//!             all known, and an artifact of the same key: it is shared, no machine
//!  startup    machine over a copy-on-write disk; start command runs once
//!  readiness  tcp | http | command | timeout, from inside the guest       (readiness.rs)
//!  snapshot   freeze filesystem, drop the agent, pause, capture, end the machine
//!  publish    files durable under the artifact's name; the caller names them in one transaction
//! ```
//! Everything that the build holds on this host is registered in a [`Scope`], which outlives the future that runs the
//! phases: cancelling is dropping that future and closing the scope.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nullspace_api::{
    TemplateBuildCacheSummary, TemplateBuildLogKind, TemplateBuildLogLevel, TemplateBuildResultMetadata,
    TemplateFailurePhase as Phase,
};
use nullspace_guest::host::{Agent, AgentError, ExecSession};
use nullspace_guest::message::{Exec, Exit, Probe, ProbeCheck, ROOT_FULL};
use nullspace_store::{
    Artifact, Build, FinishReady, Lease, PublishedArtifact, Rootfs, RootfsPin, Scratch, StoreError, TenantId,
};
use nullspace_vmm::{BootSpec, Disk, Ended, Network, SnapshotSummary};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Inner;
use crate::admission::{Permit, Wanted};
use crate::disk::Writing;
use crate::failure::{BuildFailure, chain, reason};
use crate::logs::{BuildLog, entry, to_store};
use crate::machine::{self, Machine, MachineError, SharedMachine};
use crate::output::{Lost, Output};
use crate::plan::{BuildPlan, MachineSize, Runtime, StartCommand};
use crate::preflight;
use crate::prepare::{Prepared, Preparing, unreadable};
use crate::publication;
use crate::readiness::{self, Waited};
use crate::steps::{Stage, Staged};

/// A build waits so long for room on the host.
const ADMISSION: Duration = Duration::from_secs(300);
/// Without a readiness check, a start command that still runs after this counts as ready; see [`settled`].
const SETTLE: Duration = Duration::from_secs(2);
/// The same in a machine that is emulated in software, where programs take a multiple of their time.
const SETTLE_EMULATED: Duration = Duration::from_secs(4);
/// A start command that is PID 1 of a namespace has settled only when its machine is idle for this long: one that is about to
/// end (`node` without a terminal) would take the first commands of each sandbox with it.
const IDLE: Duration = Duration::from_millis(500);
/// Whatever the machine does, a start command has settled after this.
const SETTLE_MOST: Duration = Duration::from_secs(30);

/// What a disk that an older import has filled needs more, MiB.
const ROOM_FOR_MACHINE_MIB: u64 = 64;

/// Why a run ended without an artifact.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The build failed.
    #[error(transparent)]
    Build(#[from] BuildFailure),
    /// The store refused: the lease is lost, or the database is down.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a build holds on this host.
pub(crate) struct Scope {
    scratch: Mutex<Option<Arc<Scratch>>>,
    /// What the machine's disk lies on.
    root: Mutex<Option<RootfsPin>>,
    /// Shared with the task that boots it.
    machine: Arc<Mutex<Option<SharedMachine>>>,
    /// Cancelled when the disk runs full and this build has written most of late.
    pub(crate) overran: CancellationToken,
    /// The folder, among those that are looked at when the disk runs full.
    writing: Mutex<Option<Writing>>,
    /// What the caches were asked for so far; a build that fails shows it too.
    asked: Mutex<TemplateBuildCacheSummary>,
    /// Threads and tasks of the build; the folder stays until they are done.
    pub(crate) tasks: TaskTracker,
    /// Tells those threads and tasks to stop.
    pub(crate) cancel: CancellationToken,
    build: String,
}

impl Scope {
    pub(crate) fn new(build: &Build) -> Scope {
        Scope {
            scratch: Mutex::new(None),
            root: Mutex::new(None),
            machine: Arc::default(),
            overran: CancellationToken::new(),
            writing: Mutex::default(),
            asked: Mutex::default(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            build: build.id.to_string(),
        }
    }

    /// The build's folder, made when first asked for.
    pub(crate) fn scratch(&self, inner: &Inner) -> Result<Arc<Scratch>, StoreError> {
        let mut slot = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scratch) = &*slot {
            return Ok(Arc::clone(scratch));
        }
        let scratch = Arc::new(inner.files.scratch()?);
        let writing = inner.disk.enter(scratch.path(), self.overran.clone());
        let machine = Arc::clone(&self.machine);
        writing.count(move || {
            let machine = machine.lock().unwrap_or_else(PoisonError::into_inner).clone();
            machine.map_or(0, |machine| machine.vm.nameless_bytes())
        });
        *self.writing.lock().unwrap_or_else(PoisonError::into_inner) = Some(writing);
        *slot = Some(Arc::clone(&scratch));
        Ok(scratch)
    }

    /// Keeps a raw root image where it is as long as the build runs, or its next machine stands on another.
    fn stand_on(&self, root: RootfsPin) {
        *self.root.lock().unwrap_or_else(PoisonError::into_inner) = Some(root);
    }

    fn asked(&self, cache: &TemplateBuildCacheSummary) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = *cache;
    }

    /// What the caches were asked for so far.
    pub(crate) fn cache_summary(&self) -> TemplateBuildCacheSummary {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the build's machine printed last, for the log of one that failed; nothing once it has ended.
    pub(crate) fn console_tail(&self) -> Option<String> {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine.as_ref().map(|machine| machine.vm.console_tail())
    }

    /// Whether the machine has failed to write for want of room on the host's disk: what its guest holds for written is
    /// not there.
    pub(crate) fn lost_writes(&self) -> bool {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine.as_ref().is_some_and(|machine| machine.vm.has_lost_writes())
    }

    /// Whether a machine runs.
    pub(crate) fn has_machine(&self) -> bool {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Ends the machine and waits until nothing of it is left.
    async fn end_machine(&self) {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(machine) = machine {
            machine.end().await;
        }
    }

    /// Ends everything; returns when nothing of the build is left on the host but what it published.
    pub(crate) async fn close(&self) {
        self.cancel.cancel();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(60), self.tasks.wait()).await.is_err() {
            tracing::error!(build = self.build, "threads of a build do not end");
        }
        // Last: one of the tasks may have been booting it.
        self.end_machine().await;
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(scratch) = scratch {
            // Removing a folder of gigabytes takes a while.
            let _ = tokio::task::spawn_blocking(move || drop(scratch)).await;
        }
        drop(self.writing.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// Runs all phases. What it returns is durable on disk and not yet named by the database.
pub(crate) async fn run(
    inner: &Arc<Inner>,
    build: &Build,
    lease: &Lease,
    log: &BuildLog,
    scope: &Scope,
) -> Result<FinishReady, Error> {
    let plan: BuildPlan = serde_json::from_value(build.definition.0.clone())
        .map_err(|error| StoreError::Corrupt { what: format!("builds.definition: {error}") })?;

    preflight::context(inner, lease, &plan).await?;
    let began = Instant::now();
    let mut prepared = Preparing { inner, build, lease, plan: &plan, log, scope }.run().await?;
    inner.metrics.phase("prepare", began.elapsed());
    preflight::disk(inner, build, lease, &plan, &prepared, log).await?;
    let stage = Stage { inner, build, lease, plan: &plan, log };
    scope.asked(&prepared.cache);
    let staged = stage.look_up(&mut prepared).await?;
    let found = stage.finished(&staged, &mut prepared).await?;
    scope.asked(&prepared.cache);
    if let Some((same, final_key)) = found {
        publication::say(inner, build, &plan, &staged.runtime, log).await?;
        return reuse(inner, build, &staged, &prepared, same, final_key).await;
    }

    let began = Instant::now();
    let permit = room(inner, build.tenant, &plan.machine, log).await?;
    inner.metrics.phase("admission", began.elapsed());
    let began = Instant::now();
    let machine = boot(inner, build, &plan, &prepared, permit, log, scope).await?;
    let booted = began.elapsed();
    if !staged.is_known() {
        let began = Instant::now();
        let ran = stage.run(&staged, &machine, &mut prepared).await;
        scope.asked(&prepared.cache);
        ran?;
        inner.metrics.phase("build_step", began.elapsed());
    }
    let began = Instant::now();
    start(inner, &machine, &plan, &staged.runtime, log, scope).await?;
    inner.metrics.phase("startup", booted + began.elapsed());
    let began = Instant::now();
    let (snapshot_dir, summary) = snapshot(inner, &machine, log, scope).await?;
    inner.metrics.phase("snapshot", began.elapsed());

    let began = Instant::now();
    let published = inner.files.publish_artifact(&snapshot_dir, build.artifact_id).await?;
    inner.metrics.phase("finalize", began.elapsed());
    // The first sandbox shall not wait for it.
    inner.tasks.spawn(make_ready(Arc::clone(inner), prepared.rootfs.clone()));
    prepared.cache.final_artifact_stores += 1;
    let final_key = stage.final_key(&staged, &prepared);
    let made = Made {
        published,
        disk_bytes: summary.disk_bytes,
        compatibility: json!(summary.compatibility),
        snapshot: json!(summary),
        final_key,
    };
    publication::say(inner, build, &plan, &staged.runtime, log).await?;
    finish(inner, build, &staged.runtime, &prepared, made).await
}

/// An artifact's files, durable, with what is to be known of them.
struct Made {
    published: PublishedArtifact,
    disk_bytes: u64,
    compatibility: Value,
    snapshot: Value,
    final_key: String,
}

/// Ends a build like an earlier one without a machine: it shares that one's files.
async fn reuse(
    inner: &Inner,
    build: &Build,
    staged: &Staged<'_>,
    prepared: &Prepared,
    same: Artifact,
    final_key: String,
) -> Result<FinishReady, Error> {
    let began = Instant::now();
    let published = inner.files.share_artifact(&same.folder, build.artifact_id).await?;
    inner.metrics.phase("finalize", began.elapsed());
    let made = Made {
        published,
        disk_bytes: same.disk_bytes,
        compatibility: same.compatibility,
        snapshot: same.snapshot,
        // Found by the same key from now on: the earlier one may go first.
        final_key,
    };
    finish(inner, build, &staged.runtime, prepared, made).await
}

/// All that the transaction needs which makes the build ready.
async fn finish(
    inner: &Inner,
    build: &Build,
    runtime: &Runtime,
    prepared: &Prepared,
    made: Made,
) -> Result<FinishReady, Error> {
    let runtime_defaults = runtime.shown();
    let result = inner.ready_info(build, &runtime_defaults).await?;
    let metadata = TemplateBuildResultMetadata {
        runtime_defaults: Some(runtime_defaults.clone()),
        oci_metadata: prepared.oci_metadata.clone(),
    };
    let mut last = entry(
        build.into(),
        TemplateBuildLogKind::End,
        TemplateBuildLogLevel::Info,
        format!("Template {} is ready", build.canonical_ref()),
    );
    last.result = Some(result);
    last.result_metadata = Some(metadata);
    Ok(FinishReady {
        folder: made.published.folder,
        rootfs_key: prepared.rootfs.key.clone(),
        disk_bytes: made.disk_bytes,
        stored_bytes: made.published.stored_bytes,
        compatibility: made.compatibility,
        snapshot: made.snapshot,
        runtime: json!(runtime).into(),
        runtime_defaults: json!(runtime_defaults),
        oci_metadata: prepared.oci_metadata.as_ref().map(|metadata| json!(metadata)),
        cache_summary: Some(json!(prepared.cache)),
        retention_expires_at: retention(inner.config.untagged_retention),
        final_key: Some(made.final_key),
        entry: to_store(&last, jiff::Timestamp::now())?,
    })
}

/// Sees to a root image's raw file.
async fn make_ready(inner: Arc<Inner>, rootfs: Rootfs) {
    if let Err(error) = inner.files.open_rootfs(&rootfs).await {
        tracing::warn!(key = rootfs.key, error = %chain(&error), "a root image could not be written back");
    }
}

/// When an artifact that is made now may go, unless a tag points to it then. `None`, for a time that no clock reaches, is
/// for ever.
fn retention(keep: Duration) -> Option<jiff::Timestamp> {
    jiff::Timestamp::now().checked_add(jiff::SignedDuration::try_from(keep).ok()?).ok()
}

/// Waits for room on the host, and in the tenant's quota.
async fn room(inner: &Inner, tenant: TenantId, size: &MachineSize, log: &BuildLog) -> Result<Permit, Error> {
    let wanted = Wanted { tenant, memory_mib: size.memory_mib, vcpus: size.vcpus, sandbox: false };
    let deadline = Instant::now() + ADMISSION;
    let mut said = false;
    loop {
        let full = match inner.admission.admit(wanted) {
            Ok(permit) => return Ok(permit),
            Err(full) => full,
        };
        if Instant::now() >= deadline {
            let failure = BuildFailure::infrastructure(Phase::Prepare, reason::CAPACITY, full.to_string());
            return Err(failure.into());
        }
        if !said {
            said = true;
            log.say("startup", format!("Waiting: {full}")).await?;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn boot(
    inner: &Arc<Inner>,
    build: &Build,
    plan: &BuildPlan,
    prepared: &Prepared,
    permit: Permit,
    log: &BuildLog,
    scope: &Scope,
) -> Result<SharedMachine, Error> {
    let began = Instant::now();
    let work_dir = scope.scratch(inner)?.path().join("machine");
    std::fs::create_dir(&work_dir).map_err(|error| BuildFailure::own(Phase::Prepare, &error))?;
    let root = inner.files.open_rootfs(&prepared.rootfs).await.map_err(unreadable)?;
    let spec = BootSpec {
        id: machine_id(build),
        vcpus: plan.machine.vcpus,
        memory_mib: plan.machine.memory_mib,
        disk: Disk::Overlay { base: root.path().to_owned(), size_bytes: prepared.disk_bytes },
        network: if plan.machine.internet_access { Network::Internet } else { Network::Isolated },
        work_dir,
    };
    // A parent's root image is what was imported once: its user may need the account again.
    let imported = prepared.runtime.user.clone();
    scope.stand_on(root);
    // A task of the scope's: when this future is dropped, the scope still knows what there is to wait for and to end.
    let booting = scope.tasks.spawn({
        let (inner, cancel, held) = (Arc::clone(inner), scope.cancel.clone(), Arc::clone(&scope.machine));
        async move {
            let machine = Arc::new(Machine::boot(inner.vmm.as_ref(), spec, imported, permit, &cancel).await?);
            *held.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&machine));
            Ok(machine)
        }
    });
    let booted = booting.await.map_err(|error| BuildFailure::internal(Phase::Prepare, &error))?;
    let machine: SharedMachine = booted.map_err(|error| match error {
        MachineError::Vmm(error) => BuildFailure::machine(Phase::Prepare, &error),
        MachineError::Agent(error) => BuildFailure::agent(Phase::Prepare, &error),
        MachineError::Root(why) if why.starts_with(ROOT_FULL) => {
            let mib = prepared.disk_bytes >> 20;
            let message = format!("the image leaves its machine no room on the disk of {mib} MiB: {why}");
            let advice = format!("Set build_config.disk_mb to at least {}.", mib + ROOM_FOR_MACHINE_MIB);
            BuildFailure::user(Phase::Prepare, reason::DISK_TOO_SMALL, message, advice)
                .with("needed_mb", mib + ROOM_FOR_MACHINE_MIB)
        }
        MachineError::Root(why) => BuildFailure::user(
            Phase::Prepare,
            reason::ROOT_UNUSABLE,
            format!("the image's root filesystem cannot be used in a machine: {why}"),
            "Check the image: a file or link stands where a folder must be.",
        ),
        MachineError::Cancelled => {
            BuildFailure::infrastructure(Phase::Interrupted, reason::INTERNAL, "the machine's start was given up")
        }
    })?;
    if prepared.disk_bytes > prepared.rootfs.bytes {
        machine.agent.grow_root().await.map_err(|error| BuildFailure::agent(Phase::Prepare, &error))?;
    }
    log.say("startup", format!("Machine booted in {} ms", began.elapsed().as_millis())).await?;
    Ok(machine)
}

/// A machine's id: the end of the build's, which is what differs between builds of one moment.
fn machine_id(build: &Build) -> String {
    let id = build.id.uuid().as_simple().to_string();
    format!("build-{}-{}", &id[16..], build.attempt)
}

/// Runs the start command and waits until it is ready.
async fn start(
    inner: &Inner,
    machine: &SharedMachine,
    plan: &BuildPlan,
    runtime: &Runtime,
    log: &BuildLog,
    scope: &Scope,
) -> Result<(), Error> {
    let began = Instant::now();
    let mut envs = runtime.envs.clone();
    envs.extend(plan.build_envs.clone());
    let dir = runtime.start.as_ref().and_then(|start| start.dir.clone());
    let exec = Exec {
        envs,
        cwd: Some(dir.unwrap_or_else(|| runtime.workdir.clone())),
        make_cwd: true,
        user: runtime.user.clone(),
        ..Exec::default()
    };
    let settle = if inner.vmm.compatibility().is_emulated() { SETTLE_EMULATED } else { SETTLE };
    let up = async {
        let ended = match &runtime.start {
            None => None,
            Some(command) => Some(launch(&machine.agent, command, &exec, log, scope).await?),
        };
        wait_ready(&machine.agent, runtime, &exec, ended, settle, plan.machine.memory_mib).await
    };
    let outcome = tokio::select! {
        biased;
        outcome = up => outcome,
        ended = machine.vm.exited() => return Err(machine_ended(&ended).into()),
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(NotUp::Other(error)) => return Err(error),
        Err(NotUp::Agent(AgentError::Closed)) => {
            let failure = match machine::ended(machine.vm.as_ref()).await {
                Some(ended) => machine_ended(&ended),
                None => BuildFailure::agent(Phase::Readiness, &AgentError::Closed),
            };
            return Err(failure.into());
        }
        Err(NotUp::Agent(error)) => return Err(BuildFailure::agent(Phase::Readiness, &error).into()),
    };
    let ms = began.elapsed().as_millis();
    match outcome {
        Up::Nothing => Ok(()),
        Up::Settled => {
            let line = format!("Ready after {ms} ms: the start command still runs, and no readiness check is given");
            Ok(log.say("readiness", line).await?)
        }
        Up::Done => {
            let line = format!("Ready after {ms} ms: the start command ended with 0, and no readiness check is given");
            Ok(log.say("readiness", line).await?)
        }
        Up::Checked(Waited::Ready { attempts: 0 }) => {
            Ok(log.say("readiness", format!("Ready after {ms} ms: the readiness timeout has passed")).await?)
        }
        Up::Checked(Waited::Ready { attempts }) => {
            log.say("readiness", format!("Ready after {ms} ms ({attempts} probes)")).await?;
            Ok(())
        }
        Up::Checked(Waited::TimedOut { limit, last }) => {
            let message = format!("the readiness check did not pass within {} s: {last}", limit.as_secs());
            let advice = "Read the start command's output in this log; raise timeout_secs if it only needs longer.";
            let failure = BuildFailure::user(Phase::Readiness, reason::READINESS_TIMEOUT, message, advice);
            Err(failure.with("last_probe", last).into())
        }
    }
}

/// Why a start command is not up.
enum NotUp {
    /// The agent could not, or is gone.
    Agent(AgentError),
    /// The command, or the log.
    Other(Error),
}

impl<E: Into<Error>> From<E> for NotUp {
    fn from(error: E) -> Self {
        NotUp::Other(error.into())
    }
}

fn machine_ended(ended: &Ended) -> BuildFailure {
    BuildFailure::machine_ended(
        Phase::Readiness,
        ended,
        "the start command",
        "Check that start_cmd does not power the machine off, and give it more memory_mib.",
    )
}

/// How a start command ended; `None` while it runs.
type StartEnded = watch::Receiver<Option<Exit>>;

/// Starts the command as a service of the guest and sends its output to the log.
async fn launch(
    agent: &Agent,
    command: &StartCommand,
    exec: &Exec,
    log: &BuildLog,
    scope: &Scope,
) -> Result<StartEnded, NotUp> {
    log.say("startup", format!("Running start command: {}", command.shown)).await?;
    let exec = Exec { argv: command.argv.clone(), first: command.first, ..exec.clone() };
    let session = agent.run_service(exec).await.map_err(NotUp::Agent)?;
    let (ended_tx, ended) = watch::channel(None);
    scope.tasks.spawn(follow(session, log.clone(), ended_tx, scope.cancel.clone()));
    Ok(ended)
}

/// Copies a service's output into the log, line by line, until it ends or the session does.
async fn follow(
    mut session: ExecSession,
    log: BuildLog,
    ended: watch::Sender<Option<Exit>>,
    cancel: CancellationToken,
) {
    let mut output = Output::new("startup".into());
    let followed = tokio::select! {
        () = cancel.cancelled() => return,
        followed = output.follow(&mut session, &log) => followed,
    };
    match followed {
        Ok(Some(exit)) => {
            ended.send_replace(Some(exit));
        }
        // The agent is dropped before the snapshot: the usual end.
        Ok(None) | Err(Lost::Agent(_)) => {}
        Err(Lost::Store(error)) => tracing::warn!(%error, "output of the start command could not be logged"),
    }
}

/// By which rule a template counts as ready.
enum Up {
    /// There is no start command, and no readiness check.
    Nothing,
    /// The start command has ended with 0.
    Done,
    /// The start command has run for the settling time.
    Settled,
    /// What the readiness check said.
    Checked(Waited),
}

/// Waits for readiness, or for a start command without one to settle.
async fn wait_ready(
    agent: &Agent,
    runtime: &Runtime,
    exec: &Exec,
    ended: Option<StartEnded>,
    settle: Duration,
    memory_mib: u32,
) -> Result<Up, NotUp> {
    let failed = async {
        let Some(mut ended) = ended.clone() else { return std::future::pending().await };
        let exit = ended.wait_for(|exit| exit.is_some_and(|exit| exit.code != 0)).await.map(|exit| *exit);
        match exit {
            Ok(exit) => exit.unwrap_or_default(),
            // It ended with 0, or its output cannot be followed any more.
            Err(_) => std::future::pending().await,
        }
    };
    let ready = async {
        match (&runtime.readiness, ended.clone()) {
            (Some(readiness), _) => readiness::wait(agent, readiness, exec).await.map(Up::Checked),
            (None, Some(mut ended)) => {
                let first = runtime.start.as_ref().is_some_and(|start| start.first);
                tokio::select! {
                    biased;
                    _ = ended.wait_for(Option::is_some) => Ok(Up::Done),
                    settled = settled(agent, settle, first) => settled.map(|()| Up::Settled),
                }
            }
            (None, None) => Ok(Up::Nothing),
        }
    };
    tokio::select! {
        biased;
        exit = failed => Err(exited(&exit, memory_mib).into()),
        waited = ready => {
            // Both may have become true at once.
            if let Some(exit) = ended.as_ref().and_then(|ended| *ended.borrow()).filter(|exit| exit.code != 0) {
                return Err(exited(&exit, memory_mib).into());
            }
            waited.map_err(NotUp::Agent)
        }
    }
}

/// Returns when a start command that still runs counts as ready: after `settle`, and if it is PID 1 of a namespace
/// (`first`), once its machine is idle or [`SETTLE_MOST`] is over.
async fn settled(agent: &Agent, settle: Duration, first: bool) -> Result<(), AgentError> {
    if !first {
        tokio::time::sleep(settle).await;
        return Ok(());
    }
    let until = Instant::now() + SETTLE_MOST;
    tokio::time::sleep(settle.saturating_sub(IDLE)).await;
    let timeout_ms = u64::try_from(IDLE.as_millis()).unwrap_or(u64::MAX);
    loop {
        let (idle, found) = agent.probe(Probe { check: ProbeCheck::Idle, timeout_ms }).await?;
        if idle || Instant::now() >= until {
            tracing::debug!(found, "start command has settled");
            return Ok(());
        }
    }
}

fn exited(exit: &Exit, memory_mib: u32) -> BuildFailure {
    let how = match exit.signal {
        Some(signal) => format!("was ended by signal {signal}"),
        None => format!("exited with code {}", exit.code),
    };
    if exit.out_of_memory {
        let message =
            format!("the start command {how} before it was ready: the machine's {memory_mib} MiB of memory ran out");
        let advice = format!("Set build_config.memory_mib to more than {memory_mib}, or start less in the machine.");
        return BuildFailure::user(Phase::Readiness, reason::START_CMD_EXITED, message, advice)
            .with("exit_code", exit.code)
            .with("out_of_memory", true)
            .with("memory_mib", memory_mib);
    }
    let advice =
        "Read the start command's last output lines in this log; it must stay up, or exit 0 if it only prepares.";
    BuildFailure::user(
        Phase::Readiness,
        reason::START_CMD_EXITED,
        format!("the start command {how} before it was ready"),
        advice,
    )
    .with("exit_code", exit.code)
}

/// Freezes and captures the machine, and ends it.
async fn snapshot(
    inner: &Inner,
    machine: &SharedMachine,
    log: &BuildLog,
    scope: &Scope,
) -> Result<(std::path::PathBuf, SnapshotSummary), Error> {
    let began = Instant::now();
    let dir = scope.scratch(inner)?.path().join("snapshot");
    std::fs::create_dir(&dir).map_err(|error| BuildFailure::own(Phase::Snapshot, &error))?;
    machine.agent.freeze().await.map_err(|error| BuildFailure::agent(Phase::Snapshot, &error))?;
    // The guest must not remember half a conversation.
    machine.agent.disconnect().await;
    let vm = |error| BuildFailure::machine(Phase::Snapshot, &error);
    machine.vm.pause().await.map_err(vm)?;
    whole(machine, Phase::Snapshot)?;
    let summary = machine.vm.snapshot(&dir).await.map_err(vm)?;
    scope.end_machine().await;
    log.say("snapshot", format!("Snapshot taken in {} ms", began.elapsed().as_millis())).await?;
    Ok((dir, summary))
}

/// Refuses a machine whose disk lacks what its guest has written. Asked after the guest has flushed.
pub(crate) fn whole(machine: &Machine, phase: Phase) -> Result<(), BuildFailure> {
    if machine.vm.has_lost_writes() { Err(BuildFailure::host_disk_full(phase)) } else { Ok(()) }
}
