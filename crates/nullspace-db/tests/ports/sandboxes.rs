//! Sandboxes: recorded before they run, final when they end.

use nullspace_db::{Idempotency, Inserted, SandboxFilter, SandboxStatus, SnapshotKind};
use nullspace_types::{ArtifactId, SandboxId};
use serde_json::json;

use crate::fixture::{Fixture, at, is_conflict, is_not_found, new_sandbox, new_snapshot};

fn page(limit: u32) -> SandboxFilter {
    SandboxFilter { limit, ..SandboxFilter::default() }
}

#[tokio::test]
async fn a_sandbox_lives_from_creating_to_its_end() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    let asked = new_sandbox(build.artifact_id);
    let Inserted::New(made) = f.store.insert_sandbox(&caller, asked.clone(), at(2)).await.unwrap() else { panic!() };
    assert_eq!((made.id, made.status, made.created_at), (asked.id, SandboxStatus::Creating, at(2)));
    assert_eq!((made.timeout_at, made.started_at, made.ended_at), (Some(at(300)), None, None));
    let set = |status, reason, now| f.store.set_sandbox_status(asked.id, status, reason, now);
    let running = set(SandboxStatus::Running, None, at(3)).await.unwrap();
    assert_eq!((running.status, running.started_at), (SandboxStatus::Running, Some(at(3))));
    // Pauses are recorded with their snapshot.
    assert!(is_conflict(&set(SandboxStatus::Paused, None, at(4)).await));
    assert!(is_conflict(&set(SandboxStatus::Creating, None, at(4)).await));
    let again = set(SandboxStatus::Running, None, at(5)).await.unwrap();
    assert_eq!(again.started_at, Some(at(3)));
    let config = json!({ "timeout_ms": 897_000 });
    let moved = f.store.set_sandbox_timeout(&caller, asked.id, &config, Some(at(900))).await.unwrap();
    assert_eq!((moved.timeout_at, moved.config), (Some(at(900)), config));
    let over = set(SandboxStatus::Destroyed, Some("asked"), at(6)).await.unwrap();
    assert_eq!((over.ended_at, over.reason.as_deref()), (Some(at(6)), Some("asked")));
    for status in SandboxStatus::ALL {
        assert!(is_conflict(&set(*status, None, at(7)).await), "{status}");
    }
    assert!(is_conflict(&f.store.set_sandbox_timeout(&caller, asked.id, &json!({}), None).await));
    assert_eq!(f.store.get_sandbox(&caller, asked.id).await.unwrap(), over);
    assert!(is_not_found(&f.store.set_sandbox_status(SandboxId::new(), SandboxStatus::Running, None, at(7)).await));
}

#[tokio::test]
async fn a_sandbox_is_its_tenants() {
    let f = Fixture::new().await;
    let (owner, other) = (f.tenant("owner").await, f.tenant("other").await);
    let build = f.ready(&owner, "web", &["default"], at(1)).await;
    let asked = new_sandbox(build.artifact_id);
    f.store.insert_sandbox(&owner, asked.clone(), at(2)).await.unwrap();
    assert!(is_not_found(&f.store.get_sandbox(&other, asked.id).await));
    assert!(is_not_found(&f.store.set_sandbox_timeout(&other, asked.id, &json!({}), None).await));
    assert!(f.store.list_sandboxes(&other, page(10)).await.unwrap().is_empty());
    assert_eq!(f.store.list_sandboxes(&owner, page(10)).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_sandbox_needs_an_artifact_that_can_be_used() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let insert = |artifact| f.store.insert_sandbox(&caller, new_sandbox(artifact), at(2));
    assert!(is_not_found(&insert(ArtifactId::new()).await));
    let waiting = f.accept(&caller, "later").await;
    assert!(is_not_found(&insert(waiting.artifact_id).await));
    let (lease, _) = f.run("w", at(1)).await;
    f.store.finish_error(&lease, crate::fixture::failure(), at(1)).await.unwrap();
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    insert(build.artifact_id).await.unwrap();
    f.delete(&caller, "web", at(3)).await.unwrap();
    assert!(is_not_found(&insert(build.artifact_id).await));
}

#[tokio::test]
async fn a_repeated_request_answers_with_the_first_ones_sandbox() {
    let f = Fixture::new().await;
    let (caller, other) = (f.tenant("acme").await, f.tenant("other").await);
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    let theirs = f.ready(&other, "web", &["default"], at(1)).await;
    let asked = |artifact, digest: &str| {
        let mut sandbox = new_sandbox(artifact);
        sandbox.idempotency = Some(Idempotency { key: "k1".to_owned(), request_digest: digest.to_owned() });
        sandbox
    };
    let first = f.store.insert_sandbox(&caller, asked(build.artifact_id, "d1"), at(2)).await.unwrap();
    let Inserted::New(first) = first else { panic!() };
    let second = f.store.insert_sandbox(&caller, asked(build.artifact_id, "d1"), at(3)).await.unwrap();
    assert_eq!(second, Inserted::Repeated(first));
    assert!(is_conflict(&f.store.insert_sandbox(&caller, asked(build.artifact_id, "d2"), at(3)).await));
    // The key is the tenant's own.
    let foreign = f.store.insert_sandbox(&other, asked(theirs.artifact_id, "d1"), at(3)).await.unwrap();
    assert!(matches!(foreign, Inserted::New(_)));
}

#[tokio::test]
async fn live_sandboxes_are_listed_newest_first_in_pages() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        let asked = new_sandbox(build.artifact_id);
        ids.push(asked.id);
        f.store.insert_sandbox(&caller, asked, at(2)).await.unwrap();
    }
    f.store.set_sandbox_status(ids[4], SandboxStatus::Destroyed, None, at(3)).await.unwrap();
    f.store.set_sandbox_status(ids[0], SandboxStatus::Running, None, at(3)).await.unwrap();
    let listed = |filter| async {
        let page = f.store.list_sandboxes(&caller, filter).await.unwrap();
        page.into_iter().map(|sandbox| sandbox.id).collect::<Vec<_>>()
    };
    assert_eq!(listed(page(3)).await, [ids[3], ids[2], ids[1]]);
    assert_eq!(listed(SandboxFilter { after: Some(ids[1]), ..page(3) }).await, [ids[0]]);
    let only = |status| SandboxFilter { statuses: vec![status], ..page(10) };
    assert_eq!(listed(only(SandboxStatus::Running)).await, [ids[0]]);
    assert_eq!(listed(only(SandboxStatus::Destroyed)).await, [ids[4]]);
}

#[tokio::test]
async fn sandboxes_whose_host_restarted_are_over() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    let mut ids = Vec::new();
    for host in ["host-1", "host-1", "host-2"] {
        let mut asked = new_sandbox(build.artifact_id);
        asked.host = host.to_owned();
        ids.push(asked.id);
        f.store.insert_sandbox(&caller, asked, at(2)).await.unwrap();
    }
    f.store.set_sandbox_status(ids[0], SandboxStatus::Destroyed, Some("asked"), at(3)).await.unwrap();
    let end = |status| f.store.end_sandboxes_of_host("host-1", status, "the service restarted", at(4));
    assert!(is_conflict(&end(SandboxStatus::Running).await));
    assert_eq!(end(SandboxStatus::Error).await.unwrap(), [(ids[1], caller.tenant)]);
    let ended = f.store.get_sandbox(&caller, ids[1]).await.unwrap();
    assert_eq!((ended.status, ended.ended_at), (SandboxStatus::Error, Some(at(4))));
    assert_eq!(ended.reason.as_deref(), Some("the service restarted"));
    assert_eq!(f.store.get_sandbox(&caller, ids[0]).await.unwrap().reason.as_deref(), Some("asked"));
    assert_eq!(f.store.get_sandbox(&caller, ids[2]).await.unwrap().status, SandboxStatus::Creating);
    assert_eq!(f.store.counters().await.unwrap().sandboxes_live, 1);
}

#[tokio::test]
async fn the_last_use_of_a_sandbox_only_moves_on() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let asked = new_sandbox(build.artifact_id);
        ids.push(asked.id);
        f.store.insert_sandbox(&caller, asked, at(2)).await.unwrap();
    }
    f.store.set_sandbox_status(ids[2], SandboxStatus::Destroyed, None, at(3)).await.unwrap();
    let used = async |id| f.store.get_sandbox(&caller, id).await.unwrap().last_active_at;
    f.store.touch_sandboxes(&[]).await.unwrap();
    let missing = SandboxId::new();
    let told = [(ids[0], at(5)), (ids[0], at(9)), (ids[1], at(6)), (ids[2], at(6)), (missing, at(6))];
    f.store.touch_sandboxes(&told).await.unwrap();
    assert_eq!((used(ids[0]).await, used(ids[1]).await, used(ids[2]).await), (Some(at(9)), Some(at(6)), None));
    f.store.touch_sandboxes(&[(ids[0], at(8)), (ids[1], at(12))]).await.unwrap();
    assert_eq!((used(ids[0]).await, used(ids[1]).await), (Some(at(9)), Some(at(12))));
}

#[tokio::test]
async fn only_what_runs_or_is_paused_has_a_timeout_to_set() {
    let f = Fixture::new().await;
    let caller = f.tenant("acme").await;
    let build = f.ready(&caller, "web", &["default"], at(1)).await;
    let asked = new_sandbox(build.artifact_id);
    f.store.insert_sandbox(&caller, asked.clone(), at(2)).await.unwrap();
    let config = json!({ "timeout_action": "hibernate" });
    let set = |timeout_at| f.store.set_sandbox_timeout(&caller, asked.id, &config, timeout_at);
    assert!(is_conflict(&set(Some(at(9))).await));
    f.store.set_sandbox_status(asked.id, SandboxStatus::Running, None, at(3)).await.unwrap();
    assert_eq!(set(None).await.unwrap().timeout_at, None);
    let new = new_snapshot(asked.id, SnapshotKind::Pause);
    f.store.record_snapshot(new, None, at(4)).await.unwrap();
    let paused = set(Some(at(9))).await.unwrap();
    assert_eq!((paused.status, paused.timeout_at, paused.config), (SandboxStatus::Paused, Some(at(9)), config.clone()));
}
