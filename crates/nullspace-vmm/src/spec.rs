//! Arguments and results of the traits [`Vmm`](crate::Vmm) and [`Vm`](crate::Vm).

use std::path::PathBuf;

use nullspace_types::EgressPolicy;
use serde::{Deserialize, Serialize};

use crate::class::Compatibility;

/// The drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmmKind {
    /// Firecracker: production; needs working KVM.
    Firecracker,
    /// QEMU's `microvm` machine: KVM when it works, else software emulation.
    Qemu,
}

/// The VMM's name, for people.
impl std::fmt::Display for VmmKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            VmmKind::Firecracker => "Firecracker",
            VmmKind::Qemu => "QEMU",
        })
    }
}

/// Kernel and initramfs that every machine boots with.
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// bzImage (QEMU, newer Firecrackers).
    pub vmlinuz: PathBuf,
    /// Uncompressed ELF (older Firecrackers), when it was prepared.
    pub vmlinux: Option<PathBuf>,
    /// cpio with the modules and `nullspace-init`.
    pub initramfs: PathBuf,
}

/// A machine to boot.
///
/// # Example
///
/// ```no_run
/// use std::path::Path;
///
/// use nullspace_vmm::{BootSpec, Disk, Network, Vmm, VmmError};
///
/// /// Boots a root image, copies its console and ends the machine.
/// async fn console(vmm: &dyn Vmm, image: &Path, folder: &Path) -> Result<String, VmmError> {
///     let spec = BootSpec {
///         id: "example".into(),
///         vcpus: 1,
///         memory_mib: 512,
///         disk: Disk::Overlay { base: image.into(), size_bytes: 1 << 30 },
///         network: Network::Isolated,
///         work_dir: folder.into(),
///     };
///     let machine = vmm.boot(spec).await?;
///     let agent = machine.agent().await?;
///     drop(agent);
///     let text = machine.console_tail();
///     machine.kill().await?;
///     Ok(text)
/// }
/// ```
#[derive(Debug, Clone)]
pub struct BootSpec {
    /// Unique among the machines of this service: `[a-z0-9-]{1,64}`.
    pub id: String,
    /// Virtual CPUs, at least 1.
    pub vcpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// The root disk, `/dev/vda` in the guest.
    pub disk: Disk,
    /// The network card, `eth0` in the guest.
    pub network: Network,
    /// Empty folder of this machine alone; the caller removes it after the machine is gone.
    pub work_dir: PathBuf,
}

/// A root disk.
#[derive(Debug, Clone)]
pub enum Disk {
    /// Copy-on-write over an immutable raw image; the guest sees `size_bytes` (at least the image's, the rest reads as zeros).
    Overlay {
        /// Raw image, opened read-only.
        base: PathBuf,
        /// Size that the guest sees, bytes.
        size_bytes: u64,
    },
    /// A raw image that the guest writes to directly.
    Direct {
        /// Raw image.
        path: PathBuf,
    },
}

/// Limits of one machine on the disk that it shares with others; requests beyond them wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskLimits {
    /// Read and written together, MiB in a second.
    pub mib_per_second: u32,
    /// Requests in a second.
    pub operations_per_second: u32,
}

impl Default for DiskLimits {
    /// A good disk's; what a guest reads twice comes from its own memory.
    fn default() -> Self {
        Self { mib_per_second: 1_024, operations_per_second: 50_000 }
    }
}

/// A machine's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// No card at all would change the hardware between machines: a card that leads nowhere.
    Isolated,
    /// Reaches the internet, and neither this host's loopback nor private ranges where the driver can close them.
    Internet,
    /// Reaches the part of [`Network::Internet`] that a policy leaves, from its first packet on. See
    /// [`Vmm::enforces_egress`](crate::Vmm::enforces_egress).
    Narrowed(EgressPolicy),
}

impl Network {
    /// True when it leads somewhere.
    pub fn has_uplink(&self) -> bool {
        *self != Network::Isolated
    }

    /// The policy that narrows it.
    pub fn egress(&self) -> Option<&EgressPolicy> {
        match self {
            Network::Narrowed(policy) => Some(policy),
            Network::Isolated | Network::Internet => None,
        }
    }
}

/// A machine to restore.
#[derive(Debug, Clone)]
pub struct RestoreSpec {
    /// As in [`BootSpec`].
    pub id: String,
    /// The `base` that the snapshotted machine's [`Disk::Overlay`] had, with what was captured of it applied; for a `Direct` disk that image itself, unchanged
    /// since. `None` only when the snapshot's folder holds the whole disk.
    pub base: Option<PathBuf>,
    /// Folder that [`Vm::snapshot`](crate::Vm::snapshot) filled; never written to.
    pub snapshot_dir: PathBuf,
    /// The result of [`Vm::snapshot`](crate::Vm::snapshot).
    pub summary: SnapshotSummary,
    /// As in [`BootSpec`]; it may differ from the snapshotted machine's.
    pub network: Network,
    /// As in [`BootSpec`].
    pub work_dir: PathBuf,
}

/// The description of a snapshot, to be kept beside its files.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct SnapshotSummary {
    /// The compatibility class that it needs.
    pub compatibility: Compatibility,
    /// Virtual CPUs of the machine.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Disk size as the guest sees it, bytes.
    pub disk_bytes: u64,
    /// Names of the files in the snapshot's folder.
    pub files: Vec<String>,
    /// The parts of the memory that a restored machine uses first, as [`Vm::touched`](crate::Vm::touched) found them: runs of
    /// 4 KiB pages, each the first page's number and the number of pages, in ascending order and apart from each other, at most
    /// 1024. A hint for whoever reads the memory; empty when nobody has looked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub touched: Vec<(u32, u32)>,
    /// True when no process of the guest runs on before its agent is told. The owner of the machine knows; a driver says false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub halted: bool,
}

impl VmmError {
    /// True when the host's disk was full. The operation may succeed once there is space.
    pub fn is_storage_full(&self) -> bool {
        use std::io::ErrorKind;
        match self {
            VmmError::Io { source, .. } => matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded),
            // A VMM passes the system's words on.
            VmmError::Refused { message, .. } => {
                message.contains("No space left on device") || message.contains("Disk quota exceeded")
            }
            _ => false,
        }
    }
}

/// The end of a machine's VMM process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Whose doing it was.
    pub cause: EndCause,
    /// A sentence, for the log.
    pub how: String,
}

/// A machine's use of its host, as the host's kernel counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmUsage {
    /// Processor time of the VMM, guest code included, since this machine was booted or restored, ns.
    pub cpu_ns: u64,
    /// Memory that is this machine's alone and is resident now, bytes: of a restored machine, what it has written since, and
    /// the VMM's own.
    pub private_bytes: u64,
    /// Traffic of its card; `None` when it has no network namespace of its own.
    pub network: Option<NetworkUsage>,
}

/// Traffic of a machine's card since the machine was booted or restored, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetworkUsage {
    /// Bytes that the guest received.
    pub received_bytes: u64,
    /// Bytes that the guest sent.
    pub sent_bytes: u64,
}

/// The cause of a machine's end. [`EndCause::Guest`] is the user's; the others are faults of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndCause {
    /// The guest powered off, rebooted, or its kernel stopped.
    Guest,
    /// A signal from outside, or one that the VMM's own fault brought on: the number of `signal(7)`.
    Signal(i32),
    /// The VMM ended by itself, with an error or for reasons that it did not tell.
    Vmm,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.how)
    }
}

/// Errors of VMM operations.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The snapshot cannot run here; booting cold instead is not done.
    #[error("incompatible snapshot: {0}")]
    Incompatible(String),
    /// The VMM or its needs are not on this machine; the text names what to install.
    #[error("{0}")]
    Unavailable(String),
    /// The machine ended by itself.
    #[error("the virtual machine ended: {0}")]
    Exited(String),
    /// Something took longer than its bound.
    #[error("{what} took longer than {limit_ms} ms")]
    Timeout {
        /// The awaited event or operation.
        what: String,
        /// The bound in ms.
        limit_ms: u64,
    },
    /// The VMM answered with an error.
    #[error("{context}: {message}")]
    Refused {
        /// The refused operation.
        context: String,
        /// The VMM's words.
        message: String,
    },
    /// The host's system refused.
    #[error("{context}")]
    Io {
        /// The failed operation.
        context: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}
