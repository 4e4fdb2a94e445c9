//! What an attempt of a build holds on this host, until nothing of it is left.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nullspace_data::{ArtifactStore, DataError, RootfsPin, Scratch};
use nullspace_types::BuildId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::disk::{Disk, Writing};
use crate::machine::SharedMachine;

/// What a build holds on this host.
pub(crate) struct Scope {
    scratch: Mutex<Option<Arc<Scratch>>>,
    /// What the machine's disk lies on.
    root: Mutex<Option<RootfsPin>>,
    /// Shared with the task that boots it.
    pub(super) machine: Arc<Mutex<Option<SharedMachine>>>,
    /// Cancelled when the disk runs full and this build has written most of late.
    pub(crate) overran: CancellationToken,
    /// The folder, among those that are looked at when the disk runs full.
    writing: Mutex<Option<Writing>>,
    /// Threads and tasks of the build; the folder stays until they are done.
    pub(crate) tasks: TaskTracker,
    /// Tells those threads and tasks to stop.
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

    /// The build's folder, made when first asked for.
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

    /// Keeps a raw root image where it is as long as the build runs, or until its next machine uses another.
    pub(crate) fn keep_root(&self, root: RootfsPin) {
        *self.root.lock().unwrap_or_else(PoisonError::into_inner) = Some(root);
    }

    /// What the build's machine printed last, for the log of one that failed; nothing once it has ended.
    pub(crate) fn console_tail(&self) -> Option<String> {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine.as_ref().map(|machine| machine.vm.console_tail())
    }

    /// Whether the machine has failed to write for want of room on the host's disk: what its guest holds for written is
    /// not there.
    pub(crate) fn lost_writes(&self) -> bool {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner);
        machine.as_ref().is_some_and(|machine| machine.vm.has_lost_writes())
    }

    /// Whether a machine runs.
    pub(crate) fn has_machine(&self) -> bool {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Ends the machine and waits until nothing of it is left.
    pub(crate) async fn end_machine(&self) {
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(machine) = machine {
            machine.end().await;
        }
    }

    /// Ends everything; returns when nothing of the build is left on the host but what it published.
    pub(crate) async fn close(&self) {
        self.cancel.cancel();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(60), self.tasks.wait()).await.is_err() {
            tracing::error!(build = %self.build, "threads of a build do not end");
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
