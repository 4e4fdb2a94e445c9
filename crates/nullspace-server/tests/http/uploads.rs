//! Uploads in parts: their requests, and the statuses and details of their refusals.

use std::io;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use nullspace_server::ServerConfig;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{Fake, KEY, OTHER_KEY};

struct Call<'a> {
    method: &'a str,
    path: &'a str,
    key: &'a str,
    headers: &'a [(&'a str, &'a str)],
}

impl<'a> Call<'a> {
    fn new(method: &'a str, path: &'a str) -> Call<'a> {
        Call { method, path, key: KEY, headers: &[] }
    }

    async fn send(self, fake: &Arc<Fake>, body: impl Into<Body>) -> (u16, Value) {
        let mut request = Request::builder()
            .method(self.method)
            .uri(format!("/v1/sandboxes/sb_1/uploads{}", self.path))
            .header("authorization", format!("Bearer {}", self.key));
        for (name, value) in self.headers {
            request = request.header(*name, *value);
        }
        let response = fake.router(ServerConfig::default()).oneshot(request.body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.unwrap();
        (parts.status.as_u16(), if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() })
    }
}

fn begin() -> Value {
    json!({
        "kind": "file", "source_kind": "restartable_file", "target_path": "a", "user": null, "content_length": 10,
        "conflict": "merge", "archive_format": null, "checksum_algorithm": "sha256", "whole_checksum_sha256": null,
        "metadata": {"any": "thing"},
    })
}

#[tokio::test]
async fn an_upload_goes_from_its_beginning_to_its_end() {
    let fake = Fake::new();
    let json_type = ("content-type", "application/json");
    let call = Call { headers: &[json_type, ("idempotency-key", "k1")], ..Call::new("POST", "") };
    let (status, answer) = call.send(&fake, begin().to_string()).await;
    assert_eq!((status, answer["session"]["upload_id"].as_str()), (200, Some("up_1")));
    assert_eq!((answer["session"]["status"].as_str(), &answer["session"]["user"]), (Some("created"), &Value::Null));
    let called = fake.last_call();
    assert!(called.starts_with("create_upload") && called.contains("Some(\"k1\")"), "{called}");

    let pieces = [vec![1; 3], vec![2; 1]].map(Ok::<_, io::Error>);
    let headers = [("content-type", "application/octet-stream"), ("x-nullspace-part-sha256", "abc")];
    let call = Call { headers: &headers, ..Call::new("PUT", "/up_1/parts/2") };
    let (status, answer) = call.send(&fake, Body::from_stream(futures::stream::iter(pieces))).await;
    assert_eq!((status, answer["next_part"].as_u64()), (200, Some(1)));
    assert_eq!(fake.last_call(), "UploadPart { upload_id: \"up_1\", number: 2, sha256: Some(\"abc\") } 4");

    assert_eq!(Call::new("GET", "/up_1").send(&fake, Body::empty()).await.1["accepted_bytes"], 4);
    let call = Call { headers: &[json_type], ..Call::new("POST", "/up_1/complete") };
    let (status, answer) = call.send(&fake, json!({"whole_checksum_sha256": "def"}).to_string()).await;
    assert_eq!((status, answer["published_bytes"].as_u64()), (200, Some(10)));
    assert_eq!(fake.last_call(), "complete_upload up_1 Some(\"def\")");
    assert_eq!(Call::new("POST", "/up_1/complete").send(&fake, Body::empty()).await.0, 200);
    assert_eq!(Call::new("DELETE", "/up_1").send(&fake, Body::empty()).await, (204, Value::Null));
    assert_eq!(fake.last_call(), "abort_upload up_1");
}

#[tokio::test]
async fn refusals_have_their_status_and_the_contracts_detail() {
    let fake = Fake::new();
    for (upload, status, code, reason) in [
        ("up_none", 404, "not_found", None),
        ("up_expired", 410, "file_upload_error", Some("upload_expired")),
        ("up_taken", 409, "file_upload_error", Some("target_conflict")),
        ("up_huge", 413, "file_upload_error", Some("size_limit_exceeded")),
    ] {
        let path = format!("/{upload}/parts/0");
        for call in [Call::new("GET", &path[..path.len() - 8]), Call::new("PUT", &path)] {
            let (method, answered) = (call.method, call.send(&fake, "x").await);
            assert_eq!((answered.0, answered.1["code"].as_str()), (status, Some(code)), "{method} {upload}");
            let detail = &answered.1["error_detail"];
            assert_eq!(detail["reason"].as_str(), reason);
            assert_eq!(detail["upload_id"].as_str(), reason.map(|_| upload));
        }
    }
}

#[tokio::test]
async fn wrong_requests_are_refused() {
    let fake = Fake::new();
    for number in ["x", "-1", "4294967296", "1.5"] {
        let path = format!("/up_1/parts/{number}");
        assert_eq!(Call::new("PUT", &path).send(&fake, "x").await.0, 400, "{number}");
    }
    let broken = futures::stream::iter([Ok(vec![1]), Err(io::Error::other("gone"))]);
    let (status, answer) = Call::new("PUT", "/up_1/parts/0").send(&fake, Body::from_stream(broken)).await;
    assert_eq!((status, answer["code"].as_str()), (400, Some("invalid_request")));
    for (field, value) in [("kind", json!("disk")), ("conflict", json!("ask")), ("content_length", json!(-1))] {
        let mut request = begin();
        request[field] = value;
        let call = Call { headers: &[("content-type", "application/json")], ..Call::new("POST", "") };
        assert_eq!(call.send(&fake, request.to_string()).await.0, 400, "{field}");
    }
    let foreign = Call { key: OTHER_KEY, ..Call::new("GET", "/up_1") };
    assert_eq!(foreign.send(&fake, Body::empty()).await.1["code"], "sandbox_not_found");
}
