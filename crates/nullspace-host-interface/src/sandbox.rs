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

/// What sandboxes of a template are resumed from.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Which artifact.
    pub artifact: ArtifactId,
    /// Name of its files.
    pub folder: String,
    /// The root image that its disk lies on.
    pub rootfs: Rootfs,
    /// What the host that made it said of it: the host's own format.
    pub summary: Value,
    /// What its sandboxes start with.
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

/// Why a snapshot cannot be resumed on a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It was made under something else: what differs.
    #[error("{0}")]
    Incompatible(String),
    /// What is stored of it cannot be read. For the log.
    #[error("artifacts.snapshot: {0}")]
    Corrupt(String),
}

/// A sandbox to admit.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// Its id.
    pub id: SandboxId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What it is resumed from.
    pub snapshot: Snapshot,
}

/// What a sandbox is resumed with.
#[derive(Debug, Clone)]
pub struct SandboxSettings {
    /// Its variables, over those of the template.
    pub envs: BTreeMap<String, String>,
    /// Where its commands run.
    pub cwd: String,
    /// Whether it reaches the internet.
    pub internet_access: bool,
}

/// Where a sandbox stands on a host.
pub enum Found {
    /// It is not there.
    Absent,
    /// It starts.
    Starting,
    /// It runs: its operations, and whose it is.
    Running(Arc<dyn LiveSandbox>, TenantId),
}

/// How a sandbox ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxEnd {
    /// True when it ended by a fault, false when its time was up.
    pub failed: bool,
    /// Why, for its owner.
    pub reason: String,
    /// The kind of fault, for the metrics.
    pub fault: Option<&'static str>,
}

/// What a host tells control without being asked.
#[async_trait]
pub trait HostEvents: Send + Sync + 'static {
    /// A sandbox has ended by itself: nothing of it is left on the host.
    async fn sandbox_ended(&self, id: SandboxId, end: SandboxEnd);
}

/// Sandboxes of a host.
#[async_trait]
pub trait SandboxHost: Send + Sync + 'static {
    /// Whether a snapshot can be resumed here, from its [`Snapshot::summary`]; and its size.
    ///
    /// # Errors
    /// [`Unfit`].
    fn judge(&self, summary: &Value) -> std::result::Result<SnapshotSize, Unfit>;

    /// Takes memory, processors and a place for a sandbox, in the host and in its tenant's quota.
    ///
    /// # Errors
    /// For the caller: `capacity_exceeded` or `quota_exceeded`, with the time after which to try again.
    async fn admit_sandbox(&self, spec: SandboxSpec) -> Result<Box<dyn AdmittedSandbox>>;

    /// Where a sandbox stands.
    fn find_sandbox(&self, id: SandboxId) -> Found;

    /// Ends a sandbox; returns when nothing of it is left. One that starts finds that out and ends; one that is not there is
    /// no error.
    async fn end_sandbox(&self, id: SandboxId);

    /// Sandboxes that start or run.
    fn sandboxes(&self) -> Vec<SandboxId>;
}

/// A sandbox with its place, and no machine yet. Dropping it gives the place back.
#[async_trait]
pub trait AdmittedSandbox: Send {
    /// Resumes the snapshot; returns when the guest is a new one: own random numbers, clock and names, and its resume hooks have
    /// run. `resumed` is told as soon as the machine runs, and dropped when it never will.
    ///
    /// # Errors
    /// For the caller. Nothing of the machine is left then.
    async fn start(
        self: Box<Self>,
        settings: SandboxSettings,
        resumed: oneshot::Sender<()>,
    ) -> Result<Box<dyn StartedSandbox>>;
}

/// A sandbox whose machine runs and that nobody can use yet. Dropping it kills the machine.
#[async_trait]
pub trait StartedSandbox: Send {
    /// Lets it be used, until `deadline`. False when it was ended meanwhile: nothing of it is left then.
    async fn run(self: Box<Self>, deadline: Option<Timestamp>) -> bool;

    /// Ends it; returns when nothing of it is left.
    async fn discard(self: Box<Self>);
}
