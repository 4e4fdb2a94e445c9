//! Limits in time of a sandbox: it is paused at its timeout or when nobody uses it, and its use brings it back as itself.

use std::time::Duration;

use nullspace_api::{LifecycleEventListResponse, SandboxHandle, SandboxInfo, SandboxStatus, SetTimeoutResponse};
use serde_json::json;

use crate::fixture::{Api, Image, Registry, Service, until};

async fn is_paused(api: &Api, id: &str) {
    let paused = async || {
        let info: SandboxInfo = api.get(&format!("/v1/sandboxes/{id}")).await.ok(200);
        info.status == SandboxStatus::Paused
    };
    until("the sandbox is paused", Duration::from_secs(120), paused).await;
}

/// Waits for the event of a success; its reason. An event is told a moment after what it tells of.
async fn reason(api: &Api, id: &str, operation: &str) -> String {
    let path = format!("/v1/sandboxes/{id}/lifecycle?operation={operation}&status=succeeded");
    let told = async || api.get(&path).await.ok::<LifecycleEventListResponse>(200).events;
    until(operation, Duration::from_secs(30), async || !told().await.is_empty()).await;
    let events = told().await;
    assert_eq!(events.len(), 1, "{events:?}");
    events[0].reason.clone().expect("a reason")
}

#[tokio::test]
async fn a_sandbox_that_nobody_uses_is_paused_and_its_use_resumes_it_as_itself() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built = api
        .ready(json!({
            "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 160},
            "start_cmd": "echo $$ > /run/pid; exec sleep 1000000",
        }))
        .await;
    let idle = api
        .sandbox_with(json!({
            "template": built.template(), "timeout_ms": 3_600_000, "timeout_action": "hibernate",
            "inactivity_timeout_ms": 2000, "auto_resume": true,
        }))
        .await;
    let pid = idle.sh("cat /run/pid").await;
    is_paused(&api, &idle.id).await;
    assert_eq!(reason(&api, &idle.id, "hibernate").await, "inactivity");
    // However many use it at once, it is resumed once.
    let uses = (0..5).map(|_| idle.sh("cat /run/pid; test -d /proc/$(cat /run/pid)"));
    assert_eq!(futures::future::join_all(uses).await, [pid.as_str(); 5]);
    assert_eq!(reason(&api, &idle.id, "resume_from_snapshot").await, "auto_resume");
    idle.delete().await;

    let timed = api.sandbox_with(json!({"template": built.template(), "timeout_action": "hibernate"})).await;
    let path = format!("/v1/sandboxes/{}", timed.id);
    let set: SetTimeoutResponse = api.post(&format!("{path}/timeout"), json!({"timeout_ms": 500})).await.ok(200);
    assert_eq!(set.timeout_ms, 500);
    is_paused(&api, &timed.id).await;
    assert_eq!(reason(&api, &timed.id, "timeout_expired").await, "timeout");
    timed.exec(json!({"command": "true"})).await.refused(409, "sandbox_not_ready");
    let resumed: SandboxHandle = api.post(&format!("{path}/resume"), json!({})).await.ok(200);
    assert_ne!(resumed.id, timed.id);
    api.get(&path).await.refused(404, "sandbox_not_found");
    api.attach(&resumed.id).await.delete().await;
    service.settles().await;
    service.stop().await;
}
