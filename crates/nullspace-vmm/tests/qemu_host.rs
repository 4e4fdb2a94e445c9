//! What the QEMU driver promises beyond what every driver does: walls around the process, what is left when anything
//! dies, refusals that say why, and the probe. With real guests; network namespaces are `net_isolation.rs`'s matter.

// The stage is test code too, which clippy's exception for tests does not see.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nullspace_guest::host::Agent;
use nullspace_guest::message::{Configure, Exec};
use nullspace_types::{EgressPolicy, EgressReach};
use nullspace_vmm::net::{NetConfig, NetPool};
use nullspace_vmm::qemu::{Accelerator, Qemu, QemuConfig};
use nullspace_vmm::{BootSpec, Disk, DiskLimits, GuestImage, Network, RestoreSpec, SnapshotSummary, Vm, Vmm, VmmError};

const BASE_BYTES: u64 = 24 << 20;
const MEMORY_MIB: u32 = 192;
/// A guest's boot in software, on a busy machine.
const BOOT: Duration = Duration::from_secs(120);
/// Set in the process that [`a_killed_service_leaves_no_machine`] starts and kills.
const VICTIM: &str = "NULLSPACE_TEST_VICTIM";

// ---------------------------------------------------------------- walls

#[tokio::test]
async fn qemu_owns_nothing_and_may_do_little() {
    let stage = Stage::with(slow_disk).await;
    let machine = stage.boot("walls", stage.overlay(), Network::Isolated, 1).await;
    let agent = greet(&*machine).await;
    assert_disk_is_slow(&agent).await;
    let pid = stage.only_qemu();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(field("CapEff:"), ["0000000000000000"]);
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    assert_eq!(field("Seccomp:"), ["2"], "a filter is on");
    if nix::unistd::geteuid().is_root() {
        let uid = &field("Uid:")[0];
        assert!(uid.parse::<u32>().unwrap() >= 7_000_000, "{uid}");
        assert_eq!(field("Groups:"), Vec::<String>::new());
        // Namespaces of its own, and a root folder that shows it programs and none of the host's data.
        for namespace in ["mnt", "pid", "ipc", "uts", "net"] {
            let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{namespace}")).unwrap();
            assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
        }
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        assert!(!root.join(stage.dir.path().strip_prefix("/").unwrap()).exists(), "the machines' folder is not there");
        assert!(!root.join("root").exists() && !root.join("etc/shadow").exists(), "{:?}", fs::read_dir(&root));
        let walls = stage.vmm.walls();
        for wall in ["own uid", "seccomp", "PID, IPC, UTS and mount namespaces", "a root folder of its own", "Landlock"]
        {
            assert!(walls.contains(wall), "{wall}: {walls}");
        }
        // The service makes a control group for each machine where the host has controllers that can be used.
        if walls.contains("control groups (v") {
            let (of_machine, own) = (|who: &str| fs::read_to_string(format!("/proc/{who}/cgroup")).unwrap(), "self");
            assert_ne!(of_machine(&pid.to_string()), of_machine(own));
        }
    }
    // No path of this service is in its arguments, its environment or its current folder.
    let text = |name: &str| String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/{name}")).unwrap()).into_owned();
    assert!(!text("cmdline").contains(stage.dir.path().to_str().unwrap()), "{}", text("cmdline"));
    assert_eq!(text("environ"), "");
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    // Of files it has those of its machine, and of them only the overlay and its memory to write to.
    let mut writable = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let target = fs::read_link(entry.path()).unwrap().display().to_string();
        let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", entry.file_name().display())).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        let mode = u32::from_str_radix(flags, 8).unwrap() & 3;
        if mode != 0 && target.starts_with('/') && !target.starts_with("/dev/") {
            writable.push(target);
        }
    }
    writable.sort();
    writable.dedup();
    let expected = |target: &String| target.starts_with("/memfd:nullspace-guest") || target.ends_with(" (deleted)");
    assert!(writable.iter().all(expected) && writable.len() == 2, "{writable:?}");
    // Nothing of the machine has a name.
    assert_eq!(fs::read_dir(stage.work("walls")).unwrap().count(), 0);
    machine.kill().await.unwrap();
    machine.kill().await.unwrap();
    stage.assert_no_qemu();
}

#[test]
fn a_killed_service_leaves_no_machine() {
    if std::env::var_os(VICTIM).is_some() {
        // The service: boots a machine, says so, and waits for its end.
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let stage = Stage::new().await;
            let machine = stage.boot("orphan", stage.overlay(), Network::Isolated, 1).await;
            let _agent = greet(&*machine).await;
            println!("\nmachine {}", stage.only_qemu());
            std::future::pending::<()>().await;
        });
    }
    let mut service = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_service_leaves_no_machine", "--nocapture", "--test-threads=1"])
        .env(VICTIM, "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(service.stdout.take().unwrap()));
    let pid: u32 = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("machine ").map(|pid| pid.parse().unwrap()))
        .expect("the service's machine");
    assert!(is_alive(pid));
    service.kill().unwrap();
    service.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while is_alive(pid) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!is_alive(pid), "QEMU outlived the service");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_machine_is_snapshotted_without_another_one_unless_it_is_on_the_user_network() {
    let stage = Stage::new().await;
    let template = stage.template(stage.overlay(), Network::Isolated).await;
    let machine = stage.restore(&template, "isolated", Network::Isolated).await;
    // It runs for a moment, so that it has written to memory.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let folder = |name: &str| {
        let folder = stage.dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        folder
    };
    let (announced, plain) = (folder("announced"), folder("plain"));
    machine.prepare_snapshot(&announced).await.unwrap();
    machine.pause().await.unwrap();
    for folder in [&announced, &plain] {
        let (summary, most) = counting_machines(machine.snapshot(folder)).await;
        if nix::unistd::geteuid().is_root() {
            assert_eq!(most, 1, "machines while a snapshot was taken");
        }
        let named = summary.unwrap().files.len();
        assert_eq!(fs::read_dir(folder).unwrap().count(), named, "files that nobody names");
    }
    let memory = |folder: &Path| fs::read(folder.join("memory")).unwrap();
    assert!(memory(&announced) == memory(&plain), "the memory of a machine that stands still");
    assert!(memory(&announced) != memory(&template.dir), "it has written to memory");
    machine.kill().await.unwrap();
    stage.assert_no_qemu();

    let machine = stage.restore(&template, "user-network", Network::Internet).await;
    let folder = folder("user-network");
    machine.prepare_snapshot(&folder).await.unwrap();
    machine.pause().await.unwrap();
    let (summary, most) = counting_machines(machine.snapshot(&folder)).await;
    assert_eq!(most, 2, "machines while a snapshot was taken");
    machine.kill().await.unwrap();
    let again = Template { dir: folder, summary: summary.unwrap(), ..template };
    let nothing = EgressPolicy { reach: EgressReach::Nothing, ..EgressPolicy::default() };
    for (id, network) in [("again", Network::Internet), ("again-to-nothing", Network::Narrowed(nothing))] {
        let machine = stage.restore(&again, id, network).await;
        machine.kill().await.unwrap();
    }
    stage.assert_no_qemu();
}

/// Runs `work`, and tells how many machines ran at a time meanwhile at most.
async fn counting_machines<T>(work: impl Future<Output = T>) -> (T, usize) {
    let own = std::process::id();
    let (done, mut over) = tokio::sync::oneshot::channel::<()>();
    let counter = tokio::task::spawn_blocking(move || {
        let mut most = 0;
        loop {
            most = most.max(qemus_of(own).len());
            if !matches!(over.try_recv(), Err(tokio::sync::oneshot::error::TryRecvError::Empty)) {
                return most;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    let outcome = work.await;
    drop(done);
    (outcome, counter.await.unwrap())
}

#[tokio::test]
async fn a_template_with_a_poisoned_disk_is_refused() {
    let stage = Stage::new().await;
    let template = stage.template(stage.overlay(), Network::Isolated).await;
    // As a guest that took QEMU over would leave it: a header that names a file of the host.
    let path = template.dir.join("disk.qcow2");
    let disk = fs::File::options().write(true).open(&path).unwrap();
    disk.write_all_at(b"/etc/shadow", 4096).unwrap();
    disk.write_all_at(&[4096u64.to_be_bytes().as_slice(), &11u32.to_be_bytes()].concat(), 8).unwrap();
    let error = stage.try_restore(&template, "poisoned", Network::Isolated).await.map(drop).unwrap_err();
    assert_eq!(error.to_string(), "incompatible snapshot: the disk overlay is damaged");
    stage.assert_no_qemu();
}

// ---------------------------------------------------------------- disks and cards

#[tokio::test]
async fn a_machine_on_a_raw_image_writes_into_it_and_its_snapshot_lies_on_it() {
    let stage = Stage::with(slow_disk).await;
    let raw = stage.dir.path().join("direct.ext4");
    fs::copy(&stage.base, &raw).unwrap();
    let template = stage.template(Disk::Direct { path: raw.clone() }, Network::Isolated).await;
    assert!(!template.summary.files.iter().any(|name| name.contains("disk")), "{:?}", template.summary.files);
    assert_eq!(template.summary.disk_bytes, BASE_BYTES);
    // The image alone has what was written.
    let shown =
        Command::new("debugfs").args(["-R", "cat /root/mark"]).arg(&raw).env("PATH", SYSTEM_PATH).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&shown.stdout), "built\n");
    let template = Template { base: raw, ..template };
    let before = fs::read(&template.base).unwrap();
    let machine = stage.restore(&template, "of-direct", Network::Isolated).await;
    let agent = greet_running(&*machine).await;
    agent.thaw().await.unwrap();
    assert_eq!(shell(&agent, "cat /root/mark; echo own >/root/mark; sync; cat /root/mark").await, "built\nown");
    assert_disk_is_slow(&agent).await;
    machine.kill().await.unwrap();
    assert!(fs::read(&template.base).unwrap() == before, "the restored machine wrote into the image");
}

#[tokio::test]
async fn a_machine_changes_its_network_with_each_restore() {
    let stage = Stage::new().await;
    let template = stage.template(stage.overlay(), Network::Internet).await;
    let carrier = "cat /sys/class/net/eth0/carrier; ip -4 addr show eth0 | grep -c 172.30.255.2";
    let policy = |reach| EgressPolicy { reach, ..EgressPolicy::default() };
    let nothing = Network::Narrowed(policy(EgressReach::Nothing));
    for (id, network) in [("to-nowhere", Network::Isolated), ("to-user", Network::Internet), ("to-nothing", nothing)] {
        let machine = stage.restore(&template, id, network.clone()).await;
        assert_eq!(machine.guest_network().is_some(), network == Network::Internet);
        let fixed = machine.set_egress(&EgressPolicy::default()).await.unwrap_err();
        assert!(matches!(fixed, VmmError::Unavailable(_)), "{fixed}");
        let agent = greet_running(&*machine).await;
        agent.thaw().await.unwrap();
        assert_eq!(shell(&agent, carrier).await, "1\n1", "the card is plugged in and has kept its address");
        let gateway = shell(&agent, "ping -c 1 -W 2 172.30.255.1 >/dev/null 2>&1 && echo there || echo nobody").await;
        assert_eq!(gateway, if network == Network::Internet { "there" } else { "nobody" });
        machine.kill().await.unwrap();
    }
    // A policy that the user network cannot enforce starts no machine.
    let deny = vec!["10.0.0.0/8".parse().unwrap()];
    let listed = Network::Narrowed(policy(EgressReach::Lists { allow: Vec::new(), deny }));
    let refused = stage.try_restore(&template, "to-a-list", listed).await.map(drop).unwrap_err();
    assert!(matches!(refused, VmmError::Unavailable(_)), "{refused}");
}

#[test]
fn a_template_made_without_root_networks_runs_on_a_tap_and_not_the_other_way() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let body = std::thread::spawn(|| {
        // Plays the host, so that no rule or interface of the true one is touched.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let plain = Stage::new().await;
            let network = Some(Arc::new(NetPool::new(NetConfig::default()).await.unwrap()));
            let taps = Stage::with(|config| QemuConfig { network, ..config }).await;
            let template = plain.template(plain.overlay(), Network::Internet).await;
            let machine = taps.restore(&template, "on-a-tap", Network::Internet).await;
            let agent = greet_running(&*machine).await;
            agent.thaw().await.unwrap();
            let ping = "ping -c 1 -W 5 172.30.255.1 >/dev/null && echo reached";
            assert_eq!(shell(&agent, ping).await, "reached");
            machine.kill().await.unwrap();

            let template = taps.template(taps.overlay(), Network::Internet).await;
            let error = plain.try_restore(&template, "off-a-tap", Network::Internet).await.map(drop).unwrap_err();
            assert!(matches!(error, VmmError::Incompatible(_)), "{error}");
        });
    });
    if let Err(panic) = body.join() {
        std::panic::resume_unwind(panic);
    }
}

#[tokio::test]
async fn two_processors_keep_good_time() {
    let stage = Stage::new().await;
    let machine = stage.boot("two", stage.overlay(), Network::Isolated, 2).await;
    let agent = greet(&*machine).await;
    let clock = "nproc; cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
    let shown = shell(&agent, clock).await;
    let (processors, source) = shown.split_once('\n').unwrap();
    assert_eq!(processors, "2");
    assert!(source.starts_with("tsc") || source.starts_with("kvm-clock"), "{source}");
    // The guest reads its clock somewhere within each of two commands, in whole seconds.
    let uptime = async || {
        let asked = Instant::now();
        let seconds: u64 = shell(&agent, "cut -d. -f1 /proc/uptime").await.parse().unwrap();
        (asked, seconds, Instant::now())
    };
    let (first, second) = (uptime().await, {
        shell(&agent, "sleep 3").await;
        uptime().await
    });
    let passed = second.1 - first.1;
    let (least, most) = ((second.0 - first.2).as_secs(), (second.2 - first.0).as_secs());
    assert!((least.saturating_sub(1)..=most + 1).contains(&passed), "{passed} s in the guest, {least} to {most} here");
    machine.kill().await.unwrap();
}

// ---------------------------------------------------------------- ends

#[tokio::test]
async fn the_end_of_a_machine_is_told_in_a_sentence() {
    let stage = Stage::new().await;
    for (id, script, expected) in [
        ("off", "poweroff -f", "the guest powered off"),
        (
            "panic",
            "echo c >/proc/sysrq-trigger",
            "the guest's kernel stopped (Kernel panic - not syncing: sysrq triggered crash)",
        ),
    ] {
        let machine = stage.boot(id, stage.overlay(), Network::Isolated, 1).await;
        let agent = greet(&*machine).await;
        let _session = agent.exec(exec(script)).await;
        let how = tokio::time::timeout(BOOT, machine.exited()).await.unwrap();
        assert_eq!((how.cause, how.how.as_str()), (nullspace_vmm::EndCause::Guest, expected));
        assert!(matches!(machine.agent().await.map(drop), Err(VmmError::Exited(text)) if text == expected));
        machine.kill().await.unwrap();
    }
    let machine = stage.boot("killed", stage.overlay(), Network::Isolated, 1).await;
    let pid = i32::try_from(stage.only_qemu()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    let ended = machine.exited().await;
    assert_eq!(ended.cause, nullspace_vmm::EndCause::Signal(9));
    assert_eq!(ended.how, "QEMU ended with signal: 9 (SIGKILL)");
    assert!(matches!(machine.resume().await, Err(VmmError::Exited(_))));
    stage.assert_no_qemu();
}

#[tokio::test]
async fn what_cannot_be_restored_is_refused_with_the_reason_and_leaves_nothing() {
    let stage = Stage::new().await;
    let template = stage.template(stage.overlay(), Network::Isolated).await;
    let restore = |template: &Template| {
        let template = template.clone();
        let stage = &stage;
        async move { stage.try_restore(&template, "refused", Network::Isolated).await.map(drop).unwrap_err() }
    };

    let mut other = template.clone();
    other.summary.compatibility.vmm_version = "6.0.0".into();
    let error = restore(&other).await;
    assert!(matches!(&error, VmmError::Incompatible(text) if text.contains("VMM version is 6.0.0")), "{error}");

    let mut other = template.clone();
    other.summary.memory_mib *= 2;
    let error = restore(&other).await;
    assert_eq!(error.to_string(), "load the snapshot's memory");

    // A state that was cut short: QEMU's own words come through.
    let state = template.dir.join("state");
    let whole = fs::read(&state).unwrap();
    fs::write(&state, &whole[..whole.len() / 2]).unwrap();
    let error = restore(&template).await;
    assert!(matches!(&error, VmmError::Exited(text) if text.contains("load of migration failed")), "{error}");
    fs::remove_file(&state).unwrap();
    let error = restore(&template).await;
    assert!(matches!(&error, VmmError::Io { context, .. } if context.ends_with("/state")), "{error}");
    stage.assert_no_qemu();
    assert_eq!(fs::read_dir(stage.work("refused")).unwrap().count(), 0);
    fs::write(&state, &whole).unwrap();
    stage.restore(&template, "whole-again", Network::Isolated).await.kill().await.unwrap();
}

#[tokio::test]
async fn a_machine_that_cannot_start_says_why() {
    let stage = Stage::new().await;
    let mut spec = stage.boot_spec("bad", stage.overlay(), Network::Isolated, 1);
    spec.disk = Disk::Overlay { base: stage.dir.path().join("none.ext4"), size_bytes: 1 << 30 };
    let error = stage.vmm.boot(spec).await.map(drop).unwrap_err();
    assert!(error.to_string().starts_with("open the disk image "), "{error}");
    let error = Qemu::new(QemuConfig { binary: "qemu-none".into(), ..config() }).await.map(drop).unwrap_err();
    assert_eq!(error.to_string(), "qemu-none is not on this machine: apt-get install qemu-system-x86");
    let error = Qemu::new(QemuConfig { binary: "/bin/true".into(), ..config() }).await.map(drop).unwrap_err();
    assert!(matches!(error, VmmError::Unavailable(_)), "{error}");
    stage.assert_no_qemu();
}

// ---------------------------------------------------------------- the probe

#[tokio::test]
async fn the_probe_boots_a_guest_and_remembers_the_verdict_on_kvm() {
    let cache = tempfile::tempdir().unwrap();
    // As this user, so that a device for root alone is tried too.
    let config = QemuConfig { cache_dir: Some(cache.path().to_owned()), accelerator: None, run_as: None, ..config() };
    let report = Qemu::probe(&config).await.unwrap();
    let [kvm, tcg] = &report.accelerators[..] else { panic!("{report:?}") };
    eprintln!("{report:#?}");
    assert!(tcg.works && tcg.detail.starts_with("a guest with kernel "), "{tcg:?}");
    assert_eq!((kvm.accelerator.as_str(), tcg.accelerator.as_str()), ("kvm", "tcg"));
    assert!(!kvm.detail.is_empty());
    let tried = kvm.took_ms > 0;
    assert!(Duration::from_millis(kvm.took_ms) < config.probe_limit + Duration::from_secs(60), "{kvm:?}");
    assert_eq!(cache.path().join("kvm-verdict.json").exists(), tried);

    // The choice follows the verdict, and does not wait for it again: that is remembered.
    let qemu = Qemu::new(config.clone()).await.unwrap();
    assert_eq!(qemu.accelerator(), if kvm.works { Accelerator::Kvm } else { Accelerator::Tcg });
    assert_eq!(qemu.compatibility().accelerator, qemu.accelerator().name());
    let again = Qemu::probe(&config).await.unwrap();
    assert_eq!(again.accelerators[0].cached, tried);
    assert_no_qemu_of(std::process::id());
}

// ---------------------------------------------------------------- the stage

const SYSTEM_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

struct Stage {
    vmm: Qemu,
    dir: tempfile::TempDir,
    base: PathBuf,
}

#[derive(Clone)]
struct Template {
    dir: PathBuf,
    summary: SnapshotSummary,
    base: PathBuf,
}

fn config() -> QemuConfig {
    let guest = std::env::var_os("NULLSPACE_TEST_GUEST")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"), PathBuf::from);
    let image = GuestImage {
        vmlinuz: guest.join("vmlinuz"),
        vmlinux: Some(guest.join("vmlinux")).filter(|path| path.exists()),
        initramfs: guest.join("initramfs.cpio"),
    };
    assert!(image.initramfs.exists(), "no {}: run make guest", image.initramfs.display());
    QemuConfig { accelerator: Some(Accelerator::Tcg), ..QemuConfig::new(image) }
}

impl Stage {
    async fn new() -> Self {
        Self::with(|config| config).await
    }

    async fn with(change: impl FnOnce(QemuConfig) -> QemuConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base.ext4");
        make_base(dir.path(), &base);
        Self { vmm: Qemu::new(change(config())).await.unwrap(), dir, base }
    }

    fn overlay(&self) -> Disk {
        Disk::Overlay { base: self.base.clone(), size_bytes: 2 * BASE_BYTES }
    }

    fn work(&self, id: &str) -> PathBuf {
        let work = self.dir.path().join("work").join(id);
        fs::create_dir_all(&work).unwrap();
        work
    }

    fn boot_spec(&self, id: &str, disk: Disk, network: Network, vcpus: u32) -> BootSpec {
        BootSpec { id: id.into(), vcpus, memory_mib: MEMORY_MIB, disk, network, work_dir: self.work(id) }
    }

    async fn boot(&self, id: &str, disk: Disk, network: Network, vcpus: u32) -> Box<dyn Vm> {
        self.vmm.boot(self.boot_spec(id, disk, network, vcpus)).await.unwrap()
    }

    async fn template(&self, disk: Disk, network: Network) -> Template {
        let machine = self.boot("template", disk, network, 1).await;
        let agent = greet(&*machine).await;
        shell(&agent, "echo built >/root/mark").await;
        agent.freeze().await.unwrap();
        agent.disconnect().await;
        machine.pause().await.unwrap();
        let dir = self.dir.path().join("template");
        fs::create_dir(&dir).unwrap();
        let summary = machine.snapshot(&dir).await.unwrap();
        machine.kill().await.unwrap();
        self.assert_no_qemu();
        Template { dir, summary, base: self.base.clone() }
    }

    async fn try_restore(&self, template: &Template, id: &str, network: Network) -> Result<Box<dyn Vm>, VmmError> {
        let spec = RestoreSpec {
            id: id.into(),
            base: Some(template.base.clone()),
            snapshot_dir: template.dir.clone(),
            summary: template.summary.clone(),
            network,
            work_dir: self.work(id),
        };
        self.vmm.restore(spec).await
    }

    async fn restore(&self, template: &Template, id: &str, network: Network) -> Box<dyn Vm> {
        self.try_restore(template, id, network).await.unwrap()
    }

    fn only_qemu(&self) -> u32 {
        let all = qemus_of(std::process::id());
        assert_eq!(all.len(), 1, "{all:?}");
        all[0]
    }

    fn assert_no_qemu(&self) {
        assert_no_qemu_of(std::process::id());
    }
}

/// Children of a process that are not zombies and not commands of the tests.
fn qemus_of(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        let Some((name, rest)) = stat.rsplit_once(") ") else { return false };
        let mut fields = rest.split(' ');
        let (state, of) = (fields.next().unwrap(), fields.next().unwrap());
        name.contains("qemu-system") && state != "Z" && of == parent.to_string()
    })
    .collect()
}

fn assert_no_qemu_of(parent: u32) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !qemus_of(parent).is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(qemus_of(parent), Vec::<u32>::new());
}

fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// An ext4 image with busybox in it.
fn make_base(dir: &Path, image: &Path) {
    let tree = dir.join("tree");
    for folder in ["bin", "dev", "proc", "sys", "run", "tmp", "etc", "root", "workspace"] {
        fs::create_dir_all(tree.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("package busybox-static");
    for applet in "sh cat echo nproc cut sleep ping ip grep sync poweroff dd".split(' ') {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).unwrap();
    }
    fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(tree.join("etc/group"), "root:x:0:\n").unwrap();
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-F", "-E", "root_owner=0:0", "-d"])
        .arg(&tree)
        .arg(image)
        .arg(format!("{}K", BASE_BYTES / 1024))
        .env("PATH", SYSTEM_PATH)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::remove_dir_all(&tree).unwrap();
}

async fn greet(machine: &dyn Vm) -> Agent {
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

async fn greet_running(machine: &dyn Vm) -> Agent {
    match Agent::connect(machine.agent().await.unwrap(), BOOT).await {
        Ok((agent, info)) => {
            assert!(info.root_ready, "{:?}", info.root_error);
            agent
        }
        Err(error) => panic!("{error}\n{}", machine.console_tail()),
    }
}

/// Limits of a machine's disk so low that no host's own disk is as slow.
fn slow_disk(config: QemuConfig) -> QemuConfig {
    QemuConfig { disk_limits: DiskLimits { mib_per_second: 2, operations_per_second: 10_000 }, ..config }
}

/// Writes 8 MiB in a guest with a [`slow_disk`]: the limit lets through 2 MiB a second, and about 1 MiB at once.
async fn assert_disk_is_slow(agent: &Agent) {
    let begun = Instant::now();
    shell(agent, "dd if=/dev/zero of=/root/filling bs=65536 count=128 conv=fsync 2>/dev/null").await;
    let took = begun.elapsed();
    eprintln!("8 MiB were written in {} ms", took.as_millis());
    assert!(took >= Duration::from_millis(2500), "8 MiB were written in {took:?}");
}

fn exec(script: &str) -> Exec {
    Exec {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        envs: BTreeMap::from([("PATH".to_owned(), "/bin".to_owned())]),
        timeout_ms: Some(60_000),
        ..Exec::default()
    }
}

/// Runs a script in the guest; its output without the last line end. It must succeed.
async fn shell(agent: &Agent, script: &str) -> String {
    let output = agent.exec_collect(exec(script), 1 << 20).await.unwrap();
    assert_eq!(output.exit.code, 0, "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

fn now_ns() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}
