//! The fake service's API keys and signed files.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use nullspace_api::*;
use nullspace_service::{Caller, Error, Keys, Result, Sandboxes, SignedFile, SignedFiles};

use super::{Fake, key_id, letter, tenant};

/// The id of the one key that is listed, and what a new one is.
pub(crate) const KEY_UUID: &str = "01a219eb-7cf4-71b9-9dcd-c0e432ab1a19";
pub(crate) const NEW_KEY: &str = "ns_live_canary-new-key";

fn made(request: CreateApiKeyRequest) -> CreateApiKeyResponse {
    CreateApiKeyResponse {
        id: KEY_UUID.into(),
        key: NEW_KEY.into(),
        prefix: "ns_live_cana".into(),
        name: request.name,
        scope: request.scope,
        expires_at: request.expires_at,
    }
}

fn known(id: &str) -> Result<()> {
    if id == KEY_UUID { Ok(()) } else { Err(Error::new(ErrorResponseCode::NotFound, "there is no such key")) }
}

#[async_trait]
impl Keys for Fake {
    async fn create_key(&self, caller: &Caller, request: CreateApiKeyRequest) -> Result<CreateApiKeyResponse> {
        self.call(format!("create_key {} {request:?}", letter(caller)));
        Ok(made(request))
    }

    async fn list_keys(&self, caller: &Caller) -> Result<Vec<ApiKeyInfo>> {
        self.call(format!("list_keys {}", letter(caller)));
        Ok(vec![ApiKeyInfo {
            id: KEY_UUID.into(),
            prefix: "ns_live_cana".into(),
            is_active: true,
            name: None,
            created_at: None,
            last_used_at: None,
            scope: Some("full".into()),
            expires_at: None,
            revoked_at: None,
            rotation_parent_key_id: None,
        }])
    }

    async fn revoke_key(&self, caller: &Caller, id: &str) -> Result<()> {
        self.call(format!("revoke_key {} {id}", letter(caller)));
        known(id)
    }

    async fn rotate_key(
        &self,
        caller: &Caller,
        id: &str,
        request: CreateApiKeyRequest,
    ) -> Result<CreateApiKeyResponse> {
        self.call(format!("rotate_key {} {id} {request:?}", letter(caller)));
        known(id)?;
        Ok(made(request))
    }
}

/// A token is what it is for, in words.
#[async_trait]
impl SignedFiles for Fake {
    async fn sign_file(&self, caller: &Caller, file: SignedFile<'_>) -> Result<String> {
        self.get_sandbox(caller, file.sandbox).await?;
        Ok(format!("{file:?}"))
    }

    async fn signed_caller(&self, file: SignedFile<'_>, token: &str) -> Result<Option<Caller>> {
        let holds = token == format!("{file:?}") && !self.revoked.load(Ordering::SeqCst);
        let caller = Caller { tenant: tenant('a'), namespace: "ns".into(), key: Some(key_id()), read_only: false };
        Ok(holds.then_some(caller))
    }
}
