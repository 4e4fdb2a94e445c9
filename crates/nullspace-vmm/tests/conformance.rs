//! What every driver promises, with real guests: the same tests for each, through the trait alone.
//!
//! `NULLSPACE_VMM=qemu` (the default) or `firecracker` chooses the driver. Firecracker needs a KVM that runs guests and
//! root; `tests/nested/firecracker.sh` provides both on any machine. Where the files are:
//!
//! | variable | what | default |
//! |---|---|---|
//! | `NULLSPACE_TEST_GUEST` | folder made by `scripts/guest-image.sh` | `target/guest` |
//! | `NULLSPACE_TEST_FIRECRACKER` | folder made by `scripts/fetch-firecracker.sh` | `target/firecracker` |
//! | `NULLSPACE_TEST_BUSYBOX` | a static busybox for the guest | `/bin/busybox` |
//! | `NULLSPACE_TEST_COPY_UP_TO` | `FirecrackerConfig::copy_up_to` | its default |
//! | `NULLSPACE_TEST_PLAIN` | set: Firecracker without jailer and network, as without root | |
//! | `NULLSPACE_TEST_CYCLES` | sandboxes made and deleted by the leak test | 50 |
//! | `NULLSPACE_TEST_COMPLETE` | set: a file that is missing is a failure, not a reason to skip | |
//!
//! Machines are made in `TMPDIR`. Without the guest's files the tests say so and pass.

// The stage is test code too, which clippy's exception for tests does not see.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::sched::{CloneFlags, unshare};
use nullspace_guest::host::Agent;
use nullspace_guest::message::{Configure, Exec, Restored};
use nullspace_vmm::firecracker::{Firecracker, FirecrackerConfig};
use nullspace_vmm::net::{NetConfig, NetPool};
use nullspace_vmm::qemu::{Qemu, QemuConfig};
use nullspace_vmm::{BootSpec, Disk, GuestImage, Network, RestoreSpec, SnapshotSummary, Vm, Vmm, VmmError};

const MEMORY_MIB: u32 = 256;
const BASE_BYTES: u64 = 48 << 20;
const DISK_BYTES: u64 = 96 << 20;
/// A guest's boot where everything is emulated, on a busy machine.
const BOOT: Duration = Duration::from_secs(120);
const RESTORE: Duration = Duration::from_secs(60);

#[test]
fn a_booted_guest_sees_its_disk_and_its_commands_run() {
    with_driver(|stage| async move {
        let machine = stage.boot("booted", Network::Isolated).await;
        assert_eq!(machine.id(), "booted");
        assert_eq!(machine.guest_network(), None);
        let agent = greet(&*machine).await;
        // The disk is larger than its image; the filesystem grows when asked.
        assert_eq!(shell(&agent, "cat /sys/class/block/vda/size").await, (DISK_BYTES / 512).to_string());
        let grown = agent.grow_root().await.unwrap();
        assert!(grown > BASE_BYTES && grown <= DISK_BYTES, "{grown}");
        assert_eq!(shell(&agent, "echo hello; id -u; nproc").await, "hello\n0\n1");
        let memory: u64 = shell(&agent, "awk '/MemTotal/ {print $2}' /proc/meminfo").await.parse().unwrap();
        assert!((150 * 1024..=u64::from(MEMORY_MIB) * 1024).contains(&memory), "{memory} KiB");
        let failed = agent.exec_collect(exec("exit 41"), 100).await.unwrap();
        assert_eq!(failed.exit.code, 41);

        // A second stream takes over from the first.
        let second = greet(&*machine).await;
        assert_eq!(shell(&second, "echo again").await, "again");
        assert!(tokio::time::timeout(BOOT, agent.closed()).await.is_ok());

        // Pausing stops the guest, resuming lets it go on; both may be repeated.
        machine.pause().await.unwrap();
        machine.pause().await.unwrap();
        let stopped = tokio::time::timeout(Duration::from_millis(700), shell(&second, "echo paused")).await;
        assert!(stopped.is_err(), "a paused guest answered");
        machine.resume().await.unwrap();
        machine.resume().await.unwrap();
        assert_eq!(shell(&second, "echo resumed").await, "resumed");

        // The guest ends by itself.
        second.shutdown().await.unwrap();
        tokio::time::timeout(RESTORE, machine.exited()).await.expect("the machine's end");
        assert!(machine.pause().await.is_err());
        machine.kill().await.unwrap();
        drop(machine);
        stage.nothing_is_left();
    });
}

#[test]
fn two_machines_go_on_from_one_snapshot_each_on_its_own() {
    with_driver(|stage| async move {
        let template = stage.template(connected()).await;
        let before = template.fingerprint();
        let (a, b) = tokio::join!(stage.restore(&template, "twin-a"), stage.restore(&template, "twin-b"));
        let ((a, agent_a), (b, agent_b)) = (a, b);

        // The very process that ran before the snapshot still runs, in both.
        for agent in [&agent_a, &agent_b] {
            let processes = agent.processes().await.unwrap();
            let service = processes.iter().find(|process| process.pid == template.service).expect("the service");
            assert!(service.running);
            assert_eq!(service.starts, Some(1));
            assert_eq!(shell(agent, "cat /root/mark; cat /run/starts").await, "built\nstart");
        }
        let ticks = |agent: Agent| async move { shell(&agent, "cat /run/ticks").await.parse::<u64>().unwrap() };
        let earlier = (ticks(agent_a.clone()).await, ticks(agent_b.clone()).await);
        assert!(earlier.0 >= template.ticks && earlier.1 >= template.ticks);
        tokio::time::sleep(Duration::from_millis(2500)).await;
        assert!(ticks(agent_a.clone()).await > earlier.0 && ticks(agent_b.clone()).await > earlier.1);

        // They are two: names, ids, random numbers; the time is now.
        let identity = "hostname; cat /etc/machine-id; cat /proc/sys/kernel/random/uuid; date +%s";
        let (one, two) = (shell(&agent_a, identity).await, shell(&agent_b, identity).await);
        let (one, two): (Vec<_>, Vec<_>) = (one.lines().collect(), two.lines().collect());
        for (what, (x, y)) in ["hostname", "machine-id", "random"].iter().zip(one.iter().zip(&two)) {
            assert_ne!(x, y, "{what}");
        }
        for lines in [&one, &two] {
            let guest: u64 = lines[3].parse().unwrap();
            let host = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            assert!(guest.abs_diff(host) <= 5, "guest {guest}, host {host}");
        }

        // What one writes the other does not see, nor does the template.
        shell(&agent_a, "echo a >/root/own; sync").await;
        assert_eq!(shell(&agent_b, "cat /root/own 2>/dev/null || echo none").await, "none");
        shell(&agent_b, "dd if=/dev/urandom of=/root/big bs=1M count=8 2>/dev/null; sync").await;
        assert_eq!(shell(&agent_a, "ls /root/big 2>/dev/null || echo none").await, "none");

        // Both have the address that the snapshot holds, and each its own gateway.
        if let Some(network) = a.guest_network() {
            let gateway = network.gateway.unwrap();
            let ping = format!("ping -c 1 -W 5 {gateway} >/dev/null && echo reached");
            let (one, two) = tokio::join!(shell(&agent_a, &ping), shell(&agent_b, &ping));
            assert_eq!((one.as_str(), two.as_str()), ("reached", "reached"));
        }
        a.kill().await.unwrap();
        assert_eq!(shell(&agent_b, "echo alive").await, "alive");
        b.kill().await.unwrap();
        assert_eq!(template.fingerprint(), before, "a restored machine changed its template");
        drop((a, b, agent_a, agent_b));
        stage.nothing_is_left();
    });
}

#[test]
fn a_restored_machine_can_be_snapshotted_and_lives_on() {
    with_driver(|stage| async move {
        let template = stage.template(Network::Isolated).await;
        let (machine, agent) = stage.restore(&template, "first").await;
        shell(&agent, "echo second >/root/level").await;
        agent.freeze().await.unwrap();
        agent.disconnect().await;
        drop(agent);
        machine.pause().await.unwrap();
        let dir = stage.dir.path().join("second");
        fs::create_dir(&dir).unwrap();
        let summary = machine.snapshot(&dir).await.unwrap();
        machine.resume().await.unwrap();
        let agent = greet_running(&*machine).await;
        agent.thaw().await.unwrap();
        assert_eq!(shell(&agent, "echo third >/root/level; cat /root/level").await, "third");
        machine.kill().await.unwrap();

        let second = Template { dir, summary, ..template };
        let (machine, agent) = stage.restore(&second, "of-second").await;
        assert_eq!(shell(&agent, "cat /root/level /root/mark").await, "second\nbuilt");
        machine.kill().await.unwrap();
    });
}

#[test]
fn a_snapshot_from_another_host_is_refused_and_a_running_machine_gives_none() {
    with_driver(|stage| async move {
        let template = stage.template(Network::Isolated).await;
        let mut spec = stage.restore_spec(&template, "refused");
        spec.summary.compatibility.cpu = "another".into();
        match stage.vmm.restore(spec).await.map(drop) {
            Err(VmmError::Incompatible(text)) => assert!(text.contains("CPU"), "{text}"),
            other => panic!("{other:?}"),
        }
        let (machine, _agent) = stage.restore(&template, "running").await;
        let dir = stage.dir.path().join("none");
        fs::create_dir(&dir).unwrap();
        assert!(matches!(machine.snapshot(&dir).await, Err(VmmError::Refused { .. })));
        drop(machine);
        stage.settles();
    });
}

#[test]
fn fifty_machines_come_and_go_and_nothing_is_left() {
    with_driver(|stage| async move {
        let template = stage.template(connected()).await;
        let cycles: u32 = std::env::var("NULLSPACE_TEST_CYCLES").map_or(50, |n| n.parse().unwrap());
        // The first machine brings pools to their size.
        let (machine, _agent) = stage.restore(&template, "warm").await;
        machine.kill().await.unwrap();
        drop(machine);
        stage.settles();
        let before = stage.traces();
        let mut times = Vec::new();
        for n in 0..cycles {
            let started = Instant::now();
            let (machine, agent) = stage.restore(&template, &format!("cycle-{n}")).await;
            assert_eq!(shell(&agent, "echo ok").await, "ok");
            times.push(started.elapsed());
            // By turns: ended, dropped, lost.
            match n % 3 {
                0 => machine.kill().await.unwrap(),
                1 => drop(machine),
                _ => drop((machine, agent)),
            }
        }
        stage.settles();
        assert_eq!(stage.traces(), before);
        times.sort_unstable();
        if let Some(median) = times.get(times.len() / 2) {
            eprintln!("restore to first exec: median {} ms of {cycles}", median.as_millis());
        }
    });
}

// ---------------------------------------------------------------- the stage

struct Stage {
    vmm: Arc<dyn Vmm>,
    dir: tempfile::TempDir,
    base: PathBuf,
    /// Networks that the pool keeps ready when no machine runs.
    spares: usize,
}

/// A snapshot of a machine whose service runs.
struct Template {
    dir: PathBuf,
    summary: SnapshotSummary,
    base: PathBuf,
    service: u32,
    ticks: u64,
}

fn with_driver<F, Fut>(test: F)
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
            let spares = net.as_ref().filter(|_| !plain()).map_or(0, |_| NetConfig::default().spare);
            test(Stage { vmm: driver(image, net).await, dir, base, spares }).await;
        });
    });
    if let Err(panic) = body.join() {
        std::panic::resume_unwind(panic);
    }
}

async fn driver(guest: GuestImage, net: Option<Arc<NetPool>>) -> Arc<dyn Vmm> {
    match std::env::var("NULLSPACE_VMM").as_deref() {
        Ok("firecracker") => {
            let binaries = place("NULLSPACE_TEST_FIRECRACKER", "target/firecracker");
            let config = FirecrackerConfig {
                binary: binaries.join("firecracker"),
                jailer: Some(binaries.join("jailer")).filter(|_| !plain()),
                guest,
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

fn plain() -> bool {
    std::env::var_os("NULLSPACE_TEST_PLAIN").is_some()
}

/// The network of machines that should reach something, where the driver can give them one.
fn connected() -> Network {
    if plain() { Network::Isolated } else { Network::Internet }
}

fn place(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(default))
}

/// An ext4 image with busybox in it.
fn make_base(dir: &Path, image: &Path) {
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
    fn work(&self, id: &str) -> PathBuf {
        let work = self.dir.path().join("work").join(id);
        fs::create_dir_all(&work).unwrap();
        work
    }

    async fn boot(&self, id: &str, network: Network) -> Box<dyn Vm> {
        let spec = BootSpec {
            id: id.into(),
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            disk: Disk::Overlay { base: self.base.clone(), size_bytes: DISK_BYTES },
            network,
            work_dir: self.work(id),
        };
        self.vmm.boot(spec).await.unwrap()
    }

    /// Boots, starts a service that counts, and takes the snapshot.
    async fn template(&self, network: Network) -> Template {
        let machine = self.boot("template", network).await;
        let agent = greet(&*machine).await;
        let service = "echo start >>/run/starts; n=0; while true; do n=$((n+1)); echo $n >/run/ticks.new; \
                       mv /run/ticks.new /run/ticks; sleep 0.2; done";
        let service = agent.start_service(exec(service)).await.unwrap();
        shell(&agent, "echo built >/root/mark; while [ ! -e /run/ticks ]; do sleep 0.1; done").await;
        let ticks = shell(&agent, "cat /run/ticks").await.parse().unwrap();
        agent.freeze().await.unwrap();
        agent.disconnect().await;
        drop(agent);
        machine.pause().await.unwrap();
        let dir = self.dir.path().join("template");
        fs::create_dir(&dir).unwrap();
        let summary = machine.snapshot(&dir).await.unwrap();
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

    fn restore_spec(&self, template: &Template, id: &str) -> RestoreSpec {
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
    async fn restore(&self, template: &Template, id: &str) -> (Box<dyn Vm>, Agent) {
        let spec = self.restore_spec(template, id);
        let machine = self.vmm.restore(spec).await.unwrap();
        let random = uuid::Uuid::new_v4();
        let restored = Restored {
            hostname: id.into(),
            machine_id: random.simple().to_string(),
            entropy: base64(&[random.as_bytes().as_slice(), uuid::Uuid::new_v4().as_bytes()].concat()),
            unix_time_ns: now_ns(),
            network: machine.guest_network(),
        };
        let open = || async { machine.agent().await.map_err(Box::<dyn std::error::Error>::from) };
        match Agent::connect_restored(open, restored, RESTORE).await {
            Ok((agent, _)) => (machine, agent),
            Err(error) => panic!("{id}: {error}\n{}", machine.console_tail()),
        }
    }

    /// Everything that a machine may leave, but for the folders that are ours to remove.
    fn traces(&self) -> BTreeSet<String> {
        // The pool's spares are counted by `settles`.
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
    fn processes(&self) -> Vec<String> {
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

    fn nothing_is_left(&self) {
        self.settles();
        let left: Vec<_> = self.traces().into_iter().filter(|trace| trace.starts_with('/')).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// Waits for what the kernel and the pool of networks do in the background once no machine runs.
    fn settles(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let networks = || interfaces().iter().filter(|name| name.starts_with("nsv")).count();
        while (self.traces().iter().any(|trace| trace.starts_with('/'))
            || !self.processes().is_empty()
            || networks() != self.spares)
            && Instant::now() < deadline
        {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(self.processes().is_empty(), "{:?}", self.processes());
        assert_eq!(networks(), self.spares, "networks that stay when no machine runs");
    }
}

impl Template {
    /// Length, owner, mode, time and content of each file.
    fn fingerprint(&self) -> BTreeMap<String, String> {
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
fn interfaces() -> Vec<String> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    table.lines().skip(2).map(|line| line.split(':').next().unwrap().trim().to_owned()).collect()
}

/// Connects to a freshly booted guest and configures it.
async fn greet(machine: &dyn Vm) -> Agent {
    let agent = greet_running(machine).await;
    let configure = Configure { hostname: "booted".into(), network: machine.guest_network(), unix_time_ns: now_ns() };
    agent.configure(configure).await.unwrap();
    agent
}

async fn greet_running(machine: &dyn Vm) -> Agent {
    let stream = match machine.agent().await {
        Ok(stream) => stream,
        Err(error) => panic!("{error}\n{}", machine.console_tail()),
    };
    match Agent::connect(stream, BOOT).await {
        Ok((agent, info)) => {
            assert!(info.root_ready, "{:?}", info.root_error);
            agent
        }
        Err(error) => panic!("{error}\n{}", machine.console_tail()),
    }
}

fn exec(script: &str) -> Exec {
    Exec {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        envs: BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]),
        timeout_ms: None,
        ..Exec::default()
    }
}

/// Runs a script in the guest; its output without the last line end. It must succeed.
async fn shell(agent: &Agent, script: &str) -> String {
    let output = agent.exec_collect(Exec { timeout_ms: Some(60_000), ..exec(script) }, 1 << 20).await.unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.exit.code, 0, "{script}: {errors}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn now_ns() -> u64 {
    u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos()).unwrap()
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
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
