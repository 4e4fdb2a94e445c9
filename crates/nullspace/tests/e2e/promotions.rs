//! Snapshots that become templates, and sandboxes that make room for others.

use std::time::Duration;

use nullspace_api::{LifecycleEventListResponse, SandboxStatus, SnapshotInfo, TemplateInfo};
use serde_json::{Value, json};

use crate::fixture::{Api, Image, Registry, Service, until};

/// Writes a rising number to a file ten times a second.
const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n > /run/next; mv /run/next /run/count; sleep 0.1; done";

async fn with_counter(registry: &Registry, api: &Api) {
    registry.push("box", "1", &Image::busybox()).await;
    api.ready(json!({
        "name": "counter", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192},
        "start_cmd": COUNTER,
    }))
    .await;
}

#[tokio::test]
async fn a_promoted_snapshot_is_a_template_that_needs_neither_snapshot_nor_sandbox() {
    let registry = Registry::start();
    let mut service = Service::start().await;
    let api = service.api();
    with_counter(&registry, &api).await;
    let source = api.sandbox_with(json!({"template": "counter", "envs": {"TOKEN": "of-the-source"}})).await;
    source.sh("echo warmed up > /srv-state; sync").await;
    source.sh_with("sleep 86399", json!({"background": true})).await;
    let path = format!("/v1/sandboxes/{}/snapshots", source.id);
    let snapshot: SnapshotInfo = api.post(&path, json!({})).await.ok(201);
    let path = format!("/v1/snapshots/{}/promote", snapshot.id);
    let made: TemplateInfo = api.post(&path, json!({"name": "warm", "tag": "v1"})).await.ok(201);
    assert_eq!((made.name.as_str(), made.tags), ("warm", vec!["v1".to_owned()]));
    // A name of the service's own is nobody else's.
    api.post(&path, json!({"name": "nullspace/base"})).await.refused(400, "invalid_request");
    let base = format!("{}:v1", made.canonical_ref);
    let child = json!({"name": "child", "base_image": base, "build_config": {"memory_mib": 192}});
    api.post("/v1/templates/builds", child).await.refused(400, "invalid_request");

    source.delete().await;
    assert_eq!(api.delete(&format!("/v1/snapshots/{}", snapshot.id)).await.status, 204);
    assert_eq!(api.delete("/v1/templates/counter").await.status, 204);
    service.stop().await;
    service.collect_store();
    service.restart().await;
    let api = service.api();
    for _ in 0..2 {
        let sandbox = api.sandbox("warm:v1").await;
        assert_eq!(sandbox.sh("cat /srv-state; echo \"[$TOKEN]\"").await, "warmed up\n[]");
        assert_eq!(sandbox.sh("ps | grep -c '[s]leep 86399'").await, "1");
        let count = async || sandbox.sh("cat /run/count").await.parse::<u64>().unwrap();
        let from = count().await;
        until("its process goes on", Duration::from_secs(60), async || count().await > from + 3).await;
        sandbox.delete().await;
    }
    service.settles().await;
    service.verify_store();
    service.stop().await;
}

#[tokio::test]
async fn on_a_full_host_an_idle_sandbox_is_paused_for_a_new_one_and_use_brings_it_back() {
    let registry = Registry::start();
    let mut service = Service::with([
        ("NULLSPACE_VCPUS", "1".to_owned()),
        ("NULLSPACE_PAUSE_WHEN_FULL", "true".to_owned()),
        ("NULLSPACE_PAUSE_WHEN_FULL_IDLE_SECS", "2".to_owned()),
    ])
    .await;
    let api = service.api();
    with_counter(&registry, &api).await;
    let first = api.sandbox_with(json!({"template": "counter", "auto_resume": true})).await;
    let before: u64 = first.sh("echo mine > /srv-state; cat /run/count").await.parse().unwrap();
    // It was used a moment ago.
    api.post("/v1/sandboxes", json!({"template": "counter"})).await.refused(503, "capacity_exceeded");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let second = api.sandbox_with(json!({"template": "counter", "ephemeral": true})).await;
    assert_eq!(first.info().await.status, SandboxStatus::Paused);
    let events: LifecycleEventListResponse = api.get(&format!("/v1/sandboxes/{}/lifecycle", first.id)).await.ok(200);
    let events: Value = json!(events);
    assert!(events.to_string().contains("host_full"), "{events}");
    // An ephemeral sandbox gives no room.
    tokio::time::sleep(Duration::from_secs(3)).await;
    api.post(&format!("/v1/sandboxes/{}/resume", first.id), json!({})).await.refused(503, "capacity_exceeded");
    second.delete().await;
    let after: u64 = first.sh("cat /run/count").await.parse().unwrap();
    assert!(after >= before, "{before} {after}");
    assert_eq!(first.sh("cat /srv-state").await, "mine");
    first.delete().await;
    service.settles().await;
    service.stop().await;
}
