//! A machine under QEMU.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nullspace_guest::message::GuestNetwork;
use nullspace_types::EgressPolicy;
use serde_json::Value;

use super::disk::Written;
use super::launch::Running;
use super::lineage::Origin;
use super::snapshot::{self, CardKind, Manifest};
use crate::net::{self, EgressControl};
use crate::touched;
use crate::usage::Counted;
use crate::{AgentStream, Compatibility, DiskChanges, Ended, Network, SnapshotSummary, Vm, VmUsage, VmmError};

/// Bound of a monitor command that takes microseconds, on a host that is busy. `stop` flushes the disk's metadata.
const COMMAND: Duration = Duration::from_secs(30);

/// A QEMU process and the host's side of its machine.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) id: String,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
    pub(super) disk_bytes: u64,
    pub(super) network: Network,
    pub(super) guest_network: Option<GuestNetwork>,
    /// `None` when it is isolated or on the user network.
    pub(super) egress: Option<EgressControl>,
    /// The class of its snapshots.
    pub(super) compatibility: Compatibility,
    pub(super) manifest: Manifest,
    /// Its memory is a private mapping of a template's.
    pub(super) restored: bool,
    /// The folder of its overlays.
    pub(super) work_dir: PathBuf,
    /// Held by a capture.
    pub(super) capturing: tokio::sync::Mutex<()>,
    pub(super) running: Running,
    pub(super) own: Mutex<Own>,
    /// A snapshot ended QEMU on purpose.
    pub(super) snapshotted: AtomicBool,
    /// The driver that made it.
    pub(super) maker: Arc<dyn Maker>,
}

/// The driver as its machines see it: the parts that a snapshot needs.
#[async_trait]
pub(super) trait Maker: std::fmt::Debug + Send + Sync {
    /// Starts a QEMU of the same shape as `machine` that takes in its state, memory included, from `inlet`, and never runs.
    /// Its disk is empty.
    async fn receiver(self: Arc<Self>, machine: &Machine, inlet: OwnedFd) -> Result<Machine, VmmError>;
}

/// Files that end with the machine, or go into its snapshot.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Memory of a machine that was booted; a restored one maps its template's.
    pub(super) memory: Option<File>,
    /// The layers of its disk that it writes.
    pub(super) disk: Arc<Written>,
    /// Number of captures so far.
    pub(super) captures: u32,
    /// What a restored machine was made from.
    pub(super) origin: Option<Arc<Origin>>,
    /// The folder of a snapshot to come, which has the template's part of the memory.
    pub(super) prepared: Option<PathBuf>,
    /// Number of times that the state of its devices was asked for.
    pub(super) states: u32,
}

impl Machine {
    async fn command(&self, command: &'static str) -> Result<Value, VmmError> {
        self.explain(self.running.monitor.execute(command, Value::Null, COMMAND).await).await
    }

    /// Replaces "the monitor closed" by how QEMU ended.
    pub(super) async fn explain<T>(&self, result: Result<T, VmmError>) -> Result<T, VmmError> {
        match result {
            Err(VmmError::Exited(_)) => Err(VmmError::Exited(self.running.how_it_ended().await.how)),
            other => other,
        }
    }

    /// Snapshots a machine whose memory is its own, which ends it.
    pub(super) async fn take_snapshot(&self, folder: &Path) -> Result<SnapshotSummary, VmmError> {
        let Own { memory: Some(memory), disk, .. } = std::mem::take(&mut *self.own()) else {
            return Err(refused("the machine was snapshotted before".into()));
        };
        self.explain(snapshot::write_state(&self.running.monitor, folder).await).await?;
        // Its state is out and its disk is flushed to the page cache. From here on the files must not change any more,
        // and a guest that took QEMU over could change them.
        self.snapshotted.store(true, Ordering::SeqCst);
        self.running.process.kill().await?;
        let (target, manifest) = (folder.to_path_buf(), self.manifest.clone());
        // The memory goes with the machine: whoever restores the snapshot reads what was written.
        let write = move || snapshot::write_files(&target, &memory, &disk, &manifest);
        let files = tokio::task::spawn_blocking(write)
            .await
            .map_err(|error| VmmError::Io { context: "write a snapshot".into(), source: error.into() })??;
        Ok(self.summary(files))
    }

    /// The description of a snapshot of it with these files.
    pub(super) fn summary(&self, files: Vec<String>) -> SnapshotSummary {
        SnapshotSummary {
            compatibility: self.compatibility.clone(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            disk_bytes: self.disk_bytes,
            files,
            touched: Vec::new(),
            halted: false,
        }
    }

    async fn snapshot_into(&self, folder: &Path) -> Result<SnapshotSummary, VmmError> {
        let status = self.command("query-status").await?;
        // After a snapshot of a restored machine, QEMU calls its pause another name.
        if !matches!(status["status"].as_str(), Some("paused" | "postmigrate")) {
            return Err(refused(format!("the machine is not paused but {}", status["status"])));
        }
        if self.restored {
            let taken = self.snapshot_of_restored(folder).await;
            return self.explain(taken).await;
        }
        self.take_snapshot(folder).await
    }

    pub(super) fn own(&self) -> MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refused(message: String) -> VmmError {
    VmmError::Refused { context: "take a snapshot".into(), message }
}

#[async_trait]
impl Vm for Machine {
    fn id(&self) -> &str {
        &self.id
    }

    fn guest_network(&self) -> Option<GuestNetwork> {
        self.guest_network.clone()
    }

    async fn agent(&self) -> Result<Box<dyn AgentStream>, VmmError> {
        if self.running.process.status().is_some() {
            return Err(VmmError::Exited(self.running.how_it_ended().await.how));
        }
        let failed = |source| VmmError::Io { context: "open the agent's stream".into(), source };
        Ok(Box::new(self.running.agent.connect().map_err(failed)?))
    }

    async fn pause(&self) -> Result<(), VmmError> {
        self.command("stop").await.map(drop)
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.command("cont").await.map(drop)
    }

    async fn capture(&self) -> Result<DiskChanges, VmmError> {
        self.take_changes().await
    }

    async fn prepare_snapshot(&self, dir: &Path) -> Result<(), VmmError> {
        self.prepare(dir).await
    }

    /// Ends a machine that was booted on the way, so that nothing can change the files any more: it can only be killed
    /// afterwards. One that was restored stays paused.
    async fn snapshot(&self, dir: &Path) -> Result<SnapshotSummary, VmmError> {
        let taken = self.snapshot_into(dir).await;
        if taken.is_err() {
            snapshot::discard(dir);
        }
        taken
    }

    async fn exited(&self) -> Ended {
        let how = self.running.how_it_ended().await;
        if self.snapshotted.load(Ordering::SeqCst) {
            // It was ended by the snapshot, which is no event of its own.
            std::future::pending::<()>().await;
        }
        how
    }

    fn has_lost_writes(&self) -> bool {
        self.running.monitor.observed().no_room
    }

    fn nameless_bytes(&self) -> u64 {
        let disk = Arc::clone(&self.own().disk);
        disk.nameless_bytes()
    }

    async fn touched(&self) -> Option<Vec<(u32, u32)>> {
        if !self.restored {
            return None;
        }
        let (pid, len) = (self.running.process.pid(), u64::from(self.memory_mib) << 20);
        let found = tokio::task::spawn_blocking(move || touched::touched(pid, len)).await.ok()?;
        found
            .inspect_err(
                |error| tracing::debug!(machine = self.id, %error, "the pages that a machine uses cannot be read"),
            )
            .ok()?
    }

    async fn usage(&self) -> Option<VmUsage> {
        let counted = Counted {
            pid: self.running.process.pid(),
            is_holder: false,
            owns_memory_file: !self.restored,
            has_tap: self.manifest.card == CardKind::Tap,
        };
        let used = tokio::task::spawn_blocking(move || counted.usage()).await.ok()?;
        // After its end, the pid may be another process's.
        used.ok().filter(|_| self.running.process.status().is_none())
    }

    async fn set_egress(&self, policy: &EgressPolicy) -> Result<(), VmmError> {
        match &self.egress {
            Some(egress) => egress.set(policy).await,
            None => Err(net::no_egress_control()),
        }
    }

    fn console_tail(&self) -> String {
        self.running.console.text()
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.running.process.kill().await?;
        let own = std::mem::take(&mut *self.own());
        // Gigabytes of guest memory, or a large file, are given back here.
        tokio::task::spawn_blocking(move || drop(own)).await.map_err(|error| VmmError::Io {
            context: format!("clean up after machine {}", self.id),
            source: error.into(),
        })
    }
}
