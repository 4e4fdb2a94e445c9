//! Pauses, forks, snapshots and timeouts of a sandbox.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request};
use nullspace_api::ErrorResponseCode as Code;
use nullspace_server::ServerConfig;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{Fake, KEY, OTHER_KEY};

/// One answer: status, headers and JSON.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

pub(crate) async fn answer(fake: &Arc<Fake>, request: Request<Body>) -> Answer {
    let response = fake.router(ServerConfig::default()).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = to_bytes(body, 1 << 20).await.unwrap();
    let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

pub(crate) fn request(method: &str, path: &str, key: &str) -> axum::http::request::Builder {
    Request::builder().method(method).uri(path).header("authorization", format!("Bearer {key}"))
}

/// An answer to a request with a JSON body, or without a body when it is null.
pub(crate) async fn send(fake: &Arc<Fake>, method: &str, path: &str, body: Value) -> Answer {
    let mut request = request(method, path, KEY);
    let body = if body.is_null() {
        Body::empty()
    } else {
        request = request.header("content-type", "application/json");
        Body::from(body.to_string())
    };
    answer(fake, request.body(body).unwrap()).await
}

pub(crate) async fn get(fake: &Arc<Fake>, path: &str) -> Answer {
    send(fake, "GET", path, Value::Null).await
}

pub(crate) fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_pause_can_be_resumed_once_and_the_new_one_has_an_id_of_its_own() {
    let fake = Fake::new();
    let paused = send(&fake, "POST", "/v1/sandboxes/sb_1/hibernate", Value::Null).await;
    assert_eq!(paused.status, 200);
    // Published clients reject other keys.
    assert_eq!(keys(&paused.body), ["created_at", "id", "sandbox_id", "size_bytes"]);
    assert_eq!(paused.body["sandbox_id"], "sb_1");
    let snapshot = paused.body["id"].as_str().unwrap();

    let again = send(&fake, "POST", "/v1/sandboxes/sb_1/hibernate", Value::Null).await;
    assert_eq!((again.status, &again.body["code"]), (409, &json!("sandbox_not_ready")));
    let in_use = send(&fake, "DELETE", &format!("/v1/snapshots/{snapshot}"), Value::Null).await;
    assert_eq!((in_use.status, &in_use.body["code"]), (409, &json!("snapshot_in_use")));

    let resumed = send(&fake, "POST", &format!("/v1/sandboxes/{snapshot}/resume"), Value::Null).await;
    assert_eq!(resumed.status, 200);
    assert_eq!(keys(&resumed.body), ["config", "id", "status"]);
    assert_eq!(resumed.body["status"], "running");
    let id = resumed.body["id"].as_str().unwrap();
    assert_ne!(id, "sb_1");
    for over in [snapshot, "sb_1"] {
        let gone = send(&fake, "POST", &format!("/v1/sandboxes/{over}/resume"), Value::Null).await;
        assert_eq!((gone.status, &gone.body["code"]), (404, &json!("snapshot_not_found")));
    }
    assert_eq!(get(&fake, "/v1/sandboxes/sb_1").await.status, 404);
    assert_eq!(get(&fake, &format!("/v1/sandboxes/{id}")).await.status, 200);
    // By the id of the sandbox, too.
    send(&fake, "POST", &format!("/v1/sandboxes/{id}/hibernate"), Value::Null).await;
    assert_eq!(send(&fake, "POST", &format!("/v1/sandboxes/{id}/resume"), Value::Null).await.status, 200);
}

#[tokio::test]
async fn no_body_an_empty_one_and_an_empty_object_are_the_same() {
    for (operation, status) in [("hibernate", 200), ("fork", 201), ("snapshots", 201), ("resume", 200)] {
        for body in [None, Some(""), Some("{}"), Some(" {} "), Some("null"), Some("{\"of_the_future\": 1}")] {
            let fake = Fake::new();
            if operation == "resume" {
                send(&fake, "POST", "/v1/sandboxes/sb_1/hibernate", Value::Null).await;
            }
            let mut request = request("POST", &format!("/v1/sandboxes/sb_1/{operation}"), KEY);
            if body.is_some_and(|body| !body.is_empty()) {
                request = request.header("content-type", "application/json");
            }
            let request = request.body(body.map_or_else(Body::empty, Body::from)).unwrap();
            assert_eq!(answer(&fake, request).await.status, status, "{operation} {body:?}");
        }
        let fake = Fake::new();
        for (media_type, body, status) in [
            ("application/json", "[]", 400),
            ("application/json", "{", 400),
            ("application/json", "3", 400),
            ("text/plain", "{}", 415),
        ] {
            let request = request("POST", &format!("/v1/sandboxes/sb_1/{operation}"), KEY);
            let request = request.header("content-type", media_type).body(Body::from(body)).unwrap();
            assert_eq!(answer(&fake, request).await.status, status, "{operation} {body}");
        }
        // Nothing was done.
        assert_eq!(get(&fake, "/v1/sandboxes/sb_1/metrics").await.status, 200);
        assert_eq!(get(&fake, "/v1/snapshots").await.body, json!([]));
    }
}

#[tokio::test]
async fn the_idempotency_key_of_forks_and_snapshots_goes_on() {
    let fake = Fake::new();
    for (operation, call) in [("fork", "fork_sandbox"), ("snapshots", "create_snapshot"), ("resume", "resume_sandbox")]
    {
        let path = format!("/v1/sandboxes/sb_1/{operation}");
        let request = request("POST", &path, KEY).header("idempotency-key", "i1").body(Body::empty()).unwrap();
        answer(&fake, request).await;
        assert_eq!(fake.last_call(), format!("{call} a sb_1 Some(\"i1\")"));
    }
    let bad = request("POST", "/v1/sandboxes/sb_1/fork", KEY).header("idempotency-key", "a b");
    assert_eq!(answer(&fake, bad.body(Body::empty()).unwrap()).await.status, 400);
}

#[tokio::test]
async fn what_cannot_be_done_now_has_its_code_and_says_when_to_come_back() {
    let fake = Fake::new();
    for (code, status, name, after) in [
        (Code::TransitionInProgress, 409, "transition_in_progress", Some("1")),
        (Code::TransitionConflict, 409, "transition_conflict", None),
        (Code::IncompatibleSnapshot, 409, "incompatible_snapshot", None),
        (Code::RebuildRequired, 409, "rebuild_required", None),
        (Code::SameHostRequired, 409, "same_host_required", None),
        (Code::SnapshotInUse, 409, "snapshot_in_use", None),
        (Code::SnapshotNotFound, 404, "snapshot_not_found", None),
        (Code::QuotaExceeded, 429, "QUOTA_EXCEEDED", Some("1")),
        (Code::CapacityExceeded, 503, "capacity_exceeded", Some("5")),
        (Code::NotImplemented, 501, "not_implemented", None),
    ] {
        for operation in ["hibernate", "fork", "snapshots", "resume"] {
            fake.life.lock().unwrap().fails = Some(code);
            let refused = send(&fake, "POST", &format!("/v1/sandboxes/sb_1/{operation}"), Value::Null).await;
            assert_eq!((refused.status, &refused.body["code"]), (status, &json!(name)), "{operation}");
            let given = refused.headers.get("retry-after").map(|value| value.to_str().unwrap());
            assert_eq!(given, after, "{operation} {name}");
        }
    }
}

#[tokio::test]
async fn another_tenants_sandboxes_and_snapshots_are_not_there() {
    let fake = Fake::new();
    let kept = send(&fake, "POST", "/v1/sandboxes/sb_1/snapshots", Value::Null).await.body;
    let snapshot = kept["id"].as_str().unwrap();
    for (method, path, code) in [
        ("POST", "/v1/sandboxes/sb_1/hibernate".to_owned(), "sandbox_not_found"),
        ("POST", "/v1/sandboxes/sb_1/fork".to_owned(), "sandbox_not_found"),
        ("POST", "/v1/sandboxes/sb_1/snapshots".to_owned(), "sandbox_not_found"),
        ("GET", "/v1/sandboxes/sb_1/metrics".to_owned(), "sandbox_not_found"),
        ("GET", "/v1/sandboxes/sb_1/lifecycle".to_owned(), "sandbox_not_found"),
        ("POST", format!("/v1/sandboxes/{snapshot}/resume"), "snapshot_not_found"),
        ("GET", format!("/v1/snapshots/{snapshot}"), "snapshot_not_found"),
        ("DELETE", format!("/v1/snapshots/{snapshot}"), "snapshot_not_found"),
        ("GET", format!("/v1/snapshots/{snapshot}/lifecycle"), "snapshot_not_found"),
    ] {
        let refused = answer(&fake, request(method, &path, OTHER_KEY).body(Body::empty()).unwrap()).await;
        assert_eq!((refused.status, &refused.body["code"]), (404, &json!(code)), "{method} {path}");
    }
    let timeout = request("POST", "/v1/sandboxes/sb_1/timeout", OTHER_KEY).header("content-type", "application/json");
    let refused = answer(&fake, timeout.body(Body::from("{\"timeout_ms\": 9}")).unwrap()).await;
    assert_eq!((refused.status, &refused.body["code"]), (404, &json!("sandbox_not_found")));
    let none = answer(&fake, request("GET", "/v1/snapshots", OTHER_KEY).body(Body::empty()).unwrap()).await;
    assert_eq!((none.status, none.body), (200, json!([])));
    assert_eq!(get(&fake, &format!("/v1/snapshots/{snapshot}")).await.body, kept);
}

#[tokio::test]
async fn snapshots_are_listed_by_sandbox_and_metadata_and_deleted() {
    let fake = Fake::new();
    let mut ids = Vec::new();
    for metadata in [json!({"for": "tests", "n": 1}), json!({"for": "tests", "n": 2}), json!(null)] {
        let kept = send(&fake, "POST", "/v1/sandboxes/sb_1/snapshots", json!({ "metadata": metadata })).await;
        assert_eq!((kept.status, &kept.body["metadata"]), (201, &metadata));
        assert_eq!(kept.body.as_object().unwrap().contains_key("metadata"), !metadata.is_null());
        ids.push(kept.body["id"].as_str().unwrap().to_owned());
    }
    for (query, found) in [
        ("", vec![2, 1, 0]),
        ("?sandbox_id=sb_1", vec![2, 1, 0]),
        ("?sandbox_id=sb_2", vec![]),
        ("?metadata=%7B%22for%22%3A%22tests%22%7D", vec![1, 0]),
        ("?metadata=%7B%22for%22%3A%22tests%22%2C%22n%22%3A2%7D&sandbox_id=sb_1", vec![1]),
        ("?metadata=%7B%7D", vec![2, 1, 0]),
    ] {
        let listed = get(&fake, &format!("/v1/snapshots{query}")).await.body;
        let listed: Vec<&str> = listed.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
        assert_eq!(listed, found.iter().map(|at| ids[*at].as_str()).collect::<Vec<_>>(), "{query}");
    }
    let path = format!("/v1/snapshots/{}", ids[0]);
    let deleted = send(&fake, "DELETE", &path, Value::Null).await;
    assert_eq!((deleted.status, deleted.body), (204, Value::Null));
    assert_eq!(send(&fake, "DELETE", &path, Value::Null).await.status, 404);
    let gone = get(&fake, &path).await;
    assert_eq!((gone.status, &gone.body["code"]), (404, &json!("snapshot_not_found")));
}

#[tokio::test]
async fn an_egress_policy_is_replaced_by_a_patch() {
    let fake = Fake::new();
    let path = "/v1/sandboxes/sb_1/egress";
    let policy = json!({"mode": "custom", "allow_cidrs": ["1.2.3.4/32"], "deny_cidrs": ["0.0.0.0/0"],
        "rate_limit": {"kbit_per_sec": 1000, "pps": 100, "burst": 5}});
    let set = send(&fake, "PATCH", path, json!({ "egress": policy })).await;
    assert_eq!((set.status, set.body), (200, json!({"sandbox_id": "sb_1", "egress": policy})));
    for wrong in [
        json!({}),
        json!({"egress": null}),
        json!({"egress": {}}),
        json!({"egress": {"mode": "some"}}),
        json!({"egress": {"mode": "custom", "allow_cidrs": "1.1.1.1"}}),
        json!({"egress": {"mode": "allow_all", "rate_limit": {"pps": -1}}}),
    ] {
        let refused = send(&fake, "PATCH", path, wrong.clone()).await;
        assert_eq!((refused.status, &refused.body["code"]), (400, &json!("invalid_request")), "{wrong}");
    }
    let gone = send(&fake, "PATCH", "/v1/sandboxes/sb_9/egress", json!({ "egress": policy })).await;
    assert_eq!((gone.status, &gone.body["code"]), (404, &json!("sandbox_not_found")));
    let others = request("PATCH", path, OTHER_KEY).header("content-type", "application/json");
    let others = answer(&fake, others.body(Body::from(json!({ "egress": policy }).to_string())).unwrap()).await;
    assert_eq!(others.status, 404);
    fake.life.lock().unwrap().fails = Some(nullspace_api::ErrorResponseCode::NotImplemented);
    assert_eq!(send(&fake, "PATCH", path, json!({ "egress": policy })).await.status, 501);
    assert_eq!(send(&fake, "POST", path, json!({ "egress": policy })).await.status, 405);
}

#[tokio::test]
async fn a_timeout_and_the_use_of_a_sandbox_are_told() {
    let fake = Fake::new();
    let path = "/v1/sandboxes/sb_1/timeout";
    let set = send(&fake, "POST", path, json!({"timeout_ms": 9000, "timeout_action": null})).await;
    let expected = json!({"timeout_ms": 9000, "timeout_action": "destroy", "remaining_ms": 9000,
        "timeout_at": "2025-01-31T10:00:00.000000Z"});
    assert_eq!((set.status, set.body), (200, expected));
    let set = send(&fake, "POST", path, json!({"timeout_ms": 1, "timeout_action": "hibernate"})).await;
    assert_eq!((set.status, &set.body["timeout_action"]), (200, &json!("hibernate")));
    for wrong in [json!({}), json!({"timeout_ms": 0}), json!({"timeout_ms": -1}), json!({"timeout_ms": 1.5})] {
        assert_eq!(send(&fake, "POST", path, wrong.clone()).await.status, 400, "{wrong}");
    }
    let used = get(&fake, "/v1/sandboxes/sb_1/metrics").await;
    let expected = json!([{"timestamp": "2025-01-31T10:00:00.000000Z", "cpu_percent": 12.5, "cpu_count": 2,
        "mem_used_bytes": 1, "mem_total_bytes": 2, "disk_used_bytes": 3, "disk_total_bytes": 4,
        "network_rx_bytes": 5, "network_tx_bytes": 6}]);
    assert_eq!((used.status, used.body), (200, expected));
}
