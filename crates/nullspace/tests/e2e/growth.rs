//! Growth that ends: logs are compressed and read the same, and what is over is not found after its time.

use std::time::{Duration, Instant};

use nullspace_api::TemplateBuildStatus as Status;
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixture::{Api, Image, Registry, Service};

/// Rounds of retention are a minute apart, and the shortest retention is a minute.
const ROUNDS: Duration = Duration::from_secs(180);

/// Every way to read a build and its log, as bytes.
async fn ways(api: &Api, id: &str) -> Vec<Vec<u8>> {
    let path = format!("/v1/templates/builds/{id}");
    let mut read = vec![api.follow(id).await];
    for query in ["", "follow=true&offset=7", "offset=3", "offset=100000"] {
        read.push(api.stream(id, query).await);
    }
    for last in ["0", "250"] {
        let request = api.request(Method::GET, &format!("{path}/logs")).header("last-event-id", last);
        read.push(api.send(request).await.body);
    }
    for offset in [0, 1, 200, 100_000] {
        read.push(api.get(&format!("{path}?offset={offset}")).await.body);
    }
    read
}

/// Rows of a table, as the operator's command says beside the running service.
fn rows(service: &Service, table: &str) -> u64 {
    let stats = service.command(&["store", "stats"]).output().unwrap();
    let text = String::from_utf8(stats.stdout).unwrap();
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|words| words.first() == Some(&table) && words.get(2) == Some(&"rows"));
    line.unwrap_or_else(|| panic!("no {table} in {text}"))[1].parse().unwrap()
}

/// Waits until the parts of logs that are stored are those that rows name.
async fn parts_are_those_with_rows(service: &Service) {
    if std::env::var_os("NULLSPACE_TEST_STORE").is_some() {
        // They are in the object store then: `store verify` looks there.
        return;
    }
    let stored = || {
        let folders = std::fs::read_dir(service.data().join("logs")).unwrap().map(|entry| entry.unwrap().path());
        folders.map(|folder| std::fs::read_dir(folder).unwrap().count() as u64).sum::<u64>()
    };
    let deadline = Instant::now() + ROUNDS;
    // The bytes come before their row, and go after it.
    while stored() != rows(service, "build_log_segments") {
        assert!(Instant::now() < deadline, "{} parts are stored", stored());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn a_log_is_compressed_and_reads_the_same_and_what_is_over_is_not_found_after_its_time() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::with([
        ("NULLSPACE_BUILD_LOG_COMPRESSION_SECS", "0".to_owned()),
        ("NULLSPACE_BUILD_RETENTION_SECS", "60".to_owned()),
        ("NULLSPACE_SANDBOX_RETENTION_SECS", "60".to_owned()),
    ])
    .await;
    let api = service.api();
    let request = |tag: &str| {
        json!({
            "name": "app", "base_image": registry.reference(&format!("box:{tag}")),
            "build_config": {"memory_mib": 128, "disk_mb": 512},
            "start_cmd": "for i in $(seq 1 400); do echo \"line $i\"; done; exec sleep 1000000",
        })
    };
    let failed = api.build(request("none")).await.expect_status(Status::Error).build.build_id;
    let ready = api.ready(request("1")).await.build.build_id;
    let before = [ways(&api, &failed).await, ways(&api, &ready).await];
    let sandbox = api.sandbox("app").await;
    let ended = sandbox.id.clone();
    sandbox.delete().await;

    let deadline = Instant::now() + ROUNDS;
    while rows(&service, "build_log") > 0 {
        assert!(Instant::now() < deadline, "the logs are not compressed");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(rows(&service, "build_log_segments") >= 2);
    parts_are_those_with_rows(&service).await;
    assert_eq!(ways(&api, &ready).await, before[1]);
    service.stop().await;
    service.restart().await;
    let api = service.api();
    assert_eq!(ways(&api, &ready).await, before[1]);

    let path = format!("/v1/templates/builds/{failed}");
    let deadline = Instant::now() + ROUNDS;
    loop {
        let answer = api.get(&path).await;
        if answer.status == 404 {
            answer.refused(404, "template_build_not_found");
            break;
        }
        assert_eq!(ways(&api, &failed).await[0], before[0][0]);
        assert!(Instant::now() < deadline, "the failed build stays");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    api.get(&format!("{path}/logs")).await.refused(404, "template_build_not_found");
    api.post(&format!("{path}/retry"), json!({})).await.refused(404, "template_build_not_found");
    let listed: Value = api.get("/v1/templates/app/builds").await.ok(200);
    let ids: Vec<&str> =
        listed["builds"].as_array().unwrap().iter().map(|build| build["build_id"].as_str().unwrap()).collect();
    assert_eq!(ids, [ready.as_str()]);
    api.get(&format!("/v1/sandboxes/{ended}")).await.refused(404, "sandbox_not_found");
    parts_are_those_with_rows(&service).await;
    service.verify_store();
    // What is in use stays.
    assert_eq!(ways(&api, &ready).await, before[1]);
    let sandbox = api.sandbox("app").await;
    sandbox.delete().await;
    service.stop().await;
}
