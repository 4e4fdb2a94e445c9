//! The routes about templates' names: how a path is read, and that every operation reaches its own call.

use axum::body::Body;
use axum::http::{Method, Request, StatusCode, header};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{Fake, KEY};

async fn send(fake: &std::sync::Arc<Fake>, method: &str, path: &str, body: Option<Value>) -> (StatusCode, Value) {
    let method: Method = method.parse().unwrap();
    let mut request =
        Request::builder().method(method).uri(path).header(header::AUTHORIZATION, format!("Bearer {KEY}"));
    let body = match body {
        None => Body::empty(),
        Some(body) => {
            request = request.header(header::CONTENT_TYPE, "application/json");
            Body::from(body.to_string())
        }
    };
    let response = fake.router(Default::default()).oneshot(request.body(body).unwrap()).await.unwrap();
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    (status, serde_json::from_slice(&bytes).unwrap_or_default())
}

#[tokio::test]
async fn every_operation_is_reached_by_id_and_by_both_spellings_of_a_reference() {
    let fake = Fake::new();
    for (method, tail, body, call, status) in [
        ("GET", "/tags", None, "template_tags REF", 200),
        ("POST", "/tags", Some(json!({"tags": ["v2"]})), "assign_tags REF [\"v2\"]", 200),
        ("DELETE", "/tags/v2", None, "remove_tag REF v2", 204),
        ("GET", "/aliases", None, "template_aliases REF", 200),
        ("DELETE", "/aliases/old", None, "remove_alias REF old", 204),
        ("DELETE", "/aliases/ns%2Fold", None, "remove_alias REF ns/old", 204),
        ("GET", "/builds?status=ready&limit=3", None, "template_builds REF BuildQuery { status: Some(Ready)", 200),
        ("POST", "/rename", Some(json!({"new_name": "new"})), "rename_template REF new", 200),
        ("PATCH", "/visibility", Some(json!({"visibility": "public"})), "set_visibility REF Public", 200),
        ("GET", "?fields=id", None, "get_template REF", 200),
    ] {
        for (base, reference) in [
            ("/v1/templates/tmpl_1", "tmpl_1"),
            ("/v1/templates/refs/tmpl_1", "tmpl_1"),
            ("/v1/templates/ns%2Fapp%3Av1", "ns/app:v1"),
            ("/v1/templates/refs/ns%2Fapp%3Av1", "ns/app:v1"),
            ("/v1/templates/refs/ns/app:v1", "ns/app:v1"),
        ] {
            let path = format!("{base}{tail}");
            let (answered, body) = send(&fake, method, &path, body.clone()).await;
            assert_eq!(answered.as_u16(), status, "{method} {path}: {body}");
            let expected = call.replace("REF", reference);
            assert!(fake.last_call().starts_with(&expected), "{method} {path}: {}", fake.last_call());
        }
    }
}

#[tokio::test]
async fn warnings_are_headers_beside_an_answer_as_ever() {
    let fake = Fake::new();
    let request = Request::builder()
        .method("PATCH")
        .uri("/v1/templates/tmpl_1/visibility")
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json");
    let body = Body::from(json!({"visibility": "public"}).to_string());
    let response = fake.router(Default::default()).oneshot(request.body(body).unwrap()).await.unwrap();
    let warnings: Vec<&str> =
        response.headers().get_all("x-nullspace-warning").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!((response.status(), warnings), (StatusCode::OK, vec!["gives away A", "and B"]));
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let template: nullspace_api::TemplateInfo = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(template.id, "tmpl_1");
}

#[tokio::test]
async fn a_template_that_exists_goes_before_a_part_of_another() {
    let fake = Fake::new();
    // The fake has `ns/tags` and no template `ns`.
    let (status, body) = send(&fake, "GET", "/v1/templates/refs/ns/tags", None).await;
    assert_eq!((status, body["id"].as_str()), (StatusCode::OK, Some("tmpl_1")));
    // It has `tmpl_1` and no `tmpl_1/tags`.
    let (status, body) = send(&fake, "GET", "/v1/templates/refs/tmpl_1/tags", None).await;
    assert_eq!((status, body), (StatusCode::OK, json!([])));
    // What is there neither way is not found.
    let (status, body) = send(&fake, "GET", "/v1/templates/refs/none/tags", None).await;
    assert_eq!((status, body["code"].as_str()), (StatusCode::NOT_FOUND, Some("template_not_found")));
}

#[tokio::test]
async fn a_path_that_means_nothing_is_refused_in_the_contracts_shape() {
    let fake = Fake::new();
    for (method, path, status, code) in [
        ("GET", "/v1/templates/refs/a/b/c", 404, "not_found"),
        ("GET", "/v1/templates/refs/%zz", 400, "invalid_request"),
        ("PUT", "/v1/templates/refs/app", 405, "invalid_request"),
        ("PUT", "/v1/templates/refs/app/tags", 405, "invalid_request"),
        ("POST", "/v1/templates/refs/tmpl_1/tags", 415, "invalid_request"),
        ("GET", "/v1/templates/refs/tmpl_1/builds?limit=x", 400, "invalid_request"),
        ("GET", "/v1/templates/refs/tmpl_1?fields=nope", 400, "invalid_fields"),
        ("DELETE", "/v1/templates/claims/other", 404, "template_name_claim_not_found"),
        ("GET", "/v1/templates/namespaces/other", 404, "not_found"),
    ] {
        let (answered, body) = send(&fake, method, path, None).await;
        assert_eq!((answered.as_u16(), body["code"].as_str()), (status, Some(code)), "{method} {path}: {body}");
        assert!(body["request_id"].is_string());
    }
}

#[tokio::test]
async fn a_wrong_method_is_answered_with_those_that_there_are() {
    for (path, allowed) in [("tmpl_1", "GET,HEAD,DELETE"), ("ns/app/tags", "GET,HEAD,POST"), ("a/rename", "POST")] {
        let request = Request::put(format!("/v1/templates/refs/{path}"))
            .header(header::AUTHORIZATION, format!("Bearer {KEY}"))
            .body(Body::empty())
            .unwrap();
        let answer = Fake::new().router(Default::default()).oneshot(request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(answer.headers()[header::ALLOW], allowed, "{path}");
    }
}

#[tokio::test]
async fn an_upload_is_streamed_and_must_be_raw_bytes() {
    let fake = Fake::new();
    let upload = |media_type: &'static str| {
        Request::put("/v1/templates/blobs/sha256-x-3")
            .header(header::AUTHORIZATION, format!("Bearer {KEY}"))
            .header(header::CONTENT_TYPE, media_type)
            .body(Body::from("abc"))
            .unwrap()
    };
    let answer = fake.router(Default::default()).oneshot(upload("application/octet-stream")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NO_CONTENT);
    assert_eq!(fake.last_call(), "upload_blob sha256-x-3 3");
    let answer = fake.router(Default::default()).oneshot(upload("application/json")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
}
