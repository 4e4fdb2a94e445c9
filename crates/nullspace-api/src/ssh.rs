//! SSH access to sandboxes.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Time;

/// Ask for a certificate that lets a key log in to a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SshAccessRequest {
    /// The public key, as in a `.pub` file: `ssh-ed25519 …` or `ecdsa-sha2-nistp256 …` (also 384 and 521). At most 4096 bytes.
    pub public_key: String,
    /// The user in the sandbox; the sandbox's default user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Seconds for which it holds, 1 to 86400. Default 3600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// The same in minutes, 1 to 1440. With both, the shorter time counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_minutes: Option<u64>,
}

/// An SSH access, and how to use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SshAccessResponse {
    /// The certificate, for a file beside the private key: `id_ed25519-cert.pub`.
    pub certificate: String,
    /// Host to connect to.
    pub host: String,
    /// Port to connect to.
    pub port: u16,
    /// User name to log in with: the sandbox's id.
    pub user: String,
    /// When the access ends, with its connections.
    pub expires_at: Time,
    /// `ssh_…`.
    pub access_id: String,
    /// Command line that logs in, when the certificate is beside the default key.
    pub command: String,
    /// The server's public key, for `known_hosts`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_key: Option<String>,
}
