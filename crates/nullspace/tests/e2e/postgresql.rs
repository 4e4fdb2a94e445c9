//! The service with its rows on a PostgreSQL server: what it builds runs, and neither its own end nor the server's loses anything.

use std::time::Duration;

use nullspace_api::TemplateInfo;
use serde_json::json;

use crate::fixture::postgres::{PASSWORD, Postgres};
use crate::fixture::{Image, Registry, Service, until};

/// What must happen by itself may take so long on a busy machine.
const SETTLE: Duration = Duration::from_secs(90);

#[tokio::test]
async fn a_service_on_postgresql_builds_and_runs_and_outlives_a_restart_of_either() {
    let Some(mut server) = Postgres::start() else { return };
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::on_folder([("NULLSPACE_DATABASE", server.url("postgres"))]);
    service.restart().await;
    assert!(!service.data().join("nullspace.db").exists());
    let api = service.api();
    api.ready(json!({
        "name": "app", "base_image": registry.reference("box:1"),
        "build_config": {"memory_mib": 128, "disk_mb": 512}, "start_cmd": "echo here > /started; exec sleep 1000000",
    }))
    .await;
    let sandbox = api.sandbox("app").await;
    assert_eq!(sandbox.sh("cat /started").await, "here");

    // One service for a database, whatever its data folder; commands work beside it.
    let second = tempfile::tempdir().unwrap();
    let refused =
        service.command(&["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(second.path()).output().unwrap();
    let told = String::from_utf8_lossy(&[refused.stdout, refused.stderr].concat()).into_owned();
    assert!(!refused.status.success() && told.contains("another service works on this database"), "{told}");
    let other = service.api_of("other");
    assert_eq!(other.get("/v1/templates/app").await.status, 404);
    for command in [&["doctor"][..], &["store", "stats"], &["keys", "list"]] {
        let output = service.command(command).output().unwrap();
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(told.contains(if command == ["keys", "list"] { "other" } else { "atabase" }), "{command:?}: {told}");
        assert!(!told.contains(PASSWORD), "{command:?} tells the password");
    }

    // Without its database the service is not ready, says so in a way that clients wait for, and goes on when it is back.
    service.log().expect_fault("database");
    server.stop();
    assert_eq!(api.get("/readyz").await.status, 503);
    let refused = api.get("/v1/templates/app").await;
    assert_eq!(refused.status, 503);
    server.run();
    until("the service is ready again", SETTLE, async || api.get("/readyz").await.status == 200).await;
    assert_eq!(sandbox.sh("cat /started").await, "here", "the sandbox ran on");
    sandbox.delete().await;

    // Its rows are the server's.
    service.settles().await;
    service.stop().await;
    service.restart().await;
    let api = service.api();
    let info: TemplateInfo = api.get("/v1/templates/app").await.ok(200);
    assert_eq!(&*info.name, "app");
    let sandbox = api.sandbox("app").await;
    assert_eq!(sandbox.sh("cat /started").await, "here");
    sandbox.delete().await;
    service.settles().await;
    assert!(service.log().lines().iter().all(|line| !line.contains(PASSWORD)));
}
