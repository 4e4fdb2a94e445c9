//! The driver: resources that all machines share, and the start of a machine.
//!
//! ```text
//!   boot, restore ──> disk, card, memory ──> start: uid, control group, walls ──> QEMU ──> Machine
//!   a restored machine's snapshot ── Maker::receiver ──> a second QEMU that takes its state in
//! ```

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nullspace_guest::message::{AGENT_ABI, GuestNetwork};
use serde_json::json;

use super::args::{self, CARD, CommandLine, Memory, Netdev, Start};
use super::config::{Accelerator, QemuConfig};
use super::disk::OpenDisk;
use super::guest::GuestFiles;
use super::host;
use super::launch::{self, Running, start};
use super::lineage::Origin;
use super::machine::{Machine, Maker, Own};
use super::qmp::timed_out;
use super::snapshot::{self, CardKind, FORMAT, MEMORY, Manifest, STATE};
use super::version::{self, Version};
use crate::cgroups::{Cgroups, Group, Limits};
use crate::emulation;
use crate::memory::{self, TemplateMemory};
use crate::net::{EgressControl, NetLease, NetPool};
use crate::process::Identity;
use crate::uids::{Uid, Uids};
use crate::walls::Walls;
use crate::{BootSpec, Compatibility, DiskLimits, Network, RestoreSpec, Vm, VmmError, VmmKind};

/// Bounds of a machine's shape: what `microvm` takes, and no more than anybody has.
const MAX_VCPUS: u32 = 64;
const MEMORY_MIB: std::ops::RangeInclusive<u32> = 64..=1 << 20;

/// An allowance for QEMU's own heap, stacks and tables, MiB. Not measured.
const OWN_MIB: u32 = 64;
/// Memory in a machine's group for the page cache of its disk, MiB; the kernel reclaims it under pressure.
const PAGE_CACHE_MIB: u32 = 256;
/// Threads of a QEMU besides its vCPUs: main loop, RCU, and up to 64 that do its disk's work.
const MORE_THREADS: u32 = 96;

/// Disk of a machine that is only booted to see whether it boots, bytes.
const TRIAL_DISK: u64 = 1 << 20;

/// The parts of a driver that do not depend on the accelerator.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    binary: PathBuf,
    version: Version,
    guest: Arc<GuestFiles>,
    uids: Option<Arc<Uids>>,
    /// `None`: machines are made nice instead.
    cgroups: Option<Arc<Cgroups>>,
    walls: Walls,
}

/// The needs of one machine's process, besides its command line.
struct Needs<'a> {
    shape: &'a args::Machine<'a>,
    lease: Option<NetLease>,
    user_network: bool,
    disk_bytes: u64,
}

impl Parts {
    /// Finds and opens everything.
    pub(super) async fn open(config: &QemuConfig) -> Result<Self, VmmError> {
        if config.run_as.is_some() && !rustix::process::geteuid().is_root() {
            return Err(VmmError::Unavailable("running QEMU as a user of its own needs root".into()));
        }
        let binary = version::find(&config.binary)?;
        let version = Version::of(&binary).await?;
        if !version.is_recent_enough() {
            return Err(VmmError::Unavailable(format!(
                "QEMU {} is too old: 6.0 is the oldest that works",
                version.text
            )));
        }
        let image = config.guest.clone();
        let guest = tokio::task::spawn_blocking(move || GuestFiles::open(&image)).await.map_err(broken)??;
        let uids = config.run_as.map(Uids::new).transpose()?;
        let cgroups = match rustix::process::geteuid().is_root() {
            true => tokio::task::spawn_blocking(Cgroups::set_up).await.map_err(broken)?.map(Arc::new),
            false => None,
        };
        let walls = walls(&binary, uids.as_ref()).await?;
        Ok(Self { binary, version, guest: Arc::new(guest), uids, cgroups, walls })
    }

    /// The walls around a machine, for people. `network`: whether it has a namespace of its own for that, where it is known.
    pub(super) fn walls_text(&self, network: Option<bool>) -> String {
        let mut parts = vec![match self.uids {
            Some(_) => "own uid".to_owned(),
            None => "the service's own user".to_owned(),
        }];
        parts.push("seccomp".into());
        if let Some(own) = network {
            parts.push(if own { "own network namespace" } else { "QEMU's user network" }.into());
        }
        parts.push(self.walls.describe());
        parts.push(match &self.cgroups {
            Some(cgroups) => format!("control groups ({})", cgroups.describe()),
            None => "no control groups (niceness instead)".into(),
        });
        parts.join("; ")
    }

    /// The missing walls, each with its reason.
    pub(super) fn missing_walls(&self) -> &[String] {
        self.walls.missing()
    }

    /// True when machines run as uids of their own.
    pub(crate) fn has_own_users(&self) -> bool {
        self.uids.is_some()
    }

    pub(super) fn version_text(&self) -> &str {
        &self.version.text
    }

    /// Identifies the QEMU and guest that a verdict on an accelerator is valid for, besides the host's boot.
    pub(crate) fn fingerprint(&self) -> String {
        format!("{} guest {} uid {}", self.version.text, self.guest.digest, self.uids.is_some())
    }
}

/// The walls within which this QEMU starts.
async fn walls(binary: &Path, uids: Option<&Arc<Uids>>) -> Result<Walls, VmmError> {
    let program = binary.to_owned();
    let mut walls = tokio::task::spawn_blocking(move || Walls::new(&program)).await.map_err(broken)?;
    loop {
        let uid = uids.map(|uids| uids.take()).transpose()?.flatten();
        let Err(error) = launch::try_walls(binary, &walls, uid).await else { break };
        let Some(fewer) = walls.fewer(&error.to_string()) else { break };
        tracing::warn!(%error, left = fewer.describe(), "QEMU does not start within all walls");
        walls = fewer;
    }
    for missing in walls.missing() {
        tracing::warn!("machines run without {missing}");
    }
    Ok(walls)
}

/// A driver with its accelerator chosen.
#[derive(Debug)]
pub(crate) struct Driver {
    parts: Parts,
    pub(super) accelerator: Accelerator,
    pub(super) compatibility: Compatibility,
    pub(super) templates: Arc<TemplateMemory>,
    tsc_khz: Option<u64>,
    network: Option<NetPoolHandle>,
    start_limit: Duration,
    disk_limits: DiskLimits,
    /// Counts control groups.
    groups: AtomicU32,
}

/// A pool that can be shown.
#[derive(Clone)]
struct NetPoolHandle(Arc<NetPool>);

impl std::fmt::Debug for NetPoolHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NetPool")
    }
}

/// A machine's card.
struct Card {
    network: Network,
    netdev: Netdev,
    lease: Option<NetLease>,
    guest: Option<GuestNetwork>,
    egress: Option<EgressControl>,
}

impl Driver {
    pub(crate) async fn new(config: &QemuConfig, parts: &Parts, accelerator: Accelerator) -> Self {
        let tsc_khz = match accelerator {
            Accelerator::Tcg => tokio::task::spawn_blocking(host::tsc_khz).await.unwrap_or(None),
            Accelerator::Kvm => None,
        };
        let compatibility = Compatibility {
            vmm: VmmKind::Qemu,
            vmm_version: parts.version.text.clone(),
            accelerator: accelerator.name().into(),
            format: FORMAT,
            guest: parts.guest.digest.clone(),
            cpu: match accelerator {
                Accelerator::Kvm => host::cpu(),
                Accelerator::Tcg => "tcg".into(),
            },
            agent_abi: AGENT_ABI,
            vmm_format: None,
            cpu_features: match accelerator {
                Accelerator::Kvm => host::cpu_features(),
                Accelerator::Tcg => None,
            },
        };
        Self {
            parts: parts.clone(),
            accelerator,
            compatibility,
            templates: TemplateMemory::new(config.template_memory_bytes),
            tsc_khz,
            network: config.network.clone().map(NetPoolHandle),
            start_limit: emulation::patient_if(
                accelerator == Accelerator::Tcg || emulation::of_host(),
                config.start_limit,
            ),
            disk_limits: config.disk_limits,
            groups: AtomicU32::new(0),
        }
    }

    /// Boots a machine.
    pub(super) async fn boot(self: &Arc<Self>, spec: BootSpec) -> Result<Machine, VmmError> {
        let BootSpec { id, vcpus, memory_mib, disk, network, work_dir } = spec;
        check_shape(&id, vcpus, memory_mib)?;
        let disk = async {
            let folder = work_dir.clone();
            tokio::task::spawn_blocking(move || OpenDisk::boot(&disk, &folder)).await.map_err(broken)?
        };
        let (disk, card) = tokio::try_join!(disk, self.card(&network))?;
        self.boot_kernel(id, vcpus, memory_mib, disk, card, work_dir).await
    }

    /// Boots a machine that reaches nothing, to see whether it boots. It finds no root on its disk, which is sooner known
    /// than that there is no disk.
    pub(crate) async fn boot_trial(self: &Arc<Self>, memory_mib: u32) -> Result<Box<dyn Vm>, VmmError> {
        let failed = |source| VmmError::Io { context: "make an empty disk".into(), source };
        let disk = OpenDisk::empty(TRIAL_DISK).map_err(failed)?;
        let card = Card { network: Network::Isolated, netdev: Netdev::Nowhere, lease: None, guest: None, egress: None };
        Ok(Box::new(self.boot_kernel("trial".into(), 1, memory_mib, disk, card, PathBuf::new()).await?))
    }

    async fn boot_kernel(
        self: &Arc<Self>,
        id: String,
        vcpus: u32,
        memory_mib: u32,
        disk: OpenDisk,
        card: Card,
        work_dir: PathBuf,
    ) -> Result<Machine, VmmError> {
        let failed = |source| VmmError::Io { context: "make guest memory".into(), source };
        let memory = memory::anonymous("nullspace-guest", memory_bytes(memory_mib)).map_err(failed)?;
        let shared = Memory::Shared(memory.try_clone().map_err(failed)?.into());
        let (kernel, initramfs) = self
            .parts
            .guest
            .descriptors()
            .map_err(|source| VmmError::Io { context: "open the guest kernel".into(), source })?;
        let command_line = args::kernel_command_line(self.accelerator, self.tsc_khz);
        let start = Start::Boot { kernel, initramfs, command_line };
        let shape = self.shape(&id, vcpus, memory_mib);
        let manifest = self.manifest(&card.netdev);
        let user_network = matches!(card.netdev, Netdev::User);
        let line = CommandLine::new(&shape, shared, disk.layers, card.netdev, start);
        let needs = Needs { shape: &shape, lease: card.lease, user_network, disk_bytes: disk.size };
        let (running, hello) = self.start(line, needs, ()).await?;
        let limit = async {
            let throttled = self.throttle(&running.monitor).await?;
            hello.answer().await?;
            throttled.answer().await
        };
        let outcome = tokio::time::timeout(self.start_limit, limit).await;
        let running = self.settled(running, outcome).await?;
        tracing::debug!(id, pid = running.process.pid(), "machine booting");
        Ok(Machine {
            id,
            vcpus,
            memory_mib,
            disk_bytes: disk.size,
            network: card.network,
            guest_network: card.guest,
            egress: card.egress,
            compatibility: self.compatibility.clone(),
            manifest,
            restored: false,
            work_dir,
            capturing: tokio::sync::Mutex::default(),
            running,
            own: Mutex::new(Own { memory: Some(memory), disk: Arc::new(disk.written), ..Own::default() }),
            snapshotted: AtomicBool::new(false),
            maker: self.clone(),
        })
    }

    pub(super) async fn restore(self: &Arc<Self>, spec: RestoreSpec) -> Result<Machine, VmmError> {
        let RestoreSpec { id, base, snapshot_dir, summary, network, work_dir } = spec;
        let begun = Instant::now();
        if let Some(conflict) = summary.compatibility.conflict_with(&self.compatibility) {
            return Err(VmmError::Incompatible(conflict));
        }
        check_shape(&id, summary.vcpus, summary.memory_mib)?;
        let base = base.ok_or_else(|| VmmError::Refused {
            context: "restore a machine".into(),
            message: "the raw image under its disk must be named".into(),
        })?;
        let files = async {
            let (overlays, size) = (snapshot::overlays(&snapshot_dir, &summary.files), summary.disk_bytes);
            let open = move || SnapshotFiles::open(&snapshot_dir, &base, &overlays, size, &work_dir);
            tokio::task::spawn_blocking(open).await.map_err(broken)?
        };
        let (files, card) = tokio::try_join!(files, self.card(&network))?;
        let ours = self.manifest(&card.netdev);
        if let Some(conflict) = files.manifest.conflict_with(&ours) {
            return Err(VmmError::Incompatible(conflict));
        }
        let failed = |source| VmmError::Io { context: "load the snapshot's memory".into(), source };
        let bytes = memory_bytes(summary.memory_mib);
        // A QEMU that maps it read-only, and may read it, needs no copy.
        let direct = self.parts.version.maps_read_only() && self.parts.uids.is_none();
        let (memory, lease) = if direct {
            (OwnedFd::from(files.memory), None)
        } else {
            let lease = self.templates.get(files.memory, bytes).await.map_err(failed)?;
            (lease.descriptor().map_err(failed)?, Some(lease))
        };
        let origin = Origin {
            memory: memory.try_clone().map_err(failed)?.into(),
            state: files.state.try_clone().map_err(failed)?,
        };
        let shape = self.shape(&id, summary.vcpus, summary.memory_mib);
        let disk = files.disk;
        let user_network = matches!(card.netdev, Netdev::User);
        let mut line = CommandLine::new(&shape, Memory::Private(memory), disk.layers, card.netdev, Start::Incoming);
        let state = files.state.as_raw_fd();
        line.inherit.push(files.state.into());
        let prepared = begun.elapsed();
        let needs = Needs { shape: &shape, lease: card.lease, user_network, disk_bytes: disk.size };
        let (running, hello) = self.start(line, needs, lease).await?;
        let started = begun.elapsed();
        // All of it is in the socket before QEMU listens.
        let run = async {
            let monitor = &running.monitor;
            let capabilities = monitor.send("migrate-set-capabilities", snapshot::capabilities(true), None).await?;
            let incoming = monitor.send("migrate-incoming", json!({ "uri": format!("fd:{state}") }), None).await?;
            for answer in [hello, capabilities, incoming] {
                answer.answer().await?;
            }
            snapshot::ended(monitor, 0).await?;
            let throttled = self.throttle(monitor).await?;
            let plug_in = monitor.send("set_link", json!({ "name": CARD, "up": true }), None).await?;
            let resume = monitor.send("cont", json!({}), None).await?;
            throttled.answer().await?;
            plug_in.answer().await?;
            resume.answer().await
        };
        let outcome = tokio::time::timeout(self.start_limit, run).await;
        let running = self.settled(running, outcome).await?;
        let pid = running.process.pid();
        tracing::debug!(id, pid, ?prepared, ?started, resumed = ?begun.elapsed(), "machine restored");
        Ok(Machine {
            id,
            vcpus: summary.vcpus,
            memory_mib: summary.memory_mib,
            disk_bytes: disk.size,
            network: card.network,
            guest_network: card.guest,
            egress: card.egress,
            compatibility: self.compatibility.of_restored(&summary.compatibility),
            // The guest goes on counting time as it did where it was booted.
            manifest: Manifest { tsc_khz: files.manifest.tsc_khz, ..ours },
            restored: true,
            work_dir: PathBuf::new(),
            capturing: tokio::sync::Mutex::default(),
            running,
            own: Mutex::new(Own { disk: Arc::new(disk.written), origin: Some(Arc::new(origin)), ..Own::default() }),
            snapshotted: AtomicBool::new(false),
            maker: self.clone(),
        })
    }

    /// Starts QEMU with what it holds for its life besides its own uid.
    async fn start<G: Send + 'static>(
        &self,
        line: CommandLine,
        needs: Needs<'_>,
        held: G,
    ) -> Result<(Running, super::qmp::Pending), VmmError> {
        let Needs { shape, lease, user_network, disk_bytes } = needs;
        let group_of_machine = match &self.parts.cgroups {
            Some(cgroups) => {
                let failed = |source| VmmError::Io { context: "make a machine's control group".into(), source };
                // Ids of trials and of snapshots' receivers are not unique.
                let name = format!("{}.{}", shape.id, self.groups.fetch_add(1, Ordering::Relaxed));
                let limits = Limits {
                    vcpus: shape.vcpus,
                    memory_mib: u64::from(shape.memory_mib.saturating_add(self.overhead_mib()) + PAGE_CACHE_MIB),
                    more_threads: MORE_THREADS,
                };
                Some(cgroups.make(&name, limits).map_err(failed)?)
            }
            None => None,
        };
        let uid = match &self.parts.uids {
            Some(uids) => Some(uids.take()?.ok_or_else(|| {
                VmmError::Unavailable("all uids for machines are in use; the setting run_as widens the range".into())
            })?),
            None => None,
        };
        let group = match self.accelerator {
            Accelerator::Kvm => host::kvm_group(),
            Accelerator::Tcg => None,
        };
        let failed = |source| VmmError::Io { context: "enter a network namespace".into(), source };
        let namespace =
            lease.as_ref().map(|lease| lease.namespace().try_clone_to_owned()).transpose().map_err(failed)?;
        let failed = |source| VmmError::Io { context: "open a machine's control group".into(), source };
        let groups = group_of_machine.as_ref().map(Group::entrances).transpose().map_err(failed)?.unwrap_or_default();
        let parts = launch::Parts {
            binary: &self.parts.binary,
            line,
            namespace,
            walls: &self.parts.walls,
            user_network,
            groups,
            identity: uid.as_ref().map(|uid: &Uid| Identity { id: uid.number(), group }),
            // The overlay's own tables take less than a hundredth; a gigabyte more for a disk that was rewritten oddly.
            file_limit: disk_bytes.saturating_add(disk_bytes / 64).saturating_add(1 << 30),
        };
        start(parts, (group_of_machine, uid, lease, held)).await
    }

    /// Memory that a machine takes besides its guest's, MiB: QEMU's own, and under TCG all that its translations may take.
    pub(super) fn overhead_mib(&self) -> u32 {
        match self.accelerator {
            Accelerator::Kvm => OWN_MIB,
            Accelerator::Tcg => OWN_MIB + args::TRANSLATION_CACHE_MIB,
        }
    }

    /// True when QEMU's user network is what machines reach the internet by.
    pub(super) fn has_user_network(&self) -> bool {
        self.network.is_none()
    }

    /// The walls around its machines, for people.
    pub(super) fn walls_text(&self) -> String {
        self.parts.walls_text(Some(self.network.is_some()))
    }

    /// A started machine, or why it is none; on failure nothing is left.
    async fn settled<T>(
        &self,
        running: Running,
        outcome: Result<Result<T, VmmError>, tokio::time::error::Elapsed>,
    ) -> Result<Running, VmmError> {
        let error = match outcome {
            Ok(Ok(_)) => return Ok(running),
            Ok(Err(error)) => error,
            Err(_) => timed_out("starting", self.start_limit),
        };
        Err(running.fail(error).await)
    }

    /// Bounds what the machine asks of its disk; the answer is still to come.
    async fn throttle(&self, monitor: &super::qmp::Qmp) -> Result<super::qmp::Pending, VmmError> {
        let DiskLimits { mib_per_second, operations_per_second } = self.disk_limits;
        let limits = json!({
            "id": args::DISK, "bps": u64::from(mib_per_second) << 20, "bps_rd": 0, "bps_wr": 0,
            "iops": operations_per_second, "iops_rd": 0, "iops_wr": 0,
        });
        monitor.send("block_set_io_throttle", limits, None).await
    }

    async fn card(&self, network: &Network) -> Result<Card, VmmError> {
        let guest = |network: &Network| network.has_uplink().then(NetPool::guest_network);
        let Some(NetPoolHandle(pool)) = &self.network else {
            let (network, netdev) = match network {
                Network::Internet => (Network::Internet, Netdev::User),
                Network::Isolated => (Network::Isolated, Netdev::Nowhere),
                Network::Narrowed(policy) if policy.denies_all() => (Network::Isolated, Netdev::Nowhere),
                Network::Narrowed(_) => {
                    return Err(VmmError::Unavailable("QEMU's user network cannot enforce an egress policy".into()));
                }
            };
            let guest = guest(&network);
            return Ok(Card { network, netdev, lease: None, guest, egress: None });
        };
        let mut lease = pool.acquire(network, None).await?;
        let tap = lease.take_tap().ok_or_else(|| VmmError::Unavailable("the network came without a tap".into()))?;
        let egress = lease.egress_control();
        let (guest, network) = (guest(network), network.clone());
        Ok(Card { network, netdev: Netdev::Tap(tap), lease: Some(lease), guest, egress })
    }

    fn manifest(&self, netdev: &Netdev) -> Manifest {
        let card = match netdev {
            Netdev::Tap(_) => CardKind::Tap,
            Netdev::Nowhere | Netdev::User => CardKind::Plain,
        };
        Manifest { card, tsc_khz: self.tsc_khz }
    }

    fn shape<'a>(&'a self, id: &'a str, vcpus: u32, memory_mib: u32) -> args::Machine<'a> {
        args::Machine { id, accelerator: self.accelerator, version: &self.parts.version, vcpus, memory_mib }
    }
}

#[async_trait]
impl Maker for Driver {
    async fn receiver(self: Arc<Self>, machine: &Machine, inlet: OwnedFd) -> Result<Machine, VmmError> {
        let failed = |source| VmmError::Io { context: "make a machine to be snapshotted".into(), source };
        // A tap that leads nowhere is a tap; a user network's state is only taken in by a user network.
        let card = match machine.manifest.card {
            CardKind::Tap => self.card(&Network::Isolated).await?,
            CardKind::Plain => self.card(&machine.network).await?,
        };
        let memory = memory::anonymous("nullspace-guest", memory_bytes(machine.memory_mib)).map_err(failed)?;
        let shared = Memory::Shared(memory.try_clone().map_err(failed)?.into());
        let disk = OpenDisk::empty(machine.disk_bytes).map_err(failed)?;
        let id = "snapshot".to_owned();
        let shape = self.shape(&id, machine.vcpus, machine.memory_mib);
        let user_network = matches!(card.netdev, Netdev::User);
        let mut line = CommandLine::new(&shape, shared, disk.layers, card.netdev, Start::Incoming);
        let number = inlet.as_raw_fd();
        line.inherit.push(inlet);
        let needs = Needs { shape: &shape, lease: card.lease, user_network, disk_bytes: machine.disk_bytes };
        let (running, hello) = self.start(line, needs, ()).await?;
        let outcome = tokio::time::timeout(self.start_limit, async {
            let monitor = &running.monitor;
            let capabilities = monitor.send("migrate-set-capabilities", snapshot::capabilities(false), None).await?;
            let incoming = monitor.send("migrate-incoming", json!({ "uri": format!("fd:{number}") }), None).await?;
            for answer in [hello, capabilities, incoming] {
                answer.answer().await?;
            }
            Ok(())
        });
        let outcome = outcome.await;
        let running = self.settled(running, outcome).await?;
        Ok(Machine {
            id,
            vcpus: machine.vcpus,
            memory_mib: machine.memory_mib,
            disk_bytes: machine.disk_bytes,
            network: card.network,
            guest_network: None,
            egress: None,
            compatibility: machine.compatibility.clone(),
            manifest: machine.manifest.clone(),
            restored: false,
            work_dir: PathBuf::new(),
            capturing: tokio::sync::Mutex::default(),
            running,
            own: Mutex::new(Own { memory: Some(memory), ..Own::default() }),
            snapshotted: AtomicBool::new(false),
            maker: self,
        })
    }
}

/// A snapshot's files, open.
struct SnapshotFiles {
    manifest: Manifest,
    memory: File,
    state: File,
    disk: OpenDisk,
}

impl SnapshotFiles {
    fn open(folder: &Path, base: &Path, overlays: &[PathBuf], size: u64, work_dir: &Path) -> Result<Self, VmmError> {
        let open = |name: &str| {
            let path = folder.join(name);
            File::open(&path).map_err(|source| VmmError::Io { context: format!("open {}", path.display()), source })
        };
        Ok(Self {
            manifest: Manifest::read(folder)?,
            memory: open(MEMORY)?,
            state: open(STATE)?,
            disk: OpenDisk::restore(base, overlays, size, work_dir)?,
        })
    }
}

fn check_shape(id: &str, vcpus: u32, memory_mib: u32) -> Result<(), VmmError> {
    let refuse = |message: String| Err(VmmError::Refused { context: "the machine's shape".into(), message });
    let named = (1..=64).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !named {
        return refuse("its id must be 1 to 64 of a-z, 0-9 and -".into());
    }
    if !(1..=MAX_VCPUS).contains(&vcpus) {
        return refuse(format!("{vcpus} vCPUs: 1 to {MAX_VCPUS} are possible"));
    }
    if !MEMORY_MIB.contains(&memory_mib) {
        let (least, most) = MEMORY_MIB.into_inner();
        return refuse(format!("{memory_mib} MiB of memory: {least} to {most} are possible"));
    }
    Ok(())
}

fn memory_bytes(mib: u32) -> u64 {
    u64::from(mib) << 20
}

fn broken(error: tokio::task::JoinError) -> VmmError {
    VmmError::Io { context: "open a machine's files".into(), source: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_no_machine_has_are_refused() {
        check_shape("sb-0123456789abcdef", 1, 512).unwrap();
        check_shape("a", MAX_VCPUS, 1 << 20).unwrap();
        for id in ["", "A", "a_b", "a,b", &"a".repeat(65), "ä"] {
            assert!(check_shape(id, 1, 512).is_err(), "{id}");
        }
        for (vcpus, memory) in [(0, 512), (65, 512), (1, 63), (1, (1 << 20) + 1)] {
            assert!(check_shape("a", vcpus, memory).is_err());
        }
    }
}
