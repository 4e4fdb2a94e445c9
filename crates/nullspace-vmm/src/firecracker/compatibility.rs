//! The compatibility class of this host's snapshots.

use std::io;
use std::path::Path;

use nullspace_guest::message::AGENT_ABI;

use super::version::Version;
use crate::{Compatibility, CpuFeatures, VmmError, VmmKind};

/// Version of the snapshot folder's layout (`machine.rs`).
const FORMAT: u32 = 1;

/// The class of a host with this Firecracker, and the version of its snapshot format when it tells one.
pub(super) fn of_host(
    version: Version,
    snapshot_format: Option<Version>,
    kernel: &Path,
    initramfs: &Path,
) -> Result<Compatibility, VmmError> {
    let guest = hash(&[kernel, initramfs])
        .map_err(|source| VmmError::Io { context: "read the guest's kernel and initramfs".into(), source })?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")
        .map_err(|source| VmmError::Io { context: "read /proc/cpuinfo".into(), source })?;
    Ok(Compatibility {
        vmm: VmmKind::Firecracker,
        vmm_version: version.to_string(),
        accelerator: "kvm".into(),
        format: FORMAT,
        guest,
        cpu: cpu(&cpuinfo),
        agent_abi: AGENT_ABI,
        vmm_format: snapshot_format.map(|format| format.to_string()),
        cpu_features: CpuFeatures::of(&cpuinfo),
    })
}

/// BLAKE3 over the files, each behind its length.
fn hash(files: &[&Path]) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    for path in files {
        let file = std::fs::File::open(path)?;
        hasher.update(&file.metadata()?.len().to_le_bytes());
        hasher.update_reader(file)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Vendor, family, model, stepping and name of the first CPU. For people, and for the classes of
/// earlier versions, which have no features.
fn cpu(cpuinfo: &str) -> String {
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map_or("?", |(_, value)| value.trim())
    };
    format!(
        "{} {}/{}/{} {}",
        field("vendor_id"),
        field("cpu family"),
        field("model"),
        field("stepping"),
        field("model name")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_named_by_what_its_cpuid_depends_on() {
        let text = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: EPYC: 9R14\nstepping\t: 1\n";
        assert_eq!(cpu(text), "AuthenticAMD 25/17/1 EPYC: 9R14");
        assert_eq!(cpu(""), "? ?/?/? ?");
    }

    #[test]
    fn another_kernel_is_another_guest() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
        std::fs::write(&a, "ab").unwrap();
        std::fs::write(&b, "c").unwrap();
        let one = hash(&[&a, &b]).unwrap();
        std::fs::write(&a, "a").unwrap();
        std::fs::write(&b, "bc").unwrap();
        assert_ne!(one, hash(&[&a, &b]).unwrap());
    }
}
