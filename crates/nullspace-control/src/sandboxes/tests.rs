//! The life of sandboxes over a real database and a host without machines.

mod egress;
mod evictions;
mod forks;
mod keys;
mod pools;
mod ports;
mod promote;
mod publications;
mod ssh;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nullspace_api::{
    CreateSandboxRequest, ErrorResponseCode as Code, SandboxStatus as Status, SandboxTimeoutAction, SetTimeoutRequest,
};
use nullspace_db::{Database, EventFilter, FinishReady, Finished, Leased, NamespaceKind, QueueLimits, SqliteStore};
use nullspace_host_interface::{Due, LogIds, entry};
use nullspace_service::{Error, Life as _, RequestContext, Sandboxes as _, SnapshotQuery};
use nullspace_types::{ArtifactId, Caller, Rootfs, SandboxId, Streams};
use serde_json::json;

use super::LifeSettings;
use super::fake::FakeHost;
use crate::builds::logs::compressed::{at, new_build};
use crate::{Control, ControlConfig, PreviewSettings, Retention, SealKey, WebhookSender};

const KEY: &str = "7 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

pub(super) fn rootfs() -> Rootfs {
    Rootfs {
        key: format!("sha256-{}", "a".repeat(64)),
        file: format!("sha256-{}.{}.ext4", "a".repeat(64), "b".repeat(32)),
        bytes: 1 << 29,
        manifest: Some("c".repeat(64)),
        info: json!({}),
    }
}

/// A service over a database and a host.
struct House {
    dir: tempfile::TempDir,
    host: FakeHost,
    control: Control,
    caller: Caller,
}

fn config(life: LifeSettings, seal: &str) -> ControlConfig {
    // Another test of this process may have done so.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let hour = Duration::from_secs(3600);
    ControlConfig {
        host: "host-1".to_owned(),
        build_concurrency: 0,
        build_timeout: hour,
        lease_ttl: hour,
        max_attempts: 1,
        queue: QueueLimits { per_tenant: 10, total: 10 },
        running_per_tenant: 1,
        untagged_retention: hour,
        retention: Retention { sandboxes: hour, builds: hour, idempotency_keys: hour, plain_logs: hour, events: hour },
        blob_bytes_per_tenant: 1 << 20,
        webhooks: WebhookSender::new(Vec::new(), None).unwrap(),
        life,
        previews: PreviewSettings { domain: None, tls: false, address: "127.0.0.1:3000".to_owned(), paths: true },
        seal: SealKey::parse(seal).unwrap(),
    }
}

fn usual() -> LifeSettings {
    LifeSettings {
        stop_pause: Duration::from_secs(20),
        paused_per_tenant: 100,
        snapshots_per_tenant: 100,
        warm_per_tenant: 8,
        pause_when_full: None,
    }
}

async fn open(dir: &tempfile::TempDir) -> Arc<dyn Database> {
    Arc::new(SqliteStore::open(&dir.path().join("nullspace.db")).await.unwrap())
}

/// Records a template `web`.
async fn template(db: &dyn Database, caller: &Caller) {
    let build = new_build();
    let ids = LogIds { build: build.id, artifact: build.artifact_id };
    let said = |kind| {
        let entry = entry(ids, kind, nullspace_api::TemplateBuildLogLevel::Info, "said".to_owned());
        crate::builds::logs::to_store(&entry, at(0)).unwrap()
    };
    let limits = QueueLimits { per_tenant: 10, total: 10 };
    let (start, end) =
        (said(nullspace_api::TemplateBuildLogKind::Start), said(nullspace_api::TemplateBuildLogKind::End));
    db.accept_build(caller, build, start, limits, at(0)).await.unwrap();
    let leased = db.lease_build("w", Duration::from_secs(60), 1, at(1)).await.unwrap();
    let Some(Leased::Run { lease, .. }) = leased else { panic!("nothing to run") };
    db.put_rootfs(&lease, rootfs(), at(1)).await.unwrap();
    let stream = |name: &str, digit: &str| (name.to_owned(), digit.repeat(64));
    let ready = FinishReady {
        folder: format!("{}.{}", ArtifactId::new(), "d".repeat(32)),
        streams: Some(Streams([stream("memory", "e"), stream("state", "f")].into())),
        rootfs_key: rootfs().key,
        disk_bytes: 1 << 29,
        stored_bytes: 1 << 20,
        compatibility: json!({}),
        snapshot: json!({}),
        runtime: json!(nullspace_definition::runtime::Runtime::default()).into(),
        runtime_defaults: json!({}),
        oci_metadata: None,
        cache_summary: None,
        retention_expires_at: None,
        final_key: None,
        entry: end,
    };
    assert!(matches!(db.finish_ready(&lease, ready, at(2)).await.unwrap(), Finished::Ready(_)));
}

impl House {
    async fn new(life: LifeSettings) -> House {
        let dir = tempfile::TempDir::new().unwrap();
        let db = open(&dir).await;
        let caller = db.ensure_tenant("acme", NamespaceKind::User, at(0)).await.unwrap().caller();
        template(&*db, &caller).await;
        let host = FakeHost::new();
        let control = Control::new(config(life, KEY), db, Arc::new(host.clone()));
        control.start().await.unwrap();
        House { dir, host, control, caller }
    }

    /// The next start of the service, in the same folder.
    async fn restart(&mut self, seal: &str) {
        let db = open(&self.dir).await;
        self.control = Control::new(config(usual(), seal), db, Arc::new(self.host.clone()));
        self.control.start().await.unwrap();
    }

    async fn create(&self, request: serde_json::Value) -> String {
        let mut request: CreateSandboxRequest = serde_json::from_value(request).unwrap();
        if request.snapshot_id.is_none() {
            request.template = Some("web".to_owned());
        }
        self.control.create_sandbox(&self.caller, request, &context(None)).await.unwrap().id
    }

    async fn pause(&self, id: &str) -> Result<String, Error> {
        self.control.hibernate_sandbox(&self.caller, id).await.map(|snapshot| snapshot.id)
    }

    async fn resume(&self, id: &str) -> Result<String, Error> {
        self.control.resume_sandbox(&self.caller, id, &context(None)).await.map(|resumed| resumed.id)
    }

    async fn status(&self, id: &str) -> Result<Status, Code> {
        self.control.get_sandbox(&self.caller, id).await.map(|info| info.status).map_err(|error| error.code)
    }

    async fn until_status(&self, id: &str, wanted: Result<Status, Code>) {
        for _ in 0..1000 {
            if self.status(id).await == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{id} is {:?}, not {wanted:?}", self.status(id).await);
    }

    /// The events of a sandbox, as `operation status reason`.
    async fn told(&self, id: &str) -> Vec<String> {
        let inner = &self.control.inner;
        inner.lifecycle.flush(&*inner.db).await.unwrap();
        let filter =
            EventFilter { about: Some(id.parse().unwrap()), ascending: true, limit: 1000, ..EventFilter::default() };
        let events = inner.db.list_events(&self.caller, filter).await.unwrap();
        let say = |event: nullspace_db::Event| {
            format!("{} {} {}", event.operation, event.status, event.reason.unwrap_or_default())
        };
        events.into_iter().map(say).collect()
    }

    fn starts(&self) -> u32 {
        self.host.state.starts.load(Ordering::SeqCst)
    }
}

fn context(key: Option<&str>) -> RequestContext {
    RequestContext { request_id: "r".to_owned(), idempotency_key: key.map(str::to_owned), refuse_unknown_files: false }
}

#[tokio::test]
async fn a_pause_keeps_everything_and_a_resume_runs_it_under_a_new_id() {
    let house = House::new(usual()).await;
    let id = house
        .create(json!({"envs": {"A": "hush"}, "metadata": {"team": "a"}, "cwd": "/srv", "timeout_ms": 50_000}))
        .await;
    let snapshot = house.pause(&id).await.unwrap();
    assert_eq!(house.pause(&id).await.unwrap(), snapshot, "a repetition");
    assert!(house.host.machines().is_empty());
    let info = house.control.get_sandbox(&house.caller, &id).await.unwrap();
    assert_eq!((info.status, info.snapshot_id.as_deref()), (Status::Paused, Some(snapshot.as_str())));
    assert_eq!((info.timeout_at, info.expires_at), (None, None));
    // Nothing runs, and its files are the snapshot's.
    let refused = house.control.live_sandbox(&house.caller, &id).await.err().unwrap();
    assert_eq!(refused.code, Code::SandboxNotReady);
    let in_use = house.control.delete_snapshot(&house.caller, &snapshot).await.unwrap_err();
    assert_eq!(in_use.code, Code::SnapshotInUse);

    let resumed = house.resume(&snapshot).await.unwrap();
    assert_ne!(resumed, id);
    let machine = house.host.machine(&resumed);
    assert_eq!(machine.envs["A"], "hush");
    assert!(house.host.state.named.lock().unwrap().contains(&machine.folder));
    let info = house.control.get_sandbox(&house.caller, &resumed).await.unwrap();
    assert_eq!((info.status, info.cwd.as_deref(), info.timeout_ms), (Status::Running, Some("/srv"), Some(50_000)));
    assert_eq!(info.metadata.unwrap()["team"], "a");
    assert_eq!(
        machine.limits.deadline.map(Timestamp::as_second),
        info.timeout_at.map(|at| Timestamp::from(at).as_second())
    );
    assert_eq!(house.status(&id).await, Err(Code::SandboxNotFound));
    assert_eq!(house.resume(&snapshot).await.unwrap_err().code, Code::SandboxNotFound);
    assert_eq!(
        house.told(&id).await,
        [
            "create requested api",
            "create succeeded api",
            "hibernate requested manual",
            "hibernate succeeded manual",
            "snapshot_created succeeded manual",
            "resume_from_snapshot requested api",
            "resume_from_snapshot succeeded api",
        ]
    );
    // Its files go only after a grace.
    let inner = &house.control.inner;
    assert!(!inner.collect_snapshots(Timestamp::now(), 10).await.unwrap());
    assert!(inner.collect_snapshots(Timestamp::now() + SignedDuration::from_mins(11), 10).await.unwrap());
    assert_eq!(*house.host.state.removed.lock().unwrap(), [machine.folder]);
    house.control.stop().await;
}

#[tokio::test]
async fn a_repeated_resume_answers_the_sandbox_of_the_first() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let snapshot = house.pause(&id).await.unwrap();
    let key = context(Some("k"));
    let first = house.control.resume_sandbox(&house.caller, &snapshot, &key).await.unwrap();
    assert_eq!(house.control.resume_sandbox(&house.caller, &snapshot, &key).await.unwrap().id, first.id);
    let other = context(Some("other"));
    let refused = house.control.resume_sandbox(&house.caller, &snapshot, &other).await.unwrap_err();
    assert_eq!(refused.code, Code::SandboxNotFound);
    let snapshot = house.pause(&first.id).await.unwrap();
    let create = async || {
        let request = serde_json::from_value(json!({"snapshot_id": snapshot})).unwrap();
        house.control.create_sandbox(&house.caller, request, &context(Some("c"))).await.unwrap().id
    };
    assert_eq!(create().await, create().await);
    assert_eq!(house.host.machines().len(), 1);
    house.control.stop().await;
}

#[tokio::test]
async fn a_resume_waits_for_the_end_of_the_pause_and_only_one_finds_it() {
    let house = Arc::new(House::new(usual()).await);
    let id = house.create(json!({})).await;
    let permits = house.host.ends.available_permits();
    let held = house.host.ends.acquire_many(u32::try_from(permits).unwrap()).await.unwrap();
    let pause = tokio::spawn({
        let (house, id) = (Arc::clone(&house), id.clone());
        async move { house.pause(&id).await }
    });
    // The row says so, and the machine has not ended.
    house.until_status(&id, Ok(Status::Paused)).await;
    let resumes: Vec<_> = (0..2)
        .map(|_| {
            let (house, id) = (Arc::clone(&house), id.clone());
            tokio::spawn(async move { house.resume(&id).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(resumes.iter().all(|resume| !resume.is_finished()));
    drop(held);
    pause.await.unwrap().unwrap();
    let mut resumed = Vec::new();
    for resume in resumes {
        match resume.await.unwrap() {
            Ok(id) => resumed.push(id),
            Err(error) => assert_eq!(error.code, Code::SandboxNotFound),
        }
    }
    assert_eq!(resumed.len(), 1);
    assert_eq!(house.status(&resumed[0]).await, Ok(Status::Running));
    assert_eq!(house.host.machines().len(), 1);
    house.control.stop().await;
}

#[tokio::test]
async fn a_resume_that_fails_leaves_the_paused_one_as_it_was() {
    let house = House::new(usual()).await;
    let id = house.create(json!({"auto_resume": true})).await;
    house.pause(&id).await.unwrap();
    house.host.state.failing_starts.store(2, Ordering::SeqCst);
    assert!(house.resume(&id).await.is_err());
    assert!(house.control.live_sandbox(&house.caller, &id).await.is_err());
    assert_eq!(house.status(&id).await, Ok(Status::Paused));
    assert!(house.host.machines().is_empty());
    let resumed = house.resume(&id).await.unwrap();
    assert_eq!(house.status(&resumed).await, Ok(Status::Running));
    assert_eq!(house.resume(&resumed).await.unwrap_err().code, Code::TransitionConflict, "it is not paused");
    house.control.stop().await;
}

#[tokio::test]
async fn use_resumes_a_paused_sandbox_once_under_its_own_id() {
    let house = House::new(usual()).await;
    let id = house.create(json!({"auto_resume": true, "envs": {"A": "1"}})).await;
    house.pause(&id).await.unwrap();
    let before = house.starts();
    let uses = (0..30).map(|_| house.control.live_sandbox(&house.caller, &id));
    for found in futures::future::join_all(uses).await {
        assert!(found.is_ok(), "{:?}", found.err());
    }
    assert_eq!(house.starts(), before + 1);
    assert_eq!(house.status(&id).await, Ok(Status::Running));
    assert_eq!(house.host.machine(&id).envs["A"], "1");
    // Not for another tenant.
    house.pause(&id).await.unwrap();
    let db = &house.control.inner.db;
    let other = db.ensure_tenant("other", NamespaceKind::User, at(0)).await.unwrap().caller();
    assert_eq!(house.control.live_sandbox(&other, &id).await.err().unwrap().code, Code::SandboxNotFound);
    assert_eq!(
        house.control.resume_sandbox(&other, &id, &context(None)).await.unwrap_err().code,
        Code::SandboxNotFound
    );
    assert_eq!(house.status(&id).await, Ok(Status::Paused));
    house.control.stop().await;
}

#[tokio::test]
async fn a_pause_that_is_refused_lets_the_sandbox_run_on() {
    let house = House::new(LifeSettings { paused_per_tenant: 1, snapshots_per_tenant: 1, ..usual() }).await;
    let (one, two) = (house.create(json!({})).await, house.create(json!({})).await);
    house.host.state.failing_captures.store(1, Ordering::SeqCst);
    assert_eq!(house.pause(&one).await.unwrap_err().code, Code::CapacityExceeded);
    assert_eq!(house.status(&one).await, Ok(Status::Running));
    house.pause(&one).await.unwrap();
    assert_eq!(house.pause(&two).await.unwrap_err().code, Code::QuotaExceeded);
    assert_eq!(house.status(&two).await, Ok(Status::Running));
    let plain = context(None);
    let take = || house.control.create_snapshot(&house.caller, &two, Default::default(), &plain);
    let kept = take().await.unwrap();
    assert_eq!(take().await.unwrap_err().code, Code::QuotaExceeded);
    house.control.delete_snapshot(&house.caller, &kept.id).await.unwrap();
    take().await.unwrap();
    let ephemeral = house.create(json!({"ephemeral": true})).await;
    assert_eq!(house.pause(&ephemeral).await.unwrap_err().code, Code::TransitionConflict);
    house.control.stop().await;
}

#[tokio::test]
async fn one_transition_at_a_time_and_an_end_always_wins() {
    let house = Arc::new(House::new(usual()).await);
    let id = house.create(json!({})).await;
    let permits = house.host.captures.available_permits();
    let held = house.host.captures.acquire_many(u32::try_from(permits).unwrap()).await.unwrap();
    let pause = tokio::spawn({
        let (house, id) = (Arc::clone(&house), id.clone());
        async move { house.pause(&id).await }
    });
    while house.host.state.capturing.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let busy = house.pause(&id).await.unwrap_err();
    assert_eq!(busy.code, Code::TransitionInProgress);
    assert!(busy.retry_after.is_some());
    let snapshot = house.control.create_snapshot(&house.caller, &id, Default::default(), &context(None)).await;
    assert_eq!(snapshot.unwrap_err().code, Code::TransitionInProgress);
    house.control.destroy_sandbox(&house.caller, &id).await.unwrap();
    drop(held);
    assert!(pause.await.unwrap().is_err());
    assert_eq!(house.status(&id).await, Err(Code::SandboxNotFound));
    assert!(house.host.machines().is_empty());
    assert_eq!(house.control.list_snapshots(&house.caller, SnapshotQuery::default()).await.unwrap(), []);
    // What the pause had captured is given up in a task of its own.
    let given_up = async {
        while house.host.state.gone_on.load(Ordering::SeqCst) != 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), given_up).await.unwrap();
    house.control.stop().await;
}

#[tokio::test]
async fn the_end_of_a_paused_sandbox_is_final() {
    let house = House::new(usual()).await;
    let id = house.create(json!({})).await;
    let snapshot = house.pause(&id).await.unwrap();
    house.control.destroy_sandbox(&house.caller, &id).await.unwrap();
    assert_eq!(house.resume(&snapshot).await.unwrap_err().code, Code::SandboxNotFound);
    assert_eq!(house.resume(&id).await.unwrap_err().code, Code::SandboxNotFound);
    let gone = house.control.get_snapshot(&house.caller, &snapshot).await.unwrap_err();
    assert_eq!(gone.code, Code::SnapshotNotFound);
    // And by itself, after its time.
    let id = house.create(json!({"auto_delete_after_ms": 1})).await;
    house.pause(&id).await.unwrap();
    house.control.inner.end_due(Timestamp::now() + SignedDuration::from_secs(1), 10).await.unwrap();
    house.until_status(&id, Err(Code::SandboxNotFound)).await;
    assert!(house.told(&id).await.contains(&"destroy succeeded auto_delete".to_owned()));
    house.control.stop().await;
}

#[tokio::test]
async fn snapshots_and_forks_make_sandboxes_and_the_source_runs_on() {
    let house = House::new(usual()).await;
    let id = house.create(json!({"envs": {"A": "1"}, "metadata": {"team": "a"}})).await;
    let request = serde_json::from_value(json!({"metadata": {"step": "one"}})).unwrap();
    let key = context(Some("k"));
    let kept = house.control.create_snapshot(&house.caller, &id, request, &key).await.unwrap();
    assert_eq!((kept.sandbox_id.as_str(), kept.size_bytes), (id.as_str(), 1 << 20));
    let again = serde_json::from_value(json!({"metadata": {"step": "one"}})).unwrap();
    let again = house.control.create_snapshot(&house.caller, &id, again, &key).await.unwrap();
    assert_eq!(again, kept, "the same request");
    assert_eq!(house.host.state.removed.lock().unwrap().len(), 1, "the second one's files");
    let found = |metadata: serde_json::Value| {
        let metadata = metadata.as_object().cloned().unwrap();
        house.control.list_snapshots(&house.caller, SnapshotQuery { sandbox_id: Some(id.clone()), metadata })
    };
    assert_eq!(found(json!({"step": "one"})).await.unwrap(), std::slice::from_ref(&kept));
    assert_eq!(found(json!({"step": "two"})).await.unwrap(), []);
    // Many from one, with settings of their own.
    let one = house.create(json!({"snapshot_id": kept.id, "envs": {"B": "2"}, "metadata": {"team": "b"}})).await;
    let two = house.resume(&kept.id).await.unwrap();
    assert_eq!(house.host.machine(&one).envs.len(), 2);
    assert_eq!(house.host.machine(&two).envs.len(), 1);
    let info = house.control.get_sandbox(&house.caller, &one).await.unwrap();
    assert_eq!((info.metadata.unwrap()["team"].as_str(), info.snapshot_id), (Some("b"), Some(kept.id.clone())));
    let wrong: CreateSandboxRequest =
        serde_json::from_value(json!({"snapshot_id": kept.id, "internet_access": false})).unwrap();
    assert_eq!(
        house.control.create_sandbox(&house.caller, wrong, &context(None)).await.unwrap_err().code,
        Code::InvalidRequest
    );

    let plain = context(None);
    let forks = (0..4).map(|_| house.control.fork_sandbox(&house.caller, &id, &plain));
    for fork in futures::future::join_all(forks).await {
        let fork = fork.unwrap();
        assert_eq!(house.host.machine(&fork.id).envs["A"], "1");
        assert!(house.told(&fork.id).await.contains(&"fork succeeded api".to_owned()));
    }
    assert_eq!(house.status(&id).await, Ok(Status::Running));
    house.host.state.failing_captures.store(1, Ordering::SeqCst);
    assert!(house.control.fork_sandbox(&house.caller, &id, &context(None)).await.is_err());
    assert!(house.told(&id).await.contains(&"fork failed api".to_owned()));
    assert_eq!(house.host.machines().len(), 7);
    house.control.stop().await;
}

#[tokio::test]
async fn a_timeout_ends_or_pauses_what_is_still_due() {
    let house = House::new(usual()).await;
    let id = house.create(json!({"timeout_ms": 600_000})).await;
    let parsed: SandboxId = id.parse().unwrap();
    // It has got new limits meanwhile.
    house.host.machines().get_mut(&parsed).unwrap().limits = Default::default();
    house.host.events().sandbox_due(parsed, Due::Deadline).await;
    for _ in 0..500 {
        if house.host.machine(&id).limits.deadline.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(house.host.machine(&id).limits.deadline.is_some());
    let set = async |request: SetTimeoutRequest| house.control.set_timeout(&house.caller, &id, request).await.unwrap();
    let hibernate = Some(SandboxTimeoutAction::Hibernate);
    let answer = set(SetTimeoutRequest { timeout_ms: 1, timeout_action: hibernate }).await;
    assert_eq!((answer.timeout_ms, Some(answer.timeout_action)), (1, hibernate));
    tokio::time::sleep(Duration::from_millis(10)).await;
    // The first try fails, and nothing is lost.
    house.host.state.failing_captures.store(1, Ordering::SeqCst);
    house.host.events().sandbox_due(parsed, Due::Deadline).await;
    house.until_status(&id, Ok(Status::Paused)).await;
    let told = house.told(&id).await;
    let expected = [
        "timeout_updated requested api",
        "timeout_updated succeeded api",
        "timeout_expired succeeded timeout",
        "hibernate requested timeout",
        "hibernate failed timeout",
        "hibernate requested timeout",
        "hibernate succeeded timeout",
        "snapshot_created succeeded timeout",
    ];
    assert_eq!(told[2..], expected);
    let late = SetTimeoutRequest { timeout_ms: 1, timeout_action: None };
    let refused = house.control.set_timeout(&house.caller, &id, late).await.unwrap_err();
    assert_eq!(refused.code, Code::SandboxNotReady);

    let id = house.create(json!({"timeout_ms": 1})).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    house.host.events().sandbox_due(id.parse().unwrap(), Due::Deadline).await;
    house.until_status(&id, Err(Code::SandboxNotFound)).await;
    let told = house.told(&id).await;
    assert_eq!(
        told[2..],
        ["timeout_expired succeeded timeout", "destroy requested timeout", "destroy succeeded timeout"]
    );
    house.control.stop().await;
}

#[tokio::test]
async fn a_stop_pauses_what_runs_and_the_next_start_continues_it() {
    let mut house = House::new(usual()).await;
    let mut running = Vec::new();
    for number in 0..6 {
        running.push(house.create(json!({"envs": {"N": number.to_string()}, "timeout_ms": 3_000_000})).await);
    }
    let by_hand = house.create(json!({})).await;
    house.pause(&by_hand).await.unwrap();
    let ephemeral = house.create(json!({"ephemeral": true})).await;
    house.control.stop().await;
    assert!(house.host.machines().is_empty());

    house.restart(KEY).await;
    for (number, id) in running.iter().enumerate() {
        house.until_status(id, Ok(Status::Running)).await;
        assert!(house.control.live_sandbox(&house.caller, id).await.is_ok(), "what is running can be used");
        let machine = house.host.machine(id);
        assert_eq!(machine.envs["N"], number.to_string());
        let left = machine.limits.deadline.unwrap().duration_since(Timestamp::now()).as_secs();
        assert!((2900..=3000).contains(&left), "{left} s are left");
    }
    assert_eq!(house.status(&by_hand).await, Ok(Status::Paused));
    assert_eq!(house.status(&ephemeral).await, Err(Code::SandboxNotFound));
    assert!(house.told(&running[0]).await.ends_with(&["resume_from_snapshot succeeded service_started".to_owned()]));

    // Killed: nothing is paused, and what was paused stays.
    let control = house.control.clone();
    house.host.lose_all();
    control.inner.shutdown.cancel();
    control.inner.db.close().await;
    house.restart(KEY).await;
    for id in &running {
        assert_eq!(house.status(id).await, Ok(Status::Error));
        assert!(house.told(id).await.last().unwrap().starts_with("reconcile succeeded lost: "));
    }
    house.resume(&by_hand).await.unwrap();
    house.control.stop().await;
}

#[tokio::test]
async fn what_cannot_continue_stays_paused_and_a_stop_of_zero_ends_all() {
    let mut house = House::new(usual()).await;
    let id = house.create(json!({"envs": {"A": "1"}})).await;
    house.control.stop().await;
    // The key is lost: its variables cannot be read.
    house.restart("8 ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f").await;
    let refused = house.resume(&id).await.unwrap_err();
    assert_eq!(refused.code, Code::FeatureUnavailable);
    assert!(refused.message.contains("seal.key"), "{refused}");
    assert_eq!(house.status(&id).await, Ok(Status::Paused));
    let waits = house.control.live_sandbox(&house.caller, &id).await.err().unwrap();
    assert_eq!(waits.code, Code::SandboxNotReady);
    assert!(waits.retry_after.is_some(), "it is still tried");
    house.control.stop().await;
    // The key is back.
    house.restart(KEY).await;
    house.until_status(&id, Ok(Status::Running)).await;
    house.control.stop().await;

    let mut house = House::new(LifeSettings { stop_pause: Duration::ZERO, ..usual() }).await;
    let id = house.create(json!({})).await;
    house.control.stop().await;
    house.restart(KEY).await;
    assert_eq!(house.status(&id).await, Err(Code::SandboxNotFound));
    house.control.stop().await;
}
