//! The Firecracker driver against the real binaries on any machine with a `/dev/kvm` that opens: what they answer, how
//! the jail comes and goes. No guest has to run for it; the conformance tests are for that.
//!
//! Needs root and `scripts/fetch-firecracker.sh`; without them the tests say so and pass, or fail for a missing file where
//! `NULLSPACE_TEST_COMPLETE` is set, as `make test` sets it.

// The stage is test code too, which clippy's exception for tests does not see.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nullspace_vmm::firecracker::{Firecracker, FirecrackerConfig, Version};
use nullspace_vmm::net::{NetConfig, NetPool};
use nullspace_vmm::{
    BootSpec, Compatibility, Disk, GuestImage, Network, RestoreSpec, SnapshotSummary, Vmm, VmmError, VmmKind,
};

#[test]
fn the_version_is_asked_and_an_older_kernel_format_named() {
    on_a_host(|stage| async move {
        let driver = stage.driver(true).await.unwrap();
        assert_eq!(driver.version(), Version::new(1, 12, 1));
        assert!(driver.is_jailed());
        assert_eq!(driver.kind(), VmmKind::Firecracker);
        assert_eq!(driver.compatibility().vmm_version, "1.12.1");
        let mut config = stage.config(true);
        config.guest.vmlinux = None;
        let Err(VmmError::Unavailable(text)) = Firecracker::new(config).await else { panic!("no error") };
        assert!(text.contains("uncompressed kernel"), "{text}");
        let mut config = stage.config(true);
        config.binary = "/bin/true".into();
        assert!(matches!(Firecracker::new(config).await, Err(VmmError::Unavailable(_))));
    });
}

#[test]
fn a_kernel_that_is_none_is_refused_in_firecrackers_words_and_nothing_stays() {
    on_a_host(|stage| async move {
        for jailed in [true, false] {
            let driver = stage.driver(jailed).await.unwrap();
            let network = if jailed { Network::Internet } else { Network::Isolated };
            let before = stage.ours();
            match driver.boot(stage.boot("bad-kernel", network)).await.map(drop) {
                Err(VmmError::Refused { context, message }) => {
                    assert_eq!(context, "PUT /actions");
                    assert!(message.contains("kernel"), "{message}");
                }
                other => panic!("{other:?}"),
            }
            stage.settles_to(&before);
            assert!(stage.work().read_dir().unwrap().next().is_none());
        }
    });
}

#[test]
fn a_start_that_the_jailer_refuses_is_told_and_nothing_stays() {
    on_a_host(|stage| async move {
        let mut config = stage.config(true);
        // The jailer of these versions runs only what is called firecracker.
        let odd = stage.dir.path().join("other-name");
        fs::copy(&config.binary, &odd).unwrap();
        config.binary = odd;
        let driver = Firecracker::new(config).await.unwrap();
        let before = stage.ours();
        match driver.boot(stage.boot("odd-name", Network::Isolated)).await.map(drop) {
            Err(VmmError::Refused { context, message }) => {
                assert_eq!(context, "start Firecracker");
                assert!(message.contains("name") && message.contains("firecracker"), "{message}");
            }
            other => panic!("{other:?}"),
        }
        stage.settles_to(&before);
    });
}

#[test]
fn a_vcpu_count_that_is_too_high_is_refused() {
    on_a_host(|stage| async move {
        let driver = stage.driver(true).await.unwrap();
        let spec = BootSpec { vcpus: 33, ..stage.boot("many", Network::Isolated) };
        match driver.boot(spec).await.map(drop) {
            Err(VmmError::Refused { context, message }) => {
                assert_eq!(context, "PUT /machine-config");
                assert!(message.contains("vCPU") || message.contains("vcpu"), "{message}");
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_started_machine_is_jailed_and_leaves_nothing() {
    on_a_host(|stage| async move {
        let Some(stage) = stage.with_real_kernel() else { return };
        let driver = stage.driver(true).await.unwrap();
        let before = stage.ours();
        let machine = driver.boot(stage.boot("jailed-1", Network::Internet)).await.unwrap();
        assert_eq!(machine.id(), "jailed-1");
        assert_eq!(machine.guest_network().unwrap().address, "172.30.255.2/29");

        let pid = stage.vmm_pid("jailed-1").expect("a firecracker process");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        let uid: u32 = field("Uid:").split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(is_machine_uid(uid));
        assert_eq!(field("CapEff:").split_whitespace().nth(1).unwrap(), "0000000000000000");
        assert!(field("Seccomp:").ends_with('2'));
        assert_eq!(field("NSpid:").split_whitespace().count(), 3, "a PID namespace of its own");
        let here = |kind: &str| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        for kind in ["pid", "mnt", "net"] {
            assert_ne!(fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap(), here(kind), "{kind}");
        }
        // Its root is its folder; the kernel in it is bound read-only, and the place below is empty.
        let root = stage.work().join("firecracker/jailed-1/root");
        assert_eq!(fs::metadata(root.join("root.ext4")).unwrap().uid(), uid);
        assert_eq!(fs::metadata(root.join("kernel")).unwrap().len(), 0);
        let inside = fs::metadata(format!("/proc/{pid}/root/kernel")).unwrap();
        assert_eq!(inside.len(), fs::metadata(&stage.kernel).unwrap().len());
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let bound = mounts.lines().find(|line| line.contains(" /kernel ")).expect("a mount at /kernel");
        assert!(bound.contains(" ro,"), "{bound}");
        // Its groups limit it.
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(
            groups.lines().any(|line| line.contains("memory") && line.contains("/jailed-1"))
                || groups.contains("0::/nullspace-"),
            "{groups}"
        );

        machine.pause().await.unwrap();
        machine.pause().await.unwrap();
        machine.resume().await.unwrap();
        assert!(matches!(machine.snapshot(stage.dir.path()).await, Err(VmmError::Refused { .. })), "it is not paused");
        machine.kill().await.unwrap();
        machine.kill().await.unwrap();
        assert_eq!(machine.exited().await.cause, nullspace_vmm::EndCause::Signal(9));
        assert!(matches!(machine.agent().await.map(drop), Err(VmmError::Exited(_))));
        assert!(stage.vmm_pid("jailed-1").is_none());
        drop(machine);
        stage.settles_to(&before);
        drop(driver);
        let own_group = format!("nullspace-{}", std::process::id());
        assert!(!stage.traces().iter().any(|trace| trace.contains(&own_group)));
    });
}

#[test]
fn a_vmm_that_is_killed_from_outside_is_noticed_and_cleaned_up() {
    on_a_host(|stage| async move {
        let Some(stage) = stage.with_real_kernel() else { return };
        let driver = stage.driver(true).await.unwrap();
        let before = stage.ours();
        let machine = driver.boot(stage.boot("murdered", Network::Internet)).await.unwrap();
        let pid = stage.vmm_pid("murdered").unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        let how = tokio::time::timeout(Duration::from_secs(30), machine.exited()).await.unwrap();
        assert_eq!(how.cause, nullspace_vmm::EndCause::Signal(9));
        assert!(matches!(machine.pause().await, Err(VmmError::Exited(_))));
        stage.settles_to(&before);
        machine.kill().await.unwrap();
    });
}

#[test]
fn a_dropped_machine_and_a_dropped_boot_leave_nothing() {
    on_a_host(|stage| async move {
        let Some(stage) = stage.with_real_kernel() else { return };
        let driver = stage.driver(true).await.unwrap();
        let before = stage.ours();
        drop(driver.boot(stage.boot("dropped", Network::Internet)).await.unwrap());
        stage.settles_in_time(&before).await;
        // A caller who stops waiting, at many points of the way.
        for round in 0..25u64 {
            let boot = driver.boot(stage.boot(&format!("cut-{round}"), Network::Internet));
            let _ = tokio::time::timeout(Duration::from_millis(round * 2), boot).await;
        }
        stage.settles_in_time(&before).await;
    });
}

#[test]
fn a_callers_own_disk_is_lent_and_given_back() {
    on_a_host(|stage| async move {
        let Some(stage) = stage.with_real_kernel() else { return };
        let driver = stage.driver(true).await.unwrap();
        let disk = stage.dir.path().join("step.ext4");
        fs::copy(&stage.base, &disk).unwrap();
        fs::set_permissions(&disk, fs::Permissions::from_mode(0o640)).unwrap();
        let spec = BootSpec { disk: Disk::Direct { path: disk.clone() }, ..stage.boot("direct", Network::Isolated) };
        let machine = driver.boot(spec).await.unwrap();
        assert!(is_machine_uid(fs::metadata(&disk).unwrap().uid()));
        machine.kill().await.unwrap();
        let back = fs::metadata(&disk).unwrap();
        assert_eq!((back.uid(), back.mode() & 0o777), (0, 0o640));
    });
}

#[test]
fn a_snapshot_from_elsewhere_is_refused_before_anything_is_made() {
    on_a_host(|stage| async move {
        let driver = stage.driver(true).await.unwrap();
        let before = stage.ours();
        let mut other = driver.compatibility().clone();
        other.cpu_features.as_mut().unwrap().flags.insert("avx4096".into());
        let spec = stage.restore("elsewhere", other);
        match driver.restore(spec).await.map(drop) {
            Err(VmmError::Incompatible(text)) => assert!(text.ends_with("lacks: avx4096"), "{text}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(stage.ours(), before);
    });
}

#[test]
fn a_damaged_snapshot_is_refused_in_firecrackers_words_and_nothing_stays() {
    on_a_host(|stage| async move {
        let driver = stage.driver(true).await.unwrap();
        let before = stage.ours();
        let dir = stage.dir.path().join("snapshot");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("state"), "not a state").unwrap();
        fs::write(dir.join("memory"), "").unwrap();
        fs::copy(&stage.base, dir.join("disk.raw")).unwrap();
        fs::write(dir.join("machine.json"), r#"{"card":true}"#).unwrap();
        match driver.restore(stage.restore("damaged", driver.compatibility().clone())).await.map(drop) {
            Err(VmmError::Refused { context, .. }) => assert_eq!(context, "PUT /snapshot/load"),
            other => panic!("{other:?}"),
        }
        stage.settles_to(&before);
        // A description that this driver did not write.
        fs::write(dir.join("machine.json"), r#"{"card":true,"uid":0}"#).unwrap();
        assert!(driver.restore(stage.restore("damaged", driver.compatibility().clone())).await.is_err());
        fs::write(dir.join("machine.json"), r#"{"card":false}"#).unwrap();
        assert!(matches!(
            driver.restore(stage.restore("damaged", driver.compatibility().clone())).await,
            Err(VmmError::Incompatible(_))
        ));
        assert_eq!(stage.ours(), before);
    });
}

#[test]
fn an_id_that_is_none_never_becomes_a_path() {
    on_a_host(|stage| async move {
        let driver = stage.driver(true).await.unwrap();
        for id in ["", "../x", "A", "a/b", "a b", &"x".repeat(65)] {
            let refused = driver.boot(stage.boot(id, Network::Isolated)).await.map(drop);
            assert!(matches!(refused, Err(VmmError::Refused { .. })), "{id:?}");
        }
    });
}

/// The service killed with SIGKILL: this test runs itself again as the service.
#[test]
fn a_service_killed_with_sigkill_leaves_no_vmm() {
    const ROLE: &str = "NULLSPACE_TEST_SERVICE_DIR";
    if let Some(dir) = std::env::var_os(ROLE) {
        on_a_host_in(Some(PathBuf::from(dir)), |stage| async move {
            let Some(stage) = stage.with_real_kernel() else { return };
            let driver = stage.driver(true).await.unwrap();
            let _machine = driver.boot(stage.boot("orphan", Network::Internet)).await.unwrap();
            fs::write(stage.dir.path().join("up"), "").unwrap();
            std::future::pending::<()>().await;
        });
        return;
    }
    on_a_host(|stage| async move {
        let Some(stage) = stage.with_real_kernel() else { return };
        let dir = stage.dir.path().join("service");
        fs::create_dir(&dir).unwrap();
        let mut service = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_service_killed_with_sigkill_leaves_no_vmm", "--nocapture"])
            .env(ROLE, &dir)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while !dir.join("up").exists() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let pid = stage.vmm_pid("orphan").expect("a firecracker process");
        let vmm = format!("/proc/{pid}");
        // Looked for while the service lives: once it is dead, the service of any other test may sweep its groups.
        let left = format!("nullspace-{}", service.id());
        assert!(stage.traces().iter().any(|trace| trace.contains(&left)));
        service.kill().unwrap();
        service.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while Path::new(&vmm).exists() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!Path::new(&vmm).exists(), "the VMM outlived its service");
        // The next service sweeps the groups.
        drop(stage.driver(true).await.unwrap());
        assert!(!stage.traces().iter().any(|trace| trace.contains(&left)));
    });
}

/// On a KVM that works the guest answers, on one that only opens it does not: either is told in time.
#[test]
fn a_trial_boot_ends_within_its_limit_and_leaves_nothing() {
    on_a_host(|stage| async move {
        let Some(stage) = stage.with_real_kernel() else { return };
        let driver = stage.driver(true).await.unwrap();
        let before = stage.ours();
        let started = Instant::now();
        match driver.try_boot(&stage.work(), Duration::from_secs(3)).await {
            Ok(took) => assert!(took <= Duration::from_secs(9)),
            // Three times as long where the host itself is emulated.
            Err(VmmError::Timeout { limit_ms, .. }) => assert!([3000, 9000].contains(&limit_ms), "{limit_ms}"),
            Err(VmmError::Exited(_)) => {}
            other => panic!("{other:?}"),
        }
        // The end of the VMM takes time of its own.
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        stage.settles_to(&before);
        assert!(stage.work().read_dir().unwrap().next().is_none());
    });
}

// ---------------------------------------------------------------- the stage

fn is_machine_uid(uid: u32) -> bool {
    let range = FirecrackerConfig::UIDS;
    (range.uid_base..range.uid_base + range.count).contains(&uid)
}

struct Stage {
    dir: tempfile::TempDir,
    binaries: PathBuf,
    kernel: PathBuf,
    initramfs: PathBuf,
    base: PathBuf,
    net: Arc<NetPool>,
}

/// A file is missing that this script makes.
fn lacks(script: &str) {
    assert!(std::env::var_os("NULLSPACE_TEST_COMPLETE").is_none(), "run {script}");
    eprintln!("skipped: needs {script}");
}

/// As in the conformance tests.
fn place(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(default))
}

/// Runs `test` in a network namespace that plays the host.
fn on_a_host<F, Fut>(test: F)
where
    F: FnOnce(Stage) -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    on_a_host_in(None, test);
}

fn on_a_host_in<F, Fut>(dir: Option<PathBuf>, test: F)
where
    F: FnOnce(Stage) -> Fut + Send + 'static,
    Fut: Future<Output = ()>,
{
    let binaries = place("NULLSPACE_TEST_FIRECRACKER", "target/firecracker");
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/kvm").exists() {
        eprintln!("skipped: needs root and /dev/kvm");
        return;
    }
    if !binaries.join("firecracker").exists() {
        lacks("scripts/fetch-firecracker.sh");
        return;
    }
    let body = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = match dir {
                Some(dir) => {
                    let mut held = tempfile::tempdir_in(&dir).unwrap();
                    held.disable_cleanup(true);
                    fs::remove_dir(held.path()).unwrap();
                    std::os::unix::fs::symlink(&dir, held.path()).unwrap();
                    held
                }
                None => tempfile::tempdir().unwrap(),
            };
            let [kernel, initramfs, base] = ["vmlinux", "initramfs", "base.ext4"].map(|name| dir.path().join(name));
            fs::write(&kernel, "no kernel").unwrap();
            fs::write(&initramfs, "no initramfs").unwrap();
            let disk = fs::File::create(&base).unwrap();
            disk.set_len(16 << 20).unwrap();
            let net = Arc::new(NetPool::new(NetConfig { spare: 0, ..NetConfig::default() }).await.unwrap());
            fs::create_dir(dir.path().join("work")).unwrap();
            test(Stage { dir, binaries, kernel, initramfs, base, net }).await;
        });
    });
    if let Err(panic) = body.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Stage {
    /// With the kernel and initramfs of `scripts/guest-image.sh`, which Firecracker accepts.
    fn with_real_kernel(mut self) -> Option<Self> {
        let guest = place("NULLSPACE_TEST_GUEST", "target/guest");
        let (kernel, initramfs) = (guest.join("vmlinux"), guest.join("initramfs.cpio"));
        if !kernel.exists() || !initramfs.exists() {
            lacks("scripts/guest-image.sh");
            return None;
        }
        (self.kernel, self.initramfs) = (kernel, initramfs);
        Some(self)
    }

    fn config(&self, jailed: bool) -> FirecrackerConfig {
        FirecrackerConfig {
            binary: self.binaries.join("firecracker"),
            jailer: jailed.then(|| self.binaries.join("jailer")),
            guest: GuestImage {
                vmlinuz: self.dir.path().join("none"),
                vmlinux: Some(self.kernel.clone()),
                initramfs: self.initramfs.clone(),
            },
            unjailed: !jailed,
            disk_limits: nullspace_vmm::DiskLimits::default(),
            uids: FirecrackerConfig::UIDS,
            net: Some(Arc::clone(&self.net)),
            copy_up_to: FirecrackerConfig::COPY_UP_TO,
            kernel_arguments: String::new(),
        }
    }

    async fn driver(&self, jailed: bool) -> Result<Firecracker, VmmError> {
        Firecracker::new(self.config(jailed)).await
    }

    fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    fn boot(&self, id: &str, network: Network) -> BootSpec {
        BootSpec {
            id: id.into(),
            vcpus: 1,
            memory_mib: 128,
            disk: Disk::Overlay { base: self.base.clone(), size_bytes: 32 << 20 },
            network,
            work_dir: self.work(),
        }
    }

    fn restore(&self, id: &str, compatibility: Compatibility) -> RestoreSpec {
        RestoreSpec {
            id: id.into(),
            base: Some(self.base.clone()),
            snapshot_dir: self.dir.path().join("snapshot"),
            summary: SnapshotSummary {
                compatibility,
                vcpus: 1,
                memory_mib: 128,
                disk_bytes: 16 << 20,
                files: ["state", "memory", "disk.raw", "machine.json"].map(str::to_owned).to_vec(),
                touched: Vec::new(),
                halted: false,
            },
            network: Network::Isolated,
            work_dir: self.work(),
        }
    }

    /// What a machine could leave: files, groups, interfaces, processes.
    fn traces(&self) -> BTreeSet<String> {
        let mut traces = BTreeSet::new();
        for entry in fs::read_dir(self.work()).unwrap().flatten() {
            traces.insert(entry.path().display().to_string());
        }
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let name = hierarchy.file_name().to_string_lossy().into_owned();
            let groups = if name.starts_with("nullspace-") {
                vec![hierarchy.path()]
            } else {
                let inside = fs::read_dir(hierarchy.path()).into_iter().flatten().flatten();
                inside.filter(|e| e.file_name().to_string_lossy().starts_with("nullspace-")).map(|e| e.path()).collect()
            };
            for group in groups {
                // Other tests' services are no trace of ours; their machines are below their own group.
                traces.insert(group.display().to_string());
                if group.to_string_lossy().ends_with(&format!("nullspace-{}", std::process::id())) {
                    for machine in fs::read_dir(&group).unwrap().flatten().filter(|e| e.path().is_dir()) {
                        traces.insert(machine.path().display().to_string());
                    }
                }
            }
        }
        for line in fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().skip(2) {
            traces.insert(line.split(':').next().unwrap().trim().to_owned());
        }
        traces
    }

    /// Those of this test's service and machines; other tests run at the same time.
    fn ours(&self) -> BTreeSet<String> {
        let own = format!("nullspace-{}", std::process::id());
        self.traces().into_iter().filter(|t| !t.contains("/nullspace-") || t.contains(&own)).collect()
    }

    fn settles_to(&self, before: &BTreeSet<String>) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.ours() != *before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(self.ours(), *before);
    }

    async fn settles_in_time(&self, before: &BTreeSet<String>) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while (self.ours().len() > before.len() || self.any_vmm()) && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.settles_to(before);
        assert!(!self.any_vmm());
    }

    /// The firecracker process of a machine in this test's folder.
    fn vmm_pid(&self, id: &str) -> Option<i32> {
        self.processes()
            .into_iter()
            .find(|(_, line)| line.first().is_some_and(|p| p == "/firecracker") && line.contains(&id.to_owned()))
            .map(|(pid, _)| pid)
    }

    fn any_vmm(&self) -> bool {
        let work = self.work().display().to_string();
        self.processes().iter().any(|(_, line)| line.iter().any(|arg| arg.starts_with(&work)))
    }

    fn processes(&self) -> Vec<(i32, Vec<String>)> {
        let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        pids.filter_map(|pid: i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let args = line.split(|b| *b == 0).map(|arg| String::from_utf8_lossy(arg).into_owned()).collect();
            Some((pid, args))
        })
        .collect()
    }
}
