//! A build can be cancelled at any point, and nothing of it stays.

use std::time::Duration;

use nullspace_api::{TemplateBuildLogKind as Kind, TemplateBuildStatus as Status, TemplateBuildStatusSnapshot};
use serde_json::json;

use crate::fixture::{Api, Gate, Image, Registry, Service, until};

/// Cancels twice and waits for the end. Once the end is seen, nothing may be left: not a moment later.
async fn cancelled(service: &Service, api: &Api, build_id: &str) {
    let asked = tokio::time::Instant::now();
    let snapshot = api.cancel(build_id, "changed my mind").await;
    assert!(matches!(snapshot.build.status, Status::Building | Status::Cancelled), "{:?}", snapshot.build.status);
    assert_eq!(snapshot.build.cancellation_reason.as_deref(), Some("changed my mind"));
    assert!(snapshot.build.cancel_requested_at.is_some());
    api.cancel(build_id, "asked again").await;
    let ended = api.finished(build_id).await.expect_status(Status::Cancelled);
    assert!(service.machines().is_empty(), "a machine of a cancelled build: {:?}", service.machines());
    service.settles().await;
    assert!(asked.elapsed() < Duration::from_secs(60), "it took {:?}", asked.elapsed());
    assert_eq!(ended.build.cancellation_reason.as_deref(), Some("changed my mind"), "the first one counts");

    // Once more, after the end: the same answer, and a log that does not grow.
    let after: TemplateBuildStatusSnapshot = api.cancel(build_id, "too late").await;
    assert_eq!((after.build.status, &after.entries), (Status::Cancelled, &ended.log));
    assert_eq!(after.build.cancellation_reason, ended.build.cancellation_reason);
    api.get(&format!("/v1/templates/{}", ended.template())).await.refused(404, "template_not_found");
}

#[tokio::test]
async fn a_build_is_cancelled_in_every_phase_and_leaves_nothing() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::with([("NULLSPACE_BUILD_CONCURRENCY", "1".to_owned())]).await;
    let api = service.api();
    let machine = json!({"memory_mib": 192});

    // While a layer comes slowly, with another build waiting behind it.
    let gate = Gate::closed(registry.address()).await;
    let slow = api.start(json!({"base_image": gate.reference("box:1"), "build_config": machine})).await;
    gate.reached().await;
    let waiting = api.start(json!({"base_image": registry.reference("box:1"), "build_config": machine})).await;
    let snapshot = api.status(&waiting.build_id, 0).await;
    assert_eq!(snapshot.build.status, Status::Waiting);
    let snapshot = api.cancel(&waiting.build_id, "first in, first out").await;
    assert_eq!(snapshot.build.status, Status::Cancelled, "one that waits ends at once");
    assert_eq!(snapshot.entries.iter().map(|entry| entry.kind).collect::<Vec<_>>(), [Kind::Start, Kind::Cancelled]);
    assert!(snapshot.build.started_at.is_none());
    assert_eq!(api.status(&slow.build_id, 0).await.build.status, Status::Building);
    cancelled(&service, &api, &slow.build_id).await;
    drop(gate);

    // While the machine boots.
    let booting = api.start(json!({"base_image": registry.reference("box:1"), "build_config": machine})).await;
    until("a machine", Duration::from_secs(60), async || !service.machines().is_empty()).await;
    cancelled(&service, &api, &booting.build_id).await;

    // While the start command runs and is not ready.
    let starting = api
        .start(json!({
            "base_image": registry.reference("box:1"), "build_config": machine,
            "start_cmd": "echo here I 'am'; sleep 1000000",
            "runtime_config": {"readiness": {"kind": "tcp", "port": 9, "timeout_secs": 600}},
        }))
        .await;
    api.until_said(&starting.build_id, "here I am").await;
    cancelled(&service, &api, &starting.build_id).await;

    // At the very end, around the snapshot: who was first wins, and is believed ever after.
    for pause in [0, 30, 80, 200] {
        let ending = api
            .start(json!({
                "base_image": registry.reference("box:1"), "build_config": machine,
                "start_cmd": "exec sleep 1000000", "runtime_config": {"readiness": {"kind": "timeout", "timeout_ms": 10}},
            }))
            .await;
        api.until_said(&ending.build_id, "Ready after").await;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let answer = api.cancel(&ending.build_id, "at the last moment").await;
        let ended = api.finished(&ending.build_id).await;
        if answer.build.status == Status::Ready {
            assert_eq!(ended.build.status, Status::Ready, "{ended:?}");
        } else {
            assert_eq!(ended.build.status, Status::Cancelled, "a cancel that was answered: {ended:?}");
        }
        service.settles().await;
    }

    // A build that is over stays as it is.
    let ready = api.ready(json!({"base_image": registry.reference("box:1"), "build_config": machine})).await;
    let after = api.cancel(&ready.build.build_id, "too late").await;
    assert_eq!((after.build.status, after.entries), (Status::Ready, ready.log.clone()));
    assert!(after.build.cancel_requested_at.is_none());
    let sandbox = api.sandbox(ready.template()).await;
    assert_eq!(sandbox.sh("echo fine").await, "fine");
    service.stop().await;
}

#[tokio::test]
async fn deleting_a_template_cancels_its_running_builds() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let request = |start_cmd: &str| {
        json!({
            "name": "app", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192},
            "start_cmd": start_cmd,
        })
    };
    api.ready(request("true")).await;
    let mut second = request("echo here I 'am'; sleep 1000000");
    second["runtime_config"] = json!({"readiness": {"kind": "tcp", "port": 9, "timeout_secs": 600}});
    let running = api.start(second).await;
    api.until_said(&running.build_id, "here I am").await;
    assert_eq!(api.delete("/v1/templates/app").await.status, 204);
    api.finished(&running.build_id).await.expect_status(Status::Cancelled);
    service.settles().await;
    // The name is free again.
    api.ready(request("true")).await;
    service.stop().await;
}
