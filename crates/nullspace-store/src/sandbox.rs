//! Sandboxes.

use jiff::Timestamp;
use serde_json::Value;

use crate::{ArtifactId, SandboxId, TenantId, text_enum::text_enum};

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
    /// vCPUs, memory, disk; opaque to the store.
    pub config: Value,
    /// The user's labels; opaque to the store.
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
