//! The CPU features that a guest under KVM could have seen.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Names in /proc/cpuinfo that are no features of a guest: Linux makes them up, or KVM does not show them. Their absence on
/// another host, or under another kernel of it, takes nothing from a guest.
const NOT_THE_GUESTS: &[&str] = &[
    // Made up from other properties of the host.
    "acc_power",
    "always",
    "amd_dcm",
    "aperfmperf",
    "art",
    "constant_tsc",
    "cpuid",
    "extd_apicid",
    "nopl",
    "nonstop_tsc",
    "nonstop_tsc_s3",
    "pti",
    "rep_good",
    "ring3mwait",
    "tsc_known_freq",
    "tsc_reliable",
    "up",
    "xtopology",
    // The host's power management, monitoring and resource control.
    "cat_l2",
    "cat_l3",
    "cdp_l2",
    "cdp_l3",
    "cpb",
    "cqm",
    "cqm_llc",
    "cqm_mbm_local",
    "cqm_mbm_total",
    "cqm_occup_llc",
    "dtherm",
    "epb",
    "est",
    "hw_pstate",
    "hwp",
    "hwp_act_window",
    "hwp_epp",
    "hwp_notify",
    "hwp_pkg_req",
    "ida",
    "intel_pt",
    "mba",
    "pln",
    "proc_feedback",
    "pts",
    "rapl",
    "rdt_a",
    "split_lock_detect",
    "tm",
    "tm2",
    // Parts of the host's own virtualisation.
    "ept",
    "ept_ad",
    "flexpriority",
    "tpr_shadow",
    "vmmcall",
    "vnmi",
    "vpid",
];

/// Vendor and features of a CPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuFeatures {
    /// As the CPU names it: `AuthenticAMD`, `GenuineIntel`.
    pub vendor: String,
    /// Names as in /proc/cpuinfo, in ascending order. Stored as one text with blanks between them.
    #[serde(with = "text")]
    pub flags: BTreeSet<String>,
}

impl CpuFeatures {
    /// The features that guests of a host may see, by the text of its /proc/cpuinfo. `None` when the text has none.
    pub(crate) fn of(cpuinfo: &str) -> Option<Self> {
        let field = |name: &str| {
            let lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            lines.filter(|(key, _)| key.trim() == name).map(|(_, value)| value.trim()).next()
        };
        let named = field("flags")?.split_whitespace().filter(|flag| !NOT_THE_GUESTS.contains(flag));
        Some(Self { vendor: field("vendor_id")?.to_owned(), flags: named.map(str::to_owned).collect() })
    }

    /// The features of `self` that `host` has not, in ascending order.
    pub(super) fn missing_in<'a>(&'a self, host: &'a CpuFeatures) -> impl Iterator<Item = &'a str> {
        self.flags.difference(&host.flags).map(String::as_str)
    }
}

/// A set of names as one text.
mod text {
    use std::collections::BTreeSet;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(flags: &BTreeSet<String>, serializer: S) -> Result<S::Ok, S::Error> {
        let names: Vec<&str> = flags.iter().map(String::as_str).collect();
        serializer.serialize_str(&names.join(" "))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<String>, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC: 9R14\nflags\t\t: vme fpu avx2 constant_tsc ept\n\
                        bugs\t\t: sysret_ss_attrs\n\nprocessor\t: 1\nvendor_id\t: Other\nflags\t\t: fpu\n";

    #[test]
    fn features_are_read_of_the_first_cpu_without_those_of_the_host_alone() {
        let features = CpuFeatures::of(INFO).unwrap();
        assert_eq!(features.vendor, "AuthenticAMD");
        assert_eq!(features.flags.iter().collect::<Vec<_>>(), ["avx2", "fpu", "vme"]);
        assert_eq!(CpuFeatures::of(""), None);
        assert_eq!(CpuFeatures::of("flags\t: fpu\n"), None);
        assert_eq!(CpuFeatures::of("vendor_id\t: x\n"), None);
    }

    #[test]
    fn features_are_stored_as_one_text_in_one_order() {
        let features = CpuFeatures::of(INFO).unwrap();
        let stored = serde_json::to_string(&features).unwrap();
        assert_eq!(stored, r#"{"vendor":"AuthenticAMD","flags":"avx2 fpu vme"}"#);
        assert_eq!(serde_json::from_str::<CpuFeatures>(&stored).unwrap(), features);
        let other = CpuFeatures::of(&INFO.replace("vme fpu avx2", "avx2 vme fpu")).unwrap();
        assert_eq!(serde_json::to_string(&other).unwrap(), stored);
    }
}
