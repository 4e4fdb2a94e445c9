//! Sandboxes.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, Caller, SandboxId, TenantId};
use serde_json::Value;

#[cfg(doc)]
use crate::DbError;
use crate::{Result, text_enum::text_enum};

/// Keeps sandboxes and their statuses.
#[async_trait]
pub trait Sandboxes: Send + Sync + 'static {
    /// Records a sandbox as `creating`; [`DbError::NotFound`] when its artifact can be used no more. From here on the
    /// artifact is not collected.
    async fn insert_sandbox(&self, caller: &Caller, sandbox: NewSandbox, now: Timestamp) -> Result<Inserted>;

    /// Changes a sandbox's status; one that is over stays as it is ([`DbError::Conflict`]).
    async fn set_sandbox_status(
        &self,
        sandbox: SandboxId,
        status: SandboxStatus,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<Sandbox>;

    /// Changes when a sandbox ends by itself.
    async fn set_sandbox_timeout(
        &self,
        caller: &Caller,
        sandbox: SandboxId,
        timeout_at: Option<Timestamp>,
    ) -> Result<Sandbox>;

    /// One of the caller's sandboxes.
    async fn get_sandbox(&self, caller: &Caller, sandbox: SandboxId) -> Result<Sandbox>;

    /// The caller's sandboxes, newest first.
    async fn list_sandboxes(&self, caller: &Caller, filter: SandboxFilter) -> Result<Vec<Sandbox>>;

    /// Ends every sandbox of a host whose machines are known to be gone; returns them.
    async fn end_sandboxes_of_host(
        &self,
        host: &str,
        status: SandboxStatus,
        reason: &str,
        now: Timestamp,
    ) -> Result<Vec<SandboxId>>;
}

text_enum! {
    /// Where a sandbox stands.
    SandboxStatus {
        /// Accepted; its machine does not run yet.
        Creating = "creating",
        /// Its machine runs.
        Running = "running",
        /// Its machine is frozen.
        Paused = "paused",
        /// Ended because somebody asked, or its time was up. Final.
        Destroyed = "destroyed",
        /// Ended by a fault. Final.
        Error = "error",
    }
}

impl SandboxStatus {
    /// Whether it is over and uses nothing any more.
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
    /// When it is to end by itself.
    pub timeout_at: Option<Timestamp>,
    /// Who runs its machine.
    pub host: String,
    /// The caller's idempotency key and a digest of its request.
    pub idempotency: Option<Idempotency>,
}

/// Makes a repeated request answer with what the first one made: a sandbox, a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// As sent.
    pub key: String,
    /// Digest of the request: the same key with another request is a conflict.
    pub request_digest: String,
}

/// A sandbox as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Sandbox {
    /// Identity.
    pub id: SandboxId,
    /// Whose.
    pub tenant: TenantId,
    /// The artifact it resumes.
    pub artifact: ArtifactId,
    /// The reference as the user wrote it.
    pub template_ref: String,
    /// Where it stands.
    pub status: SandboxStatus,
    /// Why it ended, when that was not asked for.
    pub reason: Option<String>,
    /// vCPUs, memory, disk.
    pub config: Value,
    /// The user's labels.
    pub metadata: Value,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// When its machine first ran.
    pub started_at: Option<Timestamp>,
    /// When it is to end by itself.
    pub timeout_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Who runs its machine.
    pub host: String,
}

/// What became of a request to record a sandbox.
#[derive(Debug, Clone, PartialEq)]
pub enum Inserted {
    /// It is new.
    New(Sandbox),
    /// The same request was made before, with this result.
    Repeated(Sandbox),
}

/// Which sandboxes to list.
#[derive(Debug, Clone, Default)]
pub struct SandboxFilter {
    /// In one of these; empty: those that are not over.
    pub statuses: Vec<SandboxStatus>,
    /// Continue after this sandbox: the last one of the page before.
    pub after: Option<SandboxId>,
    /// At most so many, 1 to 1000.
    pub limit: u32,
}
