//! Webhooks and their deliveries.

use axum::body::Body;
use nullspace_api::LifecycleOperation;
use serde_json::{Value, json};

use crate::life::{answer, get, request, send};
use crate::support::webhooks::DELIVERY;
use crate::support::{Fake, OTHER_KEY};

const ALL: &str = "/v1/lifecycle/webhooks";

fn asked() -> Value {
    json!({"url": "https://example.org/hook", "operations": ["create", "destroy"], "signing_secret": "canary-secret",
        "enabled": true})
}

#[tokio::test]
async fn a_webhook_is_made_shown_changed_and_deleted_and_its_secret_never_shown() {
    let fake = Fake::new();
    let made = send(&fake, "POST", ALL, asked()).await;
    let expected = json!({
        "id": "00000000-0000-7000-8000-00000000e000", "url": "https://example.org/hook",
        "operations": ["create", "destroy"], "enabled": true, "has_signing_secret": true,
        "created_at": "2025-01-31T10:00:00.000000Z", "updated_at": "2025-01-31T10:00:00.000000Z",
    });
    assert_eq!((made.status, &made.body), (201, &expected));
    assert!(fake.last_call().contains("signing_secret: [REDACTED]"), "{}", fake.last_call());
    let one = format!("{ALL}/{}", expected["id"].as_str().unwrap());
    assert_eq!(get(&fake, ALL).await.body, json!([expected]));
    assert_eq!(get(&fake, &one).await.body, expected);

    let changed = send(&fake, "PATCH", &one, json!({"enabled": false, "url": null})).await;
    assert_eq!((changed.status, &changed.body["enabled"]), (200, &json!(false)));
    assert_eq!(changed.body["url"], "https://example.org/hook");
    let changed = send(&fake, "PATCH", &one, json!({"operations": ["fork"], "signing_secret": "canary-other"})).await;
    assert_eq!((changed.status, &changed.body["operations"]), (200, &json!(["fork"])));
    assert!(!changed.body.to_string().contains("canary") && !fake.last_call().contains("canary"));

    let deleted = send(&fake, "DELETE", &one, Value::Null).await;
    assert_eq!((deleted.status, deleted.body), (204, Value::Null));
    for method in ["GET", "DELETE"] {
        let gone = send(&fake, method, &one, Value::Null).await;
        assert_eq!((gone.status, &gone.body["code"]), (404, &json!("not_found")), "{method}");
    }
    assert_eq!(get(&fake, ALL).await.body, json!([]));
}

#[tokio::test]
async fn wrong_webhooks_are_refused_without_their_secret() {
    let fake = Fake::new();
    let without = |field: &str| {
        let mut body = asked();
        body.as_object_mut().unwrap().remove(field);
        body
    };
    let with = |field: &str, value: Value| {
        let mut body = asked();
        body[field] = value;
        body
    };
    for wrong in [
        without("url"),
        without("operations"),
        without("signing_secret"),
        with("operations", json!([])),
        with("operations", json!(["dance"])),
        with("operations", json!("create")),
        with("signing_secret", json!(null)),
        with("enabled", json!("yes")),
        json!([]),
    ] {
        let refused = send(&fake, "POST", ALL, wrong.clone()).await;
        assert_eq!((refused.status, &refused.body["code"]), (400, &json!("invalid_request")), "{wrong}");
        assert!(!refused.body.to_string().contains("canary"), "{}", refused.body);
    }
    assert_eq!(get(&fake, ALL).await.body, json!([]));
    // Without a word about it, it is enabled.
    assert_eq!(send(&fake, "POST", ALL, without("enabled")).await.body["enabled"], true);
    assert_eq!(send(&fake, "POST", ALL, with("enabled", json!(false))).await.body["enabled"], false);
}

#[tokio::test]
async fn deliveries_are_listed_page_by_page_and_shown_with_their_attempts() {
    let fake = Fake::new();
    fake.events.record(LifecycleOperation::Hibernate, "sb_1", None, &[]);
    let made = send(&fake, "POST", ALL, asked()).await.body;
    let all = format!("{ALL}/{}/deliveries", made["id"].as_str().unwrap());
    let listed = get(&fake, &all).await;
    assert_eq!((listed.status, listed.body.as_array().unwrap().len()), (200, 1));
    assert_eq!(fake.last_call(), "list_deliveries offset 0 limit 50");
    assert_eq!(listed.body[0]["delivery_status"], "queued");
    for (query, call) in [
        ("?offset=5&limit=10", "list_deliveries offset 5 limit 10"),
        ("?limit=1000000", "list_deliveries offset 0 limit 1000"),
    ] {
        assert_eq!(get(&fake, &format!("{all}{query}")).await.status, 200);
        assert_eq!(fake.last_call(), call);
    }
    for wrong in ["?limit=0", "?limit=-1", "?offset=x"] {
        assert_eq!(get(&fake, &format!("{all}{wrong}")).await.status, 400, "{wrong}");
    }
    let detail = get(&fake, &format!("{all}/{DELIVERY}")).await;
    assert_eq!(detail.status, 200);
    assert_eq!(detail.body["delivery"], listed.body[0]);
    assert_eq!(detail.body["event"]["operation"], "hibernate");
    assert_eq!(detail.body["attempts"][0]["duration_ms"], 12);
    for path in
        [format!("{all}/other"), format!("{ALL}/other/deliveries"), format!("{ALL}/other/deliveries/{DELIVERY}")]
    {
        assert_eq!(get(&fake, &path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn another_tenants_webhooks_are_not_there() {
    let fake = Fake::new();
    let made = send(&fake, "POST", ALL, asked()).await.body;
    let one = format!("{ALL}/{}", made["id"].as_str().unwrap());
    for (method, path) in [
        ("GET", one.clone()),
        ("DELETE", one.clone()),
        ("GET", format!("{one}/deliveries")),
        ("GET", format!("{one}/deliveries/{DELIVERY}")),
    ] {
        let refused = answer(&fake, request(method, &path, OTHER_KEY).body(Body::empty()).unwrap()).await;
        assert_eq!((refused.status, &refused.body["code"]), (404, &json!("not_found")), "{method} {path}");
    }
    let patch = request("PATCH", &one, OTHER_KEY).header("content-type", "application/json");
    let patch = patch.body(Body::from("{\"enabled\": false}")).unwrap();
    assert_eq!(answer(&fake, patch).await.status, 404);
    assert_eq!(get(&fake, &one).await.body["enabled"], true);
}
