//! Sandboxes of a host.
//!
//! ```text
//!   judge ──> admit ──AdmittedSandbox──> start ──StartedSandbox──> run ──> Found::Running
//!               └─ dropped: gives back     └─ failed: nothing left   └─ discard: nothing left
//!
//!   running ── freeze ──FrozenSandbox──> end       it is captured, its machine gone; its capture is published behind (Storage)
//!      │                     └─────────> go_on
//!      ├────── snapshot ──> Captured               it goes on
//!      ├────── fork ──────> Snapshot { held } ──> admit …
//!      └────── due ──> control: end, freeze, or new limits
//!
//!   prepare_spare ──> a resumed machine without identity ──┬── admit, with its id: the sandbox takes it
//!                                                          └── end_spare, or the host needs its room
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_definition::runtime::Runtime;
use nullspace_service::{LiveSandbox, Result};
use nullspace_types::{ArtifactId, EgressPolicy, Rootfs, SandboxId, SpareId, Streams, TenantId};
use serde_json::Value;
use tokio::sync::oneshot;

use crate::Capacity;

/// The snapshot from which a template's sandboxes resume.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its artifact.
    pub artifact: ArtifactId,
    /// The artifact's name on the host.
    pub folder: String,
    /// Its files. `None`: a capture that was not published yet, or an older version stored them under the artifact's name.
    pub streams: Option<Streams>,
    /// The root image under its disk.
    pub rootfs: Rootfs,
    /// The description by the host that made it, in that host's own format.
    pub summary: Value,
    /// The runtime settings of its sandboxes.
    pub runtime: Runtime,
    /// Files that only this process has, of a fork. Then `folder` and `streams` name nothing.
    pub held: Option<Arc<dyn HeldFiles>>,
}

/// Files of a snapshot that is not stored. They go with the last handle.
pub trait HeldFiles: std::any::Any + std::fmt::Debug + Send + Sync {}

/// The size that a snapshot fixes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotSize {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory of the guest, MiB.
    pub memory_mib: u32,
    /// Disk as the guest sees it, bytes.
    pub disk_bytes: u64,
}

/// The reasons for which a snapshot cannot be resumed on a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It has another compatibility class. The text names the difference.
    #[error("{0}")]
    Incompatible(String),
    /// Its stored description cannot be read. For the log.
    #[error("artifacts.snapshot: {0}")]
    Corrupt(String),
}

/// A sandbox to admit.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Its id.
    pub id: SandboxId,
    /// The tenant that owns it.
    pub tenant: TenantId,
    /// The snapshot to resume.
    pub snapshot: Snapshot,
    /// A spare of the same tenant and artifact, whose machine the sandbox takes.
    pub spare: Option<SpareId>,
}

/// A spare to make: a machine that is resumed ahead. No process of its guest runs, and nothing is sent to or by it, before a sandbox
/// takes it: that gives it random numbers, clock, names and network.
#[derive(Debug, Clone)]
pub struct SpareSpec {
    /// Its id.
    pub id: SpareId,
    /// The tenant whose sandboxes may take it, and in whose quota it counts.
    pub tenant: TenantId,
    /// The snapshot to resume.
    pub snapshot: Snapshot,
}

/// The settings with which a sandbox is resumed.
#[derive(Debug, Clone)]
pub struct SandboxSettings {
    /// Its variables. They override the template's.
    pub envs: BTreeMap<String, String>,
    /// The working directory of its commands.
    pub cwd: String,
    /// Whether it reaches the internet.
    pub internet_access: bool,
    /// The policy that narrows that, from its first packet on.
    pub egress: EgressPolicy,
}

/// State of a sandbox on a host.
pub enum Found {
    /// It does not exist.
    Absent,
    /// It starts.
    Starting,
    /// It runs: its operations, and the tenant that owns it.
    Running(Arc<dyn LiveSandbox>, TenantId),
}

/// Limits in time of a running sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TimeLimits {
    /// The time at which it is due.
    pub deadline: Option<Timestamp>,
    /// The time without any use after which it is due. Commands, file operations, and open sockets are use.
    pub idle: Option<Duration>,
}

/// The limit that a sandbox has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Its deadline.
    Deadline,
    /// Its time without use.
    Idle,
}

/// A snapshot of a running sandbox: on the host, and not yet named by the database. The host keeps its files from
/// collection until [`Storage::artifact_named`](crate::Storage::artifact_named), once a row names it, or
/// [`Storage::remove_artifact`](crate::Storage::remove_artifact), when none will. When the outcome of that transaction is
/// unknown, call neither.
#[derive(Debug, Clone)]
pub struct Captured {
    /// Its name.
    pub folder: String,
    /// Its files, which are durable. `None`: it is a capture. It outlives this process, and not a crash of the host, until
    /// [`Storage::publish_capture`](crate::Storage::publish_capture) has stored it.
    pub streams: Option<Streams>,
    /// Files of the snapshot that the sandbox was resumed from, which it is much like.
    pub resumed_from: Option<Streams>,
    /// Growth of the host's store, bytes; 0 for a capture.
    pub stored_bytes: u64,
    /// Memory, device state and disk changes before compression, bytes.
    pub size_bytes: u64,
    /// Disk as the guest sees it, bytes.
    pub disk_bytes: u64,
    /// The description of the snapshot, in the host's own format: [`Snapshot::summary`].
    pub summary: Value,
    /// Time for which the machine stood still so far.
    pub frozen: Duration,
}

/// What the row of an artifact needs that takes over the stored files of a sandbox's snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct Adopted {
    /// A new name on the host.
    pub folder: String,
    /// The size that the snapshot fixes.
    pub size: SnapshotSize,
    /// Its compatibility class.
    pub compatibility: Value,
}

/// The use of a running sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxUse {
    /// When it was measured.
    pub at: Timestamp,
    /// Processor time since the measurement before, in percent of one processor.
    pub cpu_percent: f64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory that the guest uses, bytes.
    pub memory_used: u64,
    /// Memory that the guest has, bytes.
    pub memory_total: u64,
    /// Space used on its root filesystem, bytes.
    pub disk_used: u64,
    /// Size of its root filesystem, bytes.
    pub disk_total: u64,
    /// Received since its start, bytes.
    pub received: u64,
    /// Sent since its start, bytes.
    pub sent: u64,
}

/// The end of a sandbox that ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxEnd {
    /// True for a fault, false for a timeout.
    pub failed: bool,
    /// The reason, for its owner.
    pub reason: String,
    /// The kind of fault, for the metrics.
    pub fault: Option<&'static str>,
}

/// Reports of a host to control.
#[async_trait]
pub trait HostEvents: Send + Sync + 'static {
    /// A sandbox has ended by itself, and its resources are released.
    async fn sandbox_ended(&self, id: SandboxId, end: SandboxEnd);

    /// A sandbox has reached a limit in time. It goes on until control ends or pauses it, or sets new limits. Reported once for
    /// each setting of limits.
    async fn sandbox_due(&self, id: SandboxId, due: Due) {
        let _ = (id, due);
    }
}

/// Sandboxes of a host.
#[async_trait]
pub trait SandboxHost: Send + Sync + 'static {
    /// Whether a snapshot can be resumed here, by its [`Snapshot::summary`]; and its size.
    ///
    /// # Errors
    /// [`Unfit`].
    fn judge(&self, summary: &Value) -> std::result::Result<SnapshotSize, Unfit>;

    /// Names the stored files of a sandbox's snapshot as those of an artifact.
    ///
    /// # Errors
    /// [`Unfit`].
    fn adopt_snapshot(&self, id: ArtifactId, summary: &Value) -> std::result::Result<Adopted, Unfit>;

    /// Reserves memory, processors and a place for a sandbox, in the host and in its tenant's quota. One with a spare has the spare's.
    /// The host may end spares to make room.
    ///
    /// # Errors
    /// For the caller: `capacity_exceeded` or `quota_exceeded`, with the time after which to retry; `warm_pool_unavailable` when its
    /// spare is there no more.
    async fn admit_sandbox(&self, spec: SandboxSpec) -> Result<Box<dyn AdmittedSandbox>>;

    /// Makes a spare, if there is room beside what runs. Returns when its guest answers.
    ///
    /// # Errors
    /// As [`SandboxHost::admit_sandbox`] and [`AdmittedSandbox::start`]; `rebuild_required` when the snapshot's guest image is too old.
    async fn prepare_spare(&self, spec: SpareSpec) -> Result<()>;

    /// Returns the spares whose machines run. Those that have ended are forgotten.
    async fn spares(&self) -> Vec<SpareId>;

    /// Ends a spare. Returns when its resources are released. A missing one is no error.
    async fn end_spare(&self, id: SpareId);

    /// Returns the state of a sandbox.
    fn find_sandbox(&self, id: SandboxId) -> Found;

    /// Ends a sandbox. Returns when its resources are released. A start under way notices it and stops. A missing sandbox is
    /// no error.
    async fn end_sandbox(&self, id: SandboxId);

    /// Returns the sandboxes that start or run.
    fn sandboxes(&self) -> Vec<SandboxId>;

    /// Freezes a running sandbox and captures it. Its machine stands still until the caller decides. Operations of it wait or
    /// end, none is lost half-way. With `idle_since`, only a sandbox that nothing has used since then ([`SandboxHost::idle_since`]): a
    /// use that begins meanwhile goes on.
    ///
    /// # Errors
    /// For the caller. The sandbox goes on then, if its machine still can. `transition_in_progress` while another one is taken, and
    /// when the sandbox does not idle any more.
    async fn freeze_sandbox(&self, id: SandboxId, idle_since: Option<Timestamp>) -> Result<Box<dyn FrozenSandbox>>;

    /// Stores a snapshot of a running sandbox, which goes on as soon as its memory and disk are captured. `similar`: snapshots that it is
    /// likely to be much like.
    ///
    /// # Errors
    /// As [`SandboxHost::freeze_sandbox`].
    async fn snapshot_sandbox(&self, id: SandboxId, similar: Vec<Streams>) -> Result<Captured>;

    /// Captures a running sandbox, which goes on, as a snapshot that is not stored: [`Snapshot::held`]. The place of the first
    /// sandbox that is admitted from it is reserved before the capture.
    ///
    /// # Errors
    /// As [`SandboxHost::freeze_sandbox`], and those of [`SandboxHost::admit_sandbox`].
    async fn fork_sandbox(&self, id: SandboxId) -> Result<Snapshot>;

    /// Sets new limits in time for a running sandbox. False when it does not run.
    fn set_limits(&self, id: SandboxId, limits: TimeLimits) -> bool;

    /// Whether egress policies hold here, and can be changed while a sandbox runs. Otherwise a sandbox starts only without a policy, or
    /// with one that denies all.
    fn enforces_egress(&self) -> bool;

    /// Replaces the egress policy of a running sandbox, which was started with internet access. False when it does not run. Established
    /// connections that the new policy denies carry no packet any more when this returns.
    ///
    /// # Errors
    /// For the caller. The policy is the one before then.
    async fn set_egress(&self, id: SandboxId, policy: &EgressPolicy) -> Result<bool>;

    /// Returns the time at which a running sandbox was last used.
    fn last_active(&self, id: SandboxId) -> Option<Timestamp> {
        let _ = id;
        None
    }

    /// Returns the memory and processors that the host lacks for this sandbox now, when all spares would be ended. `None`: it lacks
    /// nothing, or a tenant's quota refuses the sandbox anyway.
    fn lacks_for(&self, spec: &SandboxSpec) -> Option<Capacity>;

    /// Returns the memory and processors that the end of a running sandbox frees at least. `None` when it does not run.
    fn held_by(&self, id: SandboxId) -> Option<Capacity>;

    /// Returns the time since which nothing uses a running sandbox: no command that is waited for or followed, no file operation,
    /// no open socket. `None` while something does, and when it does not run.
    fn idle_since(&self, id: SandboxId) -> Option<Timestamp>;

    /// Returns the use of a running sandbox over time, oldest first, at most an hour. The last is of now.
    async fn sandbox_use(&self, id: SandboxId) -> Result<Vec<SandboxUse>>;
}

/// A sandbox whose machine stands still, and which is captured. Dropping it lets the machine go on.
#[async_trait]
pub trait FrozenSandbox: Send {
    /// The snapshot.
    fn captured(&self) -> &Captured;

    /// Ends the machine. Returns when its resources are released.
    async fn end(self: Box<Self>);

    /// Lets the machine go on. The snapshot's files are removed, unless a row may name them.
    ///
    /// # Errors
    /// For the caller, when the machine cannot go on: the sandbox has ended then.
    async fn go_on(self: Box<Self>, may_be_named: bool) -> Result<()>;
}

/// A sandbox with its place, and no machine yet. Dropping it releases the place.
#[async_trait]
pub trait AdmittedSandbox: Send {
    /// Resumes the snapshot. Returns when the guest has its own random numbers, clock and names, and its resume hooks have
    /// run. `resumed` is notified as soon as the machine runs, and dropped when the start fails before.
    ///
    /// # Errors
    /// For the caller. The machine's resources are released then.
    async fn start(
        self: Box<Self>,
        settings: SandboxSettings,
        resumed: oneshot::Sender<()>,
    ) -> Result<Box<dyn StartedSandbox>>;

    /// Resumes the snapshot in trial, without network and hooks, asks its agent a question, and ends the machine. Returns when
    /// its resources are released.
    ///
    /// # Errors
    /// For the caller: the snapshot cannot be resumed here, or its agent does not answer.
    async fn try_out(self: Box<Self>) -> Result<()>;
}

/// A sandbox with a running machine that is not usable yet. Dropping it kills the machine.
#[async_trait]
pub trait StartedSandbox: Send {
    /// Makes it usable, with these limits in time. False when it was ended meanwhile: its resources are released then.
    async fn run(self: Box<Self>, limits: TimeLimits) -> bool;

    /// Ends it. Returns when its resources are released.
    async fn discard(self: Box<Self>);
}
