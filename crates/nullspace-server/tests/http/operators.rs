//! What operators expect: readiness apart from liveness, counters, and a bound on how fast a tenant may ask.

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode, header};
use nullspace_api::{ErrorResponse, ErrorResponseCode};
use nullspace_server::{RequestRate, Routers, ServerConfig, routers};
use tower::ServiceExt;

use crate::support::{Fake, KEY, OTHER_KEY};

fn get(path: &str, key: Option<&str>) -> Request<Body> {
    let mut request = Request::get(path);
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    request.body(Body::empty()).unwrap()
}

async fn text(response: axum::response::Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn readiness_follows_the_backends_and_liveness_does_not() {
    let fake = Fake::new();
    let router = fake.router(ServerConfig::default());
    let ready = router.clone().oneshot(get("/readyz", None)).await.unwrap();
    assert_eq!((ready.status(), text(ready).await.as_str()), (StatusCode::OK, "{\"status\":\"ok\"}"));
    *fake.down.lock().unwrap() = true;
    let down = router.clone().oneshot(get("/readyz", None)).await.unwrap();
    assert_eq!(down.status(), StatusCode::SERVICE_UNAVAILABLE);
    let error: ErrorResponse = serde_json::from_str(&text(down).await).unwrap();
    assert_eq!(error.code, ErrorResponseCode::DatabaseError);
    let alive = router.oneshot(get("/healthz", None)).await.unwrap();
    assert_eq!(alive.status(), StatusCode::OK);
}

#[tokio::test]
async fn metrics_need_the_token_and_count_by_route_not_by_path() {
    let config = ServerConfig { metrics_token: Some("open-sesame".into()), ..ServerConfig::default() };
    let router = Fake::new().router(config);
    for id in ["tmpl_1", "tmpl_2"] {
        router.clone().oneshot(get(&format!("/v1/templates/{id}"), Some(KEY))).await.unwrap();
    }
    for shown in [None, Some("open-sesamE"), Some(KEY)] {
        let refused = router.clone().oneshot(get("/metrics", shown)).await.unwrap();
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{shown:?}");
    }
    let page = router.oneshot(get("/metrics", Some("open-sesame"))).await.unwrap();
    assert_eq!(page.status(), StatusCode::OK);
    let page = text(page).await;
    for line in [
        "fake 1\n",
        "nullspace_http_requests_total{method=\"GET\",route=\"/v1/templates/{id}\",status=\"200\"} 1\n",
        "nullspace_http_requests_total{method=\"GET\",route=\"/v1/templates/{id}\",status=\"404\"} 1\n",
    ] {
        assert!(page.contains(line), "{line}{page}");
    }
    assert!(!page.contains("tmpl_1") && page.ends_with("# EOF\n"), "{page}");
}

#[tokio::test]
async fn without_a_token_only_this_host_reads_metrics() {
    let router = Fake::new().router(ServerConfig::default());
    // A forged header or extension of the framework's own says nothing about the peer.
    let mut request = get("/metrics", None);
    request.extensions_mut().insert(ConnectInfo(std::net::SocketAddr::from(([127, 0, 0, 1], 1))));
    request.headers_mut().insert("x-forwarded-for", "127.0.0.1".parse().unwrap());
    assert_eq!(router.oneshot(request).await.unwrap().status(), StatusCode::UNAUTHORIZED);

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let router = Fake::new().router(ServerConfig::default());
    let server = tokio::spawn(nullspace_server::serve(listener, router, async { drop(stopped.await) }));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("fake 1"), "{answer}");
    drop(stop);
    server.await.unwrap().unwrap();
}

#[tokio::test]
async fn one_tenant_that_asks_too_fast_is_told_when_to_come_back_and_others_are_not_held_up() {
    let config = ServerConfig { rate: RequestRate { per_second: 1, burst: 2 }, ..ServerConfig::default() };
    let router = Fake::new().router(config);
    let ask = |key| {
        let router = router.clone();
        async move { router.oneshot(get("/v1/templates", Some(key))).await.unwrap() }
    };
    for _ in 0..2 {
        assert_eq!(ask(KEY).await.status(), StatusCode::OK);
    }
    // A slow machine may be given another one for each second that it takes.
    let mut refused = ask(KEY).await;
    for _ in 0..30 {
        if refused.status() != StatusCode::OK {
            break;
        }
        refused = ask(KEY).await;
    }
    assert_eq!(
        (refused.status(), &refused.headers()["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"1".parse().unwrap())
    );
    let error: ErrorResponse = serde_json::from_str(&text(refused).await).unwrap();
    assert_eq!(error.code, ErrorResponseCode::RateLimitExceeded);
    assert_eq!(ask(OTHER_KEY).await.status(), StatusCode::OK);
    // What is open to all is not counted against anybody.
    for _ in 0..5 {
        assert_eq!(router.clone().oneshot(get("/healthz", None)).await.unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn the_operators_own_address_has_their_routes_and_no_others() {
    let config = ServerConfig { metrics_token: Some("open-sesame".into()), ..ServerConfig::default() };
    let Routers { api, operators } = routers(Fake::new(), config);
    for (path, key, status) in [
        ("/healthz", None, StatusCode::OK),
        ("/readyz", None, StatusCode::OK),
        ("/readyz?verbose", Some("open-sesame"), StatusCode::OK),
        ("/readyz?verbose", None, StatusCode::UNAUTHORIZED),
        ("/metrics", None, StatusCode::UNAUTHORIZED),
        // A tenant's key opens nothing there, and the token nothing of the API.
        ("/metrics", Some(KEY), StatusCode::UNAUTHORIZED),
        ("/v1/templates", Some(KEY), StatusCode::NOT_FOUND),
        ("/v1/templates", Some("open-sesame"), StatusCode::NOT_FOUND),
        ("/openapi.json", None, StatusCode::NOT_FOUND),
    ] {
        let answer = operators.clone().oneshot(get(path, key)).await.unwrap();
        assert_eq!(answer.status(), status, "{path} {key:?}");
    }
    // Both count together.
    assert_eq!(api.oneshot(get("/v1/templates", Some(KEY))).await.unwrap().status(), StatusCode::OK);
    let page = text(operators.oneshot(get("/metrics", Some("open-sesame"))).await.unwrap()).await;
    let line = "nullspace_http_requests_total{method=\"GET\",route=\"/v1/templates\",status=\"200\"} 1\n";
    assert!(page.contains(line), "{page}");
}

/// One answer to a request without a key from this host's loopback, by a server of its own.
async fn asked_from_here(config: ServerConfig, path: &str) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let router = Fake::new().router(config);
    let server = tokio::spawn(nullspace_server::serve(listener, router, async { drop(stopped.await) }));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut answer).await.unwrap();
    drop(stop);
    server.await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn where_guests_reach_this_hosts_loopback_it_opens_nothing() {
    for path in ["/metrics", "/readyz?verbose"] {
        let open = asked_from_here(ServerConfig::default(), path).await;
        assert!(open.starts_with("HTTP/1.1 200"), "{path}: {open}");
        let config = ServerConfig { guests_on_loopback: true, ..ServerConfig::default() };
        let closed = asked_from_here(config, path).await;
        assert!(closed.starts_with("HTTP/1.1 401") && closed.contains("metrics_token"), "{path}: {closed}");
    }
    let config = ServerConfig { guests_on_loopback: true, ..ServerConfig::default() };
    assert!(asked_from_here(config, "/readyz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_verbose_readiness_says_what_machines_run_under_to_operators_only() {
    let router =
        Fake::new().router(ServerConfig { metrics_token: Some("open-sesame".into()), ..ServerConfig::default() });
    let refused = router.clone().oneshot(get("/readyz?verbose", None)).await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let told = router.oneshot(get("/readyz?verbose", Some("open-sesame"))).await.unwrap();
    assert_eq!((told.status(), text(told).await.as_str()), (StatusCode::OK, "ok\nmachines: imaginary\n"));
}
