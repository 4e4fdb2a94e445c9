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
    /// How long a JSON body may take to arrive; slower ones are 408.
    pub body_timeout: Duration,
    /// Largest request head in bytes (request line and headers); larger ones are 431.
    pub max_head: usize,
    /// Time between the comments that keep an event stream alive.
    pub heartbeat: Duration,
    /// How fast one tenant may ask; more is 429.
    pub rate: RequestRate,
    /// Requests of one tenant that are under way at a time, followers and WebSockets among them; more are 429.
    pub requests_at_once: usize,
    /// Logs that one tenant follows at a time; more are 429.
    pub followers: usize,
    /// Time between two looks whether the keys of requests under way are still in force.
    pub key_check: Duration,
    /// What requests may hold in memory.
    pub buffers: BufferLimits,
    /// WebSockets.
    pub sockets: SocketLimits,
    /// Who may read `/metrics`: whoever shows this, and without it only this host itself.
    pub metrics_token: Option<SecretString>,
    /// Guests reach this host's loopback, so that a connection from there may be a guest's: then nothing is open to "this
    /// host", and `/metrics` needs the token.
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
    /// Open at a time for one sandbox; more are 429.
    pub per_sandbox: usize,
    /// Open at a time for one tenant; more are 429.
    pub per_tenant: usize,
    /// Commands that one socket follows at a time.
    pub commands: usize,
    /// Largest message of a client in bytes; a larger one ends the socket.
    pub max_message: usize,
    /// Time between pings.
    pub ping: Duration,
    /// A client that shows no sign of life, or takes no message, for so long is let go.
    pub patience: Duration,
    /// A socket without a command is closed after so long.
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
    /// How long a request's head may take, and how long a connection may be idle between requests.
    pub header_timeout: Duration,
    /// Connections at once. At the limit the longest idle one makes room for a new one.
    pub max_connections: usize,
    /// Connections at once from one address (of IPv6, from one /64 network). At the limit the longest idle one of them
    /// makes room.
    pub per_peer: usize,
    /// Connections beyond `max_connections`, on which operators' routes are answered and everything else is refused.
    pub reserve: usize,
    /// Largest part of a request that is kept for one connection before anybody looks at it, bytes; at least 8192. A head
    /// that does not fit is refused with a bare 431.
    pub buffer: usize,
    /// How long a peer may leave sent bytes unacknowledged before its connection is dropped.
    pub stalled_peer_timeout: Duration,
    /// How long running requests may take to end after the shutdown.
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
