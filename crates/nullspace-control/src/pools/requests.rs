//! The operations of the API on warm pools.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{
    CreateTemplateWarmPoolRequest, ErrorResponseCode as Code, TemplateWarmPool, TemplateWarmPoolResources,
    TemplateWarmPoolState, UpdateTemplateWarmPoolRequest,
};
use nullspace_db::{DbError, WarmPool, WarmPoolState};
use nullspace_host_interface::Unfit;
use nullspace_service::{WarmPoolAct, WarmPoolQuery};
use nullspace_types::{Caller, WarmPoolId};
use serde_json::json;

use super::spec::{Spec, Version};
use super::stock::Stock;
use super::wire;
use crate::catalog::wire::column;
use crate::error::{Error, Result, Stored, internal, of_store};
use crate::{Control, Inner};

/// Tries of a change that meets another one.
const TRIES: u32 = 5;
/// Longest list.
const PAGE: usize = 1000;

#[async_trait]
impl nullspace_service::WarmPools for Control {
    async fn create_warm_pool(
        &self,
        caller: &Caller,
        request: CreateTemplateWarmPoolRequest,
    ) -> Result<TemplateWarmPool> {
        let inner = &self.inner;
        inner.offers_pools()?;
        let spec = Spec::new(&caller.namespace, request)?;
        let (id, now) = (WarmPoolId::new(), Timestamp::now());
        let row = WarmPool {
            id,
            tenant: caller.tenant,
            state: WarmPoolState::Enabled,
            spec: json!(null),
            max_ready: spec.max_ready,
            version: json!(null),
            artifact: nullspace_types::ArtifactId::new(),
            created_at: now,
            updated_at: now,
            enabled_at: Some(now),
            disabled_at: None,
            drain_requested_at: None,
            deleted_at: None,
        };
        let row = inner.with_template(row, spec, None).await?;
        let made =
            inner.db.insert_warm_pool(row, inner.warm_limits()).await.map_err(|error| over_limit(error, inner))?;
        tracing::info!(pool = %id, artifact = %made.artifact, "a warm pool is made");
        inner.pools.wake.notify_one();
        inner.shown(&made).await
    }

    async fn list_warm_pools(&self, caller: &Caller, query: WarmPoolQuery) -> Result<Vec<TemplateWarmPool>> {
        let rows = self.inner.db.list_warm_pools(caller).await.stored()?;
        let most = query.limit.map_or(PAGE, |limit| usize::try_from(limit).unwrap_or(PAGE).min(PAGE));
        let claimed = self.inner.db.claimed_of_warm_pools(&rows.iter().map(|row| row.id).collect::<Vec<_>>()).await;
        let claimed = claimed.stored()?;
        let mut found = Vec::new();
        for row in rows {
            let pool = self.inner.with_stock(&row, claimed.get(&row.id).copied().unwrap_or_default())?;
            let in_state = match query.state {
                Some(state) => pool.state == state,
                None => pool.state != TemplateWarmPoolState::Deleted,
            };
            let labelled = query.labels.iter().all(|(key, value)| pool.labels.get(key) == Some(value));
            let of_template = query.template.as_ref().is_none_or(|template| {
                [Some(&pool.template_ref), Some(&pool.resolved_template), pool.runtime_artifact_id.as_ref()]
                    .contains(&Some(template))
            });
            let fares = query.status.is_none_or(|status| wire::fares(&pool) == status);
            if in_state && labelled && of_template && fares && found.len() < most {
                found.push(pool);
            }
        }
        Ok(found)
    }

    async fn get_warm_pool(&self, caller: &Caller, id: &str) -> Result<TemplateWarmPool> {
        let row = self.inner.pool_of(caller, id).await?;
        self.inner.shown(&row).await
    }

    async fn update_warm_pool(
        &self,
        caller: &Caller,
        id: &str,
        request: UpdateTemplateWarmPoolRequest,
    ) -> Result<TemplateWarmPool> {
        let inner = &self.inner;
        for _ in 0..TRIES {
            let row = inner.pool_of(caller, id).await?;
            let before: Spec = column("warm_pools.spec", &row.spec).stored()?;
            let spec = before.changed(request.clone())?;
            let version: Version = column("warm_pools.version", &row.version).stored()?;
            let moves = spec.reference()? != before.reference()? || spec.tracks() != before.tracks();
            let changed = WarmPool { max_ready: spec.max_ready, ..row.clone() };
            let changed = if moves {
                inner.with_template(changed, spec, Some(version)).await?
            } else {
                WarmPool { spec: json!(spec), ..changed }
            };
            if let Some(changed) = inner.change(&row, changed).await? {
                return inner.shown(&changed).await;
            }
        }
        Err(busy())
    }

    async fn act_on_warm_pool(&self, caller: &Caller, id: &str, act: WarmPoolAct) -> Result<TemplateWarmPool> {
        let inner = &self.inner;
        for _ in 0..TRIES {
            let row = inner.pool_of(caller, id).await?;
            let now = Timestamp::now();
            let changed = match act {
                WarmPoolAct::Reconcile => {
                    inner.keep_pools(true).await.stored()?;
                    return inner.shown(&inner.pool_of(caller, id).await?).await;
                }
                WarmPoolAct::Enable => {
                    inner.offers_pools()?;
                    WarmPool { state: WarmPoolState::Enabled, enabled_at: Some(now), ..row.clone() }
                }
                WarmPoolAct::Disable => {
                    WarmPool { state: WarmPoolState::Disabled, disabled_at: Some(now), ..row.clone() }
                }
                WarmPoolAct::Drain => {
                    WarmPool { state: WarmPoolState::Draining, drain_requested_at: Some(now), ..row.clone() }
                }
                WarmPoolAct::Delete => WarmPool {
                    state: WarmPoolState::Deleted,
                    drain_requested_at: row.drain_requested_at.or(Some(now)),
                    deleted_at: Some(now),
                    ..row.clone()
                },
            };
            if changed.state == row.state {
                return inner.shown(&row).await;
            }
            if let Some(changed) = inner.change(&row, changed).await? {
                tracing::info!(pool = %row.id, state = %changed.state, "a warm pool's state is changed");
                return inner.shown(&changed).await;
            }
        }
        Err(busy())
    }
}

impl Inner {
    /// Refuses pools where the operator has turned them off.
    fn offers_pools(&self) -> Result<()> {
        if self.config.life.warm_per_tenant > 0 {
            return Ok(());
        }
        let message = "this deployment has no warm pools: its operator has set warm_machines_per_tenant to 0";
        Err(Error::new(Code::FeatureUnavailable, message))
    }

    /// One of the caller's pools that is not deleted.
    pub(super) async fn pool_of(&self, caller: &Caller, id: &str) -> Result<WarmPool> {
        let missing = || Error::new(Code::NotFound, format!("there is no warm pool {id}"));
        let parsed: WarmPoolId = id.parse().map_err(|_| missing())?;
        let row = self.db.get_warm_pool(caller, parsed).await.or_missing(missing)?;
        if row.deleted_at.is_some() { Err(missing()) } else { Ok(row) }
    }

    /// A pool with this specification, of the template that it names now.
    async fn with_template(&self, row: WarmPool, spec: Spec, before: Option<Version>) -> Result<WarmPool> {
        let identity = self.identity(&row, &spec).await?;
        let artifact = self.db.get_artifact(identity.artifact).await;
        let artifact = artifact.or_missing(|| Error::template_not_found(&spec.template_ref))?;
        let size = self.host.judge(&artifact.snapshot).map_err(|unfit| match unfit {
            Unfit::Incompatible(conflict) => Error::new(
                Code::RebuildRequired,
                format!("template {} cannot run on this host: {conflict}; build it again", spec.template_ref),
            ),
            Unfit::Corrupt(_) => internal("read a template", &unfit),
        })?;
        let resources = TemplateWarmPoolResources {
            vcpus: size.vcpus,
            memory_mb: size.memory_mib,
            disk_mb: u32::try_from(size.disk_bytes >> 20).ok(),
        };
        let version = match before {
            Some(before) => before.after(identity.clone()).unwrap_or(before),
            None => Version::first(identity.clone()),
        };
        let spec = Spec { resources, ..spec };
        Ok(WarmPool { artifact: identity.artifact, spec: json!(spec), version: json!(version), ..row })
    }

    /// Writes a changed pool. `None`: it was changed by another request since it was read.
    async fn change(&self, read: &WarmPool, changed: WarmPool) -> Result<Option<WarmPool>> {
        match self.db.change_warm_pool(changed, read.updated_at, self.warm_limits(), Timestamp::now()).await {
            Err(DbError::Conflict { .. }) => Ok(None),
            Err(error) => Err(over_limit(error, self)),
            Ok(changed) => {
                self.pools.wake.notify_one();
                Ok(Some(changed))
            }
        }
    }

    async fn shown(&self, row: &WarmPool) -> Result<TemplateWarmPool> {
        let claimed = self.db.claimed_of_warm_pools(&[row.id]).await.stored()?;
        self.with_stock(row, claimed.get(&row.id).copied().unwrap_or_default())
    }

    fn with_stock(&self, row: &WarmPool, claimed: u64) -> Result<TemplateWarmPool> {
        match self.pools.stocks().get(&row.id) {
            Some(stock) => wire::pool(row, stock, claimed),
            None => wire::pool(row, &Stock::default(), claimed),
        }
    }
}

fn over_limit(error: DbError, inner: &Inner) -> Error {
    match error {
        DbError::LimitReached { what, limit } => {
            let ready = inner.config.life.warm_per_tenant;
            let message = format!("{what}: the limit is {limit} (max_ready of all pools together: {ready})");
            Error::new(Code::QuotaExceeded, message)
        }
        error => of_store(error),
    }
}

fn busy() -> Error {
    Error::new(Code::TransitionConflict, "the warm pool is changed by other requests; try again")
}
