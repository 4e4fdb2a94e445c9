//! Files of a sandbox: contents pass unharmed in every form, whatever they are.

use std::io;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use nullspace_server::ServerConfig;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{Fake, KEY};

/// More than one frame of anything, with every byte, and no text.
fn content() -> Vec<u8> {
    (0..300_000u32).map(|n| (n % 251) as u8).collect()
}

async fn send(fake: &Arc<Fake>, method: &str, path: &str, kind: &str, body: impl Into<Body>) -> (StatusCode, Vec<u8>) {
    let request = Request::builder()
        .method(method)
        .uri(format!("/v1/sandboxes/sb_1{path}"))
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", kind);
    let response = fake.router(ServerConfig::default()).oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status, to_bytes(body, 1 << 24).await.unwrap().to_vec())
}

async fn post(fake: &Arc<Fake>, path: &str, body: Value) -> (StatusCode, Value) {
    let (status, answer) = send(fake, "POST", path, "application/json", body.to_string()).await;
    (status, if answer.is_empty() { Value::Null } else { serde_json::from_slice(&answer).unwrap() })
}

#[tokio::test]
async fn raw_bytes_go_in_and_come_out() {
    let fake = Fake::new();
    let pieces: Vec<_> = content().chunks(7777).map(|piece| Ok::<_, io::Error>(piece.to_vec())).collect();
    let body = Body::from_stream(futures::stream::iter(pieces));
    let (status, answer) = send(&fake, "PUT", "/file?path=/a%20b&user=app", "application/octet-stream", body).await;
    assert_eq!((status.as_u16(), answer.len()), (204, 0));
    assert_eq!(fake.last_call(), "write_file /a b Some(\"app\")");
    let (status, answer) = send(&fake, "GET", "/file?path=x", "", Body::empty()).await;
    assert!(status == 200 && answer == content());
    // An upload that breaks off is no success.
    let broken = futures::stream::iter([Ok(vec![1]), Err(io::Error::other("gone"))]);
    let (status, _) = send(&fake, "PUT", "/file?path=x", "text/plain", Body::from_stream(broken)).await;
    assert_eq!(status, 400);
    let (status, _) = send(&fake, "PUT", "/file", "text/plain", "no path").await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn a_form_brings_its_file() {
    let fake = Fake::new();
    let mut form = b"--XX\r\ncontent-disposition: form-data; name=\"note\"\r\n\r\nhello\r\n\
        --XX\r\ncontent-disposition: form-data; name=\"file\"; filename=\"../../x\"\r\ncontent-type: image/png\r\n\r\n"
        .to_vec();
    form.extend(content());
    form.extend(b"\r\n--XX--\r\n");
    let (status, answer) = send(&fake, "POST", "/file?path=/p", "multipart/form-data; boundary=XX", form).await;
    assert_eq!(status, 204, "{}", String::from_utf8_lossy(&answer));
    // The path is the query's, never the form's.
    assert_eq!(fake.last_call(), "write_file /p None");
    let (_, answer) = send(&fake, "GET", "/file?path=x", "", Body::empty()).await;
    assert!(answer == content());
    for (kind, body) in [
        ("multipart/form-data", "no boundary"),
        ("multipart/form-data; boundary=XX", "--XX\r\nnonsense"),
        ("multipart/form-data; boundary=XX", "--XX--\r\n"),
    ] {
        let (status, answer) = send(&fake, "POST", "/file?path=/p", kind, body).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!((status.as_u16(), &answer["code"]), (400, &json!("invalid_request")), "{kind} {body}");
    }
    let (status, _) = send(&fake, "POST", "/file?path=/p", "application/octet-stream", "as it is").await;
    assert_eq!(status, 204);
    let (_, answer) = send(&fake, "GET", "/file?path=x", "", Body::empty()).await;
    assert_eq!(answer, b"as it is");
}

#[tokio::test]
async fn json_carries_text_and_base64() {
    let fake = Fake::new();
    let (status, _) = post(&fake, "/files/read", json!({"path": "/none"})).await;
    assert_eq!(status, 404);
    for (body, read, expected) in [
        (
            json!({"path": "a", "content": "grüß"}),
            json!({"path": "a"}),
            json!({"content": "grüß", "encoding": "utf8", "size": 6}),
        ),
        (
            json!({"path": "a", "content": "/wA=", "encoding": "base64", "user": null}),
            json!({"path": "a", "encoding": "base64"}),
            json!({"content": "/wA=", "encoding": "base64", "size": 2}),
        ),
    ] {
        let (status, info) = post(&fake, "/files/write", body).await;
        assert_eq!((status.as_u16(), &info["size"]), (200, &expected["size"]));
        assert_eq!(post(&fake, "/files/read", read).await, (StatusCode::OK, expected));
    }
    let (_, lossy) = post(&fake, "/files/read", json!({"path": "a"})).await;
    assert_eq!(lossy["content"], "\u{fffd}\0");
    let (status, error) = post(&fake, "/files/write", json!({"path": "a", "content": "%", "encoding": "base64"})).await;
    assert_eq!((status.as_u16(), &error["code"]), (400, &json!("invalid_request")));
}

#[tokio::test]
async fn the_other_operations_reach_the_service() {
    let fake = Fake::new();
    let (_, exists) = post(&fake, "/files/exists", json!({"path": "/here"})).await;
    assert_eq!(exists, json!({"exists": true}));
    for (path, body, call) in [
        (
            "/files/mkdir",
            json!({"path": "d", "user": "u"}),
            "make_dir FileAt { sandbox_id: \"sb_1\", path: \"d\", user: Some(\"u\") }",
        ),
        ("/files/remove", json!({"path": "d"}), "remove_file FileAt { sandbox_id: \"sb_1\", path: \"d\", user: None }"),
    ] {
        assert_eq!(post(&fake, path, body).await, (StatusCode::NO_CONTENT, Value::Null));
        assert_eq!(fake.last_call(), call);
    }
    let (_, info) = post(&fake, "/files/rename", json!({"old_path": "/a", "new_path": "/b"})).await;
    assert_eq!((&info["path"], &info["type"]), (&json!("/b"), &json!("file")));
    let (status, error) = post(&fake, "/files/permissions", json!({"path": "/a", "permissions": "0600"})).await;
    assert_eq!((status.as_u16(), &error["code"]), (403, &json!("file_error")));
    let (_, list) = send(&fake, "GET", "/files?depth=3", "", Body::empty()).await;
    assert_eq!(serde_json::from_slice::<Value>(&list).unwrap()[1]["path"], "/b");
    assert_eq!(fake.last_call(), "list_files FileAt { sandbox_id: \"sb_1\", path: \".\", user: None } 3");
    for (body, signal) in [(json!({}), 9), (json!({"signal": "SIGTERM"}), 15), (json!({"signal": 2}), 2)] {
        assert_eq!(post(&fake, "/processes/12/kill", body).await.0, 204);
        assert_eq!(fake.last_call(), format!("kill_process sb_1 12 {signal}"));
    }
    assert_eq!(post(&fake, "/processes/12/kill", json!({"signal": "SIGNONE"})).await.0, 400);
    assert_eq!(send(&fake, "POST", "/processes/12/kill", "", Body::empty()).await.0, 204);
    let (status, _) = send(&fake, "GET", "/processes/-1/logs", "", Body::empty()).await;
    assert_eq!(status, 400);
    let (_, logs) = send(&fake, "GET", "/processes/7/logs", "", Body::empty()).await;
    assert_eq!(serde_json::from_slice::<Value>(&logs).unwrap(), json!({"stdout": "7", "stderr": "", "output": "7"}));
}

#[tokio::test]
async fn listings_are_compressed_for_clients_that_ask() {
    let fake = Fake::new();
    let get = async |path: &str, accepts: Option<&str>| {
        let request = Request::builder()
            .uri(format!("/v1/sandboxes/sb_1{path}"))
            .header("authorization", format!("Bearer {KEY}"))
            .header("accept-encoding", accepts.unwrap_or("identity"));
        let response =
            fake.router(ServerConfig::default()).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        assert_eq!(parts.status, 200);
        let coding = parts.headers.get("content-encoding").map(|coding| coding.to_str().unwrap().to_owned());
        (coding, parts.headers.contains_key("vary"), to_bytes(body, 1 << 24).await.unwrap().to_vec())
    };
    let (coding, varies, plain) = get("/files?path=/many", None).await;
    assert!(coding.is_none() && varies);
    let (coding, varies, packed) = get("/files?path=/many", Some("gzip, deflate")).await;
    assert!(coding.as_deref() == Some("gzip") && varies && packed.len() * 5 < plain.len());
    let mut whole = Vec::new();
    io::Read::read_to_end(&mut flate2::read::GzDecoder::new(packed.as_slice()), &mut whole).unwrap();
    assert!(whole == plain);
    // Short ones, files, and answers that are no listing.
    send(&fake, "PUT", "/file?path=x", "text/plain", vec![b'x'; 100_000]).await;
    for path in ["/files?path=/few", "/file?path=x", "/processes/7/logs"] {
        assert_eq!(get(path, Some("gzip")).await.0, None, "{path}");
    }
}
