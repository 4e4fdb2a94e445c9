//! How many builds run at once, and whose turn it is.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nullspace_api::TemplateBuildStatus as Status;
use serde_json::{Value, json};

use crate::fixture::host::Process;
use crate::fixture::{Image, Registry, Service};

/// MiB for two machines of [`request`] in software: 192 of each guest, 320 of each VMM, and the template's memory that they share.
const ROOM_FOR_TWO: u32 = 1300;

/// A build that needs a machine: no two are alike, or the second would take what the first has made.
fn request(registry: &Registry) -> Value {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    json!({
        "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192},
        "runtime_config": {"default_envs": {"NUMBER": NUMBER.fetch_add(1, Ordering::Relaxed).to_string()}},
    })
}

/// What a machine is for (`build`, `trial`), and the end of its build's id, by its command line. `None` once it has ended.
fn purpose(machine: &Process) -> Option<(String, String)> {
    let line = std::fs::read(format!("/proc/{}/cmdline", machine.pid)).ok()?;
    let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    // QEMU's and Firecracker's option.
    words.find(|word| word == "-name" || word == "--id")?;
    let id = words.next()?;
    let mut parts = id.split('-');
    Some((parts.next()?.to_owned(), parts.next()?.to_owned()))
}

#[tokio::test]
async fn no_more_builds_run_than_the_setting_says_and_tenants_take_turns() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::with([("NULLSPACE_BUILD_CONCURRENCY", "1".to_owned())]).await;
    let (many, one) = (service.api(), service.api_of("second"));
    let mut builds = Vec::new();
    for _ in 0..4 {
        builds.push(many.start(request(&registry)).await.build_id);
    }
    // Last in the queue by time, second by turn.
    let lone = one.start(request(&registry)).await.build_id;
    let mut order = Vec::new();
    let (mut seen_builds, mut seen_trials) = (BTreeSet::new(), BTreeSet::new());
    while order.len() < builds.len() + 1 {
        let mut building = 0;
        for (api, id) in builds.iter().map(|id| (&many, id)).chain([(&one, &lone)]) {
            let status = api.status(id, 0).await.build.status;
            assert!(status != Status::Error && status != Status::Cancelled, "{id} is {status:?}");
            building += u32::from(status == Status::Building);
            if status == Status::Ready && !order.contains(id) {
                order.push(id.clone());
            }
        }
        // Read one after the other: one may have ended and the next begun in between.
        assert!(building <= 2, "{building} builds are building");
        // A build's machine has ended when its trial begins: both have one admission.
        let machines = service.machines();
        assert!(machines.len() <= 1, "{machines:?}");
        for (purpose, build) in machines.iter().filter_map(purpose) {
            match purpose.as_str() {
                "build" => seen_builds.insert(build),
                "trial" => seen_trials.insert(build),
                other => panic!("a machine for {other}"),
            };
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let of_builds: BTreeSet<String> = builds.iter().chain([&lone]).map(|id| id[id.len() - 16..].to_owned()).collect();
    assert_eq!(seen_builds, of_builds, "a machine for each build");
    // A trial may be over between two looks.
    assert!(seen_trials.is_subset(&of_builds), "{seen_trials:?}");
    let place = order.iter().position(|id| *id == lone).unwrap();
    assert!(place <= 2, "the other tenant's only build came after {place} of the first's: {order:?}");
    let own: Vec<&String> = order.iter().filter(|id| **id != lone).collect();
    assert_eq!(own, builds.iter().collect::<Vec<_>>(), "one tenant's builds come in their order");
    service.stop().await;
}

#[tokio::test]
async fn a_host_that_is_full_says_so_and_builds_wait_for_room() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::with([("NULLSPACE_MEMORY_MIB", ROOM_FOR_TWO.to_string())]).await;
    let api = service.api();
    let built = api.ready(request(&registry)).await;
    let (one, two) = (api.sandbox(built.template()).await, api.sandbox(built.template()).await);
    let full = api.post("/v1/sandboxes", json!({"template": built.template()})).await;
    let after = full.headers.get("retry-after").is_some();
    let error = full.refused(503, "capacity_exceeded");
    assert!(after && error.error.contains("MiB"), "{error:?}");

    // A build waits until there is room.
    let waiting = api.start(request(&registry)).await;
    api.until_said(&waiting.build_id, "Waiting: this host has no room").await;
    one.delete().await;
    api.finished(&waiting.build_id).await.expect_status(Status::Ready);
    two.delete().await;

    // What can never fit is refused at once.
    let mut large = request(&registry);
    large["build_config"]["memory_mib"] = json!(ROOM_FOR_TWO - 300);
    api.post("/v1/templates/builds", large).await.refused(400, "invalid_request");
    service.stop().await;
}
