//! The main job, end to end.

use nullspace_api::{ProcessInfo, SandboxInfo, SandboxListResponse, SandboxStatus, TemplateInfo};
use serde_json::{Value, json};

use crate::fixture::{Compression, Image, Registry, Service, Tar, api};

const START: &str = "
    echo started >> starts
    echo $$ > pid
    echo \"serving as $$\"
    exec httpd -f -p 8080 -h /www";

#[tokio::test]
async fn a_service_started_at_build_answers_in_a_sandbox_as_the_very_process_that_ran() {
    let registry = Registry::start();
    registry.push("library/web", "1", &Image::busybox()).await;
    let mut service = Service::with([registry.as_mirror_of("docker.io")]).await;
    let api = service.api();

    // A short name means docker.io/library, as with Docker.
    let accepted = api
        .start(json!({
            "name": "web", "base_image": "web:1", "start_cmd": START, "build_config": {"memory_mib": 192},
            "runtime_config": {"readiness": {"kind": "tcp", "port": 8080}},
        }))
        .await;
    assert!(accepted.build_id.starts_with("tb_") && accepted.template_id.starts_with("tmpl_"));
    let followed = api.follow(&accepted.build_id).await;
    let web = api.finished(&accepted.build_id).await;
    assert!(web.says("serving as"), "{web:?}");

    // The log is the same however and whenever it is read.
    assert_eq!(api::events(&followed), web.log);
    for query in ["", "follow=true", "offset=0", "follow=false"] {
        assert!(api.stream(&accepted.build_id, query).await == followed, "a replay ({query}) has other bytes");
    }
    let end = web.log.len();
    for (query, from) in [("offset=2", 2), ("cursor=3", 3), ("offset=1&cursor=3", 1), (&*format!("offset={end}"), end)]
    {
        let tail = api::events(&api.stream(&accepted.build_id, query).await);
        assert_eq!(tail, web.log[from..], "{query}");
    }

    // The template, by every name it has.
    let namespace = &accepted.namespace_slug;
    assert_eq!(accepted.canonical_ref, format!("{namespace}/web"));
    for reference in [&accepted.template_id, "web", &format!("web:{}", accepted.build_id)] {
        let info: TemplateInfo = api.get(&format!("/v1/templates/{reference}")).await.ok(200);
        assert_eq!((&info.id, &*info.name, info.builtin), (&accepted.template_id, "web", false), "{reference}");
        assert_eq!(info.runtime_defaults.unwrap().start_cmd.as_deref(), Some(START));
    }
    let listed: Vec<TemplateInfo> = api.get("/v1/templates").await.ok(200);
    assert_eq!(listed.iter().map(|info| &*info.name).collect::<Vec<_>>(), ["web"]);

    // The snapshot, resumed.
    let sandbox = api.sandbox("web").await;
    assert_eq!(sandbox.created.status, SandboxStatus::Running);
    let pid = sandbox.sh("cat pid").await;
    assert_eq!(sandbox.sh(&format!("tr '\\0' ' ' < /proc/{pid}/cmdline")).await, "httpd -f -p 8080 -h /www ");
    assert_eq!(sandbox.sh("cat starts").await, "started", "the start command ran once");
    assert_eq!(sandbox.sh("wget -q -O - http://127.0.0.1:8080/").await, "hello from the template");
    assert!(web.says(&format!("serving as {pid}")), "the pid in the build's log is another: {web:?}");
    let processes: Vec<ProcessInfo> = api.get(&format!("/v1/sandboxes/{}/processes", sandbox.id)).await.ok(200);
    let server = processes.iter().find(|process| process.pid.to_string() == pid).expect("the server is listed");
    assert!(server.running && server.command.contains("httpd"), "{server:?}");

    // A page of one, and the bare list.
    let page: SandboxListResponse = api.get("/v1/sandboxes?limit=1").await.ok(200);
    let SandboxListResponse::Page(page) = page else { panic!("a limit asks for a page") };
    assert_eq!((page.items[0].id.as_str(), page.has_next), (sandbox.id.as_str(), false));
    let all: Vec<SandboxInfo> = api.get("/v1/sandboxes").await.ok(200);
    assert_eq!(all.len(), 1);

    sandbox.delete().await;
    service.settles().await;
    let gone = format!("/v1/sandboxes/{}", sandbox.id);
    api.get(&gone).await.refused(404, "sandbox_not_found");
    api.delete(&gone).await.refused(404, "sandbox_not_found");
    sandbox.exec(json!({"command": "true"})).await.refused(404, "sandbox_not_found");
    let none: Vec<Value> = api.get("/v1/sandboxes").await.ok(200);
    assert!(none.is_empty());

    let deleted = api.delete("/v1/templates/web").await;
    assert_eq!(deleted.status, 204);
    api.get("/v1/templates/web").await.refused(404, "template_not_found");
    api.post("/v1/sandboxes", json!({"template": accepted.template_id})).await.refused(404, "template_not_found");
    // Its builds stay to be read.
    assert!(api.stream(&accepted.build_id, "").await == followed);
    service.stop().await;
}

#[tokio::test]
async fn layers_of_every_compression_are_merged_as_the_image_says() {
    let registry = Registry::start();
    let image = Image::busybox()
        .with_layer(
            Tar::new()
                .dir("data", 0o755)
                .file("data/kept", 0o640, b"from below")
                .file("data/replaced", 0o644, b"old")
                .file("data/removed", 0o644, b"never seen")
                .dir("emptied", 0o755)
                .file("emptied/old", 0o644, b"never seen")
                .dir("gone", 0o755)
                .file("gone/deep", 0o644, b"never seen")
                .hard_link("data/twin", "data/kept"),
            Compression::None,
        )
        .with_layer(
            Tar::new()
                .dir("data", 0o711)
                .file("data/replaced", 0o644, b"new")
                .whiteout("data/removed")
                .whiteout("gone")
                .dir("emptied", 0o755)
                .opaque("emptied")
                .file("emptied/new", 0o644, b"fresh")
                .hard_link("linked", "data/kept")
                .owned_dir("theirs", 0o2750, (1000, 2000))
                .symlink("data/link", "../etc/passwd"),
            Compression::Zstd,
        );
    registry.push("layers", "1", &image).await;
    let mut service = Service::start().await;
    let api = service.api();
    let request = json!({"base_image": registry.reference("layers:1"), "build_config": {"memory_mib": 192}});
    let built = api.ready(request).await;
    let sandbox = api.sandbox(built.template()).await;
    for (line, expected) in [
        ("cat data/kept data/replaced emptied/new linked", "from belownewfreshfrom below"),
        ("ls -A data", "kept\nlink\nreplaced\ntwin"),
        ("ls -A emptied", "new"),
        ("stat -c %a:%h data/kept", "640:3"),
        ("stat -c %a data", "711"),
        ("stat -c %u:%g:%a theirs", "1000:2000:2750"),
        ("readlink data/link; head -n 1 data/link", "../etc/passwd\nroot:x:0:0:root:/root:/bin/sh"),
        ("stat -c %Y data/kept", "1700000000"),
        ("ls -A | grep -c -e gone -e .wh.; true", "0"),
        ("ls -iL bin/busybox bin/sh bin/ls | cut -d' ' -f1 | uniq | wc -l", "1"),
    ] {
        assert_eq!(sandbox.sh_with(line, json!({"cwd": "/"})).await, expected, "{line}");
    }
    service.stop().await;
}
