//! Uploads in parts and watched directories, on a microVM: both go on over a snapshot, and an upload over a restart of the service.

use std::time::Duration;

use futures::{SinkExt, StreamExt};
use nullspace_api::{CompleteUploadResponse, CreateUploadSessionResponse, SnapshotInfo, UploadSessionInfo};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::fixture::{Api, Image, Registry, Service, until};

/// What a loaded machine under software emulation may take for one message.
const PATIENCE: Duration = Duration::from_secs(60);

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A socket of watched directories.
struct Watches(WebSocketStream<TcpStream>);

impl Watches {
    async fn open(api: &Api, sandbox: &str) -> Watches {
        let address = api.base().strip_prefix("http://").unwrap();
        let mut request = format!("ws://{address}/v1/sandboxes/{sandbox}/ws").into_client_request().unwrap();
        request.headers_mut().insert("authorization", format!("Bearer {}", api.key()).parse().unwrap());
        let stream = TcpStream::connect(address).await.unwrap();
        Watches(tokio_tungstenite::client_async(request, stream).await.unwrap().0)
    }

    async fn next(&mut self) -> Value {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("a message in time");
            if let Message::Text(text) = message.unwrap().unwrap() {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }

    /// Waits for an event of this kind and path.
    async fn hears(&mut self, event: &str, path: &str) {
        loop {
            let heard = self.next().await;
            assert_eq!(heard["type"], "file_event", "{heard}");
            if heard["event"] == event && heard["path"] == path {
                return;
            }
        }
    }
}

#[tokio::test]
async fn uploads_and_watches_outlive_what_happens_to_their_sandbox() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::with([("NULLSPACE_STOP_PAUSE_SECS", "50".to_owned())]).await;
    let api = service.api();
    let build = json!({"memory_mib": 192, "disk_mb": 1024});
    let built = api.ready(json!({"base_image": registry.reference("box:1"), "build_config": build})).await;
    let sandbox = api.sandbox(built.template()).await;
    let id = sandbox.id.clone();

    // A watch sees what commands and uploads do.
    sandbox.sh("mkdir -p /data/sub").await;
    let mut watch = Watches::open(&api, &id).await;
    let asked = json!({"type": "file_watch", "id": "w", "path": "/data", "recursive": true});
    watch.0.send(Message::text(asked.to_string())).await.unwrap();
    assert_eq!(watch.next().await["type"], "file_watch_started");
    sandbox.sh("echo 1 > /data/sub/a && chmod 600 /data/sub/a && mv /data/sub/a /data/b").await;
    watch.hears("create", "/data/sub/a").await;
    watch.hears("chmod", "/data/sub/a").await;
    watch.hears("rename", "/data/b").await;

    // Two parts and a bit, sent in another order, with a snapshot and a restart of the service between them.
    let content: Vec<u8> = (0..20_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let uploads = format!("/v1/sandboxes/{id}/uploads");
    let begin = json!({"kind": "file", "source_kind": "restartable_file", "target_path": "/data/big", "content_length": content.len(),
        "conflict": "error", "checksum_algorithm": "sha256", "whole_checksum_sha256": sha256(&content)});
    let begun: CreateUploadSessionResponse = api.post(&uploads, begin).await.ok(200);
    let upload = format!("{uploads}/{}", begun.session.upload_id);
    let size = begun.session.part_size as usize;
    assert_eq!(begun.session.part_count, 3);
    let part = async |api: &Api, number: usize, bytes: Vec<u8>| {
        let request = api.request(Method::PUT, &format!("{upload}/parts/{number}"));
        let request = request
            .header("x-nullspace-part-sha256", sha256(&content[number * size..content.len().min((number + 1) * size)]));
        api.send(request.header("content-type", "application/octet-stream").body(bytes)).await
    };
    let bytes = |number: usize| content[number * size..content.len().min((number + 1) * size)].to_vec();
    let taken: UploadSessionInfo = part(&api, 2, bytes(2)).await.ok(200);
    assert_eq!((taken.next_part, taken.accepted_bytes), (Some(0), (content.len() - 2 * size) as u64));
    let wrong = part(&api, 0, bytes(1)).await.refused(400, "file_upload_error");
    assert_eq!(serde_json::to_value(&wrong.error_detail).unwrap()["reason"], "invalid_part_checksum");
    let snapshot: SnapshotInfo = api.post(&format!("/v1/sandboxes/{id}/snapshots"), json!({})).await.ok(201);
    sandbox.sh("mkdir /data/after").await;
    watch.hears("create", "/data/after").await;
    drop(watch);
    // The stop pauses the sandbox, and the start resumes it.
    service.stop().await;
    service.restart().await;
    let api = service.api();
    until("the sandbox runs again", Duration::from_secs(120), async || api.get(&upload).await.status == 200).await;
    let sandbox = api.attach(&id).await;
    let found: UploadSessionInfo = api.get(&upload).await.ok(200);
    assert_eq!((found.next_part, found.accepted_bytes), (taken.next_part, taken.accepted_bytes));
    for number in 0..2 {
        let _: UploadSessionInfo = part(&api, number, bytes(number)).await.ok(200);
    }
    for _ in 0..2 {
        let done: CompleteUploadResponse = api.post(&format!("{upload}/complete"), json!({})).await.ok(200);
        assert_eq!((done.published_bytes, done.published_file_count), (content.len() as u64, 1));
    }
    assert_eq!(sandbox.sh("sha256sum /data/big | cut -d' ' -f1").await, sha256(&content));
    // The snapshot has the upload as it was, for whoever goes on with it there.
    let other = api.sandbox_with(json!({"snapshot_id": snapshot.id})).await;
    let there = format!("/v1/sandboxes/{}/uploads/{}", other.id, begun.session.upload_id);
    assert_eq!(api.get(&there).await.ok::<UploadSessionInfo>(200).next_part, Some(0));
    assert_eq!(api.delete(&there).await.status, 204);
    api.get(&format!("{uploads}/up_0")).await.refused(404, "not_found");
    other.delete().await;
    sandbox.delete().await;
    assert_eq!(api.delete(&format!("/v1/snapshots/{}", snapshot.id)).await.status, 204);
    service.settles().await;
    service.stop().await;
}
