//! Settings of the SSH server.

use std::time::Duration;

/// Limits of the SSH server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshLimits {
    /// Most connections.
    pub connections: usize,
    /// Most connections that have not shown a certificate.
    pub unauthenticated: usize,
    /// Most of these from one address; of IPv6, from one /64.
    pub unauthenticated_per_address: usize,
    /// Most connections to one sandbox.
    pub per_sandbox: usize,
    /// Most connections to the sandboxes of one tenant.
    pub per_tenant: usize,
    /// Most attempts to authenticate on one connection. A client's agent offers its other keys first.
    pub attempts: usize,
    /// Time from the connection to a valid certificate.
    pub authentication: Duration,
    /// Most channels of one connection: shells, commands and forwarded ports.
    pub channels: usize,
    /// Time for which a connection may have no channel.
    pub idle: Duration,
    /// Time between two messages to a client that says nothing. After three without an answer its connection ends.
    pub keepalive: Duration,
    /// Time between two looks whether the accesses of connections are in force.
    pub check: Duration,
}

impl Default for SshLimits {
    fn default() -> Self {
        Self {
            connections: 256,
            unauthenticated: 64,
            unauthenticated_per_address: 8,
            per_sandbox: 16,
            per_tenant: 64,
            attempts: 6,
            authentication: Duration::from_secs(20),
            channels: 16,
            idle: Duration::from_secs(600),
            keepalive: Duration::from_secs(30),
            check: Duration::from_secs(2),
        }
    }
}

/// Where clients reach the SSH server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshSettings {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}
