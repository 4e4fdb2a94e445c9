//! Lifecycle events as their owner meets them: listed, over a WebSocket, and sent to webhooks.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use nullspace_api::{
    LifecycleEventInfo, LifecycleEventListResponse, LifecycleServerMessage, LifecycleWebhookDeliveryDetail,
    LifecycleWebhookDeliveryInfo, LifecycleWebhookDeliveryStatus, LifecycleWebhookInfo,
};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::fixture::{Api, Image, Registry, Service, until};

const SECRET: &str = "a secret between the service and its receiver";
/// What a loaded machine under software emulation may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request to a receiver.
#[derive(Debug, Clone)]
struct Arrived {
    head: Vec<String>,
    body: Vec<u8>,
}

impl Arrived {
    fn header(&self, name: &str) -> &str {
        let found = self.head.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        found.unwrap_or_else(|| panic!("{name} in {:?}", self.head))
    }

    /// The event, if the request is signed as documented.
    fn event(&self) -> LifecycleEventInfo {
        let time = self.header("x-nullspace-timestamp");
        let signed = [time.as_bytes(), b".", &self.body].concat();
        let expected = format!("t={time},v1={}", hex::encode(hmac(SECRET.as_bytes(), &signed)));
        assert_eq!(self.header("x-nullspace-signature"), expected);
        let event: LifecycleEventInfo = serde_json::from_slice(&self.body).expect("an event");
        assert_eq!(self.header("x-nullspace-event-id"), event.id);
        event
    }
}

/// HMAC-SHA256 as RFC 2104 has it, for keys that are no longer than a block.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let pad = |with: u8| -> Vec<u8> {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block.to_vec()
    };
    let inner = Sha256::digest([pad(0x36), text.to_vec()].concat());
    Sha256::digest([pad(0x5c), inner.to_vec()].concat()).to_vec()
}

/// A receiver of webhooks that keeps what arrives. It answers 200 to everything.
fn receive(listener: TcpListener) -> Arc<Mutex<Vec<Arrived>>> {
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&arrived);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut head = Vec::new();
                loop {
                    let mut line = String::new();
                    if stream.read_line(&mut line).await.expect("a line") == 0 {
                        return;
                    }
                    if line.trim_end().is_empty() {
                        break;
                    }
                    head.push(line.trim_end().to_owned());
                }
                let mut request = Arrived { head, body: Vec::new() };
                request.body = vec![0; request.header("content-length").parse().expect("a length")];
                stream.read_exact(&mut request.body).await.expect("a body");
                kept.lock().unwrap().push(request);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                stream.write_all(answer).await.expect("answer");
            });
        }
    });
    arrived
}

async fn webhook(api: &Api, port: u16, operations: Value) -> LifecycleWebhookInfo {
    let request = json!({
        "url": format!("http://127.0.0.1:{port}/in"), "operations": operations, "signing_secret": SECRET,
    });
    api.post("/v1/lifecycle/webhooks", request).await.ok(201)
}

/// Operations and statuses of events.
fn told(events: &[LifecycleEventInfo]) -> Vec<String> {
    let word = |value: Value| value.as_str().expect("a word").to_owned();
    let told = events.iter().map(|event| (json!(event.operation), json!(event.status)));
    told.map(|(operation, status)| format!("{} {}", word(operation), word(status))).collect()
}

/// Events over a socket.
struct Followed(WebSocketStream<TcpStream>);

impl Followed {
    async fn open(api: &Api, subscribe: Value) -> Followed {
        let address = api.base().strip_prefix("http://").expect("plain HTTP");
        let mut request = format!("ws://{address}/v1/lifecycle/ws").into_client_request().expect("a request");
        request.headers_mut().insert("authorization", format!("Bearer {}", api.key()).parse().expect("a header"));
        let stream = TcpStream::connect(address).await.expect("connect");
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.expect("open a socket");
        socket.send(Message::text(subscribe.to_string())).await.expect("subscribe");
        let mut followed = Followed(socket);
        match followed.next().await {
            LifecycleServerMessage::Subscribed { .. } => followed,
            other => panic!("{other:?}"),
        }
    }

    async fn next(&mut self) -> LifecycleServerMessage {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("a message in time");
            match message.expect("the socket is open").expect("a message") {
                Message::Text(text) => return serde_json::from_str(&text).expect("a message of the service"),
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn events(&mut self, number: usize) -> Vec<LifecycleEventInfo> {
        let mut events = Vec::new();
        while events.len() < number {
            match self.next().await {
                LifecycleServerMessage::Event { event } => events.push(*event),
                other => panic!("{other:?} after {events:?}"),
            }
        }
        events
    }
}

#[tokio::test]
async fn what_a_sandbox_does_is_listed_followed_and_sent_signed_to_webhooks() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::with([("NULLSPACE_PRIVATE_WEBHOOKS", "127.0.0.1".to_owned())]).await;
    let (api, other) = (service.api(), service.api_of("other"));
    let built =
        api.ready(json!({"base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}})).await;

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let hook = webhook(&api, listener.local_addr().expect("a port").port(), json!(["create", "destroy"])).await;
    let arrived = receive(listener);
    assert!(hook.enabled && hook.has_signing_secret && hook.last_delivery_at.is_none(), "{hook:?}");
    let mut followed = Followed::open(&api, json!({"type": "subscribe", "live_only": true})).await;
    let mut of_other = Followed::open(&other, json!({"type": "subscribe", "live_only": true})).await;

    let sandbox = api.sandbox(built.template()).await;
    sandbox.delete().await;
    let events = followed.events(4).await;
    assert_eq!(told(&events), ["create requested", "create succeeded", "destroy requested", "destroy succeeded"]);
    assert!(events.iter().all(|event| event.sandbox_id.as_deref() == Some(&sandbox.id)), "{events:?}");

    // The same in lists, by sandbox and of all, and for a follower that comes later.
    let list = async |api: &Api, path: &str| api.get(path).await.ok::<LifecycleEventListResponse>(200).events;
    assert_eq!(list(&api, &format!("/v1/sandboxes/{}/lifecycle?order=asc", sandbox.id)).await, events);
    let newest = list(&api, &format!("/v1/lifecycle/events?sandbox_id={}&limit=2", sandbox.id)).await;
    assert_eq!(newest, [events[3].clone(), events[2].clone()]);
    let after = json!({"type": "subscribe", "after_event_id": events[1].id});
    assert_eq!(Followed::open(&api, after).await.events(2).await, events[2..]);

    // Each arrives at the receiver, signed, in some order.
    until("all four are delivered", PATIENCE, async || arrived.lock().unwrap().len() >= 4).await;
    let mut sent: Vec<LifecycleEventInfo> = arrived.lock().unwrap().iter().map(Arrived::event).collect();
    sent.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(sent, events);
    let path = format!("/v1/lifecycle/webhooks/{}", hook.id);
    let deliveries = async || api.get(&format!("{path}/deliveries")).await.ok::<Vec<LifecycleWebhookDeliveryInfo>>(200);
    let succeeded = LifecycleWebhookDeliveryStatus::Succeeded;
    let all = async || deliveries().await.iter().all(|delivery| delivery.delivery_status == succeeded);
    until("all deliveries are recorded", PATIENCE, all).await;
    let delivery = deliveries().await.remove(0);
    let detail: LifecycleWebhookDeliveryDetail = api.get(&format!("{path}/deliveries/{}", delivery.id)).await.ok(200);
    assert_eq!((detail.delivery.attempt_count, detail.attempts.len()), (1, 1));
    assert!(events.contains(&detail.event), "{detail:?}");
    let hook: LifecycleWebhookInfo = api.get(&path).await.ok(200);
    assert_eq!(hook.last_delivery_status, Some(succeeded));

    // Nothing of it is another tenant's.
    assert!(list(&other, "/v1/lifecycle/events").await.is_empty());
    assert_eq!(other.get(&path).await.status, 404);
    assert_eq!(other.delete(&path).await.status, 404);
    let nothing = tokio::time::timeout(Duration::from_millis(200), of_other.next()).await;
    assert!(nothing.is_err(), "{nothing:?}");

    // A webhook that is disabled gets nothing; a deleted one is gone with its deliveries.
    let disable = api.request(Method::PATCH, &path).json(&json!({"enabled": false}));
    let disabled: LifecycleWebhookInfo = api.send(disable).await.ok(200);
    assert!(!disabled.enabled);
    api.sandbox(built.template()).await.delete().await;
    assert_eq!(followed.events(4).await.len(), 4);
    let delivered = deliveries().await.len();
    assert_eq!((arrived.lock().unwrap().len(), delivered), (4, 4));
    assert_eq!(api.delete(&path).await.status, 204);
    assert_eq!(api.get(&format!("{path}/deliveries")).await.status, 404);
    let metrics = api.send(api.anonymous(Method::GET, "/metrics")).await.text();
    assert!(metrics.contains("nullspace_lifecycle_deliveries_total{outcome=\"succeeded\"} 4"), "{metrics}");
    service.stop().await;
}

#[tokio::test]
async fn deliveries_wait_for_a_receiver_over_a_restart_and_never_reach_a_closed_address() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let free = TcpListener::bind("127.0.0.1:0").await.expect("listen");
    let address = free.local_addr().expect("an address");
    let mut service = Service::with([("NULLSPACE_PRIVATE_WEBHOOKS", address.to_string())]).await;
    let api = service.api();
    let built =
        api.ready(json!({"base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}})).await;

    let refused = async |url: &str| {
        let request = json!({"url": url, "operations": ["create"], "signing_secret": SECRET});
        api.post("/v1/lifecycle/webhooks", request).await.refused(400, "invalid_request")
    };
    // Another port of the same host, the metadata service of a cloud, the service itself.
    for url in [&format!("http://127.0.0.1:{}/", address.port() ^ 1), "http://169.254.169.254/", service.url()] {
        assert!(refused(url).await.error.contains("private_webhooks"), "{url}");
    }

    // The twenty-first is refused, with the advice to delete one.
    for _ in 0..20 {
        webhook(&api, address.port(), json!(["reconcile"])).await;
    }
    let request = json!({"url": "https://example.com/", "operations": ["create"], "signing_secret": SECRET});
    api.post("/v1/lifecycle/webhooks", request).await.refused(429, "QUOTA_EXCEEDED");
    let first = api.get("/v1/lifecycle/webhooks").await.ok::<Vec<LifecycleWebhookInfo>>(200).remove(0);
    assert_eq!(api.delete(&format!("/v1/lifecycle/webhooks/{}", first.id)).await.status, 204);

    // The receiver is down, and the service restarts before it is back.
    drop(free);
    let hook = webhook(&api, address.port(), json!(["create"])).await;
    let sandbox = api.sandbox(built.template()).await;
    sandbox.delete().await;
    let path = format!("/v1/lifecycle/webhooks/{}/deliveries", hook.id);
    let failed = async || {
        let deliveries = api.get(&path).await.ok::<Vec<LifecycleWebhookDeliveryInfo>>(200);
        deliveries.len() == 2 && deliveries.iter().all(|delivery| delivery.last_error.is_some())
    };
    until("both attempts have failed", PATIENCE, failed).await;
    service.stop().await;
    service.restart().await;
    let arrived = receive(TcpListener::bind(address).await.expect("listen again"));
    until("both events arrive", PATIENCE, async || arrived.lock().unwrap().len() >= 2).await;
    let mut sent: Vec<LifecycleEventInfo> = arrived.lock().unwrap().iter().map(Arrived::event).collect();
    sent.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(told(&sent), ["create requested", "create succeeded"]);
    service.stop().await;
}
