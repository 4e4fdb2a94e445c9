//! Searches, replacements, batches and parts of files, over HTTP.

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use nullspace_server::ServerConfig;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{Fake, KEY};

async fn send(
    fake: &Arc<Fake>,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> (StatusCode, HeaderMap, Vec<u8>) {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("/v1/sandboxes/sb_1{path}"))
        .header("authorization", format!("Bearer {KEY}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = fake.router(ServerConfig::default()).oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status, parts.headers, to_bytes(body, 1 << 24).await.unwrap().to_vec())
}

async fn post(fake: &Arc<Fake>, path: &str, body: Value) -> (StatusCode, HeaderMap, Value) {
    let (status, headers, answer) =
        send(fake, "POST", path, &[("content-type", "application/json")], body.to_string()).await;
    (status, headers, serde_json::from_slice(&answer).unwrap())
}

#[tokio::test]
async fn searches_answer_what_clients_expect_and_warn_beside_it() {
    let fake = Fake::new();
    let (status, headers, found) =
        post(&fake, "/files/find", json!({"path": "w", "pattern": "hel+o", "user": null})).await;
    assert_eq!((status.as_u16(), found), (200, json!([{"file": "/w/a", "line": 3, "content": "hello"}])));
    assert_eq!(headers["x-nullspace-warning"], "truncated: there may be more");
    assert_eq!(fake.last_call(), "find_in_files FileAt { sandbox_id: \"sb_1\", path: \"w\", user: None } hel+o");
    let (status, headers, found) =
        post(&fake, "/files/search", json!({"path": "/w", "pattern": "*.txt", "user": "app"})).await;
    assert_eq!((status.as_u16(), found), (200, json!(["/w/a.txt"])));
    assert!(!headers.contains_key("x-nullspace-warning"));
    assert_eq!(
        fake.last_call(),
        "search_files FileAt { sandbox_id: \"sb_1\", path: \"/w\", user: Some(\"app\") } *.txt"
    );
    let (status, _, error) = post(&fake, "/files/find", json!({"path": "w", "pattern": "("})).await;
    assert_eq!((status.as_u16(), &error["code"]), (400, &json!("invalid_request")));
    let (status, _, _) = post(&fake, "/files/find", json!({"path": "w"})).await;
    assert_eq!(status, 400);

    let request = json!({"files": ["/a", "/none"], "pattern": "x", "replacement": "y", "user": null, "dry_run": true});
    let (status, _, result) = post(&fake, "/files/replace", request).await;
    let expected = json!({
        "replacements": 2, "files_modified": 1, "files_skipped": 1, "binary_files_skipped": 0, "dry_run": true,
        "skipped": [{"path": "/none", "error": "It does not exist."}],
    });
    assert_eq!((status.as_u16(), result), (200, expected));
}

/// A form as the published client makes it.
fn batch(manifest: &Value, parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut form = Vec::new();
    let mut part = |name: &str, kind: &str, content: &[u8]| {
        let head = format!(
            "--XX\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{name}.bin\"\r\nContent-Type: {kind}\r\n\r\n"
        );
        form.extend_from_slice(head.as_bytes());
        form.extend_from_slice(content);
        form.extend_from_slice(b"\r\n");
    };
    part("manifest", "application/json", manifest.to_string().as_bytes());
    for (name, content) in parts {
        part(name, "application/octet-stream", content);
    }
    form.extend_from_slice(b"--XX--\r\n");
    form
}

const FORM: &[(&str, &str)] = &[("content-type", "multipart/form-data; boundary=XX")];

#[tokio::test]
async fn a_batch_has_a_result_for_each_file() {
    let fake = Fake::new();
    let manifest = json!({"files": [
        {"path": "/a", "field": "file0"}, {"path": "/proc/no", "field": "file1"}, {"path": "/none", "field": "file2"},
        {"path": "/b", "field": "file3"},
    ], "user": "app"});
    let large = vec![b'x'; 300_000];
    // In another order than the manifest's, with a field that nobody asked for.
    let parts: &[(&str, &[u8])] =
        &[("file1", &large), ("other", b"--X"), ("file3", &large), ("file0", b"a\r\n--X\r\nb")];
    let (status, _, answer) = send(&fake, "POST", "/files/batch-write", FORM, batch(&manifest, parts)).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(status, 200, "{answer}");
    let results = answer["results"].as_array().unwrap();
    let shown: Vec<_> = results.iter().map(|result| (result["status"].as_str(), result["path"].as_str())).collect();
    assert_eq!(
        shown,
        [
            (Some("success"), Some("/a")),
            (Some("error"), Some("/proc/no")),
            (Some("error"), Some("/none")),
            (Some("success"), Some("/b")),
        ]
    );
    assert_eq!((&results[0]["info"]["size"], &results[3]["info"]["size"]), (&json!(9), &json!(300_000)));
    assert_eq!(results[1]["error"], "`/proc/no` cannot be written.");
    assert_eq!(results[2]["error"], "The form has no field `file2`.");
    assert_eq!(fake.last_call(), "write_file /a Some(\"app\")");
}

#[tokio::test]
async fn a_batch_that_is_wrong_is_refused() {
    let fake = Fake::new();
    let twice = json!({"files": [{"path": "/a", "field": "f"}, {"path": "/b", "field": "f"}]});
    let many = json!({"files": (0..1001).map(|n| json!({"path": "/a", "field": n.to_string()})).collect::<Vec<_>>()});
    let mut cut = batch(&json!({"files": [{"path": "/a", "field": "f"}]}), &[("f", &[b'x'; 50_000])]);
    cut.truncate(cut.len() - 20_000);
    let others: Vec<_> = (0..40).map(|n| format!("other{n}")).collect();
    let others: Vec<(&str, &[u8])> = others.iter().map(|name| (name.as_str(), &b""[..])).collect();
    for (what, form) in [
        ("a field twice", batch(&twice, &[])),
        ("too many files", batch(&many, &[])),
        ("a body that breaks off", cut),
        ("no files", batch(&json!({}), &[])),
        ("a manifest without end", batch(&json!({"files": [], "more": "x".repeat(2 << 20)}), &[])),
        ("too many other fields", batch(&json!({"files": []}), &others)),
        ("no manifest", b"--XX\r\ncontent-disposition: form-data; name=\"file0\"\r\n\r\nx\r\n--XX--\r\n".to_vec()),
        ("nothing", b"--XX--\r\n".to_vec()),
    ] {
        let (status, _, answer) = send(&fake, "POST", "/files/batch-write", FORM, form).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!((status.as_u16(), &answer["code"]), (400, &json!("invalid_request")), "{what}: {answer}");
    }
    let kind = &[("content-type", "application/octet-stream")];
    let (status, _, _) = send(&fake, "POST", "/files/batch-write", kind, "x").await;
    assert_eq!(status, 415);
}

#[tokio::test]
async fn a_download_may_be_a_part() {
    let fake = Fake::new();
    let content: Vec<u8> = (0..10_000u32).map(|n| (n % 251) as u8).collect();
    let (status, _, _) = send(&fake, "PUT", "/file?path=/a", &[], content.clone()).await;
    assert_eq!(status, 204);
    for (range, expected, shown) in [
        ("bytes=0-0", &content[..1], "bytes 0-0/10000"),
        ("bytes=9990-", &content[9990..], "bytes 9990-9999/10000"),
        ("bytes=100-99999", &content[100..], "bytes 100-9999/10000"),
        ("bytes=-5", &content[9995..], "bytes 9995-9999/10000"),
    ] {
        let (status, headers, got) = send(&fake, "GET", "/file?path=/a", &[("range", range)], Body::empty()).await;
        assert_eq!((status.as_u16(), headers["content-range"].to_str().unwrap()), (206, shown), "{range}");
        assert_eq!(headers["content-length"], expected.len().to_string().as_str());
        assert!(got == expected, "{range}");
    }
    for range in ["bytes=1-2,4-5", "lines=1-2", "bytes=5-1"] {
        let (status, headers, got) = send(&fake, "GET", "/file?path=/a", &[("range", range)], Body::empty()).await;
        assert!(status == 200 && got == content && headers["accept-ranges"] == "bytes", "{range}");
    }
    let outside = &[("range", "bytes=10000-")];
    let (status, headers, answer) = send(&fake, "GET", "/file?path=/a", outside, Body::empty()).await;
    assert_eq!((status.as_u16(), headers["content-range"].to_str().unwrap()), (416, "bytes */10000"));
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["code"], "invalid_request");
}
