//! Promotions of snapshots to templates.

use axum::body::Body;
use nullspace_api::ErrorResponseCode as Code;
use serde_json::{Value, json};

use crate::life::{answer, request, send};
use crate::support::{Fake, OTHER_KEY};

#[tokio::test]
async fn a_snapshot_becomes_a_template_and_the_answer_warns() {
    let fake = Fake::new();
    let kept = send(&fake, "POST", "/v1/sandboxes/sb_1/snapshots", Value::Null).await.body;
    let path = format!("/v1/snapshots/{}/promote", kept["id"].as_str().unwrap());
    let made = send(&fake, "POST", &path, json!({"name": "warm", "tag": "v1"})).await;
    assert_eq!((made.status, &made.body["name"]), (201, &json!("warm")));
    assert_eq!(made.headers["x-nullspace-warning"], "memory is shared");
    let id = kept["id"].as_str().unwrap();
    assert_eq!(fake.last_call(), format!("promote_snapshot a {id} warm Some(\"v1\") None"));

    let keyed = request("POST", &path, crate::support::KEY).header("content-type", "application/json");
    let keyed = keyed.header("idempotency-key", "i1").body(Body::from("{\"name\": \"warm\"}")).unwrap();
    assert_eq!(answer(&fake, keyed).await.status, 201);
    assert_eq!(fake.last_call(), format!("promote_snapshot a {id} warm None Some(\"i1\")"));
}

#[tokio::test]
async fn what_cannot_be_promoted_is_refused_with_its_code() {
    let fake = Fake::new();
    let kept = send(&fake, "POST", "/v1/sandboxes/sb_1/snapshots", Value::Null).await.body;
    let path = format!("/v1/snapshots/{}/promote", kept["id"].as_str().unwrap());
    for (path, body, status, code) in [
        (path.as_str(), json!({"name": "taken"}), 409, "transition_conflict"),
        (path.as_str(), json!({}), 400, "invalid_request"),
        (path.as_str(), json!({"name": 3}), 400, "invalid_request"),
        (path.as_str(), json!([]), 400, "invalid_request"),
        ("/v1/snapshots/snap_none/promote", json!({"name": "warm"}), 404, "snapshot_not_found"),
    ] {
        let refused = send(&fake, "POST", path, body.clone()).await;
        assert_eq!((refused.status, &refused.body["code"]), (status, &json!(code)), "{path} {body}");
    }
    for (code, status) in [(Code::IncompatibleSnapshot, 409), (Code::CapacityExceeded, 503)] {
        fake.life.lock().unwrap().fails = Some(code);
        assert_eq!(send(&fake, "POST", &path, json!({"name": "warm"})).await.status, status);
    }
    let foreign = request("POST", &path, OTHER_KEY).header("content-type", "application/json");
    let refused = answer(&fake, foreign.body(Body::from("{\"name\": \"warm\"}")).unwrap()).await;
    assert_eq!((refused.status, &refused.body["code"]), (404, &json!("snapshot_not_found")));
}
