//! The trial of a new snapshot: it is restored once before its build counts as ready.
//!
//! ```text
//!   snapshot/ ──┬─ publish ── flushed, renamed ────────────────────────────────────> artifact
//!               └─ hard links ── trial/snapshot ── VMM ── identity ── an answer ── machine ended
//! ```
//! Both run side by side. The links are names of the same files, so the publication may rename or remove the first ones. The
//! trial writes to an overlay of its own and reaches no network, and no resume hook runs in it. Processes from before the
//! snapshot do go on, as in every sandbox.
//!
//! The trial reads memory, devices and disk from the files that were written, as sandboxes do from then on: the publication makes
//! the same files the raw ones of the cache. No driver keeps anything of the machine that was snapshotted. The chunks are not
//! read back here. They are verified by their hashes at each reading.
//!
//! The parts of the memory that the machine used up to its answer go into the snapshot's description.
//!
//! The trial has the admission of the build's machine, which has ended before it begins and had the same memory and vCPUs. So it
//! counts for the host and for the tenant's quota, a full host does not hold it up, and a build has one machine at a time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use nullspace_api::TemplateFailurePhase as Phase;
use nullspace_guest::host::AgentError;
use nullspace_host_interface::{BuildFailure, reason};
use nullspace_service::chain;
use nullspace_vmm::{EndCause, Ended, Network, RestoreSpec, SnapshotSummary, VmmError};

use super::boot::machine_id;
use super::prepare::{Prepared, unreadable};
use super::{Attempt, Error};
use crate::admission::Permit;
use crate::machine::{Machine, MachineError};

/// A snapshot with names of its own for its files, so that it can be restored while it is published.
pub(super) struct Trial {
    /// Folder of the links.
    snapshot_dir: PathBuf,
    /// Empty folder of the machine.
    work_dir: PathBuf,
    summary: SnapshotSummary,
    permit: Permit,
}

impl Trial {
    /// Links the snapshot's files. Call it before the publication begins.
    pub(super) fn prepare(
        attempt: &Attempt,
        snapshot: &Path,
        summary: SnapshotSummary,
        permit: Permit,
    ) -> Result<Trial, Error> {
        let Attempt { builder, scope, .. } = attempt;
        let folder = scope.scratch(&builder.files, &builder.disk)?.path().join("trial");
        let (snapshot_dir, work_dir) = (folder.join("snapshot"), folder.join("machine"));
        let link = || {
            std::fs::create_dir(&folder)?;
            std::fs::create_dir(&work_dir)?;
            link_files(snapshot, &snapshot_dir, &summary.files)
        };
        link().map_err(|error| BuildFailure::own(Phase::Snapshot, &error))?;
        Ok(Trial { snapshot_dir, work_dir, summary, permit })
    }

    /// Restores the snapshot, asks its agent a question, and ends the machine. Returns the parts of the memory that it has used,
    /// as in [`SnapshotSummary::touched`].
    pub(super) async fn run(self, attempt: &Attempt, prepared: &Prepared) -> Result<Vec<(u32, u32)>, Error> {
        let Attempt { builder, job, record, log, scope, .. } = attempt;
        let Trial { snapshot_dir, work_dir, summary, permit } = self;
        let began = Instant::now();
        let root = builder.files.open_rootfs(&prepared.rootfs).await.map_err(unreadable)?;
        let spec = RestoreSpec {
            id: machine_id("trial", job),
            base: Some(root.path().to_owned()),
            snapshot_dir,
            summary,
            network: Network::Isolated,
            work_dir,
        };
        scope.keep_root(root);
        // A task of the scope's, as the boot of the build's machine is.
        let trying = scope.tasks.spawn({
            let (vmm, cancel, held) =
                (Arc::clone(&builder.machines.vmm), scope.cancel.clone(), Arc::clone(&scope.machine));
            async move {
                let machine = Machine::restore_in_trial(vmm.as_ref(), spec, permit, &cancel).await?;
                // A hint that another restore may do without.
                let touched = machine.vm.touched().await.unwrap_or_default();
                *held.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(machine));
                Ok(touched)
            }
        });
        let tried = trying.await.map_err(|error| BuildFailure::internal(Phase::Snapshot, &error))?;
        let touched = tried.map_err(|error| failed(&error))?;
        let took = began.elapsed();
        drop(scope.end_machine().await);
        record.phase("trial", took);
        log.say("snapshot", format!("Snapshot restored in trial in {} ms", took.as_millis())).await?;
        let pages: u64 = touched.iter().map(|(_, pages)| u64::from(*pages)).sum();
        tracing::debug!(runs = touched.len(), mib = pages >> 8, "memory that the trial used");
        Ok(touched)
    }
}

/// Gives files of one folder a second name in another, new folder.
fn link_files(from: &Path, to: &Path, names: &[String]) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    names.iter().try_for_each(|name| std::fs::hard_link(from.join(name), to.join(name)))
}

/// The failure of a build whose snapshot could not be restored. The next attempt makes another snapshot.
fn failed(error: &MachineError) -> BuildFailure {
    let message = match error {
        MachineError::Cancelled => {
            let message = "the trial of the snapshot was given up";
            return BuildFailure::infrastructure(Phase::Interrupted, reason::INTERNAL, message);
        }
        MachineError::Vmm(error) if error.is_storage_full() => return BuildFailure::host_disk_full(Phase::Snapshot),
        MachineError::Vmm(VmmError::Timeout { what, limit_ms }) => {
            format!("the new snapshot was not restored in time: {what} took over {limit_ms} ms")
        }
        MachineError::Vmm(VmmError::Incompatible(why)) => {
            format!("the new snapshot cannot be restored on the host that made it: {why}")
        }
        MachineError::Vmm(VmmError::Unavailable(why)) => format!("this host cannot restore the new snapshot: {why}"),
        MachineError::Ended(Ended { cause: EndCause::Signal(signal), .. }) => {
            format!("the machine that was restored from the new snapshot was killed on this host (signal {signal})")
        }
        MachineError::Ended(_) | MachineError::Vmm(VmmError::Exited(_)) | MachineError::Agent(AgentError::Closed) => {
            "the machine that was restored from the new snapshot ended by itself".to_owned()
        }
        MachineError::Agent(AgentError::Timeout { limit_ms, .. }) => {
            format!("the machine that was restored from the new snapshot did not answer within {limit_ms} ms")
        }
        MachineError::Agent(AgentError::Silent { secs }) => {
            format!("the machine that was restored from the new snapshot did not answer for {secs} s")
        }
        MachineError::Vmm(_) | MachineError::Agent(_) | MachineError::Root(_) => {
            "the new snapshot could not be restored".to_owned()
        }
    };
    tracing::warn!(error = %chain(error), "a new snapshot failed its trial");
    BuildFailure::infrastructure(Phase::Snapshot, reason::SNAPSHOT_TRIAL_FAILED, message)
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn every_failure_of_a_trial_is_retried_and_says_what_happened() {
        let timeout = || VmmError::Timeout { what: "starting".into(), limit_ms: 60_000 };
        let silent = AgentError::Timeout { what: "restored", limit_ms: 30_000 };
        let ended = |cause| MachineError::Ended(Ended { cause, how: String::new() });
        let errors: [(MachineError, &str); 8] = [
            (ended(EndCause::Signal(9)), "killed on this host (signal 9)"),
            (ended(EndCause::Vmm), "ended by itself"),
            (timeout().into(), "starting took over 60000 ms"),
            (VmmError::Exited("signal 9".into()).into(), "ended by itself"),
            (VmmError::Refused { context: "load".into(), message: "x".into() }.into(), "could not be restored"),
            (VmmError::Incompatible("the CPU differs".into()).into(), "the CPU differs"),
            (silent.into(), "did not answer within 30000 ms"),
            (AgentError::Closed.into(), "ended by itself"),
        ];
        for (error, words) in errors {
            let failure = failed(&error);
            assert_eq!(failure.reason, reason::SNAPSHOT_TRIAL_FAILED, "{failure}");
            assert_eq!((failure.phase, failure.retryable), (Phase::Snapshot, true), "{failure}");
            assert!(failure.message.contains(words) && !failure.suggested_action.is_empty(), "{failure}");
        }
    }

    #[test]
    fn a_full_disk_and_a_cancel_keep_their_own_reasons() {
        let full = VmmError::Io { context: "make an overlay".into(), source: Error::from(ErrorKind::StorageFull) };
        let full = failed(&full.into());
        assert_eq!((full.reason, full.phase, full.retryable), (reason::HOST_DISK_FULL, Phase::Snapshot, true));
        let cancelled = failed(&MachineError::Cancelled);
        assert_eq!((cancelled.phase, cancelled.retryable), (Phase::Interrupted, true));
    }

    #[test]
    fn the_trials_names_outlive_a_publication_of_the_same_files() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("snapshot"), folder.path().join("links"));
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("memory"), "bytes").unwrap();
        let before = std::fs::metadata(from.join("memory")).unwrap();
        link_files(&from, &to, &["memory".to_owned()]).unwrap();
        std::fs::rename(&from, folder.path().join("artifact")).unwrap();
        let after = std::fs::metadata(to.join("memory")).unwrap();
        // The same file to a driver that remembers which memory it has loaded.
        assert_eq!((after.ino(), after.len()), (before.ino(), before.len()));
        assert_eq!(after.modified().unwrap(), before.modified().unwrap());
        std::fs::remove_dir_all(folder.path().join("artifact")).unwrap();
        assert_eq!(std::fs::read(to.join("memory")).unwrap(), b"bytes");
        assert!(link_files(&to, &folder.path().join("more"), &["state".to_owned()]).is_err(), "a file is missing");
    }
}
