//! Warm pools of templates: machines that are resumed ahead of the sandboxes that take them.
//!
//! ```text
//!   enabled <──> disabled, draining ──> deleted ──retention──> forgotten
//! ```
//! The database has what a pool should be. What it has is known by the host of its machines alone.

use std::collections::HashMap;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, Caller, TenantId, WarmPoolId};
use serde_json::Value;

#[cfg(doc)]
use crate::DbError;
use crate::{Result, text_enum::text_enum};

text_enum! {
    /// State of a warm pool.
    WarmPoolState {
        /// It keeps machines.
        Enabled = "enabled",
        /// It keeps none.
        Disabled = "disabled",
        /// It ends its machines.
        Draining = "draining",
        /// It is over.
        Deleted = "deleted",
    }
}

/// A warm pool.
#[derive(Debug, Clone, PartialEq)]
pub struct WarmPool {
    /// Identity.
    pub id: WarmPoolId,
    /// The tenant that owns it.
    pub tenant: TenantId,
    /// Its state.
    pub state: WarmPoolState,
    /// What its owner asked for.
    pub spec: Value,
    /// Most machines that it may have.
    pub max_ready: u32,
    /// The version of its template now, and the one before.
    pub version: Value,
    /// The artifact of the version now. It is not collected while the pool is not deleted.
    pub artifact: ArtifactId,
    /// Time of creation.
    pub created_at: Timestamp,
    /// Time of the last change; different after each.
    pub updated_at: Timestamp,
    /// Times of the last change to each state.
    pub enabled_at: Option<Timestamp>,
    /// See `enabled_at`.
    pub disabled_at: Option<Timestamp>,
    /// See `enabled_at`.
    pub drain_requested_at: Option<Timestamp>,
    /// See `enabled_at`.
    pub deleted_at: Option<Timestamp>,
}

/// Limits of one tenant's warm pools that are not deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmPoolLimits {
    /// Pools.
    pub pools: u32,
    /// The sum of their `max_ready`.
    pub ready: u32,
}

/// Stores warm pools.
#[async_trait]
pub trait WarmPools: Send + Sync + 'static {
    /// Records a pool. [`DbError::LimitReached`] beyond the tenant's limits.
    async fn insert_warm_pool(&self, pool: WarmPool, limits: WarmPoolLimits) -> Result<WarmPool>;

    /// The caller's pools, newest first; those that are deleted, too.
    async fn list_warm_pools(&self, caller: &Caller) -> Result<Vec<WarmPool>>;

    /// One of the caller's pools; also one that is deleted.
    async fn get_warm_pool(&self, caller: &Caller, pool: WarmPoolId) -> Result<WarmPool>;

    /// Writes a pool over the row whose `updated_at` is `read_at`, with `now` as its new one. [`DbError::Conflict`] when it was changed
    /// since, or is deleted; [`DbError::LimitReached`] beyond the tenant's limits.
    async fn change_warm_pool(
        &self,
        pool: WarmPool,
        read_at: Timestamp,
        limits: WarmPoolLimits,
        now: Timestamp,
    ) -> Result<WarmPool>;

    /// The pools of all tenants that are not deleted.
    async fn warm_pools(&self) -> Result<Vec<WarmPool>>;

    /// The number of sandboxes that came from each of these pools and have not ended. Pools without any are left out.
    async fn claimed_of_warm_pools(&self, pools: &[WarmPoolId]) -> Result<HashMap<WarmPoolId, u64>>;

    /// Removes up to `limit` pools that were deleted before this time. Returns their number.
    async fn forget_warm_pools(&self, deleted_before: Timestamp, limit: u32) -> Result<u64>;
}
