//! Warm pools on real machines: what waits in them has done nothing, and what is taken from them is nobody else.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nullspace_api::{
    CreateSandboxResponse, TemplateWarmPool, TemplateWarmPoolState, WarmPoolCheckoutResultSource as Source,
};
use serde_json::{Value, json};

use crate::fixture::{Api, Image, Registry, Service, until};

const LONG: Duration = Duration::from_secs(120);

async fn pool(api: &Api, id: &str) -> TemplateWarmPool {
    api.get(&format!("/v1/template-warm-pools/{id}")).await.ok(200)
}

async fn until_ready(api: &Api, id: &str, number: u32) {
    until("the pool has its machines", LONG, async || pool(api, id).await.status.ready == number).await;
}

async fn create(api: &Api, template: &str, pool: &str, mode: &str) -> CreateSandboxResponse {
    let request = json!({"template": template, "warm_pool": {"id": pool, "mode": mode, "wait_ms": 60_000}});
    api.post("/v1/sandboxes", request).await.ok(201)
}

#[tokio::test]
async fn machines_of_a_pool_wait_without_a_life_of_their_own_and_each_is_taken_once() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    // It runs on as soon as it may, and says when, by the clock that does not stand still while nobody sets it.
    let beats = "while :; do cut -d ' ' -f 1 /proc/uptime >> /beats; sleep 0.1; done";
    api.ready(json!({
        "name": "beats", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}, "start_cmd": beats,
        "runtime_config": {"readiness": {"kind": "command", "command": "test -s /beats"}},
    }))
    .await;
    let request = json!({"name": "burst", "template_ref": "beats", "min_ready": 2, "max_ready": 2,
        "resources": {"vcpus": 1, "memory_mb": 192}});
    let made: TemplateWarmPool = api.post("/v1/template-warm-pools", request).await.ok(201);
    until_ready(&api, &made.id, 2).await;
    // They wait for a while, in which a process that runs would beat thirty times.
    tokio::time::sleep(Duration::from_secs(3)).await;

    let mut seen = BTreeSet::new();
    for round in 0..2 {
        let asked = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        let created = create(&api, "beats", &made.id, "require").await;
        let checkout = created.warm_pool_checkout.unwrap();
        assert_eq!(
            (checkout.source, checkout.hit, checkout.id.as_deref()),
            (Source::ReadyInstance, true, Some(&*made.id))
        );
        let sandbox = api.attach(&created.id).await;
        let clock: f64 = sandbox.sh("date +%s").await.parse().unwrap();
        assert!(clock >= asked.floor() - 1.0, "round {round}: the clock is {} s behind", asked - clock);
        let identity =
            "hostname; cat /etc/machine-id; head -c 16 /dev/urandom | od -A n -t x1; cat /proc/sys/kernel/random/uuid";
        for line in sandbox.sh(identity).await.lines() {
            assert!(seen.insert(line.to_owned()), "round {round}: {line} is another machine's, too");
        }
        assert!(sandbox.sh("hostname").await.starts_with("sb-"));
        // Between two of its beats lies the time for which it has waited, in the snapshot and in the pool.
        let gap = "awk 'NR > 1 && $1 - last > gap { gap = $1 - last } { last = $1 } END { print gap }' /beats";
        let gap: f64 = sandbox.sh(gap).await.parse().unwrap();
        assert!(gap >= 3.0, "round {round}: a process ran before the machine was taken: the longest pause is {gap} s");
        sandbox.delete().await;
    }
    until_ready(&api, &made.id, 2).await;

    // A sandbox that was taken lives as any other: it is paused and resumed.
    let created = create(&api, "beats", &made.id, "prefer").await;
    let paused: Value = api.post(&format!("/v1/sandboxes/{}/hibernate", created.id), json!({})).await.ok(200);
    let resumed: Value = api.post("/v1/sandboxes", json!({"snapshot_id": paused["id"]})).await.ok(201);
    let resumed = api.attach(resumed["id"].as_str().unwrap()).await;
    assert_eq!(resumed.sh("echo alive").await, "alive");
    assert!(resumed.info().await.warm_pool_checkout.is_none());
    resumed.delete().await;

    let gone: TemplateWarmPool = api.delete(&format!("/v1/template-warm-pools/{}", made.id)).await.ok(200);
    assert_eq!(gone.state, TemplateWarmPoolState::Deleted);
    // The fixture sees to it that nothing of a machine is left when the service has stopped.
    service.stop().await;
}

#[tokio::test]
async fn spares_make_room_for_others_and_die_with_a_killed_service() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::with([("NULLSPACE_VCPUS", "2".to_owned())]).await;
    let api = service.api();
    api.ready(json!({
        "name": "small", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}, "start_cmd": "sleep 9999",
    }))
    .await;
    let request = json!({"name": "all", "template_ref": "small", "min_ready": 1, "max_ready": 1,
        "resources": {"vcpus": 1, "memory_mb": 192}});
    let made: TemplateWarmPool = api.post("/v1/template-warm-pools", request).await.ok(201);
    until_ready(&api, &made.id, 1).await;
    // As many as fit when nothing is kept ready.
    let mut sandboxes = Vec::new();
    loop {
        let answer = api.post("/v1/sandboxes", json!({"template": "small"})).await;
        if answer.status != 201 {
            break;
        }
        sandboxes.push(answer.ok::<CreateSandboxResponse>(201).id);
        assert!(sandboxes.len() < 20, "the host is never full");
    }
    assert_eq!(sandboxes.len(), 2, "the machine of the pool has made room");
    until("the pool has given up its machine", LONG, async || pool(&api, &made.id).await.status.ready == 0).await;
    api.attach(&sandboxes[0]).await.delete().await;
    until_ready(&api, &made.id, 1).await;
    service.kill().await;
    service.restart().await;
    let api = service.api();
    until_ready(&api, &made.id, 1).await;
    let created = create(&api, "small", &made.id, "require").await;
    assert_eq!(api.attach(&created.id).await.sh("echo alive").await, "alive");
    service.stop().await;
}
