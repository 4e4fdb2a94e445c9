//! Commands over a WebSocket.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use base64::Engine;
use futures::{SinkExt, StreamExt};
use nullspace_api::{ErrorResponse, ErrorResponseCode};
use nullspace_server::{ConnectionLimits, RequestRate, ServerConfig, SocketLimits};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};

use crate::connections::{Server, client, start_with};
use crate::support::commands::{PIECE, PIECES};
use crate::support::{KEY, OTHER_KEY};

const SOON: Duration = Duration::from_secs(30);
const WS: &str = "/v1/sandboxes/sb_1/ws?channel=exec";

pub(crate) struct Socket(WebSocketStream<TcpStream>);

async fn server(sockets: SocketLimits) -> Server {
    start_with(ServerConfig { sockets, ..ServerConfig::default() }, ConnectionLimits::default()).await
}

impl Server {
    pub(crate) async fn open(&self, path: &str, key: &str) -> Result<Socket, tungstenite::Error> {
        let mut request = format!("ws://{}{path}", self.address).into_client_request().unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
        let stream = TcpStream::connect(self.address).await.unwrap();
        tokio_tungstenite::client_async(request, stream).await.map(|(socket, _)| Socket(socket))
    }

    pub(crate) async fn socket(&self) -> Socket {
        self.open(WS, KEY).await.unwrap()
    }

    /// The refusal of a socket.
    pub(crate) async fn refusal(&self, path: &str, key: &str) -> (u16, ErrorResponseCode) {
        match self.open(path, key).await {
            Err(tungstenite::Error::Http(answer)) => {
                let body: ErrorResponse = serde_json::from_slice(answer.body().as_ref().unwrap()).unwrap();
                (answer.status().as_u16(), body.code)
            }
            Ok(_) => panic!("{path} was opened"),
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits until nobody follows a command.
    async fn all_let_go(&self) {
        let until = Instant::now() + SOON;
        while self.fake.followed.load(Ordering::SeqCst) > 0 {
            assert!(Instant::now() < until, "a command is still followed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Socket {
    pub(crate) async fn send(&mut self, message: Message) {
        self.0.send(message).await.unwrap();
    }

    pub(crate) async fn say(&mut self, message: Value) {
        self.send(Message::text(message.to_string())).await;
    }

    /// The next message; `None` when the other side has closed, with its code.
    pub(crate) async fn next(&mut self) -> Result<Value, Option<CloseCode>> {
        loop {
            match tokio::time::timeout(SOON, self.0.next()).await.expect("nothing comes") {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(frame))) => return Err(frame.map(|frame| frame.code)),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    pub(crate) async fn heard(&mut self, count: usize) -> Vec<Value> {
        let mut heard = Vec::new();
        for _ in 0..count {
            heard.push(self.next().await.unwrap());
        }
        heard
    }
}

#[tokio::test]
async fn a_command_is_told_from_start_to_end_and_the_next_may_follow() {
    let server = server(SocketLimits::default()).await;
    let mut socket = server.socket().await;
    socket.say(json!({"type": "exec_start", "id": "one", "command": "text", "args": ["x"], "timeout_secs": 9})).await;
    assert_eq!(
        socket.heard(5).await,
        [
            json!({"type": "exec_started", "id": "one", "pid": 42}),
            json!({"type": "exec_stdout", "id": "one", "data": "a", "end": 1}),
            json!({"type": "exec_stderr", "id": "one", "data": "fault\n", "end": 6}),
            json!({"type": "exec_stdout", "id": "one", "data": "\u{20ac}\n", "end": 5}),
            json!({"type": "exec_exit", "id": "one", "pid": 42, "exit_code": 3}),
        ]
    );
    let call = server.fake.last_call();
    assert!(call.contains("args: Some([\"x\"]), timeout_secs: Some(9)"), "{call}");

    socket.say(json!({"type": "exec_connect", "id": "two", "pid": 42})).await;
    let heard = socket.heard(3).await;
    assert_eq!(heard[0], json!({"type": "exec_started", "id": "two", "pid": 42, "lost_stdout_bytes": 1000}));
    assert_eq!((heard[1]["data"].as_str(), heard[1]["end"].as_u64()), (Some("kept\n"), Some(1005)));
    // A client that has lost its connection names what it has.
    for (has, lost, data) in [(990, Some(10), "kept\n"), (1000, None, "kept\n"), (1002, None, "pt\n")] {
        socket.say(json!({"type": "exec_connect", "id": "two", "pid": 42, "stdout_offset": has})).await;
        let heard = socket.heard(3).await;
        assert_eq!(heard[0]["lost_stdout_bytes"].as_u64(), lost, "{has}");
        assert_eq!((heard[1]["data"].as_str(), heard[1]["end"].as_u64()), (Some(data), Some(1005)));
    }

    socket.say(json!({"type": "exec_start", "id": "three", "command": "binary"})).await;
    let heard = socket.heard(4).await;
    let bytes = |message: &Value| {
        base64::engine::general_purpose::STANDARD.decode(message["data_base64"].as_str().unwrap()).unwrap()
    };
    assert_eq!((heard[1]["data"].as_str(), bytes(&heard[1])), (Some("a\u{fffd}\0b"), b"a\xff\0b".to_vec()));
    assert_eq!((heard[2]["data"].as_str(), bytes(&heard[2])), (Some("\u{fffd}"), b"\xe2\x82".to_vec()));

    socket.say(json!({"type": "exec_start", "id": "four", "command": "late"})).await;
    let heard = socket.heard(3).await;
    assert_eq!((heard[1]["type"].as_str(), heard[1]["code"].as_str()), (Some("error"), Some("exec_timeout")));
    assert_eq!((heard[2]["type"].as_str(), heard[2]["exit_code"].as_i64()), (Some("exec_exit"), Some(143)));
}

#[tokio::test]
async fn what_is_wrong_is_said_and_the_socket_stays() {
    let server = server(SocketLimits { commands: 2, ..SocketLimits::default() }).await;
    let mut socket = server.socket().await;
    for (message, expected) in [
        ("not valid json{{{", "invalid message: "),
        (r#"{"type": "dance"}"#, "invalid message: unknown variant"),
        (r#"{"type": "exec_start", "id": "x"}"#, "invalid message: missing field `command`"),
        (r#"{"type": "exec_start", "id": "x", "command": "a", "timeout_secs": "hunter2"}"#, "invalid message: "),
        (r#"{"type": "exec_connect", "id": "x", "pid": -1}"#, "invalid message: "),
        ("[]", "invalid message: "),
    ] {
        socket.0.send(Message::text(message)).await.unwrap();
        let said = socket.next().await.unwrap();
        assert_eq!((said["type"].as_str(), said["code"].as_str()), (Some("error"), Some("invalid_request")), "{said}");
        let text = said["message"].as_str().unwrap();
        assert!(text.starts_with(expected) && !text.contains("hunter2"), "{text}");
    }
    socket.0.send(Message::binary(b"\xff\xfe".to_vec())).await.unwrap();
    assert_eq!(socket.next().await.unwrap()["type"], "error");
    socket.say(json!({"type": "exec_start", "id": "x", "command": "no-such-thing"})).await;
    let said = socket.next().await.unwrap();
    assert_eq!(
        said,
        json!({"type": "error", "id": "x", "code": "exec_failed", "message": "There is no such program."})
    );
    socket.say(json!({"type": "exec_connect", "id": "y", "pid": 9})).await;
    assert_eq!(socket.next().await.unwrap()["code"], "not_found");
    // Several at once, and not too many.
    socket.say(json!({"type": "exec_start", "id": "a", "command": "hang"})).await;
    socket.say(json!({"type": "exec_start", "id": "b", "command": "hang"})).await;
    let heard = socket.heard(4).await;
    assert!(["a", "b"].iter().all(|id| heard.iter().any(|said| said["id"] == *id)), "{heard:?}");
    socket.say(json!({"type": "exec_start", "id": "c", "command": "hang"})).await;
    let said = socket.next().await.unwrap();
    assert_eq!((said["id"].as_str(), said["code"].as_str()), (Some("c"), Some("rate_limit_exceeded")));
}

#[tokio::test]
async fn a_sandbox_that_ends_is_told() {
    let server = server(SocketLimits::default()).await;
    let mut socket = server.socket().await;
    socket.say(json!({"type": "exec_start", "id": "x", "command": "ended"})).await;
    let heard = socket.heard(3).await;
    assert_eq!((heard[2]["type"].as_str(), heard[2]["code"].as_str()), (Some("error"), Some("sandbox_not_found")));
}

#[tokio::test]
async fn a_slow_reader_gets_all_and_holds_the_command_back() {
    let server = server(SocketLimits::default()).await;
    let mut socket = server.socket().await;
    socket.say(json!({"type": "exec_start", "id": "x", "command": "much"})).await;
    assert_eq!(socket.next().await.unwrap()["type"], "exec_started");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let made = server.fake.made.load(Ordering::SeqCst);
    assert!(made < PIECES, "{made} pieces were made for a client that reads nothing");
    let mut got = Vec::new();
    loop {
        let said = socket.next().await.unwrap();
        if said["type"] == "exec_exit" {
            break;
        }
        got.push(said["data"].as_str().unwrap().to_owned());
        if got.len() < 20 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let whole = got.concat();
    assert_eq!(whole.len(), PIECE * PIECES);
    assert!(
        whole
            .as_bytes()
            .chunks(PIECE)
            .enumerate()
            .all(|(at, piece)| piece.iter().all(|b| *b == b'a' + (at % 26) as u8))
    );
}

#[tokio::test]
async fn everything_is_refused_before_the_upgrade() {
    let limits = SocketLimits { per_sandbox: 2, ..SocketLimits::default() };
    let server = server(limits).await;
    let refusal = async |path: &str, key: &str| server.refusal(path, key).await;
    use ErrorResponseCode as Code;
    assert_eq!(refusal(WS, "ns_live_nobody").await, (401, Code::Unauthorized));
    assert_eq!(refusal(WS, OTHER_KEY).await, (404, Code::SandboxNotFound));
    assert_eq!(refusal("/v1/sandboxes/sb_2/ws?channel=exec", KEY).await, (404, Code::SandboxNotFound));
    assert_eq!(refusal("/v1/sandboxes/sb_1/ws?channel=pty", OTHER_KEY).await, (404, Code::SandboxNotFound));
    assert_eq!(refusal("/v1/sandboxes/sb_1/ws?channel=x", KEY).await, (400, Code::InvalidRequest));
    let plain = client().get(server.url(WS)).bearer_auth(KEY).send().await.unwrap();
    assert_eq!(plain.status(), 400);
    assert_eq!(plain.json::<ErrorResponse>().await.unwrap().code, Code::InvalidRequest);

    let (first, _second) = (server.socket().await, server.socket().await);
    assert_eq!(refusal(WS, KEY).await, (429, Code::RateLimitExceeded));
    drop(first);
    let until = Instant::now() + SOON;
    while server.open(WS, KEY).await.is_err() {
        assert!(Instant::now() < until, "the place is not given back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_client_that_leaves_lets_its_commands_go() {
    let server = server(SocketLimits::default()).await;
    let mut socket = server.socket().await;
    socket.say(json!({"type": "exec_start", "id": "x", "command": "hang"})).await;
    socket.heard(2).await;
    assert_eq!(server.fake.followed.load(Ordering::SeqCst), 1);
    socket.0.close(None).await.unwrap();
    server.all_let_go().await;
    // Without a word, too.
    let mut socket = server.socket().await;
    socket.say(json!({"type": "exec_start", "id": "x", "command": "hang"})).await;
    socket.heard(2).await;
    drop(socket);
    server.all_let_go().await;
}

#[tokio::test]
async fn silent_and_stuck_clients_are_let_go_and_idle_sockets_closed() {
    let limits = SocketLimits {
        ping: Duration::from_millis(50),
        // A client of a busy machine answers within this time.
        patience: Duration::from_secs(2),
        idle: Duration::from_millis(400),
        ..SocketLimits::default()
    };
    let server = server(limits).await;
    // One that answers pings may be quiet for as long as its command runs: longer than either limit.
    let mut quiet = server.socket().await;
    quiet.say(json!({"type": "exec_start", "id": "x", "command": "hang"})).await;
    quiet.heard(2).await;
    let more = tokio::time::timeout(Duration::from_secs(3), quiet.next()).await;
    assert!(more.is_err(), "{more:?}");
    drop(quiet);
    server.all_let_go().await;
    // One that answers none is let go: nobody reads from it, so nobody answers.
    let mut silent = server.socket().await;
    silent.say(json!({"type": "exec_start", "id": "x", "command": "hang"})).await;
    silent.heard(2).await;
    // So is one that takes nothing.
    let mut stuck = server.socket().await;
    stuck.say(json!({"type": "exec_start", "id": "x", "command": "much"})).await;
    assert_eq!(stuck.next().await.unwrap()["type"], "exec_started");
    server.all_let_go().await;
    // And one without a command is closed in an orderly way.
    let mut idle = server.socket().await;
    assert_eq!(idle.next().await, Err(Some(CloseCode::Normal)));
}

#[tokio::test]
async fn large_messages_and_a_stopping_service_end_the_socket() {
    let server = server(SocketLimits { max_message: 1000, ..SocketLimits::default() }).await;
    let mut socket = server.socket().await;
    socket.say(json!({"type": "exec_start", "id": "x".repeat(2000), "command": "text"})).await;
    assert_eq!(socket.next().await, Err(Some(CloseCode::Size)));
    let mut socket = server.socket().await;
    socket.say(json!({"type": "exec_start", "id": "x", "command": "hang"})).await;
    socket.heard(2).await;
    server.shutdown.cancel();
    assert_eq!(socket.next().await, Err(Some(CloseCode::Away)));
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn messages_count_as_requests() {
    let rate = RequestRate { per_second: 1, burst: 3 };
    let server = start_with(ServerConfig { rate, ..ServerConfig::default() }, ConnectionLimits::default()).await;
    let mut socket = server.socket().await;
    let mut codes = Vec::new();
    // A slow machine may be given a message more in each second that it takes.
    while codes.len() < 30 && codes.last().is_none_or(|code| *code == "exec_failed") {
        socket.say(json!({"type": "exec_start", "id": "x", "command": "no-such-thing"})).await;
        codes.push(socket.next().await.unwrap()["code"].clone());
    }
    assert!(codes.len() >= 3 && codes.last().is_some_and(|code| *code == "rate_limit_exceeded"), "{codes:?}");
}

#[tokio::test]
async fn stdin_is_written_or_the_reason_told() {
    let server = server(SocketLimits::default()).await;
    let send = async |pid: &str, body: Value| {
        let url = server.url(&format!("/v1/sandboxes/sb_1/processes/{pid}/stdin"));
        let answer = client().post(url).bearer_auth(KEY).json(&body).send().await.unwrap();
        answer.status().as_u16()
    };
    assert_eq!(send("42", json!({"data": "hello\n"})).await, 204);
    assert_eq!(server.fake.last_call(), "stdin of 42: hello\n");
    assert_eq!(send("42", json!({"data": "last\n", "close": true})).await, 204);
    assert_eq!(server.fake.last_call(), "stdin of 42 is closed");
    assert_eq!(send("43", json!({"data": ""})).await, 409);
    assert_eq!(send("44", json!({"data": ""})).await, 404);
    assert_eq!(send("x", json!({"data": ""})).await, 400);
    assert_eq!(send("42", json!({})).await, 400);
}
