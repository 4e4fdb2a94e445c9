//! Settings and limits of the edge.

use std::time::Duration;

use ipnet::IpNet;

/// Settings of the edge.
#[derive(Debug, Clone, Default)]
pub struct EdgeSettings {
    /// The domain below which hosts are ports of sandboxes, in lower case, without a dot at its start or end.
    pub domain: Option<String>,
    /// Whether `/p/{sandbox}/{port}/` on the API's listener leads to ports.
    pub paths: bool,
    /// Addresses of the operator's own proxies. `X-Forwarded-For` and `X-Forwarded-Proto` are believed from these alone.
    pub proxies: Vec<IpNet>,
    /// Limits.
    pub limits: EdgeLimits,
}

/// Limits of requests to ports.
#[derive(Debug, Clone)]
pub struct EdgeLimits {
    /// Largest head of a request in bytes: request line and headers. A larger one is 431.
    pub head_bytes: usize,
    /// Most headers of a request; more are 431.
    pub headers: usize,
    /// Requests and WebSockets to one sandbox at a time; more are 503.
    pub per_sandbox: usize,
    /// Requests and WebSockets to all sandboxes of one tenant at a time; more are 503.
    pub per_tenant: usize,
    /// Requests and WebSockets from one client address (of IPv6: from one /64 network) at a time; more are 429. Less than
    /// `per_sandbox`, so that one client leaves others room. Clients of local listeners are not counted.
    pub per_client: usize,
    /// WebSockets of one sandbox at a time; more are 503.
    pub sockets_per_sandbox: usize,
    /// Time for a connection to the server in the sandbox.
    pub dial_timeout: Duration,
    /// Time until the head of the response, from the last byte of the request on; then 504.
    pub response_timeout: Duration,
    /// Time without a byte in either direction, after which a request or WebSocket is ended.
    pub idle: Duration,
    /// Connections to one port that are kept for later requests.
    pub kept_per_port: usize,
    /// Connections to all ports that are kept for later requests.
    pub kept: usize,
    /// Time for which an unused connection is kept.
    pub kept_for: Duration,
    /// Local listeners in all.
    pub listeners: usize,
    /// Local listeners of one tenant's sandboxes.
    pub listeners_per_tenant: usize,
    /// Local listeners of one sandbox.
    pub listeners_per_sandbox: usize,
    /// Connections to all local listeners at a time. Further ones wait.
    pub local_connections: usize,
    /// Connections to the local listeners of one tenant's sandboxes at a time. Further ones wait.
    pub local_connections_per_tenant: usize,
    /// Connections to one local listener at a time. Further ones wait.
    pub connections_per_listener: usize,
    /// A local listener without a connection is closed after this time.
    pub listener_idle: Duration,
    /// Time between two looks whether the sandbox of a local listener has ended.
    pub listener_check: Duration,
    /// Time for which the client of a local listener may take nothing of what was sent before it is disconnected.
    pub stalled_peer: Duration,
}

impl Default for EdgeLimits {
    fn default() -> Self {
        Self {
            head_bytes: 64 << 10,
            headers: 128,
            per_sandbox: 512,
            per_tenant: 1024,
            per_client: 256,
            sockets_per_sandbox: 128,
            dial_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(300),
            idle: Duration::from_secs(600),
            kept_per_port: 64,
            kept: 512,
            kept_for: Duration::from_secs(10),
            listeners: 256,
            listeners_per_tenant: 64,
            listeners_per_sandbox: 16,
            local_connections: 1024,
            local_connections_per_tenant: 512,
            connections_per_listener: 128,
            listener_idle: Duration::from_secs(600),
            listener_check: Duration::from_secs(15),
            stalled_peer: Duration::from_secs(60),
        }
    }
}
