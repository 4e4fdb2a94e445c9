//! Bad input, over a real connection: each with the contract's error body.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::fixture::{Api, Service};

const BUILDS: &str = "/v1/templates/builds";

fn raw(api: &Api, body: impl Into<reqwest::Body>) -> RequestBuilder {
    api.request(Method::POST, BUILDS).header("content-type", "application/json").body(body)
}

#[tokio::test]
async fn bad_input_is_answered_in_the_contracts_shape() {
    let mut service = Service::start().await;
    let api = service.api();
    let build = |body: Value| api.request(Method::POST, BUILDS).json(&body);
    let unknown_build = "tb_0190d5e0-0000-7000-8000-000000000000";
    let cases: Vec<(&str, RequestBuilder, u16, &str)> = vec![
        ("malformed JSON", raw(&api, "{\"name\": "), 400, "invalid_request"),
        ("no JSON", raw(&api, "name=app"), 400, "invalid_request"),
        ("empty body", raw(&api, ""), 400, "invalid_request"),
        ("wrong type", build(json!({"base_image": 7})), 400, "invalid_request"),
        ("deep nesting", raw(&api, "[".repeat(100_000)), 400, "invalid_request"),
        ("oversized body", raw(&api, vec![b' '; 17 << 20]), 413, "invalid_request"),
        (
            "wrong content type",
            api.request(Method::POST, BUILDS).header("content-type", "text/plain").body("{}"),
            415,
            "invalid_request",
        ),
        ("no content type", api.request(Method::POST, BUILDS).body("{}"), 415, "invalid_request"),
        ("no key", api.anonymous(Method::GET, "/v1/templates"), 401, "unauthorized"),
        (
            "wrong key",
            api.anonymous(Method::GET, "/v1/templates").bearer_auth("ns_live_0000000000000000000000000000"),
            401,
            "unauthorized",
        ),
        (
            "not a bearer",
            api.anonymous(Method::GET, "/v1/templates").basic_auth("user", Some("password")),
            401,
            "unauthorized",
        ),
        ("unknown route", api.request(Method::GET, "/v1/no-such-thing"), 404, "not_found"),
        ("unknown route without a key", api.anonymous(Method::GET, "/no-such-thing"), 404, "not_found"),
        ("wrong method", api.request(Method::PATCH, BUILDS), 405, "invalid_request"),
        ("unknown template", api.request(Method::GET, "/v1/templates/no-such-template"), 404, "template_not_found"),
        ("not a reference", api.request(Method::GET, "/v1/templates/no%20such"), 404, "template_not_found"),
        ("delete unknown template", api.request(Method::DELETE, "/v1/templates/nothing"), 404, "template_not_found"),
        (
            "unknown build",
            api.request(Method::GET, &format!("{BUILDS}/{unknown_build}")),
            404,
            "template_build_not_found",
        ),
        ("not a build id", api.request(Method::GET, &format!("{BUILDS}/nonsense")), 404, "template_build_not_found"),
        (
            "log of an unknown build",
            api.request(Method::GET, &format!("{BUILDS}/{unknown_build}/logs?follow=true")),
            404,
            "template_build_not_found",
        ),
        (
            "negative offset",
            api.request(Method::GET, &format!("{BUILDS}/{unknown_build}?offset=-1")),
            400,
            "invalid_request",
        ),
        ("unknown sandbox", api.request(Method::GET, "/v1/sandboxes/sb_nothing"), 404, "sandbox_not_found"),
        ("empty tags", build(json!({"base_image": "x", "tags": []})), 400, "invalid_request"),
        ("bad name", build(json!({"base_image": "x", "name": "no spaces"})), 400, "invalid_request"),
        ("bad image reference", build(json!({"base_image": "UPPER/Case::"})), 400, "invalid_request"),
        ("unknown parent", build(json!({"base_image": "nullspace/no-such:latest"})), 404, "template_not_found"),
        ("tiny disk", build(json!({"base_image": "x", "build_config": {"disk_mb": 511}})), 400, "invalid_request"),
        ("no memory", build(json!({"base_image": "x", "build_config": {"memory_mib": 1}})), 400, "invalid_request"),
        ("two sources", build(json!({"base_image": "x", "dockerfile": "FROM scratch"})), 400, "invalid_request"),
        (
            "native Dockerfile",
            build(json!({"dockerfile": "FROM scratch", "build_backend": "native"})),
            400,
            "invalid_request",
        ),
        (
            "bad readiness",
            build(json!({"base_image": "x", "runtime_config": {"readiness": {"kind": "tcp", "port": 0}}})),
            400,
            "invalid_request",
        ),
        (
            "unknown readiness",
            build(json!({"base_image": "x", "runtime_config": {"readiness": {"kind": "psychic"}}})),
            400,
            "invalid_request",
        ),
        (
            "credentials without an image",
            build(json!({"base_image_auth": {"kind": "basic", "username": "u", "password": "canary-password"}})),
            400,
            "invalid_request",
        ),
    ];
    for (what, request, status, code) in cases {
        let answer = api.send(request).await;
        assert_eq!(answer.status, status, "{what}: {}", String::from_utf8_lossy(&answer.body));
        let refused = answer.refused(status, code);
        assert!(!refused.error.contains("canary"), "{what}: {refused:?}");
    }

    // A request id is repeated; health needs no key.
    let named = api.request(Method::GET, "/v1/templates/nothing").header("x-request-id", "my-own-id");
    let refused = api.send(named).await.refused(404, "template_not_found");
    assert_eq!(refused.request_id.as_deref(), Some("my-own-id"));
    let health: Value = api.send(api.anonymous(Method::GET, "/healthz")).await.ok(200);
    assert_eq!(health, json!({"status": "ok"}));
    assert!(!service.log().lines().join("\n").contains("canary-password"));
    // Nothing was accepted of all that.
    let templates: Vec<Value> = api.get("/v1/templates").await.ok(200);
    assert!(templates.is_empty(), "{templates:?}");
    assert!(service.machines().is_empty());
    service.stop().await;
}
