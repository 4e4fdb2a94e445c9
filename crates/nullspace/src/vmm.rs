//! Which VMM runs the machines, and their networks.
//!
//! ```text
//!  vmm = qemu          QEMU, with KVM when a guest truly boots in it, else in software
//!  vmm = firecracker   Firecracker, or an error
//!  vmm = auto          Firecracker when its program is here, its jailer can be used, and a guest boots with it; else QEMU
//! ```
//! Beside it stand the older programs that the settings name, for templates that only those can resume.
//! `require_kvm` refuses what would run guests in software, `accel = kvm` a KVM in which no guest boots.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nullspace_vmm::firecracker::{Firecracker, FirecrackerConfig};
use nullspace_vmm::net::{NetConfig, NetLimits, NetPool, parse_network};
use nullspace_vmm::qemu::{Accelerator, Qemu, QemuConfig};
use nullspace_vmm::{DiskLimits, SideBySide, Vmm};

use crate::config::{AccelChoice, Config, NetworkChoice, VmmChoice};
use crate::guest;

/// A guest that takes longer to boot counts as one that never will. Real hardware takes a tenth of a second. An emulated one takes
/// some ten, and has three times as long.
const TRY: Duration = Duration::from_secs(20);

/// Memory of templates that each older QEMU keeps while no machine uses it, bytes: a quarter of the first one's.
const OLDER_TEMPLATE_MEMORY: u64 = 1 << 30;

/// Sets up the driver that the settings ask for.
pub(crate) async fn choose(config: &Config) -> anyhow::Result<Arc<dyn Vmm>> {
    let dir = guest::dir(config);
    let missing = guest::missing(&dir);
    if !missing.is_empty() {
        bail!("the guest's files are missing ({}): make them with `make guest`, or set guest_dir", list(&missing));
    }
    let network = network(config).await?.map(Arc::new);
    let vmm: Arc<dyn Vmm> = match config.vmm {
        VmmChoice::Qemu => Arc::new(qemu(config, &dir, network.clone()).await?),
        VmmChoice::Firecracker => Arc::new(firecracker(config, &dir, network.clone()).await?),
        VmmChoice::Auto => match working_firecracker(config, &dir, network.clone()).await {
            Some(firecracker) => Arc::new(firecracker),
            None => Arc::new(qemu(config, &dir, network.clone()).await?),
        },
    };
    say(vmm.as_ref(), "machines run under");
    let older = older(config, &dir, vmm.as_ref(), network).await?;
    if vmm.compatibility().is_emulated() || older.iter().any(|older| older.compatibility().is_emulated()) {
        if config.require_kvm {
            bail!(
                "require_kvm is set, and guests would run in software: no guest boots in this host's KVM; `nullspace \
                 doctor` says why"
            );
        }
        tracing::warn!("guests run in software emulation: slow, and not built as a wall; require_kvm refuses that");
    }
    Ok(if older.is_empty() { vmm } else { Arc::new(SideBySide::new(vmm, older)) })
}

fn say(vmm: &dyn Vmm, message: &str) {
    let what = vmm.compatibility();
    tracing::info!(
        vmm = ?what.vmm,
        version = what.vmm_version,
        accelerator = what.accelerator,
        walls = vmm.walls(),
        "{message}"
    );
}

/// Drivers of the older programs that the settings name. One that cannot be used is an error: what
/// depends on it could not resume.
async fn older(
    config: &Config,
    dir: &Path,
    first: &dyn Vmm,
    network: Option<Arc<NetPool>>,
) -> anyhow::Result<Vec<Arc<dyn Vmm>>> {
    let mut older: Vec<Arc<dyn Vmm>> = Vec::new();
    for program in &config.older_firecracker {
        let config = Config { firecracker: program.clone(), ..config.clone() };
        let vmm = firecracker(&config, dir, network.clone()).await;
        older.push(Arc::new(vmm.with_context(|| format!("older_firecracker: {}", program.display()))?));
    }
    for program in &config.older_qemu {
        let settings = QemuConfig {
            binary: program.clone(),
            network: network.clone(),
            template_memory_bytes: OLDER_TEMPLATE_MEMORY,
            // The verdict on KVM that is kept is the first QEMU's.
            cache_dir: None,
            ..qemu_config(config, dir)
        };
        let settings = match first.compatibility().is_emulated() {
            true => QemuConfig { accelerator: Some(Accelerator::Tcg), ..settings },
            false => settings,
        };
        let vmm = Qemu::new(settings).await;
        older.push(Arc::new(vmm.with_context(|| format!("older_qemu: {}", program.display()))?));
    }
    for vmm in &older {
        say(vmm.as_ref(), "older templates resume under");
    }
    Ok(older)
}

fn disk_limits(config: &Config) -> DiskLimits {
    DiskLimits { mib_per_second: config.disk_mib_per_second, operations_per_second: config.disk_operations_per_second }
}

/// Settings of the QEMU driver, networks left out.
pub(crate) fn qemu_config(config: &Config, dir: &Path) -> QemuConfig {
    QemuConfig {
        binary: config.qemu.clone(),
        accelerator: match config.accel {
            AccelChoice::Auto => None,
            AccelChoice::Kvm => Some(Accelerator::Kvm),
            AccelChoice::Tcg => Some(Accelerator::Tcg),
        },
        cache_dir: config.data_dir.is_dir().then(|| config.data_dir.clone()),
        disk_limits: disk_limits(config),
        ..QemuConfig::new(guest::image(dir))
    }
}

async fn qemu(config: &Config, dir: &Path, network: Option<Arc<NetPool>>) -> anyhow::Result<Qemu> {
    Qemu::new(QemuConfig { network, ..qemu_config(config, dir) }).await.context("set up QEMU")
}

pub(crate) async fn firecracker(config: &Config, dir: &Path, net: Option<Arc<NetPool>>) -> anyhow::Result<Firecracker> {
    let binary = find(&config.firecracker).with_context(|| {
        format!("firecracker is not in PATH as '{}': install it, or set firecracker", config.firecracker.display())
    })?;
    let settings = FirecrackerConfig {
        binary,
        jailer: find(&config.jailer),
        unjailed: config.unjailed,
        disk_limits: disk_limits(config),
        guest: guest::image(dir),
        uids: FirecrackerConfig::UIDS,
        net,
        copy_up_to: FirecrackerConfig::COPY_UP_TO,
        kernel_arguments: String::new(),
    };
    Firecracker::new(settings).await.context("set up Firecracker")
}

/// Firecracker, where its program is here and a guest truly boots with it.
async fn working_firecracker(config: &Config, dir: &Path, net: Option<Arc<NetPool>>) -> Option<Firecracker> {
    find(&config.firecracker)?;
    let tried = async {
        let firecracker = firecracker(config, dir, net).await?;
        if !firecracker.is_jailed() {
            // Behind KVM alone is not what "auto" is to choose, whatever else is allowed.
            bail!("its jailer cannot be used: that needs root and the program `jailer`");
        }
        try_guest(config, &firecracker).await?;
        anyhow::Ok(firecracker)
    };
    tried
        .await
        .inspect_err(|error| tracing::warn!("Firecracker is installed but does not work; using QEMU: {error:#}"))
        .ok()
}

/// Boots a guest once with Firecracker: only that tells whether a KVM that opens also runs guests. Answers how long it took.
pub(crate) async fn try_guest(config: &Config, firecracker: &Firecracker) -> anyhow::Result<Duration> {
    let work = existing(&config.data_dir).join(format!(".nullspace-try-{}", std::process::id()));
    std::fs::create_dir(&work).with_context(|| format!("make {}", work.display()))?;
    let tried = firecracker.try_boot(&work, TRY).await.context("boot a guest with Firecracker");
    std::fs::remove_dir_all(&work).with_context(|| format!("remove {}", work.display()))?;
    tried
}

/// Networks of machines, where the settings and the rights allow them.
async fn network(config: &Config) -> anyhow::Result<Option<NetPool>> {
    let root = rustix::process::geteuid().is_root();
    match config.network {
        NetworkChoice::User => return Ok(None),
        NetworkChoice::Auto if !root => {
            tracing::warn!("not root: machines use QEMU's user network, through which they reach this host's loopback");
            return Ok(None);
        }
        NetworkChoice::Auto | NetworkChoice::Namespaces => {}
    }
    let prefix = &config.network_prefix;
    let settings = NetConfig {
        table: format!("nullspace_{prefix}"),
        interface_prefix: prefix.clone(),
        pool: parse_network(&config.network_pool).context("network_pool")?,
        allow: parse_all(&config.network_allow).context("network_allow")?,
        resolvers: parse_all(&config.dns).context("dns")?,
        limits: NetLimits {
            connections: config.network_connections,
            new_connections_per_second: config.network_connections_per_second,
            packets_per_second: config.network_packets_per_second,
            mib_per_second: config.network_mib_per_second,
        },
        ..NetConfig::default()
    };
    match NetPool::new(settings).await {
        Ok(pool) => Ok(Some(pool)),
        // As root, a machine that could reach this host's loopback for want of a tool is not what anybody asked for.
        Err(error) => Err(error).context("set up networks of machines (network = \"user\" does without)"),
    }
}

fn parse_all<T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>>(
    texts: &[String],
) -> anyhow::Result<Vec<T>> {
    texts.iter().map(|text| text.parse::<T>().with_context(|| format!("'{text}'"))).collect()
}

/// The folder itself, or the nearest one above it that is there: where it would be made.
pub(crate) fn existing(dir: &Path) -> PathBuf {
    let whole = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    let there = whole.ancestors().find(|above| above.exists());
    match there {
        Some(above) if above != whole => above.to_owned(),
        _ => dir.to_owned(),
    }
}

/// A program by path, or by name in PATH.
pub(crate) fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.exists().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|found| found.exists())
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
