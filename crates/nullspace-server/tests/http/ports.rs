//! Addresses of ports, and preview URLs.

use axum::body::Body;
use serde_json::{Value, json};

use crate::life::{answer, get, keys, request, send};
use crate::support::ports::GRANT;
use crate::support::{Fake, OTHER_KEY};

const ONE: &str = "/v1/sandboxes/sb_1";

#[tokio::test]
async fn an_address_and_its_urls_have_the_fields_that_clients_read() {
    let fake = Fake::new();
    let host = send(&fake, "POST", &format!("{ONE}/host"), json!({"port": 8000})).await;
    assert_eq!(host.status, 200);
    // Without a token nothing is said of one.
    let expected =
        json!({"host": "127.0.0.1:4000", "url": "http://127.0.0.1:4000/", "websocket_url": "ws://127.0.0.1:4000/"});
    assert_eq!((&host.body, fake.last_call()), (&expected, "get_host a sb_1 8000".to_owned()));

    let url = get(&fake, &format!("{ONE}/ports/8000/preview-url")).await;
    assert_eq!((url.status, fake.last_call()), (200, "get_preview_url a sb_1 8000".to_owned()));
    let fields = ["access_token_expires_at", "access_token_transport", "grant", "url", "websocket_url"];
    assert_eq!(keys(&url.body), fields);
    assert_eq!(url.body["access_token_transport"], "query");
    let grant = &url.body["grant"];
    let fields = [
        "auth_mode",
        "bootstrap_transport",
        "bytes_in_count",
        "bytes_out_count",
        "created_at",
        "expires_at",
        "http_request_count",
        "id",
        "issued_at",
        "port",
        "principal_kind",
        "sandbox_id",
        "status",
        "token_kinds",
        "updated_at",
        "use_count",
        "websocket_connection_count",
    ];
    assert_eq!(keys(grant), fields);
    assert_eq!(
        (&grant["status"], &grant["auth_mode"], &grant["token_kinds"], &grant["principal_kind"]),
        (&json!("active"), &json!("direct"), &json!(["http_port", "websocket_port"]), &json!("user"))
    );

    let signing = format!("{ONE}/ports/80/signed-preview-url");
    let signed = send(&fake, "POST", &signing, json!({"expires_in_seconds": 120})).await;
    assert_eq!(signed.status, 200);
    assert!(fake.last_call().ends_with("80 CreateSignedPreviewUrlRequest { expires_in_seconds: Some(120) }"));
    assert_eq!(send(&fake, "POST", &format!("{ONE}/ports/80/signed-preview-url"), json!({})).await.status, 200);
    let full = send(&fake, "POST", &format!("{ONE}/ports/8429/signed-preview-url"), json!({})).await;
    assert_eq!((full.status, &full.body["code"]), (429, &json!("rate_limit_exceeded")));
    assert!(full.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn preview_urls_are_listed_without_tokens_and_revoked() {
    let fake = Fake::new();
    let listed = get(&fake, &format!("{ONE}/preview-urls")).await;
    assert_eq!((listed.status, fake.last_call()), (200, "list_preview_urls a sb_1 None".to_owned()));
    assert_eq!((keys(&listed.body), listed.body["items"].as_array().unwrap().len()), (vec!["items"], 1));
    assert!(!listed.body.to_string().contains("canary"));
    get(&fake, &format!("{ONE}/preview-urls?port=3000")).await;
    assert_eq!(fake.last_call(), "list_preview_urls a sb_1 Some(3000)");
    assert_eq!(get(&fake, &format!("{ONE}/preview-urls?port=x")).await.status, 400);

    let revoked = send(&fake, "DELETE", &format!("{ONE}/preview-urls/{GRANT}"), Value::Null).await;
    assert_eq!((revoked.status, keys(&revoked.body)), (200, vec!["grant", "success"]));
    assert_eq!((&revoked.body["success"], &revoked.body["grant"]["status"]), (&json!(true), &json!("revoked")));
    assert!(revoked.body["grant"]["revoked_at"].is_string());
    let missing = send(&fake, "DELETE", &format!("{ONE}/preview-urls/pvg_2"), Value::Null).await;
    assert_eq!((missing.status, &missing.body["code"]), (404, &json!("not_found")));
}

#[tokio::test]
async fn readiness_says_what_it_found() {
    let fake = Fake::new();
    let asked = json!({"kind": "http", "path": "/healthz", "timeout_secs": 12, "interval_ms": 250});
    let ready = send(&fake, "POST", &format!("{ONE}/ports/3000/readiness"), asked).await;
    assert_eq!(ready.status, 200);
    assert!(fake.last_call().contains("kind: Some(Http), path: Some(\"/healthz\"), timeout_secs: Some(12)"));
    let fields =
        ["attempts", "checked_at", "elapsed_ms", "kind", "port", "ready", "route_ready", "sandbox_id", "service_ready"];
    assert_eq!(keys(&ready.body), fields);
    let wrong = send(&fake, "POST", &format!("{ONE}/ports/3000/readiness"), json!({"kind": "udp"})).await;
    assert_eq!(wrong.status, 400);
}

#[tokio::test]
async fn wrong_ports_and_other_tenants_are_refused() {
    let fake = Fake::new();
    for port in ["x", "-1", "+1", "1.5", "", "99999999999", "0x50"] {
        let wrong = get(&fake, &format!("{ONE}/ports/{port}/preview-url")).await;
        assert!([400, 404].contains(&wrong.status), "{port}: {}", wrong.status);
        assert!(!fake.last_call().contains("preview_url"), "{port}");
    }
    for body in [json!({}), json!({"port": "80"}), json!({"port": -1}), json!({"port": null})] {
        assert_eq!(send(&fake, "POST", &format!("{ONE}/host"), body).await.status, 400);
    }
    for (method, path, body) in [
        ("POST", "host", "{\"port\": 80}"),
        ("GET", "ports/80/preview-url", ""),
        ("POST", "ports/80/signed-preview-url", "{}"),
        ("POST", "ports/80/readiness", "{}"),
        ("GET", "preview-urls", ""),
        ("DELETE", "preview-urls/pvg_1", ""),
    ] {
        let request = request(method, &format!("{ONE}/{path}"), OTHER_KEY).header("content-type", "application/json");
        let theirs = answer(&fake, request.body(Body::from(body)).unwrap()).await;
        assert_eq!((theirs.status, &theirs.body["code"]), (404, &json!("sandbox_not_found")), "{path}");
    }
}
