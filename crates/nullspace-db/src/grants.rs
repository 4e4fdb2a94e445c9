//! Grants: tokens for ports of sandboxes, with what they were used for.
//!
//! ```text
//!   insert_grant ──> active ──revoke_grant──> revoked ─┐
//!                       └──expires_at──> expired ──────┴── remove_grants ──> no row
//!                                              sandbox ended ──────────────> no row
//! ```
//! A grant ends with the key that made it: it is revoked with it, and expires no later. A row has the hash of its token, never the
//! token. Rows of one sandbox are bounded: the active ones by the caller's limit, those
//! that are over by [`OVER_PER_SANDBOX`].

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{Caller, GrantId, KeyId, SandboxId, TenantId};

#[cfg(doc)]
use crate::DbError;
use crate::{Result, Sandbox, text_enum::text_enum};

/// Most grants of one sandbox that are revoked or expired. The oldest go for new ones.
pub const OVER_PER_SANDBOX: u32 = 100;

/// Stores grants.
#[async_trait]
pub trait Grants: Send + Sync + 'static {
    /// Records a grant of one of the caller's sandboxes. It expires with the caller's key at the latest. [`DbError::NotFound`] when the
    /// sandbox has ended or is another tenant's, [`DbError::LimitReached`] when `most` of its grants are active already,
    /// [`DbError::Conflict`] when the caller's key is over.
    async fn insert_grant(&self, caller: &Caller, grant: NewGrant, most: u32, now: Timestamp) -> Result<Grant>;

    /// The grants of one of the caller's sandboxes, newest first; those of one port when it is given.
    async fn list_grants(&self, caller: &Caller, sandbox: SandboxId, port: Option<u16>) -> Result<Vec<Grant>>;

    /// Revokes a grant of one of the caller's sandboxes. One that is revoked already stays as it is.
    async fn revoke_grant(&self, caller: &Caller, sandbox: SandboxId, grant: GrantId, now: Timestamp) -> Result<Grant>;

    /// The grant with this hash of its token, any tenant's, also one that is over. For requests that have nothing but a token.
    async fn grant_of_token(&self, token_hash: [u8; 32]) -> Result<Grant>;

    /// Returns which of these grants are active.
    async fn grants_in_force(&self, grants: &[GrantId], now: Timestamp) -> Result<Vec<GrantId>>;

    /// A sandbox of any tenant. For requests to its ports, which have no caller.
    async fn sandbox_of_anyone(&self, sandbox: SandboxId) -> Result<Sandbox>;

    /// Adds uses to grants, all in one transaction. Grants that are gone are left out.
    async fn count_grants(&self, uses: &[GrantUse], now: Timestamp) -> Result<()>;

    /// Removes up to `limit` grants that expired before `before`. Returns their number.
    async fn remove_grants(&self, before: Timestamp, limit: u32) -> Result<u32>;
}

text_enum! {
    /// How a grant was made.
    GrantKind {
        /// With the address of a port. It is given out again while it is young.
        Link = "link",
        /// On request, with a lifetime of its own.
        Signed = "signed",
    }
}

/// A grant to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewGrant {
    /// Identity.
    pub id: GrantId,
    /// The sandbox that it is good for.
    pub sandbox: SandboxId,
    /// The port that it is good for.
    pub port: u16,
    /// How it was made.
    pub kind: GrantKind,
    /// SHA-256 of the token.
    pub token_hash: [u8; 32],
    /// The end of its time.
    pub expires_at: Timestamp,
}

/// A grant as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Identity.
    pub id: GrantId,
    /// The owner of its sandbox.
    pub tenant: TenantId,
    /// The sandbox that it is good for.
    pub sandbox: SandboxId,
    /// The port that it is good for.
    pub port: u16,
    /// How it was made.
    pub kind: GrantKind,
    /// The key that made it. `None`: no key, or it was made before keys were recorded.
    pub key: Option<KeyId>,
    /// When it was made.
    pub issued_at: Timestamp,
    /// The end of its time.
    pub expires_at: Timestamp,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// When it was last changed or counted.
    pub updated_at: Timestamp,
    /// Requests that it let in.
    pub http_requests: u64,
    /// WebSockets that it let in.
    pub websockets: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// Its first use and its last one.
    pub used: Option<(Timestamp, Timestamp)>,
    /// Its last failure: code and time.
    pub last_error: Option<(String, Timestamp)>,
}

impl Grant {
    /// Whether it lets in at this time.
    pub fn is_active(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && now < self.expires_at
    }
}

/// Uses of a grant, to be added to those before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrantUse {
    /// The grant.
    pub grant: GrantId,
    /// Requests that it let in.
    pub http_requests: u64,
    /// WebSockets that it let in.
    pub websockets: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
    /// The first and the last of these uses. `None`: nothing was let in.
    pub used: Option<(Timestamp, Timestamp)>,
    /// The last failure: code and time.
    pub last_error: Option<(String, Timestamp)>,
}
