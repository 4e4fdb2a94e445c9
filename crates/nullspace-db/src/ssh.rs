//! SSH accesses: the rights to log in to sandboxes.
//!
//! An access is in force until its time is over, its sandbox ends, or the API key that made it is revoked or expires. Rows of one
//! sandbox are bounded by the caller's limit: those whose time is over go for new ones.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{Caller, SandboxId, SshAccessId};

#[cfg(doc)]
use crate::DbError;
use crate::Result;

/// Stores SSH accesses.
#[async_trait]
pub trait SshAccesses: Send + Sync + 'static {
    /// Records an access to one of the caller's sandboxes, made with the caller's key. [`DbError::NotFound`] when the sandbox has
    /// ended or is another tenant's, or the caller has no key; [`DbError::LimitReached`] when `most` of its accesses have their
    /// time left.
    async fn insert_ssh_access(&self, caller: &Caller, access: NewSshAccess, most: u32, now: Timestamp) -> Result<()>;

    /// The access, any tenant's, when it is in force; else [`DbError::NotFound`]. For logins, which have nothing but a certificate.
    async fn ssh_access(&self, access: SshAccessId, now: Timestamp) -> Result<SshAccess>;

    /// The accesses of these that are in force.
    async fn ssh_accesses_in_force(&self, accesses: &[SshAccessId], now: Timestamp) -> Result<Vec<SshAccessId>>;
}

/// An access to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewSshAccess {
    /// Identity.
    pub id: SshAccessId,
    /// The sandbox that it is good for.
    pub sandbox: SandboxId,
    /// The user in it; `None`: its default user.
    pub user: Option<String>,
    /// The end of its time.
    pub expires_at: Timestamp,
}

/// An access in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshAccess {
    /// The caller that made it: its tenant and key.
    pub caller: Caller,
    /// The sandbox that it is good for.
    pub sandbox: SandboxId,
    /// The user in it; `None`: its default user.
    pub user: Option<String>,
    /// The end of its time.
    pub expires_at: Timestamp,
}
