//! API keys of the caller's own tenant.

use async_trait::async_trait;
use nullspace_api::{ApiKeyInfo, CreateApiKeyRequest, CreateApiKeyResponse};

use crate::{Caller, Result};

/// API keys of the caller's own tenant. A key of another tenant is not found.
#[async_trait]
pub trait Keys: Send + Sync + 'static {
    /// Creates a key. The answer is the only place where the key ever appears.
    ///
    /// # Errors
    /// `QuotaExceeded` when the tenant has as many keys as it may.
    async fn create_key(&self, caller: &Caller, request: CreateApiKeyRequest) -> Result<CreateApiKeyResponse>;

    /// Returns the tenant's keys, oldest first, with those that are over.
    async fn list_keys(&self, caller: &Caller) -> Result<Vec<ApiKeyInfo>>;

    /// Revokes a key, which may be the caller's own. A second call changes nothing.
    async fn revoke_key(&self, caller: &Caller, id: &str) -> Result<()>;

    /// Creates a key in another one's place. That one ends at once, or after `grace_secs`.
    ///
    /// # Errors
    /// `TransitionConflict` when it is over already.
    async fn rotate_key(&self, caller: &Caller, id: &str, request: CreateApiKeyRequest)
    -> Result<CreateApiKeyResponse>;
}
