//! The fake service's ports: its sandbox has one preview URL, and anybody may enter port 8000.

use std::sync::Arc;

use async_trait::async_trait;
use nullspace_api::*;
use nullspace_service::{Caller, Entered, Error, Knock, PortCount, Ports, Previews, Result, Sandboxes};

use super::live::Live;
use super::{Fake, SANDBOX, letter, tenant};

pub(crate) const GRANT: &str = "pvg_1";
const TOKEN: &str = "nse_canary";

/// Counts nothing.
struct Uncounted;

impl PortCount for Uncounted {
    fn bytes(&self, _: u64, _: u64) {}

    fn failed(&self, _: &'static str) {}
}

#[async_trait]
impl Ports for Fake {
    async fn enter(&self, knock: Knock) -> Result<Entered> {
        if knock.sandbox != SANDBOX || knock.port != 8000 {
            return Err(Error::sandbox_not_found("that"));
        }
        let fake = self.this.upgrade().expect("it is called");
        Ok(Entered {
            sandbox: Arc::new(Live { fake, id: knock.sandbox }),
            tenant: tenant('a'),
            host: None,
            token_secs: None,
            over: Default::default(),
            count: Arc::new(Uncounted),
        })
    }

    async fn has_ended(&self, sandbox: &str) -> Result<bool> {
        Ok(sandbox != SANDBOX)
    }
}

fn grant(port: u32, revoked: bool) -> PreviewGrantInfo {
    let at = "2025-01-31T10:00:00Z".parse().unwrap();
    PreviewGrantInfo {
        id: GRANT.into(),
        sandbox_id: SANDBOX.into(),
        port,
        status: if revoked { PreviewGrantInfoStatus::Revoked } else { PreviewGrantInfoStatus::Active },
        auth_mode: PreviewGrantInfoAuthMode::Direct,
        bootstrap_transport: PreviewGrantInfoBootstrapTransport::Query,
        token_kinds: vec![PreviewGrantInfoTokenKindsItem::HttpPort, PreviewGrantInfoTokenKindsItem::WebsocketPort],
        principal_kind: PreviewGrantInfoPrincipalKind::User,
        principal_id: None,
        issued_at: at,
        expires_at: at,
        revoked_at: revoked.then_some(at),
        first_used_at: None,
        last_used_at: None,
        use_count: 3,
        http_request_count: 2,
        websocket_connection_count: 1,
        bytes_in_count: 10,
        bytes_out_count: 20,
        last_error_code: None,
        last_error_at: None,
        disabled_at: None,
        created_at: at,
        updated_at: at,
    }
}

fn url(port: u32) -> PreviewUrlResponse {
    let grant = grant(port, false);
    PreviewUrlResponse {
        url: format!("http://127.0.0.1:4000/?edge_token={TOKEN}"),
        websocket_url: format!("ws://127.0.0.1:4000/?edge_token={TOKEN}"),
        access_token_expires_at: grant.expires_at,
        access_token_transport: PreviewUrlResponseAccessTokenTransport::Query,
        grant,
    }
}

#[async_trait]
impl Previews for Fake {
    async fn get_host(&self, caller: &Caller, id: &str, port: u32) -> Result<GetHostResponse> {
        self.call(format!("get_host {} {id} {port}", letter(caller)));
        self.get_sandbox(caller, id).await?;
        Ok(GetHostResponse {
            host: "127.0.0.1:4000".into(),
            url: Some("http://127.0.0.1:4000/".into()),
            websocket_url: Some("ws://127.0.0.1:4000/".into()),
            access_token_expires_at: None,
            access_token_transport: None,
        })
    }

    async fn get_preview_url(&self, caller: &Caller, id: &str, port: u32) -> Result<PreviewUrlResponse> {
        self.call(format!("get_preview_url {} {id} {port}", letter(caller)));
        self.get_sandbox(caller, id).await?;
        Ok(url(port))
    }

    async fn create_signed_preview_url(
        &self,
        caller: &Caller,
        id: &str,
        port: u32,
        request: CreateSignedPreviewUrlRequest,
    ) -> Result<PreviewUrlResponse> {
        self.call(format!("create_signed_preview_url {} {id} {port} {request:?}", letter(caller)));
        self.get_sandbox(caller, id).await?;
        if request.expires_in_seconds == Some(0) {
            return Err(Error::invalid("expires_in_seconds is 0"));
        }
        if port == 8429 {
            return Err(Error::new(ErrorResponseCode::RateLimitExceeded, "too many preview URLs"));
        }
        Ok(url(port))
    }

    async fn check_preview_readiness(
        &self,
        caller: &Caller,
        id: &str,
        port: u32,
        request: PreviewReadinessRequest,
    ) -> Result<PreviewReadinessResponse> {
        self.call(format!("check_preview_readiness {} {id} {port} {request:?}", letter(caller)));
        self.get_sandbox(caller, id).await?;
        Ok(PreviewReadinessResponse {
            ready: true,
            route_ready: true,
            service_ready: true,
            sandbox_id: id.to_owned(),
            port,
            kind: PreviewReadinessResponseKind::Tcp,
            path: None,
            checked_at: "2025-01-31T10:00:00Z".parse().unwrap(),
            elapsed_ms: 5,
            attempts: 1,
            code: None,
            error: None,
            suggested_action: None,
        })
    }

    async fn list_preview_urls(
        &self,
        caller: &Caller,
        id: &str,
        port: Option<u32>,
    ) -> Result<ListPreviewGrantsResponse> {
        self.call(format!("list_preview_urls {} {id} {port:?}", letter(caller)));
        self.get_sandbox(caller, id).await?;
        Ok(ListPreviewGrantsResponse { items: vec![grant(port.unwrap_or(80), false)] })
    }

    async fn revoke_preview_url(&self, caller: &Caller, id: &str, which: &str) -> Result<RevokePreviewGrantResponse> {
        self.call(format!("revoke_preview_url {} {id} {which}", letter(caller)));
        self.get_sandbox(caller, id).await?;
        if which != GRANT {
            return Err(Error::new(ErrorResponseCode::NotFound, "There is no such preview URL."));
        }
        Ok(RevokePreviewGrantResponse { success: true, grant: grant(80, true) })
    }
}
