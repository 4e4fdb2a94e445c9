//! A machine under QEMU.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nullspace_guest::message::GuestNetwork;
use serde_json::Value;

use super::Driver;
use super::disk::{OVERLAY, Overlay};
use super::launch::Running;
use super::snapshot::{self, MANIFEST, MEMORY, Manifest, STATE};
use crate::{AgentStream, SnapshotSummary, Vm, VmmError};

/// Bound of a monitor command that takes microseconds, on a host that is busy. `stop` flushes the disk's metadata.
const COMMAND: Duration = Duration::from_secs(30);

/// A QEMU and what is kept of its machine on our side.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) id: String,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
    pub(super) disk_bytes: u64,
    pub(super) guest_network: Option<GuestNetwork>,
    pub(super) manifest: Manifest,
    pub(super) running: Running,
    pub(super) own: Mutex<Own>,
    /// A snapshot ended QEMU on purpose.
    pub(super) snapshotted: AtomicBool,
    pub(super) driver: Arc<Driver>,
}

/// What goes with the machine, or into its snapshot.
#[derive(Debug, Default)]
pub(super) struct Own {
    /// Memory of a machine that was booted; a restored one maps its template's.
    pub(super) memory: Option<File>,
    /// Its disk, unless it writes to a raw image.
    pub(super) overlay: Option<Overlay>,
}

impl Machine {
    async fn command(&self, command: &'static str) -> Result<Value, VmmError> {
        self.explain(self.running.monitor.execute(command, Value::Null, COMMAND).await).await
    }

    /// Replaces "the monitor closed" by how QEMU ended.
    async fn explain<T>(&self, result: Result<T, VmmError>) -> Result<T, VmmError> {
        match result {
            Err(VmmError::Exited(_)) => Err(VmmError::Exited(self.running.how_it_ended().await)),
            other => other,
        }
    }

    async fn take_snapshot(&self, folder: &Path) -> Result<SnapshotSummary, VmmError> {
        let status = self.command("query-status").await?;
        if status["status"].as_str() != Some("paused") {
            return Err(refused(format!("the machine is not paused but {}", status["status"])));
        }
        let (Some(memory), overlay) = self.take_own() else {
            return Err(refused("only a machine that was booted, and once, can be snapshotted".into()));
        };
        self.explain(snapshot::write_state(&self.running.monitor, folder).await).await?;
        // Its state is out and its disk is flushed to the page cache. From here on the files must not change any more,
        // and a guest that took QEMU over could change them.
        self.snapshotted.store(true, Ordering::SeqCst);
        self.running.process.kill().await?;
        let mut files = vec![MEMORY.to_owned(), STATE.to_owned(), MANIFEST.to_owned()];
        if overlay.is_some() {
            files.push(OVERLAY.to_owned());
        }
        let (target, manifest, size) = (folder.to_path_buf(), self.manifest.clone(), self.disk_bytes);
        let templates = self.driver.templates.clone();
        let write = move || -> Result<(), VmmError> {
            let overlay = overlay.map(|overlay| (overlay, size));
            let file = snapshot::write_files(&target, &memory, overlay, &manifest)?;
            templates.put(&file, memory);
            Ok(())
        };
        tokio::task::spawn_blocking(write)
            .await
            .map_err(|error| VmmError::Io { context: "write a snapshot".into(), source: error.into() })??;
        Ok(SnapshotSummary {
            compatibility: self.driver.compatibility.clone(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            disk_bytes: self.disk_bytes,
            files,
        })
    }

    fn take_own(&self) -> (Option<File>, Option<Overlay>) {
        let mut own = self.own();
        match own.memory.take() {
            Some(memory) => (Some(memory), own.overlay.take()),
            None => (None, None), // a restored machine keeps its overlay
        }
    }

    fn own(&self) -> MutexGuard<'_, Own> {
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
        if self.running.process.has_exited() {
            return Err(VmmError::Exited(self.running.how_it_ended().await));
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

    /// Ends QEMU on the way, so that nothing can change the files any more: afterwards the machine can only be killed.
    async fn snapshot(&self, dir: &Path) -> Result<SnapshotSummary, VmmError> {
        let taken = self.take_snapshot(dir).await;
        if taken.is_err() {
            snapshot::discard(dir);
        }
        taken
    }

    async fn exited(&self) -> String {
        let how = self.running.how_it_ended().await;
        if self.snapshotted.load(Ordering::SeqCst) {
            // It was ended by the snapshot, which is no event of its own.
            std::future::pending::<()>().await;
        }
        how
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
