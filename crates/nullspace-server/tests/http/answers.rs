//! Requests that are right: what reaches the service, and what comes back.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use futures::StreamExt;
use nullspace_api::TemplateBuildLogKind::*;
use nullspace_server::ServerConfig;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{Fake, KEY};

async fn send(fake: &Arc<Fake>, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json; charset=utf-8")
        .header("x-request-id", "r1")
        .header("idempotency-key", "i1");
    let response = fake.router(ServerConfig::default()).oneshot(request.body(body).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, 1 << 20).await.unwrap();
    (parts.status, if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() })
}

#[tokio::test]
async fn a_build_is_accepted_with_the_callers_id_and_keys() {
    let fake = Fake::new();
    let body = json!({"name": "app", "base_image": "busybox:1.36", "steps": null, "of_the_future": 1});
    let (status, build) = send(&fake, "POST", "/v1/templates/builds", body).await;
    assert_eq!(status, 202);
    assert_eq!(build["status"], "waiting");
    assert_eq!(build["created_at"], "2025-01-31T10:00:00.000000Z");
    assert!(build.as_object().unwrap().values().all(|value| !value.is_null()), "{build}");
    let call = fake.last_call();
    assert!(call.starts_with("start_build a CreateTemplateRequest { name: Some(\"app\")"), "{call}");
    assert!(
        call.ends_with(
            "RequestContext { request_id: \"r1\", idempotency_key: Some(\"i1\"), refuse_unknown_files: false }"
        ),
        "{call}"
    );
}

#[tokio::test]
async fn a_cancel_may_come_without_a_body() {
    let fake = Fake::new();
    for (body, seen) in [
        (Value::Null, "cancel_build None"),
        (json!({}), "cancel_build None"),
        (json!({"reason": null}), "cancel_build None"),
        (json!({"reason": "enough"}), "cancel_build Some(\"enough\")"),
    ] {
        let (status, snapshot) = send(&fake, "POST", "/v1/templates/builds/tb_1/cancel", body).await;
        assert_eq!((status.as_u16(), &snapshot["build"]["status"]), (200, &json!("cancelled")));
        assert_eq!(fake.last_call(), seen);
    }
}

#[tokio::test]
async fn status_gives_what_the_caller_has_not_seen() {
    let fake = Fake::new();
    for (kind, message) in [(Start, "s"), (Message, "m"), (Message, "n")] {
        fake.push(kind, message);
    }
    for (query, offsets, next) in [("", vec![0, 1, 2], 3), ("?offset=2", vec![2], 3), ("?offset=3", vec![], 3)] {
        let (_, snapshot) = send(&fake, "GET", &format!("/v1/templates/builds/tb_1{query}"), Value::Null).await;
        let seen: Vec<u64> =
            snapshot["entries"].as_array().unwrap().iter().map(|entry| entry["offset"].as_u64().unwrap()).collect();
        assert_eq!((seen, snapshot["next_offset"].as_u64().unwrap()), (offsets, next), "{query}");
    }
}

#[tokio::test]
async fn templates_are_a_bare_array_and_fields_picks() {
    let fake = Fake::new();
    let (_, all) = send(&fake, "GET", "/v1/templates", Value::Null).await;
    assert_eq!(all.as_array().unwrap().len(), 1);
    assert_eq!(all[0]["runtime_defaults"], json!({}));
    let (_, picked) = send(&fake, "GET", "/v1/templates?fields=name,%20id,id", Value::Null).await;
    assert_eq!(picked, json!([{"id": "tmpl_1", "name": "app"}]));
    let (_, picked) = send(&fake, "GET", "/v1/templates/tmpl_1?fields=tags", Value::Null).await;
    assert_eq!(picked, json!({"tags": ["default"]}));
    let (status, _) = send(&fake, "GET", "/v1/templates/ns%2Fapp%3Av1", Value::Null).await;
    assert_eq!((status.as_u16(), fake.last_call().as_str()), (200, "get_template ns/app:v1"));
    let (status, body) = send(&fake, "DELETE", "/v1/templates/tmpl_1", Value::Null).await;
    assert_eq!((status.as_u16(), body), (204, Value::Null));
}

#[tokio::test]
async fn sandboxes_are_a_bare_array_or_a_page() {
    let fake = Fake::new();
    let (_, all) = send(&fake, "GET", "/v1/sandboxes?fields=id", Value::Null).await;
    assert_eq!(all, json!([{"id": "sb_1"}]));
    let (_, page) = send(&fake, "GET", "/v1/sandboxes?limit=1&fields=id,status", Value::Null).await;
    assert_eq!(page, json!({"items": [{"id": "sb_1", "status": "running"}], "next_token": "t2", "has_next": true}));
    let (_, page) = send(&fake, "GET", "/v1/sandboxes?next_token=t2&fields=id", Value::Null).await;
    assert_eq!(page, json!({"items": [{"id": "sb_1"}], "has_next": false}));

    let query = "state=running,paused&limit=5000&template=app&metadata=%7B%22team%22%3A%22x%22%7D";
    send(&fake, "GET", &format!("/v1/sandboxes?{query}"), Value::Null).await;
    assert_eq!(
        fake.last_call(),
        "SandboxQuery { states: [Running, Paused], limit: Some(1000), next_token: None, template: Some(\"app\"), \
         metadata: {\"team\": String(\"x\")} }"
    );
}

#[tokio::test]
async fn what_the_published_client_sends_makes_a_sandbox() {
    let fake = Fake::new();
    let body = json!({
        "template": "app", "vcpus": 2, "memory_mb": 512, "timeout_ms": 300000, "envs": {"A": "1"}, "metadata": {},
        "network": null, "internet_access": true, "cwd": null, "desktop": null, "volumes": null, "auto_resume": false,
    });
    let (status, sandbox) = send(&fake, "POST", "/v1/sandboxes", body).await;
    assert_eq!(status, 201);
    assert_eq!(sandbox["config"], json!({"vcpus": 1, "memory_mb": 512}));
    assert_eq!(sandbox["timeout_ms"], 300_000);
    let (_, sandbox) = send(&fake, "POST", "/v1/sandboxes", json!({})).await;
    assert_eq!(sandbox["template"], "base");
    let (_, info) = send(&fake, "GET", "/v1/sandboxes/sb_1", Value::Null).await;
    assert_eq!(info["id"], "sb_1");
    let (status, ended) = send(&fake, "DELETE", "/v1/sandboxes/sb_1", Value::Null).await;
    assert_eq!((status.as_u16(), ended), (200, json!({"id": "sb_1", "status": "destroyed"})));

    let (_, result) =
        send(&fake, "POST", "/v1/sandboxes/sb_1/exec", json!({"command": "ls", "user": "app", "shell": true})).await;
    assert_eq!(result, json!({"exit_code": 0, "stdout": "out\n", "stderr": "", "pid": 7}));
    assert!(fake.last_call().contains("user: Some(\"app\")"), "{}", fake.last_call());
    let (_, processes) = send(&fake, "GET", "/v1/sandboxes/sb_1/processes", Value::Null).await;
    assert_eq!(processes, json!([{"pid": 7, "command": "python3 -m http.server", "running": true}]));
}

fn stream(fake: &Arc<Fake>, query: &str, config: ServerConfig) -> impl Future<Output = axum::response::Response> {
    let request = Request::builder()
        .uri(format!("/v1/templates/builds/tb_1/logs{query}"))
        .header("authorization", format!("Bearer {KEY}"));
    let router = fake.router(config);
    async move { router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap() }
}

async fn text(fake: &Arc<Fake>, query: &str) -> String {
    let response = stream(fake, query, ServerConfig::default()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn the_event_stream_is_byte_for_byte_what_clients_parse() {
    let fake = Fake::new();
    fake.push(Start, "build accepted");
    fake.push(Message, "two\nlines, \"quotes\", \u{2028} and \u{1F980}\r\n");
    fake.push(End, "ready");
    insta::assert_snapshot!(text(&fake, "?follow=true").await);
    assert_eq!(text(&fake, "").await, text(&fake, "?offset=0&follow=true").await, "replays are identical");
}

#[tokio::test]
async fn a_stream_starts_where_it_is_told_to() {
    let fake = Fake::new();
    for (kind, message) in [(Start, "0"), (Message, "1"), (Message, "2"), (End, "3")] {
        fake.push(kind, message);
    }
    for (query, offset) in [("", 0), ("?offset=2", 2), ("?cursor=3", 3), ("?offset=1&cursor=3", 1), ("?offset=9", 9)] {
        text(&fake, query).await;
        assert_eq!(fake.last_call(), format!("build_logs from {offset} follow false"), "{query}");
    }
    let request = Request::builder()
        .uri("/v1/templates/builds/tb_1/logs")
        .header("authorization", format!("Bearer {KEY}"))
        .header("last-event-id", "1");
    fake.router(ServerConfig::default()).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(fake.last_call(), "build_logs from 2 follow false");
}

#[tokio::test]
async fn a_follower_sees_the_past_then_the_present_and_the_stream_ends_with_the_build() {
    const HEARTBEAT: &str = ": heartbeat\n\n";
    let fake = Fake::new();
    fake.push(Start, "0");
    fake.push(Message, "1");
    let config = ServerConfig { heartbeat: Duration::from_millis(40), ..ServerConfig::default() };
    let mut body = stream(&fake, "?follow=true", config).await.into_body().into_data_stream();
    let mut chunk = async || body.next().await.map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap());

    let past = chunk().await.unwrap();
    assert!(past.starts_with("id: 0\n") && past.contains("\n\nid: 1\nevent: log\n"), "{past}");
    assert_eq!(chunk().await.unwrap(), HEARTBEAT, "nothing to say, still alive");
    // A slow machine may hear more of them at any time.
    let mut next = async || {
        loop {
            let said = chunk().await;
            if said.as_deref() != Some(HEARTBEAT) {
                return said;
            }
        }
    };
    fake.push(Message, "2");
    assert!(next().await.unwrap().starts_with("id: 2\nevent: log\ndata: {\"build_id\":\"tb_1\""));
    fake.push(Cancelled, "3");
    fake.push(Message, "never sent");
    assert!(next().await.unwrap().starts_with("id: 3\n"));
    assert_eq!(next().await, None);
}

#[tokio::test]
async fn ten_thousand_entries_arrive_in_order_and_whole() {
    let fake = Fake::new();
    fake.push(Start, "0");
    let response = stream(&fake, "?follow=true", ServerConfig::default()).await;
    let writer = tokio::spawn({
        let fake = Arc::clone(&fake);
        async move {
            for offset in 1..10_000 {
                fake.push(Message, &offset.to_string());
                if offset % 97 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            fake.push(End, "");
        }
    });
    let bytes = to_bytes(response.into_body(), 64 << 20).await.unwrap();
    writer.await.unwrap();
    let frames = std::str::from_utf8(&bytes).unwrap().split_terminator("\n\n");
    let ids: Vec<String> = frames.map(|frame| frame.lines().next().unwrap().to_owned()).collect();
    let expected: Vec<String> = (0..=10_000).map(|offset| format!("id: {offset}")).collect();
    assert!(ids == expected, "{} frames", ids.len());
}

#[tokio::test]
async fn a_stream_that_fails_breaks_off_after_what_it_had() {
    let fake = Fake::new();
    for kind in [Start, Message, Message] {
        fake.push(kind, "x");
    }
    *fake.break_after.lock().unwrap() = Some(2);
    let mut body = stream(&fake, "?follow=true", ServerConfig::default()).await.into_body().into_data_stream();
    let first = body.next().await.unwrap().unwrap();
    assert!(std::str::from_utf8(&first).unwrap().contains("id: 1\n"));
    assert!(body.next().await.unwrap().is_err());
    assert!(body.next().await.is_none());
}

#[test]
fn every_field_of_a_sandbox_can_be_picked_and_every_documented_field_of_a_template() {
    let document = nullspace_server::openapi();
    let fields = |schema: &str| -> Vec<String> {
        document["components"]["schemas"][schema]["properties"].as_object().unwrap().keys().cloned().collect()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let fake = Fake::new();
    for field in fields("SandboxInfo") {
        let (status, body) =
            runtime.block_on(send(&fake, "GET", &format!("/v1/sandboxes/sb_1?fields={field}"), Value::Null));
        assert_eq!(status, 200, "{field}: {body}");
    }
    for field in fields("TemplateInfo").into_iter().filter(|field| field != "runtime_defaults") {
        let (status, body) =
            runtime.block_on(send(&fake, "GET", &format!("/v1/templates?fields={field}"), Value::Null));
        assert_eq!(status, 200, "{field}: {body}");
    }
}
