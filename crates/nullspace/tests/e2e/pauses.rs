//! What must hold after every resume: nothing is torn between memory and disk, no two machines are alike, and a service that is
//! killed on the way loses no snapshot that it has confirmed.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nullspace_api::{SandboxHandle, SandboxInfo, SandboxStatus, SnapshotInfo};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixture::{Api, Image, Registry, Sandbox, Service, is_long};

/// Counts in a shell variable and in a file of the disk, and compares the two each time with what the disk really has.
const WRITER: &str = "cd /srv; n=0; echo 0 > disk; while :; do \
     echo 3 > /proc/sys/vm/drop_caches; read was < disk; [ \"$was\" = \"$n\" ] || echo \"memory $n, disk $was\" >> torn; \
     n=$((n+1)); echo $n > next; sync; mv next disk; sync; \
     done";

/// A service and a template `writer` whose start command is [`WRITER`].
async fn with_writer(registry: &Registry) -> (Service, Api) {
    registry.push("box", "1", &Image::busybox()).await;
    let service = Service::with([("NULLSPACE_STOP_PAUSE_SECS", "0".to_owned())]).await;
    let api = service.api();
    api.ready(json!({
        "name": "writer", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192},
        "steps": [{"action": "make_dir", "path": "/srv"}],
        "start_cmd": WRITER,
        "runtime_config": {"readiness": {"kind": "command", "command": "test \"$(cat /srv/disk)\" -gt 1"}},
    }))
    .await;
    (service, api)
}

async fn pause(api: &Api, id: &str) -> SnapshotInfo {
    api.post(&format!("/v1/sandboxes/{id}/hibernate"), json!({})).await.ok(200)
}

async fn resume(api: &Api, snapshot: &str) -> String {
    let resumed: SandboxHandle = api.post(&format!("/v1/sandboxes/{snapshot}/resume"), json!({})).await.ok(200);
    assert_eq!(resumed.status, SandboxStatus::Running);
    resumed.id
}

/// The writer's counter, once it has gone on by some rounds.
async fn goes_on(sandbox: &Sandbox, from: u64) -> u64 {
    let line = format!(
        "until [ \"$(cat /srv/disk)\" -gt {} ]; do sleep 0.1; done; cat /srv/torn >&2 2> /dev/null; cat /srv/disk",
        from + 2
    );
    let count = sandbox.sh(&line).await.parse().expect("a number");
    assert_eq!(sandbox.sh("cat /srv/torn 2> /dev/null || true").await, "", "memory and disk are of different moments");
    count
}

#[tokio::test]
async fn memory_and_disk_of_a_pause_are_of_one_moment_however_often_it_is_paused() {
    let registry = Registry::start();
    let (mut service, api) = with_writer(&registry).await;
    let mut sandbox = api.sandbox("writer").await;
    let mut count = goes_on(&sandbox, 0).await;
    // More than QEMU can stack overlays, when there is time.
    for round in 0..if is_long() { 200 } else { 6 } {
        let snapshot = pause(&api, &sandbox.id).await;
        assert_eq!(snapshot.sandbox_id, sandbox.id);
        let id = resume(&api, &snapshot.id).await;
        assert_ne!(id, sandbox.id, "round {round}");
        sandbox = api.attach(&id).await;
        count = goes_on(&sandbox, count).await;
    }
    sandbox.delete().await;
    service.settles().await;
    service.stop().await;
}

#[tokio::test]
async fn machines_of_one_snapshot_have_nothing_in_common_but_the_past() {
    let registry = Registry::start();
    let (mut service, api) = with_writer(&registry).await;
    let source = api.sandbox("writer").await;
    source.sh("echo kept > /srv/kept").await;
    let taken: SnapshotInfo = api.post(&format!("/v1/sandboxes/{}/snapshots", source.id), json!({})).await.ok(201);
    let count = goes_on(&source, 0).await;
    let mut seen = BTreeSet::new();
    let machines = if is_long() { 50 } else { 6 };
    for _ in 0..machines {
        let asked = now();
        let sandbox = api.sandbox_with(json!({"snapshot_id": taken.id})).await;
        // The very first command.
        let first = "date +%s; head -c 16 /dev/urandom | od -A n -t x1; cat /etc/machine-id; hostname; \
                     cat /proc/sys/kernel/random/boot_id /srv/kept";
        let lines = sandbox.sh(first).await;
        let [time, random, machine, name, boot, kept] = lines.lines().collect::<Vec<_>>()[..] else {
            panic!("{lines}")
        };
        let there: f64 = time.parse().expect("seconds");
        // Whole seconds, rounded down, and half a second of error.
        assert!((asked - 1.5..now() + 0.5).contains(&there), "the guest's clock says {there}, asked at {asked}");
        assert_eq!(kept, "kept");
        for word in [random, machine, name, boot] {
            assert!(seen.insert(word.to_owned()), "two machines have {word}");
        }
        goes_on(&sandbox, 0).await;
        sandbox.delete().await;
    }
    assert_eq!(seen.len(), 4 * machines);
    goes_on(&source, count).await;
    let gone = api.delete(&format!("/v1/snapshots/{}", taken.id)).await;
    assert_eq!(gone.status, 204, "{}", gone.text());
    api.get(&format!("/v1/snapshots/{}", taken.id)).await.refused(404, "snapshot_not_found");
    api.post("/v1/sandboxes", json!({"snapshot_id": taken.id})).await.refused(404, "snapshot_not_found");
    source.delete().await;
    service.settles().await;
    service.stop().await;
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// What the service has confirmed before it was killed.
#[derive(Debug, Default)]
struct Confirmed {
    /// Snapshots that were kept.
    kept: BTreeSet<String>,
    /// Paused sandboxes, and their snapshots.
    paused: BTreeSet<(String, String)>,
}

#[tokio::test]
async fn a_service_that_is_killed_on_the_way_loses_no_snapshot_that_it_confirmed() {
    let seed = match std::env::var("NULLSPACE_TEST_SEED") {
        Ok(seed) => seed.parse().expect("NULLSPACE_TEST_SEED is a number"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
    };
    println!("NULLSPACE_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let registry = Registry::start();
    let (mut service, _) = with_writer(&registry).await;
    let mut confirmed = Confirmed::default();
    for _ in 0..if is_long() { 30 } else { 4 } {
        let api = service.api();
        let sandbox = api.sandbox("writer").await;
        let moment = Duration::from_millis(random.random_range(0..6000));
        let work = tokio::spawn(live(api, sandbox.id.clone(), random.random()));
        tokio::time::sleep(moment).await;
        service.kill().await;
        let done = work.await.expect("no assertion of it fails");
        confirmed.kept.extend(done.kept);
        confirmed.paused.extend(done.paused);
        service.verify_store();
        service.restart().await;
    }
    let api = service.api();
    let listed: Vec<SnapshotInfo> = api.get("/v1/snapshots").await.ok(200);
    let listed: BTreeSet<String> = listed.into_iter().map(|snapshot| snapshot.id).collect();
    assert!(confirmed.kept.is_subset(&listed), "{confirmed:?}, and there are {listed:?}");
    println!("kept {}, paused {}", confirmed.kept.len(), confirmed.paused.len());
    // Nothing runs that nobody asked for, and what was paused can be resumed, once.
    let running: Vec<SandboxInfo> = api.get("/v1/sandboxes?state=running,creating").await.ok(200);
    assert!(running.is_empty(), "{running:?}");
    for (id, snapshot) in &confirmed.paused {
        let info: SandboxInfo = api.get(&format!("/v1/sandboxes/{id}")).await.ok(200);
        assert_eq!((info.status, info.snapshot_id.as_deref()), (SandboxStatus::Paused, Some(snapshot.as_str())));
        let again = api.attach(&resume(&api, snapshot).await).await;
        goes_on(&again, 0).await;
        again.delete().await;
    }
    for snapshot in confirmed.kept.iter().take(3) {
        let again = api.sandbox_with(json!({"snapshot_id": snapshot})).await;
        goes_on(&again, 0).await;
        again.delete().await;
    }
    service.settles().await;
    service.verify_store();
    service.stop().await;
}

/// Snapshots, forks, pauses and resumes of a sandbox until an answer does not come. Returns what was confirmed.
async fn live(api: Api, id: String, seed: u64) -> Confirmed {
    let mut random = StdRng::seed_from_u64(seed);
    let mut confirmed = Confirmed::default();
    let mut current = Some(id);
    while let Some(id) = current.take() {
        current = match random.random_range(0..4) {
            0 => ask(&api, &format!("/v1/sandboxes/{id}/snapshots"), json!({}), 201).await.map(|taken| {
                confirmed.kept.insert(text(&taken, "id"));
                id
            }),
            1 => match ask(&api, &format!("/v1/sandboxes/{id}/fork"), json!({}), 201).await {
                Some(child) => {
                    let path = format!("/v1/sandboxes/{}", text(&child, "id"));
                    api.try_send(api.request(Method::DELETE, &path)).await.ok().map(|_| id)
                }
                None => None,
            },
            act => match ask(&api, &format!("/v1/sandboxes/{id}/hibernate"), json!({}), 200).await {
                // Stays paused, and another one goes on.
                Some(taken) if act == 2 => {
                    confirmed.paused.insert((id, text(&taken, "id")));
                    let another = ask(&api, "/v1/sandboxes", json!({"template": "writer"}), 201).await;
                    another.map(|created| text(&created, "id"))
                }
                // Whether it was resumed is not known when the answer is lost.
                Some(taken) => {
                    let path = format!("/v1/sandboxes/{}/resume", text(&taken, "id"));
                    ask(&api, &path, json!({}), 200).await.map(|handle| text(&handle, "id"))
                }
                None => None,
            },
        };
    }
    confirmed
}

/// A request that succeeds, or finds no service any more.
async fn ask(api: &Api, path: &str, body: Value, status: u16) -> Option<Value> {
    let answer = api.try_send(api.request(Method::POST, path).json(&body)).await.ok()?;
    Some(answer.ok(status))
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().expect("a text").to_owned()
}
