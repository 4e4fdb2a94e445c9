//! A disk without room: what is refused, and what goes on.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nullspace_api::{LifecycleEventInfo, LifecycleEventListResponse, SandboxInfo, SandboxStatus, SnapshotInfo};
use serde_json::json;

use crate::fixture::api::Answer;
use crate::fixture::{Image, Registry, Service, until};

/// More MiB than any disk has.
const NEVER_FREE: &str = "1000000000";

#[tokio::test]
async fn nothing_new_begins_below_the_reserve_and_the_refusal_names_the_hosts_disk() {
    let mut service = Service::with([("NULLSPACE_DISK_RESERVE_MIB", NEVER_FREE.to_owned())]).await;
    let api = service.api();
    let build = json!({"name": "web", "base_image": "box:1"});
    let refused = api.post("/v1/templates/builds", build).await;
    assert_eq!(refused.headers["retry-after"], "60");
    let refused = refused.refused(503, "capacity_exceeded");
    assert!(refused.error.contains("host's disk"), "{refused:?}");
    let detail = serde_json::to_value(&refused.error_detail).unwrap();
    assert_eq!((&detail["details"]["reason"], &detail["retryable"]), (&json!("host_disk_full"), &json!(true)));
    // So is an upload, before its body is read.
    let (blob, missing) = api.preflight(b"file", false).await;
    assert!(missing);
    let request = api.request(reqwest::Method::PUT, &format!("/v1/templates/blobs/{blob}")).body("file");
    api.send(request).await.refused(503, "capacity_exceeded");
    // The database has what is left, and says that it takes writes.
    assert_eq!(api.get("/readyz").await.status, 200);
    let page = api.get("/metrics").await.text();
    assert!(page.contains("nullspace_disk_reserve_bytes ") && page.contains("nullspace_disk_free_bytes "), "{page}");
    service.stop().await;
}

/// A small file system of memory. Dropped, it is unmounted.
struct Mounted(PathBuf);

impl Mounted {
    fn at(folder: &Path, mib: u64) -> Mounted {
        std::fs::create_dir_all(folder).expect("make a mount point");
        let options = format!("size={mib}m,mode=700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "small"]).arg(folder).status();
        assert!(mounted.expect("run mount").success(), "a tmpfs is mounted: needs root");
        Mounted(folder.to_owned())
    }

    /// Writes a file until this many MiB are free.
    fn leave(&self, mib: u64) {
        let _ = std::fs::remove_file(self.0.join("ballast"));
        let free = free_bytes(&self.0);
        let ballast = std::fs::File::create(self.0.join("ballast")).expect("make a file");
        let len = free.saturating_sub(mib << 20);
        rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, len).expect("fill the disk");
    }
}

/// Bytes that are free to anybody on the file system under `path`.
fn free_bytes(path: &std::path::Path) -> u64 {
    let found = rustix::fs::statvfs(path).expect("measure");
    found.f_bavail * found.f_frsize
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Root in a sandbox, and a step of a build, write until the host's disk is full: they are ended, and nobody else is.
#[tokio::test]
async fn who_fills_the_disk_of_all_is_ended_and_others_go_on() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = Service::through(
        &["env"],
        [("NULLSPACE_DISK_RESERVE_MIB", "96".to_owned()), ("NULLSPACE_STOP_PAUSE_SECS", "50".to_owned())],
    );
    let small = Mounted::at(&service.data(), 900);
    service.restart().await;
    let api = service.api();
    let fills = "while :; do cat /bin/busybox; done > /full";
    let request = |steps| {
        json!({"base_image": registry.reference("box:1"), "steps": steps,
            "build_config": {"memory_mib": 192, "disk_mb": 512}})
    };
    let built = api.ready(request(json!([]))).await;
    let (quiet, greedy) = tokio::join!(api.sandbox(built.template()), api.sandbox(built.template()));

    let mut larger = request(json!([]));
    larger["build_config"]["disk_mb"] = json!(1000);
    let refused = api.post("/v1/templates/builds", larger).await.refused(503, "capacity_exceeded");
    assert!(refused.error.contains("disk_mb is 1000"), "{refused:?}");

    // Below the reserve nothing is stored, and what runs goes on.
    let snapshot: SnapshotInfo = api.post(&format!("/v1/sandboxes/{}/snapshots", quiet.id), json!({})).await.ok(201);
    let refused = |refused: Answer| {
        let after = refused.headers.get("retry-after").map(|after| after.as_bytes().to_owned());
        assert_eq!(after.as_deref(), Some(&b"60"[..]), "{}", refused.what);
        let refused = refused.refused(503, "capacity_exceeded");
        assert!(refused.error.contains("host's disk"), "{refused:?}");
    };
    for act in ["hibernate", "snapshots", "fork"] {
        // The service makes room, of files that it can do without.
        small.leave(80);
        refused(api.post(&format!("/v1/sandboxes/{}/{act}", quiet.id), json!({})).await);
        assert_eq!(quiet.sh("echo goes on").await, "goes on");
    }
    // It needs no more than the reserve: one after room was made succeeds.
    let promotion = format!("/v1/snapshots/{}/promote", snapshot.id);
    until("a promotion is refused", Duration::from_secs(60), async || {
        small.leave(80);
        let answer = api.post(&promotion, json!({"name": "warm"})).await;
        let is_refused = answer.status != 201;
        if is_refused {
            refused(answer);
        }
        is_refused
    })
    .await;
    assert_eq!(quiet.sh("echo goes on").await, "goes on");

    // Half of the reserve is the line.
    small.leave(120);
    let _ = greedy.exec(json!({"command": "sh", "args": ["-c", fills], "background": true})).await;
    until("the sandbox is ended", Duration::from_secs(120), async || {
        let info: SandboxInfo = greedy.info().await;
        info.status == SandboxStatus::Error
    })
    .await;
    assert_eq!(quiet.sh("echo goes on").await, "goes on");
    until("there is room again", Duration::from_secs(60), async || free_bytes(&service.data()) > 100 << 20).await;

    let detail = api.failed(request(json!([{"action": "run", "command": fills}])), "host_disk_full").await;
    assert!(detail.retryable, "{detail:?}");
    assert_eq!(quiet.sh("echo goes on").await, "goes on");

    // What cannot be stored at a stop ends, and says so; what was stored before is whole.
    small.leave(80);
    service.stop().await;
    small.leave(500);
    service.verify_store();
    service.restart().await;
    let api = service.api();
    let events = api.get(&format!("/v1/sandboxes/{}/lifecycle", quiet.id)).await;
    let events = events.ok::<LifecycleEventListResponse>(200).events;
    let said = |event: &LifecycleEventInfo| {
        let words = (event.reason.as_deref(), event.error_code.as_deref());
        words == (Some("service_stopped"), Some("capacity_exceeded"))
    };
    assert!(events.iter().any(said), "{events:?}");
    service.stop().await;
    drop(small);
}
