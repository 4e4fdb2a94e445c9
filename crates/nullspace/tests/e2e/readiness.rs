//! When a start command counts as ready, and what becomes of one that never is.

use nullspace_api::{TemplateFailureDetail, TemplateFailurePhase};
use serde_json::{Value, json};

use crate::fixture::{Image, Registry, Service, is_long};

fn request(registry: &Registry, start_cmd: Option<&str>, readiness: Value) -> Value {
    json!({
        "base_image": registry.reference("box:1"),
        "build_config": {"memory_mib": 192},
        "start_cmd": start_cmd,
        "runtime_config": {"readiness": readiness},
    })
}

#[tokio::test]
async fn each_kind_of_readiness_waits_for_what_it_says() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let late = "sleep 2; mkdir -p /tmp/site/sub; echo ok > /tmp/site/sub/index.html; touch /tmp/up; \
                exec httpd -f -p 7000 -h /tmp/site";
    let kinds = [
        (Some(late), json!({"kind": "tcp", "port": 7000}), "test -e /tmp/up"),
        // A redirect (302 to /sub/) is an answer that counts.
        (Some(late), json!({"kind": "http", "port": 7000, "path": "/sub"}), "test -e /tmp/up"),
        (Some(late), json!({"kind": "timeout", "timeout_ms": 4000}), "test -e /tmp/up"),
        // A start command that ends well is no failure, and what it left behind may become ready later.
        (
            Some("(sleep 1; touch /tmp/late) & exit 0"),
            json!({"kind": "command", "command": "test -e /tmp/late"}),
            "test -e /tmp/late",
        ),
    ];
    // In `make test-long` only.
    let more = [
        (Some(late), json!({"kind": "http", "port": 7000, "path": "/sub/"}), "test -e /tmp/up"),
        (Some(late), json!({"kind": "command", "command": "test -e /tmp/up"}), "test -e /tmp/up"),
        // Readiness needs no start command.
        (None, json!({"kind": "command", "command": "touch /tmp/asked"}), "test -e /tmp/asked"),
    ];
    let more = more.into_iter().take(if is_long() { usize::MAX } else { 0 });
    for (start_cmd, readiness, holds) in kinds.into_iter().chain(more) {
        let built = api.ready(request(&registry, start_cmd, readiness.clone())).await;
        let sandbox = api.sandbox(built.template()).await;
        let held = sandbox.sh(&format!("{holds} && echo held")).await;
        assert_eq!(held, "held", "{readiness}");
        sandbox.delete().await;
    }
    service.settles().await;
    service.stop().await;
}

#[tokio::test]
async fn a_start_command_that_does_not_become_ready_fails_the_build() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let soon = |mut probe: Value| {
        probe
            .as_object_mut()
            .unwrap()
            .extend([("timeout_secs".to_owned(), json!(1)), ("startup_grace_secs".to_owned(), json!(0))]);
        probe
    };
    let never = json!({"kind": "tcp", "port": 7000});
    let exit_code = |detail: &TemplateFailureDetail| detail.details.as_ref().unwrap().get("exit_code").cloned();

    let probes = [
        json!({"kind": "http", "port": 7000, "path": "/not-there"}),
        json!({"kind": "command", "command": "echo not yet; exit 1"}),
        json!({"kind": "tcp", "port": 7001}),
    ];
    // All three in `make test-long`.
    for probe in probes.into_iter().take(if is_long() { 3 } else { 1 }) {
        let request = request(&registry, Some("exec httpd -f -p 7000 -h /www"), soon(probe.clone()));
        let detail = api.failed(request, "readiness_timeout").await;
        assert_eq!((detail.phase, detail.retryable), (TemplateFailurePhase::Readiness, false), "{probe}");
        let seen = detail.details.as_ref().unwrap()["last_probe"].as_str().unwrap();
        assert!(!seen.is_empty(), "{detail:?}");
    }

    // At once, not when the probe's time is over; with its last words in the log.
    let asked = tokio::time::Instant::now();
    let patient = json!({"kind": "tcp", "port": 7000, "timeout_secs": 300});
    let dies = request(&registry, Some("echo last words; echo on stderr >&2; exit 41"), patient);
    let failed = api.build(dies).await;
    assert!(failed.says("last words") && failed.says("on stderr"), "{failed:?}");
    let detail = failed.failure("start_cmd_exited");
    assert_eq!(exit_code(&detail), Some(json!(41)));
    assert_eq!((detail.phase, detail.retryable), (TemplateFailurePhase::Readiness, false));
    assert!(asked.elapsed().as_secs() < 200, "it waited for the probe's time: {:?}", asked.elapsed());

    // Without a probe too.
    let detail = api
        .failed(
            json!({
                "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}, "start_cmd": "exit 3",
            }),
            "start_cmd_exited",
        )
        .await;
    assert_eq!(exit_code(&detail), Some(json!(3)));

    let detail = api.failed(request(&registry, Some("kill -9 $$"), never.clone()), "start_cmd_exited").await;
    assert!(detail.message.contains("signal 9"), "{detail:?}");

    // One that takes the machine down with it.
    let detail = api.failed(request(&registry, Some("sleep 1; poweroff -f"), never), "machine_failed").await;
    assert_eq!(detail.phase, TemplateFailurePhase::Readiness);
    service.settles().await;
    service.stop().await;
}
