//! Properties of this host that a guest sees or depends on: KVM, processor, time stamp counter, boot id.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
#[cfg(target_arch = "x86_64")]
use std::time::{Duration, Instant};

use crate::CpuFeatures;

/// The device that KVM is reached through.
const KVM: &str = "/dev/kvm";

/// This host's TSC rate in kHz: the median of three measurements of 30 ms each. `None` on other processors. Blocks.
#[cfg(target_arch = "x86_64")]
pub(super) fn tsc_khz() -> Option<u64> {
    let mut rates: Vec<u64> = (0..3)
        .filter_map(|_| {
            let (start, ticks) = (Instant::now(), tsc());
            std::thread::sleep(Duration::from_millis(30));
            let ticks = u128::from(tsc().wrapping_sub(ticks));
            u64::try_from(ticks.checked_mul(1_000_000)?.checked_div(start.elapsed().as_nanos())?).ok()
        })
        .collect();
    rates.sort_unstable();
    // Anything else is no clock: the guest shall calibrate by itself then.
    rates.get(1).copied().filter(|khz| (100_000..10_000_000).contains(khz))
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "reads the processor's clock")]
fn tsc() -> u64 {
    // SAFETY: reads a counter that every x86-64 processor has.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// This host's TSC rate: it has none.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn tsc_khz() -> Option<u64> {
    None
}

/// Vendor, model and feature set of this host's CPU, which guests see under KVM. The features are in it because
/// microcode and hypervisors take some away from the same model.
pub(super) fn cpu() -> String {
    cpu_of(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

/// Vendor and features of this host's CPU, as guests may see them under KVM.
pub(super) fn cpu_features() -> Option<CpuFeatures> {
    CpuFeatures::of(&std::fs::read_to_string("/proc/cpuinfo").ok()?)
}

fn cpu_of(info: &str) -> String {
    let field = |name: &str| {
        let value = info.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name));
        value.map_or("", |(_, value)| value.trim())
    };
    let features = blake3::hash(field("flags").as_bytes()).to_hex();
    format!(
        "{} {}, family {} model {} stepping {}, features {}",
        field("vendor_id"),
        field("model name"),
        field("cpu family"),
        field("model"),
        field("stepping"),
        &features[..12]
    )
}

/// Checks that QEMU may open KVM; the error says what to do. With `own_users`, QEMU runs as a uid that has
/// nothing but perhaps [`kvm_group`].
pub(crate) fn kvm_device(own_users: bool) -> Result<(), String> {
    match std::fs::File::options().read(true).write(true).open(KVM) {
        Ok(file) => match file.metadata() {
            Ok(meta) if own_users && !for_others(meta.mode()) && !for_group(meta.mode()) => Err(format!(
                "{KVM} is for root alone, and QEMU does not run as root: chgrp kvm {KVM} && chmod 660 {KVM}"
            )),
            _ => Ok(()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(format!("there is no {KVM}: the processor's virtualisation is off, or this is a machine without it"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(format!("{KVM} may not be opened: add this service's user to the group kvm"))
        }
        Err(error) => Err(format!("{KVM} cannot be opened: {error}")),
    }
}

fn for_others(mode: u32) -> bool {
    mode & 0o006 == 0o006
}

fn for_group(mode: u32) -> bool {
    mode & 0o060 == 0o060
}

/// The group that may use KVM, when its members may and others may not: Debian's `kvm`.
pub(super) fn kvm_group() -> Option<u32> {
    let meta = std::fs::metadata(Path::new(KVM)).ok()?;
    (for_group(meta.mode()) && !for_others(meta.mode())).then(|| meta.gid())
}

/// The kernel's boot id: new with each boot of the host.
pub(crate) fn boot_id() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_tsc_rate_is_measured_alike_twice() {
        let (first, second) = (tsc_khz().unwrap(), tsc_khz().unwrap());
        assert!(first.abs_diff(second) < first / 50, "{first} {second}");
    }

    #[test]
    fn a_cpu_is_told_by_vendor_model_and_features() {
        let info = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC 7B13\nstepping\t: 0\nflags\t\t: fpu vme\n";
        let shown = cpu_of(info);
        assert!(shown.starts_with("AuthenticAMD AMD EPYC 7B13, family 25 model 1 stepping 0, features "), "{shown}");
        assert_ne!(shown, cpu_of(&info.replace("vme", "vme avx")));
    }
}
