//! Secrets by id and registry logins by host, answered from memory.

use std::sync::Arc;

use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::Secrets;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use bollard_buildkit_proto::moby::filesync::v1::auth_server::Auth;
use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
};
use secrecy::ExposeSecret;
use tonic::{Request, Response, Status};

use crate::job::Job;

/// The secrets and logins of a job.
#[derive(Clone)]
pub(super) struct Vault {
    job: Arc<Job>,
}

impl Vault {
    pub(super) fn new(job: Arc<Job>) -> Vault {
        Vault { job }
    }
}

/// A registry as image references name it; Docker Hub has several names.
fn registry(host: &str) -> &str {
    let host = host.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or(host);
    match host {
        "registry-1.docker.io" | "index.docker.io" => "docker.io",
        other => other,
    }
}

#[async_trait::async_trait]
impl Secrets for Vault {
    async fn get_secret(&self, request: Request<GetSecretRequest>) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        match self.job.secrets.get(&id) {
            Some(value) => Ok(Response::new(GetSecretResponse { data: value.expose_secret().as_bytes().to_vec() })),
            // BuildKit reads the code: a secret that is not required may be missing.
            None => Err(Status::not_found(format!("secret {id}: not found"))),
        }
    }
}

#[async_trait::async_trait]
impl Auth for Vault {
    /// A missing login is no error: BuildKit then asks the registry anonymously.
    async fn credentials(&self, request: Request<CredentialsRequest>) -> Result<Response<CredentialsResponse>, Status> {
        let login = self.job.logins.get(registry(&request.get_ref().host));
        let found = login.map(|login| CredentialsResponse {
            username: login.username.clone(),
            secret: login.password.expose_secret().to_owned(),
        });
        Ok(Response::new(found.unwrap_or_default()))
    }

    async fn fetch_token(&self, _: Request<FetchTokenRequest>) -> Result<Response<FetchTokenResponse>, Status> {
        Err(Status::unimplemented("BuildKit fetches its tokens"))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("BuildKit fetches its tokens"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("BuildKit fetches its tokens"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_hub_has_several_names() {
        for (host, name) in [
            ("registry-1.docker.io", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
            ("127.0.0.1:5000", "127.0.0.1:5000"),
            ("https://ghcr.io", "ghcr.io"),
        ] {
            assert_eq!(registry(host), name);
        }
    }
}
