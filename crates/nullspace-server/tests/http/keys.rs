//! A key that is revoked ends what was begun with it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nullspace_api::TemplateBuildLogKind;
use nullspace_server::{ConnectionLimits, ServerConfig};
use serde_json::json;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::connections::{client, start_with};
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
