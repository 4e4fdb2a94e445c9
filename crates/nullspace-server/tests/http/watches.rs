//! Watched directories over a WebSocket.

use nullspace_api::ErrorResponseCode;
use nullspace_server::{ConnectionLimits, ServerConfig, SocketLimits};
use serde_json::{Value, json};

use crate::connections::{Server, start_with};
use crate::sockets::Socket;
use crate::support::{KEY, OTHER_KEY};

const WS: &str = "/v1/sandboxes/sb_1/ws";

async fn server(sockets: SocketLimits) -> Server {
    start_with(ServerConfig { sockets, ..ServerConfig::default() }, ConnectionLimits::default()).await
}

fn watch(id: &str, path: &str) -> Value {
    json!({"type": "file_watch", "id": id, "path": path, "user": null, "recursive": true, "timeout_secs": null})
}

/// Hears messages until one of this type.
async fn until(socket: &mut Socket, kind: &str) -> Vec<Value> {
    let mut heard = Vec::new();
    loop {
        let message = socket.next().await.unwrap();
        let last = message["type"] == kind;
        heard.push(message);
        if last {
            return heard;
        }
    }
}

#[tokio::test]
async fn changes_are_told_in_the_clients_words() {
    let server = server(SocketLimits::default()).await;
    let mut socket = server.open(WS, KEY).await.unwrap();
    socket.say(watch("w1", "/workspace")).await;
    assert_eq!(socket.next().await.unwrap(), json!({"type": "file_watch_started", "id": "w1", "path": "/workspace"}));
    let event = |event: &str, name: &str, path: &str| json!({"type": "file_event", "id": "w1", "event": event, "name": name, "path": path});
    assert_eq!(socket.next().await.unwrap(), event("create", "sub/a", "/workspace/sub/a"));
    let mut renamed = event("rename", "b", "/workspace/b");
    renamed["old_path"] = "/workspace/sub/a".into();
    assert_eq!(socket.next().await.unwrap(), renamed);
    assert_eq!(socket.next().await.unwrap(), event("chmod", "b", "/workspace/b"));
    assert_eq!(socket.next().await.unwrap(), event("overflow", "", "/workspace"));
    let call = server.fake.last_call();
    assert!(call.starts_with("watch_dir") && call.ends_with("path: \"/workspace\", user: None } true"), "{call}");

    socket.say(json!({"type": "file_watch_stop", "id": "w1"})).await;
    assert_eq!(socket.next().await.unwrap(), json!({"type": "file_watch_stopped", "id": "w1"}));
    // Its word is free again.
    socket.say(watch("w1", "/quiet")).await;
    assert_eq!(socket.next().await.unwrap()["type"], "file_watch_started");
}

#[tokio::test]
async fn a_watch_ends_when_its_time_is_up_or_its_directory_is_gone() {
    let server = server(SocketLimits::default()).await;
    let mut socket = server.open(&format!("{WS}?channel=files"), KEY).await.unwrap();
    let mut timed = watch("timed", "/quiet");
    timed["timeout_secs"] = 0.05.into();
    socket.say(timed).await;
    let heard = until(&mut socket, "file_watch_stopped").await;
    assert_eq!((heard.len(), heard[1]["id"].as_str()), (2, Some("timed")));
    socket.say(watch("gone", "/gone")).await;
    let heard = until(&mut socket, "error").await;
    assert_eq!(heard[1]["event"], "remove");
    assert_eq!(
        heard[2],
        json!({"type": "error", "id": "gone", "code": "not_found", "message": "`/gone` was removed."})
    );
    socket.say(watch("none", "/none")).await;
    assert_eq!(socket.next().await.unwrap()["message"], "`/none` does not exist.");
}

#[tokio::test]
async fn wrong_messages_are_answered_and_the_socket_goes_on() {
    let server = server(SocketLimits { commands: 2, ..SocketLimits::default() }).await;
    assert_eq!(server.refusal(WS, OTHER_KEY).await, (404, ErrorResponseCode::SandboxNotFound));
    let mut socket = server.open(WS, KEY).await.unwrap();
    socket.say(json!({"type": "exec_start", "id": "a"})).await;
    let heard = socket.next().await.unwrap();
    assert_eq!((heard["type"].as_str(), heard["code"].as_str()), (Some("error"), Some("invalid_request")));
    for (wrong, what) in [(json!(0), "timeout_secs"), (json!(-1.5), "timeout_secs"), (json!(1e9), "timeout_secs")] {
        let mut message = watch("w", "/quiet");
        message["timeout_secs"] = wrong;
        socket.say(message).await;
        let heard = socket.next().await.unwrap();
        assert!(heard["message"].as_str().unwrap().contains(what), "{heard}");
    }
    socket.say(watch(&"x".repeat(257), "/quiet")).await;
    assert!(socket.next().await.unwrap()["message"].as_str().unwrap().contains("longer than 256"));
    for id in ["1", "2"] {
        socket.say(watch(id, "/quiet")).await;
        assert_eq!(socket.next().await.unwrap()["type"], "file_watch_started");
    }
    socket.say(watch("2", "/quiet")).await;
    assert!(socket.next().await.unwrap()["message"].as_str().unwrap().contains("has this id"));
    socket.say(watch("3", "/quiet")).await;
    assert_eq!(socket.next().await.unwrap()["code"], "rate_limit_exceeded");
}
