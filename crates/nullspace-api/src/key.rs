//! API keys of the caller's own tenant.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Secret, Time};

/// Create a key, or rotate one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateApiKeyRequest {
    /// A note. At a rotation, the older key's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `full` (default): everything. `read`: only GET and HEAD requests, and no WebSockets. At a rotation, the older key's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// When the new key ends: never by default, at a rotation when the older key would have, and no later than the key of the request. An extension of the contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Of a rotation: seconds for which the older key still works, at most 604800; 0. An extension of the contract.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_secs: Option<u32>,
}

/// A key that was made. The key itself is shown in this answer only.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreateApiKeyResponse {
    /// Its id.
    #[schema(format = "uuid")]
    pub id: String,
    /// The key. It is not shown again.
    #[schema(value_type = String)]
    pub key: Secret,
    /// Its first characters, by which people tell keys apart.
    pub prefix: String,
    /// Its note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `full` or `read`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
}

/// A key, without the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApiKeyInfo {
    /// Its id.
    #[schema(format = "uuid")]
    pub id: String,
    /// Its first characters.
    pub prefix: String,
    /// False: it was revoked, or it has expired.
    pub is_active: bool,
    /// Its note.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Time>,
    /// When it was last used, to the minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Time>,
    /// `full` or `read`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,
    /// The key in whose place it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = "uuid")]
    pub rotation_parent_key_id: Option<String>,
}

/// A key that was revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokeApiKeyResponse {
    /// True.
    pub success: bool,
}
