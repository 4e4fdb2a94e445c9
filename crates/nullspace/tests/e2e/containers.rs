//! What images made for containers expect of the machine that they run in, and what a process from before the snapshot is
//! told. One template for most of it.

use std::time::Duration;

use nullspace_api::{ErrorDetail, ExecResponse};
use serde_json::{Value, json};

use crate::fixture::{Compression, Image, Registry, Service, Tar, until};

/// Refuses to be anything but PID 1, as s6-overlay does, and writes where container images log to.
const ENTRYPOINT: &str = "#!/bin/sh\n\
    [ $$ = 1 ] || exit 100\n\
    echo to stdout > /dev/stdout && echo to stderr > /dev/stderr || exit 101\n\
    pwd > /home/app/cwd; hostname > /home/app/name; cat /proc/sys/kernel/random/boot_id > /home/app/boot_id\n\
    cat /run/nullspace/generation > /home/app/generation\n\
    sleep 100000 & echo $! > /home/app/child\n\
    exec httpd -f -p 7000 -h /www\n";
const HOOK: &str = "#!/bin/sh\necho \"$(id -u) $NULLSPACE_GENERATION $(hostname)\" >> /hooked\n";

fn image() -> Image {
    let files = Tar::new()
        .file("entrypoint", 0o755, ENTRYPOINT.as_bytes())
        .dir("etc/nullspace", 0o755)
        .dir("etc/nullspace/resume.d", 0o755)
        .file("etc/nullspace/resume.d/10-hook", 0o755, HOOK.as_bytes());
    Image::busybox().with_layer(files, Compression::Gzip).with_config(json!({
        "Entrypoint": ["/entrypoint"], "User": "app", "WorkingDir": "/srv/made/by/root",
        // An own timeout, longer than a connection's.
        "Healthcheck": {"Test": ["CMD-SHELL", "sleep 11; test -s /home/app/child"], "Timeout": 30_000_000_000_u64},
        "Labels": {"dev.nullspace.resume_cmd":
            "echo $(id -un) $(pwd) $GREETING $(cat /run/nullspace/generation) >> /home/app/resumed"},
    }))
}

#[tokio::test]
async fn a_container_image_finds_what_it_expects_and_is_told_of_every_resume() {
    let registry = Registry::start();
    registry.push("service", "1", &image()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built = api.ready(
        json!({"name": "service", "base_image": registry.reference("service:1"), "build_config": {"memory_mib": 192}}),
    );
    let built = built.await;
    assert!(built.says("to stdout") && built.says("to stderr"), "{built:?}");

    let ask = |name: &str| json!({"template": "service", "envs": {"GREETING": name}});
    let (one, two) = tokio::join!(api.sandbox_with(ask("first")), api.sandbox_with(ask("second")));
    // The command is PID 1 of what everybody sees, where the image said, in a folder that was made.
    assert_eq!(
        one.sh("tr '\\0' ' ' < /proc/1/cmdline; cat /home/app/cwd; pwd").await,
        "httpd -f -p 7000 -h /www /srv/made/by/root\n/srv/made/by/root"
    );
    assert_eq!(one.sh("stat -c %a:%U /srv/made /srv/made/by/root").await, "755:root\n755:root");
    assert_eq!(one.sh("echo again > /dev/stdout").await, "again");
    // The API's pids are those that are seen inside.
    let child = one.sh("cat /home/app/child").await;
    let path = format!("/v1/sandboxes/{}/processes", one.id);
    let listed: Value = api.get(&path).await.ok(200);
    let listed = listed["processes"].as_array().or(listed.as_array()).expect("processes").clone();
    let of = |pid: &str| listed.iter().find(|process| process["pid"].as_u64() == pid.parse().ok()).cloned();
    assert!(of("1").is_some_and(|process| process["command"].as_str().unwrap().starts_with("httpd")), "{listed:?}");
    assert!(of(&child).is_some_and(|process| process["command"] == "sleep 100000"), "{child}: {listed:?}");

    // Everything that says which machine this is.
    for file in ["/proc/sys/kernel/random/boot_id", "/run/nullspace/generation"] {
        let read = format!("cat {file}");
        let (left, right) = tokio::join!(one.sh(&read), two.sh(&read));
        let kept = if file.ends_with("boot_id") { "/home/app/boot_id" } else { "/home/app/generation" };
        let before = one.sh(&format!("cat {kept}")).await;
        assert!(left.len() == 36 && left != right && left != before && right != before, "{left} {right} {before}");
    }
    // The name that was learned at the build.
    let learned = one.sh("cat /home/app/name").await;
    assert!(learned.starts_with("build-"), "{learned}");
    for sandbox in [&one, &two] {
        let generation = sandbox.sh("cat /run/nullspace/generation").await;
        let name = sandbox.sh("hostname").await;
        let ping = format!("ping -c 1 -W 5 {learned} > /dev/null && echo found");
        assert_eq!(sandbox.sh_with(&ping, json!({"user": "root"})).await, "found");
        assert_eq!(sandbox.sh("cat /hooked").await, format!("0 {generation} {name}"), "the hook, as root, once");
        let resumed = sandbox.sh("cat /home/app/resumed").await;
        let greeting = if sandbox.id == one.id { "first" } else { "second" };
        assert_eq!(resumed, format!("app /srv/made/by/root {greeting} {generation}"), "the command, as its user, once");
    }

    // Limits of the kernel.
    for (setting, least) in [
        ("fs/inotify/max_user_watches", 65_536_u64),
        ("fs/inotify/max_user_instances", 1_024),
        ("vm/max_map_count", 262_144),
        ("net/core/somaxconn", 4_096),
        ("kernel/pid_max", 1 << 22),
        ("fs/file-max", 1 << 20),
        ("kernel/threads-max", 65_536),
    ] {
        let value: u64 = two.sh(&format!("cat /proc/sys/{setting}")).await.parse().unwrap();
        assert!(value >= least, "{setting} is {value}");
    }
    assert_eq!(two.sh("ulimit -u; ulimit -n").await, "unlimited\n65536");
    // What other users put into a shared directory leads nobody astray.
    let protections = "cd /proc/sys/fs; cat protected_fifos protected_hardlinks protected_regular protected_symlinks";
    assert_eq!(two.sh_with(protections, json!({"user": "root"})).await, "1\n1\n2\n1");

    // Modules, as programs make the kernel ask for them: by device, by kind of link, by filesystem.
    let as_root = json!({"user": "root"});
    let ask = "head -c 1 /dev/net/tun 2> /dev/null; head -c 1 /dev/fuse 2> /dev/null; losetup -f > /dev/null; \
               for kind in bridge dummy veth wireguard; do ip link add name n$kind type $kind; done 2> /dev/null; \
               mkdir -p /l /u /w /m; mount -t overlay -o lowerdir=/l,upperdir=/u,workdir=/w none /m; \
               awk '{print $1}' /proc/modules";
    let loaded = two.sh_with(ask, as_root).await;
    for module in ["tun", "fuse", "loop", "bridge", "dummy", "veth", "wireguard", "overlay"] {
        assert!(loaded.lines().any(|name| name == module), "{module} is not there: {loaded}");
    }

    // A command whose time is over has what it wrote.
    let slow = json!({"command": "echo so far; echo and here >&2; sleep 1000", "shell": true, "timeout_secs": 1});
    let late = two.exec(slow).await.refused(504, "exec_timeout");
    let Some(ErrorDetail::Template(detail)) = late.error_detail else { panic!("no detail: {late:?}") };
    assert_eq!(detail.reason(), Some("exec_timeout"));
    let details = detail.details.unwrap();
    assert_eq!((details["stdout"].as_str(), details["stderr"].as_str()), (Some("so far\n"), Some("and here\n")));
    service.stop().await;
}

#[tokio::test]
async fn failures_of_commands_in_machines_say_what_to_do() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let bare = Image::one_binary().with_config(json!({"Cmd": ["./busybox", "sleep", "100000"]}));
    registry.push("bare", "1", &bare).await;
    // Something else has the place of the default working directory.
    let odd = Image::busybox().with_layer(Tar::new().symlink("workspace", "nowhere"), Compression::Gzip);
    registry.push("odd", "1", &odd).await;
    let mut service = Service::start().await;
    let api = service.api();
    let request = |image: &str, start: Option<&str>, resume: Option<&str>| {
        json!({"base_image": registry.reference(image), "build_config": {"memory_mib": 192}, "start_cmd": start,
            "resume_cmd": resume})
    };

    // An image without a working directory starts its command in the root; the log says which rule made it ready.
    let built = api.ready(request("bare:1", None, None)).await;
    assert!(built.says("no readiness check is given"), "{built:?}");
    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.run(&["/busybox", "pwd"]).await.stdout, "/workspace\n");
    sandbox.delete().await;
    let missing = api.failed(request("box:1", Some("exec ./none"), None), "start_cmd_exited").await;
    assert_eq!(missing.details.as_ref().unwrap()["exit_code"], 127);
    let built = api.ready(request("odd:1", Some("pwd > /cwd"), None)).await;
    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.sh_with("cat /cwd; pwd", json!({})).await, "/\n/");
    sandbox.delete().await;

    // More memory than there is.
    let mut hungry = request("box:1", Some("tail -n 1 /dev/zero"), None);
    hungry["runtime_config"] = json!({"readiness": {"kind": "timeout", "timeout_ms": 60_000}});
    let hungry = api.failed(hungry, "start_cmd_exited").await;
    assert!(hungry.message.contains("192 MiB of memory ran out"), "{hungry:?}");
    assert!(hungry.suggested_action.contains("memory_mib"), "{hungry:?}");

    // A resume command that fails: no sandbox, and why.
    let built = api.ready(request("box:1", Some("sleep 100000"), Some("echo cannot renew; exit 3"))).await;
    let refused = api.post("/v1/sandboxes", json!({"template": built.template()})).await.refused(502, "exec_failed");
    let Some(ErrorDetail::Template(detail)) = refused.error_detail else { panic!("no detail: {refused:?}") };
    assert_eq!(detail.reason(), Some("resume_failed"));
    assert!(detail.message.contains("exit code 3") && detail.message.contains("cannot renew"), "{detail:?}");
    service.settles().await;
    service.stop().await;
}

/// A container's end takes its processes with it. A command that is only slow to end, as `node` without a terminal on a busy
/// host, must have ended before there are sandboxes.
#[tokio::test]
async fn an_images_command_that_ends_by_itself_ends_before_there_are_sandboxes() {
    let registry = Registry::start();
    let slow = "until=$(($(date +%s) + 9)); while [ $(date +%s) -lt $until ]; do :; done";
    registry.push("slow", "1", &Image::busybox().with_config(json!({"Cmd": ["sh", "-c", slow]}))).await;
    registry.push("stays", "1", &Image::busybox().with_config(json!({"Cmd": ["sleep", "100000"]}))).await;
    let mut service = Service::start().await;
    let api = service.api();
    let request = |image: &str| json!({"base_image": registry.reference(image), "build_config": {"memory_mib": 192}});
    let (slow, stays) = tokio::join!(api.ready(request("slow:1")), api.ready(request("stays:1")));
    assert!(slow.says("the start command ended with 0"), "{slow:?}");
    assert!(stays.says("the start command still runs"), "{stays:?}");

    let sandbox = api.sandbox(stays.template()).await;
    let beside = json!({"command": "touch /tmp/begun; exec sleep 1000", "shell": true, "timeout_secs": 300});
    let beside = async { sandbox.exec(beside).await.ok::<ExecResponse>(200) };
    let end = async {
        until("the command runs", Duration::from_secs(60), async || {
            sandbox.run(&["test", "-e", "/tmp/begun"]).await.exit_code == 0
        })
        .await;
        let path = format!("/v1/sandboxes/{}/processes/1/kill", sandbox.id);
        assert_eq!(api.post(&path, json!({})).await.status, 204);
    };
    let (beside, ()) = tokio::join!(beside, end);
    assert_eq!(beside.exit_code, 137);
    assert!(beside.stderr.contains("the image's own command ended while this ran"), "{beside:?}");
    assert_eq!(sandbox.sh("echo goes on").await, "goes on");
    service.stop().await;
}
