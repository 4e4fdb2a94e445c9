//! Drivers side by side: machines boot with the first one, and each snapshot resumes under the first one that it fits.
//!
//! ```text
//!   boot ─────────────> first
//!   restore ── class ──> first ── does not fit ──> older ── does not fit ──> older … ──> Incompatible: why the first refuses
//! ```
//! So a new VMM, whose versions do not read what the old one wrote, is installed beside it: templates made before go on under
//! the old one, and what is built from then on is the new one's.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{BootSpec, Compatibility, RestoreSpec, Vm, Vmm, VmmError, VmmKind};

/// Several drivers as one.
pub struct SideBySide {
    first: Arc<dyn Vmm>,
    older: Vec<Arc<dyn Vmm>>,
}

impl SideBySide {
    /// Joins a driver that boots machines, and others that resume what it cannot, in the order in which they are asked.
    pub fn new(first: Arc<dyn Vmm>, older: Vec<Arc<dyn Vmm>>) -> Self {
        Self { first, older }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<dyn Vmm>> {
        std::iter::once(&self.first).chain(&self.older)
    }

    fn fitting(&self, snapshot: &Compatibility) -> Option<&Arc<dyn Vmm>> {
        self.all().find(|vmm| vmm.conflict(snapshot).is_none())
    }
}

#[async_trait]
impl Vmm for SideBySide {
    fn kind(&self) -> VmmKind {
        self.first.kind()
    }

    fn compatibility(&self) -> &Compatibility {
        self.first.compatibility()
    }

    fn conflict(&self, snapshot: &Compatibility) -> Option<String> {
        match self.fitting(snapshot) {
            Some(_) => None,
            None => self.first.conflict(snapshot),
        }
    }

    fn is_slow(&self) -> bool {
        self.all().any(|vmm| vmm.is_slow())
    }

    fn overhead_mib(&self, vcpus: u32) -> u32 {
        // Admission does not know yet under which one a machine will run.
        self.all().map(|vmm| vmm.overhead_mib(vcpus)).max().unwrap_or(0)
    }

    fn template_memory_mib(&self) -> u64 {
        self.all().map(|vmm| vmm.template_memory_mib()).sum()
    }

    fn trim_templates(&self) {
        self.all().for_each(|vmm| vmm.trim_templates());
    }

    fn walls(&self) -> String {
        let first = self.first.walls();
        let mut text = first.clone();
        for older in self.older.iter().filter(|older| older.walls() != first) {
            text.push_str(&format!("; under version {}: {}", older.compatibility().vmm_version, older.walls()));
        }
        text
    }

    fn guests_reach_loopback(&self) -> bool {
        self.all().any(|vmm| vmm.guests_reach_loopback())
    }

    fn enforces_egress(&self) -> bool {
        self.all().all(|vmm| vmm.enforces_egress())
    }

    async fn boot(&self, spec: BootSpec) -> Result<Box<dyn Vm>, VmmError> {
        self.first.boot(spec).await
    }

    async fn restore(&self, spec: RestoreSpec) -> Result<Box<dyn Vm>, VmmError> {
        self.fitting(&spec.summary.compatibility).unwrap_or(&self.first).restore(spec).await
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Mutex;

    use nullspace_guest::capability::AGENT_ABI;

    use super::*;
    use crate::{Disk, Network, SnapshotSummary};

    /// A driver that only notes what it is asked for.
    struct Noting {
        class: Compatibility,
        asked: Mutex<Vec<&'static str>>,
        mib: u32,
        loopback: bool,
    }

    #[async_trait]
    impl Vmm for Noting {
        fn kind(&self) -> VmmKind {
            self.class.vmm
        }

        fn compatibility(&self) -> &Compatibility {
            &self.class
        }

        fn overhead_mib(&self, vcpus: u32) -> u32 {
            self.mib * vcpus
        }

        fn template_memory_mib(&self) -> u64 {
            self.mib.into()
        }

        fn trim_templates(&self) {
            self.asked.lock().unwrap().push("trim");
        }

        fn walls(&self) -> String {
            format!("walls {}", self.loopback)
        }

        fn guests_reach_loopback(&self) -> bool {
            self.loopback
        }

        fn enforces_egress(&self) -> bool {
            !self.loopback
        }

        async fn boot(&self, _: BootSpec) -> Result<Box<dyn Vm>, VmmError> {
            self.asked.lock().unwrap().push("boot");
            Err(VmmError::Unavailable("it only notes".into()))
        }

        async fn restore(&self, _: RestoreSpec) -> Result<Box<dyn Vm>, VmmError> {
            self.asked.lock().unwrap().push("restore");
            Err(VmmError::Unavailable("it only notes".into()))
        }
    }

    fn class(version: &str) -> Compatibility {
        Compatibility {
            vmm: VmmKind::Qemu,
            vmm_version: version.into(),
            accelerator: "tcg".into(),
            format: 1,
            guest: String::new(),
            cpu: "tcg".into(),
            agent_abi: AGENT_ABI,
            vmm_format: None,
            cpu_features: None,
        }
    }

    fn noting(version: &str, mib: u32, loopback: bool) -> Arc<Noting> {
        Arc::new(Noting { class: class(version), asked: Mutex::default(), mib, loopback })
    }

    fn restore(version: &str) -> RestoreSpec {
        RestoreSpec {
            id: "a".into(),
            base: None,
            snapshot_dir: PathBuf::new(),
            summary: SnapshotSummary {
                compatibility: class(version),
                vcpus: 1,
                memory_mib: 64,
                disk_bytes: 0,
                files: Vec::new(),
                touched: Vec::new(),
                halted: false,
            },
            network: Network::Isolated,
            work_dir: PathBuf::new(),
        }
    }

    #[tokio::test]
    async fn machines_boot_with_the_first_and_a_snapshot_resumes_where_it_fits() {
        let (first, older, oldest) = (noting("9.0.1", 1, false), noting("8.2.0", 3, true), noting("7.2.22", 2, false));
        let vmm = SideBySide::new(first.clone(), vec![older.clone(), oldest.clone()]);
        let boot = BootSpec {
            id: "a".into(),
            vcpus: 1,
            memory_mib: 64,
            disk: Disk::Direct { path: PathBuf::new() },
            network: Network::Isolated,
            work_dir: PathBuf::new(),
        };
        assert!(vmm.boot(boot).await.is_err());
        for version in ["7.2.1", "9.0.0", "8.2.9", "6.0.0"] {
            assert!(vmm.restore(restore(version)).await.is_err());
        }
        let asked = |driver: &Noting| driver.asked.lock().unwrap().clone();
        // What fits nowhere is refused by the first.
        assert_eq!(asked(&first), ["boot", "restore", "restore"]);
        assert_eq!((asked(&older), asked(&oldest)), (vec!["restore"], vec!["restore"]));
        for version in ["7.2.1", "9.0.0", "8.2.9"] {
            assert_eq!(vmm.conflict(&class(version)), None, "{version}");
        }
        let conflict = vmm.conflict(&class("6.0.0")).unwrap();
        assert_eq!(conflict, "the snapshot's VMM version is 6.0.0, this host's is 9.0.1");
    }

    #[test]
    fn together_they_cost_and_reach_what_any_of_them_does() {
        let (first, older) = (noting("9.0.1", 1, false), noting("8.2.0", 3, true));
        let vmm = SideBySide::new(first.clone(), vec![older.clone()]);
        assert_eq!((vmm.overhead_mib(2), vmm.template_memory_mib()), (6, 4));
        assert!(vmm.guests_reach_loopback() && !vmm.enforces_egress());
        assert_eq!(vmm.walls(), "walls false; under version 8.2.0: walls true");
        assert_eq!((vmm.kind(), vmm.compatibility()), (VmmKind::Qemu, &first.class));
        let real = Compatibility { accelerator: "kvm".into(), ..class("9.0.1") };
        let real = Arc::new(Noting { class: real, asked: Mutex::default(), mib: 1, loopback: false });
        assert!(SideBySide::new(real, vec![older.clone()]).is_slow(), "the older one runs in software");
        vmm.trim_templates();
        assert_eq!((first.asked.lock().unwrap().len(), older.asked.lock().unwrap().len()), (1, 1));
    }
}
