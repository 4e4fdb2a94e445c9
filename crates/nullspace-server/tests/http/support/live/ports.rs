//! Connections to the ports of a running sandbox: the fake's.

use std::sync::Arc;

use async_trait::async_trait;
use nullspace_service::{Error, LivePorts, PortStream, Result};

use super::Live;

#[async_trait]
impl LivePorts for Live {
    async fn dial(self: Arc<Self>, _: u16) -> Result<PortStream> {
        Err(Error::not_implemented("connections to ports"))
    }
}
