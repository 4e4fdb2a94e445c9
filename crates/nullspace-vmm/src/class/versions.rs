//! VMM versions that read one another's snapshots: the only place that says so.
//!
//! - QEMU: the same `major.minor`. Its stable releases (the third number) and a distribution's packages of one release keep
//!   the migration format; this is QEMU's rule, and the packaging suffix is all that was tried here (7.2.22). The machine type
//!   `microvm` has no versions of its own, so another minor version may lay its devices out otherwise: it is refused until
//!   somebody has tried the two and put them into [`TRIED`].
//! - Firecracker: its own snapshot format, which it tells by `--snapshot-version`: the same major number, and a minor number
//!   that is not newer than the host's. This is Firecracker's rule; 1.12.1, the one version that was run here, tells 6.0.0.
//!   A class without that number is of an earlier version of this service: then the same `major.minor` of Firecracker.

use crate::{Compatibility, VmmKind};

/// Two minor versions of which the second was seen to read what the first wrote.
#[derive(Debug, Clone, Copy)]
struct Tried {
    vmm: VmmKind,
    wrote: (u64, u64),
    reads: (u64, u64),
}

/// Pairs of different minor versions that were tried: a template built and snapshotted under `wrote`, and a sandbox of it
/// resumed under `reads`, in which a command ran. None has been so far.
const TRIED: &[Tried] = &[];

/// True when the VMM of a host reads the state that the VMM of a snapshot wrote. Both are of the same kind.
pub(super) fn reads(host: &Compatibility, snapshot: &Compatibility) -> bool {
    reads_by(TRIED, host, snapshot)
}

fn reads_by(tried: &[Tried], host: &Compatibility, snapshot: &Compatibility) -> bool {
    if snapshot.vmm == VmmKind::Firecracker
        && let (Some(wrote), Some(reads)) = (&snapshot.vmm_format, &host.vmm_format)
    {
        return match (minor(wrote), minor(reads)) {
            (Some(wrote), Some(reads)) => wrote.0 == reads.0 && wrote.1 <= reads.1,
            _ => wrote == reads,
        };
    }
    match (minor(&snapshot.vmm_version), minor(&host.vmm_version)) {
        (Some(wrote), Some(reads)) => {
            let seen = |pair: &&Tried| pair.vmm == snapshot.vmm && pair.wrote == wrote && pair.reads == reads;
            wrote == reads || tried.iter().find(seen).is_some()
        }
        // A text without numbers is only known to be itself.
        _ => snapshot.vmm_version == host.vmm_version,
    }
}

/// The first two numbers of a version.
fn minor(version: &str) -> Option<(u64, u64)> {
    let version = version.strip_prefix('v').unwrap_or(version);
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(vmm: VmmKind, version: &str, format: Option<&str>) -> Compatibility {
        Compatibility {
            vmm,
            vmm_version: version.into(),
            accelerator: "kvm".into(),
            format: 1,
            guest: String::new(),
            cpu: String::new(),
            agent_abi: 6,
            vmm_format: format.map(str::to_owned),
            cpu_features: None,
        }
    }

    #[test]
    fn a_packages_suffix_and_a_patch_release_do_not_count_for_qemu_and_a_minor_release_does() {
        let qemu = |version| class(VmmKind::Qemu, version, None);
        let debian = qemu("7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)");
        for (version, expected) in [
            ("7.2.22 (Debian 1:7.2+dfsg-7+deb12u19)", true),
            ("7.2.22", true),
            ("7.2.0", true),
            ("7.2", true),
            ("7.20.1", false),
            ("7.1.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)", false),
            ("8.2.22", false),
            ("", false),
            ("devel", false),
        ] {
            let other = qemu(version);
            assert_eq!(reads(&other, &debian), expected, "{version}");
            assert_eq!(reads(&debian, &other), expected, "{version}");
        }
        assert!(reads(&qemu("devel"), &qemu("devel")));
    }

    #[test]
    fn a_pair_that_was_tried_is_read_one_way() {
        let tried = [Tried { vmm: VmmKind::Qemu, wrote: (7, 2), reads: (8, 0) }];
        let (old, new) = (class(VmmKind::Qemu, "7.2.1", None), class(VmmKind::Qemu, "8.0.4", None));
        assert!(reads_by(&tried, &new, &old) && !reads_by(&tried, &old, &new));
        let (old, new) = (class(VmmKind::Firecracker, "7.2.1", None), class(VmmKind::Firecracker, "8.0.4", None));
        assert!(!reads_by(&tried, &new, &old));
    }

    #[test]
    fn firecrackers_own_format_counts_where_both_tell_it() {
        let firecracker = |version, format| class(VmmKind::Firecracker, version, format);
        for (wrote, host, expected) in [
            (("1.12.1", Some("6.0.0")), ("1.13.0", Some("6.0.0")), true),
            (("1.12.1", Some("6.0.0")), ("1.13.0", Some("6.1.0")), true),
            (("1.13.0", Some("6.1.0")), ("1.12.1", Some("6.0.0")), false),
            (("1.12.1", Some("6.0.0")), ("1.14.0", Some("7.0.0")), false),
            (("1.12.1", Some("6.0.0")), ("1.12.1", Some("6.0.4")), true),
            // Rows of earlier versions.
            (("1.12.1", None), ("1.12.4", Some("6.0.0")), true),
            (("1.12.1", None), ("1.13.0", Some("6.0.0")), false),
            (("1.12.1", Some("none")), ("1.12.1", Some("6.0.0")), false),
        ] {
            let fits = reads(&firecracker(host.0, host.1), &firecracker(wrote.0, wrote.1));
            assert_eq!(fits, expected, "{wrote:?} {host:?}");
        }
    }
}
