//! A snapshot of a machine that was itself restored, and that lives on.
//!
//! Its memory is a private mapping of a template's, which QEMU cannot leave out of a migration stream. The snapshot must
//! cost a restore no more than another, and must not depend on the template's folder:
//!
//! ```text
//!   memory   machine ── migrate, all of it, over a socket ──> a second QEMU that never runs, with memory shared with us
//!                                                             and is snapshotted as a machine that was booted
//!   disk     the template's overlays, linked or copied; and on top a copy of the machine's own
//! ```
//!
//! Merging the overlays instead (QMP `block-stream`) was tried: QEMU up to 8.0 aborts on subclusters in it.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;

use super::machine::Machine;
use super::qmp::timed_out;
use super::snapshot::{self, MIGRATION};
use crate::{SnapshotSummary, Vm, VmmError};

impl Machine {
    /// Snapshots a restored machine, which stays paused and may be resumed.
    pub(super) async fn snapshot_of_restored(&self, folder: &Path) -> Result<SnapshotSummary, VmmError> {
        let failed = |source| VmmError::Io { context: "make a socket for a migration".into(), source };
        let (outlet, inlet) = StdUnixStream::pair().map_err(failed)?;
        let receiver = Arc::clone(&self.maker).receiver(self, inlet.into()).await?;
        let outcome = async {
            bounded(self.send_to(&receiver, outlet.into())).await?;
            receiver.take_disk_of(self, folder).await?;
            receiver.take_snapshot(folder).await
        };
        let outcome = outcome.await;
        let killed = receiver.kill().await;
        let summary = outcome?;
        killed.map(|()| summary)
    }

    async fn send_to(&self, receiver: &Machine, outlet: OwnedFd) -> Result<(), VmmError> {
        let (ours, theirs) = (&self.running.monitor, &receiver.running.monitor);
        let before = ours.observed().migrations;
        ours.send("migrate-set-capabilities", snapshot::capabilities(false), None).await?.answer().await?;
        snapshot::migrate(ours, outlet.as_fd()).await?;
        drop(outlet);
        tokio::try_join!(snapshot::ended(ours, before), snapshot::ended(theirs, 0))?;
        Ok(())
    }

    /// Gives the receiver the machine's layers and a copy of its overlay, which QEMU has flushed at the end of the
    /// migration.
    async fn take_disk_of(&self, machine: &Machine, folder: &Path) -> Result<(), VmmError> {
        let failed = |source| VmmError::Io { context: "copy the machine's disk".into(), source };
        let folder = folder.to_path_buf();
        let disk = machine.own().disk.clone();
        let copy = move || disk.copy_to(&folder);
        let copied = tokio::task::spawn_blocking(copy).await.map_err(|error| failed(error.into()))?;
        self.own().disk = Arc::new(copied.map_err(failed)?);
        Ok(())
    }
}

async fn bounded<T>(run: impl Future<Output = Result<T, VmmError>>) -> Result<T, VmmError> {
    tokio::time::timeout(MIGRATION, run).await.unwrap_or_else(|_| Err(timed_out("migrate", MIGRATION)))
}
