//! The life of sandboxes.

use std::time::Duration;

use nullspace_api::{CreateSandboxResponse, SandboxListPage, SandboxStatus};
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixture::{Image, Registry, Service, until};

#[tokio::test]
async fn a_sandbox_ends_when_its_time_is_up_it_is_deleted_or_its_machine_dies() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let request = json!({
        "name": "box", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192},
        "start_cmd": "echo one > version",
    });
    let built = api.ready(request).await;

    // Its time.
    let brief = api.sandbox_with(json!({"template": "box", "timeout_ms": 6000})).await;
    let info = brief.info().await;
    assert_eq!((info.status, info.timeout_ms), (SandboxStatus::Running, Some(6000)));
    assert!(info.remaining_ms.is_some_and(|left| left <= 6000), "{info:?}");
    // A command that runs when the time is up ends with the sandbox.
    let late = brief.exec(json!({"command": "sleep", "args": ["60"], "timeout_secs": 60})).await;
    late.refused(404, "sandbox_not_found");
    let path = format!("/v1/sandboxes/{}", brief.id);
    until("the sandbox ends", Duration::from_secs(30), async || api.get(&path).await.status == 404).await;
    service.settles().await;

    // Its machine.
    let dying = api.sandbox("box").await;
    let last = dying.exec(json!({"command": "poweroff", "args": ["-f"]})).await;
    assert!([404, 502].contains(&last.status), "{last:?}");
    until("the sandbox is broken", Duration::from_secs(60), async || dying.info().await.status == SandboxStatus::Error)
        .await;
    dying.exec(json!({"command": "true"})).await.refused(404, "sandbox_not_found");
    service.settles().await;

    // Its template's end is not its own.
    let staying = api.sandbox(built.template()).await;
    assert_eq!(api.delete("/v1/templates/box").await.status, 204);
    assert_eq!(staying.sh("cat version; echo still here").await, "one\nstill here");
    // Read from the disk for the first time now: what it stands on was not pulled away.
    assert_eq!(
        staying.sh("cat /bin/busybox | wc -c").await,
        std::fs::metadata("/bin/busybox").unwrap().len().to_string()
    );
    api.post("/v1/sandboxes", json!({"template": built.template()})).await.refused(404, "template_not_found");
    staying.delete().await;
    service.settles().await;
    let snapshots = || crate::fixture::artifacts::snapshots(&service.data());
    until("the deleted template's snapshot goes", Duration::from_secs(90), async || snapshots().is_empty()).await;
    service.stop().await;
}

#[tokio::test]
async fn a_sandbox_that_is_ended_while_it_starts_leaves_nothing() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built =
        api.ready(json!({"base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}})).await;
    for key in [None, Some("k1")] {
        let mut request = api.request(Method::POST, "/v1/sandboxes").json(&json!({"template": built.template()}));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let create = tokio::spawn({
            let api = api.clone();
            async move { api.send(request).await }
        });
        let first = async || api.get("/v1/sandboxes").await.ok::<Vec<Value>>(200).first().cloned();
        until("its row is there", Duration::from_secs(30), async || first().await.is_some()).await;
        let found = first().await.expect("a sandbox that starts");
        let path = format!("/v1/sandboxes/{}", found["id"].as_str().expect("an id"));
        // Gone when the answer is there, as with one that runs.
        assert_eq!(api.delete(&path).await.status, 200);
        api.get(&path).await.refused(404, "sandbox_not_found");
        create.await.expect("create").refused(404, "sandbox_not_found");
        service.settles().await;
    }
    service.stop().await;
}

#[tokio::test]
async fn creates_are_repeated_by_key_listed_by_page_and_honest_about_their_size() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built =
        api.ready(json!({"base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}})).await;

    let request = json!({"template": built.template(), "memory_mb": 1024, "vcpus": 1, "metadata": {"team": "a"}});
    let create = |key: &str, body: &Value| {
        let request = api.request(Method::POST, "/v1/sandboxes").header("idempotency-key", key).json(body);
        let api = api.clone();
        async move { api.send(request).await }
    };
    let first: CreateSandboxResponse = create("k1", &request).await.ok(201);
    assert_eq!((first.config.memory_mb, first.config.vcpus), (192, 1), "the snapshot fixes the size");
    assert_eq!(first.warnings.len(), 1, "{:?}", first.warnings);
    assert!(first.warnings[0].contains("memory_mb"));
    let again: CreateSandboxResponse = create("k1", &request).await.ok(201);
    assert_eq!(again.id, first.id);
    create("k1", &json!({"template": built.template()})).await.refused(409, "transition_conflict");

    let second: CreateSandboxResponse =
        create("k2", &json!({"template": built.template(), "metadata": {"team": "b"}})).await.ok(201);
    assert_ne!(second.id, first.id);
    let page: SandboxListPage = api.get("/v1/sandboxes?limit=1").await.ok(200);
    assert_eq!((page.items[0].id.as_str(), page.has_next), (second.id.as_str(), true), "newest first");
    let token = page.next_token.expect("a token for the next page");
    let page: SandboxListPage = api.get(&format!("/v1/sandboxes?limit=1&next_token={token}")).await.ok(200);
    assert_eq!(page.items[0].id, first.id);
    let of_team: Vec<Value> = api.get("/v1/sandboxes?metadata=%7B%22team%22%3A%22a%22%7D").await.ok(200);
    assert_eq!(of_team.len(), 1);
    assert_eq!(of_team[0]["id"], *first.id);

    for (request, status, code) in [
        (json!({"template": "no-such-template"}), 404, "template_not_found"),
        (json!({"template": "not a reference"}), 404, "template_not_found"),
        (json!({"template": built.template(), "timeout_ms": 0}), 400, "invalid_request"),
        (json!({"template": built.template(), "cwd": "relative"}), 400, "invalid_request"),
        (json!({"snapshot_id": "snap_1"}), 404, "snapshot_not_found"),
        (json!({"template": built.template(), "volumes": [{"ref": "v", "mount_path": "/v"}]}), 501, "not_implemented"),
    ] {
        api.post("/v1/sandboxes", request).await.refused(status, code);
    }

    // The service's end is theirs.
    service.stop().await;
    service.restart().await;
    let api = service.api();
    let ended: Vec<Value> = api.get("/v1/sandboxes?state=destroyed").await.ok(200);
    assert_eq!(ended.len(), 2, "{ended:?}");
    service.stop().await;
}
