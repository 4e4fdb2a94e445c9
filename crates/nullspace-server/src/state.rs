//! The state that layers and handlers share.

use std::sync::Arc;

use nullspace_service::Service;

use crate::budget::Budget;
use crate::config::ServerConfig;
use crate::limits::Limiter;
use crate::metrics::HttpMetrics;
use crate::places::Places;
use crate::standing::Standings;

/// What every handler can reach.
#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) service: Arc<dyn Service>,
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) places: Arc<Places>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) standings: Arc<Standings>,
    pub(crate) metrics: Arc<HttpMetrics>,
}
