//! The settings of the QEMU driver.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::net::NetPool;
use crate::uids::RunAs;
use crate::{DiskLimits, GuestImage};

/// The accelerator: the way in which guest code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Accelerator {
    /// The processor's virtualisation.
    Kvm,
    /// Software emulation.
    Tcg,
}

impl Accelerator {
    /// `kvm` or `tcg`.
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

/// Settings of [`Qemu`](crate::qemu::Qemu).
#[derive(Clone)]
pub struct QemuConfig {
    /// A path, or a name to look for in PATH.
    pub binary: PathBuf,
    /// Kernel and initramfs for every machine.
    pub guest: GuestImage,
    /// `None`: KVM when a guest boots with it, else TCG.
    pub accelerator: Option<Accelerator>,
    /// A uid for each machine, which needs root. `None`: QEMU runs as this service's user.
    pub run_as: Option<RunAs>,
    /// Namespaces and taps, which need root. `None`: QEMU's user network, with the hole described in [`self`](crate::qemu).
    pub network: Option<Arc<NetPool>>,
    /// Limits of a machine on its disk.
    pub disk_limits: DiskLimits,
    /// Memory of templates that is kept while no machine uses it, bytes.
    pub template_memory_bytes: u64,
    /// Time limit for QEMU's start, without the guest's boot, on real hardware. Where machines are emulated it is three times as
    /// long.
    pub start_limit: Duration,
    /// Time limit for the guest whose boot shows that KVM works. A real boot takes less than a second. Three times as long in a host
    /// whose own processor is emulated.
    pub probe_limit: Duration,
    /// Folder of the verdict on KVM, which is valid until this host reboots. `None`: each process tries again.
    pub cache_dir: Option<PathBuf>,
}

impl QemuConfig {
    /// The settings that suit most hosts: everything that root makes possible when this is root, except networks, which
    /// must be given.
    pub fn new(guest: GuestImage) -> Self {
        Self {
            binary: "qemu-system-x86_64".into(),
            guest,
            accelerator: None,
            run_as: rustix::process::geteuid().is_root().then(RunAs::default),
            network: None,
            disk_limits: DiskLimits::default(),
            template_memory_bytes: 4 << 30,
            start_limit: Duration::from_secs(20),
            probe_limit: Duration::from_secs(20),
            cache_dir: None,
        }
    }
}
