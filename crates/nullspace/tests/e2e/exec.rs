//! Commands in a sandbox.

use nullspace_api::ExecResponse;
use serde_json::json;
use tokio::time::Instant;

use crate::fixture::{Image, Registry, Service};

#[tokio::test]
async fn commands_run_as_they_are_asked_to() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built =
        api.ready(json!({"base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}})).await;
    let sandbox = api.sandbox(built.template()).await;

    // Arguments are data; a shell only where one is asked for.
    let done = sandbox.run(&["echo", "$HOME", "a  b", "; exit 3"]).await;
    assert_eq!((done.exit_code, &*done.stdout, &*done.stderr), (0, "$HOME a  b ; exit 3\n", ""));
    assert!(done.pid.is_some_and(|pid| pid > 1), "{done:?}");
    let shell =
        json!({"command": "echo \"$0 $1 $2\"; echo fault >&2; exit 7", "shell": true, "args": ["one", "two words"]});
    let done: ExecResponse = sandbox.exec(shell).await.ok(200);
    assert_eq!((done.exit_code, &*done.stdout, &*done.stderr), (7, "sh one two words\n", "fault\n"));
    let done: ExecResponse = sandbox.exec(json!({"command": "kill -9 $$", "shell": true})).await.ok(200);
    assert_eq!(done.exit_code, 128 + 9);
    let bytes = sandbox.run(&["printf", "a\\377b"]).await;
    assert_eq!(bytes.stdout, "a\u{fffd}b");

    // Folder and user.
    assert_eq!(sandbox.sh("pwd; id -u").await, "/workspace\n0");
    assert_eq!(sandbox.sh_with("pwd", json!({"cwd": "/www"})).await, "/www");
    for (user, expected) in [("app", "1000 1000 1000 2000"), ("1000:2000", "1000 2000 2000"), ("4321", "4321 0 0")] {
        let ids = sandbox.sh_with("echo $(id -u) $(id -g) $(id -G)", json!({"user": user, "cwd": "/"})).await;
        assert_eq!(ids, expected, "{user}");
    }

    // What cannot be run says so.
    for (request, status, code) in [
        (json!({"command": "no-such-program"}), 502, "exec_failed"),
        (json!({"command": "/etc/passwd"}), 502, "exec_failed"),
        (json!({"command": "true", "user": "nobody-here"}), 400, "invalid_request"),
        (json!({"command": "true", "user": "app:no-such-group"}), 400, "invalid_request"),
        (json!({"command": "true", "cwd": "/no/such/folder"}), 400, "invalid_request"),
        (json!({"command": "true", "cwd": "relative"}), 400, "invalid_request"),
        (json!({"command": ""}), 400, "invalid_request"),
        (json!({"command": "true", "args": ["a\u{0}b"]}), 400, "invalid_request"),
        (json!({"command": "true", "timeout_secs": 0}), 400, "invalid_request"),
        (json!({"command": "true", "envs": {"A=B": "x"}}), 400, "invalid_request"),
    ] {
        sandbox.exec(request).await.refused(status, code);
    }

    // A command that does not end is ended, with all that it started.
    let asked = Instant::now();
    let endless = json!({"command": "sleep 7777 & sleep 8888", "shell": true, "timeout_secs": 1});
    sandbox.exec(endless).await.refused(504, "exec_timeout");
    assert!(asked.elapsed().as_secs_f64() >= 1.0 && asked.elapsed().as_secs() < 60, "{:?}", asked.elapsed());
    assert_eq!(sandbox.sh("ps | grep -c -e '[7]777' -e '[8]888'; true").await, "0");

    // Much output, and many at once.
    let megabyte = sandbox.run(&["head", "-c", "1000000", "/dev/zero"]).await;
    assert_eq!((megabyte.exit_code, megabyte.stdout.len()), (0, 1_000_000));
    let commands = (0..8).map(|number| {
        let sandbox = sandbox.clone();
        async move { sandbox.sh(&format!("sleep 0.$((RANDOM % 5)); echo {number}")).await }
    });
    let answers = futures::future::join_all(commands).await;
    assert_eq!(answers, ["0", "1", "2", "3", "4", "5", "6", "7"]);

    // In the background: it answers at once and goes on.
    let request = json!({"command": "until test -e /tmp/go; do sleep 0.1; done; touch /tmp/done; sleep 9999", "shell": true, "background": true});
    let started: ExecResponse = sandbox.exec(request).await.ok(200);
    let pid = started.pid.expect("a pid");
    assert_eq!(sandbox.sh("ls /tmp; touch /tmp/go").await, "");
    crate::fixture::until("the background command goes on", std::time::Duration::from_secs(60), async || {
        sandbox.run(&["test", "-e", "/tmp/done"]).await.exit_code == 0
    })
    .await;
    assert_eq!(sandbox.sh(&format!("test -d /proc/{pid} && echo yes")).await, "yes");

    // Nobody's children are left as zombies.
    sandbox.sh("for i in 1 2 3 4 5; do (sleep 0.1 &) ; done; sleep 0.5").await;
    assert_eq!(sandbox.sh("ps -o stat | grep -c ^Z; true").await, "0");
    service.stop().await;
}
