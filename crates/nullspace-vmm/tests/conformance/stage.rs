//! Where the tests play: a driver, a base image, machines and what they may leave.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::sched::{CloneFlags, unshare};
use nullspace_guest::host::{Agent, AgentError};
use nullspace_guest::message::{Configure, Exec, Restored};
use nullspace_vmm::firecracker::{Firecracker, FirecrackerConfig};
use nullspace_vmm::net::{NetConfig, NetPool};
use nullspace_vmm::qemu::{Qemu, QemuConfig};
use nullspace_vmm::{BootSpec, Disk, GuestImage, Network, RestoreSpec, SnapshotSummary, Vm, Vmm};

pub(crate) const MEMORY_MIB: u32 = 128;
pub(crate) const BASE_BYTES: u64 = 48 << 20;
pub(crate) const DISK_BYTES: u64 = 96 << 20;
/// A guest's boot where everything is emulated, on a busy machine.
pub(crate) const BOOT: Duration = Duration::from_secs(120);
pub(crate) const RESTORE: Duration = Duration::from_secs(60);

pub(crate) struct Stage {
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) base: PathBuf,
    pub(crate) guest: GuestImage,
    pub(crate) net: Option<Arc<NetPool>>,
    /// Networks that the pool keeps ready when no machine runs.
    pub(crate) spares: usize,
}

/// A snapshot of a machine whose service runs.
pub(crate) struct Template {
    pub(crate) dir: PathBuf,
    pub(crate) summary: SnapshotSummary,
    pub(crate) base: PathBuf,
    pub(crate) service: u32,
    pub(crate) ticks: u64,
}

pub(crate) fn with_driver<F, Fut>(test: F)
where
    F: FnOnce(Stage) -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    let guest = place("NULLSPACE_TEST_GUEST", "target/guest");
    let image = GuestImage {
        vmlinuz: guest.join("vmlinuz"),
        vmlinux: Some(guest.join("vmlinux")).filter(|path| path.exists()),
        initramfs: guest.join("initramfs.cpio"),
    };
    if !image.initramfs.exists() {
        let lacking = format!("no {}; run scripts/guest-image.sh", image.initramfs.display());
        assert!(std::env::var_os("NULLSPACE_TEST_COMPLETE").is_none(), "{lacking}");
        eprintln!("skipped: {lacking}");
        return;
    }
    let body = std::thread::spawn(move || {
        let root = nix::unistd::geteuid().is_root();
        if root {
            // Plays the host, so that no rule or interface of the true one is touched.
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let net = if root { Some(Arc::new(NetPool::new(NetConfig::default()).await.unwrap())) } else { None };
            let dir = tempfile::tempdir().unwrap();
            let base = dir.path().join("base.ext4");
            make_base(dir.path(), &base);
            // A driver that does without lets the pool go.
            let net = net.filter(|_| !plain());
            let spares = net.as_ref().map_or(0, |_| NetConfig::default().spare);
            let vmm = driver(image.clone(), net.clone()).await;
            test(Stage { vmm, dir, base, guest: image, net, spares }).await;
        });
    });
    if let Err(panic) = body.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) async fn driver(guest: GuestImage, net: Option<Arc<NetPool>>) -> Arc<dyn Vmm> {
    match std::env::var("NULLSPACE_VMM").as_deref() {
        Ok("firecracker") => {
            let binaries = place("NULLSPACE_TEST_FIRECRACKER", "target/firecracker");
            let config = FirecrackerConfig {
                binary: binaries.join("firecracker"),
                jailer: Some(binaries.join("jailer")).filter(|_| !plain()),
                guest,
                unjailed: plain(),
                disk_limits: nullspace_vmm::DiskLimits::default(),
                uids: FirecrackerConfig::UIDS,
                net: net.filter(|_| !plain()),
                // The guest runs two emulations deep where this is tested.
                copy_up_to: std::env::var("NULLSPACE_TEST_COPY_UP_TO")
                    .map_or(FirecrackerConfig::COPY_UP_TO, |bytes| bytes.parse().unwrap()),
                kernel_arguments: "mitigations=off nokaslr".into(),
            };
            Arc::new(Firecracker::new(config).await.unwrap())
        }
        Ok("qemu") | Err(_) => {
            Arc::new(Qemu::new(QemuConfig { network: net, ..QemuConfig::new(guest) }).await.unwrap())
        }
        Ok(other) => panic!("NULLSPACE_VMM is qemu or firecracker, not {other}"),
    }
}

pub(crate) fn plain() -> bool {
    std::env::var_os("NULLSPACE_TEST_PLAIN").is_some()
}

/// The network of machines that should reach something, where the driver can give them one.
pub(crate) fn connected() -> Network {
    if plain() { Network::Isolated } else { Network::Internet }
}

pub(crate) fn place(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(default))
}

/// An ext4 image with busybox in it.
pub(crate) fn make_base(dir: &Path, image: &Path) {
    let busybox = std::env::var_os("NULLSPACE_TEST_BUSYBOX").map_or(PathBuf::from("/bin/busybox"), PathBuf::from);
    let tree = dir.join("tree");
    for folder in ["bin", "dev", "proc", "sys", "run", "tmp", "etc", "root", "workspace"] {
        fs::create_dir_all(tree.join(folder)).unwrap();
    }
    fs::copy(&busybox, tree.join("bin/busybox")).unwrap();
    let applets = Command::new(&busybox).arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(tree.join("etc/group"), "root:x:0:\n").unwrap();
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-F", "-E", "root_owner=0:0", "-d"])
        .arg(&tree)
        .arg(image)
        .arg(format!("{}K", BASE_BYTES / 1024))
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::remove_dir_all(&tree).unwrap();
}

impl Stage {
    /// A driver as the stage's, whose guest image is another one and is gone once the driver has been made.
    pub(crate) async fn driver_with_another_guest_image(&self) -> Arc<dyn Vmm> {
        let folder = self.dir.path().join("another-guest");
        fs::create_dir(&folder).unwrap();
        let copy = |from: &Path, name: &str| {
            let to = folder.join(name);
            fs::copy(from, &to).unwrap();
            to
        };
        let image = GuestImage {
            vmlinuz: copy(&self.guest.vmlinuz, "vmlinuz"),
            vmlinux: self.guest.vmlinux.as_deref().map(|path| copy(path, "vmlinux")),
            initramfs: copy(&self.guest.initramfs, "initramfs.cpio"),
        };
        // Zeros behind an archive are no part of it: a boot that judges KVM succeeds.
        let initramfs = fs::OpenOptions::new().append(true).open(&image.initramfs).unwrap();
        initramfs.set_len(initramfs.metadata().unwrap().len() + 512).unwrap();
        let vmm = driver(image, self.net.clone()).await;
        fs::remove_dir_all(&folder).unwrap();
        vmm
    }

    pub(crate) fn work(&self, id: &str) -> PathBuf {
        let work = self.dir.path().join("work").join(id);
        fs::create_dir_all(&work).unwrap();
        work
    }

    pub(crate) async fn boot(&self, id: &str, network: Network) -> Box<dyn Vm> {
        let disk = Disk::Overlay { base: self.base.clone(), size_bytes: DISK_BYTES };
        self.boot_on(id, network, disk).await
    }

    pub(crate) async fn boot_on(&self, id: &str, network: Network, disk: Disk) -> Box<dyn Vm> {
        let spec = BootSpec { id: id.into(), vcpus: 1, memory_mib: MEMORY_MIB, disk, network, work_dir: self.work(id) };
        self.vmm.boot(spec).await.unwrap()
    }

    /// Boots, starts a service that counts, and takes the snapshot.
    pub(crate) async fn template(&self, network: Network) -> Template {
        let machine = self.boot("template", network).await;
        let agent = greet(&*machine).await;
        let service = "echo start >>/run/starts; n=0; while true; do n=$((n+1)); echo $n >/run/ticks.new; \
                       mv /run/ticks.new /run/ticks; sleep 0.2; done";
        let service = agent.start_service(exec(service)).await.unwrap();
        shell(&agent, "echo built >/root/mark; while [ ! -e /run/ticks ]; do sleep 0.1; done").await;
        let ticks = shell(&agent, "cat /run/ticks").await.parse().unwrap();
        let (dir, summary) = self.snapshot(&*machine, agent, "template").await;
        machine.kill().await.unwrap();
        drop(machine);
        self.nothing_is_left();
        assert_eq!(summary.compatibility, *self.vmm.compatibility());
        assert_eq!((summary.vcpus, summary.memory_mib, summary.disk_bytes), (1, MEMORY_MIB, DISK_BYTES));
        let found: BTreeSet<_> =
            fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(summary.files.iter().cloned().collect::<BTreeSet<_>>(), found);
        Template { dir, summary, base: self.base.clone(), service, ticks }
    }

    /// Freezes, lets the agent go, pauses, and takes the snapshot into a folder of its own.
    pub(crate) async fn snapshot(&self, machine: &dyn Vm, agent: Agent, name: &str) -> (PathBuf, SnapshotSummary) {
        agent.freeze().await.unwrap();
        agent.disconnect().await;
        drop(agent);
        machine.pause().await.unwrap();
        let dir = self.dir.path().join(name);
        fs::create_dir(&dir).unwrap();
        let summary = machine.snapshot(&dir).await.unwrap();
        (dir, summary)
    }

    pub(crate) fn restore_spec(&self, template: &Template, id: &str) -> RestoreSpec {
        RestoreSpec {
            id: id.into(),
            base: Some(template.base.clone()),
            snapshot_dir: template.dir.clone(),
            summary: template.summary.clone(),
            network: connected(),
            work_dir: self.work(id),
        }
    }

    /// Restores and gives the guest its new identity.
    pub(crate) async fn restore(&self, template: &Template, id: &str) -> (Box<dyn Vm>, Agent) {
        let spec = self.restore_spec(template, id);
        let machine = self.vmm.restore(spec).await.unwrap();
        let random = uuid::Uuid::new_v4();
        let restored = Restored {
            hostname: id.into(),
            machine_id: random.simple().to_string(),
            entropy: base64(&[random.as_bytes().as_slice(), uuid::Uuid::new_v4().as_bytes()].concat()),
            unix_time_ns: now_ns(),
            network: machine.guest_network(),
            resume: None,
            trial: false,
        };
        let open = || async { machine.agent().await.map_err(Box::<dyn std::error::Error>::from) };
        match Agent::connect_restored(open, || restored.clone(), RESTORE).await {
            Ok((agent, _)) => (machine, agent),
            Err(error) => panic!("{id}: {error}\n{}", machine.console_tail()),
        }
    }

    /// Everything that a machine may leave, but for the folders that are ours to remove.
    pub(crate) fn traces(&self) -> BTreeSet<String> {
        // The pool's spares are counted by `nothing_is_left`.
        let mut traces: BTreeSet<_> = interfaces().into_iter().filter(|name| !name.starts_with("nsv")).collect();
        for work in fs::read_dir(self.dir.path().join("work")).into_iter().flatten().flatten() {
            for entry in fs::read_dir(work.path()).unwrap().flatten() {
                traces.insert(entry.path().display().to_string());
            }
        }
        let own = format!("nullspace-{}", std::process::id());
        let groups = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path());
        for hierarchy in groups.chain([PathBuf::from("/sys/fs/cgroup")]) {
            for machine in fs::read_dir(hierarchy.join(&own)).into_iter().flatten().flatten() {
                if machine.path().is_dir() {
                    traces.insert(machine.path().display().to_string());
                }
            }
        }
        traces
    }

    /// Processes whose arguments name this test's folder, or that are children of this process.
    pub(crate) fn processes(&self) -> Vec<String> {
        let top = self.dir.path().display().to_string();
        let own = std::process::id().to_string();
        let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
        pids.filter_map(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.to_owned();
            (line.contains(&top) || parent == own).then(|| format!("{pid} {line}"))
        })
        .collect()
    }

    /// Waits for what the kernel and the pool of networks do in the background once no machine runs; then no process,
    /// file, control group or network but the pool's spares may be there.
    pub(crate) fn nothing_is_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        // One look decides: while networks come and go in the background, another would see other processes.
        let left = || {
            let networks = interfaces().iter().filter(|name| name.starts_with("nsv")).count();
            let paths: Vec<_> = self.traces().into_iter().filter(|trace| trace.starts_with('/')).collect();
            let processes = self.processes();
            let settled = paths.is_empty() && processes.is_empty() && networks == self.spares;
            (!settled).then(|| format!("{paths:?}, {processes:?}, {networks} networks, {} spare", self.spares))
        };
        while let Some(left) = left() {
            assert!(Instant::now() < deadline, "what stays when no machine runs: {left}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Template {
    /// Length, owner, mode, time and content of each file.
    pub(crate) fn fingerprint(&self) -> BTreeMap<String, String> {
        use std::os::unix::fs::MetadataExt;
        let entry = |name: &String| {
            let path = self.dir.join(name);
            let meta = fs::metadata(&path).unwrap();
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(fs::File::open(&path).unwrap()).unwrap();
            let mtime = (meta.mtime(), meta.mtime_nsec());
            (name.clone(), format!("{} {} {:o} {mtime:?} {}", meta.len(), meta.uid(), meta.mode(), hasher.finalize()))
        };
        self.summary.files.iter().map(entry).collect()
    }
}

/// Network interfaces of the namespace that plays the host.
pub(crate) fn interfaces() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    table.lines().skip(2).map(|line| line.split(':').next().unwrap().trim().to_owned()).collect()
}

/// Connects to a freshly booted guest and configures it.
pub(crate) async fn greet(machine: &dyn Vm) -> Agent {
    let agent = greet_running(machine).await;
    let configure = Configure {
        hostname: "booted".into(),
        network: machine.guest_network(),
        unix_time_ns: now_ns(),
        ..Configure::default()
    };
    agent.configure(configure).await.unwrap();
    agent
}

pub(crate) async fn greet_running(machine: &dyn Vm) -> Agent {
    // A snapshot resets the guest's vsock, also that of a machine which lives on: the first streams may be closed.
    for last in [false, false, false, false, true] {
        let stream = match machine.agent().await {
            Ok(stream) => stream,
            Err(error) => panic!("{error}\n{}", machine.console_tail()),
        };
        match Agent::connect(stream, BOOT).await {
            Ok((agent, info)) => {
                assert!(info.root_ready, "{:?}", info.root_error);
                return agent;
            }
            Err(AgentError::Closed) if !last => {}
            Err(error) => panic!("{error}\n{}", machine.console_tail()),
        }
    }
    unreachable!("the last try ends the test or the loop")
}

pub(crate) fn exec(script: &str) -> Exec {
    Exec {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        envs: BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]),
        timeout_ms: None,
        ..Exec::default()
    }
}

/// Runs a script in the guest; its output without the last line end. It must succeed.
pub(crate) async fn shell(agent: &Agent, script: &str) -> String {
    let output = agent.exec_collect(Exec { timeout_ms: Some(60_000), ..exec(script) }, 1 << 20).await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.exit.code, 0, "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

pub(crate) fn now_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// RFC 4648, section 4.
pub(crate) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..=chunk.len() {
            text.push(DIGITS[(bits >> (18 - 6 * digit)) as usize & 63] as char);
        }
        text.push_str(["", "==", "="][chunk.len() % 3]);
    }
    text
}
