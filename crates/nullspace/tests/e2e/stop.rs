//! A stop and a start of the service with sandboxes that run: they are paused, and go on with the same ids and processes.

use std::time::{Duration, Instant};

use nullspace_api::{LifecycleEventListResponse, SandboxInfo, SandboxStatus, SnapshotInfo};
use serde_json::{Value, json};

use crate::fixture::{Api, Image, Registry, Sandbox, Service, is_long, until};

/// Counts in memory, and writes the number down with the process that counts.
const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n $$ > /run/next; mv /run/next /run/count; sleep 0.1; done";

/// A service that pauses at its end, with a template `counter`.
async fn with_counter(registry: &Registry) -> (Service, Api) {
    registry.push("box", "1", &Image::busybox()).await;
    let service = Service::with([("NULLSPACE_STOP_PAUSE_SECS", "50".to_owned())]).await;
    let api = service.api();
    api.ready(json!({
        "name": "counter", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 160},
        "start_cmd": COUNTER,
        "runtime_config": {"readiness": {"kind": "command", "command": "test -s /run/count"}},
    }))
    .await;
    (service, api)
}

async fn status(api: &Api, id: &str) -> SandboxStatus {
    let info: SandboxInfo = api.get(&format!("/v1/sandboxes/{id}")).await.ok(200);
    info.status
}

async fn runs(api: &Api, id: &str) {
    let running = async || status(api, id).await == SandboxStatus::Running;
    until("the sandbox runs again", Duration::from_secs(120), running).await;
}

/// The count and the process that counts.
async fn count(sandbox: &Sandbox) -> (u64, u64) {
    let text = sandbox.sh("cat /run/count").await;
    let (count, pid) = text.split_once(' ').expect("two numbers");
    (count.parse().expect("a count"), pid.parse().expect("a pid"))
}

#[tokio::test]
async fn sandboxes_outlive_a_restart_of_the_service() {
    let registry = Registry::start();
    let (mut service, api) = with_counter(&registry).await;
    let mut before = Vec::new();
    for number in 0..if is_long() { 10 } else { 3 } {
        let request = json!({
            "template": "counter", "timeout_ms": 3_600_000, "envs": {"NUMBER": number.to_string()},
            "metadata": {"number": number.to_string()},
        });
        let sandbox = api.sandbox_with(request).await;
        sandbox.sh(&format!("echo {number} > /number")).await;
        let counted = count(&sandbox).await;
        before.push((sandbox, counted));
    }
    // What its owner has paused stays paused.
    let paused = api.sandbox("counter").await;
    let by_hand: SnapshotInfo = api.post(&format!("/v1/sandboxes/{}/hibernate", paused.id), json!({})).await.ok(200);

    service.stop().await;
    let stopped = Instant::now();
    service.restart().await;
    let api = service.api();
    for (number, (sandbox, (counted, pid))) in before.iter().enumerate() {
        runs(&api, &sandbox.id).await;
        let sandbox = api.attach(&sandbox.id).await;
        let (now, process) = count(&sandbox).await;
        assert_eq!(process, *pid, "the same process");
        assert!(now >= *counted, "it counted on: {counted}, {now}");
        let further = format!("until [ \"$(cut -d' ' -f1 /run/count)\" -gt {now} ]; do sleep 0.05; done");
        sandbox.sh(&further).await;
        assert_eq!(sandbox.sh("cat /number").await, number.to_string());
        assert_eq!(sandbox.sh("echo $NUMBER").await, number.to_string(), "its variables");
        let info = sandbox.info().await;
        let left = info.remaining_ms.expect("a timeout");
        let most = 3_600_000 - u64::try_from(stopped.elapsed().as_millis()).expect("ms").min(1000);
        assert!((3_000_000..=most).contains(&left), "{left} ms are left");
        let events: LifecycleEventListResponse =
            api.get(&format!("/v1/sandboxes/{}/lifecycle", sandbox.id)).await.ok(200);
        let reasons: Vec<&str> = events.events.iter().filter_map(|event| event.reason.as_deref()).collect();
        assert!(reasons.contains(&"service_stopped") && reasons.contains(&"service_started"), "{reasons:?}");
        sandbox.delete().await;
    }
    assert_eq!(status(&api, &paused.id).await, SandboxStatus::Paused);
    let resumed: serde_json::Value = api.post(&format!("/v1/sandboxes/{}/resume", by_hand.id), json!({})).await.ok(200);
    api.attach(resumed["id"].as_str().expect("an id")).await.delete().await;
    service.settles().await;
    service.stop().await;
}

#[tokio::test]
async fn a_killed_service_loses_what_ran_and_nothing_that_was_stored() {
    let registry = Registry::start();
    let (mut service, api) = with_counter(&registry).await;
    let running = api.sandbox("counter").await;
    let snapshot: SnapshotInfo = api.post(&format!("/v1/sandboxes/{}/snapshots", running.id), json!({})).await.ok(201);
    let paused = api.sandbox("counter").await;
    let (counted, pid) = count(&paused).await;
    let _: SnapshotInfo = api.post(&format!("/v1/sandboxes/{}/hibernate", paused.id), json!({})).await.ok(200);
    service.kill().await;
    service.restart().await;
    let api = service.api();
    assert_eq!(status(&api, &running.id).await, SandboxStatus::Error);
    let events: LifecycleEventListResponse =
        api.get(&format!("/v1/sandboxes/{}/lifecycle?operation=reconcile", running.id)).await.ok(200);
    let lost = events.events.first().and_then(|event| event.reason.clone()).expect("an event");
    assert!(lost.starts_with("lost: "), "{lost}");
    // What was stored is as good as before.
    let from_snapshot = api.sandbox_with(json!({"snapshot_id": snapshot.id})).await;
    count(&from_snapshot).await;
    let resumed: serde_json::Value = api.post(&format!("/v1/sandboxes/{}/resume", paused.id), json!({})).await.ok(200);
    let resumed = api.attach(resumed["id"].as_str().expect("an id")).await;
    let (now, process) = count(&resumed).await;
    assert!(process == pid && now >= counted, "{counted} by {pid}, {now} by {process}");
    resumed.delete().await;
    from_snapshot.delete().await;
    service.stop().await;
}

/// Secrets of the database need the data folder's key: it is not made anew without an operator's command.
#[tokio::test]
async fn a_start_without_the_key_of_stored_secrets_is_refused_and_only_an_operator_gives_them_up() {
    let mut service = Service::stopped();
    service.restart().await;
    let hook = json!({"url": "https://example.com/", "operations": ["create"], "signing_secret": "a-secret-of-a-hook"});
    let _: Value = service.api().post("/v1/lifecycle/webhooks", hook).await.ok(201);
    service.stop().await;

    let (file, elsewhere) = (service.data().join("seal.key"), service.data().join("elsewhere"));
    std::fs::rename(&file, &elsewhere).unwrap();
    let said = "seal.key is missing, and the database has secrets that only it decrypts";
    for command in [&["serve", "--listen", "127.0.0.1:0"][..], &["store", "gc"]] {
        let output = service.command(command).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(said), "{command:?}: {text}");
        assert!(text.contains("secrets of 1 webhooks") && text.contains("store repair"), "{text}");
    }
    let asked = service.command(&["store", "repair"]).output().unwrap();
    let text = String::from_utf8(asked.stdout).unwrap();
    assert!(asked.status.code() == Some(1) && text.contains("lost     seal.key"), "{text}");
    assert!(!file.exists(), "nothing made it");
    std::fs::rename(&elsewhere, &file).unwrap();
    service.restart().await;
    service.stop().await;

    let before = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let given_up = service.command(&["store", "repair", "--yes"]).output().unwrap();
    assert!(given_up.status.success(), "{given_up:?}");
    assert_ne!(std::fs::read(&file).unwrap(), before);
    service.restart().await;
    let said = "seal.key has not all keys";
    service.log().expect_fault(said);
    let log = service.log().lines().join("\n");
    assert!(log.contains(said), "{log}");
    service.stop().await;
}
