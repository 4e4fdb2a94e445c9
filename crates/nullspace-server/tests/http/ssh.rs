//! SSH access.

use axum::body::Body;
use serde_json::json;

use crate::life::{answer, keys, request, send};
use crate::support::{Fake, OTHER_KEY, SANDBOX};

const ACCESS: &str = "/v1/sandboxes/sb_1/ssh-access";

#[tokio::test]
async fn an_access_has_the_fields_that_clients_read() {
    let fake = Fake::new();
    let asked = json!({"public_key": "ssh-ed25519 AAAA", "user": "me", "ttl_seconds": 60, "expires_in_minutes": 2});
    let made = send(&fake, "POST", ACCESS, asked).await;
    assert_eq!(made.status, 200, "{:?}", made.body);
    let fields = ["access_id", "certificate", "command", "expires_at", "host", "host_key", "port", "user"];
    assert_eq!(keys(&made.body), fields);
    assert_eq!((&made.body["user"], &made.body["port"]), (&json!(SANDBOX), &json!(2222)));
    let request = "SshAccessRequest { public_key: \"ssh-ed25519 AAAA\", user: Some(\"me\"), ttl_seconds: Some(60), expires_in_minutes: Some(2) }";
    assert_eq!(fake.last_call(), format!("create_ssh_access a sb_1 {request}"));
}

#[tokio::test]
async fn refusals_of_an_access_are_typed() {
    let fake = Fake::new();
    let wrong = send(&fake, "POST", ACCESS, json!({"public_key": ""})).await;
    assert_eq!((wrong.status, &wrong.body["code"]), (400, &json!("invalid_request")));
    assert_eq!(send(&fake, "POST", ACCESS, json!({})).await.status, 400);
    let none = send(&fake, "POST", ACCESS, json!({"public_key": "x", "user": "no-server"})).await;
    assert_eq!((none.status, &none.body["code"]), (503, &json!("feature_unavailable")));
    assert!(none.body["error"].as_str().unwrap().contains("ssh_listen"));
    let theirs = request("POST", ACCESS, OTHER_KEY).header("content-type", "application/json");
    let theirs = answer(&fake, theirs.body(Body::from("{\"public_key\": \"x\"}")).unwrap()).await;
    assert_eq!((theirs.status, &theirs.body["code"]), (404, &json!("sandbox_not_found")));
}
