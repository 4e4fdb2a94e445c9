//! Who sees which variables, users and folders.

use nullspace_api::{TemplateBuildStatus, TemplateInfo};
use serde_json::{Value, json};

use crate::fixture::{Image, Registry, Service, is_long};

#[tokio::test]
async fn variables_are_seen_where_the_contract_says_and_their_values_never_shown() {
    let registry = Registry::start();
    let image = Image::busybox().with_config(json!({
        "Env": ["PATH=/bin", "FROM_IMAGE=image-value", "OVERRIDDEN=image-value", "malformed"],
        "WorkingDir": "/www",
        "User": "app",
    }));
    registry.push("env", "1", &image).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built = api
        .ready(json!({
            "name": "env", "base_image": registry.reference("env:1"), "build_config": {"memory_mib": 192},
            "start_cmd": "echo $$ > /home/app/pid; id -un > /home/app/user; pwd > /home/app/cwd; exec sleep 1000000",
            "build_envs": {"AT_BUILD": "build-value"},
            "runtime_config": {
                "default_envs": {"AT_RUN": "canary-runtime-value", "OVERRIDDEN": "runtime-value"},
                "readiness": {"kind": "command", "command": "test -s /home/app/cwd && test $AT_BUILD = build-value"},
            },
        }))
        .await;
    let sandbox = api
        .sandbox_with(json!({
            "template": "env", "envs": {"AT_CREATE": "create-value", "OVERRIDDEN": "create-value"},
            "metadata": {"owner": "tests"}, "snapshot_id": null, "vcpus": null,
        }))
        .await;
    assert_eq!(sandbox.created.metadata, json!({"owner": "tests"}).as_object().cloned());

    let environment = sandbox.sh("tr '\\0' '\\n' < /proc/$(cat /home/app/pid)/environ").await;
    let of_start: Vec<&str> = environment.lines().collect();
    for seen in
        ["FROM_IMAGE=image-value", "AT_BUILD=build-value", "AT_RUN=canary-runtime-value", "OVERRIDDEN=runtime-value"]
    {
        assert!(of_start.contains(&seen), "the start command lacks {seen}: {of_start:?}");
    }
    assert!(!environment.contains("AT_CREATE") && !environment.contains("malformed"), "{of_start:?}");

    let environment = sandbox.sh("env").await;
    let of_exec: Vec<&str> = environment.lines().collect();
    for seen in
        ["FROM_IMAGE=image-value", "AT_RUN=canary-runtime-value", "AT_CREATE=create-value", "OVERRIDDEN=create-value"]
    {
        assert!(of_exec.contains(&seen), "an exec lacks {seen}: {of_exec:?}");
    }
    assert!(!environment.contains("AT_BUILD"), "build variables are gone after the build: {of_exec:?}");
    let asked =
        sandbox.sh_with("echo $OVERRIDDEN $MINE", json!({"envs": {"OVERRIDDEN": "exec-value", "MINE": "1"}})).await;
    assert_eq!(asked, "exec-value 1");
    // Not from one exec to the next.
    assert_eq!(sandbox.sh("echo $OVERRIDDEN $MINE").await, "create-value");

    // User and folder of the image hold for the start command and for execs.
    assert_eq!(sandbox.sh("cat /home/app/user /home/app/cwd; id -un; id -u; pwd").await, "app\n/www\napp\n1000\n/www");
    assert_eq!(sandbox.sh("echo $HOME $USER").await, "/home/app app");

    // Names are shown, values are not: in no answer, in no log.
    let info: TemplateInfo = api.get("/v1/templates/env").await.ok(200);
    let shown = info.runtime_defaults.unwrap();
    assert_eq!(shown.default_env_keys, ["AT_RUN", "FROM_IMAGE", "OVERRIDDEN", "PATH"]);
    assert_eq!((shown.default_user.as_deref(), shown.default_workdir.as_deref()), (Some("app"), Some("/www")));
    let status: Value = api.get(&format!("/v1/templates/builds/{}", built.build.build_id)).await.ok(200);
    assert!(!status.to_string().contains("canary-runtime-value"), "{status}");
    let in_log = service.log().lines().join("\n");
    assert!(!in_log.contains("canary-runtime-value") && !in_log.contains("create-value"), "{in_log}");
    service.stop().await;
}

#[tokio::test]
async fn the_request_overrides_user_and_folder_of_the_image() {
    let registry = Registry::start();
    let image = Image::busybox().with_config(json!({"User": "app", "WorkingDir": "/www"}));
    registry.push("env", "1", &image).await;
    let mut service = Service::start().await;
    let api = service.api();
    let request = |user: &str, folder: &str| {
        json!({
            "base_image": registry.reference("env:1"), "build_config": {"memory_mib": 192},
            "start_cmd": "id -u > /tmp/user; id -g >> /tmp/user; pwd >> /tmp/user",
            "runtime_config": {"default_user": user, "default_workdir": folder},
        })
    };
    let overrides = [
        ("root", "/home/app", "0\n0\n/home/app"),
        ("app:extra", "/workspace", "1000\n2000\n/workspace"),
        // In `make test-long` only: numbers are used below, too.
        ("1000:2000", "/home", "1000\n2000\n/home"),
    ];
    for (user, folder, expected) in overrides.into_iter().take(if is_long() { 3 } else { 2 }) {
        let built = api.ready(request(user, folder)).await;
        let sandbox = api.sandbox(built.template()).await;
        assert_eq!(sandbox.sh("cat /tmp/user; id -u; id -g; pwd").await, format!("{expected}\n{expected}"), "{user}");
        sandbox.delete().await;
    }
    // A folder that the image does not have is made by root, as container engines do.
    let built = api.ready(request("1000:2000", "/no/such/folder")).await;
    let sandbox = api.sandbox(built.template()).await;
    let made = "cat /tmp/user; pwd; stat -c %a:%u /no /no/such/folder";
    assert_eq!(sandbox.sh(made).await, "1000\n2000\n/no/such/folder\n/no/such/folder\n755:0\n755:0");
    sandbox.delete().await;
    // An account that the image does not have, or a file in the folder's place, is the definition's fault.
    for (user, folder, named) in [("nobody-here", "/", "nobody-here"), ("root", "/etc/passwd", "/etc/passwd")] {
        let detail = api.failed(request(user, folder), "start_cmd_not_started").await;
        assert!(!detail.retryable && detail.message.contains(named), "{detail:?}");
    }
    service.settles().await;
    service.stop().await;
}

#[tokio::test]
async fn the_number_that_an_image_has_for_its_user_gets_a_name() {
    let registry = Registry::start();
    registry.push("number", "1", &Image::busybox().with_config(json!({"User": "1234:2345"}))).await;
    let mut service = Service::start().await;
    let api = service.api();
    let parent = api.ready(
        json!({"name": "number", "base_image": registry.reference("number:1"), "build_config": {"memory_mib": 192}}),
    );
    let parent = parent.await;
    let child = json!({
        "base_image": format!("{}/number", parent.build.namespace_slug), "build_config": {"memory_mib": 192},
        "steps": [{"action": "run", "command": "id -un > /tmp/name"}],
    });
    let child = api.ready(child).await;
    for template in [parent.template(), child.template()] {
        let sandbox = api.sandbox(template).await;
        let who = "id -un; id -g; grep -c imported /etc/passwd; head -n 1 /etc/passwd";
        assert_eq!(sandbox.sh(who).await, "nullspace-imported-1234\n2345\n1\nroot:x:0:0:root:/root:/bin/sh");
        sandbox.delete().await;
    }
    assert_eq!(api.sandbox(child.template()).await.sh("cat /tmp/name").await, "nullspace-imported-1234");
    service.stop().await;
}

#[tokio::test]
async fn an_image_that_only_prepares_is_ready_when_its_command_is_done() {
    let registry = Registry::start();
    // The Cmd of many base images is a shell, which ends at once where there is no terminal.
    let image = Image::busybox().with_config(json!({"Cmd": ["/bin/sh"], "Labels": {"org.example": "yes"}}));
    registry.push("shell", "1", &image).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built =
        api.ready(json!({"base_image": registry.reference("shell:1"), "build_config": {"memory_mib": 192}})).await;
    assert_eq!(built.build.status, TemplateBuildStatus::Ready);
    let metadata = built.build.oci_metadata.clone().expect("what the image said");
    assert_eq!(metadata.labels.get("org.example").map(String::as_str), Some("yes"));
    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.sh("echo up").await, "up");
    service.stop().await;
}
