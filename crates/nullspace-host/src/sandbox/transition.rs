//! Pauses, snapshots and forks: the capture of a running sandbox.
//!
//! ```text
//!             begin: one at a time, a second one is refused
//!   running ────────> draining ──────> frozen ─────────────────────────> running        snapshot, fork
//!      ^   new operations │   freeze, disconnect,     resume, connect,  │
//!      │   wait; a pause  │   pause the vCPUs,        attach followers, │
//!      │   refuses them   │   write the files         thaw              │
//!      │                  │      │      └── keep, frozen ── record ─────┴──> ended      pause
//!      └── still in use ──┘      └── any failure: it goes on as above; if it cannot: ended, by a fault
//! ```
//! What becomes of the operations of a sandbox:
//!
//! | operation | snapshot, fork | pause |
//! |---|---|---|
//! | under way: a command that is waited for, a transfer of a file | it goes on | it has 2 s to end, then it fails with `transition_in_progress` |
//! | new | it waits, at most a minute | it fails with `transition_in_progress` |
//! | a followed command | its output goes on without loss | its stream ends with an error; the command runs on after a resume, and can be followed again |
//! | a command in the background | it runs on | it runs on after a resume |
//!
//! An agent with the capability [`Halt`](Capability::Halt) keeps its session over the capture ([`Agent::rejoin`]), and stops
//! all processes of the guest meanwhile. With an older one a new session begins, which ends the operations of the one before:
//! what is under way is waited for, 5 s, and then the snapshot is refused. Commands are followed again, see
//! [`followers`](super::followers).
//!
//! Inside the frozen window are the flush of the guest's filesystem, the capture (raw files of what the machine has changed, over
//! a copy of the template's that is made before), and for a snapshot the new connection. The files are chunked, compressed and
//! stored after it. The machine of a pause stands still until control has recorded the capture, so that nothing happens that the
//! snapshot lacks; its files are neither flushed nor stored by then ([`keep`](Transition::keep)).
//!
//! A machine that ends meanwhile ends the sandbox as any other. The guest is trusted with nothing here: an agent that does not
//! confirm within its time limit ends the machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nullspace_api::ErrorResponseCode;
use nullspace_data::{ArtifactStore, Room, Scratch};
use nullspace_guest::capability::Capability;
use nullspace_guest::host::{Agent, AgentError};
use nullspace_host_interface::{Captured, internal, storage_full};
use nullspace_service::{Error, Result, chain};
use nullspace_types::{ArtifactId, SandboxId, Streams};
use nullspace_vmm::{EndCause, Ended, SnapshotSummary};
use serde_json::json;
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use super::actors::{Actors, Place, failed};
use super::fault::Fault;
use super::followers::Attached;
use super::gate::Why;
use super::live::Live;
use crate::disk::{Writing, stored};
use crate::failures::of_data;
use crate::machine::{MachineError, restore_limit, unix_time_ns};

/// Time for operations under way to end before a snapshot.
const DRAIN: Duration = Duration::from_secs(5);
/// The same before a pause, which then interrupts them.
const DRAIN_FOR_PAUSE: Duration = Duration::from_secs(2);
/// Time for interrupted operations to notice.
const INTERRUPTED: Duration = Duration::from_secs(10);
/// New connections to an agent of a machine that goes on: a vsock is reset once, more than a few mean something else.
const MAX_RESETS: u32 = 5;
/// Time after which a refused transition should be tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// A pause, snapshot or fork of a running sandbox. Dropping it while the machine stands still lets the machine go on.
pub(super) struct Transition {
    pub(super) live: Arc<Live>,
    pub(super) actors: Arc<Actors>,
    why: Why,
    /// Given back when it is over.
    turn: Option<OwnedMutexGuard<()>>,
    /// The gate is closed, and nobody else opens it.
    closed: bool,
    /// The agent keeps its session.
    halts: bool,
    /// When the machine began to stand still, until it goes on or ends.
    frozen: Option<Instant>,
    /// It was dropped once, and a task lets the machine go on. Tasks that are dropped with their runtime start no others.
    rescued: bool,
}

/// The files of a capture, in a scratch folder.
pub(super) struct Files {
    pub(super) dir: PathBuf,
    pub(super) scratch: Scratch,
    pub(super) writing: Writing,
    pub(super) summary: SnapshotSummary,
    /// Bytes of the files on the disk.
    pub(super) bytes: u64,
    room: Room,
}

impl Transition {
    /// Begins a transition of a running sandbox.
    ///
    /// # Errors
    /// `transition_in_progress` while another one is under way; `sandbox_not_ready` while it starts; not found.
    pub(super) fn begin(actors: &Arc<Actors>, id: SandboxId, why: Why) -> Result<Transition> {
        let live = match actors.places().get(&id) {
            Some(Place::Running(live)) => Arc::clone(live),
            Some(Place::Starting(..)) => {
                let message = format!("sandbox {id} is starting; ask again when it runs");
                return Err(retry(Error::new(ErrorResponseCode::SandboxNotReady, message)));
            }
            None => return Err(Error::sandbox_not_found(&id.to_string())),
        };
        let turn = Arc::clone(&live.turn).try_lock_owned().map_err(|_| {
            let message =
                format!("another pause, snapshot or fork of sandbox {id} is under way; ask again when it has ended");
            retry(Error::new(ErrorResponseCode::TransitionInProgress, message))
        })?;
        let halts = live.gate.agent().info().can(Capability::Halt);
        Ok(Transition {
            live,
            actors: Arc::clone(actors),
            why,
            turn: Some(turn),
            closed: false,
            halts,
            frozen: None,
            rescued: false,
        })
    }

    /// Closes the gate if nothing has used the sandbox since a time. A use that begins meanwhile waits for the answer, and goes on
    /// when it was first.
    ///
    /// # Errors
    /// `transition_in_progress` when the sandbox is in use, or was.
    pub(super) fn close_if_idle(&mut self, since: Timestamp) -> Result<()> {
        // As for a snapshot: it ends nothing.
        self.live.gate.close(Why::Snapshot);
        self.closed = true;
        if self.live.activity.idle_since() == Some(since) {
            return Ok(());
        }
        self.open(None);
        let message = format!("sandbox {} is in use again", self.live.id);
        Err(retry(Error::new(ErrorResponseCode::TransitionInProgress, message)))
    }

    /// Captures the machine, which stands still afterwards. After an error it goes on, if it can.
    pub(super) async fn capture(&mut self) -> Result<Files> {
        let (live, began) = (Arc::clone(&self.live), Instant::now());
        live.gate.close(self.why);
        self.closed = true;
        let prepared = match self.drain().await {
            Ok(()) => self.make_room().await,
            Err(error) => Err(error),
        };
        let (scratch, dir, writing, room) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                self.open(None);
                return Err(error);
            }
        };
        self.frozen = Some(Instant::now());
        let agent = live.gate.agent();
        let frozen = if self.halts { agent.halt().await } else { agent.freeze().await };
        if let Err(error) = frozen {
            // Its last writes have failed.
            let on_a_full_disk = self.actors.disk.was_full(began) || live.machine.vm.has_lost_writes();
            let refused = match on_a_full_disk {
                true => {
                    tracing::warn!(sandbox_id = %live.id, %error, "not frozen: the guest's writes have failed on a full disk");
                    storage_full(None)
                }
                false => agent_failed("freeze a sandbox", &error),
            };
            // It may be frozen all the same.
            if let Err(error) = agent.thaw().await {
                self.frozen = None;
                return Err(self.fail(Fault::Agent(error)).await);
            }
            self.frozen = None;
            self.open(None);
            return Err(refused);
        }
        // The guest must not remember half a conversation.
        let mut parted = Ok(());
        if self.halts {
            parted = agent.part().await;
        } else {
            agent.disconnect().await;
        }
        let written = match parted {
            Ok(()) => self.write(&dir).await,
            Err(error) => Err(internal("leave a sandbox's agent", &error)),
        };
        match written {
            Ok(mut summary) => {
                // The guest image may be older than the service.
                summary.compatibility.agent_abi = agent.info().abi;
                summary.halted = self.halts;
                let bytes = measured(&dir).await;
                let mut files = Files { dir, scratch, writing, summary, bytes, room };
                files.room.used(bytes);
                Ok(files)
            }
            Err(error) => {
                self.go_on().await?;
                Err(error)
            }
        }
    }

    fn open(&mut self, agent: Option<Agent>) {
        self.live.gate.open(agent);
        self.closed = false;
    }

    /// Waits for the operations under way. A pause interrupts what has not ended in time.
    async fn drain(&self) -> Result<()> {
        let (live, id) = (&self.live, self.live.id);
        let drained = match self.why {
            // They go on afterwards.
            Why::Snapshot if self.halts => true,
            Why::Snapshot => live.gate.drained(DRAIN).await,
            Why::Pause if live.gate.drained(DRAIN_FOR_PAUSE).await => true,
            Why::Pause => {
                live.gate.interrupt();
                live.gate.drained(INTERRUPTED).await
            }
        };
        if live.ended.is_cancelled() {
            return Err(live.gone());
        }
        if drained {
            return Ok(());
        }
        let message = format!(
            "a command that is waited for, or a transfer of a file, is under way in sandbox {id} and did not end within {} s; \
             ask again when it has ended, or run commands in the background",
            DRAIN.as_secs()
        );
        Err(retry(Error::new(ErrorResponseCode::TransitionInProgress, message)))
    }

    /// Makes the folder for the files, and reserves space for them.
    async fn make_room(&self) -> Result<(Scratch, PathBuf, Writing, Room)> {
        let (live, actors) = (&self.live, &self.actors);
        let own = live.machine.vm.usage().await.map_or(0, |usage| usage.private_bytes);
        let expected = own.saturating_add(live.machine.vm.nameless_bytes());
        let expected = expected.saturating_add(measured(live.snapshot.path()).await);
        let room = actors.disk.ensure_room(expected, None)?;
        let scratch = actors.files.scratch().map_err(of_data)?;
        let writing = actors.disk.enter(scratch.path(), CancellationToken::new());
        let dir = scratch.path().join("snapshot");
        std::fs::create_dir(&dir).map_err(|error| internal("make a folder for a snapshot", &error))?;
        // The template's part of it, while the machine still runs.
        live.machine.vm.prepare_snapshot(&dir).await.map_err(|error| match error.is_storage_full() {
            true => storage_full(None),
            false => internal("prepare a snapshot of a sandbox", &error),
        })?;
        Ok((scratch, dir, writing, room))
    }

    /// Stops the vCPUs and writes memory, devices and disk.
    async fn write(&self, dir: &Path) -> Result<SnapshotSummary> {
        let live = &self.live;
        let write = async {
            live.machine.vm.pause().await?;
            if live.machine.vm.has_lost_writes() {
                return Ok(None);
            }
            live.machine.vm.snapshot(dir).await.map(Some)
        };
        match write.await {
            Ok(Some(summary)) if !live.ended.is_cancelled() => Ok(summary),
            Ok(None) => {
                tracing::warn!(sandbox_id = %live.id, "no snapshot: the guest's writes have failed on a full disk");
                Err(storage_full(None))
            }
            _ if live.ended.is_cancelled() => Err(live.gone()),
            Err(error) if error.is_storage_full() => Err(storage_full(None)),
            Err(error) => Err(internal("take a snapshot of a sandbox", &error)),
            Ok(Some(_)) => Err(live.gone()),
        }
    }

    /// Lets the machine go on. Returns the time for which it stood still.
    ///
    /// # Errors
    /// For the caller, when it cannot: the sandbox has ended then.
    pub(super) async fn go_on(&mut self) -> Result<Duration> {
        let live = Arc::clone(&self.live);
        let Some(frozen) = self.frozen else { return Ok(Duration::ZERO) };
        let joined = tokio::select! {
            biased;
            () = live.ended.cancelled() => {
                self.frozen = None;
                return Err(live.gone());
            }
            joined = self.join() => joined,
        };
        self.frozen = None;
        match joined {
            Ok(joined) => {
                let (agent, attached) = joined.unzip();
                self.open(agent);
                if let Some(attached) = attached {
                    attached.hand_over();
                }
                Ok(frozen.elapsed())
            }
            Err(error) => {
                let fault = match error {
                    MachineError::Agent(error) => Fault::Agent(error),
                    error => Fault::Machine(Ended { cause: EndCause::Vmm, how: chain(&error) }),
                };
                Err(self.fail(fault).await)
            }
        }
    }

    /// Lets the vCPUs run, and connects to the agent again. Returns a new session, unless the old one goes on.
    async fn join(&self) -> std::result::Result<Option<(Agent, Attached)>, MachineError> {
        let (live, vm) = (&self.live, self.live.machine.vm.as_ref());
        vm.resume().await?;
        let until = Instant::now() + restore_limit(self.actors.machines.vmm.as_ref());
        let left = || until.saturating_duration_since(Instant::now());
        if self.halts {
            let agent = live.gate.agent();
            let open = || async { vm.agent().await.map_err(MachineError::from) };
            let rejoined = async {
                agent.rejoin(open, left()).await?;
                Ok::<_, MachineError>(agent.thaw_at(unix_time_ns()).await?)
            };
            match rejoined.await {
                Ok(()) => return Ok(None),
                // The machine stood still for longer than a session waits.
                Err(MachineError::Agent(AgentError::Closed)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut resets_left = MAX_RESETS;
        loop {
            let joining = async {
                let (agent, _) = Agent::connect(vm.agent().await?, left()).await?;
                // The guest is thawed once its followed commands are followed again.
                let attached = live.followers.attach(&agent).await?;
                agent.thaw_at(unix_time_ns()).await?;
                Ok((agent, attached))
            };
            match joining.await {
                Err(MachineError::Agent(AgentError::Closed)) if resets_left > 0 && !left().is_zero() => {
                    resets_left -= 1;
                }
                joined => return joined.map(Some),
            }
        }
    }

    /// Ends the sandbox by a fault, and reports it. Returns the error for the caller.
    async fn fail(&self, fault: Fault) -> Error {
        let live = &self.live;
        if live.ended.is_cancelled() {
            return live.gone();
        }
        let end = failed(live.id, &fault);
        let message =
            format!("sandbox {} did not go on after a snapshot of it, and has ended: {}", live.id, end.reason);
        self.actors.end_and_tell(live, end).await;
        Error::new(ErrorResponseCode::InternalError, message)
    }

    /// Keeps the files of a capture for a publication that comes later.
    pub(super) async fn keep(&self, files: Files) -> Result<Captured> {
        let Files { dir, scratch, writing, summary, bytes, room } = files;
        let folder = ArtifactStore::new_artifact_name(ArtifactId::new());
        self.actors.files.keep_capture(&dir, &folder).await.map_err(of_data)?;
        drop((writing, room, scratch));
        Ok(Captured {
            folder,
            streams: None,
            resumed_from: self.live.streams.clone(),
            stored_bytes: 0,
            size_bytes: bytes,
            disk_bytes: summary.disk_bytes,
            summary: json!(summary),
            frozen: self.frozen_for(),
        })
    }

    /// Stores the files of a capture. `similar`: snapshots that it is likely to be much like.
    pub(super) async fn publish(&self, files: Files, similar: Vec<Streams>, frozen: Duration) -> Result<Captured> {
        let (live, began) = (&self.live, Instant::now());
        let Files { dir, scratch, writing, summary, bytes, room } = files;
        // First: the one that it was resumed from.
        let similar = live.streams.iter().cloned().chain(similar).collect();
        let published = self.actors.files.publish_artifact(&dir, ArtifactId::new(), similar).await.map_err(of_data)?;
        drop((writing, room));
        let _ = tokio::task::spawn_blocking(move || drop(scratch)).await;
        tracing::info!(
            sandbox_id = %live.id,
            folder = published.folder,
            frozen_ms = frozen.as_millis(),
            published_ms = began.elapsed().as_millis(),
            bytes,
            stored_bytes = published.stored_bytes,
            "snapshot of a sandbox is stored"
        );
        Ok(Captured {
            folder: published.folder,
            streams: Some(published.streams),
            resumed_from: live.streams.clone(),
            stored_bytes: published.stored_bytes,
            size_bytes: bytes,
            disk_bytes: summary.disk_bytes,
            summary: json!(summary),
            frozen,
        })
    }

    /// Time for which the machine has stood still by now.
    fn frozen_for(&self) -> Duration {
        self.frozen.map(|since| since.elapsed()).unwrap_or_default()
    }

    /// Ends the machine, which is captured. Returns when its resources are released.
    pub(super) async fn end(mut self) {
        self.frozen = None;
        self.actors.end_paused(&self.live).await;
    }
}

impl Drop for Transition {
    fn drop(&mut self) {
        // Its future was dropped, or has panicked.
        if self.frozen.is_none() {
            if self.closed && !self.live.ended.is_cancelled() {
                self.open(None);
            }
            return;
        }
        if self.rescued {
            return;
        }
        let mut rest = Transition {
            live: Arc::clone(&self.live),
            actors: Arc::clone(&self.actors),
            why: self.why,
            turn: self.turn.take(),
            closed: self.closed,
            halts: self.halts,
            frozen: self.frozen.take(),
            rescued: true,
        };
        self.actors.tasks.spawn(async move {
            if let Err(error) = rest.go_on().await {
                tracing::warn!(sandbox_id = %rest.live.id, error = %error.message, "sandbox did not go on");
            }
        });
    }
}

/// Bytes on the disk of a snapshot's folder.
async fn measured(dir: &Path) -> u64 {
    let dir = dir.to_owned();
    tokio::task::spawn_blocking(move || stored(&dir)).await.unwrap_or_default()
}

fn retry(error: Error) -> Error {
    Error { retry_after: Some(RETRY_AFTER), ..error }
}

/// The error of an agent that refuses a snapshot.
fn agent_failed(what: &str, error: &AgentError) -> Error {
    match error {
        AgentError::Lacking { .. } => Error::new(ErrorResponseCode::RebuildRequired, error.to_string()),
        error => internal(what, error),
    }
}
