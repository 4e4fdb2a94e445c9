//! Images of unusual shape.

use nullspace_api::{TemplateFailurePhase, TemplateReadinessProbe};
use serde_json::json;

use crate::fixture::{Compression, Image, Registry, Service, Tar, is_long};

#[tokio::test]
async fn an_image_with_nothing_but_one_binary_boots_runs_and_serves() {
    let registry = Registry::start();
    let image = Image::one_binary().with_config(json!({
        "Entrypoint": ["/busybox", "httpd"],
        "Cmd": ["-f", "-p", "8080", "-h", "/"],
        "ExposedPorts": {"8080/tcp": {}},
    }));
    registry.push("one", "1", &image).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built = api
        .ready(json!({
            "name": "one", "base_image": registry.reference("one:1"), "build_config": {"memory_mib": 192},
            "runtime_config": {"readiness": {"kind": "tcp", "port": 8080}},
        }))
        .await;
    let defaults = built.build.runtime_defaults.expect("runtime defaults");
    assert_eq!(defaults.start_cmd.as_deref(), Some("/busybox httpd -f -p 8080 -h /"));
    assert_eq!(built.build.oci_metadata.expect("what the image said").exposed_ports, ["8080/tcp"]);

    let sandbox = api.sandbox("one").await;
    let served = sandbox.run(&["/busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:8080/etc/hostname"]).await;
    let hostname = sandbox.run(&["/busybox", "hostname"]).await;
    assert_eq!((served.exit_code, &served.stdout), (0, &hostname.stdout), "{served:?}");
    let ids = sandbox.run(&["/busybox", "id", "-u"]).await;
    assert_eq!(ids.stdout, "0\n", "root exists without an /etc/passwd");
    let root = sandbox.run(&["/busybox", "ls", "/"]).await;
    assert!(root.stdout.contains("workspace") && root.stdout.contains("proc"), "{root:?}");
    // No shell, no line for one.
    sandbox.exec(json!({"command": "echo hi", "shell": true})).await.refused(502, "exec_failed");

    sandbox.delete().await;

    let shell = json!({
        "base_image": registry.reference("one:1"), "build_config": {"memory_mib": 192}, "start_cmd": "echo hi",
    });
    let detail = api.failed(shell, "start_cmd_not_started").await;
    assert!(!detail.retryable && detail.phase == TemplateFailurePhase::Readiness, "{detail:?}");
    service.settles().await;
    service.stop().await;
}

#[tokio::test]
async fn the_health_check_of_an_image_is_its_readiness() {
    let registry = Registry::start();
    let image = Image::busybox().with_config(json!({
        "Cmd": ["sh", "-c", "sleep 2; touch /tmp/healthy; exec sleep 1000000"],
        "Healthcheck": {"Test": ["CMD-SHELL", "test -e /tmp/healthy"], "Interval": 1_000_000_000_u64, "Retries": 30},
    }));
    registry.push("checked", "1", &image).await;
    // Exec form, in an image without a shell.
    const URL: &str = "http://127.0.0.1:8080/etc/hostname";
    let bare = Image::one_binary().with_config(json!({
        "Cmd": ["/busybox", "httpd", "-f", "-p", "8080", "-h", "/"],
        "Healthcheck": {"Test": ["CMD", "/busybox", "wget", "-q", "-O", "/dev/null", URL], "Interval": 1_000_000_000_u64},
    }));
    registry.push("bare", "1", &bare).await;
    let mut service = Service::start().await;
    let api = service.api();

    let built =
        api.ready(json!({"base_image": registry.reference("checked:1"), "build_config": {"memory_mib": 192}})).await;
    let mapped = built.build.oci_metadata.as_ref().and_then(|metadata| metadata.healthcheck.clone()).expect("a check");
    let Some(TemplateReadinessProbe::Command(probe)) = mapped.mapped_readiness else { panic!("{mapped:?}") };
    assert_eq!(probe.command, "test -e /tmp/healthy");
    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.sh("ls /tmp/healthy").await, "/tmp/healthy");
    sandbox.delete().await;

    let built =
        api.ready(json!({"base_image": registry.reference("bare:1"), "build_config": {"memory_mib": 192}})).await;
    let sandbox = api.sandbox(built.template()).await;
    let served = sandbox.run(&["/busybox", "wget", "-q", "-O", "/dev/null", URL]).await;
    assert_eq!(served.exit_code, 0, "{served:?}");
    service.stop().await;
}

#[tokio::test]
async fn the_disk_has_the_size_that_was_asked_for() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    // 600 MiB that compress well, though not so well that they look like a bomb.
    let large = Image::busybox()
        .with_layer(Tar::new().file("large", 0o644, &b"nullspace".repeat((600 << 20) / 9)), Compression::Gzip);
    registry.push("large", "1", &large).await;
    drop(large);
    let mut service = Service::start().await;
    let api = service.api();
    let request = |image: &str, disk_mb: Option<u32>| json!({"base_image": registry.reference(image), "build_config": {"memory_mib": 192, "disk_mb": disk_mb}});

    // The smallest in `make test-long` only: all other tests use it.
    let sizes = [(Some(2048), 2048), (None, 4096), (Some(512), 512)];
    for (asked, expected) in sizes.into_iter().take(if is_long() { 3 } else { 2 }) {
        let built = api.ready(request("box:1", asked)).await;
        let sandbox = api.sandbox(built.template()).await;
        assert_eq!(sandbox.created.config.disk_mb, Some(expected));
        let df = sandbox.sh("df -m / | tail -n 1 | awk '{print $2}'").await;
        let seen: f64 = df.parse().unwrap_or_else(|_| panic!("df: {df}"));
        // The filesystem keeps some for itself.
        assert!(seen <= f64::from(expected) && seen > f64::from(expected) * 0.85, "{seen} of {expected} MiB");
        if expected == 2048 {
            // Not only promised: it can be written.
            sandbox.sh("dd if=/dev/zero of=/workspace/fill bs=1M count=900 2>/dev/null && rm /workspace/fill").await;
        }
        sandbox.delete().await;
    }

    let detail = api.failed(request("large:1", Some(512)), "disk_too_small").await;
    assert_eq!((detail.phase, detail.retryable), (TemplateFailurePhase::Prepare, false));
    let needed = detail.details.as_ref().unwrap()["needed_mb"].as_u64().unwrap();
    assert!((600..720).contains(&needed), "{detail:?}");
    // That size is enough, for the machine too.
    let built = api.ready(request("large:1", Some(u32::try_from(needed).unwrap()))).await;
    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.sh("stat -c %s /large").await, (((600 << 20) / 9) * 9).to_string());
    service.stop().await;
}
