//! A key that is revoked ends what was begun with it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nullspace_api::TemplateBuildLogKind;
use nullspace_server::{ConnectionLimits, ServerConfig};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::connections::{client, rest, start_with};
use crate::sockets::Socket;
use crate::support::KEY;

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn sockets_followers_and_commands_end_with_their_key() {
    let config = ServerConfig { key_check: Duration::from_millis(100), ..ServerConfig::default() };
    let server = start_with(config, ConnectionLimits::default()).await;
    server.fake.push(TemplateBuildLogKind::Start, "x");
    let mut socket = server.socket().await;
    socket.say(json!({"type": "exec_start", "id": "one", "command": "hang"})).await;
    socket.heard(2).await;
    let exec = client().post(server.url("/v1/sandboxes/sb_1/exec")).bearer_auth(KEY);
    let exec = tokio::spawn(exec.json(&json!({"command": "hang"})).send());
    let url = server.url("/v1/templates/builds/tb_1/logs?follow=true");
    let mut log = client().get(&url).bearer_auth(KEY).send().await.unwrap();
    assert!(log.chunk().await.unwrap().is_some());
    // Both the socket's command and the other one.
    let until = Instant::now() + SOON;
    while server.fake.calls.lock().unwrap().iter().filter(|call| call.contains("hang")).count() < 2 {
        assert!(Instant::now() < until, "the commands do not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    // While the store cannot say which keys are in force, nothing ends.
    *server.fake.down.lock().unwrap() = true;
    server.fake.revoked.store(true, Ordering::SeqCst);
    let looks = server.fake.looks.load(Ordering::SeqCst);
    let until = Instant::now() + SOON;
    while server.fake.looks.load(Ordering::SeqCst) < looks + 2 {
        assert!(Instant::now() < until, "nobody looks whether the key is in force");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!exec.is_finished() && server.fake.followed.load(Ordering::SeqCst) == 1);

    *server.fake.down.lock().unwrap() = false;
    let end = async {
        assert_eq!(exec.await.unwrap().unwrap().status(), 401);
        while let Ok(Some(_)) = log.chunk().await {}
        loop {
            match socket.next().await {
                Ok(_) => {}
                Err(code) => break assert_eq!(code, Some(CloseCode::Policy)),
            }
        }
        while server.fake.followed.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, end).await.expect("something goes on with a revoked key");
    assert_eq!(client().get(&url).bearer_auth(KEY).send().await.unwrap().status(), 401);
    // Who looks for keys in use does so only while some are.
    let until = Instant::now() + SOON;
    loop {
        let looks = server.fake.looks.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(500)).await;
        if server.fake.looks.load(Ordering::SeqCst) == looks {
            break;
        }
        assert!(Instant::now() < until, "it goes on looking for nobody");
    }
}

/// Asks for the end of something that lasts, from a task of its own.
fn ends(what: &'static str, mut socket: Socket) -> JoinHandle<&'static str> {
    tokio::spawn(async move {
        loop {
            match socket.next().await {
                Ok(_) => {}
                Err(code) => {
                    assert_eq!(code, Some(CloseCode::Policy), "{what}");
                    return what;
                }
            }
        }
    })
}

#[tokio::test]
async fn terminals_watches_events_downloads_and_uploads_end_with_their_key() {
    let config = ServerConfig { key_check: Duration::from_millis(100), ..ServerConfig::default() };
    let server = start_with(config, ConnectionLimits::default()).await;
    server.fake.push(TemplateBuildLogKind::Start, "x");
    let of_sandbox = "/v1/sandboxes/sb_1/ws?channel=";

    let mut terminal = server.open(&format!("{of_sandbox}pty"), KEY).await.unwrap();
    terminal.say(json!({"type": "pty_start", "id": "a"})).await;
    assert_eq!(terminal.heard(2).await[0]["type"], "pty_started");
    let mut typing = server.open(&format!("{of_sandbox}pty"), KEY).await.unwrap();
    typing.say(json!({"type": "pty_connect", "id": "a", "session_id": "pty_1"})).await;
    typing.heard(2).await;
    // Input that nobody reads holds the socket's orders up.
    typing.say(json!({"type": "pty_input", "id": "a", "data": "hang"})).await;
    let mut watch = server.open(&format!("{of_sandbox}files"), KEY).await.unwrap();
    watch.say(json!({"type": "file_watch", "id": "w", "path": "/quiet", "recursive": true})).await;
    assert_eq!(watch.next().await.unwrap()["type"], "file_watch_started");
    let mut sockets = vec![("a terminal", terminal), ("a terminal with stuck input", typing), ("a watch", watch)];
    for (what, path) in [("all events", "/v1/lifecycle/ws"), ("a sandbox's events", "/v1/sandboxes/sb_1/lifecycle/ws")]
    {
        let mut events = server.open(path, KEY).await.unwrap();
        events.say(json!({"type": "subscribe"})).await;
        assert_eq!(events.next().await.unwrap()["type"], "subscribed");
        sockets.push((what, events));
        sockets.push((what, server.open(path, KEY).await.unwrap()));
    }
    for channel in ["exec", "pty", "files"] {
        sockets.push(("a silent socket", server.open(&format!("{of_sandbox}{channel}"), KEY).await.unwrap()));
    }
    // One body that does not end, and one that is not even begun.
    let mut bodies = Vec::new();
    for (method, path, begun) in [
        ("PUT", "/v1/sandboxes/sb_1/file?path=/w/a", "1\r\nx\r\n"),
        ("POST", "/v1/templates/builds", ""),
        ("POST", "/v1/sandboxes/sb_1/exec", "1\r\n{\r\n"),
    ] {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-type: application/json\r\n\
             transfer-encoding: chunked\r\nconnection: close\r\n\r\n{begun}"
        );
        bodies.push((path, server.raw(&head).await));
    }
    let log = format!(
        "GET /v1/templates/builds/tb_1/logs?follow=true HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n\r\n"
    );
    let mut log = server.raw(&log).await;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("id: 0\n") {
        assert!(log.read_buf(&mut seen).await.unwrap() > 0);
    }

    let sockets: Vec<_> = sockets.into_iter().map(|(what, socket)| ends(what, socket)).collect();
    // All of them are known to be under way before the key ends.
    let until = Instant::now() + SOON;
    while server.fake.looks.load(Ordering::SeqCst) < 2 {
        assert!(Instant::now() < until, "nobody looks whether the key is in force");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(sockets.iter().all(|socket| !socket.is_finished()));
    server.fake.revoked.store(true, Ordering::SeqCst);
    let end = async {
        for socket in sockets {
            socket.await.unwrap();
        }
        for (path, stream) in bodies {
            let answer = rest(stream).await;
            assert!(answer.starts_with("HTTP/1.1 401 "), "{path}: {answer}");
        }
        while log.read_buf(&mut seen).await.is_ok_and(|count| count > 0) {}
        while server.fake.events.followers() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, end).await.expect("something goes on with a revoked key");
    assert!(!String::from_utf8_lossy(&seen).ends_with("0\r\n\r\n"), "the log was cut off, and does not look complete");
}
