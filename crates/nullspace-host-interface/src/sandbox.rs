//! Sandboxes of a host.
//!
//! ```text
//!   judge ──> admit ──AdmittedSandbox──> start ──StartedSandbox──> run ──> Found::Running
//!               └─ dropped: gives back     └─ failed: nothing left   └─ discard: nothing left
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_definition::runtime::Runtime;
use nullspace_service::{LiveSandbox, Result};
use nullspace_types::{ArtifactId, Rootfs, SandboxId, TenantId};
use serde_json::Value;
use tokio::sync::oneshot;

/// The snapshot from which a template's sandboxes resume.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Its artifact.
    pub artifact: ArtifactId,
    /// Name of its files.
    pub folder: String,
    /// The root image under its disk.
    pub rootfs: Rootfs,
    /// The description by the host that made it, in that host's own format.
    pub summary: Value,
    /// The runtime settings of its sandboxes.
    pub runtime: Runtime,
}

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
}

/// Sandboxes of a host.
#[async_trait]
pub trait SandboxHost: Send + Sync + 'static {
    /// Whether a snapshot can be resumed here, by its [`Snapshot::summary`]; and its size.
    ///
    /// # Errors
    /// [`Unfit`].
    fn judge(&self, summary: &Value) -> std::result::Result<SnapshotSize, Unfit>;

    /// Reserves memory, processors and a place for a sandbox, in the host and in its tenant's quota.
    ///
    /// # Errors
    /// For the caller: `capacity_exceeded` or `quota_exceeded`, with the time after which to retry.
    async fn admit_sandbox(&self, spec: SandboxSpec) -> Result<Box<dyn AdmittedSandbox>>;

    /// Returns the state of a sandbox.
    fn find_sandbox(&self, id: SandboxId) -> Found;

    /// Ends a sandbox. Returns when its resources are released. A start under way notices it and stops. A missing sandbox is
    /// no error.
    async fn end_sandbox(&self, id: SandboxId);

    /// Returns the sandboxes that start or run.
    fn sandboxes(&self) -> Vec<SandboxId>;
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
}

/// A sandbox with a running machine that is not usable yet. Dropping it kills the machine.
#[async_trait]
pub trait StartedSandbox: Send {
    /// Makes it usable, until `deadline`. False when it was ended meanwhile: its resources are released then.
    async fn run(self: Box<Self>, deadline: Option<Timestamp>) -> bool;

    /// Ends it. Returns when its resources are released.
    async fn discard(self: Box<Self>);
}
