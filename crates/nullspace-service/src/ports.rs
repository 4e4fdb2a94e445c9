//! Requests to the ports of sandboxes, and who may make them.
//!
//! ```text
//!   owner ── host, preview URL, signed URL ──> grant, token             anybody ── request with the token ──> edge
//!                                                                                                        │ enter
//!                                              sandbox, running <── resumed if it is paused and may be ──┘
//! ```

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use nullspace_api::{
    CreateSignedPreviewUrlRequest, GetHostResponse, ListPreviewGrantsResponse, PreviewReadinessRequest,
    PreviewReadinessResponse, PreviewUrlResponse, RevokePreviewGrantResponse,
};
use nullspace_types::TenantId;
use secrecy::SecretString;
use tokio_util::sync::CancellationToken;

use crate::{Caller, LiveSandbox, Result};

/// A request to a port of a sandbox, as it came from outside.
#[derive(Debug, Clone)]
pub struct Knock {
    /// Id of the sandbox, as it was written.
    pub sandbox: String,
    /// The port in the sandbox. Never 0.
    pub port: u16,
    /// The token of the URL, the cookie or the header, if there is one.
    pub token: Option<SecretString>,
    /// True when the request asks for a WebSocket.
    pub websocket: bool,
}

/// A request that was let in.
pub struct Entered {
    /// The sandbox. It runs.
    pub sandbox: Arc<dyn LiveSandbox>,
    /// Whose sandbox it is.
    pub tenant: TenantId,
    /// The `Host` header that the server in the sandbox gets, instead of the one of the request.
    pub host: Option<String>,
    /// Seconds for which the token holds; `None`: the request needed none, or has one that holds as long as the sandbox.
    pub token_secs: Option<u64>,
    /// Cancelled when the token has expired or was revoked: what was let in with it then ends. Never cancelled without one.
    pub over: CancellationToken,
    /// Counts what goes through, for the grant of the token. Hold it as long as that goes on: `over` is looked after meanwhile.
    pub count: Arc<dyn PortCount>,
}

/// Counts the bytes of a request that was let in.
pub trait PortCount: Send + Sync + 'static {
    /// So many more bytes came from the client, and so many went to it.
    fn bytes(&self, from_client: u64, to_client: u64);

    /// The server in the sandbox could not be reached, or broke off; a code in the style of error codes.
    fn failed(&self, code: &'static str);
}

/// Requests to the ports of sandboxes.
#[async_trait]
pub trait Ports: Send + Sync + 'static {
    /// Decides about a request to a port, and finds the sandbox. A paused one with `auto_resume` begins to wake.
    ///
    /// # Errors
    /// `SandboxNotFound` when there is no such sandbox, when the port is not public and the token is not good, and when the sandbox is
    /// another one than the token's: the three are the same to the caller. So is a token of this port that was revoked or has
    /// expired, also when the port is public. `SandboxNotReady` with `retry_after` while it wakes or starts. `SandboxNotReady` without,
    /// when it is paused and does not wake.
    async fn enter(&self, knock: Knock) -> Result<Entered>;

    /// Whether a sandbox has ended for good, or never was. A paused one has not.
    ///
    /// # Errors
    /// When the service cannot find it out.
    async fn has_ended(&self, sandbox: &str) -> Result<bool>;
}

/// The addresses of ports, and the tokens for them: the owner's part.
///
/// # Errors
/// Of all calls that return an address: `FeatureUnavailable` when the operator has set none for ports, `RateLimitExceeded` when too many
/// ports have one. Of all calls: `SandboxNotFound` for a sandbox that has ended or is another tenant's; `InvalidRequest` for a port that is not
/// 1 to 65535.
#[async_trait]
pub trait Previews: Send + Sync + 'static {
    /// Returns the address of a port. With a token, when the port is not public.
    async fn get_host(&self, caller: &Caller, id: &str, port: u32) -> Result<GetHostResponse>;

    /// Returns a URL of a port with a token that holds for an hour. Calls within that hour may get the same one.
    ///
    /// # Errors
    /// `RateLimitExceeded` when the sandbox has too many tokens in force.
    async fn get_preview_url(&self, caller: &Caller, id: &str, port: u32) -> Result<PreviewUrlResponse>;

    /// Returns a URL of a port with a new token that holds for the requested time.
    ///
    /// # Errors
    /// `RateLimitExceeded` when the sandbox has too many tokens in force.
    async fn create_signed_preview_url(
        &self,
        caller: &Caller,
        id: &str,
        port: u32,
        request: CreateSignedPreviewUrlRequest,
    ) -> Result<PreviewUrlResponse>;

    /// Waits until a server answers on a port, for a bounded time. That none does is an answer, and no error.
    async fn check_preview_readiness(
        &self,
        caller: &Caller,
        id: &str,
        port: u32,
        request: PreviewReadinessRequest,
    ) -> Result<PreviewReadinessResponse>;

    /// Returns the tokens of a sandbox, without the secret, newest first; those of one port when it is given.
    async fn list_preview_urls(
        &self,
        caller: &Caller,
        id: &str,
        port: Option<u32>,
    ) -> Result<ListPreviewGrantsResponse>;

    /// Revokes a token. From the next request on it is refused, and connections that it let in end within seconds. Revoking it
    /// again changes nothing.
    ///
    /// # Errors
    /// `NotFound` when the sandbox has no such grant.
    async fn revoke_preview_url(&self, caller: &Caller, id: &str, grant: &str) -> Result<RevokePreviewGrantResponse>;
}

/// Listeners on the loopback address, each for one port of one sandbox.
#[async_trait]
pub trait LocalPorts: Send + Sync + 'static {
    /// Returns the address of the listener that leads to this port of this sandbox of the tenant; opens it if there is none.
    ///
    /// # Errors
    /// When there are too many listeners, in all, of the tenant or of the sandbox (`QuotaExceeded`), or the system refuses one.
    async fn listen(&self, tenant: TenantId, sandbox: &str, port: u16) -> io::Result<SocketAddr>;
}
