//! The resources of an attempt on this host, and their release.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nullspace_api::TemplateFailurePhase as Phase;
use nullspace_data::{ArtifactStore, DataError, PublishedArtifact, RootfsPin, Scratch};
use nullspace_host_interface::BuildFailure;
use nullspace_service::chain;
use nullspace_types::{ArtifactId, BuildId, Streams};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Error;
use crate::admission::Permit;
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
    /// Name of the published artifact, with the store that has it, until the attempt counts as made.
    published: Arc<Mutex<Option<(ArtifactStore, String)>>>,
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
            published: Arc::default(),
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

    /// Ends the machine, and waits until its resources are released. Returns its admission, for a next machine.
    pub(crate) async fn end_machine(&self) -> Option<Permit> {
        // It stays in its place until it has ended: this future may be dropped.
        let machine = self.machine.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let permit = machine.end_for_next().await;
        self.machine.lock().unwrap_or_else(PoisonError::into_inner).take();
        permit
    }

    /// Publishes an artifact. [`Scope::close`] removes it again, unless [`Scope::keep_published`] is called before.
    pub(crate) async fn publish(
        &self,
        files: &ArtifactStore,
        dir: PathBuf,
        artifact: ArtifactId,
        similar: Vec<Streams>,
    ) -> Result<PublishedArtifact, Error> {
        // A task: a publication runs to its end, whether or not this future is dropped.
        let publishing = self.tasks.spawn({
            let (files, slot) = (files.clone(), Arc::clone(&self.published));
            async move {
                let published = files.publish_artifact(&dir, artifact, similar).await?;
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some((files, published.folder.clone()));
                Ok::<_, DataError>(published)
            }
        });
        let published = publishing.await.map_err(|error| BuildFailure::internal(Phase::Finalize, &error))?;
        Ok(published?)
    }

    /// Keeps the published artifact: the attempt has made it.
    pub(crate) fn keep_published(&self) {
        self.published.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Removes the published artifact of an attempt that has failed or was stopped.
    async fn discard_published(&self) {
        let published = self.published.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((files, folder)) = published else { return };
        if let Err(error) = files.remove_artifact(&folder).await {
            tracing::warn!(error = %chain(&error), folder, "an artifact without a name could not be removed");
        }
    }

    /// Ends everything. Returns when only the files of a finished attempt are left on the host.
    pub(crate) async fn close(&self) {
        self.cancel.cancel();
        self.tasks.close();
        if tokio::time::timeout(Duration::from_secs(60), self.tasks.wait()).await.is_err() {
            tracing::error!(build = %self.build, "threads of a build have not ended in time");
        }
        // Last: one of the tasks may have been booting it.
        drop(self.end_machine().await);
        self.discard_published().await;
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(scratch) = scratch {
            // Removing a folder of gigabytes takes a while.
            let _ = tokio::task::spawn_blocking(move || drop(scratch)).await;
        }
        drop(self.writing.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

#[cfg(test)]
mod tests {
    use nullspace_types::KnownFiles;

    use super::*;

    fn made(files: &ArtifactStore) -> (Scratch, PathBuf) {
        let scratch = files.scratch().unwrap();
        let made = scratch.path().join("snapshot");
        std::fs::create_dir(&made).unwrap();
        std::fs::write(made.join("memory"), "bytes").unwrap();
        (scratch, made)
    }

    /// Stored files that stay in a collection, though the database names none.
    async fn held(files: &ArtifactStore) -> u64 {
        let known = async { Ok::<_, DataError>(KnownFiles::default()) };
        files.collect_images(known).await.unwrap();
        files.image_stats().manifests
    }

    #[tokio::test]
    async fn only_the_artifact_of_a_finished_attempt_stays() {
        let folder = tempfile::tempdir().unwrap();
        let files = ArtifactStore::open(folder.path()).unwrap();
        for (finished, left) in [(false, 0), (true, 1)] {
            let scope = Scope::new(BuildId::new());
            let (scratch, dir) = made(&files);
            scope.publish(&files, dir, ArtifactId::new(), Vec::new()).await.unwrap();
            assert_eq!(held(&files).await, 1);
            if finished {
                scope.keep_published();
            }
            scope.close().await;
            assert_eq!(held(&files).await, left);
            drop(scratch);
        }
    }

    #[tokio::test]
    async fn a_publication_that_nobody_waits_for_any_more_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let files = ArtifactStore::open(folder.path()).unwrap();
        let scope = Scope::new(BuildId::new());
        let (_scratch, dir) = made(&files);
        {
            let publish = scope.publish(&files, dir, ArtifactId::new(), Vec::new());
            let mut publish = std::pin::pin!(publish);
            // Begun, and dropped before it has an answer.
            assert!(futures::poll!(publish.as_mut()).is_pending());
        }
        scope.close().await;
        assert_eq!(held(&files).await, 0);
    }
}
