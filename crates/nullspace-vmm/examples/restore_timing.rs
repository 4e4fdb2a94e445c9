//! Where the time of a QEMU restore goes.
//!
//! `cargo run --release -p nullspace-vmm --example restore_timing -- GUEST_DIR ROOT.ext4 [RUNS]`
//!
//! Boots ROOT.ext4 (with a `/bin/sh`), snapshots it, and restores it RUNS times; prints medians in ms. Then a restored machine
//! fills memory, 0 to 256 MiB, and is paused and snapshotted. As root the
//! machines have namespaces and taps, unless NETWORK=user is set. ACCEL=kvm or tcg spares the trial of KVM. RUST_LOG=nullspace_vmm=debug shows each restore.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nullspace_guest::host::Agent;
use nullspace_guest::message::{Configure, Exec, Restored};
use nullspace_vmm::net::{NetConfig, NetPool};
use nullspace_vmm::qemu::{Accelerator, Qemu, QemuConfig};
use nullspace_vmm::{BootSpec, Disk, GuestImage, Network, RestoreSpec, Vmm};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> Outcome<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut args = std::env::args().skip(1);
    let (Some(guest), Some(root)) = (args.next(), args.next()) else {
        return Err("usage: restore_timing GUEST_DIR ROOT.ext4 [RUNS]".into());
    };
    let runs: usize = args.next().map_or(Ok(20), |text| text.parse())?;
    let (guest, root) = (PathBuf::from(guest), PathBuf::from(root));
    let image = GuestImage {
        vmlinuz: guest.join("vmlinuz"),
        vmlinux: Some(guest.join("vmlinux")).filter(|path| path.exists()),
        initramfs: guest.join("initramfs.cpio"),
    };
    let taps = nix::unistd::geteuid().is_root() && std::env::var_os("NETWORK").is_none();
    let network = if taps { Some(Arc::new(NetPool::new(NetConfig::default()).await?)) } else { None };
    let accelerator = match std::env::var("ACCEL").as_deref() {
        Ok("kvm") => Some(Accelerator::Kvm),
        Ok("tcg") => Some(Accelerator::Tcg),
        _ => None,
    };
    let vmm = Qemu::new(QemuConfig { network, accelerator, ..QemuConfig::new(image) }).await?;
    println!("{} {}", vmm.compatibility().vmm_version, vmm.compatibility().accelerator);

    let folder = std::env::temp_dir().join(format!("restore-timing-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let outcome = run(&vmm, &root, &folder, runs).await;
    std::fs::remove_dir_all(&folder)?;
    outcome
}

async fn run(vmm: &Qemu, root: &Path, folder: &Path, runs: usize) -> Outcome<()> {
    let limit = Duration::from_secs(60);
    let work = |name: &str| -> Outcome<PathBuf> {
        let path = folder.join(name);
        std::fs::create_dir(&path)?;
        Ok(path)
    };
    let size_bytes = std::fs::metadata(root)?.len();
    let start = Instant::now();
    let spec = BootSpec {
        id: "timing".into(),
        vcpus: 1,
        memory_mib: 512,
        disk: Disk::Overlay { base: root.to_owned(), size_bytes },
        network: Network::Internet,
        work_dir: work("boot")?,
    };
    let machine = vmm.boot(spec).await?;
    let (agent, _) = Agent::connect(machine.agent().await?, limit).await?;
    let configure = Configure {
        hostname: "timing".into(),
        network: machine.guest_network(),
        unix_time_ns: now(),
        ..Configure::default()
    };
    agent.configure(configure).await?;
    agent.exec_collect(exec(), 1000).await?;
    println!("boot to first exec       {:8.1}", ms(start));
    agent.freeze().await?;
    agent.disconnect().await;
    let start = Instant::now();
    machine.pause().await?;
    let snapshot_dir = work("snapshot")?;
    let summary = machine.snapshot(&snapshot_dir).await?;
    println!("pause and snapshot       {:8.1}", ms(start));
    machine.kill().await?;

    let mut steps: [Vec<f64>; 5] = Default::default();
    for run in 0..runs {
        let id = format!("run-{run}");
        let start = Instant::now();
        let spec = RestoreSpec {
            id: id.clone(),
            base: Some(root.to_owned()),
            snapshot_dir: snapshot_dir.clone(),
            summary: summary.clone(),
            network: Network::Internet,
            work_dir: work(&id)?,
        };
        let machine = vmm.restore(spec).await?;
        steps[0].push(ms(start));
        let step = Instant::now();
        let restored = Restored {
            hostname: id,
            machine_id: uuid::Uuid::new_v4().simple().to_string(),
            entropy: "AAECAwQFBgcICQoLDA0ODwABAgMEBQYHCAkKCwwNDg8=".into(),
            unix_time_ns: now(),
            network: machine.guest_network(),
            resume: None,
            trial: false,
        };
        let open = || async { machine.agent().await.map_err(Box::<dyn std::error::Error>::from) };
        let (agent, _) = Agent::connect_restored(open, || restored.clone(), limit).await?;
        steps[1].push(ms(step));
        let step = Instant::now();
        agent.exec_collect(exec(), 1000).await?;
        steps[2].push(ms(step));
        steps[3].push(ms(start));
        let step = Instant::now();
        machine.kill().await?;
        steps[4].push(ms(step));
    }
    let names = ["restore()", "agent's new identity", "first exec", "restore to first exec", "kill()"];
    for (name, mut times) in names.iter().zip(steps) {
        times.sort_by(f64::total_cmp);
        println!("{name:24} {:8.1}   least {:.1}", times[times.len() / 2], times[0]);
    }

    for mib in [0, 16, 64, 256] {
        let id = format!("fill-{mib}");
        let spec = RestoreSpec {
            id: id.clone(),
            base: Some(root.to_owned()),
            snapshot_dir: snapshot_dir.clone(),
            summary: summary.clone(),
            network: Network::Internet,
            work_dir: work(&id)?,
        };
        let machine = vmm.restore(spec).await?;
        let restored = Restored {
            hostname: id.clone(),
            machine_id: uuid::Uuid::new_v4().simple().to_string(),
            entropy: "AAECAwQFBgcICQoLDA0ODwABAgMEBQYHCAkKCwwNDg8=".into(),
            unix_time_ns: now(),
            network: machine.guest_network(),
            resume: None,
            trial: false,
        };
        let open = || async { machine.agent().await.map_err(Box::<dyn std::error::Error>::from) };
        let (agent, _) = Agent::connect_restored(open, || restored.clone(), limit).await?;
        let script = format!(
            "mkdir -p /mnt; mount -t tmpfs -o size=400m none /mnt; dd if=/dev/urandom of=/mnt/x bs=1M count={mib} 2>/dev/null"
        );
        agent.exec_collect(shell(&script), 1000).await?;
        let folder = work(&format!("snapshot-{mib}"))?;
        let start = Instant::now();
        machine.prepare_snapshot(&folder).await?;
        let prepared = ms(start);
        agent.freeze().await?;
        agent.disconnect().await;
        let start = Instant::now();
        machine.pause().await?;
        let paused = ms(start);
        let used = machine.usage().await.map_or(0, |used| used.private_bytes >> 20);
        let start = Instant::now();
        machine.snapshot(&folder).await?;
        let taken = ms(start);
        println!(
            "snapshot of restored     {taken:8.1}   prepared {prepared:.1}, pause {paused:.1}, {mib} MiB filled, {used} MiB private"
        );
        machine.kill().await?;
    }
    Ok(())
}

fn exec() -> Exec {
    shell("echo ok")
}

fn shell(script: &str) -> Exec {
    Exec {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        envs: [("PATH".to_owned(), "/bin:/usr/bin".to_owned())].into(),
        ..Exec::default()
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}
