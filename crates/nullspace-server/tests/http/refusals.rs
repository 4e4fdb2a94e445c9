//! Whatever is wrong with a request, the answer has the contract's shape, the right code, and says what to change.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use nullspace_api::{ErrorResponse, ErrorResponseCode};
use nullspace_server::ServerConfig;
use tower::ServiceExt;
use tracing::instrument::WithSubscriber;

use crate::support::{Fake, KEY, OTHER_KEY};

/// A webhook whose secret is in the wrong form.
const WEBHOOK: &str = r#"{"url": "https://a", "operations": ["create"], "signing_secret": 271828182845}"#;

/// A small limit, so that a test can exceed it.
fn config() -> ServerConfig {
    ServerConfig { max_json_body: 4096, max_head: 2048, ..ServerConfig::default() }
}

async fn answer(request: Request<Body>) -> (StatusCode, HeaderMap, Vec<u8>) {
    let response = Fake::new().router(config()).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    (parts.status, parts.headers, to_bytes(body, 1 << 20).await.unwrap().to_vec())
}

fn request(method: &str, path: &str) -> axum::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {KEY}"))
        .header("x-request-id", "r1")
}

fn get(path: &str) -> Request<Body> {
    request("GET", path).body(Body::empty()).unwrap()
}

fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    request("POST", path).header("content-type", "application/json").body(body.into()).unwrap()
}

fn builds(body: impl Into<Body>) -> Request<Body> {
    post("/v1/templates/builds", body)
}

#[tokio::test]
async fn every_refusal_has_the_contracts_shape() {
    let chunked = Body::from_stream(futures::stream::iter([0, 1].map(|_| Ok::<_, io::Error>(vec![b' '; 3000]))));
    let broken = Body::from_stream(futures::stream::iter([Ok(vec![b'{']), Err(io::Error::other("gone"))]));
    let cases = [
        ("unknown route", get("/nope")),
        ("unknown route of the API", get("/v1/nope")),
        ("route with a slash too many", get("/v1/templates/")),
        ("wrong method", request("PUT", "/v1/templates/builds").body(Body::empty()).unwrap()),
        ("wrong method, public", request("POST", "/healthz").body(Body::empty()).unwrap()),
        ("reference that nothing has", get("/v1/templates/refs/ns/none:v1")),
        ("reference with too many slashes", get("/v1/templates/refs/a/b/c")),
        ("wrong method of a reference", request("PUT", "/v1/templates/refs/app").body(Body::empty()).unwrap()),
        ("no JSON", builds("name=app")),
        ("cut off JSON", builds("{\n  \"name\": \"app\",\n")),
        ("more after JSON", builds("{} {}")),
        ("empty body", builds("")),
        ("not UTF-8", builds(&b"{\"name\": \"\xff\"}"[..])),
        ("deep JSON", builds("{\"steps\": ".to_owned() + &"[".repeat(2000))),
        ("deep metadata", post("/v1/sandboxes", "{\"metadata\": {\"a\": ".to_owned() + &"[".repeat(2000))),
        ("not an object", builds("[]")),
        ("wrong type", builds("{\"build_config\": {\"vcpus\": \"canary-two\"}}")),
        ("negative number", builds("{\"build_config\": {\"vcpus\": -1}}")),
        ("fractional number", builds("{\"build_config\": {\"vcpus\": 1.5}}")),
        ("password in the wrong place", builds("{\"base_image_auth\": \"canary-password\"}")),
        ("unknown enum value", builds("{\"build_backend\": \"docker\"}")),
        ("unknown step", builds("{\"steps\": [{\"action\": \"run\", \"command\": \"x\"}, {\"action\": \"dance\"}]}")),
        ("step without its field", builds("{\"steps\": [{\"action\": \"run\"}]}")),
        (
            "permissions that are none",
            builds("{\"steps\": [{\"action\": \"make_dir\", \"path\": \"/d\", \"mode\": true}]}"),
        ),
        ("duplicate field", builds("{\"name\": \"a\", \"name\": \"b\"}")),
        ("no exec command", post("/v1/sandboxes/sb_1/exec", "{}")),
        (
            "wrong media type",
            request("POST", "/v1/templates/builds").header("content-type", "text/plain").body("{}".into()).unwrap(),
        ),
        ("no media type", request("POST", "/v1/templates/builds").body("{}".into()).unwrap()),
        ("large body", builds(vec![b' '; 5000])),
        ("large body in chunks", builds(chunked)),
        ("body that breaks off", builds(broken)),
        (
            "large headers",
            request("GET", "/v1/templates").header("x-large", "a".repeat(3000)).body(Body::empty()).unwrap(),
        ),
        ("path not UTF-8", get("/v1/templates/%ff")),
        ("negative offset", get("/v1/templates/builds/tb_1?offset=-1")),
        ("offset no number", get("/v1/templates/builds/tb_1/logs?offset=abc")),
        ("offset too large", get("/v1/templates/builds/tb_1/logs?cursor=18446744073709551616")),
        ("follow maybe", get("/v1/templates/builds/tb_1/logs?follow=maybe")),
        ("parameter twice", get("/v1/templates/builds/tb_1?offset=1&offset=2")),
        ("unknown field", get("/v1/templates?fields=id,secret")),
        ("field that cannot be picked", get("/v1/templates/tmpl_1?fields=runtime_defaults")),
        ("no fields", get("/v1/sandboxes?fields=,")),
        ("unknown state", get("/v1/sandboxes?state=running,asleep")),
        ("page of none", get("/v1/sandboxes?limit=0")),
        ("metadata no object", get("/v1/sandboxes?metadata=[1]")),
        ("bad idempotency key", post("/v1/sandboxes", "{}").with_header("idempotency-key", "a b")),
        ("no timeout", post("/v1/sandboxes/sb_1/timeout", "")),
        ("timeout in words", post("/v1/sandboxes/sb_1/timeout", "{\"timeout_ms\": \"canary-ten\"}")),
        ("unknown action", post("/v1/sandboxes/sb_1/timeout", "{\"timeout_ms\": 1, \"timeout_action\": \"nap\"}")),
        ("a body that is no object", post("/v1/sandboxes/sb_1/fork", "[]")),
        ("no metadata of snapshots", get("/v1/snapshots?metadata=[1]")),
        ("events for operators", get("/v1/lifecycle/events?audience=internal")),
        ("events for somebody else", get("/v1/lifecycle/events?audience=everybody")),
        ("no operation", get("/v1/sandboxes/sb_1/lifecycle?operation=dance")),
        ("no time", get("/v1/snapshots/snap_1/lifecycle?from=yesterday")),
        ("times the wrong way round", get("/v1/lifecycle/events?from=2025-01-02T00:00:00Z&to=2025-01-01T00:00:00Z")),
        ("no page of events", get("/v1/lifecycle/events?limit=0")),
        ("offset far out", get("/v1/lifecycle/events?offset=4294967296")),
        ("no order", get("/v1/lifecycle/events?order=up")),
        (
            "webhook of no operation",
            post("/v1/lifecycle/webhooks", "{\"url\": \"https://a\", \"operations\": [\"dance\"]}"),
        ),
        ("webhook with a number for a secret", post("/v1/lifecycle/webhooks", WEBHOOK)),
        ("no page of deliveries", get("/v1/lifecycle/webhooks/w/deliveries?limit=0")),
        ("unknown build", get("/v1/templates/builds/tb_2")),
        ("unknown build's log", get("/v1/templates/builds/tb_2/logs?follow=true")),
        (
            "another tenant's build",
            get("/v1/templates/builds/tb_1").with_header("authorization", &format!("Bearer {OTHER_KEY}")),
        ),
        ("request with details", builds("{\"tags\": []}")),
        ("conflict", get("/v1/templates/conflict")),
        ("too fast", get("/v1/templates/busy")),
        ("too fast, without a hint", get("/v1/templates/busy-without-hint")),
        ("internal error", get("/v1/templates/broken")),
        ("panic", get("/v1/templates/panic")),
        ("exec failed", post("/v1/sandboxes/sb_1/exec", "{\"command\": \"missing\"}")),
        ("exec too slow", post("/v1/sandboxes/sb_1/exec", "{\"command\": \"slow\"}")),
        ("store down", get("/v1/templates").with_header("authorization", "Bearer ns_live_store-is-down")),
    ];
    let mut table = String::new();
    for (what, request) in cases {
        let (status, headers, body) = answer(request).await;
        let text = String::from_utf8(body.clone()).unwrap();
        assert_eq!(headers["content-type"], "application/json", "{what}");
        assert_eq!(headers["x-request-id"], "r1", "{what}");
        let error: ErrorResponse =
            serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{what}: {error}: {text}"));
        assert_eq!(error.request_id.as_deref(), Some("r1"), "{what}");
        assert!(!text.contains("canary"), "{what} shows what it must not: {text}");
        let code = serde_json::to_value(error.code).unwrap();
        writeln!(table, "{what}\n    {} {} {}", status.as_u16(), code.as_str().unwrap(), error.error).unwrap();
        for name in ["allow", "retry-after", "www-authenticate"] {
            if let Some(value) = headers.get(name) {
                writeln!(table, "    {name}: {}", value.to_str().unwrap()).unwrap();
            }
        }
        if let Some(detail) = error.error_detail {
            writeln!(table, "    {} {}", error.build_id.unwrap(), serde_json::to_string(&detail).unwrap()).unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

trait WithHeader {
    fn with_header(self, name: &'static str, value: &str) -> Self;
}

impl WithHeader for Request<Body> {
    fn with_header(mut self, name: &'static str, value: &str) -> Self {
        self.headers_mut().insert(name, value.parse().unwrap());
        self
    }
}

#[tokio::test]
async fn nothing_of_a_request_is_looked_at_without_a_key() {
    let without: &[&[(&str, &str)]] = &[
        &[],
        &[("authorization", "")],
        &[("authorization", "Bearer")],
        &[("authorization", "Bearer ")],
        &[("authorization", "Basic dXNlcjpwYXNz")],
        &[("authorization", "Bearer ns_live_wrong")],
        &[("authorization", "Bearer two words")],
        &[("authorization", KEY)],
        &[("authorization", "Bearer ns_live_canary-key"), ("authorization", "Bearer ns_live_other")],
    ];
    let places = [
        ("GET", "/v1/templates"),
        ("GET", "/v1/nope"),
        ("POST", "/v1/sandboxes/sb_1/hibernate"),
        ("GET", "/v1/lifecycle/ws"),
        ("PUT", "/v1/templates"),
        ("POST", "/v1/templates/builds"),
        ("GET", "/v1/templates/%ff"),
        ("GET", "/v1/templates/builds/tb_1/logs?follow=true"),
    ];
    for headers in without {
        for (method, path) in places {
            let mut request = Request::builder().method(method).uri(path);
            for (name, value) in *headers {
                request = request.header(*name, *value);
            }
            let (status, headers, body) = answer(request.body("{ no json".into()).unwrap()).await;
            assert_eq!(status, 401, "{method} {path}");
            assert_eq!(headers["www-authenticate"], "Bearer");
            let error: ErrorResponse = serde_json::from_slice(&body).unwrap();
            assert_eq!(error.code, ErrorResponseCode::Unauthorized);
            assert_eq!(error.request_id.unwrap(), headers["x-request-id"].to_str().unwrap());
        }
    }
    // The scheme is case-insensitive (RFC 9110, 11.1).
    let lower = Request::builder().uri("/v1/templates").header("authorization", format!("bearer {KEY}"));
    assert_eq!(answer(lower.body(Body::empty()).unwrap()).await.0, 200);
    // Health is public.
    let (status, _, body) = answer(Request::builder().uri("/healthz").body(Body::empty()).unwrap()).await;
    assert_eq!((status.as_u16(), &body[..]), (200, &b"{\"status\":\"ok\"}"[..]));
}

#[tokio::test]
async fn a_sane_request_id_is_kept_and_any_other_replaced() {
    let longest = "x".repeat(128);
    for id in ["a", "0e1c-42", "!~", longest.as_str()] {
        let (_, headers, _) = answer(get("/v1/templates").with_header("x-request-id", id)).await;
        assert_eq!(headers["x-request-id"], id);
    }
    let too_long = "x".repeat(129);
    let mut seen = std::collections::BTreeSet::new();
    for id in ["", "two words", "tab\there", "é", too_long.as_str()] {
        let mut request = get("/v1/templates");
        let value = axum::http::HeaderValue::from_bytes(id.as_bytes()).unwrap();
        request.headers_mut().insert("x-request-id", value);
        let (_, headers, _) = answer(request).await;
        let new = headers["x-request-id"].to_str().unwrap().to_owned();
        assert_eq!(new.len(), 36, "{new} is no uuid");
        assert!(seen.insert(new), "ids must differ");
    }
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_has_one_line_per_request_with_its_id_and_nothing_secret() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let requests = [
        builds(
            "{\"base_image_auth\": {\"kind\": \"basic\", \"username\": \"u\", \"password\": \"canary-password\"}, \
             \"build_secrets\": [{\"id\": \"s\", \"value\": \"canary-secret\"}], \"build_envs\": {\"T\": \"canary-env\"}}",
        ),
        builds("{\"base_image_auth\": \"canary-password\"}"),
        get("/v1/templates/tmpl_1?fields=canary-query"),
        request("DELETE", "/v1/templates/claims/canary-claim").body(Body::empty()).unwrap(),
        Request::builder()
            .uri("/v1/templates")
            .header("authorization", "Bearer canary-wrong")
            .header("x-request-id", "r1")
            .body(Body::empty())
            .unwrap(),
    ];
    let count = requests.len();
    async {
        for request in requests {
            answer(request).await;
        }
        // Only here a cause is due, in the log alone.
        answer(get("/v1/templates/broken")).await;
        answer(get("/v1/templates/panic")).await;
    }
    .with_subscriber(subscriber)
    .await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let (causes, rest): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.contains("ERROR"));
    assert_eq!(
        rest.iter().filter(|line| line.contains("answered") && line.contains("request_id=r1")).count(),
        count + 2
    );
    assert!(rest.iter().all(|line| !line.contains("canary")), "{text}");
    assert_eq!(causes.len(), 2, "{text}");
    assert!(causes[0].contains("canary-cause: disk is full") && causes[0].contains("request_id=r1"), "{text}");
    assert!(causes[1].contains("handler panicked: canary-cause: a bug"), "{text}");
    assert!(text.contains("tenant=\"tn_aaaa") || text.contains("tenant=tn_aaaa"), "{text}");
}
