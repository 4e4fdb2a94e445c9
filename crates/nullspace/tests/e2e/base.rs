//! A whole Debian: as the built-in template, and as an image from a registry.

use std::time::Duration;

use nullspace_api::TemplateInfo;
use serde_json::json;

use crate::fixture::{Registry, Service, debian, until};

#[tokio::test]
async fn the_built_in_base_is_there_by_itself_and_is_what_a_sandbox_is_made_from() {
    let mut service = Service::with([("NULLSPACE_BASE_TAR", debian::base_tar().display().to_string())]).await;
    let api = service.api();
    // Until it is built, the answer says that it will be.
    let early = api.post("/v1/sandboxes", json!({})).await;
    if early.status != 201 {
        let after = early.headers.get("retry-after").and_then(|value| value.to_str().ok()).map(str::to_owned);
        early.refused(503, "feature_unavailable");
        assert!(after.is_some(), "no Retry-After");
    }
    until("the base template is built", Duration::from_secs(180), async || {
        api.get("/v1/templates/base").await.status == 200
    })
    .await;
    let info: TemplateInfo = api.get("/v1/templates/base").await.ok(200);
    assert!(info.builtin && info.canonical_ref.starts_with("nullspace/base"), "{info:?}");
    api.delete("/v1/templates/base").await.refused(400, "invalid_request");

    let sandbox = api.sandbox_with(json!({})).await;
    assert_eq!(sandbox.created.template, "base");
    assert_eq!(sandbox.run(&["python3", "-c", "print(6 * 7)"]).await.stdout, "42\n");
    assert!(sandbox.sh("git --version; curl --version").await.starts_with("git version"));
    assert_eq!(sandbox.sh(". /etc/os-release; echo $ID").await, "debian");
    sandbox.delete().await;

    // Steps aside, a definition without a source means the base; a restart finds it as it is.
    let built = api.ready(json!({"name": "own", "start_cmd": "echo own > /workspace/own"})).await;
    service.stop().await;
    service.restart().await;
    let api = service.api();
    let again: TemplateInfo = api.get("/v1/templates/nullspace%2Fbase").await.ok(200);
    assert_eq!(again.id, info.id, "it was built anew");
    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.sh("cat own").await, "own");
    service.stop().await;
}

#[tokio::test]
async fn a_debian_image_from_a_registry_serves_python() {
    let registry = Registry::start();
    registry.push("library/python", "3", &debian::image()).await;
    let mut service = Service::with([registry.as_mirror_of("docker.io")]).await;
    let api = service.api();
    let built = api
        .ready(json!({
            "name": "py", "base_image": "python:3",
            "start_cmd": "echo $(( $(cat starts 2>/dev/null || echo 0) + 1 )) > starts; echo $$ > pid; \
                          exec python3 -m http.server 8000",
            "runtime_config": {"readiness": {"kind": "http", "port": 8000, "path": "/pid", "timeout_secs": 120}},
        }))
        .await;
    assert!(built.says("Imported"), "{built:?}");
    let sandbox = api.sandbox("py").await;
    let pid = sandbox.sh("cat pid").await;
    assert_eq!(sandbox.sh(&format!("tr '\\0' ' ' < /proc/{pid}/cmdline")).await, "python3 -m http.server 8000 ");
    assert_eq!(sandbox.sh("curl -fsS http://127.0.0.1:8000/starts").await, "1");
    // Packages are whole: dpkg's own checksums, and hard links that tar knows.
    assert_eq!(sandbox.sh("dpkg --verify bash coreutils perl-base 2>&1 | grep -v /usr/share/; true").await, "");
    assert_eq!(sandbox.sh("test /usr/bin/perl -ef /usr/bin/perl5.*.* && echo one file").await, "one file");
    service.stop().await;
}
