//! The Firecracker driver's work: a machine's uid, network and folder, its process, and its configuration.
//!
//! ```text
//!   prepare: uid, network, folder ──> launch: process, API ──> configure and start | load a snapshot ──> Running
//! ```

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use nullspace_types::EgressPolicy;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::api::{Api, BootSource, Drive, MachineConfig, MemoryBackend, NetworkInterface, SnapshotLoad, Vsock};
use super::capture::Tracked;
use super::jail::{self, API_SOCKET, DISK, Jail, Lent, VSOCK};
use super::machine::{DESCRIPTION, DISK_FILE, Description, DiskPlace, MEMORY, Machine, Running, STATE};
use super::overlay::Overlay;
use super::version::Version;
use super::{disk, exit, files};
use crate::cgroups::{Cgroups, Limits};
use crate::emulation::patient;
use crate::net::{GUEST_MAC, NetLease, NetPool, TAP_NAME};
use crate::process;
use crate::tail::Tail;
use crate::uids::{Uid, Uids};
use crate::{BootSpec, Compatibility, Disk, DiskLimits, Network, RestoreSpec, Vm, Vmm, VmmError, VmmKind};

/// From exec to a listening API socket: milliseconds. Longer where the host is emulated.
const API_LIMIT: Duration = Duration::from_secs(20);
/// Bytes of a VMM's output that are kept; the guest decides how much it writes.
const CONSOLE_BYTES: usize = 16 << 10;
/// Lines of a failed start's output that go into the error.
const LAST_LINES: usize = 4;
/// Every guest's vsock address; the host's end is a socket of the machine's own, so they need not differ.
const GUEST_CID: u32 = 3;
const CARD: &str = "eth0";
const DRIVE: &str = "root";
/// Firecracker's own memory, MiB: about 5 by its specification, and room for its buffers.
const OWN_MIB: u32 = 32;
/// Threads of a VMM besides its vCPUs are three; the rest is room.
const MORE_THREADS: u32 = 32;
/// Bytes of a VMM's file size limit beyond its largest file.
const FILE_SLACK: u64 = 64 << 20;

/// The driver.
pub struct Firecracker {
    pub(super) binary: PathBuf,
    pub(super) exec_name: String,
    pub(super) jailer: Option<PathBuf>,
    pub(super) kernel: PathBuf,
    pub(super) initramfs: PathBuf,
    pub(super) boot_args: String,
    pub(super) version: Version,
    pub(super) compatibility: Compatibility,
    /// There exactly when machines are jailed.
    pub(super) uids: Option<Arc<Uids>>,
    pub(super) cgroups: Option<Arc<Cgroups>>,
    pub(super) net: Option<Arc<NetPool>>,
    pub(super) disk_limits: DiskLimits,
    /// The kind of disk that restored machines get.
    pub(super) disks: disk::Choice,
}

/// A machine's resources on the host while its process lives. Dropping it removes all of them, and blocks meanwhile.
struct Holdings {
    cgroups: Option<Arc<Cgroups>>,
    id: String,
    top: Option<PathBuf>,
    lent: Option<Lent>,
    lease: Option<NetLease>,
    _uid: Option<Uid>,
}

impl Drop for Holdings {
    fn drop(&mut self) {
        if let Some(cgroups) = &self.cgroups {
            cgroups.remove(&self.id);
        }
        if let Some(top) = &self.top {
            jail::remove(top);
        }
        if let Some(lent) = &self.lent {
            lent.give_back();
        }
        // Network and uid come last, by the order of the fields.
    }
}

/// A machine before its process.
struct Prepared {
    jail: Jail,
    holdings: Holdings,
    disk: DiskPlace,
    disk_bytes: u64,
    /// The file that takes the writes of a mapped disk.
    written: Option<std::fs::File>,
    /// To be dropped when the VMM has opened its disk: from then on the kernel removes it by itself.
    overlay: Option<Overlay>,
}

struct Facts {
    id: String,
    vcpus: u32,
    memory_mib: u32,
    /// The class of the machine's snapshots.
    compatibility: Compatibility,
}

impl Firecracker {
    /// True when VMMs run jailed; else `doctor` should warn.
    pub fn is_jailed(&self) -> bool {
        self.jailer.is_some()
    }

    /// The VMM's version.
    pub fn version(&self) -> Version {
        self.version
    }

    async fn lease(&self, network: &Network, uid: Option<&Uid>) -> Result<Option<NetLease>, VmmError> {
        match (&self.net, uid) {
            (Some(net), Some(uid)) => net.acquire(network, Some(uid.number())).await.map(Some),
            // An isolated machine sends nothing either.
            _ if network.egress().is_some_and(EgressPolicy::denies_all) => Ok(None),
            _ if network.has_uplink() => Err(VmmError::Unavailable(
                "a network for Firecracker needs root, its jailer, iproute2 and nftables; without them only isolated \
                 machines run"
                    .into(),
            )),
            _ => Ok(None),
        }
    }

    fn check_id(id: &str) -> Result<(), VmmError> {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if (1..=64).contains(&id.len()) && id.bytes().all(fine) {
            return Ok(());
        }
        Err(VmmError::Refused {
            context: "name a machine".into(),
            message: "an id is 1 to 64 of a-z, 0-9 and -".into(),
        })
    }

    /// Starts the process, hands everything that it occupies to the task that watches it, waits for its API.
    async fn launch(&self, facts: Facts, prepared: Prepared) -> Result<Running, VmmError> {
        let Prepared { jail, holdings, disk, disk_bytes, written, overlay: _ } = prepared;
        let Facts { id, vcpus, memory_mib, compatibility } = facts;
        let lease = holdings.lease.as_ref();
        let network = lease.filter(|lease| lease.has_uplink()).map(|_| NetPool::guest_network());
        let egress = lease.and_then(NetLease::egress_control);
        let description = Description { card: lease.is_some() };
        let folder = jail.folder().clone();

        let prepared = console().and_then(|(console, output)| {
            let largest = disk_bytes.max(u64::from(memory_mib) << 20).saturating_add(FILE_SLACK);
            let jailer = self.jailer.as_deref().map(|jailer| (jailer, self.cgroups.as_deref()));
            let limits = Limits {
                vcpus,
                // The guest's memory once as memory and once as page cache of the snapshot that is being written of it,
                // and the VMM itself.
                memory_mib: u64::from(memory_mib) * 2 + 256,
                more_threads: MORE_THREADS,
            };
            let mut launch = jail.launch(&self.binary, jailer, &id, limits, largest, output)?;
            launch.network = lease.map(|lease| lease.namespace().try_clone_to_owned()).transpose()?;
            Ok((console, launch))
        });
        let (console, launch) =
            prepared.map_err(|source| VmmError::Io { context: "prepare the start of Firecracker".into(), source })?;
        let process = process::launch(launch, holdings)
            .await
            .map_err(|source| VmmError::Io { context: "start Firecracker".into(), source })?;
        tracing::debug!(machine = %id, pid = process.pid(), "machine starting");
        let machine = Arc::new(Machine {
            api: Api::new(folder.clone(), API_SOCKET),
            id,
            folder,
            process,
            jailed: self.is_jailed(),
            console,
            disk: Mutex::new(disk),
            disk_bytes,
            written,
            vcpus,
            memory_mib,
            description,
            network,
            egress,
            compatibility,
            paused: tokio::sync::Mutex::new(false),
            spent: AtomicBool::new(false),
            agent: Mutex::new(CancellationToken::new()),
        });
        let running = Running(machine);
        match self.wait_for_api(&running.0).await {
            Ok(()) => Ok(running),
            Err(error) => Err(give_up(&running, error).await),
        }
    }

    async fn wait_for_api(&self, machine: &Machine) -> Result<(), VmmError> {
        let limit = patient(API_LIMIT);
        let deadline = Instant::now() + limit;
        while !machine.api.listens().await {
            if let Some(status) = machine.process.status() {
                let how = exit::ended(status);
                // No guest has run: these are the jailer's or Firecracker's words.
                let words = machine.console.text();
                let lines: Vec<_> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
                let last = lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default().join("; ");
                return Err(VmmError::Refused {
                    context: "start Firecracker".into(),
                    message: format!("{how}: {last}"),
                });
            }
            if Instant::now() > deadline {
                return Err(VmmError::Timeout { what: "Firecracker's API".into(), limit_ms: limit.as_millis() as u64 });
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let found = machine.explain(machine.api.version().await).await?;
        if found != self.version {
            return Err(VmmError::Unavailable(format!(
                "Firecracker was exchanged while the service runs: it was {}, it is {found}; restart the service",
                self.version
            )));
        }
        Ok(())
    }

    async fn configure_and_start(&self, machine: &Machine) -> Result<(), VmmError> {
        let api = &machine.api;
        api.machine_config(&MachineConfig { vcpu_count: machine.vcpus, mem_size_mib: machine.memory_mib }).await?;
        api.boot_source(&BootSource {
            kernel_image_path: "kernel",
            initrd_path: "initramfs",
            boot_args: &self.boot_args,
        })
        .await?;
        api.drive(&Drive {
            drive_id: DRIVE,
            path_on_host: DISK,
            // The initramfs mounts it; nothing goes onto the command line.
            is_root_device: false,
            is_read_only: false,
            cache_type: "Writeback",
            rate_limiter: self.disk_limits.into(),
        })
        .await?;
        if machine.description.card {
            let card = NetworkInterface { iface_id: CARD, host_dev_name: TAP_NAME, guest_mac: GUEST_MAC };
            api.network_interface(&card).await?;
        }
        api.vsock(&Vsock { guest_cid: GUEST_CID, uds_path: VSOCK }).await?;
        api.entropy().await?;
        api.start().await
    }

    async fn load(&self, machine: &Machine) -> Result<(), VmmError> {
        let load = SnapshotLoad {
            snapshot_path: STATE,
            mem_backend: MemoryBackend::file(MEMORY),
            resume_vm: true,
            clock_realtime: self.version.sets_clock_at_load().then_some(true),
        };
        machine.api.load_snapshot(&load).await?;
        machine.api.limit_drive(DRIVE, self.disk_limits).await
    }

    /// Reads and checks what a snapshot says of itself.
    fn check_snapshot(&self, spec: &RestoreSpec) -> Result<(), VmmError> {
        if let Some(conflict) = spec.summary.compatibility.conflict_with(&self.compatibility) {
            return Err(VmmError::Incompatible(conflict));
        }
        let description = files::read_small(&spec.snapshot_dir.join(DESCRIPTION), 4096)
            .and_then(|text| serde_json::from_slice::<Description>(&text).map_err(Into::into))
            .map_err(|source| VmmError::Io { context: "read a snapshot's description".into(), source })?;
        if description.card && self.net.is_none() {
            return Err(VmmError::Incompatible(
                "the snapshot's machine has a network card, and this host cannot make networks for Firecracker".into(),
            ));
        }
        if !description.card && self.net.is_some() {
            return Err(VmmError::Incompatible("the snapshot's machine has no network card".into()));
        }
        Ok(())
    }

    async fn prepare_boot(&self, spec: &BootSpec) -> Result<Prepared, VmmError> {
        let (kernel, initramfs, disk) = (self.kernel.clone(), self.initramfs.clone(), spec.disk.clone());
        self.prepare(&spec.id, &spec.network, &spec.work_dir, move |jail, holdings, work| {
            jail.share(&kernel, "kernel")?;
            jail.share(&initramfs, "initramfs")?;
            match disk {
                Disk::Overlay { base, size_bytes } => {
                    let image = std::fs::File::open(&base).map_err(disk_error(&base))?;
                    let made = disk::make(&base, size_bytes, jail, work, disk::Choice::File);
                    let made = made.map_err(disk_error(&base))?;
                    Ok((DiskPlace::Own(Tracked::new(made.file, image, work)), made.bytes, None))
                }
                Disk::Direct { path } => {
                    holdings.lent = jail.lend(&path, DISK)?;
                    let file = std::fs::File::open(&path).map_err(disk_error(&path))?;
                    let bytes = file.metadata().map_err(disk_error(&path))?.len();
                    Ok((DiskPlace::Lent(file), bytes, None))
                }
            }
        })
        .await
    }

    async fn prepare_restore(&self, spec: &RestoreSpec) -> Result<Prepared, VmmError> {
        let (snapshot, size, jailed) = (spec.snapshot_dir.clone(), spec.summary.disk_bytes, self.is_jailed());
        let choice = self.disks;
        self.prepare(&spec.id, &spec.network, &spec.work_dir, move |jail, _, work| {
            for name in [STATE, MEMORY] {
                let path = snapshot.join(name);
                if jailed {
                    jail::readable(&path).map_err(disk_error(&path))?;
                }
                jail.share(&path, name)?;
            }
            let image = snapshot.join(DISK_FILE);
            let made = disk::make(&image, size, jail, work, choice).map_err(disk_error(&image))?;
            Ok((DiskPlace::Kept(made.file), made.bytes, made.overlay))
        })
        .await
    }

    /// Uid, network and folder of a machine, the folder filled by `fill`.
    async fn prepare<F>(&self, id: &str, network: &Network, work: &Path, fill: F) -> Result<Prepared, VmmError>
    where
        F: FnOnce(&mut Jail, &mut Holdings, &Path) -> Result<(DiskPlace, u64, Option<Overlay>), VmmError>,
        F: Send + 'static,
    {
        let uid = self.take_uid()?;
        let lease = self.lease(network, uid.as_ref()).await?;
        let cgroups = self.cgroups.clone();
        let (work, exec_name, id) = (work.to_owned(), self.exec_name.clone(), id.to_owned());
        blocking(move || {
            let mut jail = Jail::make(&work, &exec_name, &id, uid.as_ref().map(Uid::number))?;
            let top = Some(jail.top().to_owned());
            let mut holdings = Holdings { cgroups, id, top, lent: None, lease, _uid: uid };
            let (disk, disk_bytes, overlay) = fill(&mut jail, &mut holdings, &work)?;
            let written = overlay.as_ref().map(Overlay::written).transpose();
            let written = written.map_err(disk_error(&work))?;
            Ok(Prepared { jail, holdings, disk, disk_bytes, written, overlay })
        })
        .await
    }

    fn take_uid(&self) -> Result<Option<Uid>, VmmError> {
        let none_left =
            || VmmError::Unavailable("all user ids for virtual machines are in use; widen their range".into());
        self.uids.as_ref().map(|uids| uids.take()?.ok_or_else(none_left)).transpose()
    }
}

#[async_trait]
impl Vmm for Firecracker {
    fn kind(&self) -> VmmKind {
        VmmKind::Firecracker
    }

    fn compatibility(&self) -> &Compatibility {
        &self.compatibility
    }

    fn overhead_mib(&self, _vcpus: u32) -> u32 {
        OWN_MIB
    }

    fn template_memory_mib(&self) -> u64 {
        // Machines map the snapshot's file privately: what they share is page cache, which the kernel takes back.
        0
    }

    fn trim_templates(&self) {}

    fn walls(&self) -> String {
        let jailed = match self.is_jailed() {
            true => "own uid; seccomp; jailer (chroot; PID, mount and network namespaces)",
            false => "seccomp; NOT jailed",
        };
        match &self.cgroups {
            Some(cgroups) => format!("{jailed}; control groups ({})", cgroups.describe()),
            None => format!("{jailed}; no control groups"),
        }
    }

    fn guests_reach_loopback(&self) -> bool {
        false
    }

    fn enforces_egress(&self) -> bool {
        self.net.is_some() && self.uids.is_some()
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Vm>, VmmError> {
        Self::check_id(&spec.id)?;
        let prepared = self.prepare_boot(&spec).await?;
        let compatibility = self.compatibility.clone();
        let facts = Facts { id: spec.id, vcpus: spec.vcpus, memory_mib: spec.memory_mib, compatibility };
        let running = self.launch(facts, prepared).await?;
        let configured = self.configure_and_start(&running.0).await;
        match running.0.explain(configured).await {
            Ok(()) => Ok(Box::new(running)),
            Err(error) => Err(give_up(&running, error).await),
        }
    }

    async fn restore(&self, spec: RestoreSpec) -> Result<Box<dyn Vm>, VmmError> {
        Self::check_id(&spec.id)?;
        self.check_snapshot(&spec)?;
        let mut prepared = self.prepare_restore(&spec).await?;
        let overlay = prepared.overlay.take();
        let compatibility = self.compatibility.of_restored(&spec.summary.compatibility);
        let facts =
            Facts { id: spec.id, vcpus: spec.summary.vcpus, memory_mib: spec.summary.memory_mib, compatibility };
        let running = self.launch(facts, prepared).await?;
        let loaded = self.load(&running.0).await;
        if overlay.is_some() {
            // The kernel waits for grace periods in it; nobody else needs to.
            tokio::task::spawn_blocking(move || drop(overlay));
        }
        match running.0.explain(loaded).await {
            Ok(()) => Ok(Box::new(running)),
            Err(error) => Err(give_up(&running, error).await),
        }
    }
}

/// The last lines of a VMM's output, its messages and the guest's serial console, and the end to write to.
fn console() -> std::io::Result<(Tail, std::os::fd::OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&read, rustix::fs::OFlags::NONBLOCK)?;
    let tail = Tail::new(CONSOLE_BYTES);
    tail.follow(tokio::net::unix::pipe::Receiver::from_owned_fd(read)?);
    Ok((tail, write))
}

/// Ends a machine that did not come up, and keeps the reason.
async fn give_up(running: &Running, error: VmmError) -> VmmError {
    tracing::debug!(machine = %running.0.id, console = %running.0.console.text(), "a machine did not come up");
    if let Err(kill) = running.kill().await {
        tracing::warn!(machine = %running.0.id, error = %kill, "a machine that did not come up could not be ended");
    }
    error
}

pub(super) fn disk_error(path: &Path) -> impl FnOnce(std::io::Error) -> VmmError + use<> {
    let context = format!("use {}", path.display());
    move |source| VmmError::Io { context, source }
}

/// Runs what blocks on disks or other processes outside the async threads.
pub(super) async fn blocking<T: Send + 'static>(
    f: impl FnOnce() -> Result<T, VmmError> + Send + 'static,
) -> Result<T, VmmError> {
    tokio::task::spawn_blocking(f)
        .await
        .unwrap_or_else(|e| Err(VmmError::Io { context: "run a background task".into(), source: e.into() }))
}
