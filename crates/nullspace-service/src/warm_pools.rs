//! Warm pools of templates.

use async_trait::async_trait;
use nullspace_api::{
    CreateTemplateWarmPoolRequest, ListTemplateWarmPoolsStatus, TemplateWarmPool, TemplateWarmPoolState,
    UpdateTemplateWarmPoolRequest,
};

use crate::{Caller, Result};

/// Which warm pools to list. Absent filters match everything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WarmPoolQuery {
    /// Only those of this template, as their requests named it.
    pub template: Option<String>,
    /// Only those in this state. `None`: those that are not deleted.
    pub state: Option<TemplateWarmPoolState>,
    /// Only those that fare so.
    pub status: Option<ListTemplateWarmPoolsStatus>,
    /// Only those with all these labels.
    pub labels: Vec<(String, String)>,
    /// At most so many.
    pub limit: Option<u32>,
}

/// What a request without a body does to a warm pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WarmPoolAct {
    /// It keeps machines again.
    Enable,
    /// It ends its machines, and keeps none.
    Disable,
    /// The same, for good reasons that pass: until it is enabled.
    Drain,
    /// Its machines are compared with what it should have.
    Reconcile,
    /// It is over. Sandboxes that came from it stay.
    Delete,
}

/// Warm pools: machines that are resumed ahead of the sandboxes that take them.
#[async_trait]
pub trait WarmPools: Send + Sync + 'static {
    /// Makes a pool, which begins to make machines.
    async fn create_warm_pool(
        &self,
        caller: &Caller,
        request: CreateTemplateWarmPoolRequest,
    ) -> Result<TemplateWarmPool>;

    /// Returns the caller's pools, newest first.
    async fn list_warm_pools(&self, caller: &Caller, query: WarmPoolQuery) -> Result<Vec<TemplateWarmPool>>;

    /// Returns one pool.
    async fn get_warm_pool(&self, caller: &Caller, id: &str) -> Result<TemplateWarmPool>;

    /// Changes a pool.
    async fn update_warm_pool(
        &self,
        caller: &Caller,
        id: &str,
        request: UpdateTemplateWarmPoolRequest,
    ) -> Result<TemplateWarmPool>;

    /// Does this to a pool. Returns it as it is afterwards; its machines may still be on their way.
    async fn act_on_warm_pool(&self, caller: &Caller, id: &str, act: WarmPoolAct) -> Result<TemplateWarmPool>;
}
