//! Warm pools over a real database and a host without machines.

use nullspace_api::{
    CreateSandboxResponse, CreateTemplateWarmPoolRequest, ListTemplateWarmPoolsStatus, TemplateWarmPool,
    TemplateWarmPoolDegradedReason as Reason, TemplateWarmPoolState as State, WarmPoolCheckoutResultSource as Source,
};
use nullspace_service::{WarmPoolAct as Act, WarmPoolQuery, WarmPools as _};
use serde_json::Value;

use super::*;

fn asked(change: Value) -> CreateTemplateWarmPoolRequest {
    let mut request = json!({"name": "pool", "template_ref": "web", "min_ready": 2, "max_ready": 3,
        "resources": {"vcpus": 2, "memory_mb": 512}, "labels": {"role": "web"}});
    request.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    serde_json::from_value(request).unwrap()
}

impl House {
    async fn pool(&self, change: Value) -> TemplateWarmPool {
        self.control.create_warm_pool(&self.caller, asked(change)).await.unwrap()
    }

    async fn see(&self, id: &str) -> TemplateWarmPool {
        self.control.get_warm_pool(&self.caller, id).await.unwrap()
    }

    async fn until_pool(&self, id: &str, what: &str, holds: impl Fn(&TemplateWarmPool) -> bool) -> TemplateWarmPool {
        for _ in 0..1000 {
            let pool = self.see(id).await;
            if holds(&pool) {
                return pool;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never {what}: {:?}", self.see(id).await);
    }

    async fn create_in(&self, change: Value) -> Result<CreateSandboxResponse, Error> {
        let request = serde_json::from_value(change).unwrap();
        self.control.create_sandbox(&self.caller, request, &context(None)).await
    }

    fn spares(&self) -> usize {
        self.host.state.spares.lock().unwrap().len()
    }
}

fn checkout(pool: &TemplateWarmPool, mode: &str) -> Value {
    json!({"template": "web", "warm_pool": {"id": pool.id, "mode": mode}})
}

fn source(created: &CreateSandboxResponse) -> (Source, bool) {
    let checkout = created.warm_pool_checkout.as_ref().expect("it says what came of the pool");
    (checkout.source, checkout.hit)
}

#[tokio::test]
async fn a_pool_fills_is_checked_out_refills_and_ends_without_its_sandboxes() {
    let house = House::new(usual()).await;
    let made = house.pool(json!({})).await;
    assert_eq!((made.state, made.status.target, made.rollout_generation), (State::Enabled, 2, 1));
    assert_eq!((made.resources.vcpus, made.resources.memory_mb), (1, 192), "the template's size");
    let full = house.until_pool(&made.id, "full", |pool| pool.status.ready == 2).await;
    assert_eq!((full.degraded_reason, full.status.unavailable), (None, 0));
    assert!(full.last_reconciled_at.is_some());

    let created = house.create_in(checkout(&made, "require")).await.unwrap();
    assert_eq!(source(&created), (Source::ReadyInstance, true));
    let (sandbox, _) = house.host.state.taken.lock().unwrap()[0];
    assert_eq!(sandbox.to_string(), created.id);
    // It says so later, too, and the pool counts it until its end.
    let info = house.control.get_sandbox(&house.caller, &created.id).await.unwrap();
    assert_eq!(info.warm_pool_checkout, created.warm_pool_checkout);
    house.until_pool(&made.id, "refilled", |pool| pool.status.ready == 2 && pool.status.claimed == 1).await;
    // A sandbox that comes of it is none of the pool's.
    let clone = house.control.fork_sandbox(&house.caller, &created.id, &context(None)).await.unwrap();
    let clone = house.control.get_sandbox(&house.caller, &clone.id).await.unwrap();
    assert_eq!(clone.warm_pool_checkout, None);

    let deleted = house.control.act_on_warm_pool(&house.caller, &made.id, Act::Delete).await.unwrap();
    assert_eq!(deleted.state, State::Deleted);
    assert_eq!(house.control.get_warm_pool(&house.caller, &made.id).await.unwrap_err().code, Code::NotFound);
    for _ in 0..1000 {
        if house.spares() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(house.spares(), 0);
    assert_eq!(house.status(&created.id).await, Ok(Status::Running));
    let list = async |query| house.control.list_warm_pools(&house.caller, query).await.unwrap().len();
    assert_eq!(list(WarmPoolQuery::default()).await, 0);
    assert_eq!(list(WarmPoolQuery { state: Some(State::Deleted), ..Default::default() }).await, 1);
    house.control.stop().await;
}

#[tokio::test]
async fn a_create_says_how_it_wants_to_be_treated() {
    let house = House::new(usual()).await;
    let made = house.pool(json!({"min_ready": 0, "max_ready": 0})).await;
    let refused = house.create_in(checkout(&made, "require")).await.unwrap_err();
    assert_eq!((refused.code, refused.retry_after.is_some()), (Code::WarmPoolUnavailable, true));
    let cold = house.create_in(checkout(&made, "prefer")).await.unwrap();
    assert_eq!(source(&cold), (Source::ColdCreate, false));
    let default = house.create_in(json!({"warm_pool": {"id": made.id}})).await.unwrap();
    assert_eq!((source(&default), default.template.as_str()), ((Source::ColdCreate, false), "web"));
    let bypassed = house.create_in(checkout(&made, "bypass")).await.unwrap();
    assert_eq!(source(&bypassed), (Source::Bypassed, false));
    let without = house.create_in(json!({"template": "web", "warm_pool": {"mode": "bypass"}})).await.unwrap();
    assert_eq!(source(&without), (Source::Bypassed, false));
    assert!(house.host.state.taken.lock().unwrap().is_empty());
    // A refusal leaves nothing: no row, no event, no machine.
    assert_eq!(house.host.machines().len(), 4);

    for (wrong, code) in [
        (json!({"warm_pool": {}}), Code::InvalidRequest),
        (json!({"warm_pool": {"id": made.id, "wait_ms": 60_001}}), Code::InvalidRequest),
        (json!({"warm_pool": {"id": "twp_1"}}), Code::NotFound),
        (json!({"warm_pool": {"id": made.id, "mode": "require"}, "envs": {"A": "1"}}), Code::WarmPoolUnavailable),
    ] {
        assert_eq!(house.create_in(wrong.clone()).await.unwrap_err().code, code, "{wrong}");
    }
    // The pool of another tenant is none.
    let db = &house.control.inner.db;
    let other = db.ensure_tenant("other", NamespaceKind::User, at(0)).await.unwrap().caller();
    assert_eq!(house.control.get_warm_pool(&other, &made.id).await.unwrap_err().code, Code::NotFound);
    // From a snapshot there is no checkout.
    let snapshot = house.pause(&cold.id).await.unwrap();
    let from_snapshot = json!({"snapshot_id": snapshot, "warm_pool": {"id": made.id, "mode": "require"}});
    assert_eq!(house.create_in(from_snapshot).await.unwrap_err().code, Code::WarmPoolUnavailable);
    house.control.stop().await;
}

#[tokio::test]
async fn a_create_waits_for_the_next_spare_and_takes_another_one_for_a_lost_one() {
    let house = House::new(usual()).await;
    let made = house.pool(json!({"min_ready": 1, "max_ready": 1})).await;
    house.until_pool(&made.id, "full", |pool| pool.status.ready == 1).await;
    // The host has ended the spare, and the pool does not know yet.
    house.host.state.spares.lock().unwrap().clear();
    let waits = json!({"warm_pool": {"id": made.id, "mode": "require", "wait_ms": 60_000}});
    let created = house.create_in(waits).await.unwrap();
    assert_eq!(source(&created), (Source::ReadyInstance, true));
    assert_eq!(house.told(&created.id).await, ["create requested api", "create succeeded api"]);
    assert_eq!(house.host.machines().len(), 1);
    house.control.stop().await;
}

#[tokio::test]
async fn two_creates_never_get_one_spare() {
    let house = House::new(usual()).await;
    let made = house.pool(json!({"min_ready": 3, "max_ready": 3})).await;
    house.until_pool(&made.id, "full", |pool| pool.status.ready == 3).await;
    let creates = (0..12).map(|_| house.create_in(checkout(&made, "prefer")));
    let created = futures::future::join_all(creates).await;
    let mut taken = house.host.state.taken.lock().unwrap().clone();
    let hits = created.iter().filter(|created| source(created.as_ref().unwrap()).1).count();
    assert!(hits >= 3 && hits == taken.len(), "{hits} hits, {taken:?}");
    taken.sort_by_key(|(_, spare)| *spare);
    taken.dedup_by_key(|(_, spare)| *spare);
    assert_eq!(taken.len(), hits);
    house.control.stop().await;
}

#[tokio::test]
async fn what_keeps_a_pool_from_its_machines_is_told_and_passes() {
    let house = House::new(usual()).await;
    house.host.state.failing_spares.store(1, Ordering::SeqCst);
    let made = house.pool(json!({"min_ready": 1, "max_ready": 1})).await;
    let degraded = house.until_pool(&made.id, "degraded", |pool| pool.degraded_reason.is_some()).await;
    assert_eq!((degraded.degraded_reason, degraded.status.failed), (Some(Reason::QuotaExceeded), 1));
    let of_status = |status| WarmPoolQuery { status: Some(status), ..Default::default() };
    let degraded = of_status(ListTemplateWarmPoolsStatus::Degraded);
    assert_eq!(house.control.list_warm_pools(&house.caller, degraded).await.unwrap().len(), 1);
    house.until_pool(&made.id, "full", |pool| pool.status.ready == 1 && pool.degraded_reason.is_none()).await;

    let draining = house.control.act_on_warm_pool(&house.caller, &made.id, Act::Drain).await.unwrap();
    assert_eq!((draining.state, draining.degraded_reason), (State::Draining, Some(Reason::DrainActive)));
    house.until_pool(&made.id, "empty", |pool| pool.status.ready + pool.status.draining == 0).await;
    let refused = house.create_in(checkout(&made, "require")).await.unwrap_err();
    assert!(refused.message.contains("draining") && refused.retry_after.is_none(), "{refused}");
    house.control.act_on_warm_pool(&house.caller, &made.id, Act::Enable).await.unwrap();
    house.until_pool(&made.id, "full again", |pool| pool.status.ready == 1).await;
    house.control.act_on_warm_pool(&house.caller, &made.id, Act::Disable).await.unwrap();
    let disabled = house.until_pool(&made.id, "empty", |pool| pool.status.ready + pool.status.draining == 0).await;
    assert!(disabled.disabled_at.is_some() && disabled.enabled_at.is_some() && disabled.status.target == 0);
    house.control.stop().await;
}

#[tokio::test]
async fn a_pool_that_follows_a_tag_moves_with_it_and_a_pinned_one_stays() {
    let house = House::new(usual()).await;
    let pinned = house.pool(json!({"min_ready": 1})).await;
    let follows = house.pool(json!({"min_ready": 1, "version_policy": "track_tag"})).await;
    for pool in [&pinned, &follows] {
        house.until_pool(&pool.id, "full", |pool| pool.status.ready == 1).await;
    }
    template(&*house.control.inner.db, &house.caller).await;
    house.control.act_on_warm_pool(&house.caller, &follows.id, Act::Reconcile).await.unwrap();
    let moved =
        house.until_pool(&follows.id, "moved", |pool| pool.rollout_generation == 2 && pool.status.ready == 1).await;
    assert_eq!(moved.previous_runtime_artifact_id, follows.runtime_artifact_id);
    assert_ne!(moved.runtime_artifact_id, follows.runtime_artifact_id);
    assert_eq!(moved.rollout_status["current_counts"]["released"], 1);
    let stays = house.see(&pinned.id).await;
    assert_eq!((stays.rollout_generation, stays.runtime_artifact_id.clone()), (1, pinned.runtime_artifact_id.clone()));

    // A create of the newer build gets none of the older one's.
    let refused = house.create_in(checkout(&pinned, "require")).await.unwrap_err();
    assert!(refused.message.contains("another build"), "{refused}");
    assert!(source(&house.create_in(checkout(&follows, "require")).await.unwrap()).1);
    let by_id = json!({"template": pinned.runtime_artifact_id, "warm_pool": {"id": pinned.id, "mode": "require"}});
    assert!(source(&house.create_in(by_id).await.unwrap()).1);
    house.control.stop().await;
}

#[tokio::test]
async fn changes_take_effect_and_limits_hold() {
    let house = House::new(usual()).await;
    let made = house.pool(json!({})).await;
    let change = async |change: Value| {
        let request = serde_json::from_value(change).unwrap();
        house.control.update_warm_pool(&house.caller, &made.id, request).await
    };
    let changed = change(json!({"min_ready": 4, "max_ready": 4, "labels": {"a": "b"}})).await.unwrap();
    assert_eq!((changed.min_ready, changed.labels["a"].as_str()), (4, "b"));
    house.until_pool(&made.id, "larger", |pool| pool.status.ready == 4).await;
    change(json!({"min_ready": 1})).await.unwrap();
    house.until_pool(&made.id, "smaller", |pool| pool.status.ready == 1).await;
    assert_eq!(change(json!({"min_ready": 5})).await.unwrap_err().code, Code::InvalidRequest);
    assert_eq!(change(json!({"max_ready": 9})).await.unwrap_err().code, Code::QuotaExceeded, "warm_per_tenant");
    assert_eq!(change(json!({"template_ref": "no-such"})).await.unwrap_err().code, Code::TemplateNotFound);
    let another = house.control.create_warm_pool(&house.caller, asked(json!({"max_ready": 5}))).await.unwrap_err();
    assert_eq!(another.code, Code::QuotaExceeded);
    house.pool(json!({"name": "second", "min_ready": 0, "max_ready": 4, "labels": {"a": "c"}})).await;
    let labelled = WarmPoolQuery { labels: vec![("a".into(), "c".into())], ..Default::default() };
    let found = house.control.list_warm_pools(&house.caller, labelled).await.unwrap();
    assert_eq!(found.iter().map(|pool| pool.name.as_str()).collect::<Vec<_>>(), ["second"]);
    house.control.stop().await;

    let off = House::new(LifeSettings { warm_per_tenant: 0, ..usual() }).await;
    let refused = off.control.create_warm_pool(&off.caller, asked(json!({}))).await.unwrap_err();
    assert_eq!(refused.code, Code::FeatureUnavailable);
    off.control.stop().await;
}
