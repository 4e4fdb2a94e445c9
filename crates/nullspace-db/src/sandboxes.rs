//! Sandboxes and their states.
//!
//! ```text
//!   creating ──> running ──record_snapshot(pause)──> paused
//!      │ │          │ └─────────continue_paused────────┘ │
//!      │ └──────────┼──────────────resume_paused─────────┤   another one runs in its place
//!      └────────────┴──────────> destroyed | error <─────┘   its snapshot is over
//! ```

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, Caller, SandboxId, SnapshotId, TenantId, WarmPoolId};
use serde_json::Value;

#[cfg(doc)]
use crate::{DbError, Snapshots};
use crate::{Result, text_enum::text_enum};

/// Stores sandboxes and their states.
#[async_trait]
pub trait Sandboxes: Send + Sync + 'static {
    /// Records a sandbox as `creating`. [`DbError::NotFound`] when its artifact is not usable, or the snapshot or sandbox that it is
    /// made from is over, or another tenant's. From now on the artifact is not collected.
    async fn insert_sandbox(&self, caller: &Caller, sandbox: NewSandbox, now: Timestamp) -> Result<Inserted>;

    /// Changes a sandbox's status to `running`, or ends it. A paused one that ends ends its snapshot. One that has ended stays as
    /// it is ([`DbError::Conflict`]). `creating` and `paused` are a [`DbError::Conflict`], as is `running` for a paused one: see
    /// [`Snapshots`].
    async fn set_sandbox_status(
        &self,
        sandbox: SandboxId,
        status: SandboxStatus,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<Sandbox>;

    /// Changes a sandbox's configuration and the time of its timeout, which is that of its end while it is paused.
    /// [`DbError::Conflict`] when it is neither running nor paused.
    async fn set_sandbox_timeout(
        &self,
        caller: &Caller,
        sandbox: SandboxId,
        config: &Value,
        timeout_at: Option<Timestamp>,
    ) -> Result<Sandbox>;

    /// Records when sandboxes were last used. An earlier time than the recorded one changes nothing, nor does one that has ended.
    async fn touch_sandboxes(&self, used: &[(SandboxId, Timestamp)]) -> Result<()>;

    /// The paused sandboxes of a host whose time is over, the oldest deadline first; at most `limit`. Those that continue at the
    /// next start are not among them.
    async fn due_sandboxes(&self, host: &str, now: Timestamp, limit: u32) -> Result<Vec<Sandbox>>;

    /// Ends a sandbox that [`Sandboxes::due_sandboxes`] has listed. [`DbError::Conflict`] when it is not due any more: it was resumed
    /// meanwhile, or has ended, or its time was moved.
    async fn end_due_sandbox(&self, sandbox: SandboxId, reason: &str, now: Timestamp) -> Result<Sandbox>;

    /// One of the caller's sandboxes.
    async fn get_sandbox(&self, caller: &Caller, sandbox: SandboxId) -> Result<Sandbox>;

    /// The caller's sandboxes, newest first.
    async fn list_sandboxes(&self, caller: &Caller, filter: SandboxFilter) -> Result<Vec<Sandbox>>;

    /// Ends every sandbox of a host whose machines are known to be gone. Returns them, with their tenants. Paused ones have no machine,
    /// and stay.
    async fn end_sandboxes_of_host(
        &self,
        host: &str,
        status: SandboxStatus,
        reason: &str,
        now: Timestamp,
    ) -> Result<Vec<(SandboxId, TenantId)>>;
}

text_enum! {
    /// State of a sandbox.
    SandboxStatus {
        /// Accepted; its machine does not run yet.
        Creating = "creating",
        /// Its machine runs.
        Running = "running",
        /// It is stored in a snapshot, and has no machine.
        Paused = "paused",
        /// Ended on request or by its timeout. Final.
        Destroyed = "destroyed",
        /// Ended by a fault. Final.
        Error = "error",
    }
}

impl SandboxStatus {
    /// Whether it has ended and uses nothing any more.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Destroyed | Self::Error)
    }
}

/// A sandbox to record, `creating`.
#[derive(Debug, Clone)]
pub struct NewSandbox {
    /// Identity.
    pub id: SandboxId,
    /// The artifact it resumes.
    pub artifact: ArtifactId,
    /// The reference as the user wrote it.
    pub template_ref: String,
    /// vCPUs, memory, disk; opaque to the database.
    pub config: Value,
    /// The user's labels; opaque to the database.
    pub metadata: Value,
    /// Time of its timeout.
    pub timeout_at: Option<Timestamp>,
    /// The host of its machine.
    pub host: String,
    /// Its variables, sealed.
    pub sealed_envs: Option<Vec<u8>>,
    /// The token for its ports, sealed.
    pub sealed_traffic_token: Option<Vec<u8>>,
    /// The snapshot it is made from. The artifact is then the snapshot's.
    pub from_snapshot: Option<SnapshotId>,
    /// The sandbox it is a clone of. The artifact is then that one's.
    pub forked_from: Option<SandboxId>,
    /// The warm pool whose machine it takes.
    pub warm_pool: Option<WarmPoolId>,
    /// The caller's idempotency key and a digest of its request.
    pub idempotency: Option<Idempotency>,
}

/// Answers a repeated request with the result of the first: a sandbox or a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The key as sent.
    pub key: String,
    /// Digest of the request: the same key with another request is a conflict.
    pub request_digest: String,
}

/// A sandbox as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Sandbox {
    /// Identity.
    pub id: SandboxId,
    /// The tenant that owns it.
    pub tenant: TenantId,
    /// The artifact it resumes.
    pub artifact: ArtifactId,
    /// The reference as the user wrote it.
    pub template_ref: String,
    /// Its state.
    pub status: SandboxStatus,
    /// The reason of an end that was not requested.
    pub reason: Option<String>,
    /// vCPUs, memory, disk.
    pub config: Value,
    /// The user's labels.
    pub metadata: Value,
    /// Time of acceptance.
    pub created_at: Timestamp,
    /// Time at which its machine first ran.
    pub started_at: Option<Timestamp>,
    /// Time of its timeout; of its end, while it is paused.
    pub timeout_at: Option<Timestamp>,
    /// Time of its end.
    pub ended_at: Option<Timestamp>,
    /// The host of its machine.
    pub host: String,
    /// Its variables, sealed. `None` once it has ended.
    pub sealed_envs: Option<Vec<u8>>,
    /// The token for its ports, sealed. `None` once it has ended, and when its ports are public.
    pub sealed_traffic_token: Option<Vec<u8>>,
    /// The snapshot that it is stored in while it is paused; else the one that it was made from, which may be over.
    pub snapshot: Option<SnapshotId>,
    /// When it was last used, as far as it is recorded.
    pub last_active_at: Option<Timestamp>,
    /// What is left of its timeout, ms, of one that continues at the next start.
    pub continue_ms: Option<u64>,
}

/// The result of recording a sandbox.
#[derive(Debug, Clone, PartialEq)]
pub enum Inserted {
    /// It is new.
    New(Sandbox),
    /// The same request was made before, with this result.
    Repeated(Sandbox),
}

/// A query for sandboxes.
#[derive(Debug, Clone, Default)]
pub struct SandboxFilter {
    /// Only these states. Empty: all that have not ended.
    pub statuses: Vec<SandboxStatus>,
    /// Continue after this sandbox: the last one of the page before.
    pub after: Option<SandboxId>,
    /// Page size, 1 to 1000.
    pub limit: u32,
}
