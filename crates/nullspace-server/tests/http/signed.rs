//! URLs of one file that work without a key, and everything that does not.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::{Body, to_bytes};
use axum::http::Request;
use nullspace_server::{RequestRate, ServerConfig};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{Fake, KEY, OTHER_KEY};

const HOST: &str = "box.example:3000";

async fn ask(
    fake: &Arc<Fake>,
    method: &str,
    uri: &str,
    key: Option<&str>,
    kind: &str,
    body: impl Into<Body>,
) -> (u16, Vec<u8>) {
    let mut request = Request::builder().method(method).uri(uri).header("host", HOST).header("content-type", kind);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let response = fake.router(ServerConfig::default()).oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status.as_u16(), to_bytes(body, 1 << 20).await.unwrap().to_vec())
}

/// The answer to a request for a URL, and the URL's path and query.
async fn sign(fake: &Arc<Fake>, direction: &str, file: Value) -> (Value, String) {
    let uri = format!("/v1/sandboxes/sb_1/files/{direction}-url");
    let (status, answer) = ask(fake, "POST", &uri, Some(KEY), "application/json", file.to_string()).await;
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(status, 200, "{answer}");
    let path = answer["url"].as_str().unwrap().strip_prefix(&format!("http://{HOST}")).unwrap().to_owned();
    (answer, path)
}

#[tokio::test]
async fn a_file_goes_up_and_down_without_a_key() {
    let fake = Fake::new();
    let file = json!({"path": "/a b/ü&=#?.txt", "user": "us er"});
    let (answer, up) = sign(&fake, "upload", file.clone()).await;
    assert_eq!(answer.as_object().unwrap().keys().collect::<Vec<_>>(), ["token", "url"]);
    let form = "--XX\r\ncontent-disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\nby form\r\n--XX--\r\n";
    for (method, kind, body, content) in [
        ("POST", "multipart/form-data; boundary=XX", form, "by form"),
        ("POST", "application/octet-stream", "by post", "by post"),
        ("PUT", "text/plain", "by put", "by put"),
    ] {
        let (status, answer) = ask(&fake, method, &up, None, kind, body).await;
        assert_eq!(status, 204, "{}", String::from_utf8_lossy(&answer));
        assert_eq!(fake.last_call(), "write_file /a b/ü&=#?.txt Some(\"us er\")");
        let (answer, down) = sign(&fake, "download", file.clone()).await;
        assert_eq!(answer.as_object().unwrap().keys().collect::<Vec<_>>(), ["url"]);
        let (status, answer) = ask(&fake, "GET", &down, None, "", Body::empty()).await;
        assert_eq!((status, answer), (200, content.as_bytes().to_vec()));
        assert_eq!(ask(&fake, "HEAD", &down, None, "", Body::empty()).await.0, 200);
    }
}

#[tokio::test]
async fn a_url_that_was_changed_is_refused() {
    let fake = Fake::new();
    let (_, up) = sign(&fake, "upload", json!({"path": "/a"})).await;
    let (_, down) = sign(&fake, "download", json!({"path": "/a", "user": "u"})).await;
    assert_eq!(ask(&fake, "PUT", &up, None, "", "x").await.0, 204);
    let token = down.split_once("&token=").unwrap().1.to_owned();
    let calls = fake.calls.lock().unwrap().len();
    let file = "/v1/sandboxes/sb_1/file";
    for (what, method, uri) in [
        ("another path", "GET", down.replace("path=%2Fa", "path=%2Fetc%2Fshadow")),
        ("a path that goes up", "GET", down.replace("path=%2Fa", "path=%2Fa%2F..%2F..%2Fetc%2Fshadow")),
        ("the same path otherwise", "GET", down.replace("path=%2Fa", "path=%2F.%2Fa")),
        ("a second path", "GET", format!("{down}&path=/etc/shadow")),
        ("a second path first", "GET", down.replace("?path", "?path=/etc/shadow&path")),
        ("a second token", "GET", format!("{down}&token=x")),
        ("a second user", "GET", format!("{down}&user=root")),
        ("another user", "GET", down.replace("user=u", "user=root")),
        ("no user", "GET", down.replace("&user=u", "")),
        ("another parameter", "GET", format!("{down}&x=y")),
        ("a token that is cut", "GET", down[..down.len() - 1].to_owned()),
        ("an empty token", "GET", format!("{file}?path=/a&user=u&token=")),
        ("no path", "GET", format!("{file}?token={token}")),
        ("another sandbox", "GET", down.replace("/sb_1/", "/sb_2/")),
        ("the sandbox, encoded", "GET", down.replace("/sb_1/", "/sb%5f1/")),
        ("an upload with a download's", "PUT", down.clone()),
        ("an upload with a download's", "POST", down.clone()),
        ("a download with an upload's", "GET", up.clone()),
        ("another method", "DELETE", down.clone()),
        ("another route", "GET", down.replace("/file?", "/files?")),
        ("another route", "POST", down.replace("/file?", "/files/remove?")),
        ("another route", "POST", down.replace("/file?", "/exec?")),
        ("a token alone", "GET", format!("/v1/sandboxes?token={token}")),
    ] {
        let (status, answer) = ask(&fake, method, &uri, None, "application/json", Body::empty()).await;
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        assert_eq!((status, &answer["code"]), (401, &json!("unauthorized")), "{what}: {method} {uri}");
    }
    assert_eq!(fake.calls.lock().unwrap().len(), calls, "something reached the sandbox");
}

#[tokio::test]
async fn a_url_ends_with_its_key_and_is_made_for_ones_own_sandbox() {
    let fake = Fake::new();
    let body = json!({"path": "/a"}).to_string();
    for (key, sandbox, status) in [(OTHER_KEY, "sb_1", 404), (KEY, "sb_2", 404)] {
        let uri = format!("/v1/sandboxes/{sandbox}/files/download-url");
        let (found, answer) = ask(&fake, "POST", &uri, Some(key), "application/json", body.clone()).await;
        assert_eq!(found, status, "{}", String::from_utf8_lossy(&answer));
    }
    let (_, up) = sign(&fake, "upload", json!({"path": "/a"})).await;
    assert_eq!(ask(&fake, "PUT", &up, None, "", "x").await.0, 204);
    // A key that is shown counts, and the token does not.
    assert_eq!(ask(&fake, "PUT", &up, Some("ns_live_wrong"), "", "x").await.0, 401);
    assert_eq!(ask(&fake, "PUT", &up, Some(OTHER_KEY), "", "x").await.0, 404);
    fake.revoked.store(true, Ordering::SeqCst);
    assert_eq!(ask(&fake, "PUT", &up, None, "", "x").await.0, 401);
}

#[tokio::test]
async fn signed_requests_count_for_their_tenant() {
    let fake = Fake::new();
    let (_, up) = sign(&fake, "upload", json!({"path": "/a"})).await;
    let config = ServerConfig { rate: RequestRate { per_second: 1, burst: 2 }, ..ServerConfig::default() };
    let router = fake.router(config);
    let mut statuses = Vec::new();
    for key in [None, Some(KEY), None] {
        let mut request = Request::builder().method("PUT").uri(&up).header("host", HOST);
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = router.clone().oneshot(request.body(Body::from("x")).unwrap()).await.unwrap();
        statuses.push(response.status().as_u16());
    }
    assert_eq!(statuses, [204, 204, 429]);
}
