//! Machines under QEMU's `microvm`: with KVM where it truly works, else in software.
//!
//! ```text
//!  this process                                         QEMU: own uid, session, namespaces, control group; seccomp, Landlock
//!    Machine ── monitor ───────── socketpair ────────── -mon                        it owns no file, opens no path but
//!            ── agent ─────────── socketpair ────────── virtserialport              /proc/self/fd and /dev/fdset, and
//!            ── console, 64 KiB ─ socketpair ────────── ttyS0                       dies with the thread that forked it
//!            ── log, 8 KiB ────── pipe ──────────────── stdout, stderr
//!            ── pidfd
//!
//!    boot      memfd ─────────────────── shared ─────── guest memory
//!              overlay (nameless file) ─ read-write ─── /dev/vda ─┬─ disk.qcow2 overlay
//!              base.raw ──────────────── read-only ───────────────┘
//!              tap of a namespace, or QEMU's user network, or nothing ── eth0
//!
//!    snapshot  stop ─ unplug the card's backend ─ migrate to a file, without memory ─ SIGKILL ─ write memory, link overlay
//!
//!    restore   sealed memfd ──────────── private ────── guest memory                shared by all machines of a snapshot
//!              empty overlay ─────────── read-write ─── /dev/vda ─┬─ overlay
//!              disk.qcow2 of snapshot ── read-only ───────────────┤
//!              base.raw ──────────────── read-only ───────────────┘
//! ```
//!
//! Everything reaches QEMU as a descriptor that it inherits. So it runs as a uid that owns nothing, no socket or disk has
//! a name that could be left behind or guessed, and a service killed with SIGKILL leaves neither process nor file.
//!
//! # A restore, measured
//! Under TCG on two cores, a guest of 512 MiB: fork and exec 2 ms, QEMU's dynamic linking and start 18 ms (13 of them are
//! `qemu --version`'s too), its machine 6 ms, the state 2 ms, and then 20-30 ms until the agent's first answer, which are
//! the translation of the guest's code. The monitor's commands cost nothing: they are in its socket before QEMU starts.
//! Tried without gain: another size of the translation cache, one thread for it, malloc settings.
//!
//! # Known holes
//! * Without a [`NetPool`](crate::net::NetPool) (so without root), [`Network::Internet`](crate::Network::Internet) is
//!   QEMU's user network, through which a guest reaches whatever this host's user may reach, its loopback (as 172.30.255.1) included. With root, give
//!   the driver a pool.
//! * Without root, QEMU runs as the service's own user: a guest that breaks out of QEMU is that user.
//! * Under TCG, guests see the host's time stamp counter, and TCG was not written to be a wall. Its own authors say so.

mod agent;
mod args;
mod capture;
mod config;
mod disk;
mod driver;
mod guest;
mod host;
mod launch;
mod lineage;
mod machine;
pub mod probe;
mod qmp;
mod snapshot;
mod stream;
mod version;

use std::sync::Arc;

use async_trait::async_trait;

pub use self::config::{Accelerator, QemuConfig};
use self::driver::{Driver, Parts};
use self::probe::{AcceleratorReport, ProbeReport};
pub use crate::uids::RunAs;
use crate::{BootSpec, Compatibility, RestoreSpec, Vm, Vmm, VmmError, VmmKind};

/// The QEMU driver.
#[derive(Clone)]
pub struct Qemu {
    driver: Arc<Driver>,
}

impl Qemu {
    /// Finds QEMU, opens and hashes the guest's files, and decides on an accelerator, for which it may boot a guest once
    /// (bounded by [`QemuConfig::probe_limit`]).
    pub async fn new(config: QemuConfig) -> Result<Self, VmmError> {
        let parts = Parts::open(&config).await?;
        let accelerator = match config.accelerator {
            Some(Accelerator::Kvm) => {
                let kvm = probe::kvm(&config, &parts).await;
                if !kvm.works {
                    return Err(VmmError::Unavailable(format!(
                        "KVM is asked for and cannot run guests on this host: {}; accel = \"auto\" or \"tcg\" runs them in \
                         software",
                        kvm.detail
                    )));
                }
                Accelerator::Kvm
            }
            Some(Accelerator::Tcg) => Accelerator::Tcg,
            None => {
                let kvm = probe::kvm(&config, &parts).await;
                tracing::info!(works = kvm.works, detail = %kvm.detail, "KVM");
                if kvm.works { Accelerator::Kvm } else { Accelerator::Tcg }
            }
        };
        Ok(Self { driver: Arc::new(Driver::new(&config, &parts, accelerator).await) })
    }

    /// Tries each accelerator by booting a guest, and reports which work on this host. May take seconds: for people.
    pub async fn probe(config: &QemuConfig) -> Result<ProbeReport, VmmError> {
        let parts = Parts::open(config).await?;
        let tcg: AcceleratorReport = probe::boot(config, &parts, Accelerator::Tcg).await;
        let kvm = probe::kvm(config, &parts).await;
        Ok(ProbeReport {
            vmm_version: parts.version_text().to_owned(),
            accelerators: vec![kvm, tcg],
            walls: parts.walls_text(None),
            missing_walls: parts.missing_walls().to_vec(),
        })
    }

    /// The accelerator that machines of this driver run with.
    pub fn accelerator(&self) -> Accelerator {
        self.driver.accelerator
    }
}

#[async_trait]
impl Vmm for Qemu {
    fn kind(&self) -> VmmKind {
        VmmKind::Qemu
    }

    fn compatibility(&self) -> &Compatibility {
        &self.driver.compatibility
    }

    fn overhead_mib(&self, _vcpus: u32) -> u32 {
        self.driver.overhead_mib()
    }

    fn template_memory_mib(&self) -> u64 {
        self.driver.templates.bytes().div_ceil(1 << 20)
    }

    fn trim_templates(&self) {
        self.driver.templates.trim_to(0);
    }

    fn walls(&self) -> String {
        self.driver.walls_text()
    }

    fn guests_reach_loopback(&self) -> bool {
        self.driver.has_user_network()
    }

    fn enforces_egress(&self) -> bool {
        !self.driver.has_user_network()
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Vm>, VmmError> {
        Ok(Box::new(self.driver.boot(spec).await?))
    }

    async fn restore(&self, spec: RestoreSpec) -> Result<Box<dyn Vm>, VmmError> {
        Ok(Box::new(self.driver.restore(spec).await?))
    }
}
