//! The driver's settings, and its checks before the first machine: the binaries, the guest's files, KVM, the host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::driver::{Firecracker, blocking, disk_error};
use super::version::{OLDEST, Version};
use super::{compatibility, disk, overlay};
use crate::cgroups::Cgroups;
use crate::emulation::patient;
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
    /// Checks binary, jailer, KVM, kernel and host, in this order. Only a boot shows whether KVM really runs guests: see [`Self::try_boot`].
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
        let snapshot_format = ask_snapshot_format(&binary).await;
        if version < OLDEST {
            return Err(unavailable(format!("Firecracker {version} is too old: {OLDEST} or newer is needed")));
        }
        let jailer = usable_jailer(config.jailer.as_deref(), config.unjailed)?;
        std::fs::File::options().read(true).write(true).open("/dev/kvm").map_err(|error| {
            unavailable(format!("/dev/kvm cannot be opened ({error}): load kvm, or join the group kvm"))
        })?;
        let kernel = if version.boots_bzimage() { Some(config.guest.vmlinuz) } else { config.guest.vmlinux };
        let kernel = kernel.ok_or_else(|| {
            unavailable(format!("Firecracker {version} boots only an uncompressed kernel, and none was prepared"))
        })?;
        match jailer {
            Some(_) => {
                for file in [&kernel, &config.guest.initramfs] {
                    check_readable(file)?;
                }
            }
            None => tracing::warn!(
                "Firecracker runs without its jailer, as the settings allow: its guests are behind KVM alone"
            ),
        }
        let initramfs = config.guest.initramfs;
        let (k, i) = (kernel.clone(), initramfs.clone());
        let compatibility = blocking(move || compatibility::of_host(version, snapshot_format, &k, &i)).await?;
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
    /// that opens runs guests too. Answers how long the guest took to listen. `limit` is three times as long in a host whose own
    /// processor is emulated.
    pub async fn try_boot(&self, work: &Path, limit: Duration) -> Result<Duration, VmmError> {
        let limit = patient(limit);
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

/// The jailer's real path. `None`: it cannot be used, and `unjailed` allows machines without it.
fn usable_jailer(jailer: Option<&Path>, unjailed: bool) -> Result<Option<PathBuf>, VmmError> {
    match jailer {
        Some(jailer) if rustix::process::geteuid().is_root() => {
            let found = std::fs::canonicalize(jailer).map_err(|_| {
                VmmError::Unavailable(format!("{} is not there: install Firecracker's jailer", jailer.display()))
            })?;
            Ok(Some(found))
        }
        _ if unjailed => Ok(None),
        _ => Err(VmmError::Unavailable(
            "Firecracker's jailer cannot be used: it needs root and the program `jailer`; `unjailed = true` in the settings \
             runs machines without it, behind KVM and seccomp alone"
                .into(),
        )),
    }
}

async fn ask_version(binary: &Path) -> Result<Version, VmmError> {
    let text = ask(binary, "--version").await?;
    Version::parse(&text)
        .ok_or_else(|| VmmError::Unavailable(format!("{} does not say which Firecracker it is", binary.display())))
}

/// The version of Firecracker's own snapshot format. `None`: it does not tell, and its version counts instead.
async fn ask_snapshot_format(binary: &Path) -> Option<Version> {
    match ask(binary, "--snapshot-version").await {
        Ok(text) => Version::parse(&text),
        Err(error) => {
            tracing::debug!(%error, "Firecracker does not tell its snapshot format");
            None
        }
    }
}

async fn ask(binary: &Path, option: &str) -> Result<String, VmmError> {
    let output = tokio::process::Command::new(binary)
        .arg(option)
        .env_clear()
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(VERSION_LIMIT, output)
        .await
        .map_err(|_| VmmError::Timeout {
            what: format!("`firecracker {option}`"),
            limit_ms: VERSION_LIMIT.as_millis() as u64,
        })?
        .map_err(|error| VmmError::Unavailable(format!("{} cannot be run: {error}", binary.display())))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A setup with a program that says that it is Firecracker, and no guest's files: it ends with an error whatever KVM does.
    async fn refusal(jailer: Option<PathBuf>, unjailed: bool) -> String {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("firecracker");
        // Written by another process: a program that this one has open for writing, or a child of it, cannot be run.
        let write = r#"printf '#!/bin/sh\necho Firecracker v1.12.1\n' >"$1" && chmod 755 "$1""#;
        let written = std::process::Command::new("sh").args(["-c", write, "sh"]).arg(&binary).status().unwrap();
        assert!(written.success());
        let config = FirecrackerConfig {
            binary,
            jailer,
            unjailed,
            guest: GuestImage { vmlinuz: folder.path().join("vmlinuz"), vmlinux: None, initramfs: "none".into() },
            uids: FirecrackerConfig::UIDS,
            net: None,
            disk_limits: DiskLimits::default(),
            copy_up_to: FirecrackerConfig::COPY_UP_TO,
            kernel_arguments: String::new(),
        };
        Firecracker::new(config).await.map(drop).unwrap_err().to_string()
    }

    #[tokio::test]
    async fn firecracker_without_its_jailer_is_refused_unless_that_is_allowed() {
        let error = refusal(None, false).await;
        assert!(
            error.starts_with("Firecracker's jailer cannot be used") && error.contains("unjailed = true"),
            "{error}"
        );
        // With leave it goes on: to KVM, or where that opens, to the kernel that is not there.
        let error = refusal(None, true).await;
        assert!(error.starts_with("/dev/kvm cannot be opened") || error.contains("uncompressed kernel"), "{error}");

        let (here, missing) = (PathBuf::from("/bin/sh"), PathBuf::from("/none/jailer"));
        if rustix::process::geteuid().is_root() {
            // A jailer that is named and missing is a mistake, which leave to do without does not cover.
            for unjailed in [false, true] {
                assert_eq!(
                    refusal(Some(missing.clone()), unjailed).await,
                    "/none/jailer is not there: install Firecracker's jailer"
                );
            }
            assert!(!refusal(Some(here), false).await.contains("jailer"));
        } else {
            // Only root can use it.
            assert!(refusal(Some(here), false).await.starts_with("Firecracker's jailer cannot be used"));
        }
    }
}
