//! The size of a machine, and its limits on every host.

use serde::{Deserialize, Serialize};

/// Smallest disk, MiB, from the contract.
pub const MIN_DISK_MB: u32 = 512;
/// Most virtual CPUs of a machine.
pub const MAX_VCPUS: u32 = 32;
/// Smallest memory of a machine, MiB: guests below this do not boot with their initramfs.
pub const MIN_MEMORY_MIB: u32 = 128;
/// Largest memory of a machine, MiB.
pub const MAX_MEMORY_MIB: u32 = 65_536;
/// Largest disk, MiB.
pub const MAX_DISK_MB: u32 = 1_048_576;

/// Size and network access of a build's machine and of the sandboxes made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineSize {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Whether the build machine reaches the internet.
    pub internet_access: bool,
    /// Disk as the guest sees it, MiB; `None`: the source's size and some headroom.
    pub disk_mb: Option<u32>,
}

/// The warning that a disk of `bytes`, from `from`, is larger than requested; `None` if it is not.
pub fn larger_disk(asked_mib: Option<u32>, bytes: u64, from: &str) -> Option<String> {
    let asked = asked_mib.filter(|mib| u64::from(*mib) << 20 < bytes)?;
    Some(format!(
        "disk_mb is {asked}, and the disk has {} MiB as {from} has: a disk can grow, and not shrink",
        bytes >> 20
    ))
}
