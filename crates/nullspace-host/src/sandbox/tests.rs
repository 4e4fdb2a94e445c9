//! Pauses, snapshots and forks against a driver without machines and an agent in memory.

mod fake;
mod full_disk;
mod ports;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use nullspace_api::{ErrorResponseCode, ExecRequest};
use nullspace_data::{ArtifactStore, DataError};
use nullspace_definition::runtime::Runtime;
use nullspace_host_interface::{
    AdmittedSandbox, Capacity, Due, FrozenSandbox, HostEvents, SandboxEnd, SandboxSettings, SandboxSpec, Snapshot,
    TimeLimits,
};
use nullspace_service::{CommandEvent, LiveCommands, Memory};
use nullspace_types::{ArtifactId, EgressPolicy, EgressReach, KnownFiles, Rootfs, SandboxId, TenantId};
use nullspace_vmm::{EndCause, Network};
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot};

use self::fake::{AFTER, BEFORE, FakeVmm, PID, Script};
use super::actors::Actors;
use super::live::Live;
use super::{capture, start};
use crate::admission::TenantQuota;
use crate::disk::Disk;
use crate::machine::Machines;

/// What a host has reported.
#[derive(Debug, Default)]
struct Reports {
    ends: Mutex<Vec<SandboxEnd>>,
    due: Mutex<Vec<Due>>,
    changed: Notify,
}

#[async_trait]
impl HostEvents for Reports {
    async fn sandbox_ended(&self, _: SandboxId, end: SandboxEnd) {
        self.ends.lock().unwrap().push(end);
        self.changed.notify_one();
    }

    async fn sandbox_due(&self, _: SandboxId, due: Due) {
        self.due.lock().unwrap().push(due);
        self.changed.notify_one();
    }
}

/// A memory limit without a limit.
struct Enough;

impl Memory for Enough {
    fn grow(&self, _: usize) -> Result<(), nullspace_service::Exhausted> {
        Ok(())
    }
}

fn settings(internet_access: bool, egress: EgressPolicy) -> SandboxSettings {
    SandboxSettings { envs: BTreeMap::new(), cwd: "/".to_owned(), internet_access, egress }
}

/// A host with one running sandbox.
struct Host {
    actors: Arc<Actors>,
    script: Arc<Script>,
    reports: Arc<Reports>,
    template: Snapshot,
    tenant: TenantId,
    id: SandboxId,
    /// Removed at the end, unless it is the test's.
    _data: Option<tempfile::TempDir>,
}

const SECOND: Duration = Duration::from_secs(1);

impl Host {
    async fn start(halts: bool) -> Host {
        let data = tempfile::tempdir().unwrap();
        let host = Host::start_in(data.path(), halts).await;
        Host { _data: Some(data), ..host }
    }

    async fn start_in(data: &Path, halts: bool) -> Host {
        let files = ArtifactStore::open(data).unwrap();
        let script = Script::new(halts);
        let vmm = FakeVmm::new(Arc::clone(&script));
        let template = template(&files, json!(vmm.summary())).await;
        let capacity = Capacity { memory_mib: 128, vcpus: 2 };
        let machines = Machines::new(Arc::new(vmm), capacity, TenantQuota::default());
        let disk = Arc::new(Disk::new(files.clone(), Some(0)));
        let actors = Arc::new(Actors::new(machines, disk, files, Arc::default()));
        let reports = Arc::new(Reports::default());
        actors.report_to(Arc::clone(&reports) as _);
        let (tenant, id) = (TenantId::new(), SandboxId::new());
        let host = Host { actors, script, reports, template, tenant, id, _data: None };
        host.resume(id, host.template.clone()).await;
        assert_eq!(host.script.asked(), ["restore"]);
        host
    }

    /// Starts a sandbox from a snapshot.
    async fn resume(&self, id: SandboxId, snapshot: Snapshot) {
        let spec = SandboxSpec { id, tenant: self.tenant, snapshot, spare: None };
        let admitted = Box::new(start::admit(&self.actors, spec).unwrap());
        let settings = settings(false, EgressPolicy::default());
        let started = admitted.start(settings, oneshot::channel().0).await.unwrap();
        assert!(started.run(TimeLimits::default()).await);
    }

    fn live(&self) -> Arc<Live> {
        self.actors.running(self.id).unwrap()
    }

    /// Manifests in the store after a collection with a database that names the template alone.
    async fn stored(&self) -> u64 {
        let mut known = KnownFiles::default();
        known.artifacts.insert(self.template.folder.clone(), self.template.streams.clone());
        known.rootfs.insert(self.template.rootfs.file.clone(), self.template.rootfs.manifest.clone());
        self.actors.files.collect_images(async { Ok::<_, DataError>(known) }).await.unwrap();
        self.actors.files.image_stats().manifests
    }

    fn memory_in_use(&self) -> u64 {
        self.actors.machines.admission.usage().0.memory_mib
    }
}

async fn template(files: &ArtifactStore, summary: Value) -> Snapshot {
    let scratch = files.scratch().unwrap();
    let (image, dir) = (scratch.path().join("image"), scratch.path().join("snapshot"));
    std::fs::write(&image, vec![1; 4096]).unwrap();
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("memory"), vec![2; 4096]).unwrap();
    let key = "a".repeat(64);
    let rootfs = files.publish_rootfs(&image, &key).await.unwrap();
    let artifact = ArtifactId::new();
    let published = files.publish_artifact(&dir, artifact, Vec::new()).await.unwrap();
    let manifest = Some(rootfs.manifest.clone());
    Snapshot {
        artifact,
        folder: published.folder,
        streams: Some(published.streams),
        rootfs: Rootfs { key, file: rootfs.file, bytes: 4096, manifest, info: Value::Null },
        summary,
        runtime: Runtime::default(),
        held: None,
    }
}

fn command() -> ExecRequest {
    ExecRequest { command: "work".to_owned(), ..ExecRequest::default() }
}

/// All of a followed command's output.
async fn output(followed: nullspace_service::FollowedCommand) -> (Vec<u8>, bool) {
    let (mut all, mut ended) = (Vec::new(), false);
    let mut events = followed.events;
    while let Some(event) = events.next().await {
        match event.unwrap() {
            CommandEvent::Stdout(bytes) => all.extend_from_slice(&bytes),
            CommandEvent::Stderr(bytes) => panic!("{bytes:?}"),
            CommandEvent::Exit { .. } => ended = true,
        }
    }
    (all, ended)
}

#[tokio::test]
async fn a_machine_starts_within_its_egress_policy_and_takes_another() {
    let host = Host::start(true).await;
    let nothing = EgressPolicy { reach: EgressReach::Nothing, ..EgressPolicy::default() };
    let network = || host.script.network.lock().unwrap().clone().unwrap();
    assert_eq!(network(), Network::Isolated);
    let start = async |settings| {
        let spec =
            SandboxSpec { id: SandboxId::new(), tenant: host.tenant, snapshot: host.template.clone(), spare: None };
        let started = Box::new(start::admit(&host.actors, spec).unwrap()).start(settings, oneshot::channel().0).await;
        match started {
            Ok(started) => {
                started.discard().await;
                Ok(())
            }
            Err(error) => Err(error.code),
        }
    };
    start(settings(true, EgressPolicy::default())).await.unwrap();
    assert_eq!(network(), Network::Internet);
    start(settings(true, nothing.clone())).await.unwrap();
    assert_eq!(network(), Network::Narrowed(nothing.clone()));

    let live = host.live();
    let open = EgressPolicy::default();
    super::egress::set(&live, &open).await.unwrap();
    assert_eq!(network(), Network::Narrowed(open.clone()));
    host.script.refuses.store(true, Ordering::Relaxed);
    assert_eq!(super::egress::set(&live, &nothing).await.unwrap_err().code, ErrorResponseCode::InternalError);

    host.script.polices.store(false, Ordering::Relaxed);
    let limited = EgressPolicy {
        rate: nullspace_types::EgressRate { pps: Some(1), ..Default::default() },
        ..EgressPolicy::default()
    };
    host.script.asked();
    assert_eq!(start(settings(true, limited)).await, Err(ErrorResponseCode::NotImplemented));
    assert!(host.script.asked().is_empty(), "no machine was started");
    start(settings(true, nothing)).await.unwrap();
}

#[tokio::test]
async fn a_machine_that_ends_while_its_sandbox_starts_is_told_by_its_cause_and_gives_its_room_back() {
    let host = Host::start(true).await;
    for (cause, reason, retryable) in [
        (EndCause::Signal(9), "machine_killed", true),
        (EndCause::Vmm, "machine_failed", true),
        (EndCause::Guest, "machine_failed", false),
    ] {
        *host.script.ends_at_start.lock().unwrap() = Some(cause);
        let spec =
            SandboxSpec { id: SandboxId::new(), tenant: host.tenant, snapshot: host.template.clone(), spare: None };
        let admitted = Box::new(start::admit(&host.actors, spec).unwrap());
        let started = admitted.start(settings(false, EgressPolicy::default()), oneshot::channel().0).await;
        let Err(error) = started else { panic!("it has started") };
        assert_eq!(error.code, ErrorResponseCode::InternalError);
        assert_eq!(error.retry_after.is_some(), retryable, "{error:?}");
        let detail = json!(error.detail);
        assert_eq!((&detail["details"]["reason"], &detail["retryable"]), (&json!(reason), &json!(retryable)));
        assert_eq!(host.memory_in_use(), 64, "the other one's");
    }
    assert!(host.live().list_processes().await.is_ok());
}

#[tokio::test]
async fn a_snapshot_goes_on_with_the_session_and_all_that_is_under_way() {
    let host = Host::start(true).await;
    let live = host.live();
    let before = host.stored().await;
    let followed = Arc::clone(&live).run_command(command()).await.unwrap();
    let waiting = tokio::spawn({
        let live = Arc::clone(&live);
        async move { live.exec(command(), &Enough).await }
    });
    tokio::time::sleep(SECOND / 5).await;
    let captured = capture::snapshot(&host.actors, host.id, Vec::new()).await.unwrap();
    assert_eq!(host.script.asked(), ["halt", "pause", "snapshot", "resume", "thaw with a time"]);
    assert!(captured.size_bytes >= 32 << 10 && captured.disk_bytes == 1 << 20, "{captured:?}");
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!((answer.exit_code, answer.stdout.as_bytes()), (0, &[BEFORE, AFTER].concat()[..]));
    assert_eq!(output(followed).await, ([BEFORE, AFTER].concat(), true));
    assert!(host.reports.ends.lock().unwrap().is_empty());
    // Kept until a row names it.
    assert_eq!(host.stored().await, before + 1);
    host.actors.files.remove_artifact(&captured.folder).await.unwrap();
    assert_eq!(host.stored().await, before);
}

#[tokio::test]
async fn with_an_older_agent_a_snapshot_waits_for_commands_and_follows_again() {
    let host = Host::start(false).await;
    let live = host.live();
    let followed = Arc::clone(&live).run_command(command()).await.unwrap();
    assert_eq!(followed.pid, PID);
    let captured = capture::snapshot(&host.actors, host.id, Vec::new()).await.unwrap();
    assert_eq!(host.script.asked(), ["freeze", "pause", "snapshot", "resume", "attach", "thaw"]);
    assert_eq!(output(followed).await, ([BEFORE, AFTER].concat(), true));
    assert!(captured.frozen > Duration::ZERO);
    // A command that is waited for would end with the session.
    let waiting = tokio::spawn({
        let live = Arc::clone(&live);
        async move { live.exec(command(), &Enough).await }
    });
    tokio::time::sleep(SECOND / 5).await;
    let refused = capture::snapshot(&host.actors, host.id, Vec::new()).await.unwrap_err();
    assert_eq!(refused.code, ErrorResponseCode::TransitionInProgress, "{refused:?}");
    assert!(refused.retry_after.is_some() && !waiting.is_finished());
    assert!(host.script.asked().is_empty(), "nothing was asked of the machine");
    assert!(live.list_processes().await.is_ok());
    waiting.abort();
}

#[tokio::test]
async fn a_pause_ends_the_sandbox_and_gives_its_place_back() {
    for halts in [true, false] {
        let host = Host::start(halts).await;
        let live = host.live();
        assert_eq!(host.memory_in_use(), 64);
        let followed = Arc::clone(&live).run_command(command()).await.unwrap();
        let waiting = tokio::spawn({
            let live = Arc::clone(&live);
            async move { live.exec(command(), &Enough).await }
        });
        tokio::time::sleep(SECOND / 5).await;
        let frozen = capture::freeze(&host.actors, host.id, None).await.unwrap();
        let interrupted = waiting.await.unwrap().unwrap_err();
        assert_eq!(interrupted.code, ErrorResponseCode::TransitionInProgress, "{interrupted:?}");
        let refused = live.list_processes().await.unwrap_err();
        assert_eq!(refused.code, ErrorResponseCode::TransitionInProgress, "{refused:?}");
        let second = capture::snapshot(&host.actors, host.id, Vec::new()).await.unwrap_err();
        assert_eq!(second.code, ErrorResponseCode::TransitionInProgress, "{second:?}");
        assert!(frozen.captured().frozen > Duration::ZERO);
        let snapshot = Snapshot {
            folder: frozen.captured().folder.clone(),
            streams: frozen.captured().streams.clone(),
            summary: frozen.captured().summary.clone(),
            ..host.template.clone()
        };
        Box::new(frozen).end().await;
        assert_eq!(host.script.asked().last(), Some(&"kill"));
        assert_eq!(host.memory_in_use(), 0);
        assert!(host.actors.running(host.id).is_none());
        let events: Vec<_> = followed.events.collect().await;
        let last = events.into_iter().next_back().unwrap().unwrap_err();
        assert_eq!(last.code, ErrorResponseCode::SandboxNotReady, "{last:?}");
        assert!(host.reports.ends.lock().unwrap().is_empty(), "a pause is no end that nobody asked for");
        // The same id runs again.
        host.resume(host.id, snapshot).await;
        assert!(host.live().list_processes().await.is_ok());
    }
}

#[tokio::test]
async fn a_pause_of_an_idle_sandbox_is_refused_once_it_is_used_and_ends_no_use() {
    let host = Host::start(true).await;
    let live = host.live();
    let freeze = |since| capture::freeze(&host.actors, host.id, Some(since));
    let since = live.activity.idle_since().unwrap();
    live.list_processes().await.unwrap();
    let refused = freeze(since).await.map(drop).unwrap_err();
    assert_eq!(refused.code, ErrorResponseCode::TransitionInProgress, "it was used: {refused:?}");
    let waiting = tokio::spawn({
        let live = Arc::clone(&live);
        async move { live.exec(command(), &Enough).await }
    });
    tokio::time::sleep(SECOND / 5).await;
    let refused = freeze(live.activity.last()).await.map(drop).unwrap_err();
    assert_eq!(refused.code, ErrorResponseCode::TransitionInProgress, "it is in use: {refused:?}");
    // The script's command ends with the next snapshot.
    assert!(host.script.asked().is_empty() && !waiting.is_finished());
    capture::snapshot(&host.actors, host.id, Vec::new()).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().exit_code, 0, "nothing has interrupted it");
    let frozen = freeze(live.activity.idle_since().unwrap()).await.unwrap();
    Box::new(frozen).end().await;
    assert!(host.actors.running(host.id).is_none());
}

#[tokio::test]
async fn a_frozen_sandbox_that_is_let_go_runs_on_and_leaves_nothing() {
    for (halts, dropped) in [(true, true), (true, false), (false, true), (false, false)] {
        let host = Host::start(halts).await;
        let before = host.stored().await;
        let frozen = capture::freeze(&host.actors, host.id, None).await.unwrap();
        if dropped {
            drop(frozen);
        } else {
            Box::new(frozen).go_on(false).await.unwrap();
        }
        let answers = async {
            while host.live().list_processes().await.is_err() {
                tokio::time::sleep(SECOND / 50).await;
            }
        };
        tokio::time::timeout(20 * SECOND, answers).await.unwrap();
        assert!(host.script.asked().ends_with(&["resume", if halts { "thaw with a time" } else { "thaw" }]));
        assert_eq!(host.script.connections(), 2);
        let removed = async {
            while host.stored().await != before {
                tokio::time::sleep(SECOND / 50).await;
            }
        };
        tokio::time::timeout(20 * SECOND, removed).await.unwrap();
        // The next transition is not refused.
        drop(capture::freeze(&host.actors, host.id, None).await.unwrap());
    }
}

#[tokio::test]
async fn a_snapshot_that_the_vmm_refuses_leaves_a_running_sandbox() {
    for halts in [true, false] {
        let host = Host::start(halts).await;
        host.script.refuses.store(true, Ordering::Relaxed);
        assert!(capture::snapshot(&host.actors, host.id, Vec::new()).await.is_err());
        assert!(capture::freeze(&host.actors, host.id, None).await.is_err());
        assert!(host.live().list_processes().await.is_ok());
        assert!(host.reports.ends.lock().unwrap().is_empty());
        host.script.refuses.store(false, Ordering::Relaxed);
        capture::snapshot(&host.actors, host.id, Vec::new()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_come_back_ends_the_sandbox() {
    for halts in [true, false] {
        let host = Host::start(halts).await;
        let frozen = capture::freeze(&host.actors, host.id, None).await.unwrap();
        host.script.deaf.store(true, Ordering::Relaxed);
        let error = Box::new(frozen).go_on(false).await.unwrap_err();
        assert!(error.message.contains("has ended"), "{error:?}");
        let ends = host.reports.ends.lock().unwrap().clone();
        assert!(ends.len() == 1 && ends[0].failed, "{ends:?}");
        assert_eq!(host.memory_in_use(), 0);
        assert_eq!(host.script.asked().last(), Some(&"kill"));
    }
}

#[tokio::test]
async fn a_machine_that_ends_while_it_is_frozen_ends_its_sandbox() {
    let host = Host::start(true).await;
    let frozen = capture::freeze(&host.actors, host.id, None).await.unwrap();
    host.script.power_off();
    tokio::time::timeout(20 * SECOND, host.reports.changed.notified()).await.unwrap();
    assert_eq!(host.reports.ends.lock().unwrap()[0].fault, Some("guest_ended"));
    let error = Box::new(frozen).go_on(false).await.unwrap_err();
    assert_eq!(error.code, ErrorResponseCode::SandboxNotFound, "{error:?}");
    let refused = capture::freeze(&host.actors, host.id, None).await.map(drop).unwrap_err();
    assert_eq!(refused.code, ErrorResponseCode::SandboxNotFound);
}

#[tokio::test]
async fn a_fork_has_a_place_before_the_capture_and_files_until_its_end() {
    let host = Host::start(true).await;
    let forked = capture::fork(&host.actors, host.id).await.unwrap();
    assert_eq!(host.memory_in_use(), 128, "its place is kept");
    assert!(host.live().list_processes().await.is_ok());
    host.script.asked();
    let full = capture::fork(&host.actors, host.id).await.unwrap_err();
    assert_eq!(full.code, ErrorResponseCode::CapacityExceeded, "{full:?}");
    assert!(host.script.asked().is_empty(), "nothing stood still for it");
    let child = SandboxId::new();
    host.resume(child, forked).await;
    assert_eq!(host.memory_in_use(), 128);
    let path = host.actors.running(child).unwrap().snapshot.path().to_owned();
    assert!(path.join("memory").is_file());
    host.actors.end(child).await;
    let removed = async {
        while path.exists() {
            tokio::time::sleep(SECOND / 50).await;
        }
    };
    tokio::time::timeout(20 * SECOND, removed).await.unwrap();
    assert_eq!(host.memory_in_use(), 64);
}

#[tokio::test]
async fn limits_are_reported_and_the_sandbox_runs_on() {
    let host = Host::start(true).await;
    let live = host.live();
    live.activity.set(TimeLimits { deadline: None, idle: Some(SECOND / 100) });
    tokio::time::timeout(20 * SECOND, host.reports.changed.notified()).await.unwrap();
    assert_eq!(*host.reports.due.lock().unwrap(), [Due::Idle]);
    assert!(live.list_processes().await.is_ok());
    let samples = {
        live.measure().await;
        live.measured.all()
    };
    assert!(samples.last().is_some_and(|sample| sample.vcpus == 1 && sample.memory_total == 64 << 20), "{samples:?}");
}
