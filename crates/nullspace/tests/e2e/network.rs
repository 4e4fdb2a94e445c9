//! Which machines have a way out.

use serde_json::json;

use crate::fixture::{Image, Registry, Sandbox, Service};

#[tokio::test]
async fn without_internet_access_there_is_no_route_and_this_host_is_closed_either_way() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    let request = |internet_access: bool| {
        json!({
            "base_image": registry.reference("box:1"),
            "build_config": {"memory_mib": 192, "internet_access": internet_access},
            "steps": [{"action": "run", "command": "ip route > /step-route"}],
            "start_cmd": "ip route > /route; ip -o -4 addr > /addresses",
        })
    };
    let (open, closed) = tokio::join!(api.ready(request(true)), api.ready(request(false)));
    let default_route = |text: &str| text.lines().any(|line| line.starts_with("default "));

    let sandbox = api.sandbox(open.template()).await;
    assert!(default_route(&sandbox.sh("cat /route").await), "at build: {}", sandbox.sh("cat /route").await);
    assert!(default_route(&sandbox.sh("cat /step-route").await), "in a step");
    assert!(default_route(&sandbox.sh("ip route").await), "in the sandbox: {}", sandbox.sh("ip route").await);
    assert!(!sandbox.sh("cat /etc/resolv.conf").await.is_empty());
    if rustix::process::geteuid().is_root() {
        // The registry listens on this host's loopback: no address of this host leads there.
        let port = registry.address().rsplit_once(':').expect("a port").1;
        let gateway = sandbox.sh("ip route | awk '/^default/ {print $3}'").await;
        for address in [&*gateway, "10.0.2.2", "127.0.0.1"] {
            assert!(!reaches(&sandbox, address, port).await, "{address}:{port} is open");
        }
    }
    // What is open is seen to be open.
    sandbox.sh("(nc -l -p 9999 > /dev/null 2>&1 < /dev/null &); sleep 1").await;
    assert!(reaches(&sandbox, "127.0.0.1", "9999").await);
    sandbox.delete().await;

    // Closed while building says nothing of sandboxes, which have their own switch.
    let sandbox = api.sandbox(closed.template()).await;
    assert!(!default_route(&sandbox.sh("cat /route").await), "at build: {}", sandbox.sh("cat /route").await);
    assert!(!default_route(&sandbox.sh("cat /step-route").await), "in a step");
    sandbox.delete().await;
    let sandbox = api.sandbox_with(json!({"template": open.template(), "internet_access": false})).await;
    let gateway = sandbox.sh("ip route | awk '/^default/ {print $3}'").await;
    for address in ["1.1.1.1", &*gateway].into_iter().filter(|address| !address.is_empty()) {
        assert!(!reaches(&sandbox, address, "53").await, "{address} is open");
    }
    service.stop().await;
}

/// Whether a TCP connection opens.
async fn reaches(sandbox: &Sandbox, address: &str, port: &str) -> bool {
    let tried = format!("nc -w 2 {address} {port} < /dev/null > /dev/null 2>&1 && echo open || echo closed");
    sandbox.sh(&tried).await == "open"
}
