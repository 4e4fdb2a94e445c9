//! Connections to the ports of a running sandbox.
//!
//! ```text
//!   request to a port ── Ports::enter ──> Entered { sandbox } ── dial(port) ──> agent ──> 127.0.0.1:port in the guest
//! ```
//! The agent opens the connection inside the guest. So an isolated sandbox is reachable too, and nothing leads into a network
//! namespace.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Result;

/// Both directions of a connection to a port. Each direction ends on its own; dropping it ends both.
pub trait PortIo: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> PortIo for T {}

/// A connection to a port of a sandbox.
pub type PortStream = Box<dyn PortIo>;

/// Connections to the ports of a running sandbox.
#[async_trait]
pub trait LivePorts: Send + Sync + 'static {
    /// Connects to a TCP port of the guest's loopback. The connection counts as use of the sandbox while it is open, and it ends
    /// when the sandbox ends or is paused.
    ///
    /// # Errors
    /// `NotFound` when nothing listens on the port; `RateLimitExceeded` when the sandbox has too many connections already; `NotImplemented`
    /// when the sandbox's agent is older than this operation.
    async fn dial(self: Arc<Self>, port: u16) -> Result<PortStream>;
}
