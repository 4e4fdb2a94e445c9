//! A host without machines, for tests of what control asks of it and in which order.

mod live;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_api::{ErrorResponseCode, TemplateFailurePhase};
use nullspace_host_interface::{
    AdmittedSandbox, Adopted, BaseRoot, BuildEnd, BuildHost, BuildJob, BuildRecord, Capacity, CaptureLeft, Captured,
    Collected, ContextFiles, Found, FrozenSandbox, HeldFiles, Host, HostError, HostEvents, HostInfo, HostUsage,
    ImageAccess, KnownImages, Lifecycle, ObjectStoreState, PublishedCapture, ReceivedFile, SandboxHost,
    SandboxSettings, SandboxSpec, SandboxUse, Snapshot, SnapshotSize, SpareSpec, StartedSandbox, Storage, TimeLimits,
    Unfit,
};
use nullspace_service::{ByteStream, Error, Result};
use nullspace_types::{ArtifactId, Blob, BlobId, EgressPolicy, KnownFiles, SandboxId, SpareId, Streams, TenantId};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use self::live::Live;

/// A machine that a [`FakeHost`] pretends to run.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) tenant: TenantId,
    pub(super) running: bool,
    pub(super) folder: String,
    pub(super) envs: BTreeMap<String, String>,
    pub(super) egress: EgressPolicy,
    pub(super) limits: TimeLimits,
    /// `None`: it is in use.
    pub(super) idle_since: Option<Timestamp>,
}

#[derive(Default)]
pub(super) struct FakeState {
    machines: Mutex<HashMap<SandboxId, Machine>>,
    pub(super) events: Mutex<Option<Arc<dyn HostEvents>>>,
    /// So many next starts or captures fail.
    pub(super) failing_starts: AtomicU32,
    pub(super) failing_spares: AtomicU32,
    /// Spares, and what they were made for.
    pub(super) spares: Mutex<HashMap<SpareId, (TenantId, ArtifactId)>>,
    /// Sandboxes that have taken one.
    pub(super) taken: Mutex<Vec<(SandboxId, SpareId)>>,
    pub(super) failing_captures: AtomicU32,
    /// So many next changes of an egress policy fail.
    pub(super) failing_egress: AtomicU32,
    /// Egress policies do not hold here.
    pub(super) no_egress: AtomicBool,
    pub(super) starts: AtomicU32,
    pub(super) trials: AtomicU32,
    /// Most machines at a time; 0: any number.
    pub(super) most: AtomicUsize,
    /// Places that forks have reserved.
    reserved: AtomicUsize,
    pub(super) gone_on: AtomicU32,
    /// Captures that were begun.
    pub(super) capturing: AtomicU32,
    captures: AtomicU32,
    /// Bytes of the next captures; 0: the usual.
    pub(super) capture_bytes: AtomicU64,
    /// So many next publications fail.
    pub(super) failing_publications: AtomicU32,
    /// What has become of captures, in order: `publish`, `stored`, `stopped`, `failed`, `flush`, `drop`.
    pub(super) published: Mutex<Vec<&'static str>>,
    /// Captures that a crash of the host has torn, or that are not seen.
    pub(super) left: Mutex<HashMap<String, CaptureLeft>>,
    pub(super) named: Mutex<Vec<String>>,
    pub(super) removed: Mutex<Vec<String>>,
}

/// A host without machines. Starts wait for a permit of `starting`, captures for one of `captures`, the ends of frozen machines
/// for one of `ends`, and publications for one of `publications`; there are plenty unless a test takes them.
#[derive(Clone)]
pub(super) struct FakeHost {
    pub(super) state: Arc<FakeState>,
    pub(super) starting: Arc<Semaphore>,
    pub(super) captures: Arc<Semaphore>,
    pub(super) ends: Arc<Semaphore>,
    pub(super) publications: Arc<Semaphore>,
    /// Wanted by the last look whether a sandbox idles.
    pub(super) looks: Arc<Semaphore>,
}

/// Memory of a machine, MiB.
const SIZE_MIB: u64 = 192;

impl FakeHost {
    pub(super) fn new() -> FakeHost {
        FakeHost {
            state: Arc::default(),
            starting: Arc::new(Semaphore::new(1000)),
            captures: Arc::new(Semaphore::new(1000)),
            ends: Arc::new(Semaphore::new(1000)),
            publications: Arc::new(Semaphore::new(1000)),
            looks: Arc::new(Semaphore::new(1000)),
        }
    }

    pub(super) fn machines(&self) -> MutexGuard<'_, HashMap<SandboxId, Machine>> {
        self.state.machines.lock().unwrap()
    }

    pub(super) fn machine(&self, id: &str) -> Machine {
        self.machines().get(&id.parse().unwrap()).cloned().expect("a machine")
    }

    pub(super) fn events(&self) -> Arc<dyn HostEvents> {
        self.state.events.lock().unwrap().clone().expect("it was started")
    }

    fn has_place(&self) -> bool {
        let most = self.state.most.load(Ordering::SeqCst);
        let spares = self.state.spares.lock().unwrap().len();
        most == 0 || self.machines().len() + spares + self.state.reserved.load(Ordering::SeqCst) < most
    }

    /// What a killed service leaves.
    pub(super) fn lose_all(&self) {
        self.machines().clear();
    }

    fn note(&self, what: &'static str) {
        self.state.published.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    async fn capture(&self, id: SandboxId) -> Result<Captured> {
        if !self.machines().get(&id).is_some_and(|machine| machine.running) {
            return Err(Error::sandbox_not_found(&id.to_string()));
        }
        self.state.capturing.fetch_add(1, Ordering::SeqCst);
        drop(self.captures.acquire().await);
        if take(&self.state.failing_captures) {
            return Err(Error::new(ErrorResponseCode::CapacityExceeded, "the disk has no room"));
        }
        let number = self.state.captures.fetch_add(1, Ordering::SeqCst);
        let size_bytes = match self.state.capture_bytes.load(Ordering::SeqCst) {
            0 => 1 << 20,
            bytes => bytes,
        };
        Ok(Captured {
            folder: format!("{}.{number:032x}", ArtifactId::new()),
            streams: None,
            resumed_from: None,
            stored_bytes: 0,
            size_bytes,
            disk_bytes: 1 << 29,
            summary: json!({}),
            frozen: Duration::from_millis(20),
        })
    }
}

/// The files of a snapshot.
pub(super) fn streams() -> Streams {
    let stream = |name: &str, digit: &str| (name.to_owned(), digit.repeat(64));
    Streams([stream("memory", "1"), stream("state", "2")].into())
}

/// Takes one of a number of failures.
fn take(number: &AtomicU32) -> bool {
    number.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

struct Admitted {
    host: FakeHost,
    spec: SandboxSpec,
}

struct Started {
    host: FakeHost,
    id: SandboxId,
}

struct Frozen {
    host: FakeHost,
    id: SandboxId,
    captured: Captured,
}

/// The place of a fork, until its sandbox takes it.
struct Held {
    host: FakeHost,
    taken: AtomicBool,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

impl HeldFiles for Held {}

impl Held {
    /// True for the first that asks.
    fn take(&self) -> bool {
        let first = !self.taken.swap(true, Ordering::SeqCst);
        if first {
            self.host.state.reserved.fetch_sub(1, Ordering::SeqCst);
        }
        first
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.take();
    }
}

#[async_trait]
impl AdmittedSandbox for Admitted {
    async fn start(
        self: Box<Self>,
        settings: SandboxSettings,
        resumed: oneshot::Sender<()>,
    ) -> Result<Box<dyn StartedSandbox>> {
        let (host, id) = (self.host, self.spec.id);
        host.state.starts.fetch_add(1, Ordering::SeqCst);
        drop(host.starting.acquire().await);
        tokio::time::sleep(Duration::from_millis(5)).await;
        if take(&host.state.failing_starts) {
            host.machines().remove(&id);
            return Err(Error::new(ErrorResponseCode::InternalError, "the agent does not answer"));
        }
        if let Some(machine) = host.machines().get_mut(&id) {
            machine.envs = settings.envs;
            machine.egress = settings.egress;
        }
        // The caller may not wait for it.
        let _ = resumed.send(());
        Ok(Box::new(Started { host, id }))
    }

    async fn try_out(self: Box<Self>) -> Result<()> {
        self.host.state.trials.fetch_add(1, Ordering::SeqCst);
        self.host.machines().remove(&self.spec.id);
        match take(&self.host.state.failing_starts) {
            true => Err(Error::new(ErrorResponseCode::InternalError, "the agent does not answer")),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl StartedSandbox for Started {
    async fn run(self: Box<Self>, limits: TimeLimits) -> bool {
        match self.host.machines().get_mut(&self.id) {
            Some(machine) => {
                (machine.running, machine.limits) = (true, limits);
                true
            }
            None => false,
        }
    }

    async fn discard(self: Box<Self>) {
        self.host.machines().remove(&self.id);
    }
}

#[async_trait]
impl FrozenSandbox for Frozen {
    fn captured(&self) -> &Captured {
        &self.captured
    }

    async fn end(self: Box<Self>) {
        drop(self.host.ends.acquire().await);
        self.host.machines().remove(&self.id);
    }

    async fn go_on(self: Box<Self>, may_be_named: bool) -> Result<()> {
        if !may_be_named {
            self.host.state.removed.lock().unwrap().push(self.captured.folder.clone());
        }
        self.host.state.gone_on.fetch_add(1, Ordering::SeqCst);
        match self.host.machines().contains_key(&self.id) {
            true => Ok(()),
            false => Err(Error::sandbox_not_found(&self.id.to_string())),
        }
    }
}

#[async_trait]
impl SandboxHost for FakeHost {
    fn judge(&self, _: &Value) -> std::result::Result<SnapshotSize, Unfit> {
        Ok(SnapshotSize { vcpus: 1, memory_mib: 192, disk_bytes: 1 << 29 })
    }

    fn adopt_snapshot(&self, id: ArtifactId, summary: &Value) -> std::result::Result<Adopted, Unfit> {
        let folder = format!("{id}.{}", "a".repeat(32));
        Ok(Adopted { folder, size: self.judge(summary)?, compatibility: json!({}) })
    }

    async fn admit_sandbox(&self, spec: SandboxSpec) -> Result<Box<dyn AdmittedSandbox>> {
        let (tenant, folder) = (spec.tenant, spec.snapshot.folder.clone());
        let reserved = spec.snapshot.held.as_ref().is_some_and(|held| {
            let any: Arc<dyn std::any::Any + Send + Sync> = Arc::clone(held) as _;
            any.downcast::<Held>().unwrap().take()
        });
        if let Some(spare) = spec.spare {
            let made_for = self.state.spares.lock().unwrap().remove(&spare);
            if made_for != Some((tenant, spec.snapshot.artifact)) {
                return Err(Error::new(ErrorResponseCode::WarmPoolUnavailable, "it has ended"));
            }
            self.state.taken.lock().unwrap().push((spec.id, spare));
        } else if !reserved && !self.has_place() {
            return Err(Error::new(ErrorResponseCode::CapacityExceeded, "the host is full"));
        }
        let machine = Machine {
            tenant,
            running: false,
            folder,
            envs: BTreeMap::new(),
            egress: EgressPolicy::default(),
            limits: TimeLimits::default(),
            idle_since: Some(Timestamp::now()),
        };
        let before = self.machines().insert(spec.id, machine);
        assert!(before.is_none(), "a second machine of one sandbox");
        Ok(Box::new(Admitted { host: self.clone(), spec }))
    }

    async fn prepare_spare(&self, spec: SpareSpec) -> Result<()> {
        if take(&self.state.failing_spares) {
            return Err(Error::new(ErrorResponseCode::QuotaExceeded, "the quota is used"));
        }
        if !self.has_place() {
            return Err(Error::new(ErrorResponseCode::CapacityExceeded, "the host is full"));
        }
        self.state.spares.lock().unwrap().insert(spec.id, (spec.tenant, spec.snapshot.artifact));
        Ok(())
    }

    async fn spares(&self) -> Vec<SpareId> {
        self.state.spares.lock().unwrap().keys().copied().collect()
    }

    async fn end_spare(&self, id: SpareId) {
        self.state.spares.lock().unwrap().remove(&id);
    }

    fn find_sandbox(&self, id: SandboxId) -> Found {
        match self.machines().get(&id) {
            None => Found::Absent,
            Some(machine) if machine.running => Found::Running(Arc::new(Live), machine.tenant),
            Some(_) => Found::Starting,
        }
    }

    async fn end_sandbox(&self, id: SandboxId) {
        self.machines().remove(&id);
    }

    fn sandboxes(&self) -> Vec<SandboxId> {
        self.machines().keys().copied().collect()
    }

    async fn freeze_sandbox(&self, id: SandboxId, idle_since: Option<Timestamp>) -> Result<Box<dyn FrozenSandbox>> {
        if let Some(since) = idle_since {
            drop(self.looks.acquire().await);
            if self.idle_since(id) != Some(since) {
                return Err(Error::new(ErrorResponseCode::TransitionInProgress, "it is in use again"));
            }
        }
        let captured = self.capture(id).await?;
        Ok(Box::new(Frozen { host: self.clone(), id, captured }))
    }

    async fn snapshot_sandbox(&self, id: SandboxId, _: Vec<Streams>) -> Result<Captured> {
        let captured = self.capture(id).await?;
        Ok(Captured { streams: Some(streams()), stored_bytes: 1 << 16, ..captured })
    }

    async fn fork_sandbox(&self, id: SandboxId) -> Result<Snapshot> {
        if !self.has_place() {
            return Err(Error::new(ErrorResponseCode::CapacityExceeded, "the host is full"));
        }
        self.state.reserved.fetch_add(1, Ordering::SeqCst);
        let held = Arc::new(Held { host: self.clone(), taken: AtomicBool::new(false) });
        let captured = self.capture(id).await?;
        Ok(Snapshot {
            artifact: ArtifactId::new(),
            folder: "held".to_owned(),
            streams: None,
            rootfs: super::tests::rootfs(),
            summary: captured.summary,
            runtime: Default::default(),
            held: Some(held),
        })
    }

    fn set_limits(&self, id: SandboxId, limits: TimeLimits) -> bool {
        self.machines().get_mut(&id).map(|machine| machine.limits = limits).is_some()
    }

    fn enforces_egress(&self) -> bool {
        !self.state.no_egress.load(Ordering::SeqCst)
    }

    async fn set_egress(&self, id: SandboxId, policy: &EgressPolicy) -> Result<bool> {
        if take(&self.state.failing_egress) {
            return Err(Error::new(ErrorResponseCode::InternalError, "nft failed"));
        }
        Ok(self.machines().get_mut(&id).map(|machine| machine.egress = policy.clone()).is_some())
    }

    fn last_active(&self, id: SandboxId) -> Option<Timestamp> {
        self.machines().get(&id).map(|_| Timestamp::now())
    }

    fn lacks_for(&self, _: &SandboxSpec) -> Option<Capacity> {
        let size = Capacity { memory_mib: SIZE_MIB, vcpus: 1 };
        (!self.has_place()).then_some(size)
    }

    fn held_by(&self, id: SandboxId) -> Option<Capacity> {
        let running = self.machines().get(&id).is_some_and(|machine| machine.running);
        running.then_some(Capacity { memory_mib: SIZE_MIB, vcpus: 1 })
    }

    fn idle_since(&self, id: SandboxId) -> Option<Timestamp> {
        self.machines().get(&id).and_then(|machine| machine.idle_since)
    }

    async fn sandbox_use(&self, _: SandboxId) -> Result<Vec<SandboxUse>> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl Storage for FakeHost {
    async fn sweep(&self, _: KnownFiles, _: BTreeSet<Blob>) -> std::result::Result<Vec<String>, HostError> {
        Ok(Vec::new())
    }

    fn artifact_named(&self, folder: &str) {
        self.state.named.lock().unwrap().push(folder.to_owned());
    }

    async fn publish_capture(
        &self,
        _: &str,
        _: Vec<Streams>,
        cancel: CancellationToken,
    ) -> std::result::Result<PublishedCapture, HostError> {
        self.note("publish");
        let cancelled = tokio::select! {
            biased;
            () = cancel.cancelled() => true,
            permit = self.publications.acquire() => {
                drop(permit);
                false
            }
        };
        if cancelled {
            self.note("stopped");
            return Err(HostError::Failed("stopped".into()));
        }
        if take(&self.state.failing_publications) {
            self.note("failed");
            return Err(HostError::StoreAway("the store is away".into()));
        }
        self.note("stored");
        Ok(PublishedCapture { streams: streams(), stored_bytes: 1 << 16 })
    }

    async fn drop_capture(&self, _: &str) -> std::result::Result<(), HostError> {
        self.note("drop");
        Ok(())
    }

    async fn flush_capture(&self, _: &str) -> std::result::Result<(), HostError> {
        self.note("flush");
        Ok(())
    }

    async fn capture_left(&self, folder: &str) -> std::result::Result<CaptureLeft, HostError> {
        Ok(self.state.left.lock().unwrap().get(folder).copied().unwrap_or(CaptureLeft::Whole))
    }

    async fn adopt_artifact(&self, _: &str) -> std::result::Result<Streams, HostError> {
        Err(HostError::Failed("not here".into()))
    }

    async fn remove_artifact(&self, folder: &str) -> std::result::Result<(), HostError> {
        self.state.removed.lock().unwrap().push(folder.to_owned());
        Ok(())
    }

    async fn remove_rootfs(&self, _: &str) -> std::result::Result<(), HostError> {
        Ok(())
    }

    async fn trim_rootfs(&self) -> std::result::Result<(), HostError> {
        Ok(())
    }

    async fn collect_images(&self, _: &dyn KnownImages) -> std::result::Result<Collected, HostError> {
        Ok(Collected::default())
    }

    async fn adopt_rootfs(&self, _: &str) -> std::result::Result<String, HostError> {
        Err(HostError::Failed("not here".into()))
    }
}

#[async_trait]
impl Lifecycle for FakeHost {
    async fn start(&self, events: Arc<dyn HostEvents>) {
        *self.state.events.lock().unwrap() = Some(events);
    }

    async fn stop(&self) {}

    fn info(&self) -> HostInfo {
        HostInfo { vmm: "none", version: String::new(), accelerator: String::new(), walls: String::new() }
    }

    fn admitted(&self) -> (Capacity, Capacity) {
        (Capacity { memory_mib: 0, vcpus: 0 }, Capacity { memory_mib: 0, vcpus: 0 })
    }

    async fn usage(&self) -> std::result::Result<HostUsage, HostError> {
        Err(HostError::Failed("not here".into()))
    }

    async fn object_store(&self) -> Option<ObjectStoreState> {
        None
    }
}

#[async_trait]
impl BuildHost for FakeHost {
    async fn build(&self, _: BuildJob, _: Arc<dyn BuildRecord>, _: CancellationToken) -> BuildEnd {
        unreachable!("no build runs here")
    }

    async fn has_room(&self) -> bool {
        false
    }

    fn largest_machine(&self, _: u32) -> Capacity {
        Capacity { memory_mib: 0, vcpus: 0 }
    }

    async fn ensure_possible(&self, _: u32) -> Result<()> {
        Ok(())
    }

    async fn ensure_dockerfiles(&self) -> Result<()> {
        Ok(())
    }

    async fn image_access(&self, _: &nullspace_image_ref::Reference) -> ImageAccess {
        ImageAccess::Open
    }

    async fn base(&self) -> std::result::Result<Option<BaseRoot>, HostError> {
        Ok(None)
    }
}

#[async_trait]
impl ContextFiles for FakeHost {
    async fn has_files(&self, _: TenantId, _: &[BlobId]) -> BTreeSet<BlobId> {
        BTreeSet::new()
    }

    async fn receive_file(&self, _: Blob, _: ByteStream) -> Result<Box<dyn ReceivedFile>> {
        Err(Error::not_implemented("not here"))
    }

    async fn remove_file(&self, _: &Blob) -> std::result::Result<(), HostError> {
        Ok(())
    }

    async fn ensure_room(&self, _: Option<TemplateFailurePhase>) -> Result<()> {
        Ok(())
    }
}

impl Host for FakeHost {}
