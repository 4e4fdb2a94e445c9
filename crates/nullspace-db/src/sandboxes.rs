//! Sandboxes and their states.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, Caller, SandboxId, TenantId};
use serde_json::Value;

#[cfg(doc)]
use crate::DbError;
use crate::{Result, text_enum::text_enum};

/// Stores sandboxes and their states.
#[async_trait]
pub trait Sandboxes: Send + Sync + 'static {
    /// Records a sandbox as `creating`. [`DbError::NotFound`] when its artifact is not usable. From now on the artifact is
    /// not collected.
    async fn insert_sandbox(&self, caller: &Caller, sandbox: NewSandbox, now: Timestamp) -> Result<Inserted>;

    /// Changes a sandbox's status. One that has ended stays as it is ([`DbError::Conflict`]).
    async fn set_sandbox_status(
        &self,
        sandbox: SandboxId,
        status: SandboxStatus,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<Sandbox>;

    /// Changes a sandbox's timeout.
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

    /// Ends every sandbox of a host whose machines are known to be gone. Returns them.
    async fn end_sandboxes_of_host(
        &self,
        host: &str,
        status: SandboxStatus,
        reason: &str,
        now: Timestamp,
    ) -> Result<Vec<SandboxId>>;
}

text_enum! {
    /// State of a sandbox.
    SandboxStatus {
        /// Accepted; its machine does not run yet.
        Creating = "creating",
        /// Its machine runs.
        Running = "running",
        /// Its machine is frozen.
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
    /// Time of its timeout.
    pub timeout_at: Option<Timestamp>,
    /// Time of its end.
    pub ended_at: Option<Timestamp>,
    /// The host of its machine.
    pub host: String,
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
