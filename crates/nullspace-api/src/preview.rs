//! Ports of sandboxes: their addresses, and the tokens for them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Time;

/// Ask for the address of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GetHostRequest {
    /// The port in the sandbox, 1 to 65535.
    pub port: u32,
}

/// The address of a port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GetHostResponse {
    /// Host, port and, without a domain, path: `http://{host}/` leads to the port.
    pub host: String,
    /// URL for HTTP. It has a token when the port is not public.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// URL for WebSockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub websocket_url: Option<String>,
    /// When the token of the URLs expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token_expires_at: Option<Time>,
    /// Where the token of the URLs is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access_token_transport: Option<GetHostResponseAccessTokenTransport>,
}

/// Where a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GetHostResponseAccessTokenTransport {
    /// In the query, as `edge_token`.
    Query,
}

/// Ask for a URL with a new token.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateSignedPreviewUrlRequest {
    /// Seconds for which the token holds, 1 to 604800. Default 3600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<u64>,
}

/// A URL of a port with a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PreviewUrlResponse {
    /// The token's record.
    pub grant: PreviewGrantInfo,
    /// URL for HTTP. It is as good as a password until it expires.
    pub url: String,
    /// URL for WebSockets.
    pub websocket_url: String,
    /// When the token expires.
    pub access_token_expires_at: Time,
    /// Where the token is.
    pub access_token_transport: PreviewUrlResponseAccessTokenTransport,
}

/// Where a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PreviewUrlResponseAccessTokenTransport {
    /// In the query, as `edge_token`.
    Query,
}

/// A token for one port of one sandbox, without its secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PreviewGrantInfo {
    /// `pvg_…`.
    pub id: String,
    /// The sandbox.
    pub sandbox_id: String,
    /// The port in it.
    pub port: u32,
    /// Whether it lets in.
    pub status: PreviewGrantInfoStatus,
    /// `direct`: browsers and clients use it themselves.
    pub auth_mode: PreviewGrantInfoAuthMode,
    /// How it first arrives. Browsers get a cookie for it.
    pub bootstrap_transport: PreviewGrantInfoBootstrapTransport,
    /// What it is good for.
    pub token_kinds: Vec<PreviewGrantInfoTokenKindsItem>,
    /// Who has made it.
    pub principal_kind: PreviewGrantInfoPrincipalKind,
    /// Id of who has made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub principal_id: Option<String>,
    /// When it was made.
    pub issued_at: Time,
    /// When it expires.
    pub expires_at: Time,
    /// When it was revoked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Time>,
    /// Its first use. Uses are recorded every few seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_used_at: Option<Time>,
    /// Its last use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Time>,
    /// Requests and WebSockets that it let in.
    pub use_count: u64,
    /// Requests that it let in.
    pub http_request_count: u64,
    /// WebSockets that it let in.
    pub websocket_connection_count: u64,
    /// Bytes from clients.
    pub bytes_in_count: u64,
    /// Bytes to clients.
    pub bytes_out_count: u64,
    /// Code of its last failure to reach the server in the sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error_code: Option<String>,
    /// When that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error_at: Option<Time>,
    /// When it was disabled; never, in this version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled_at: Option<Time>,
    /// When it was made.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
}

/// Whether a token lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PreviewGrantInfoStatus {
    /// It does.
    Active,
    /// It is switched off.
    Disabled,
    /// Its time is over.
    Expired,
    /// Its owner has revoked it.
    Revoked,
}

/// Who uses a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PreviewGrantInfoAuthMode {
    /// Browsers and clients.
    Direct,
    /// A proxy of the owner.
    Proxy,
}

/// How a token first arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PreviewGrantInfoBootstrapTransport {
    /// In a header.
    Header,
    /// In the query.
    Query,
}

/// What a token is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PreviewGrantInfoTokenKindsItem {
    /// HTTP requests.
    HttpPort,
    /// WebSockets.
    WebsocketPort,
}

/// Who has made a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PreviewGrantInfoPrincipalKind {
    /// A caller of the API.
    User,
}

/// The tokens of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ListPreviewGrantsResponse {
    /// The tokens, newest first.
    pub items: Vec<PreviewGrantInfo>,
}

/// A token that was revoked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RevokePreviewGrantResponse {
    /// True.
    pub success: bool,
    /// The token's record.
    pub grant: PreviewGrantInfo,
}

/// Ask whether a server answers on a port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PreviewReadinessRequest {
    /// `tcp`: it takes connections, the default. `http`: it answers a request with a status from 200 to 399.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<PreviewReadinessRequestKind>,
    /// Path of the request of `http`. Default `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Seconds to wait for it, 0 to 120. Default 30.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u64>,
    /// Milliseconds between two attempts, 50 to 10000. Default 500.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
}

/// Kinds of the question whether a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PreviewReadinessRequestKind {
    /// It answers an HTTP request.
    Http,
    /// It takes connections.
    Tcp,
}

/// Whether a server answers on a port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PreviewReadinessResponse {
    /// True when both parts are.
    pub ready: bool,
    /// True when the sandbox can be reached.
    pub route_ready: bool,
    /// True when the server answered.
    pub service_ready: bool,
    /// The sandbox.
    pub sandbox_id: String,
    /// The port in it.
    pub port: u32,
    /// What was asked.
    pub kind: PreviewReadinessResponseKind,
    /// Path of the request of `http`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Time of the last attempt.
    pub checked_at: Time,
    /// Milliseconds that the question took.
    pub elapsed_ms: u64,
    /// Attempts.
    pub attempts: u32,
    /// Code of what is wrong: `preview_service_not_ready`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What helps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suggested_action: Option<String>,
}

/// Kinds of the question whether a server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PreviewReadinessResponseKind {
    /// It answers an HTTP request.
    Http,
    /// It takes connections.
    Tcp,
}
