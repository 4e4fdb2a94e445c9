//! Ports of sandboxes: who gets in, addresses, tokens and their ends.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{
    CreateSignedPreviewUrlRequest, ErrorResponseCode as Code, PreviewGrantInfoStatus, PreviewReadinessRequest,
    PreviewUrlResponse, SandboxStatus as Status,
};
use nullspace_db::{Grant, NamespaceKind};
use nullspace_service::{Entered, Error, Knock, Life as _, LocalPorts, Ports as _, Previews as _, Sandboxes as _};
use nullspace_types::TenantId;
use serde_json::json;

use super::{House, KEY, at, config, context, usual};
use crate::Control;

fn token(url: &str) -> &str {
    url.split_once("?edge_token=").expect("a token").1
}

impl House {
    async fn knock(&self, id: &str, port: u16, token: Option<&str>) -> Result<Entered, Error> {
        let token = token.map(Into::into);
        self.control.enter(Knock { sandbox: id.to_owned(), port, token, websocket: false }).await
    }

    /// The code of a refusal, with when to come back.
    async fn refused(&self, id: &str, port: u16, token: Option<&str>) -> (Code, Option<u64>) {
        let error = self.knock(id, port, token).await.err().expect("it is refused");
        (error.code, error.retry_after.map(|after| after.as_secs()))
    }

    async fn signed(&self, id: &str, port: u32, secs: u64) -> Result<PreviewUrlResponse, Error> {
        let request = CreateSignedPreviewUrlRequest { expires_in_seconds: Some(secs) };
        self.control.create_signed_preview_url(&self.caller, id, port, request).await
    }

    async fn private(&self) -> (String, String) {
        let request = json!({"template": "web", "network": {"allow_public_traffic": false}});
        let request = serde_json::from_value(request).unwrap();
        let made = self.control.create_sandbox(&self.caller, request, &context(None)).await.unwrap();
        (made.id, made.traffic_access_token.expect("a token"))
    }

    async fn traffic_token(&self, id: &str) -> Option<String> {
        self.control.get_sandbox(&self.caller, id).await.unwrap().traffic_access_token
    }

    /// A grant as it is stored, after what is counted was written.
    async fn grant(&self, id: &str) -> Grant {
        self.control.inner.write_grant_uses().await;
        let grants = self.control.inner.db.list_grants(&self.caller, id.parse().unwrap(), None).await.unwrap();
        grants.into_iter().next().expect("a grant")
    }
}

const NOBODY: (Code, Option<u64>) = (Code::SandboxNotFound, None);

#[tokio::test]
async fn a_public_port_needs_no_token_and_a_private_one_the_sandboxs_or_its_own() {
    let house = House::new(usual()).await;
    let public = house.create(json!({})).await;
    let entered = house.knock(&public, 8000, None).await.unwrap();
    assert_eq!((entered.token_secs, entered.host.as_deref()), (None, None));
    assert!(house.traffic_token(&public).await.is_none());

    let (id, own) = house.private().await;
    assert_eq!(house.traffic_token(&id).await.as_deref(), Some(own.as_str()));
    assert!(house.knock(&id, 1, Some(&own)).await.is_ok() && house.knock(&id, 65535, Some(&own)).await.is_ok());
    let url = house.signed(&id, 8000, 600).await.unwrap();
    let signed = token(&url.url);
    assert_eq!(token(&url.websocket_url), signed);
    let entered = house.knock(&id, 8000, Some(signed)).await.unwrap();
    assert!((590..=600).contains(&entered.token_secs.unwrap()) && !entered.over.is_cancelled());
    let (other, others) = house.private().await;
    let wrong = format!("{own}x");
    let long = "a".repeat(100_000);
    for (id, port, token) in [
        (&id, 8000, None),
        (&id, 8000, Some("")),
        (&id, 8000, Some(wrong.as_str())),
        (&id, 8000, Some(long.as_str())),
        (&id, 8000, Some(others.as_str())),
        // Another port, another sandbox.
        (&id, 8001, Some(signed)),
        (&other, 8000, Some(signed)),
        (&id, 0, Some(own.as_str())),
    ] {
        assert_eq!(house.refused(id, port, token).await, NOBODY, "{port} {token:?}");
    }
    // On a public port, a token of something else is none.
    assert!(house.knock(&public, 8000, Some(signed)).await.unwrap().token_secs.is_none());
    for id in ["", "sb_1", "sb_00000000000000000000000000000000", "../x"] {
        assert_eq!(house.refused(id, 80, None).await, NOBODY, "{id}");
    }
    // All of these read the same.
    let texts = [house.knock(&id, 80, None).await.err(), house.knock("sb_1", 80, None).await.err()];
    assert_eq!(texts[0].as_ref().unwrap().message, texts[1].as_ref().unwrap().message);
    house.control.destroy_sandbox(&house.caller, &id).await.unwrap();
    assert_eq!(house.refused(&id, 8000, Some(signed)).await, NOBODY);
    assert_eq!(house.refused(&id, 8000, Some(&own)).await, NOBODY);
}

#[tokio::test]
async fn settings_of_ports_go_along_and_each_sandbox_has_a_token_of_its_own() {
    let mut house = House::new(usual()).await;
    let made = house
        .create(json!({"network": {"allow_public_traffic": false, "mask_request_host": "app.local:${PORT}"}, "auto_resume": true}))
        .await;
    let own = house.traffic_token(&made).await.unwrap();
    let row = house.control.inner.db.get_sandbox(&house.caller, made.parse().unwrap()).await.unwrap();
    assert!(!format!("{row:?}").contains(&own) && own.starts_with("nst_"));
    let entered = house.knock(&made, 8000, Some(&own)).await.unwrap();
    assert_eq!(entered.host.as_deref(), Some("app.local:8000"));

    let fork = house.control.fork_sandbox(&house.caller, &made, &context(None)).await.unwrap().id;
    house.pause(&made).await.unwrap();
    let resumed = house.resume(&made).await.unwrap();
    for id in [&fork, &resumed] {
        let token = house.traffic_token(id).await.unwrap();
        assert_ne!(token, own);
        assert_eq!(house.refused(id, 80, Some(&own)).await, NOBODY);
        assert_eq!(house.refused(id, 80, None).await, NOBODY);
        let entered = house.knock(id, 80, Some(&token)).await.unwrap();
        assert_eq!(entered.host.as_deref(), Some("app.local:80"));
    }
    // It stays its own while it continues as itself, also over a restart.
    let token = house.traffic_token(&resumed).await.unwrap();
    house.pause(&resumed).await.unwrap();
    assert_eq!(house.traffic_token(&resumed).await, Some(token.clone()));
    assert_eq!(house.refused(&resumed, 80, None).await, NOBODY, "a paused one does not show either");
    house.control.stop().await;
    house.restart(super::KEY).await;
    house.control.live_sandbox(&house.caller, &resumed).await.unwrap();
    assert!(house.knock(&resumed, 80, Some(&token)).await.is_ok());

    // A snapshot's setting can be changed for what is made from it.
    let snapshot = house.pause(&resumed).await.unwrap();
    let open = house.create(json!({"snapshot_id": snapshot, "network": {"allow_public_traffic": true}})).await;
    assert!(house.traffic_token(&open).await.is_none() && house.knock(&open, 80, None).await.is_ok());
}

#[tokio::test]
async fn a_revoked_or_expired_token_is_refused_at_once_and_ends_what_it_let_in() {
    let house = House::new(usual()).await;
    let (id, _) = house.private().await;
    let public = house.create(json!({})).await;
    for id in [&id, &public] {
        let url = house.signed(id, 8000, 600).await.unwrap();
        let signed = token(&url.url);
        let entered = house.knock(id, 8000, Some(signed)).await.unwrap();
        assert!(entered.token_secs.is_some());
        let revoked = house.control.revoke_preview_url(&house.caller, id, &url.grant.id).await.unwrap();
        assert_eq!((revoked.success, revoked.grant.status), (true, PreviewGrantInfoStatus::Revoked));
        assert!(entered.over.is_cancelled());
        assert_eq!(house.refused(id, 8000, Some(signed)).await, NOBODY);
        let again = house.control.revoke_preview_url(&house.caller, id, &url.grant.id).await.unwrap();
        assert_eq!(again.grant.revoked_at, revoked.grant.revoked_at);
    }
    let url = house.signed(&id, 8000, 1).await.unwrap();
    let entered = house.knock(&id, 8000, Some(token(&url.url))).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), entered.over.cancelled()).await.expect("it ends by itself");
    assert_eq!(house.refused(&id, 8000, Some(token(&url.url))).await, NOBODY);
    let listed = house.control.list_preview_urls(&house.caller, &id, Some(8000)).await.unwrap();
    let statuses: Vec<_> = listed.items.iter().map(|grant| grant.status).collect();
    assert_eq!(statuses, [PreviewGrantInfoStatus::Expired, PreviewGrantInfoStatus::Revoked]);
    assert!(house.control.list_preview_urls(&house.caller, &id, Some(1)).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn uses_are_counted_for_the_grant() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let url = house.signed(&id, 8000, 600).await.unwrap();
    assert_eq!(house.grant(&id).await.used, None);
    let entered = house.knock(&id, 8000, Some(token(&url.url))).await.unwrap();
    entered.count.bytes(10, 200);
    let websocket = Knock { sandbox: id.clone(), port: 8000, token: Some(token(&url.url).into()), websocket: true };
    let socket = house.control.enter(websocket).await.unwrap();
    socket.count.bytes(1, 2);
    socket.count.failed("port_not_listening");
    let grant = house.grant(&id).await;
    assert_eq!((grant.http_requests, grant.websockets, grant.bytes_in, grant.bytes_out), (1, 1, 11, 202));
    assert_eq!(grant.last_error.unwrap().0, "port_not_listening");
    entered.count.bytes(0, 1);
    drop((entered, socket));
    let grant = house.grant(&id).await;
    assert_eq!((grant.http_requests, grant.bytes_out), (1, 203));
    let shown = house.control.list_preview_urls(&house.caller, &id, None).await.unwrap().items.remove(0);
    assert_eq!((shown.use_count, shown.http_request_count, shown.bytes_in_count), (2, 1, 11));
}

#[tokio::test]
async fn a_request_wakes_a_paused_sandbox_once_and_only_where_it_may() {
    let house = House::new(usual()).await;
    let id = house.create(json!({"auto_resume": true})).await;
    house.pause(&id).await.unwrap();
    let before = house.starts();
    // No start ends before all of them have asked.
    let held = house.host.starting.acquire_many(1000).await.unwrap();
    for _ in 0..5 {
        assert_eq!(house.refused(&id, 80, None).await, (Code::SandboxNotReady, Some(5)));
    }
    drop(held);
    house.until_status(&id, Ok(Status::Running)).await;
    while house.knock(&id, 80, None).await.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(house.starts(), before + 1);

    // One that cannot be resumed is left alone for a while.
    house.pause(&id).await.unwrap();
    house.host.state.failing_starts.store(1, Ordering::SeqCst);
    while house.starts() == before + 1 {
        assert_eq!(house.refused(&id, 80, None).await, (Code::SandboxNotReady, Some(5)));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while !house.host.machines().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    for _ in 0..5 {
        assert_eq!(house.refused(&id, 80, None).await, (Code::SandboxNotReady, Some(5)));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(house.starts(), before + 2);
    assert_eq!(house.status(&id).await, Ok(Status::Paused));

    let asleep = house.create(json!({})).await;
    house.pause(&asleep).await.unwrap();
    assert_eq!(house.refused(&asleep, 80, None).await, (Code::SandboxNotReady, None));
    let private = house.create(json!({"auto_resume": true, "network": {"allow_public_traffic": false}})).await;
    house.pause(&private).await.unwrap();
    let starts = house.starts();
    assert_eq!(house.refused(&private, 80, Some("nse_guess")).await, NOBODY);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!((house.starts(), house.status(&private).await), (starts, Ok(Status::Paused)));
}

/// Listeners that are none.
#[derive(Default)]
struct Listeners {
    asked: Mutex<Vec<(String, u16)>>,
    failing: AtomicU32,
}

#[async_trait]
impl LocalPorts for Listeners {
    async fn listen(&self, _tenant: TenantId, sandbox: &str, port: u16) -> io::Result<SocketAddr> {
        self.asked.lock().unwrap().push((sandbox.to_owned(), port));
        match self.failing.load(Ordering::SeqCst) {
            0 => Ok(SocketAddr::from(([127, 0, 0, 1], 4100))),
            _ => Err(io::Error::other("too many listeners")),
        }
    }
}

#[tokio::test]
async fn an_address_is_a_listeners_or_a_path_with_a_token_where_one_is_needed() {
    let house = House::new(usual()).await;
    let (id, public) = (house.private().await.0, house.create(json!({})).await);
    let host = house.control.get_host(&house.caller, &public, 8000).await.unwrap();
    let path = format!("127.0.0.1:3000/p/{public}/8000");
    assert_eq!((host.host, host.url), (path.clone(), Some(format!("http://{path}/"))));
    assert_eq!((host.websocket_url, host.access_token_expires_at), (Some(format!("ws://{path}/")), None));

    let listeners = Arc::new(Listeners::default());
    house.control.use_local_ports(Arc::clone(&listeners) as Arc<dyn LocalPorts>);
    let host = house.control.get_host(&house.caller, &id, 8000).await.unwrap();
    assert_eq!(host.host, "127.0.0.1:4100");
    let url = host.url.unwrap();
    assert!(url.starts_with("http://127.0.0.1:4100/?edge_token=nse_"), "{url}");
    assert!(house.knock(&id, 8000, Some(token(&url))).await.is_ok());
    assert_eq!(*listeners.asked.lock().unwrap(), [(id.clone(), 8000)]);
    // The same link again, whoever asks for it, until it is revoked.
    let again = house.control.get_preview_url(&house.caller, &id, 8000).await.unwrap();
    assert_eq!((&again.url, Some(again.access_token_expires_at)), (&url, host.access_token_expires_at));
    assert_ne!(house.control.get_preview_url(&house.caller, &id, 8001).await.unwrap().url, url);
    house.control.revoke_preview_url(&house.caller, &id, &again.grant.id).await.unwrap();
    let new = house.control.get_host(&house.caller, &id, 8000).await.unwrap().url.unwrap();
    assert_ne!(new, url);
    listeners.failing.store(1, Ordering::SeqCst);
    let host = house.control.get_host(&house.caller, &public, 1).await.unwrap();
    assert_eq!(host.host, format!("127.0.0.1:3000/p/{public}/1"));

    // It needs no machine.
    house.pause(&id).await.unwrap();
    assert_eq!(
        house.control.get_host(&house.caller, &id, 8000).await.unwrap().url,
        Some(format!("http://127.0.0.1:3000/p/{id}/8000/?edge_token={}", token(&new)))
    );
}

#[tokio::test]
async fn a_port_has_no_path_where_paths_are_off() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let mut settings = config(usual(), KEY);
    settings.previews.paths = false;
    let db = Arc::clone(&house.control.inner.db);
    let control = Control::new(settings, db, Arc::new(house.host.clone()));
    let code =
        async || control.get_host(&house.caller, &id, 80).await.map(|host| host.host).map_err(|error| error.code);
    assert_eq!(code().await, Err(Code::FeatureUnavailable));
    let request = CreateSignedPreviewUrlRequest::default();
    let signed = control.create_signed_preview_url(&house.caller, &id, 80, request).await;
    assert_eq!(signed.unwrap_err().code, Code::FeatureUnavailable);
    let listeners = Arc::new(Listeners::default());
    control.use_local_ports(Arc::clone(&listeners) as Arc<dyn LocalPorts>);
    assert_eq!(code().await.as_deref(), Ok("127.0.0.1:4100"));
    listeners.failing.store(1, Ordering::SeqCst);
    assert_eq!(code().await, Err(Code::FeatureUnavailable));
}

#[tokio::test]
async fn only_the_end_of_a_sandbox_is_its_end() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    assert_eq!(house.control.has_ended(&id).await.ok(), Some(false));
    house.pause(&id).await.unwrap();
    assert_eq!(house.control.has_ended(&id).await.ok(), Some(false), "it can be resumed");
    let other = house.create(json!({})).await;
    house.control.destroy_sandbox(&house.caller, &other).await.unwrap();
    assert_eq!(house.control.has_ended(&other).await.ok(), Some(true));
    for nothing in ["", "sb_0190f3a2b4c57d8e9fa0b1c2d3e4f506"] {
        assert_eq!(house.control.has_ended(nothing).await.ok(), Some(true), "{nothing}");
    }
}

#[tokio::test]
async fn preview_urls_are_bounded_and_their_owners() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let code = |result: Result<PreviewUrlResponse, Error>| result.err().map(|error| error.code);
    for secs in [0, 7 * 24 * 3600 + 1, u64::MAX] {
        assert_eq!(code(house.signed(&id, 80, secs).await), Some(Code::InvalidRequest), "{secs}");
    }
    for port in [0, 65_536, u32::MAX] {
        assert_eq!(code(house.signed(&id, port, 60).await), Some(Code::InvalidRequest), "{port}");
    }
    let week = house.signed(&id, 65_535, 7 * 24 * 3600).await.unwrap();
    assert_eq!(week.grant.expires_at, week.access_token_expires_at);
    for _ in 1..100 {
        house.signed(&id, 80, 600).await.unwrap();
    }
    assert_eq!(code(house.signed(&id, 80, 600).await), Some(Code::RateLimitExceeded));
    let db = &house.control.inner.db;
    let other = db.ensure_tenant("other", NamespaceKind::User, at(0)).await.unwrap().caller();
    let request = CreateSignedPreviewUrlRequest::default();
    assert_eq!(
        code(house.control.create_signed_preview_url(&other, &id, 80, request).await),
        Some(Code::SandboxNotFound)
    );
    assert_eq!(code(house.control.get_preview_url(&other, &id, 80).await), Some(Code::SandboxNotFound));
    let error = house.control.get_host(&other, &id, 80).await.unwrap_err();
    assert_eq!(error.code, Code::SandboxNotFound);
    let error = house.control.list_preview_urls(&other, &id, None).await.unwrap_err();
    assert_eq!(error.code, Code::SandboxNotFound);
    let error = house.control.revoke_preview_url(&other, &id, &week.grant.id).await.unwrap_err();
    assert_eq!(error.code, Code::SandboxNotFound);
    for grant in ["", "pvg_1", "pvg_00000000000000000000000000000000"] {
        let error = house.control.revoke_preview_url(&house.caller, &id, grant).await.unwrap_err();
        assert_eq!(error.code, Code::NotFound, "{grant}");
    }
    house.control.revoke_preview_url(&house.caller, &id, &week.grant.id).await.unwrap();
    assert!(house.signed(&id, 80, 600).await.is_ok(), "its place is free");
}

#[tokio::test]
async fn readiness_waits_for_a_server_and_says_what_is_wrong() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let ask = async |port: u32, request: serde_json::Value| {
        let request: PreviewReadinessRequest = serde_json::from_value(request).unwrap();
        house.control.check_preview_readiness(&house.caller, &id, port, request).await
    };
    let ready = ask(8000, json!({})).await.unwrap();
    assert_eq!((ready.ready, ready.route_ready, ready.service_ready, ready.attempts), (true, true, true, 1));
    assert_eq!((ready.path, ready.code, ready.port, &ready.sandbox_id), (None, None, 8000, &id));
    let ready = ask(8000, json!({"kind": "http", "path": "/healthz"})).await.unwrap();
    assert_eq!((ready.ready, ready.path.as_deref()), (true, Some("/healthz")));
    assert!(ask(8500, json!({"kind": "tcp"})).await.unwrap().ready, "a connection is enough");
    for (port, kind, what) in [
        (9999, "tcp", "nothing listens on port 9999"),
        (9999, "http", "nothing listens on port 9999"),
        (8500, "http", "port 8500 answered 500 to GET /"),
        (8404, "http", "port 8404 did not answer a request as an HTTP server does"),
        (8999, "http", "port 8999 did not answer a request within 5 s"),
    ] {
        let began = Timestamp::now();
        let not = ask(port, json!({"kind": kind, "timeout_secs": 1, "interval_ms": 300})).await.unwrap();
        assert_eq!((not.ready, not.route_ready, not.service_ready), (false, true, false));
        assert_eq!((not.code.as_deref(), not.error.as_deref()), (Some("preview_service_not_ready"), Some(what)));
        assert!(not.suggested_action.is_some() && not.elapsed_ms >= 1000, "{not:?}");
        assert_eq!(not.attempts > 1, port != 8999, "a silent server takes all of the time: {not:?}");
        assert!(Timestamp::now().duration_since(began).as_secs() < 8);
    }
    let once = ask(9999, json!({"timeout_secs": 0})).await.unwrap();
    assert_eq!(once.attempts, 1);
    for wrong in [
        json!({"timeout_secs": 121}),
        json!({"interval_ms": 49}),
        json!({"interval_ms": 10_001}),
        json!({"kind": "http", "path": "healthz"}),
        json!({"kind": "http", "path": "/a b"}),
        json!({"kind": "http", "path": "/\r\nX: 1"}),
        json!({"kind": "http", "path": format!("/{}", "a".repeat(2048))}),
    ] {
        assert_eq!(ask(8000, wrong.clone()).await.unwrap_err().code, Code::InvalidRequest, "{wrong}");
    }
    assert_eq!(ask(0, json!({})).await.unwrap_err().code, Code::InvalidRequest);
    house.pause(&id).await.unwrap();
    assert_eq!(ask(8000, json!({})).await.unwrap_err().code, Code::SandboxNotReady);
}
