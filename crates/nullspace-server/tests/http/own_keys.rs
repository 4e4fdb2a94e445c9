//! API keys over the API, and keys that may only read.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request};
use nullspace_server::ServerConfig;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::keys::{KEY_UUID, NEW_KEY};
use crate::support::{Fake, KEY, OTHER_KEY, READ_KEY};

async fn ask(fake: &Arc<Fake>, key: &str, method: &str, path: &str, body: Value) -> (u16, HeaderMap, Value) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json");
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let response = fake.router(ServerConfig::default()).oneshot(request.body(body).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    (parts.status.as_u16(), parts.headers, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn a_key_is_shown_once_and_kept_by_nobody() {
    let fake = Fake::new();
    let request = json!({"name": "ci", "scope": "read", "expires_at": "2030-01-01T00:00:00Z"});
    let (status, headers, answer) = ask(&fake, KEY, "POST", "/v1/keys", request).await;
    assert_eq!((status, &answer["key"], &answer["id"]), (201, &json!(NEW_KEY), &json!(KEY_UUID)));
    assert_eq!((&answer["scope"], &answer["expires_at"]), (&json!("read"), &json!("2030-01-01T00:00:00.000000Z")));
    assert_eq!(headers["cache-control"], "no-store");
    let (status, _, answer) = ask(&fake, KEY, "GET", "/v1/keys", Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(answer[0]["id"], KEY_UUID);
    assert!(!answer.to_string().contains(NEW_KEY));

    let path = format!("/v1/keys/{KEY_UUID}");
    let (status, headers, answer) = ask(&fake, KEY, "POST", &format!("{path}/rotate"), json!({"grace_secs": 60})).await;
    assert_eq!(
        (status, &answer["key"], &headers["cache-control"]),
        (201, &json!(NEW_KEY), &"no-store".parse().unwrap())
    );
    assert!(fake.last_call().contains("grace_secs: Some(60)"), "{}", fake.last_call());
    let (status, _, answer) = ask(&fake, OTHER_KEY, "DELETE", &path, Value::Null).await;
    assert_eq!((status, answer), (200, json!({"success": true})));
    // Whose keys they are is the service's to know: the caller is told to it.
    assert_eq!(fake.last_call(), format!("revoke_key b {KEY_UUID}"));
    for (method, path) in [("DELETE", "/v1/keys/none"), ("POST", "/v1/keys/none/rotate")] {
        let (status, _, answer) = ask(&fake, KEY, method, path, json!({})).await;
        assert_eq!((status, &answer["code"]), (404, &json!("not_found")), "{method} {path}");
    }
}

#[tokio::test]
async fn a_key_that_may_only_read_does_nothing_else() {
    let fake = Fake::new();
    for path in ["/v1/templates", "/v1/sandboxes", "/v1/sandboxes/sb_1", "/v1/keys", "/v1/sandboxes/sb_1/processes"] {
        for method in ["GET", "HEAD"] {
            let (status, _, _) = ask(&fake, READ_KEY, method, path, Value::Null).await;
            assert_eq!(status, 200, "{method} {path}");
        }
    }
    // What listens on a sandbox's ports does more than read.
    for (key, shown) in [(KEY, true), (READ_KEY, false)] {
        let (_, _, answer) = ask(&fake, key, "GET", "/v1/sandboxes/sb_1", Value::Null).await;
        assert_eq!(answer.to_string().contains("canary-traffic"), shown, "{answer}");
    }
    let calls = fake.calls.lock().unwrap().len();
    for (method, path) in [
        ("POST", "/v1/sandboxes"),
        ("DELETE", "/v1/sandboxes/sb_1"),
        ("POST", "/v1/sandboxes/sb_1/exec"),
        ("POST", "/v1/sandboxes/sb_1/files/read"),
        ("PUT", "/v1/sandboxes/sb_1/file?path=/a"),
        ("POST", "/v1/sandboxes/sb_1/files/download-url"),
        ("POST", "/v1/keys"),
        ("PATCH", "/v1/lifecycle/webhooks/x"),
        ("OPTIONS", "/v1/keys"),
        ("GET", "/v1/sandboxes/sb_1/ports/80/preview-url"),
        ("POST", "/v1/templates/refs/x"),
        ("POST", "/v1/nothing"),
    ] {
        let (status, _, answer) = ask(&fake, READ_KEY, method, path, json!({})).await;
        assert_eq!((status, &answer["code"]), (403, &json!("unauthorized")), "{method} {path}");
    }
    // Commands travel over WebSockets, which begin as a GET.
    for path in ["/v1/sandboxes/sb_1/ws?channel=exec", "/v1/lifecycle/ws"] {
        let request = Request::builder()
            .uri(path)
            .header("authorization", format!("Bearer {READ_KEY}"))
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(Body::empty())
            .unwrap();
        let response = fake.router(ServerConfig::default()).oneshot(request).await.unwrap();
        assert_eq!(response.status(), 403, "{path}");
    }
    assert_eq!(fake.calls.lock().unwrap().len(), calls, "something reached the service");
}
