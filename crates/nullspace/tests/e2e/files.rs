//! Files of a sandbox and processes in it, over HTTP.

use nullspace_api::{ExecResponse, FileInfo, ProcessLogs, ReadFileResponse};
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixture::{Image, Registry, Service, until};

#[tokio::test]
async fn files_go_in_and_come_out_and_are_the_users() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built = api
        .ready(json!({
            "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192, "disk_mb": 512},
            "runtime_config": {"default_user": "app", "default_workdir": "/www"},
            "start_cmd": "echo from-build",
        }))
        .await;
    let sandbox = api.sandbox(built.template()).await;
    let route = |tail: &str| format!("/v1/sandboxes/{}{tail}", sandbox.id);
    let post = async |tail: &str, body: Value| api.post(&route(tail), body).await;

    // As root first: the working directory belongs to root.
    let made = post("/files/mkdir", json!({"path": "/www/own", "user": "root"})).await;
    assert_eq!(made.status, 204, "{}", made.text());
    sandbox.sh_with("chown app /www /www/own", json!({"user": "root", "cwd": "/"})).await;

    // Relative paths start at the working directory, and the default user does it.
    let written: FileInfo = post("/files/write", json!({"path": "own/a.txt", "content": "grüß\n"})).await.ok(200);
    assert_eq!((written.path.as_str(), written.owner.as_deref()), ("/www/own/a.txt", Some("app")));
    assert_eq!(
        (written.size, written.mode.as_deref(), written.permissions.as_deref()),
        (7, Some("0644"), Some("-rw-r--r--"))
    );
    let read: ReadFileResponse = post("/files/read", json!({"path": "own/a.txt"})).await.ok(200);
    assert_eq!((read.content.as_str(), read.size), ("grüß\n", 7));
    assert_eq!(sandbox.sh("cat own/a.txt; id -un").await, "grüß\napp");

    // Large and binary, raw, in both directions; what the guest sees is what was sent.
    let content: Vec<u8> = (0..20_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sent = api.send(api.request(Method::PUT, &route("/file?path=own/big")).body(content.clone())).await;
    assert_eq!(sent.status, 204, "{}", sent.text());
    let sum = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&content));
    assert_eq!(sandbox.sh("sha256sum own/big").await.split(' ').next(), Some(sum.as_str()));
    let got = api.get(&route("/file?path=/www/own/big")).await;
    assert!(got.status == 200 && got.body == content);

    // Listing, looking, moving, removing.
    let names = async |query: &str| {
        let found: Vec<FileInfo> = api.get(&route(&format!("/files{query}"))).await.ok(200);
        found.into_iter().map(|file| format!("{} {}", file.kind, file.path)).collect::<Vec<_>>()
    };
    assert_eq!(names("").await, ["file /www/index.html", "dir /www/own"]);
    let all = ["file /www/index.html", "dir /www/own", "file /www/own/a.txt", "file /www/own/big"];
    assert_eq!(names("?path=/www&depth=2").await, all);
    let moved: FileInfo = post("/files/rename", json!({"old_path": "own/big", "new_path": "new/place"})).await.ok(200);
    assert_eq!((moved.path.as_str(), moved.size), ("/www/new/place", 20_000_000));
    let set = post("/files/permissions", json!({"path": "own/a.txt", "permissions": "0640"})).await;
    assert_eq!(set.status, 204);
    let info: FileInfo = post("/files/info", json!({"path": "own/a.txt"})).await.ok(200);
    assert_eq!(info.mode.as_deref(), Some("0640"));
    assert_eq!(post("/files/remove", json!({"path": "new"})).await.status, 204);
    let exists: Value = post("/files/exists", json!({"path": "new/place"})).await.ok(200);
    assert_eq!(exists, json!({"exists": false}));

    // What cannot be done says so.
    for (tail, body, status, code) in [
        ("/files/read", json!({"path": "/no/such"}), 404, "not_found"),
        ("/files/read", json!({"path": "own"}), 400, "invalid_request"),
        ("/files/read", json!({"path": "/etc/shadow-of-root"}), 404, "not_found"),
        ("/files/write", json!({"path": "/etc/passwd", "content": ""}), 403, "file_error"),
        ("/files/write", json!({"path": "/dev/null", "content": ""}), 400, "invalid_request"),
        ("/files/write", json!({"path": "", "content": ""}), 400, "invalid_request"),
        ("/files/info", json!({"path": "a\u{0}b"}), 400, "invalid_request"),
        ("/files/info", json!({"path": "/etc", "user": "nobody-here"}), 400, "invalid_request"),
        ("/files/permissions", json!({"path": "own/a.txt", "permissions": "rw"}), 400, "invalid_request"),
        ("/files/mkdir", json!({"path": "own/a.txt"}), 409, "file_error"),
        ("/files/remove", json!({"path": "/"}), 400, "invalid_request"),
    ] {
        post(tail, body).await.refused(status, code);
    }
    api.get(&route("/files?path=/www&depth=0")).await.refused(400, "invalid_request");

    // A disk that is full is said to be full, and the sandbox lives on.
    let too_much = api.request(Method::PUT, &route("/file?path=/www/own/huge&user=root"));
    let refused = api.send(too_much.body(vec![7; 600 << 20])).await.refused(409, "file_error");
    assert!(refused.error.contains("disk_mb"), "{refused:?}");
    assert_eq!(sandbox.sh("rm -f own/huge; echo lives").await, "lives");

    // Another tenant finds nothing.
    let other = service.api_of("second");
    other.get(&route("/files")).await.refused(404, "sandbox_not_found");
    other.get(&route("/file?path=/etc/passwd")).await.refused(404, "sandbox_not_found");
    other.post(&route("/files/write"), json!({"path": "/x", "content": ""})).await.refused(404, "sandbox_not_found");
    service.stop().await;
}

#[tokio::test]
async fn a_background_process_is_heard_and_ended() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built =
        api.ready(json!({"base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}})).await;
    let sandbox = api.sandbox(built.template()).await;
    let script = "echo begun; echo fault >&2; sleep 10000";
    let started: ExecResponse =
        sandbox.exec(json!({"command": script, "shell": true, "background": true})).await.ok(200);
    let pid = started.pid.expect("a pid");
    let route = |tail: &str| format!("/v1/sandboxes/{}/processes/{pid}{tail}", sandbox.id);
    let logs = async || api.get(&route("/logs")).await.ok::<ProcessLogs>(200);
    until("it has written", std::time::Duration::from_secs(60), async || logs().await.output.len() >= 12).await;
    let heard = logs().await;
    assert_eq!((heard.stdout.as_str(), heard.stderr.as_str(), heard.exit_code), ("begun\n", "fault\n", None));
    let killed = api.post(&route("/kill"), json!({})).await;
    assert_eq!(killed.status, 204, "{}", killed.text());
    until("it has ended", std::time::Duration::from_secs(60), async || logs().await.exit_code == Some(137)).await;
    api.get(&format!("/v1/sandboxes/{}/processes/999999/logs", sandbox.id)).await.refused(404, "not_found");
    let other = service.api_of("second");
    other.get(&route("/logs")).await.refused(404, "sandbox_not_found");
    other.post(&route("/kill"), json!({})).await.refused(404, "sandbox_not_found");
    service.stop().await;
}
