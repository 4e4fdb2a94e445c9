//! The fake service's SSH: its sandbox has one access. The SSH server is not the HTTP server's.

use async_trait::async_trait;
use nullspace_api::*;
use nullspace_service::{Caller, Error, Result, Sandboxes, SshAccessId, SshAccesses, SshEntered, SshLogin};

use super::{Fake, letter};

#[async_trait]
impl SshAccesses for Fake {
    async fn create_ssh_access(
        &self,
        caller: &Caller,
        id: &str,
        request: SshAccessRequest,
    ) -> Result<SshAccessResponse> {
        self.call(format!("create_ssh_access {} {id} {request:?}", letter(caller)));
        self.get_sandbox(caller, id).await?;
        if request.public_key.is_empty() {
            return Err(Error::invalid("public_key is not a public key"));
        }
        if request.user.as_deref() == Some("no-server") {
            return Err(Error::new(
                ErrorResponseCode::FeatureUnavailable,
                "this service has no SSH server: ssh_listen",
            ));
        }
        Ok(SshAccessResponse {
            certificate: "ssh-ed25519-cert-v01@openssh.com AAAA".into(),
            host: "127.0.0.1".into(),
            port: 2222,
            user: id.to_owned(),
            expires_at: "2025-01-31T10:00:00Z".parse().unwrap(),
            access_id: "ssh_1".into(),
            command: format!("ssh -p 2222 {id}@127.0.0.1"),
            host_key: Some("ssh-ed25519 AAAA".into()),
        })
    }

    async fn ssh_login(&self, login: SshLogin) -> Result<SshEntered> {
        Err(Error::sandbox_not_found(&login.sandbox.to_string()))
    }

    async fn ssh_accesses_in_force(&self, _: &[SshAccessId]) -> Result<Vec<SshAccessId>> {
        Ok(Vec::new())
    }
}
