//! Lifecycle events over a WebSocket, as the published client follows them.

use std::time::{Duration, Instant};

use nullspace_api::{ErrorResponseCode as Code, LifecycleOperation as Operation};
use nullspace_server::{ConnectionLimits, RequestRate, ServerConfig, SocketLimits};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::connections::{Server, client, start_with};
use crate::sockets::Socket;
use crate::support::events::BEHIND;
use crate::support::{KEY, OTHER_KEY};

const SOON: Duration = Duration::from_secs(30);
const ALL: &str = "/v1/lifecycle/ws";
const OF_ONE: &str = "/v1/sandboxes/sb_1/lifecycle/ws";

async fn server(sockets: SocketLimits) -> Server {
    start_with(ServerConfig { sockets, ..ServerConfig::default() }, ConnectionLimits::default()).await
}

impl Server {
    /// Records events of some sandboxes, one after the other.
    fn happen(&self, sandboxes: &[&str]) {
        for sandbox in sandboxes {
            self.fake.events.record(Operation::Create, sandbox, None, &[("reason", sandbox)]);
        }
    }

    /// Waits until so many subscriptions are followed.
    async fn followed_by(&self, count: usize) {
        let until = Instant::now() + SOON;
        while self.fake.events.followers() != count {
            assert!(Instant::now() < until, "{} follow", self.fake.events.followers());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Socket {
    /// Subscribes. Returns the answer.
    async fn subscribe(&mut self, mut filters: Value) -> Value {
        filters["type"] = json!("subscribe");
        self.say(filters).await;
        self.next().await.unwrap()
    }

    /// The sandboxes of the next events.
    async fn sandboxes(&mut self, count: usize) -> Vec<String> {
        let mut heard = Vec::new();
        for said in self.heard(count).await {
            assert_eq!(said["type"], "event", "{said}");
            heard.push(said["event"]["sandbox_id"].as_str().unwrap().to_owned());
        }
        heard
    }
}

#[tokio::test]
async fn a_subscription_is_confirmed_and_then_told_what_happens() {
    let server = server(SocketLimits::default()).await;
    server.happen(&["sb_0"]);
    let mut socket = server.open(ALL, KEY).await.unwrap();
    // As `Lifecycle.subscribe` of the published client says it: what was before is not told.
    let said = socket.subscribe(json!({"sandbox_id": "sb_1", "operation": "create"})).await;
    assert_eq!(
        said,
        json!({"type": "subscribed", "reconnect_mode": "live_only",
            "subscription": {"audience": "customer", "sandbox_id": "sb_1", "operation": "create"}})
    );
    server.happen(&["sb_2"]);
    server.fake.events.record(Operation::Destroy, "sb_1", None, &[]);
    server.happen(&["sb_1"]);
    let said = socket.next().await.unwrap();
    assert_eq!((said["type"].as_str(), said.as_object().unwrap().len()), (Some("event"), 2));
    let event = &said["event"];
    assert_eq!((&event["sandbox_id"], &event["operation"]), (&json!("sb_1"), &json!("create")));
    assert_eq!(event["occurred_at"], "2023-11-14T22:13:20.000003Z");
    assert_eq!(event["metadata"], json!({"reason": "sb_1"}));
}

#[tokio::test]
async fn the_past_comes_first_and_a_cursor_goes_on_where_the_client_stopped() {
    let server = server(SocketLimits::default()).await;
    server.happen(&["sb_1", "sb_2", "sb_3", "sb_4"]);
    let mut socket = server.open(ALL, KEY).await.unwrap();
    let said = socket.subscribe(json!({"live_only": false, "replay_limit": 2})).await;
    assert_eq!(said["reconnect_mode"], "cursor_replay");
    assert_eq!(socket.sandboxes(2).await, ["sb_3", "sb_4"]);
    server.happen(&["sb_5"]);
    assert_eq!(socket.sandboxes(1).await, ["sb_5"]);

    let cursor = "00000000-0000-7000-8000-000000000001";
    let mut socket = server.open(ALL, KEY).await.unwrap();
    let said = socket
        .subscribe(json!({"live_only": true, "after_event_id": cursor, "replay_limit": 25, "status": "succeeded"}))
        .await;
    assert_eq!(said["reconnect_mode"], "cursor_replay");
    assert_eq!(said["subscription"], json!({"audience": "customer", "status": "succeeded"}));
    assert_eq!(socket.sandboxes(3).await, ["sb_3", "sb_4", "sb_5"]);
    let call = format!("follow_events a after Some({cursor:?}) replay 25");
    assert_eq!(server.fake.last_call(), call);
}

#[tokio::test]
async fn metadata_and_snapshots_filter_and_a_further_subscription_replaces_the_first() {
    let server = server(SocketLimits::default()).await;
    let mut socket = server.open(ALL, KEY).await.unwrap();
    let filters = json!({"metadata": {"reason": "sb_2"}, "audience": "customer"});
    let said = socket.subscribe(filters).await;
    assert_eq!(said["subscription"]["metadata"], json!({"reason": "sb_2"}));
    server.happen(&["sb_1", "sb_2", "sb_3", "sb_2"]);
    assert_eq!(socket.sandboxes(2).await, ["sb_2", "sb_2"]);

    let said = socket.subscribe(json!({"snapshot_id": "snap_1"})).await;
    assert_eq!(said["subscription"], json!({"audience": "customer", "snapshot_id": "snap_1"}));
    server.followed_by(1).await;
    server.happen(&["sb_2"]);
    server.fake.events.record(Operation::SnapshotCreated, "sb_7", Some("snap_1"), &[]);
    assert_eq!(socket.sandboxes(1).await, ["sb_7"]);
}

#[tokio::test]
async fn a_sandboxs_socket_tells_all_that_names_it_also_when_it_is_over() {
    let server = server(SocketLimits::default()).await;
    let paused = client().post(server.url("/v1/sandboxes/sb_1/hibernate")).bearer_auth(KEY).send().await.unwrap();
    let snapshot = paused.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned();
    let mut socket = server.open(OF_ONE, KEY).await.unwrap();
    let said = socket.subscribe(json!({"live_only": false, "replay_limit": 100})).await;
    assert_eq!(said["subscription"], json!({"audience": "customer", "sandbox_id": "sb_1"}));
    assert_eq!(socket.sandboxes(2).await, ["sb_1", "sb_1"]);
    let url = server.url(&format!("/v1/sandboxes/{snapshot}/resume"));
    client().post(url).bearer_auth(KEY).send().await.unwrap();
    let said = socket.next().await.unwrap();
    assert_eq!(said["event"]["operation"], "resume_from_snapshot");
    assert_eq!(said["event"]["source_sandbox_id"], "sb_1");
    // The sandbox is over now, and its events are not.
    let mut late = server.open(OF_ONE, KEY).await.unwrap();
    late.subscribe(json!({"live_only": false, "sandbox_id": "sb_1"})).await;
    assert_eq!(late.heard(3).await.last(), Some(&said));
}

#[tokio::test]
async fn what_is_wrong_is_said_and_the_socket_stays() {
    let server = server(SocketLimits::default()).await;
    let mut socket = server.open(OF_ONE, KEY).await.unwrap();
    for (message, expected) in [
        ("{", "invalid message: "),
        ("[]", "invalid message: "),
        ("{}", "invalid message: missing field `type`"),
        (r#"{"type": "dance"}"#, "invalid message: unknown variant"),
        (r#"{"type": "subscribe", "operation": "dance"}"#, "invalid message: unknown variant"),
        (r#"{"type": "subscribe", "replay_limit": -1}"#, "invalid message: "),
        (r#"{"type": "subscribe", "replay_limit": 1001}"#, "replay_limit must be at most 1000"),
        (r#"{"type": "subscribe", "metadata": ["canary"]}"#, "invalid message: "),
        (r#"{"type": "subscribe", "live_only": "canary"}"#, "invalid message: "),
        (r#"{"type": "subscribe", "audience": "internal"}"#, "audience=internal is not served"),
        (r#"{"type": "subscribe", "sandbox_id": "sb_2"}"#, "this socket is of sandbox sb_1"),
        (r#"{"type": "subscribe", "after_event_id": "x"}"#, "`after_event_id` must be"),
    ] {
        socket.send(Message::text(message)).await;
        let said = socket.next().await.unwrap();
        assert_eq!((&said["type"], &said["code"]), (&json!("error"), &json!("invalid_request")), "{message}: {said}");
        let text = said["message"].as_str().unwrap();
        assert!(text.starts_with(expected) && !text.contains("canary"), "{message}: {text}");
    }
    socket.send(Message::binary(b"\xff".to_vec())).await;
    assert_eq!(socket.next().await.unwrap()["type"], "error");
    assert_eq!(socket.subscribe(json!({"of_the_future": 1})).await["type"], "subscribed");
    // What is wrong ends no subscription.
    assert_eq!(socket.subscribe(json!({"status": "asleep"})).await["type"], "error");
    server.happen(&["sb_1"]);
    assert_eq!(socket.sandboxes(1).await, ["sb_1"]);
}

#[tokio::test]
async fn everything_is_refused_before_the_upgrade_and_places_are_given_back() {
    let limits = SocketLimits { per_sandbox: 1, per_tenant: 2, ..SocketLimits::default() };
    let server = server(limits).await;
    for path in [ALL, OF_ONE] {
        assert_eq!(server.refusal(path, "ns_live_nobody").await, (401, Code::Unauthorized));
        let plain = client().get(server.url(path)).bearer_auth(KEY).send().await.unwrap();
        assert_eq!(plain.status(), 400, "{path}");
    }
    assert_eq!(server.refusal(OF_ONE, OTHER_KEY).await, (404, Code::SandboxNotFound));
    let unknown = server.refusal("/v1/sandboxes/sb_9/lifecycle/ws", KEY).await;
    assert_eq!(unknown, (404, Code::SandboxNotFound));

    let (one, _other) = (server.open(OF_ONE, KEY).await.unwrap(), server.open(ALL, KEY).await.unwrap());
    for path in [ALL, OF_ONE] {
        assert_eq!(server.refusal(path, KEY).await, (429, Code::RateLimitExceeded), "{path}");
    }
    drop(server.open(ALL, OTHER_KEY).await.unwrap());
    drop(one);
    let until = Instant::now() + SOON;
    while server.open(OF_ONE, KEY).await.is_err() {
        assert!(Instant::now() < until, "the place is not given back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn another_tenant_is_told_nothing() {
    let server = server(SocketLimits::default()).await;
    server.happen(&["sb_1"]);
    let mut socket = server.open(ALL, OTHER_KEY).await.unwrap();
    socket.subscribe(json!({"live_only": false, "sandbox_id": "sb_1"})).await;
    server.happen(&["sb_1"]);
    let said = tokio::time::timeout(Duration::from_millis(300), socket.next()).await;
    assert!(said.is_err(), "{said:?}");
}

#[tokio::test]
async fn a_slow_reader_is_told_so_and_its_socket_closed() {
    let server = server(SocketLimits::default()).await;
    let mut socket = server.open(ALL, KEY).await.unwrap();
    socket.subscribe(json!({})).await;
    // More than the kernel's buffers, the queue and the service's buffer hold together.
    let long = "x".repeat(256 << 10);
    for _ in 0..128 {
        server.fake.events.record(Operation::Create, "sb_1", None, &[("note", &long)]);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut heard = 0;
    let error = loop {
        let said = socket.next().await.unwrap();
        if said["type"] == "error" {
            break said;
        }
        heard += 1;
    };
    assert!(heard < 128 - BEHIND, "{heard}");
    assert_eq!(error["code"], "rate_limit_exceeded");
    assert!(error["message"].as_str().unwrap().contains("too slow"), "{error}");
    assert_eq!(socket.next().await, Err(Some(CloseCode::Again)));
    server.followed_by(0).await;
}

#[tokio::test]
async fn who_leaves_or_is_silent_or_wants_nothing_is_let_go_and_a_stopping_service_says_so() {
    let limits = SocketLimits {
        ping: Duration::from_millis(50),
        patience: Duration::from_millis(800),
        idle: Duration::from_millis(400),
        max_message: 1000,
        ..SocketLimits::default()
    };
    let server = server(limits).await;
    let mut quiet = server.open(ALL, KEY).await.unwrap();
    quiet.subscribe(json!({})).await;
    // One that answers pings may be quiet for as long as it likes.
    let more = tokio::time::timeout(Duration::from_millis(1500), quiet.next()).await;
    assert!(more.is_err(), "{more:?}");
    drop(quiet);
    server.followed_by(0).await;
    // Nobody reads from this one, so nobody answers pings.
    let mut silent = server.open(ALL, KEY).await.unwrap();
    silent.subscribe(json!({})).await;
    server.followed_by(0).await;
    drop(silent);
    let mut idle = server.open(OF_ONE, KEY).await.unwrap();
    assert_eq!(idle.next().await, Err(Some(CloseCode::Normal)));
    let mut large = server.open(OF_ONE, KEY).await.unwrap();
    large.say(json!({"type": "subscribe", "metadata": {"a": "x".repeat(2000)}})).await;
    assert_eq!(large.next().await, Err(Some(CloseCode::Size)));

    let mut last = server.open(ALL, KEY).await.unwrap();
    last.subscribe(json!({})).await;
    server.shutdown.cancel();
    assert_eq!(last.next().await, Err(Some(CloseCode::Away)));
    server.task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_revoked_key_ends_its_subscription_and_messages_count_as_requests() {
    let rate = RequestRate { per_second: 1, burst: 3 };
    let config = ServerConfig { key_check: Duration::from_millis(100), rate, ..ServerConfig::default() };
    let server = start_with(config, ConnectionLimits::default()).await;
    let mut socket = server.open(ALL, KEY).await.unwrap();
    assert_eq!(socket.subscribe(json!({})).await["type"], "subscribed");
    // A slow machine may be given another one for each second that it takes.
    let until = Instant::now() + SOON;
    while socket.subscribe(json!({})).await["code"] != "rate_limit_exceeded" {
        assert!(Instant::now() < until, "messages are not counted");
    }
    server.fake.revoked.store(true, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(socket.next().await, Err(Some(CloseCode::Policy)));
    server.followed_by(0).await;
}
