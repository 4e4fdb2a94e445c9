//! Limits of the HTTP layer. The defaults fit a service that is reached directly.

use std::time::Duration;

use secrecy::SecretString;

use crate::budget::BufferLimits;
use crate::limits::RequestRate;

/// Limits of requests.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Largest JSON body in bytes; larger ones are 413.
    pub max_json_body: usize,
    /// Time limit for a JSON body to arrive; slower ones are 408.
    pub body_timeout: Duration,
    /// Largest request head in bytes (request line and headers); larger ones are 431.
    pub max_head: usize,
    /// Time between the comments that keep an event stream alive.
    pub heartbeat: Duration,
    /// Rate limit of one tenant; more is 429.
    pub rate: RequestRate,
    /// Most requests of one tenant at a time, with followers and WebSockets; more are 429.
    pub requests_at_once: usize,
    /// Most logs that one tenant follows at a time; more are 429.
    pub followers: usize,
    /// Time between two checks whether the keys of running requests are still valid.
    pub key_check: Duration,
    /// Memory limits of requests.
    pub buffers: BufferLimits,
    /// WebSockets.
    pub sockets: SocketLimits,
    /// The token for `/metrics`. Without it, only this host itself may read them.
    pub metrics_token: Option<SecretString>,
    /// True when guests can reach this host's loopback. A connection from there may then be a guest's, so "this host" has no
    /// rights, and `/metrics` needs the token.
    pub guests_on_loopback: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_json_body: 16 << 20,
            body_timeout: Duration::from_secs(60),
            max_head: 32 << 10,
            heartbeat: Duration::from_secs(10),
            rate: RequestRate { per_second: 200, burst: 1_000 },
            requests_at_once: 1024,
            followers: 256,
            key_check: Duration::from_secs(2),
            buffers: BufferLimits { per_tenant: 128 << 20, total: 512 << 20 },
            sockets: SocketLimits::default(),
            metrics_token: None,
            guests_on_loopback: false,
        }
    }
}

/// Limits of WebSockets.
#[derive(Debug, Clone)]
pub struct SocketLimits {
    /// Most open ones of one sandbox; more are 429.
    pub per_sandbox: usize,
    /// Most open ones of one tenant; more are 429.
    pub per_tenant: usize,
    /// Most commands that one socket follows at a time.
    pub commands: usize,
    /// Largest message of a client in bytes; a larger one ends the socket.
    pub max_message: usize,
    /// Time between pings.
    pub ping: Duration,
    /// A client that reads nothing, or answers no ping, is disconnected after this time.
    pub patience: Duration,
    /// A socket without a command is closed after this time.
    pub idle: Duration,
}

impl Default for SocketLimits {
    fn default() -> Self {
        Self {
            per_sandbox: 16,
            per_tenant: 256,
            commands: 16,
            max_message: 256 << 10,
            ping: Duration::from_secs(20),
            patience: Duration::from_secs(60),
            idle: Duration::from_secs(600),
        }
    }
}

/// Limits of connections.
#[derive(Debug, Clone)]
pub struct ConnectionLimits {
    /// Time limit of a request's head, and of an idle connection between requests.
    pub header_timeout: Duration,
    /// Most connections. At the limit, the longest idle one is closed for a new one.
    pub max_connections: usize,
    /// Most connections from one address (with IPv6, from one /64 network). At the limit, the longest idle one of them is
    /// closed.
    pub per_peer: usize,
    /// Connections beyond `max_connections`. They serve operators' routes and refuse all other requests.
    pub reserve: usize,
    /// Largest part of a request that is buffered for one connection before it is read, bytes; at least 8192. A head that
    /// does not fit is refused with a bare 431.
    pub buffer: usize,
    /// Time for which a peer may leave sent bytes unacknowledged before its connection is dropped.
    pub stalled_peer_timeout: Duration,
    /// Time limit of running requests after the shutdown.
    pub shutdown_grace: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(60),
            max_connections: 4096,
            per_peer: 1024,
            reserve: 32,
            buffer: 64 << 10,
            stalled_peer_timeout: Duration::from_secs(60),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}
