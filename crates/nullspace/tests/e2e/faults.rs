//! Machines that fail under a sandbox or a build: halted by their guest, killed from outside. Each ends by itself with a
//! reason, gives its room back, and what was the host's fault in a build is tried again.

use std::time::Duration;

use nullspace_api::{
    LifecycleEventListResponse, SandboxStatus, TemplateBuildLogKind as Kind, TemplateBuildLogLevel,
    TemplateBuildStatus as Status,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::fixture::host::Process;
use crate::fixture::{Api, Image, Registry, Sandbox, Service, until};

/// From a fault to the sandbox's end: 30 s of silence before a guest counts as halted, on a host that is busy.
const NOTICED: Duration = Duration::from_secs(90);

async fn ends_as_error(sandbox: &Sandbox) {
    until("the sandbox ends", NOTICED, async || sandbox.info().await.status == SandboxStatus::Error).await;
}

fn kill(machine: &Process) {
    let pid = i32::try_from(machine.pid).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// The counter of this metric and label on the page for operators.
async fn counted(api: &Api, name: &str) -> u64 {
    let page = api.get("/metrics").await.text();
    let value = page.lines().find_map(|line| line.strip_prefix(name));
    value.unwrap_or_else(|| panic!("{name}: {page}")).trim().parse().unwrap()
}

#[tokio::test]
async fn a_machine_that_fails_ends_its_sandbox_or_repeats_its_build_and_gives_its_room_back() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    // Room for two machines of one vCPU, and for one sandbox of a tenant among them.
    let settings = [
        ("NULLSPACE_VCPUS", "2".to_owned()),
        ("NULLSPACE_SANDBOXES_PER_TENANT", "1".to_owned()),
        ("NULLSPACE_BUILD_CONCURRENCY", "1".to_owned()),
    ];
    let mut service = Service::with(settings).await;
    let api = service.api();

    // A build whose machine is killed during a step goes on with the next attempt.
    let build = api
        .start(json!({
            "name": "app", "base_image": registry.reference("box:1"),
            "build_config": {"memory_mib": 192, "vcpus": 1},
            "steps": [{"action": "run", "command": "echo step 'runs'; sleep 3; echo done > /done"}],
        }))
        .await;
    api.until_said(&build.build_id, "step runs").await;
    kill(service.machines().first().expect("the build's machine"));
    let built = api.finished(&build.build_id).await.expect_status(Status::Ready);
    let retry = built.log.iter().find(|entry| entry.kind == Kind::Retry).expect("a retry");
    let said = &retry.message;
    assert!(said.contains("killed on this host (signal 9)") && said.contains("step 1"), "{said}");
    assert_eq!((retry.level, retry.attempt), (TemplateBuildLogLevel::Warn, Some(1)), "{retry:?}");

    // One sandbox a tenant; another tenant has its own.
    let halted = api.sandbox("app").await;
    assert_eq!(halted.sh("cat /done").await, "done");
    let refused = api.post("/v1/sandboxes", json!({"template": "app"})).await.refused(429, "QUOTA_EXCEEDED");
    assert!(refused.error.contains("quota of 1 sandboxes"), "{}", refused.error);

    // Halted by its guest: found by the heartbeat.
    let sent = halted.exec(json!({"command": "/bin/busybox", "args": ["halt", "-f"], "background": true})).await;
    assert_eq!(sent.status, 200, "{}", sent.text());
    ends_as_error(&halted).await;
    halted.exec(json!({"command": "true"})).await.refused(404, "sandbox_not_found");
    service.settles().await;

    // Its place is free at once. Killed from outside: known at once.
    let killed = api.sandbox("app").await;
    kill(service.machines().first().expect("the sandbox's machine"));
    ends_as_error(&killed).await;
    for (sandbox, said) in [(&halted, "answer"), (&killed, "killed")] {
        let path = format!("/v1/sandboxes/{}/lifecycle?operation=reconcile", sandbox.id);
        let mut events = Vec::new();
        until("the end is an event", Duration::from_secs(10), async || {
            events = api.get(&path).await.ok::<LifecycleEventListResponse>(200).events;
            !events.is_empty()
        })
        .await;
        assert!(
            events.len() == 1 && events[0].reason.as_ref().is_some_and(|reason| reason.contains(said)),
            "{events:?}"
        );
    }
    service.settles().await;

    for said in ["a sandbox's machine did not come up", "the sandbox could not start"] {
        service.log().expect_fault(said);
    }
    // Killed while it starts: told with its reason, and the next start succeeds.
    let started = tokio::spawn({
        let api = api.clone();
        async move { api.post("/v1/sandboxes", json!({"template": "app"})).await }
    });
    until("a machine starts", Duration::from_secs(60), async || !service.machines().is_empty()).await;
    kill(service.machines().first().expect("the machine that starts"));
    let refused = started.await.unwrap();
    assert!(refused.headers.contains_key("retry-after"), "{}", refused.text());
    let refused = refused.refused(500, "internal_error");
    let detail = serde_json::to_value(&refused.error_detail).unwrap();
    let reason = detail["details"]["reason"].as_str().unwrap_or_default();
    // The driver itself tells no signal of a machine that was not handed over yet.
    assert!(["machine_killed", "machine_failed"].contains(&reason) && detail["retryable"] == true, "{refused:?}");
    service.settles().await;
    api.sandbox("app").await.delete().await;

    for reason in ["guest_not_answering", "machine_killed"] {
        let counter = format!("nullspace_sandbox_failures_total{{reason=\"{reason}\"}} ");
        assert_eq!(counted(&api, &counter).await, 1, "{reason}");
    }
    for gauge in ["nullspace_machines_vcpus ", "nullspace_machines_memory_mib "] {
        assert_eq!(counted(&api, gauge).await, 0, "{gauge}");
    }
    // What machines run under, by the log, is what the metric names.
    let lines = service.log().lines();
    let chosen = lines.iter().find(|line| line.contains("machines run under")).expect("the choice is in the log");
    let page = api.get("/metrics").await.text();
    let driver = page.lines().find(|line| line.starts_with("nullspace_machine_driver{")).expect("the metric");
    assert!(driver.ends_with(" 1"), "{driver}");
    for label in ["vmm=", "version=", "accelerator="] {
        let text = |line: &str| {
            let (_, value) = line.split_once(label)?;
            Some(value.trim_start_matches('"').split(['"', ' ', ',']).next()?.to_lowercase())
        };
        assert!(text(driver).is_some_and(|value| !value.is_empty()), "{driver}");
        assert_eq!(text(driver), text(chosen), "{label} {driver}\n{chosen}");
    }
    assert!(driver.contains("walls=\"own uid"), "{driver}");
    let details = api.get("/readyz?verbose").await;
    assert_eq!(details.status, 200);
    for line in ["machines: ", "walls: own uid", "admitted: 0 of "] {
        assert!(details.text().contains(line), "{line}: {}", details.text());
    }
    service.stop().await;
}
