//! The driver's settings, and its checks before the first machine: the binaries, the guest's files, KVM, the host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::driver::{Firecracker, blocking, disk_error};
use super::version::{OLDEST, Version};
use super::{compatibility, disk, overlay};
use crate::cgroups::Cgroups;
use crate::net::NetPool;
use crate::uids::{RunAs, Uids};
use crate::{BootSpec, Disk, DiskLimits, GuestImage, Network, Vmm, VmmError};

const VERSION_LIMIT: Duration = Duration::from_secs(10);
/// Memory of a guest that only shows that it boots.
const PROBE_MIB: u32 = 128;
/// The kernel's command line. The serial console is for the log of a failed boot; the keyboard controller's probes cost
/// 100 ms and more; `reboot=k` makes a guest's reboot end the VMM.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet reboot=k panic=1 pci=off nowatchdog audit=0 8250.nr_uarts=1 \
random.trust_cpu=on i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd";

/// Settings of [`Firecracker`].
pub struct FirecrackerConfig {
    /// The VMM.
    pub binary: PathBuf,
    /// Its jailer; used when the service is root.
    pub jailer: Option<PathBuf>,
    /// Run machines without the jailer where it cannot be used; else that is an error.
    pub unjailed: bool,
    /// Kernel and initramfs. Versions before 1.17 need the uncompressed kernel.
    pub guest: GuestImage,
    /// User ids for jailed VMMs, one for each that runs; no other account's.
    pub uids: RunAs,
    /// Networks; `None`: machines have no card, and [`Network::Internet`] is refused.
    pub net: Option<Arc<NetPool>>,
    /// Limits of a machine on its disk.
    pub disk_limits: DiskLimits,
    /// Images with more data than this, bytes, get a device-mapper snapshot where files cannot share blocks;
    /// [`Self::COPY_UP_TO`] suits.
    pub copy_up_to: u64,
    /// More kernel arguments, for hosts with special needs. Blank by default.
    pub kernel_arguments: String,
}

impl FirecrackerConfig {
    /// User ids that no distribution hands out by itself, and that the QEMU driver does not use either.
    pub const UIDS: RunAs = RunAs { uid_base: 7_100_000, count: 4096 };
    /// Copying that much is about as quick as making a mapping.
    pub const COPY_UP_TO: u64 = disk::COPY_UP_TO;
}

impl Firecracker {
    /// Checks binary, KVM, kernel and host. Only a boot shows whether KVM really runs guests: see [`Self::try_boot`].
    pub async fn new(config: FirecrackerConfig) -> Result<Self, VmmError> {
        let unavailable = |text: String| VmmError::Unavailable(text);
        let binary = std::fs::canonicalize(&config.binary).map_err(|_| {
            unavailable(format!("{} is not there: install Firecracker 1.10 or newer", config.binary.display()))
        })?;
        let exec_name = binary
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or_else(|| unavailable("Firecracker's file name is not UTF-8".into()))?
            .to_owned();
        let version = ask_version(&binary).await?;
        if version < OLDEST {
            return Err(unavailable(format!("Firecracker {version} is too old: {OLDEST} or newer is needed")));
        }
        std::fs::File::options().read(true).write(true).open("/dev/kvm").map_err(|error| {
            unavailable(format!("/dev/kvm cannot be opened ({error}): load kvm, or join the group kvm"))
        })?;
        let kernel = if version.boots_bzimage() { Some(config.guest.vmlinuz) } else { config.guest.vmlinux };
        let kernel = kernel.ok_or_else(|| {
            unavailable(format!("Firecracker {version} boots only an uncompressed kernel, and none was prepared"))
        })?;
        let jailer = match config.jailer {
            Some(jailer) if rustix::process::geteuid().is_root() => {
                let jailer = std::fs::canonicalize(&jailer).map_err(|_| {
                    unavailable(format!("{} is not there: install Firecracker's jailer", jailer.display()))
                })?;
                for file in [&kernel, &config.guest.initramfs] {
                    check_readable(file)?;
                }
                Some(jailer)
            }
            _ if config.unjailed => {
                tracing::warn!(
                    "Firecracker runs without its jailer, as the settings allow: its guests are behind KVM alone"
                );
                None
            }
            _ => {
                return Err(unavailable(
                    "Firecracker's jailer cannot be used: it needs root and the program `jailer`; `unjailed = true` in \
                     the settings runs machines without it, behind KVM and seccomp alone"
                        .into(),
                ));
            }
        };
        let initramfs = config.guest.initramfs;
        let (k, i) = (kernel.clone(), initramfs.clone());
        let compatibility = blocking(move || compatibility::of_host(version, &k, &i)).await?;
        let uids = jailer.is_some().then(|| Uids::new(config.uids)).transpose()?;
        let cgroups = if jailer.is_some() { blocking(|| Ok(Cgroups::set_up())).await? } else { None };
        let disks = match jailer.is_some() && blocking(|| Ok(overlay::available())).await? {
            true => disk::Choice::MapAbove(config.copy_up_to),
            false => disk::Choice::File,
        };
        Ok(Self {
            binary,
            exec_name,
            net: config.net.filter(|_| jailer.is_some()),
            jailer,
            kernel,
            initramfs,
            boot_args: format!("{KERNEL_ARGUMENTS} {}", config.kernel_arguments).trim_end().to_owned(),
            version,
            compatibility,
            uids,
            cgroups: cgroups.map(Arc::new),
            disk_limits: config.disk_limits,
            disks,
        })
    }

    /// Boots a guest without anything on its disk, in the empty folder `work`, and ends it: only this tells whether a KVM
    /// that opens runs guests too. Answers how long the guest took to listen.
    pub async fn try_boot(&self, work: &Path, limit: Duration) -> Result<Duration, VmmError> {
        let disk = work.join("probe.raw");
        std::fs::File::create_new(&disk).and_then(|file| file.set_len(1 << 20)).map_err(disk_error(&disk))?;
        let spec = BootSpec {
            id: "probe".into(),
            vcpus: 1,
            memory_mib: PROBE_MIB,
            disk: Disk::Overlay { base: disk.clone(), size_bytes: 1 << 20 },
            network: Network::Isolated,
            work_dir: work.to_owned(),
        };
        let started = Instant::now();
        let booted = async {
            let machine = self.boot(spec).await?;
            let listened = tokio::time::timeout_at(started + limit, machine.agent()).await;
            let took = started.elapsed();
            machine.kill().await?;
            listened.map_err(|_| VmmError::Timeout {
                what: "the boot of a guest under KVM".into(),
                limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
            })??;
            Ok(took)
        };
        let result = booted.await;
        let _ = std::fs::remove_file(&disk);
        result
    }
}

async fn ask_version(binary: &Path) -> Result<Version, VmmError> {
    let output = tokio::process::Command::new(binary)
        .arg("--version")
        .env_clear()
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(VERSION_LIMIT, output)
        .await
        .map_err(|_| VmmError::Timeout {
            what: "`firecracker --version`".into(),
            limit_ms: VERSION_LIMIT.as_millis() as u64,
        })?
        .map_err(|error| VmmError::Unavailable(format!("{} cannot be run: {error}", binary.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Version::parse(&text)
        .ok_or_else(|| VmmError::Unavailable(format!("{} does not say which Firecracker it is", binary.display())))
}

fn check_readable(path: &Path) -> Result<(), VmmError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).map_err(disk_error(path))?.permissions().mode();
    if mode & 0o004 == 0 {
        return Err(VmmError::Unavailable(format!(
            "{} must be readable by all, for jailed VMMs have uids of their own: chmod a+r it",
            path.display()
        )));
    }
    Ok(())
}
