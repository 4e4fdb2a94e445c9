//! API keys over the API, and URLs that they sign, against the whole service.

use std::time::Duration;

use nullspace_api::{ApiKeyInfo, CreateApiKeyResponse, SignedUploadUrlResponse, SignedUrlResponse};
use reqwest::Method;
use serde_json::{Value, json};

use crate::fixture::api::http_client;
use crate::fixture::{Api, Image, Registry, Service, until};

#[tokio::test]
async fn keys_are_made_rotated_and_revoked_over_the_api() {
    let mut service = Service::start().await;
    let api = service.api();
    let made: CreateApiKeyResponse = api.post("/v1/keys", json!({"name": "ci"})).await.ok(201);
    let first = Api::new(api.base(), made.key.expose());
    let rotated: CreateApiKeyResponse =
        first.post(&format!("/v1/keys/{}/rotate", made.id), json!({"grace_secs": 600})).await.ok(201);
    let second = Api::new(api.base(), rotated.key.expose());
    assert_eq!(first.get("/v1/keys").await.status, 200, "its grace lasts");
    let keys: Vec<ApiKeyInfo> = second.get("/v1/keys").await.ok(200);
    let found = keys.iter().find(|key| key.id == rotated.id).expect("the new key");
    assert_eq!((found.rotation_parent_key_id.as_ref(), found.name.as_deref()), (Some(&made.id), Some("ci")));
    assert!(found.is_active && found.last_used_at.is_some() && found.scope.as_deref() == Some("full"));
    let older = keys.iter().find(|key| key.id == made.id).expect("the older key");
    assert!(older.is_active && older.expires_at.is_some());
    second.post(&format!("/v1/keys/{}/rotate", made.id), json!({})).await.refused(409, "transition_conflict");

    // Another tenant's keys are not found.
    let other = service.api_of("second");
    for (method, path) in [(Method::DELETE, ""), (Method::POST, "/rotate")] {
        let request = other.request(method, &format!("/v1/keys/{}{path}", rotated.id)).json(&json!({}));
        other.send(request).await.refused(404, "not_found");
    }

    // A key may revoke itself.
    let _: Value = second.delete(&format!("/v1/keys/{}", rotated.id)).await.ok(200);
    second.get("/v1/keys").await.refused(401, "unauthorized");

    let read: CreateApiKeyResponse = api.post("/v1/keys", json!({"scope": "read"})).await.ok(201);
    let reader = Api::new(api.base(), read.key.expose());
    assert_eq!(reader.get("/v1/templates").await.status, 200);
    reader.post("/v1/sandboxes", json!({})).await.refused(403, "unauthorized");
    reader.post("/v1/keys", json!({})).await.refused(403, "unauthorized");
    api.post("/v1/keys", json!({"scope": "admin"})).await.refused(400, "invalid_request");
    api.post("/v1/keys", json!({"expires_at": "2001-01-01T00:00:00Z"})).await.refused(400, "invalid_request");
    let log = service.log().lines().join("\n");
    for key in [&made.key, &rotated.key, &read.key] {
        assert!(!log.contains(key.expose()), "a key is in the log");
    }
    service.stop().await;
}

#[tokio::test]
async fn a_signed_url_moves_one_file_until_its_key_or_sandbox_is_over() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::start().await;
    let api = service.api();
    api.ready(json!({"name": "box", "base_image": registry.reference("box:1"), "build_config": {"memory_mib": 192}}))
        .await;
    let sandbox = api.sandbox("box").await;
    let made: CreateApiKeyResponse = api.post("/v1/keys", json!({})).await.ok(201);
    let signer = Api::new(api.base(), made.key.expose());
    let http = http_client();
    let path = |direction: &str| format!("/v1/sandboxes/{}/files/{direction}-url", sandbox.id);
    let file = json!({"path": "/tmp/deep/a b.bin"});
    let up: SignedUploadUrlResponse = signer.post(&path("upload"), file.clone()).await.ok(200);
    let down: SignedUrlResponse = signer.post(&path("download"), file).await.ok(200);
    let content = vec![7_u8; 3 << 20];
    let sent = http.put(&up.url).body(content.clone()).send().await.unwrap();
    assert_eq!(sent.status(), 204);
    assert_eq!(sandbox.sh("wc -c < '/tmp/deep/a b.bin'").await, content.len().to_string());
    let got = http.get(&down.url).send().await.unwrap();
    assert_eq!(got.status(), 200);
    assert!(got.bytes().await.unwrap() == content);
    for (method, url) in [
        (Method::GET, down.url.replace("a%20b.bin", "..%2F..%2Fetc%2Fshadow")),
        (Method::PUT, down.url.clone()),
        (Method::GET, up.url.clone()),
        (Method::GET, format!("{}&path=/etc/shadow", down.url)),
        (Method::GET, down.url[..down.url.len() - 2].to_owned()),
    ] {
        assert_eq!(http.request(method, &url).send().await.unwrap().status(), 401, "{url}");
    }
    // It holds over a restart of the service, as the seal key does; and ends with the key that made it.
    let _: Value = api.delete(&format!("/v1/keys/{}", made.id)).await.ok(200);
    assert_eq!(http.get(&down.url).send().await.unwrap().status(), 401);
    let own: SignedUrlResponse = api.post(&path("download"), json!({"path": "/tmp/deep/a b.bin"})).await.ok(200);
    assert_eq!(http.get(&own.url).send().await.unwrap().status(), 200);
    sandbox.delete().await;
    until("the URL ends with its sandbox", Duration::from_secs(10), async || {
        http.get(&own.url).send().await.unwrap().status() == 404
    })
    .await;
    let log = service.log().lines().join("\n");
    assert!(!log.contains(&up.token), "a token is in the log");
    service.stop().await;
}
