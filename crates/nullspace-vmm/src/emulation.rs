//! Emulated processors: machines on them run many times slower than on real ones, so waits for them are longer.
//!
//! ```text
//!   machine in QEMU's TCG ────────────────────────────────> slow: the driver's class says so
//!   machine in KVM, in a host that itself runs in TCG ────> slow: that host's processor says so (CPUID)
//! ```

use std::sync::OnceLock;
use std::time::Duration;

/// How many times longer a wait for a VMM is in a host with an emulated processor.
const PATIENCE: u32 = 3;

/// True when this host's own processor is emulated by QEMU. KVM in such a host is emulated with it.
pub(crate) fn of_host() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| hypervisor().as_ref() == Some(b"TCGTCGTCGTCG"))
}

/// The time limit `limit` of an operation of a VMM itself, as long as this host needs.
pub(crate) fn patient(limit: Duration) -> Duration {
    patient_if(of_host(), limit)
}

/// The same, for a machine that is emulated or not.
pub(crate) fn patient_if(slow: bool, limit: Duration) -> Duration {
    if slow { limit.saturating_mul(PATIENCE) } else { limit }
}

/// The hypervisor's name for itself, when this host runs under one.
#[cfg(target_arch = "x86_64")]
fn hypervisor() -> Option<[u8; 12]> {
    use core::arch::x86_64::__cpuid;
    /// The processor runs under a hypervisor: bit 31 of ECX in leaf 1.
    const UNDER_HYPERVISOR: u32 = 1 << 31;
    /// The leaf of the hypervisor's name.
    const NAME: u32 = 0x4000_0000;
    if __cpuid(1).ecx & UNDER_HYPERVISOR == 0 {
        return None;
    }
    let found = __cpuid(NAME);
    let mut name = [0; 12];
    for (part, register) in name.chunks_exact_mut(4).zip([found.ebx, found.ecx, found.edx]) {
        part.copy_from_slice(&register.to_le_bytes());
    }
    Some(name)
}

/// Other processors do not tell.
#[cfg(not(target_arch = "x86_64"))]
fn hypervisor() -> Option<[u8; 12]> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processors_flag_and_its_name_agree() {
        // The kernel shows the same flag, and QEMU's emulator is never a processor without it.
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flag =
            info.lines().any(|line| line.starts_with("flags") && line.split(' ').any(|flag| flag == "hypervisor"));
        assert_eq!(hypervisor().is_some(), flag);
        assert!(flag || !of_host());
        if info.contains("QEMU TCG CPU") {
            assert!(of_host(), "{:?}", hypervisor());
        }
    }

    #[test]
    fn waits_are_longer_only_where_something_is_emulated() {
        let limit = Duration::from_secs(20);
        assert_eq!(patient_if(false, limit), limit);
        assert_eq!(patient_if(true, limit), Duration::from_secs(60));
        assert_eq!(patient_if(true, Duration::MAX), Duration::MAX);
    }
}
