//! SSH access to sandboxes: made by their owners, used by the SSH server.
//!
//! ```text
//!   owner ── create_ssh_access ──> access (a row) ── SshCertificates::certify ──> certificate
//!   SSH server ── ssh_login (a certificate that it has checked) ──> the access is in force? ──> sandbox, user, end
//!              ── ssh_accesses_in_force, every few seconds ──> connections of the others end
//! ```

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{SshAccessRequest, SshAccessResponse};
use nullspace_types::{SandboxId, SshAccessId};

use crate::{Caller, Result};

/// A login with a certificate that is genuine: signed by this service, in its time, and for this sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SshLogin {
    /// The sandbox, from the user name.
    pub sandbox: SandboxId,
    /// The access that the certificate was made for.
    pub access: SshAccessId,
}

/// A login that was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshEntered {
    /// The sandbox. It has not ended; it may be paused.
    pub sandbox: SandboxId,
    /// The owner of the access, for whom sandboxes are looked up.
    pub caller: Caller,
    /// The user in the sandbox. `None`: its default user.
    pub user: Option<String>,
    /// The end of the access.
    pub expires_at: Timestamp,
}

/// SSH accesses. One ends with its time, with its sandbox, and with the API key that made it.
#[async_trait]
pub trait SshAccesses: Send + Sync + 'static {
    /// Makes an access to one of the caller's sandboxes, which may be paused, with a certificate for the public key.
    ///
    /// # Errors
    /// `SandboxNotFound`; `InvalidRequest` for a key that is none or of a kind that is not supported, and for a time out of range;
    /// `FeatureUnavailable` when the service has no SSH server; `RateLimitExceeded` when the sandbox has too many in force.
    async fn create_ssh_access(
        &self,
        caller: &Caller,
        id: &str,
        request: SshAccessRequest,
    ) -> Result<SshAccessResponse>;

    /// Decides about a login.
    ///
    /// # Errors
    /// `SandboxNotFound` when the access is not in force, or is one of another sandbox.
    async fn ssh_login(&self, login: SshLogin) -> Result<SshEntered>;

    /// Returns the accesses of these that are in force.
    async fn ssh_accesses_in_force(&self, accesses: &[SshAccessId]) -> Result<Vec<SshAccessId>>;
}

/// What a certificate is to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SshWanted<'r> {
    /// The public key, as the caller gave it.
    pub public_key: &'r str,
    /// The only principal.
    pub sandbox: SandboxId,
    /// The key id.
    pub access: SshAccessId,
    /// The present.
    pub now: Timestamp,
    /// The end of its time.
    pub expires_at: Timestamp,
}

/// A certificate, and where it is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshCertificate {
    /// The certificate in OpenSSH's format.
    pub certificate: String,
    /// The server's public key in OpenSSH's format.
    pub host_key: String,
    /// Host that clients connect to.
    pub host: String,
    /// Port that clients connect to.
    pub port: u16,
}

/// Makes certificates: the SSH server's part, which knows their format.
pub trait SshCertificates: Send + Sync + 'static {
    /// Makes a certificate.
    ///
    /// # Errors
    /// `InvalidRequest` when the text is no public key, or one of a kind that is not supported.
    fn certify(&self, wanted: SshWanted<'_>) -> Result<SshCertificate>;
}
