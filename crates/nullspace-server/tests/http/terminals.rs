//! Terminals over a WebSocket, and the routes beside it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nullspace_api::{ErrorResponseCode, PtySessionInfo};
use nullspace_server::{ConnectionLimits, RequestRate, ServerConfig, SocketLimits};
use serde_json::{Value, json};

use crate::connections::{Server, client, start_with};
use crate::support::commands::{PIECE, PIECES};
use crate::support::{KEY, OTHER_KEY};

const WS: &str = "/v1/sandboxes/sb_1/ws?channel=pty";

async fn server(sockets: SocketLimits) -> Server {
    start_with(ServerConfig { sockets, ..ServerConfig::default() }, ConnectionLimits::default()).await
}

fn output(data: &str) -> Value {
    json!({"type": "pty_output", "id": "a", "session_id": "pty_1", "data": data})
}

#[tokio::test]
async fn a_terminal_is_started_typed_into_resized_and_ends() {
    let server = server(SocketLimits::default()).await;
    let mut socket = server.open(WS, KEY).await.unwrap();
    socket.say(json!({"type": "pty_start", "id": "a", "cols": 80, "rows": 24, "cwd": "/w", "envs": {"A": "1"}})).await;
    let started = json!({"type": "pty_started", "id": "a", "session_id": "pty_1", "pid": 77, "cols": 80, "rows": 24,
        "exec_id": "pty_1"});
    assert_eq!(socket.heard(2).await, [started, output("$ ")]);
    let call = server.fake.last_call();
    assert!(call.contains("cwd: Some(\"/w\")") && call.contains("user: None"), "{call}");
    // By the client's word, by the session, as text and as bytes. A character that is split stays whole.
    socket.say(json!({"type": "pty_input", "id": "a", "session_id": "pty_1", "data": "ls\n"})).await;
    assert_eq!(socket.next().await.unwrap(), output("ls\n"));
    for half in ["4oI=", "rA=="] {
        socket.say(json!({"type": "pty_input", "id": "other", "session_id": "pty_1", "data_base64": half})).await;
    }
    assert_eq!(socket.next().await.unwrap(), output("\u{20ac}"));
    socket.say(json!({"type": "pty_input", "id": "a", "data_base64": "Yf8A"})).await;
    let mut binary = output("a\u{fffd}\0");
    binary["data_base64"] = json!("Yf8A");
    assert_eq!(socket.next().await.unwrap(), binary);
    socket.say(json!({"type": "pty_resize", "id": "a", "session_id": "pty_1", "cols": 132, "rows": 43})).await;
    socket.say(json!({"type": "pty_input", "id": "a", "data": "after"})).await;
    // Orders are obeyed in their order.
    assert_eq!(socket.next().await.unwrap(), output("after"));
    assert_eq!(server.fake.last_call(), "resize Pid(77) 132 x 43");
    socket.say(json!({"type": "pty_input", "id": "a", "data": "exit\n"})).await;
    let exited = json!({"type": "pty_exited", "id": "a", "session_id": "pty_1", "exit_code": 7});
    assert_eq!(socket.next().await.unwrap(), exited);
    // It is not there any more on this socket, which stays good for another one.
    socket.say(json!({"type": "pty_input", "id": "a", "data": "x"})).await;
    assert_eq!(socket.next().await.unwrap()["code"], "not_found");
    socket.say(json!({"type": "pty_connect", "id": "a", "pid": 77})).await;
    let heard = socket.heard(2).await;
    assert_eq!((heard[0]["lost_bytes"].as_u64(), heard[1]["data"].as_str()), (Some(9), Some("kept")));
}

#[tokio::test]
async fn a_lost_terminal_is_found_again_and_killed() {
    let server = server(SocketLimits::default()).await;
    let mut socket = server.open(WS, KEY).await.unwrap();
    socket.say(json!({"type": "pty_start", "id": "a"})).await;
    socket.heard(2).await;
    drop(socket);
    let mut socket = server.open(WS, KEY).await.unwrap();
    socket.say(json!({"type": "pty_connect", "id": "a", "session_id": "pty_1"})).await;
    assert_eq!(socket.heard(2).await[1], output("kept"));
    // A kill overtakes input that nobody reads.
    socket.say(json!({"type": "pty_input", "id": "a", "data": "hang"})).await;
    socket.say(json!({"type": "pty_input", "id": "a", "data": "behind it"})).await;
    socket.say(json!({"type": "pty_kill", "id": "a", "session_id": "pty_1"})).await;
    let exited = json!({"type": "pty_exited", "id": "a", "session_id": "pty_1", "exit_code": 129});
    assert_eq!(socket.next().await.unwrap(), exited);
    assert_eq!(server.fake.last_call(), "kill Pid(77)");
}

#[tokio::test]
async fn what_is_wrong_is_said_and_the_socket_stays() {
    let server = server(SocketLimits { commands: 1, ..SocketLimits::default() }).await;
    let mut socket = server.open(WS, KEY).await.unwrap();
    for (message, code) in [
        (json!({"type": "dance"}), "invalid_request"),
        (json!({"type": "pty_start", "id": "a", "cols": -1}), "invalid_request"),
        (json!({"type": "pty_start", "id": "a", "cols": 1001}), "invalid_request"),
        (json!({"type": "pty_connect", "id": "a"}), "invalid_request"),
        (json!({"type": "pty_connect", "id": "a", "pid": 77, "session_id": "pty_1"}), "invalid_request"),
        (json!({"type": "pty_connect", "id": "a", "pid": 78}), "not_found"),
        (json!({"type": "pty_input", "id": "a", "data": "x"}), "not_found"),
        (json!({"type": "pty_resize", "id": "a", "cols": 80, "rows": 24}), "not_found"),
        (json!({"type": "pty_kill", "id": "a"}), "not_found"),
    ] {
        socket.say(message.clone()).await;
        let said = socket.next().await.unwrap();
        assert_eq!((said["type"].as_str(), said["code"].as_str()), (Some("error"), Some(code)), "{message}: {said}");
    }
    socket.say(json!({"type": "pty_start", "id": "a"})).await;
    socket.heard(2).await;
    for (message, code) in [
        (json!({"type": "pty_start", "id": "a"}), "invalid_request"),
        (json!({"type": "pty_input", "id": "a"}), "invalid_request"),
        (json!({"type": "pty_input", "id": "a", "data_base64": "?"}), "invalid_request"),
        (json!({"type": "pty_input", "id": "a", "data": "stuck"}), "exec_timeout"),
    ] {
        socket.say(message.clone()).await;
        let said = socket.next().await.unwrap();
        assert_eq!((said["id"].as_str(), said["code"].as_str()), (Some("a"), Some(code)), "{message}: {said}");
    }
    // After all of that it works, and a second one does not fit.
    socket.say(json!({"type": "pty_input", "id": "a", "data": "still"})).await;
    assert_eq!(socket.next().await.unwrap(), output("still"));
    socket.say(json!({"type": "pty_connect", "id": "b", "pid": 77})).await;
    assert_eq!(socket.next().await.unwrap()["code"], "rate_limit_exceeded");
}

#[tokio::test]
async fn a_slow_reader_gets_all_and_holds_the_terminal_back() {
    let server = server(SocketLimits::default()).await;
    let mut socket = server.open(WS, KEY).await.unwrap();
    socket.say(json!({"type": "pty_start", "id": "a", "command": "much"})).await;
    assert_eq!(socket.next().await.unwrap()["type"], "pty_started");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let made = server.fake.made.load(Ordering::SeqCst);
    assert!(made < PIECES, "{made} pieces were made for a client that reads nothing");
    let mut got = 0;
    loop {
        let said = socket.next().await.unwrap();
        if said["type"] == "pty_exited" {
            break;
        }
        got += said["data"].as_str().unwrap().len();
    }
    assert_eq!(got, PIECE * PIECES);
}

#[tokio::test]
async fn fast_typing_is_slowed_down_and_not_refused() {
    let rate = RequestRate { per_second: 20, burst: 3 };
    let server = start_with(ServerConfig { rate, ..ServerConfig::default() }, ConnectionLimits::default()).await;
    let mut socket = server.open(WS, KEY).await.unwrap();
    socket.say(json!({"type": "pty_start", "id": "a"})).await;
    socket.heard(2).await;
    let began = Instant::now();
    for _ in 0..10 {
        socket.say(json!({"type": "pty_input", "id": "a", "data": "k"})).await;
    }
    assert!(socket.heard(10).await.iter().all(|said| *said == output("k")));
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_routes_list_show_resize_and_end_terminals() {
    let server = server(SocketLimits::default()).await;
    let send = async |method: &str, path: &str, key: &str, body: Option<Value>| {
        let url = server.url(&format!("/v1/sandboxes/sb_1/pty{path}"));
        let request = client().request(method.parse().unwrap(), url).bearer_auth(key);
        let answer = body.into_iter().fold(request, |request, body| request.json(&body)).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.unwrap_or(Value::Null))
    };
    let (status, list) = send("GET", "", KEY, None).await;
    let expected = json!({"session_id": "pty_1", "pid": 77, "cols": 120, "rows": 30, "exec_id": "pty_1"});
    assert_eq!((status, &list), (200, &json!([expected])));
    let (status, one) = send("GET", "/pty_1", KEY, None).await;
    assert_eq!((status, serde_json::from_value::<PtySessionInfo>(one).unwrap().pid), (200, 77));
    let size = json!({"cols": 90, "rows": 40});
    assert_eq!(send("POST", "/pty_1/resize", KEY, Some(size.clone())).await, (204, Value::Null));
    assert_eq!(server.fake.last_call(), "resize Session(\"pty_1\") 90 x 40");
    assert_eq!(send("DELETE", "/pty_1", KEY, None).await, (204, Value::Null));
    assert_eq!(server.fake.last_call(), "kill Session(\"pty_1\")");
    for (method, path, body) in
        [("GET", "/pty_2", None), ("DELETE", "/pty_2", None), ("POST", "/pty_2/resize", Some(size.clone()))]
    {
        let (status, answer) = send(method, path, KEY, body.clone()).await;
        assert_eq!((status, answer["code"].as_str()), (404, Some("not_found")), "{method} {path}");
        let (status, answer) = send(method, path, OTHER_KEY, body).await;
        assert_eq!((status, answer["code"].as_str()), (404, Some("sandbox_not_found")), "{method} {path}");
    }
    let (status, _) = send("POST", "/pty_1/resize", KEY, Some(json!({"cols": 90}))).await;
    assert_eq!(status, 400);
    let refusal = server.refusal("/v1/sandboxes/sb_2/ws?channel=pty", KEY).await;
    assert_eq!(refusal, (404, ErrorResponseCode::SandboxNotFound));
}
