//! What the edge asks of the service: whether a request may enter, and a connection to the port.

use std::sync::Arc;

use async_trait::async_trait;
use nullspace_service::{Entered, Knock, LiveSandbox, PortCount, PortStream, Ports, Result};
use nullspace_types::TenantId;
use tokio_util::sync::CancellationToken;

/// Connections to the ports of one running sandbox.
#[async_trait]
pub(crate) trait Dial: Send + Sync + 'static {
    /// Connects to a port.
    async fn dial(&self, port: u16) -> Result<PortStream>;
}

/// A request that was let in: [`Entered`], of which the edge uses nothing of the sandbox but its ports.
pub(crate) struct Admitted {
    pub(crate) sandbox: Arc<dyn Dial>,
    pub(crate) tenant: TenantId,
    pub(crate) host: Option<String>,
    pub(crate) token_secs: Option<u64>,
    pub(crate) over: CancellationToken,
    pub(crate) count: Arc<dyn PortCount>,
}

/// Decides about requests.
#[async_trait]
pub(crate) trait Gate: Send + Sync + 'static {
    /// As [`Ports::enter`].
    async fn enter(&self, knock: Knock) -> Result<Admitted>;

    /// As [`Ports::has_ended`].
    async fn has_ended(&self, sandbox: &str) -> Result<bool>;
}

/// The service's decision.
pub(crate) struct OfService(pub(crate) Arc<dyn Ports>);

struct Live(Arc<dyn LiveSandbox>);

#[async_trait]
impl Dial for Live {
    async fn dial(&self, port: u16) -> Result<PortStream> {
        Arc::clone(&self.0).dial(port).await
    }
}

#[async_trait]
impl Gate for OfService {
    async fn enter(&self, knock: Knock) -> Result<Admitted> {
        let Entered { sandbox, tenant, host, token_secs, over, count } = self.0.enter(knock).await?;
        Ok(Admitted { sandbox: Arc::new(Live(sandbox)), tenant, host, token_secs, over, count })
    }

    async fn has_ended(&self, sandbox: &str) -> Result<bool> {
        self.0.has_ended(sandbox).await
    }
}
