//! Compatibility classes: what a snapshot needs of a host, and the judgement of whether a host has it.
//!
//! ```text
//!   class of the snapshot ──┐
//!                           ├── conflict_with ──> None: it runs there | the property that differs, as a sentence
//!   class of the host ──────┘
//! ```
//!
//! | property | rule |
//! |---|---|
//! | VMM | equal |
//! | VMM version | numbers by `class/versions.rs`; the packaging suffix is recorded only |
//! | accelerator, snapshot format | equal |
//! | CPU under KVM | same vendor, and the host has every feature that the guest could see |
//! | CPU under TCG | QEMU's own, so that its version decides |
//! | agent | within the range of interface versions that this build speaks |
//! | guest kernel and initramfs | recorded only: they are in the snapshot's memory |
//!
//! Classes are stored with their snapshots. A class from before the features were recorded needs the CPU's whole text to be
//! equal, as it did when it was written. The rules that depend on a machine's devices (its card, the rate of its clock) are
//! the drivers'.

mod cpu;
mod versions;

use serde::{Deserialize, Serialize};

use nullspace_guest::capability::{AGENT_ABI, OLDEST_AGENT_ABI};

pub use self::cpu::CpuFeatures;
use crate::VmmKind;

/// Most features that a refusal names.
const NAMED: usize = 8;

/// The compatibility class of a snapshot, or of the snapshots that a host makes.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Compatibility {
    /// Driver.
    pub vmm: VmmKind,
    /// Version of the VMM, as it prints it, packaging suffix included.
    pub vmm_version: String,
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// Format version of the snapshot's folder, ours.
    pub format: u32,
    /// BLAKE3 of kernel and initramfs, hex. Recorded, not compared.
    pub guest: String,
    /// Vendor and model of the CPU that guests see, for people (`tcg` under software emulation). Compared only when one of
    /// two classes has no [`Compatibility::cpu_features`].
    pub cpu: String,
    /// Interface version of the agent in the guest.
    pub agent_abi: u32,
    /// Version of the VMM's own snapshot format, when the VMM tells it: Firecracker's `major.minor.patch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm_format: Option<String>,
    /// The CPU's vendor and features under KVM; `None` under software emulation, and in classes of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_features: Option<CpuFeatures>,
}

impl Compatibility {
    /// True when machines are emulated in software. [`Vmm::is_slow`](crate::Vmm::is_slow) says whether to wait longer for them.
    pub fn is_emulated(&self) -> bool {
        self.accelerator == "tcg"
    }

    /// The class of a machine that was restored here, on the host with this class, from a snapshot with the class
    /// `snapshot`: its kernel and its agent are the snapshot's.
    #[must_use]
    pub fn of_restored(&self, snapshot: &Compatibility) -> Compatibility {
        Compatibility { guest: snapshot.guest.clone(), agent_abi: snapshot.agent_abi, ..self.clone() }
    }

    /// The first property for which a snapshot with this class cannot run on a host with the class `host`, as a sentence for
    /// the user; `None` when it runs there.
    pub fn conflict_with(&self, host: &Compatibility) -> Option<String> {
        let differs = |what: &str, ours: &dyn std::fmt::Display, theirs: &dyn std::fmt::Display| {
            Some(format!("the snapshot's {what} is {ours}, this host's is {theirs}"))
        };
        if self.vmm != host.vmm {
            return differs("VMM", &self.vmm, &host.vmm);
        }
        if self.accelerator != host.accelerator {
            return differs("accelerator", &self.accelerator, &host.accelerator);
        }
        if self.format != host.format {
            return differs("format", &self.format, &host.format);
        }
        if !versions::reads(host, self) {
            return match (&self.vmm_format, &host.vmm_format) {
                (Some(ours), Some(theirs)) => differs(&format!("{} format", self.vmm), ours, theirs),
                _ => differs("VMM version", &self.vmm_version, &host.vmm_version),
            };
        }
        self.cpu_conflict(host).or_else(|| self.agent_conflict())
    }

    fn cpu_conflict(&self, host: &Compatibility) -> Option<String> {
        if self.is_emulated() {
            return None;
        }
        let (Some(seen), Some(there)) = (&self.cpu_features, &host.cpu_features) else {
            return (self.cpu != host.cpu)
                .then(|| format!("the snapshot's CPU is {}, this host's is {}", self.cpu, host.cpu));
        };
        if seen.vendor != there.vendor {
            let text = format!("the snapshot's CPU vendor is {}, this host's is {}", seen.vendor, there.vendor);
            return Some(text);
        }
        let missing: Vec<&str> = seen.missing_in(there).collect();
        if missing.is_empty() {
            return None;
        }
        let mut named = missing[..missing.len().min(NAMED)].join(", ");
        if missing.len() > NAMED {
            named.push_str(&format!(" and {} more", missing.len() - NAMED));
        }
        Some(format!("the snapshot's guest may use CPU features that this host lacks: {named}"))
    }

    fn agent_conflict(&self) -> Option<String> {
        (!(OLDEST_AGENT_ABI..=AGENT_ABI).contains(&self.agent_abi)).then(|| {
            format!(
                "the snapshot's agent has interface version {}, this host speaks {OLDEST_AGENT_ABI} to {AGENT_ABI}",
                self.agent_abi
            )
        })
    }
}

#[cfg(test)]
mod tests;
