//! The trial of a new snapshot: what cannot be restored is never ready, and nothing of it stays.
//!
//! ```text
//!   build:  snapshot's files written ── log entry: waits for the database ──────> trial ── ready, or the next attempt
//!   test:             └ sees the folder: takes the database's write lock ── damages the files ── lets go
//! ```

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nullspace_api::{
    ErrorDetail, TemplateBuildLogKind as Kind, TemplateBuildStatus as Status, TemplateFailurePhase as Phase,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

use crate::fixture::artifacts::snapshots;
use crate::fixture::host::Process;
use crate::fixture::{Api, Compression, Finished, Image, Registry, Service, Tar};

/// From a build's acceptance to its snapshot.
const SNAPSHOT: Duration = Duration::from_secs(120);
/// Attempts of a build, as the service has them.
const ATTEMPTS: usize = 3;

/// A build whose snapshot is on the disk and whose trial has not begun: its log entry waits for the database.
struct Held {
    /// Folder of the snapshot's files.
    snapshot: PathBuf,
    database: SqliteConnection,
}

impl Held {
    /// Waits for the next snapshot whose folder is not `last`, and holds the build there.
    async fn at_snapshot(service: &Service, last: Option<&Path>) -> Held {
        let options = SqliteConnectOptions::new().filename(service.data().join("nullspace.db"));
        let mut database = options.busy_timeout(SNAPSHOT).connect().await.expect("open the database");
        let work = service.data().join("work");
        let snapshot = soon("a snapshot", || {
            let folders = std::fs::read_dir(&work).into_iter().flatten().flatten();
            folders
                .map(|entry| entry.path().join("snapshot"))
                .find(|path| path.is_dir() && Some(path.as_path()) != last)
        });
        let snapshot = snapshot.await;
        sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut database).await.expect("lock the database");
        // The files are written, and the machine has ended.
        soon("the snapshot's files", || {
            (snapshot.join("machine.json").exists() && service.machines().is_empty()).then_some(())
        })
        .await;
        Held { snapshot, database }
    }

    /// Overwrites the memory, as a fault of the service that writes it would: the file is the same one, of the same time. So
    /// the trial fails only if it reads the file, and does not use what a driver may have kept of the machine.
    fn damage(&self) {
        let memory = File::options().write(true).open(self.snapshot.join("memory")).expect("the snapshot's memory");
        let before = memory.metadata().unwrap();
        let (piece, len) = (vec![0xCC; 1 << 20], before.len());
        for at in (0..len).step_by(piece.len()) {
            memory.write_all_at(&piece[..piece.len().min((len - at) as usize)], at).unwrap();
        }
        memory.set_modified(before.modified().unwrap()).unwrap();
    }

    /// Lets the build go on.
    async fn release(mut self) {
        sqlx::raw_sql("ROLLBACK").execute(&mut self.database).await.expect("unlock the database");
        self.database.close().await.expect("close the database");
    }
}

/// Looks every millisecond, since what is awaited lasts a tenth of a second.
async fn soon<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + SNAPSHOT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {} s", SNAPSHOT.as_secs());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The machine of the trial, stopped.
async fn stopped(service: &Service) -> Process {
    let machine = soon("the trial's machine", || service.machines().into_iter().next()).await;
    signal(&machine, Signal::STOP);
    machine
}

fn signal(machine: &Process, signal: Signal) {
    let pid = i32::try_from(machine.pid).ok().and_then(Pid::from_raw).unwrap();
    kill_process(pid, signal).expect("signal a machine");
}

fn said(finished: &Finished, text: &str) -> usize {
    finished.log.iter().filter(|entry| entry.message.contains(text)).count()
}

async fn metric(api: &Api, name: &str) -> u64 {
    let page = api.get("/metrics").await.text();
    let value = page.lines().find_map(|line| line.strip_prefix(name));
    value.map_or(0, |value| value.trim().parse().unwrap())
}

/// Descriptions of all snapshots, as the database has them.
async fn descriptions(service: &Service) -> Vec<Value> {
    let options = SqliteConnectOptions::new().filename(service.data().join("nullspace.db")).read_only(true);
    let mut database = options.connect().await.expect("open the database");
    let rows: Vec<String> =
        sqlx::query_scalar("SELECT snapshot FROM artifacts").fetch_all(&mut database).await.expect("read artifacts");
    database.close().await.expect("close the database");
    rows.iter().map(|row| serde_json::from_str(row).expect("a description is JSON")).collect()
}

async fn service() -> Service {
    // Room for one machine: a trial has the admission of its build's machine, and waits for no other.
    Service::with([("NULLSPACE_VCPUS", "1".to_owned()), ("NULLSPACE_BUILD_CONCURRENCY", "1".to_owned())]).await
}

fn request(registry: &Registry, image: &str, name: &str) -> Value {
    json!({
        "name": name, "base_image": registry.reference(image), "build_config": {"memory_mib": 192, "vcpus": 1},
        "start_cmd": "echo started >> /started; exec sleep 100000",
    })
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_restored_is_never_ready() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    registry.push("box", "2", &Image::busybox_variant("two")).await;
    let mut service = service().await;
    let api = service.api();

    // Damaged after it was written: the next attempt takes another one, and that is what becomes ready.
    let build = api.start(request(&registry, "box:1", "once")).await;
    let held = Held::at_snapshot(&service, None).await;
    held.damage();
    held.release().await;
    let built = api.finished(&build.build_id).await.expect_status(Status::Ready);
    let retry = built.log.iter().find(|entry| entry.kind == Kind::Retry).expect("a retry");
    assert!(retry.message.contains("restored from the new snapshot"), "{}", retry.message);
    assert_eq!((said(&built, "Snapshot taken in"), said(&built, "Snapshot restored in trial in")), (2, 1), "{built:?}");
    let sandbox = api.sandbox(built.template()).await;
    assert_eq!(sandbox.sh("cat /started").await, "started");
    sandbox.delete().await;
    service.settles().await;

    // Damaged each time: never ready, and the owner learns what to do.
    service.log().expect_fault("build ended because machines fail on this host");
    let build = api.start(request(&registry, "box:2", "never")).await;
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let held = Held::at_snapshot(&service, last.as_deref()).await;
        held.damage();
        last = Some(held.snapshot.clone());
        held.release().await;
    }
    let failed = api.finished(&build.build_id).await;
    assert_eq!(said(&failed, "Snapshot restored in trial"), 0, "{failed:?}");
    let template = failed.template().to_owned();
    let detail = failed.failure("snapshot_trial_failed");
    assert_eq!((detail.phase, detail.retryable), (Phase::Snapshot, true));
    assert!(detail.message.contains("new snapshot") && detail.suggested_action.contains("again"), "{detail:?}");
    api.post("/v1/sandboxes", json!({"template": template})).await.refused(404, "template_not_found");
    let failures = "nullspace_build_failures_total{phase=\"snapshot\",reason=\"snapshot_trial_failed\"} ";
    assert_eq!(metric(&api, failures).await, 1);

    // Nothing of it is left, and the one that is ready is whole.
    service.settles().await;
    service.verify_store();
    api.sandbox("once").await.delete().await;
    service.stop().await;
    service.collect_store();
    assert_eq!(snapshots(&service.data()).len(), 1);
}

#[tokio::test]
async fn a_trial_whose_machine_is_killed_is_repeated_and_a_cancelled_one_leaves_nothing() {
    let registry = Registry::start();
    registry.push("box", "1", &Image::busybox()).await;
    let mut service = service().await;
    let api = service.api();
    let build = api.start(request(&registry, "box:1", "app")).await;

    let held = Held::at_snapshot(&service, None).await;
    let last = held.snapshot.clone();
    held.release().await;
    signal(&stopped(&service).await, Signal::KILL);

    let held = Held::at_snapshot(&service, Some(&last)).await;
    held.release().await;
    let machine = stopped(&service).await;
    let snapshot = api.status(&build.build_id, 0).await;
    assert_eq!(snapshot.build.status, Status::Building);
    let retries: Vec<_> = snapshot.entries.iter().filter(|entry| entry.kind == Kind::Retry).collect();
    assert!(matches!(retries[..], [retry] if retry.message.contains("new snapshot")), "{retries:?}");
    api.cancel(&build.build_id, "changed my mind").await;
    let cancelled = api.finished(&build.build_id).await.expect_status(Status::Cancelled);
    assert!(!machine.is_alive(), "the trial's machine has ended before the build has");
    assert_eq!(said(&cancelled, "Snapshot restored in trial"), 0, "{cancelled:?}");
    service.settles().await;
    service.verify_store();
    service.stop().await;
    service.collect_store();
    assert_eq!(snapshots(&service.data()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_trial_runs_no_hook_and_is_made_once_for_equal_builds() {
    let registry = Registry::start();
    let hook = Tar::new().dir("etc/nullspace", 0o755).dir("etc/nullspace/resume.d", 0o755).file(
        "etc/nullspace/resume.d/10-fails",
        0o755,
        b"#!/bin/sh\necho the hook ran; exit 9\n",
    );
    registry.push("hooked", "1", &Image::busybox().with_layer(hook, Compression::Gzip)).await;
    let mut service = service().await;
    let api = service.api();

    // A hook that fails every resume does not fail the trial.
    let built = api.ready(request(&registry, "hooked:1", "hooked")).await;
    assert_eq!(said(&built, "Snapshot restored in trial in"), 1, "{built:?}");
    let refused = api.post("/v1/sandboxes", json!({"template": "hooked"})).await.refused(502, "exec_failed");
    let Some(ErrorDetail::Template(detail)) = refused.error_detail else { panic!("no detail: {refused:?}") };
    assert_eq!(detail.reason(), Some("resume_failed"));
    assert!(detail.message.contains("exit code 9") && detail.message.contains("the hook ran"), "{detail:?}");

    // An equal build has the same snapshot, which was tried then.
    let again = api.ready(request(&registry, "hooked:1", "again")).await;
    assert!(again.says("Finished artifact reused"), "{again:?}");
    assert_eq!(said(&again, "Snapshot restored in trial"), 0, "{again:?}");
    assert_eq!(metric(&api, "nullspace_build_phase_seconds_count{phase=\"trial\"} ").await, 1);
    service.settles().await;

    // Both descriptions of it say which pages of the memory it used.
    for description in descriptions(&service).await {
        if description["compatibility"]["vmm"] != "qemu" {
            continue;
        }
        let touched: Vec<(u64, u64)> = serde_json::from_value(description["touched"].clone()).expect("runs of pages");
        let (pages, end) =
            (touched.iter().map(|run| run.1).sum::<u64>(), touched.last().map_or(0, |run| run.0 + run.1));
        assert!((256..40_000).contains(&pages) && end <= 192 << 8, "{pages} pages of {end}: {touched:?}");
    }
    service.stop().await;
}
