//! Snapshots and forks of a sandbox at work: it goes on, and so does all that is under way in it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nullspace_api::{ExecResponse, SandboxHandle, SandboxMetrics, SandboxStatus, SnapshotInfo};
use serde_json::{Value, json};

use crate::fixture::{Image, Registry, Service, until};

/// Writes a rising number to a file ten times a second.
const COUNTER: &str = "n=0; while :; do n=$((n+1)); echo $n > /run/next; mv /run/next /run/count; sleep 0.1; done";

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[tokio::test]
async fn a_sandbox_at_work_is_snapshotted_and_forked_and_goes_on() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    api.ready(json!({
        "name": "counter", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192},
        "start_cmd": COUNTER,
    }))
    .await;
    let source = api.sandbox("counter").await;
    source.sh("echo before > /srv-state").await;

    // A command that a caller waits for ends as if nothing had happened.
    let under_way = tokio::spawn({
        let source = source.clone();
        async move { source.sh("sleep 2; echo whole").await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    let path = format!("/v1/sandboxes/{}/snapshots", source.id);
    let snapshot: SnapshotInfo = api.post(&path, json!({"metadata": {"why": "test"}})).await.ok(201);
    assert_eq!(under_way.await.unwrap(), "whole");
    assert!(snapshot.size_bytes > 0 && snapshot.sandbox_id == source.id, "{snapshot:?}");
    let count = |text: String| text.parse::<u64>().unwrap();
    let first = count(source.sh("cat /run/count").await);
    until("the source's process goes on", Duration::from_secs(60), async || {
        count(source.sh("cat /run/count").await) > first + 3
    })
    .await;
    let asked = now();
    let clock: f64 = source.sh("date +%s").await.parse().unwrap();
    let answered = now();
    // Whole seconds, and half a second off at most.
    assert!((asked - 1.5..answered + 0.5).contains(&clock), "{asked} {clock} {answered}");

    // Two sandboxes of it have its past and nothing of each other.
    source.sh("echo source > /srv-state").await;
    for _ in 0..2 {
        let made = api.sandbox_with(json!({"snapshot_id": snapshot.id})).await;
        assert_ne!(made.id, source.id);
        assert_eq!(made.sh("cat /srv-state; echo made > /srv-state").await, "before");
        let from = count(made.sh("cat /run/count").await);
        until("its process goes on", Duration::from_secs(60), async || {
            count(made.sh("cat /run/count").await) > from + 3
        })
        .await;
        made.delete().await;
    }

    let forked: SandboxHandle = api.post(&format!("/v1/sandboxes/{}/fork", source.id), json!({})).await.ok(201);
    assert_eq!(forked.status, SandboxStatus::Running);
    let command = json!({"command": "cat /srv-state; echo forked > /srv-state", "shell": true, "timeout_secs": 120});
    let answer: ExecResponse = api.post(&format!("/v1/sandboxes/{}/exec", forked.id), command).await.ok(200);
    assert_eq!(answer.stdout, "source\n");
    assert_eq!(source.sh("cat /srv-state").await, "source");

    let metrics: Vec<SandboxMetrics> = api.get(&format!("/v1/sandboxes/{}/metrics", source.id)).await.ok(200);
    let last = metrics.last().expect("a sample of now");
    assert!(last.mem_used_bytes > 0 && last.mem_used_bytes <= last.mem_total_bytes, "{last:?}");
    assert!(last.disk_total_bytes > 0 && last.cpu_count == 1, "{last:?}");

    let _: Value = api.delete(&format!("/v1/sandboxes/{}", forked.id)).await.ok(200);
    source.delete().await;
    assert_eq!(api.delete(&format!("/v1/snapshots/{}", snapshot.id)).await.status, 204);
    service.settles().await;
    service.stop().await;
}
