//! Warm pools: their owner's, bounded, changed by one request at a time, and kept from the collector.

use nullspace_db::{DbError, NewSandbox, SandboxStatus, WarmPool, WarmPoolLimits, WarmPoolState};
use nullspace_types::{ArtifactId, Caller, WarmPoolId};
use serde_json::json;

use crate::fixture::{Fixture, at, is_conflict, is_not_found, new_sandbox};

const LIMITS: WarmPoolLimits = WarmPoolLimits { pools: 2, ready: 10 };

fn pool(caller: &Caller, artifact: ArtifactId, max_ready: u32) -> WarmPool {
    WarmPool {
        id: WarmPoolId::new(),
        tenant: caller.tenant,
        state: WarmPoolState::Enabled,
        spec: json!({"name": "p"}),
        max_ready,
        version: json!({"generation": 1}),
        artifact,
        created_at: at(1),
        updated_at: at(1),
        enabled_at: Some(at(1)),
        disabled_at: None,
        drain_requested_at: None,
        deleted_at: None,
    }
}

fn deleted(pool: &WarmPool, now: i64) -> WarmPool {
    WarmPool { state: WarmPoolState::Deleted, deleted_at: Some(at(now)), ..pool.clone() }
}

#[tokio::test]
async fn a_pool_is_its_owners_and_bounded() {
    let f = Fixture::new().await;
    let (owner, other) = (f.tenant("owner").await, f.tenant("other").await);
    let artifact = ArtifactId::new();
    let insert = async |pool: WarmPool| f.store.insert_warm_pool(pool, LIMITS).await;
    let first = insert(pool(&owner, artifact, 6)).await.unwrap();
    assert_eq!(f.store.get_warm_pool(&owner, first.id).await.unwrap(), first);
    assert!(is_not_found(&f.store.get_warm_pool(&other, first.id).await));
    assert!(f.store.list_warm_pools(&other).await.unwrap().is_empty());

    let refused = insert(pool(&owner, artifact, 5)).await.unwrap_err();
    assert!(matches!(refused, DbError::LimitReached { limit: 10, .. }), "{refused:?}");
    let second = insert(pool(&owner, artifact, 4)).await.unwrap();
    let refused = insert(pool(&owner, artifact, 0)).await.unwrap_err();
    assert!(matches!(refused, DbError::LimitReached { limit: 2, .. }), "{refused:?}");
    insert(pool(&other, artifact, 10)).await.expect("limits are each tenant's own");
    let list = f.store.list_warm_pools(&owner).await.unwrap();
    assert_eq!(list.iter().map(|pool| pool.id).collect::<Vec<_>>(), [second.id, first.id], "newest first");
    assert_eq!(f.store.warm_pools().await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_change_of_what_was_changed_since_is_refused() {
    let f = Fixture::new().await;
    let (owner, other) = (f.tenant("owner").await, f.tenant("other").await);
    let read = f.store.insert_warm_pool(pool(&owner, ArtifactId::new(), 6), LIMITS).await.unwrap();
    let change = async |pool: WarmPool, read: &WarmPool, now| {
        f.store.change_warm_pool(pool, read.updated_at, LIMITS, at(now)).await
    };
    let larger = WarmPool { max_ready: 8, spec: json!({"name": "q"}), ..read.clone() };
    let changed = change(larger.clone(), &read, 5).await.unwrap();
    assert_eq!((changed.max_ready, changed.updated_at, changed.spec), (8, at(5), json!({"name": "q"})));
    assert!(is_conflict(&change(larger.clone(), &read, 6).await), "it was changed since");
    let read = f.store.get_warm_pool(&owner, read.id).await.unwrap();
    let stolen = WarmPool { tenant: other.tenant, ..larger.clone() };
    assert!(is_conflict(&change(stolen, &read, 6).await), "another tenant's");
    let refused = change(WarmPool { max_ready: 11, ..read.clone() }, &read, 6).await.unwrap_err();
    assert!(matches!(refused, DbError::LimitReached { .. }), "{refused:?}");
    // A clock that went back makes two changes no less different.
    let again = change(WarmPool { state: WarmPoolState::Disabled, ..read.clone() }, &read, 0).await.unwrap();
    assert!(again.updated_at > read.updated_at);

    let gone = change(deleted(&again, 7), &again, 7).await.unwrap();
    assert!(is_conflict(&change(again.clone(), &gone, 8).await), "it is over");
    assert!(f.store.warm_pools().await.unwrap().is_empty());
    assert_eq!(f.store.get_warm_pool(&owner, gone.id).await.unwrap().state, WarmPoolState::Deleted);
    f.store.insert_warm_pool(pool(&owner, ArtifactId::new(), 10), LIMITS).await.expect("a deleted one counts no more");
    assert_eq!(f.store.forget_warm_pools(at(7), 10).await.unwrap(), 0);
    assert_eq!(f.store.forget_warm_pools(at(8), 10).await.unwrap(), 1);
    assert!(is_not_found(&f.store.get_warm_pool(&owner, gone.id).await));
}

#[tokio::test]
async fn a_pools_artifact_is_kept_until_the_pool_or_the_template_goes() {
    let f = Fixture::new().await;
    let owner = f.tenant("owner").await;
    let (kept, let_go) =
        (f.ready(&owner, "web", &["default"], at(1)).await, f.ready(&owner, "api", &["default"], at(1)).await);
    for (build, name) in [(&kept, "web"), (&let_go, "api")] {
        f.store.insert_warm_pool(pool(&owner, build.artifact_id, 1), LIMITS).await.unwrap();
        f.ready(&owner, name, &["default"], at(2)).await;
    }
    let collectable = async || {
        let unused = f.store.collectable_artifacts(at(5000), 100).await.unwrap();
        unused.into_iter().map(|one| one.id).collect::<Vec<_>>()
    };
    assert!(collectable().await.is_empty(), "no tag points to them, and their retention is over");
    assert!(!f.store.purge_artifact(kept.artifact_id, at(5000)).await.unwrap());
    f.delete(&owner, "api", at(10)).await.unwrap();
    assert!(collectable().await.contains(&let_go.artifact_id), "the template was deleted");
    let list = f.store.list_warm_pools(&owner).await.unwrap();
    let of_web = list.iter().find(|pool| pool.artifact == kept.artifact_id).unwrap();
    f.store.change_warm_pool(deleted(of_web, 20), of_web.updated_at, LIMITS, at(20)).await.unwrap();
    assert!(f.store.purge_artifact(kept.artifact_id, at(5000)).await.unwrap());
}

#[tokio::test]
async fn sandboxes_are_counted_with_their_pool_until_they_end() {
    let f = Fixture::new().await;
    let owner = f.tenant("owner").await;
    let build = f.ready(&owner, "web", &["default"], at(1)).await;
    let (id, other) = (WarmPoolId::new(), WarmPoolId::new());
    let mut made = Vec::new();
    for warm_pool in [Some(id), Some(id), Some(other), None] {
        let asked = NewSandbox { warm_pool, ..new_sandbox(build.artifact_id) };
        made.push(asked.id);
        f.store.insert_sandbox(&owner, asked, at(2)).await.unwrap();
    }
    let claimed = async || f.store.claimed_of_warm_pools(&[id, WarmPoolId::new()]).await.unwrap();
    assert_eq!(claimed().await, [(id, 2)].into());
    f.store.set_sandbox_status(made[0], SandboxStatus::Destroyed, None, at(3)).await.unwrap();
    assert_eq!(claimed().await, [(id, 1)].into());
}
