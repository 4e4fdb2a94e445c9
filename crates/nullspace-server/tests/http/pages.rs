//! Pages in browsers call the API from any origin, with a key.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use nullspace_server::ServerConfig;
use tower::ServiceExt;

use crate::support::{Fake, KEY};

async fn ask(fake: &Arc<Fake>, method: &str, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).unwrap();
    let response = fake.router(ServerConfig::default()).oneshot(request).await.unwrap();
    (response.status(), response.headers().clone())
}

#[tokio::test]
async fn a_page_may_ask_before_it_has_a_key_and_read_every_answer() {
    let fake = Fake::new();
    let origin = ("origin", "https://app.example.com");
    let asks = [origin, ("access-control-request-method", "POST")];
    let (status, headers) = ask(&fake, "OPTIONS", "/v1/sandboxes", &asks).await;
    assert_eq!(status, 200);
    assert_eq!(headers["access-control-allow-origin"], "*");
    assert!(headers["access-control-allow-methods"].to_str().unwrap().contains("DELETE"));
    assert!(headers["access-control-allow-headers"].to_str().unwrap().contains("authorization"));
    assert!(headers.get("access-control-allow-credentials").is_none());

    let key = format!("Bearer {KEY}");
    for (path, authorization, expected) in [
        ("/healthz", None, 200),
        ("/v1/templates", Some(key.as_str()), 200),
        ("/v1/templates", None, 401),
        ("/v1/nothing", Some(key.as_str()), 404),
    ] {
        let mut given = vec![origin];
        given.extend(authorization.map(|key| ("authorization", key)));
        let (status, headers) = ask(&fake, "GET", path, &given).await;
        assert_eq!(status, expected, "{path}");
        assert_eq!(headers["access-control-allow-origin"], "*", "{path}");
    }
}

#[tokio::test]
async fn programs_and_operators_see_nothing_of_it() {
    let fake = Fake::new();
    let (_, headers) = ask(&fake, "GET", "/healthz", &[]).await;
    assert!(headers.get("access-control-allow-origin").is_none());
    let origin = ("origin", "https://app.example.com");
    for path in ["/metrics", "/readyz"] {
        let (_, headers) = ask(&fake, "GET", path, &[origin]).await;
        assert!(headers.get("access-control-allow-origin").is_none(), "{path}");
        let (status, headers) = ask(&fake, "OPTIONS", path, &[origin, ("access-control-request-method", "GET")]).await;
        assert_ne!(status, 200, "{path}");
        assert!(headers.get("access-control-allow-origin").is_none(), "{path}");
    }
    let key = format!("Bearer {KEY}");
    let (status, _) = ask(&fake, "OPTIONS", "/v1/sandboxes", &[("authorization", &key)]).await;
    assert_eq!(status, 405, "no page, no preflight");
}
