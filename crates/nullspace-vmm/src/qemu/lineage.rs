//! A snapshot of a machine that was itself restored, and that lives on.
//!
//! Its memory is a private mapping of a template's, which QEMU cannot leave out of a migration stream. The snapshot must
//! cost a restore no more than another, and must not depend on the template's folder. It should cost the machine what it has
//! changed since it was restored:
//!
//! ```text
//!   state    QMP xen-save-devices-state ── a file ──> sections of devices, behind the head of the template's state (stream.rs)
//!   memory   the template's, copied before the pause when the snapshot is announced; and over it the pages that are the
//!            process's own (dirty.rs)
//!   disk     the template's overlays, linked or copied; on top a copy of the machine's own; neighbours merged (disk.rs)
//! ```
//! Where that cannot be, all memory goes through a second machine: without the right to read the process; with QEMU's user
//! network, whose connections would be among the devices; with a QEMU whose stream is not known.
//!
//! ```text
//!   memory   machine ── migrate, all of it, over a socket ──> a second QEMU that never runs, with memory shared with us
//!                                                             and is snapshotted as a machine that was booted
//! ```

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::disk::Overlay;
use super::machine::Machine;
use super::qmp::timed_out;
use super::snapshot::{self, CardKind, MIGRATION};
use super::stream;
use crate::dirty::Dirty;
use crate::{Network, SnapshotSummary, Vm, VmmError, sparse};

/// Most bytes of a machine's device state: it has some tens of KiB.
const MOST_STATE: usize = 64 << 20;
/// Sets of descriptors that QEMU writes its devices to count up from here. Those of a disk's layers count up from 0.
const STATE_SETS: u32 = 1000;

/// The work on a snapshot's memory, for errors.
const MEMORY_WORK: &str = "write a machine's memory";
/// Name of the file of a device state where it must have one, until it has been read.
const STATE_PART: &str = "state.part";

/// What a restored machine was made from.
#[derive(Debug)]
pub(super) struct Origin {
    /// The memory that it maps privately.
    pub(super) memory: File,
    /// Its state, whose head serves the next one.
    pub(super) state: File,
}

/// The outcome of an attempt that may not be possible here.
enum Attempt {
    Done(Box<SnapshotSummary>),
    /// The reason, for the log.
    Impossible(String),
}

impl Machine {
    /// Copies the template's memory into the folder of a snapshot to come, while the machine runs.
    pub(super) async fn prepare(&self, folder: &Path) -> Result<(), VmmError> {
        let Some(origin) = self.own().origin.clone().filter(|_| !self.is_on_user_network()) else { return Ok(()) };
        let (target, len) = (folder.to_path_buf(), u64::from(self.memory_mib) << 20);
        let copied = blocking(MEMORY_WORK, move || {
            let memory = snapshot::new_memory(&target)?;
            let copied = sparse::copy(&origin.memory, &memory, len);
            if copied.is_err() {
                snapshot::discard(&target);
            }
            copied.map(|_| target)
        });
        let prepared = copied.await?;
        self.own().prepared = Some(prepared);
        Ok(())
    }

    /// True when its card is on QEMU's user network.
    fn is_on_user_network(&self) -> bool {
        self.manifest.card == CardKind::Plain && self.network == Network::Internet
    }

    /// Snapshots a restored machine, which stays paused and may be resumed.
    pub(super) async fn snapshot_of_restored(&self, folder: &Path) -> Result<SnapshotSummary, VmmError> {
        match self.snapshot_directly(folder).await? {
            Attempt::Done(summary) => Ok(*summary),
            Attempt::Impossible(reason) => {
                tracing::debug!(id = self.id, reason, "a snapshot takes all memory through a second machine");
                snapshot::discard(folder);
                self.snapshot_by_receiver(folder).await
            }
        }
    }

    async fn snapshot_directly(&self, folder: &Path) -> Result<Attempt, VmmError> {
        if self.is_on_user_network() {
            return Ok(Attempt::Impossible("its card is on the user network".into()));
        }
        // All at once: a kill takes them away.
        let (origin, disk, prepared) = {
            let mut own = self.own();
            (own.origin.clone(), own.disk.clone(), own.prepared.take().is_some_and(|prepared| prepared == folder))
        };
        let Some(origin) = origin else {
            return Ok(Attempt::Impossible("what it was restored from is not known".into()));
        };
        let (pid, len) = (self.running.process.pid(), u64::from(self.memory_mib) << 20);
        let dirty = match blocking("find a machine's memory", move || Dirty::find(pid, len)).await {
            Ok(dirty) => dirty,
            Err(VmmError::Io { source, .. }) => {
                return Ok(Attempt::Impossible(format!("its memory cannot be read: {source}")));
            }
            Err(error) => return Err(error),
        };
        let before = Arc::clone(&origin);
        let before = blocking("read a machine's first state", move || read_bounded(&before.state)).await?;
        let Some(head) = stream::head(&before) else {
            return Ok(Attempt::Impossible("the state that it was restored from is of another kind".into()));
        };
        let devices = match bounded(self.device_state(folder)).await {
            Ok(devices) => devices,
            Err(VmmError::Refused { message, .. }) => return Ok(Attempt::Impossible(message)),
            Err(error) => return Err(error),
        };
        let Some(body) = stream::body(&devices) else {
            return Ok(Attempt::Impossible("the state of its devices is of another kind".into()));
        };
        let state = [head, body].concat();

        // A process that makes its own memory unreadable is not waited for.
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let target = folder.to_path_buf();
        let memory = blocking(MEMORY_WORK, move || {
            if stop.is_cancelled() {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            let (template, file) = match prepared {
                true => (None, snapshot::open_memory(&target)?),
                false => (Some(&origin.memory), snapshot::new_memory(&target)?),
            };
            dirty.write(template, &file, &|| stop.is_cancelled()).map(drop)
        });
        let (target, manifest) = (folder.to_path_buf(), self.manifest.clone());
        let others = async {
            let work = move || {
                let failed = |source| VmmError::Io { context: "copy the machine's disk".into(), source };
                let disk = disk.copy_to(&target).map_err(failed)?;
                snapshot::write_others(&target, &state, &disk, &manifest)
            };
            let done = tokio::task::spawn_blocking(work).await;
            done.map_err(|error| VmmError::Io { context: "write a snapshot".into(), source: error.into() })?
        };
        let ((), files) = bounded(async { tokio::try_join!(memory, others) }).await?;
        Ok(Attempt::Done(Box::new(self.summary(files))))
    }

    /// The state of its devices and processors, without any memory. QEMU flushes the disk on the way.
    async fn device_state(&self, folder: &Path) -> Result<Vec<u8>, VmmError> {
        const READ: &str = "read a machine's state";
        let folder = folder.to_path_buf();
        // A file of its own: QEMU keeps it open, since it closes descriptors of a set only while the machine runs.
        let (part, ours, theirs) = blocking(READ, move || {
            let part = Overlay::new(&folder, STATE_PART)?;
            let ours = part.file()?;
            // QEMU takes a descriptor of a set only for exactly what it was opened for.
            let theirs = File::options().write(true).open(format!("/proc/self/fd/{}", ours.as_raw_fd()))?;
            Ok((part, ours, theirs))
        })
        .await?;
        let set = {
            let mut own = self.own();
            own.states += 1;
            STATE_SETS + own.states
        };
        let monitor = &self.running.monitor;
        let add = monitor.send("add-fd", json!({ "fdset-id": set }), Some(theirs.as_fd())).await?;
        // Not live: the disk stays this machine's.
        let target = json!({ "filename": format!("/dev/fdset/{set}"), "live": false });
        let save = monitor.send("xen-save-devices-state", target, None).await?;
        let remove = monitor.send("remove-fd", json!({ "fdset-id": set }), None).await?;
        add.answer().await?;
        let saved = save.answer().await;
        remove.answer().await?;
        saved?;
        blocking(READ, move || {
            let _part = part;
            read_bounded(&ours)
        })
        .await
    }

    async fn snapshot_by_receiver(&self, folder: &Path) -> Result<SnapshotSummary, VmmError> {
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
        let folder = folder.to_path_buf();
        let disk = machine.own().disk.clone();
        let copied = blocking("copy the machine's disk", move || disk.copy_to(&folder)).await?;
        self.own().disk = Arc::new(copied);
        Ok(())
    }
}

fn read_bounded(file: &File) -> std::io::Result<Vec<u8>> {
    let len = usize::try_from(file.metadata()?.len()).ok().filter(|len| *len <= MOST_STATE);
    // The descriptor's position is QEMU's too.
    let mut bytes = vec![0; len.ok_or(std::io::ErrorKind::FileTooLarge)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

async fn blocking<T: Send + 'static>(
    context: &'static str,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, VmmError> {
    let done = tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(error.into()));
    done.map_err(|source| VmmError::Io { context: context.into(), source })
}

async fn bounded<T>(run: impl Future<Output = Result<T, VmmError>>) -> Result<T, VmmError> {
    tokio::time::timeout(MIGRATION, run).await.unwrap_or_else(|_| Err(timed_out("migrate", MIGRATION)))
}
