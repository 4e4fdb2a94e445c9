//! The resources of an attempt on this host, and their release.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nullspace_data::{ArtifactStore, DataError, RootfsPin, Scratch};
use nullspace_types::BuildId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::disk::{Disk, Writing};
use crate::machine::SharedMachine;

/// The resources of a build on this host.
pub(crate) struct Scope {
    scratch: Mutex<Option<Arc<Scratch>>>,
    /// Keeps the root image under the machine's disk.
    root: Mutex<Option<RootfsPin>>,
    /// Shared with the task that boots it.
    pub(super) machine: Arc<Mutex<Option<SharedMachine>>>,
    /// Cancelled when the disk runs full and this build has written most recently.
    pub(crate) overran: CancellationToken,
    /// The folder, registered for the check of the disk.
    writing: Mutex<Option<Writing>>,
    /// Threads and tasks of the build. The folder stays until they have ended.
    pub(crate) tasks: TaskTracker,
    /// Stops those threads and tasks.
    pub(crate) cancel: CancellationToken,
    build: BuildId,
}

impl Scope {
    pub(crate) fn new(build: BuildId) -> Scope {
        Scope {
            scratch: Mutex::new(None),
            root: Mutex::new(None),
            machine: Arc::default(),
            overran: CancellationToken::new(),
            writing: Mutex::default(),
            tasks: TaskTracker::new(),
            cancel: CancellationToken::new(),
            build,
        }
    }

    /// The build's folder. The first call makes it.
    pub(crate) fn scratch(&self, files: &ArtifactStore, disk: &Disk) -> Result<Arc<Scratch>, DataError> {
        let mut slot = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scratch) = &*slot {
            return Ok(Arc::clone(scratch));
        }
        let scratch = Arc::new(files.scratch()?);
        let writing = disk.enter(scratch.path(), self.overran.clone());
        let machine = Arc::clone(&self.machine);
        writing.count(move || {
            let machine = machine.lock().unwrap_or_else(PoisonError::into_inner).clone();
            machine.map_or(0, |machine| machine.vm.nameless_bytes())
        });
        *self.writing.lock().unwrap_or_else(PoisonError::into_inner) = Some(writing);
        *slot = Some(Arc::clone(&scratch));
        Ok(scratch)
    }

    /// Keeps a raw root image while the build runs, or until its next machine uses another.
    pub(crate) fn keep_root(&self, root: RootfsPin) {
        *self.root.lock().unwrap_or_else(PoisonError::into_inner) = Some(root);
    }

    /// The last console output of the build's machine, for the log of a failed build. `None` once the machine has ended.
    pub(crate) fn console_tail(&self) -> Option<String> {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine.as_ref().map(|machine| machine.vm.console_tail())
    }

    /// Whether the machine has failed to write because the host's disk was full. Its disk then lacks data that the guest has
    /// written.
    pub(crate) fn lost_writes(&self) -> bool {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine.as_ref().is_some_and(|machine| machine.vm.has_lost_writes())
    }

    /// Whether a machine runs.
    pub(crate) fn has_machine(&self) -> bool {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Ends the machine, and waits until its resources are released.
    pub(crate) async fn end_machine(&self) {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(machine) = machine {
            machine.end().await;
        }
    }

    /// Ends everything. Returns when only the published files of the build are left on the host.
    pub(crate) async fn close(&self) {
        self.cancel.cancel();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(60), self.tasks.wait()).await.is_err() {
            tracing::error!(build = %self.build, "threads of a build have not ended in time");
        }
        // Last: one of the tasks may have been booting it.
        self.end_machine().await;
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(scratch) = scratch {
            // Removing a folder of gigabytes takes a while.
            let _ = tokio::task::spawn_blocking(move || drop(scratch)).await;
        }
        drop(self.writing.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
