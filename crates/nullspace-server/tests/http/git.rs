//! Git over HTTP: what arrives, what is answered, and that no credential is shown.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use nullspace_server::ServerConfig;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{Fake, KEY, OTHER_KEY};

async fn ask(fake: &Arc<Fake>, key: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
    let request = Request::builder()
        .method(method)
        .uri(format!("/v1/sandboxes/sb_1/git{path}"))
        .header("authorization", format!("Bearer {key}"))
        .header("content-type", "application/json");
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let response = fake.router(ServerConfig::default()).oneshot(request.body(body).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status.as_u16(), serde_json::from_slice(&to_bytes(body, 1 << 20).await.unwrap()).unwrap())
}

#[tokio::test]
async fn each_operation_arrives_and_is_answered() {
    let fake = Fake::new();
    let sha = "0123456789abcdef0123456789abcdef01234567";
    let commit = json!({
        "sha": sha, "author_name": "A", "author_email": "a@b", "date": "2026-01-02T03:04:05+01:00", "message": "one",
    });
    let status = json!({
        "detached": false, "clean": false, "branch": "main", "ahead": 1,
        "changed": [{"path": "a", "status": "renamed", "staged": true, "unstaged": false, "original_path": "b"}],
    });
    for (method, path, body, answer, noted) in [
        (
            "POST",
            "/clone",
            json!({"url": "https://h/a", "path": "/r", "depth": 1, "branch": null}),
            json!({"path": "/r"}),
            "depth: Some(1)",
        ),
        ("GET", "/status?path=/r", Value::Null, status, "git_status /r"),
        (
            "POST",
            "/add",
            json!({"path": "/r", "files": ["-f", "b"]}),
            json!({"ok": true}),
            "files: Some([\"-f\", \"b\"])",
        ),
        (
            "POST",
            "/commit",
            json!({"path": "/r", "message": "m", "add_all": true}),
            json!({"sha": sha}),
            "add_all: Some(true)",
        ),
        (
            "POST",
            "/push",
            json!({"path": "/r", "set_upstream": true}),
            json!({"summary": "pushed"}),
            "push GitSyncRequest",
        ),
        ("POST", "/pull", json!({"path": "/r", "remote": "up"}), json!({"summary": "pulled"}), "remote: Some(\"up\")"),
        ("GET", "/branch?path=/r", Value::Null, json!({"branches": ["main"]}), "git_branches /r"),
        (
            "POST",
            "/branch",
            json!({"path": "/r", "name": "x", "action": "delete"}),
            json!({"ok": true}),
            "action: Some(Delete)",
        ),
        ("POST", "/checkout", json!({"path": "/r", "ref": "v1"}), json!({"ok": true}), "reference: \"v1\""),
        ("GET", "/log?path=/r&limit=3", Value::Null, json!({"commits": [commit]}), "git_log /r Some(3)"),
    ] {
        let (status, said) = ask(&fake, KEY, method, path, body).await;
        assert_eq!((status, &said), (200, &answer), "{method} {path}");
        assert!(fake.last_call().contains(noted), "{method} {path}: {}", fake.last_call());
    }
}

#[tokio::test]
async fn failures_have_the_status_of_who_can_mend_them() {
    let fake = Fake::new();
    for (path, status, code) in [
        ("/none", 404, "not_found"),
        ("/bare", 409, "file_error"),
        ("/refused", 502, "exec_failed"),
        ("/slow", 504, "exec_timeout"),
    ] {
        let (found, answer) = ask(&fake, KEY, "POST", "/push", json!({"path": path})).await;
        assert_eq!((found, &answer["code"]), (status, &json!(code)), "{path}");
    }
    for (method, path, body) in [
        ("GET", "/status", Value::Null),
        ("GET", "/log?path=/r&limit=many", Value::Null),
        ("POST", "/clone", json!({"url": "https://h/a"})),
        ("POST", "/branch", json!({"path": "/r", "name": "x", "action": "rename"})),
        ("POST", "/push", json!({"path": "/r", "auth": {"kind": "ftp"}})),
    ] {
        let (status, answer) = ask(&fake, KEY, method, path, body).await;
        assert_eq!((status, &answer["code"]), (400, &json!("invalid_request")), "{method} {path}");
    }
    let (status, answer) = ask(&fake, OTHER_KEY, "GET", "/status?path=/r", Value::Null).await;
    assert_eq!((status, &answer["code"]), (404, &json!("sandbox_not_found")));
}

#[tokio::test]
async fn credentials_arrive_and_are_not_shown() {
    let fake = Fake::new();
    let auth = json!({"kind": "https", "username": "u", "password": "canary-password"});
    let (status, answer) = ask(&fake, KEY, "POST", "/push", json!({"path": "/r", "auth": auth})).await;
    assert_eq!((status, answer), (200, json!({"summary": "pushed"})));
    let call = fake.last_call();
    assert!(call.contains("Https") && call.contains("Some([REDACTED])") && !call.contains("canary"), "{call}");
    // Also not when they are in the wrong place.
    let auth = json!({"kind": "https", "username": {"canary": 1}, "password": "canary-password"});
    let (status, answer) = ask(&fake, KEY, "POST", "/pull", json!({"path": "/r", "auth": auth})).await;
    assert!(status == 400 && !answer.to_string().contains("canary"), "{answer}");
}
