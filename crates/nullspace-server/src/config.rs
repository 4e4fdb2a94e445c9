//! Limits of the HTTP layer. The defaults fit a service that is reached directly.

use std::time::Duration;

use secrecy::SecretString;

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
            max_message: 1 << 20,
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
    /// Connections served at once; more wait in the kernel's queue.
    pub max_connections: usize,
    /// How long a peer may leave sent bytes unacknowledged before its connection is dropped.
    pub stalled_peer_timeout: Duration,
    /// How long running requests may take to end after the shutdown.
    pub shutdown_grace: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            max_connections: 1024,
            stalled_peer_timeout: Duration::from_secs(60),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}
