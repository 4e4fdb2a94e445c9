//! The egress policy of a sandbox: from its start, changed while it runs, over pauses and forks.

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nullspace_api::SandboxHandle;
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixture::{Api, Image, Registry, Sandbox, Service, until};

/// Counts the bytes that all connections to it send.
struct Sink {
    address: String,
    port: u16,
    received: Arc<AtomicU64>,
}

impl Sink {
    /// Listens on an address of this host that guests may be allowed to reach.
    fn open() -> Sink {
        let probe = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        // Nothing is sent: only a route is looked up.
        probe.connect("192.0.2.99:9").expect("this host has a route");
        let address = match probe.local_addr().expect("an address").ip() {
            IpAddr::V4(address) if !address.is_loopback() => address,
            other => panic!("this host has no address beside {other}"),
        };
        let listener = TcpListener::bind((address, 0)).expect("listen");
        let port = listener.local_addr().expect("its address").port();
        let received = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&received);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(mut stream), counted) = (stream, Arc::clone(&counted)) else { return };
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = std::io::Read::read(&mut stream, &mut buffer) {
                        counted.fetch_add(length as u64, Ordering::SeqCst);
                    }
                });
            }
        });
        Sink { address: address.to_string(), port, received }
    }

    /// Whether a sandbox reaches it.
    async fn is_open_to(&self, sandbox: &Sandbox) -> bool {
        let line =
            format!("nc -w 2 {} {} < /dev/null > /dev/null 2>&1 && echo open || echo closed", self.address, self.port);
        sandbox.sh(&line).await == "open"
    }

    /// Whether bytes arrive.
    async fn flows(&self) -> bool {
        let before = self.received.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.received.load(Ordering::SeqCst) > before
    }
}

async fn update(api: &Api, id: &str, policy: &Value) -> Value {
    let request = api.request(Method::PATCH, &format!("/v1/sandboxes/{id}/egress")).json(&json!({ "egress": policy }));
    api.send(request).await.ok(200)
}

#[tokio::test]
async fn a_policy_narrows_the_network_from_the_start_and_at_once_when_it_changes() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: egress policies need network namespaces, and these need root");
        return;
    }
    let (registry, sink) = (Registry::start(), Sink::open());
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::with([("NULLSPACE_NETWORK_ALLOW", format!("{}:{}", sink.address, sink.port))]).await;
    let api = service.api();
    let built =
        api.ready(json!({"base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}})).await;

    // From the start.
    let closed = json!({"template": built.template(), "network": {"egress": {"mode": "deny_all"}}});
    let sandbox = api.sandbox_with(closed).await;
    assert!(!sink.is_open_to(&sandbox).await, "deny_all");
    update(&api, &sandbox.id, &json!({"mode": "allow_all"})).await;
    assert!(sink.is_open_to(&sandbox).await, "allow_all");

    // At once, for a connection that sends.
    let line = format!(
        "(while echo x; do sleep 0.1; done | nc {} {} > /dev/null 2>&1; touch /cut) > /dev/null 2>&1 &",
        sink.address, sink.port
    );
    sandbox.sh(&line).await;
    until("bytes", Duration::from_secs(60), async || sink.flows().await).await;
    let policy = json!({"mode": "custom", "deny_cidrs": [format!("{}/32", sink.address)]});
    let began = Instant::now();
    let answer = update(&api, &sandbox.id, &policy).await;
    let took = began.elapsed();
    assert_eq!(answer, json!({"sandbox_id": sandbox.id, "egress": policy}));
    assert!(!sink.flows().await, "bytes after the change");
    assert!(took < Duration::from_secs(5), "the change took {took:?}");
    until("the guest's end of the connection", Duration::from_secs(60), async || {
        sandbox.sh("test -e /cut && echo cut || echo open").await == "cut"
    })
    .await;
    assert!(!sink.is_open_to(&sandbox).await);

    // A fork, a pause and a stop of the service keep it.
    let forked: SandboxHandle = api.post(&format!("/v1/sandboxes/{}/fork", sandbox.id), json!({})).await.ok(201);
    assert!(!sink.is_open_to(&api.attach(&forked.id).await).await, "the fork");
    let _: Value = api.delete(&format!("/v1/sandboxes/{}", forked.id)).await.ok(200);
    let _: Value = api.post(&format!("/v1/sandboxes/{}/hibernate", sandbox.id), json!({})).await.ok(200);
    let resumed: SandboxHandle = api.post(&format!("/v1/sandboxes/{}/resume", sandbox.id), json!({})).await.ok(200);
    let sandbox = api.attach(&resumed.id).await;
    assert!(!sink.is_open_to(&sandbox).await, "the resumed one");
    let listed = json!({"mode": "custom", "allow_cidrs": [sink.address], "deny_cidrs": ["0.0.0.0/0"]});
    update(&api, &sandbox.id, &listed).await;
    assert!(sink.is_open_to(&sandbox).await, "an allow list");
    sandbox.delete().await;
    service.stop().await;
}
