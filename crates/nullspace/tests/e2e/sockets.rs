//! Commands over a WebSocket: followed without loss, left alone, found again, fed and ended.

use std::time::Duration;

use nullspace_api::{ExecResponse, ExecServerMessage, ProcessLogs};
use reqwest::Method;
use serde_json::json;

use crate::fixture::{Image, Registry, Service};

#[tokio::test]
async fn commands_are_followed_left_and_found_again() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let built =
        api.ready(json!({"base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}})).await;
    let sandbox = api.sandbox(built.template()).await;
    let id = sandbox.id.clone();
    let now = Duration::ZERO;

    // Another tenant's is not there, nor is none.
    let other = service.api_of("other");
    assert_eq!(other.socket(&id).await.err(), Some(404));
    assert_eq!(api.socket("sb_0").await.err(), Some(404));

    // As it is asked to, with streams apart, and bytes as they are.
    let mut socket = api.socket(&id).await.expect("a socket");
    let line = "echo \"$1 $GREETING $(pwd) $(id -u)\"; printf 'a\\377\\000b' >&2; exit 7";
    let request = json!({"type": "exec_start", "id": "a", "command": line, "args": ["x  y"], "shell": true,
        "envs": {"GREETING": "hi"}, "cwd": "/www", "user": "app", "timeout_secs": 20});
    let (pid, ..) = socket.started(request).await;
    assert!(pid > 1);
    let ended = socket.end(now).await;
    assert_eq!((String::from_utf8_lossy(&ended.stdout).as_ref(), ended.code), ("x  y hi /www 1000\n", 7));
    assert_eq!(ended.stderr, b"a\xff\0b");

    // What cannot run, and what is no message, is told on the same socket.
    for (message, code) in [
        (json!({"type": "exec_start", "command": "no-such-program"}), "exec_failed"),
        (json!({"type": "exec_start", "command": ""}), "invalid_request"),
        (json!({"type": "exec_start", "command": "true", "timeout_secs": 0}), "invalid_request"),
        (json!({"type": "exec_connect", "pid": 99_999}), "not_found"),
        (json!({"type": "exec_connect"}), "invalid_request"),
    ] {
        socket.say(message.clone()).await;
        match socket.next().await {
            ExecServerMessage::Error { code: told, .. } => assert_eq!(json!(told), code, "{message}"),
            other => panic!("{message}: {other:?}"),
        }
    }

    // Ten megabytes to a slow reader, from the first byte to the last.
    let lines = 200_000;
    let request = json!({"type": "exec_start", "id": "b", "shell": true, "timeout_secs": 300,
        "command": format!("awk 'BEGIN {{ for (i = 1; i <= {lines}; i++) printf \"%050d\\n\", i }}'; echo whole >&2")});
    socket.started(request).await;
    let ended = socket.end(Duration::from_millis(50)).await;
    assert_eq!((ended.stdout.len(), ended.stderr.as_slice(), ended.code), (lines * 51, b"whole\n".as_slice(), 0));
    let in_order = ended
        .stdout
        .chunks(51)
        .zip(1usize..)
        .all(|(line, number)| std::str::from_utf8(line).is_ok_and(|line| line.trim_end().parse() == Ok(number)));
    assert!(in_order, "lines are missing or out of order");

    // A client that goes leaves its command running; it is found again, with what it wrote last.
    let line = "i=0; while read -r word; do i=$((i+1)); echo \"$i $word\"; done";
    let request = json!({"type": "exec_start", "id": "c", "command": line, "shell": true, "timeout_secs": 600});
    let (pid, ..) = socket.started(request).await;
    let stdin = format!("/v1/sandboxes/{id}/processes/{pid}/stdin");
    let feed = async |text: &str| api.post(&stdin, json!({"data": text})).await.status;
    assert_eq!(feed("one\ntwo\n").await, 204);
    assert_eq!(socket.until("2 two\n").await, "1 one\n2 two\n");
    drop(socket);
    assert_eq!(feed("three\n").await, 204);
    let mut socket = api.socket(&id).await.expect("a socket");
    let found = socket.started(json!({"type": "exec_connect", "id": "d", "pid": pid})).await;
    assert_eq!(found, (pid, 0, 0));
    assert_eq!(socket.until("3 three\n").await, "1 one\n2 two\n3 three\n");
    assert_eq!(feed("four\n").await, 204);
    assert_eq!(socket.until("4 four\n").await, "4 four\n");
    assert_eq!(other.post(&stdin, json!({"data": "x"})).await.status, 404);
    let killed = api.post(&format!("/v1/sandboxes/{id}/processes/{pid}/kill"), json!({})).await;
    assert_eq!(killed.status, 204);
    assert_eq!(socket.end(now).await.code, 137);
    api.post(&stdin, json!({"data": "x"})).await.refused(409, "transition_conflict");
    let nobody = format!("/v1/sandboxes/{id}/processes/99999/stdin");
    api.post(&nobody, json!({"data": "x"})).await.refused(404, "not_found");

    // One that nobody follows does not wait for anybody; what is gone of its output is counted.
    let request = json!({"command": "head -c 3000000 /dev/zero; echo end >&2", "shell": true, "background": true});
    let started: ExecResponse = sandbox.exec(request).await.ok(200);
    let pid = started.pid.expect("a pid");
    crate::fixture::until("the unfollowed command ends", Duration::from_secs(60), async || {
        let logs: ProcessLogs = api.get(&format!("/v1/sandboxes/{id}/processes/{pid}/logs")).await.ok(200);
        logs.exit_code == Some(0) && logs.stderr.ends_with("end\n") && logs.stderr.starts_with("[nullspace: the first ")
    })
    .await;
    let (_, lost, _) = socket.started(json!({"type": "exec_connect", "id": "e", "pid": pid})).await;
    let ended = socket.end(now).await;
    assert_eq!((lost + ended.stdout.len() as u64, ended.stderr.as_slice()), (3_000_000, b"end\n".as_slice()));

    // One whose time is over is ended, with all that it started.
    let request = json!({"type": "exec_start", "id": "f", "command": "sleep 7777 & sleep 8888", "shell": true,
        "timeout_secs": 1});
    socket.started(request).await;
    let ended = socket.end(now).await;
    assert_eq!((ended.errors, ended.code), (vec!["exec_timeout".to_owned()], 143));
    assert_eq!(sandbox.sh("ps | grep -c -e '[7]777' -e '[8]888'; true").await, "0");

    // A killed command takes along what it started.
    let request = json!({"type": "exec_start", "id": "g", "command": "sleep 5555 & echo up; wait", "shell": true});
    let (pid, ..) = socket.started(request).await;
    socket.until("up\n").await;
    assert_eq!(api.post(&format!("/v1/sandboxes/{id}/processes/{pid}/kill"), json!({})).await.status, 204);
    assert_eq!(socket.end(now).await.code, 137);
    assert_eq!(sandbox.sh("ps | grep -c '[5]555'; true").await, "0");

    // What was begun with a key ends with it, a command that is waited for too; what others began goes on.
    let second = service.api_of("first");
    let revoked_key = second.key().to_owned();
    let mut revoked = second.socket(&id).await.expect("a socket");
    revoked.started(json!({"type": "exec_start", "id": "r", "command": "sleep", "args": ["600"]})).await;
    let request = second.request(Method::POST, &format!("/v1/sandboxes/{id}/exec"));
    let request = request.json(&json!({"command": "sleep", "args": ["6666"], "timeout_secs": 600}));
    let waited = tokio::spawn(async move { second.send(request).await });
    crate::fixture::until("the command runs", Duration::from_secs(30), async || {
        sandbox.sh("ps | grep -c '[6]666'; true").await == "1"
    })
    .await;
    service.revoke(&revoked_key);
    waited.await.expect("an answer").refused(401, "unauthorized");
    assert_eq!(revoked.closed().await, Some(1008));
    crate::fixture::until("the command ends", Duration::from_secs(30), async || {
        sandbox.sh("ps | grep -c '[6]666'; true").await == "0"
    })
    .await;

    // The sandbox's end is told.
    socket.started(json!({"type": "exec_start", "id": "h", "command": "sleep", "args": ["600"]})).await;
    sandbox.delete().await;
    match socket.next().await {
        ExecServerMessage::Error { code, .. } => assert_eq!(json!(code), "sandbox_not_found"),
        other => panic!("{other:?}"),
    }
    service.stop().await;
}
