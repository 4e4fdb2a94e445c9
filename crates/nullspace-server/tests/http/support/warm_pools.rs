//! The fake service's warm pools: it has one, of tenant A, and remembers what it was asked for.

use async_trait::async_trait;
use nullspace_api::*;
use nullspace_service::{Caller, Error, Result, WarmPoolAct, WarmPoolQuery, WarmPools};

use super::{Fake, letter};

pub(crate) const POOL: &str = "twp_00000000000070008000000000000001";

fn pool(name: &str) -> TemplateWarmPool {
    let at: Time = "2025-01-31T10:00:00Z".parse().unwrap();
    TemplateWarmPool {
        id: POOL.into(),
        name: name.into(),
        template_ref: "acme/web".into(),
        resolved_template: "acme/web".into(),
        resources: TemplateWarmPoolResources { vcpus: 1, memory_mb: 512, disk_mb: None },
        min_ready: 1,
        max_ready: 2,
        idle_timeout_seconds: 300,
        stale_after_seconds: 3600,
        checkout_policy: WarmPoolCheckoutMode::Prefer,
        version_policy: TemplateWarmPoolVersionPolicy::PinnedBuild,
        rollout_generation: 1,
        rollout_status: JsonObject::new(),
        status: TemplateWarmPoolStatusCounts { target: 1, warming: 1, ..Default::default() },
        state: TemplateWarmPoolState::Enabled,
        labels: [("role".to_owned(), "web".to_owned())].into(),
        metadata: JsonObject::new(),
        created_at: at,
        updated_at: at,
        resolved_template_build_id: None,
        runtime_artifact_id: None,
        host_pool_id: None,
        cell_id: None,
        compatibility_key: None,
        track_tag: None,
        previous_resolved_template: None,
        previous_resolved_template_build_id: None,
        previous_runtime_artifact_id: None,
        degraded_reason: None,
        enabled_at: Some(at),
        disabled_at: None,
        drain_requested_at: None,
        last_reconciled_at: None,
        deleted_at: None,
    }
}

fn found(caller: &Caller, id: &str) -> Result<TemplateWarmPool> {
    match (letter(caller), id) {
        ("a", POOL) => Ok(pool("web")),
        _ => Err(Error::new(ErrorResponseCode::NotFound, format!("there is no warm pool {id}"))),
    }
}

#[async_trait]
impl WarmPools for Fake {
    async fn create_warm_pool(
        &self,
        caller: &Caller,
        request: CreateTemplateWarmPoolRequest,
    ) -> Result<TemplateWarmPool> {
        self.call(format!("create_warm_pool {} {request:?}", letter(caller)));
        Ok(pool(&request.name))
    }

    async fn list_warm_pools(&self, caller: &Caller, query: WarmPoolQuery) -> Result<Vec<TemplateWarmPool>> {
        self.call(format!("list_warm_pools {} {query:?}", letter(caller)));
        Ok(found(caller, POOL).into_iter().collect())
    }

    async fn get_warm_pool(&self, caller: &Caller, id: &str) -> Result<TemplateWarmPool> {
        found(caller, id)
    }

    async fn update_warm_pool(
        &self,
        caller: &Caller,
        id: &str,
        request: UpdateTemplateWarmPoolRequest,
    ) -> Result<TemplateWarmPool> {
        self.call(format!("update_warm_pool {} {id} {request:?}", letter(caller)));
        found(caller, id)
    }

    async fn act_on_warm_pool(&self, caller: &Caller, id: &str, act: WarmPoolAct) -> Result<TemplateWarmPool> {
        self.call(format!("act_on_warm_pool {} {id} {act:?}", letter(caller)));
        found(caller, id)
    }
}
