//! The service's orderly end, and its return.

use std::time::Duration;

use nullspace_api::{TemplateBuildLogKind as Kind, TemplateBuildStatus as Status};
use serde_json::json;

use crate::fixture::{Image, Registry, Service};

#[tokio::test]
async fn a_running_build_is_handed_back_and_goes_on_after_a_restart() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::with([("NULLSPACE_BUILD_CONCURRENCY", "1".to_owned())]).await;
    let api = service.api();
    let request = |name: &str| {
        json!({
            "name": name, "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192},
            "start_cmd": "echo here I 'am'; sleep 3; touch up",
            "runtime_config": {"readiness": {"kind": "command", "command": "test -e up"}},
        })
    };
    let running = api.start(request("running")).await;
    let waiting = api.start(request("waiting")).await;
    api.until_said(&running.build_id, "here I am").await;
    // Somebody is following; the stream ends with the service, without an end of the log.
    let follower = tokio::spawn({
        let (api, id) = (api.clone(), running.build_id.clone());
        async move { api.follow(&id).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let asked = tokio::time::Instant::now();
    service.stop().await;
    assert!(asked.elapsed() < Duration::from_secs(40), "the end took {:?}", asked.elapsed());
    let followed = crate::fixture::api::events(&follower.await.unwrap());
    assert!(followed.iter().all(|entry| !entry.kind.is_terminal()), "{followed:?}");

    service.restart().await;
    let api = service.api();
    let finished = api.finished(&running.build_id).await.expect_status(Status::Ready);
    let handed_back = finished.log.iter().filter(|entry| entry.kind == Kind::Retry).count();
    assert_eq!(handed_back, 1, "{finished:?}");
    assert_eq!(finished.log[..followed.len()], followed[..], "the log goes on where it was");
    assert_eq!(finished.log.iter().filter(|entry| entry.message == "here I am").count(), 2, "it began anew");
    let sandbox = api.sandbox("running").await;
    assert_eq!(sandbox.sh("ls").await, "up");
    api.finished(&waiting.build_id).await.expect_status(Status::Ready);
    service.stop().await;
}

#[tokio::test]
async fn sandboxes_and_templates_survive_as_they_should() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built = api
        .ready(json!({
            "name": "app", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192},
            "start_cmd": "echo $$ > pid; exec sleep 1000000",
        }))
        .await;
    let sandbox = api.sandbox("app").await;
    assert_eq!(service.machines().len(), 1);
    // Killed: the machine goes with the service.
    service.kill().await;
    service.restart().await;
    let api = service.api();
    assert!(service.machines().is_empty());
    assert_eq!(sandbox_status(&api, &sandbox.id).await, "error", "its machine is lost");
    assert_eq!(api.finished(&built.build.build_id).await.log, built.log);
    let sandbox = api.sandbox("app").await;
    assert_eq!(sandbox.sh("tr '\\0' ' ' < /proc/$(cat pid)/cmdline").await, "sleep 1000000 ");
    // Ended in order, by a service that is not to pause it.
    service.stop().await;
    service.restart().await;
    service.api().get(&format!("/v1/sandboxes/{}", sandbox.id)).await.refused(404, "sandbox_not_found");
    service.stop().await;
}

async fn sandbox_status(api: &crate::fixture::Api, id: &str) -> String {
    let info: serde_json::Value = api.get(&format!("/v1/sandboxes/{id}")).await.ok(200);
    info["status"].as_str().expect("a status").to_owned()
}

#[tokio::test]
async fn a_stop_as_soon_as_it_listens_leaves_nothing() {
    let mut service = Service::through(&["env"], []);
    for _ in 0..5 {
        service.restart().await;
        service.stop().await;
    }
}
