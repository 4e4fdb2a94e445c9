//! The client against the service's own HTTP layer.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../../nullspace-server/tests/http/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use nullspace_api::TemplateBuildLogKind::{Cancelled, End, Message, Start};
use nullspace_api::{
    CreateSandboxRequest, CreateSnapshotRequest, CreateTemplateRequest, ErrorResponseCode, ExecRequest, SandboxStatus,
    SandboxTimeoutAction, TemplateBuildStatus,
};
use nullspace_client::{Client, Error};
use nullspace_server::{ConnectionLimits, ServerConfig, serve_with_limits};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use support::{Fake, KEY, OTHER_KEY};

struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

fn serve(fake: &Arc<Fake>, listener: TcpListener) -> Server {
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let limits = ConnectionLimits { shutdown_grace: Duration::from_millis(200), ..ConnectionLimits::default() };
    let router = fake.router(ServerConfig::default());
    let task = tokio::spawn(serve_with_limits(listener, router, limits, stop.clone().cancelled_owned()));
    Server { address, stop, task }
}

async fn start(fake: &Arc<Fake>) -> Server {
    serve(fake, TcpListener::bind("127.0.0.1:0").await.unwrap())
}

impl Server {
    fn client(&self, key: &str) -> Client {
        Client::new(&format!("http://{}/", self.address), key.into()).unwrap()
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn every_call_arrives_and_comes_back() {
    let fake = Fake::new();
    let server = start(&fake).await;
    let client = server.client(KEY);
    fake.push(Start, "s");

    let request = CreateTemplateRequest {
        name: Some("app".into()),
        base_image_auth: Some(
            serde_json::from_str("{\"kind\": \"basic\", \"username\": \"u\", \"password\": \"hunter2\"}").unwrap(),
        ),
        ..CreateTemplateRequest::default()
    };
    assert_eq!(client.start_build(&request).await.unwrap().status, TemplateBuildStatus::Waiting);
    assert!(fake.last_call().contains("password: [REDACTED]"), "the secret came along: {}", fake.last_call());
    assert_eq!(client.build_status("tb_1", 0).await.unwrap().next_offset, 1);
    let cancelled = client.cancel_build("tb_1", Some("enough".into())).await.unwrap();
    assert_eq!(cancelled.build.status, TemplateBuildStatus::Cancelled);
    assert_eq!(client.list_templates().await.unwrap().len(), 1);
    assert_eq!(client.get_template("tmpl_1").await.unwrap().name, "app");
    client.get_template("ns/app:v1").await.unwrap();
    assert_eq!(fake.last_call(), "get_template ns/app:v1", "a reference is one segment");
    client.delete_template("tmpl_1").await.unwrap();

    let sandbox = client.create_sandbox(&CreateSandboxRequest::default()).await.unwrap();
    assert_eq!(sandbox.template, "base");
    assert_eq!(client.list_sandboxes().await.unwrap().len(), 1);
    assert_eq!(client.get_sandbox("sb_1").await.unwrap().status, SandboxStatus::Running);
    let exec = ExecRequest { command: "ls".into(), ..ExecRequest::default() };
    assert_eq!(client.exec("sb_1", &exec).await.unwrap().stdout, "out\n");
    assert_eq!(client.list_processes("sb_1").await.unwrap()[0].pid, 7);
    assert_eq!(client.destroy_sandbox("sb_1").await.unwrap().status, SandboxStatus::Destroyed);
    assert!(!format!("{client:?}").contains(KEY));
    server.end().await;
}

#[tokio::test]
async fn a_sandbox_is_paused_resumed_forked_and_kept() {
    let fake = Fake::new();
    let server = start(&fake).await;
    let client = server.client(KEY);
    let timeout = client.set_timeout("sb_1", 9000, Some(SandboxTimeoutAction::Hibernate)).await.unwrap();
    assert_eq!((timeout.timeout_ms, timeout.timeout_action), (9000, SandboxTimeoutAction::Hibernate));
    assert_eq!(client.sandbox_metrics("sb_1").await.unwrap()[0].cpu_count, 2);

    let metadata = serde_json::from_str("{\"for\": \"tests\"}").unwrap();
    let request = CreateSnapshotRequest { metadata: Some(metadata) };
    let kept = client.create_snapshot("sb_1", &request).await.unwrap();
    assert_eq!(kept.metadata, request.metadata);
    assert_eq!(client.get_snapshot(&kept.id).await.unwrap(), kept);
    let fork = client.fork("sb_1").await.unwrap();
    assert_ne!(fork.id, "sb_1");
    let forked = fake.last_call();

    let paused = client.hibernate("sb_1").await.unwrap();
    let error = client.delete_snapshot(&paused.id).await.unwrap_err();
    assert_eq!(error.response().unwrap().code, ErrorResponseCode::SnapshotInUse);
    let resumed = client.resume(&paused.id).await.unwrap();
    assert_eq!(resumed.status, SandboxStatus::Running);
    assert_eq!(client.sandbox_events(&resumed.id).await.unwrap().events.len(), 1);
    client.delete_snapshot(&kept.id).await.unwrap();
    assert_eq!(client.list_snapshots().await.unwrap(), []);

    // One that waits for another is tried again, with the same key.
    fake.life.lock().unwrap().fails = Some(ErrorResponseCode::TransitionInProgress);
    let calls = fake.calls.lock().unwrap().len();
    client.fork(&resumed.id).await.unwrap();
    let calls = fake.calls.lock().unwrap().split_off(calls);
    assert_eq!(calls.len(), 2);
    assert!(calls[0] == calls[1] && calls[0].contains("Some(\"") && !forked.ends_with(&calls[0][20..]), "{calls:?}");
    server.end().await;
}

#[tokio::test]
async fn a_refusal_carries_the_services_words() {
    let fake = Fake::new();
    let server = start(&fake).await;
    let client = server.client(KEY);

    let error = client.build_status("tb_2", 0).await.unwrap_err();
    let body = error.response().unwrap();
    assert_eq!(body.code, ErrorResponseCode::TemplateBuildNotFound);
    let id = body.request_id.clone().unwrap();
    assert_eq!(
        error.to_string(),
        format!("get the build: There is no `tb_2`. (template_build_not_found, request {id})")
    );

    let request = CreateTemplateRequest { tags: Some(Vec::new()), ..CreateTemplateRequest::default() };
    let error = client.start_build(&request).await.unwrap_err();
    assert!(matches!(error, Error::Answer { status: 400, .. }));
    assert!(error.response().unwrap().error_detail.is_some());

    for key in ["ns_live_wrong", ""] {
        let error = server.client(key).list_templates().await.unwrap_err();
        assert_eq!(error.response().unwrap().code, ErrorResponseCode::Unauthorized);
    }
    let error = server.client(OTHER_KEY).get_sandbox("sb_1").await.unwrap_err();
    assert_eq!(error.response().unwrap().code, ErrorResponseCode::SandboxNotFound);
    server.end().await;

    let error = client.list_templates().await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. }), "{error:?}");
}

#[tokio::test]
async fn what_cannot_be_asked_is_not_asked() {
    for url in ["", "127.0.0.1:3000", "ftp://host/", "http://", "/v1"] {
        assert!(matches!(Client::new(url, "k".into()), Err(Error::BaseUrl { .. })), "{url}");
    }
    let client = Client::new("http://127.0.0.1:1/prefix", "k".into()).unwrap();
    for id in ["", ".", ".."] {
        assert!(matches!(client.get_template(id).await, Err(Error::Id { .. })), "{id}");
        assert!(matches!(client.follow_build(id, 0).next().await, Some(Err(Error::Id { .. }))), "{id}");
    }
}

#[tokio::test]
async fn too_many_requests_are_tried_again_and_then_told() {
    let fake = Fake::new();
    let server = start(&fake).await;
    let error = server.client(KEY).get_template("busy-without-hint").await.unwrap_err();
    assert!(matches!(error, Error::Answer { status: 429, .. }), "{error:?}");
    assert_eq!(fake.calls.lock().unwrap().len(), 4);
    server.end().await;
}

#[tokio::test]
async fn a_log_is_followed_to_its_end() {
    let fake = Fake::new();
    fake.push(Start, "0");
    let server = start(&fake).await;
    let mut log = server.client(KEY).follow_build("tb_1", 0);
    assert_eq!(log.next().await.unwrap().unwrap().kind, Start);
    fake.push(Message, "é\n\u{1F980}");
    assert_eq!(log.next().await.unwrap().unwrap().message, "é\n\u{1F980}");
    fake.push(Cancelled, "2");
    assert_eq!(log.next().await.unwrap().unwrap().offset, 2);
    assert!(log.next().await.is_none());

    let tail: Vec<_> = server.client(KEY).follow_build("tb_1", 2).collect().await;
    assert_eq!(tail.len(), 1);
    let mut unknown = server.client(KEY).follow_build("tb_2", 0);
    let error = unknown.next().await.unwrap().unwrap_err();
    assert_eq!(error.response().unwrap().code, ErrorResponseCode::TemplateBuildNotFound);
    assert!(unknown.next().await.is_none());
    server.end().await;
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_taken_up_without_a_gap() {
    let fake = Fake::new();
    for offset in 0..200 {
        fake.push(if offset == 0 { Start } else { Message }, &offset.to_string());
    }
    fake.push(End, "");
    *fake.break_after.lock().unwrap() = Some(70);
    let server = start(&fake).await;
    let entries: Vec<_> = server.client(KEY).follow_build("tb_1", 0).map(Result::unwrap).collect().await;
    let offsets: Vec<u64> = entries.iter().map(|entry| entry.offset).collect();
    assert_eq!(offsets, (0..=200).collect::<Vec<u64>>());
    let calls = fake.calls.lock().unwrap().clone();
    assert_eq!(calls, ["build_logs from 0 follow true", "build_logs from 70 follow true"]);
    server.end().await;
}

#[tokio::test]
async fn a_log_outlives_a_restart_of_the_service() {
    let fake = Fake::new();
    fake.push(Start, "0");
    let server = start(&fake).await;
    let address = server.address;
    let mut log = server.client(KEY).follow_build("tb_1", 0);
    assert_eq!(log.next().await.unwrap().unwrap().offset, 0);
    server.end().await;

    let waiting = tokio::spawn(async move { log.map(|entry| entry.unwrap().offset).collect::<Vec<u64>>().await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    fake.push(Message, "1");
    fake.push(End, "2");
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    let server = serve(&fake, socket.listen(16).unwrap());
    assert_eq!(waiting.await.unwrap(), [1, 2]);
    server.end().await;
}
