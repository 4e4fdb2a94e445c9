//! A machine under Firecracker, and the files of its snapshots.
//!
//! ```text
//!   <snapshot folder>/state         Firecracker's device state
//!                     memory        the guest's memory, zero pages as holes
//!                     disk.raw      the whole disk as the guest left it, holes kept
//!                     machine.json  what the restoring driver must know (Description)
//! ```
//!
//! The disk is whole, not a difference to its base: any host can give a sandbox a copy of it in the way that its
//! filesystem is best at, and the content-addressed store keeps equal parts once. A booted machine's disk is moved into
//! the snapshot, which costs nothing; only a machine that was itself restored, and lives on, has its disk copied.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use nullspace_guest::message::GuestNetwork;
use nullspace_types::EgressPolicy;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::agent;
use super::api::Api;
use super::capture::Tracked;
use super::exit::ended;
use super::files;
use super::folder::Folder;
use super::jail::{DISK, VSOCK};
use crate::net::{self, EgressControl};
use crate::process::Process;
use crate::sparse;
use crate::tail::Tail;
use crate::usage::Counted;
use crate::{AgentStream, Compatibility, DiskChanges, Ended, SnapshotSummary, Vm, VmUsage, VmmError};

pub(super) const STATE: &str = "state";
pub(super) const MEMORY: &str = "memory";
pub(super) const DISK_FILE: &str = "disk.raw";
pub(super) const DESCRIPTION: &str = "machine.json";
const STATE_PART: &str = "state.part";
const MEMORY_PART: &str = "memory.part";

/// A guest's kernel, modules and agent are up in well under a second with hardware virtualisation, and in half a minute
/// where that itself is emulated on a busy machine.
const AGENT_LIMIT: Duration = Duration::from_secs(120);
/// Time that an API error waits for the VMM's end, which would explain the error better.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Kept in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Description {
    /// It has a network card, so it can be restored only where taps can be made.
    pub(super) card: bool,
}

/// The location of a machine's disk.
#[derive(Debug)]
pub(super) enum DiskPlace {
    /// In its folder; can be moved into a snapshot.
    Own(Tracked),
    /// Open: the machine is to live on after a snapshot, so it is copied.
    Kept(File),
    /// The caller's, open.
    Lent(File),
    /// Removed with the machine.
    Gone,
}

/// A machine.
pub(super) struct Machine {
    pub(super) id: String,
    pub(super) api: Api,
    pub(super) folder: Folder,
    pub(super) process: Process,
    /// The process waits for the VMM, which is its child.
    pub(super) jailed: bool,
    pub(super) console: Tail,
    pub(super) disk: Mutex<DiskPlace>,
    pub(super) disk_bytes: u64,
    /// The file that takes the writes of a mapped disk; any other disk has a name in the machine's folder.
    pub(super) written: Option<File>,
    pub(super) vcpus: u32,
    pub(super) memory_mib: u32,
    pub(super) description: Description,
    pub(super) network: Option<GuestNetwork>,
    /// `None` when it is isolated.
    pub(super) egress: Option<EgressControl>,
    pub(super) compatibility: Compatibility,
    pub(super) paused: tokio::sync::Mutex<bool>,
    /// The disk went into a snapshot: there is nothing to run on.
    pub(super) spent: AtomicBool,
    pub(super) agent: Mutex<CancellationToken>,
}

impl Machine {
    /// An error of the API, or what is behind it: the VMM has ended.
    pub(super) async fn explain<T>(&self, result: Result<T, VmmError>) -> Result<T, VmmError> {
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error @ VmmError::Refused { .. }) => return Err(error),
            Err(error) => error,
        };
        match tokio::time::timeout(LAST_WORDS, self.process.exited()).await {
            Ok(status) => Err(VmmError::Exited(ended(status).how)),
            Err(_) => Err(error),
        }
    }

    fn usable(&self) -> Result<(), VmmError> {
        if self.spent.load(Ordering::Acquire) {
            return Err(VmmError::Refused {
                context: "use a machine after its snapshot".into(),
                message: "its disk was moved into the snapshot; it can only be ended".into(),
            });
        }
        Ok(())
    }

    fn begin_agent(&self) -> CancellationToken {
        let token = CancellationToken::new();
        let mut current = self.agent.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        std::mem::replace(&mut *current, token.clone()).cancel();
        token
    }

    /// Moves and copies what a snapshot consists of. Blocks.
    fn collect(&self, dir: &Path) -> Result<(), VmmError> {
        let failed = |name: &str| {
            let context = format!("put {name} into a snapshot");
            move |source| VmmError::Io { context, source }
        };
        files::take(&self.folder, STATE_PART, &dir.join(STATE)).map_err(failed(STATE))?;
        let memory = files::take(&self.folder, MEMORY_PART, &dir.join(MEMORY)).map_err(failed(MEMORY))?;
        let punched = files::punch_zeros(&memory).map_err(failed(MEMORY))?;
        let target = dir.join(DISK_FILE);
        let disk = self.disk.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*disk {
            DiskPlace::Own(_) => {
                self.spent.store(true, Ordering::Release);
                files::take(&self.folder, DISK, &target).map(drop)
            }
            DiskPlace::Kept(disk) | DiskPlace::Lent(disk) => {
                files::copy(disk, &target, self.disk_bytes).and_then(|copy| files::seal(&copy))
            }
            DiskPlace::Gone => Err(std::io::ErrorKind::NotFound.into()),
        }
        .map_err(failed(DISK_FILE))?;
        let description = serde_json::to_vec(&self.description).map_err(|e| failed(DESCRIPTION)(e.into()))?;
        files::write_new(&dir.join(DESCRIPTION), &description).map_err(failed(DESCRIPTION))?;
        tracing::debug!(machine = %self.id, punched, "snapshot collected");
        Ok(())
    }
}

/// The [`Vm`] that callers hold: dropping it ends the machine.
pub(super) struct Running(pub(super) Arc<Machine>);

impl Drop for Running {
    fn drop(&mut self) {
        // The task that watches the process removes the rest.
        self.0.process.signal_kill();
    }
}

#[async_trait]
impl Vm for Running {
    fn id(&self) -> &str {
        &self.0.id
    }

    fn guest_network(&self) -> Option<GuestNetwork> {
        self.0.network.clone()
    }

    async fn agent(&self) -> Result<Box<dyn AgentStream>, VmmError> {
        let machine = &self.0;
        machine.usable()?;
        let token = machine.begin_agent();
        let deadline = Instant::now() + AGENT_LIMIT;
        let stream = tokio::select! {
            connected = agent::connect(&machine.folder, VSOCK, deadline) => connected.map_err(|error| {
                tracing::debug!(machine = %machine.id, %error, "the agent's port does not answer");
                VmmError::Timeout {
                    what: "the guest's agent".into(),
                    limit_ms: AGENT_LIMIT.as_millis() as u64,
                }
            })?,
            status = machine.process.exited() => return Err(VmmError::Exited(ended(status).how)),
            () = token.cancelled() => {
                return Err(VmmError::Refused {
                    context: "connect to the guest's agent".into(),
                    message: "another connection was asked for".into(),
                });
            }
        };
        Ok(Box::new(agent::Stream::new(stream, token.cancelled_owned())))
    }

    async fn pause(&self) -> Result<(), VmmError> {
        let mut paused = self.0.paused.lock().await;
        if !*paused {
            self.0.explain(self.0.api.pause().await).await?;
            *paused = true;
        }
        Ok(())
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.0.usable()?;
        let mut paused = self.0.paused.lock().await;
        if *paused {
            self.0.explain(self.0.api.resume().await).await?;
            *paused = false;
        }
        Ok(())
    }

    async fn capture(&self) -> Result<DiskChanges, VmmError> {
        self.0.usable()?;
        let machine = Arc::clone(&self.0);
        let capture = move || {
            let mut disk = machine.disk.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            let DiskPlace::Own(tracked) = &mut *disk else {
                return Err(VmmError::Refused {
                    context: "capture a machine's writes".into(),
                    message: "only a machine that was booted over an image of its own has its writes told apart".into(),
                });
            };
            let context = "capture a machine's writes".into();
            tracked.capture().map_err(|source| VmmError::Io { context, source })
        };
        tokio::task::spawn_blocking(capture).await.unwrap_or_else(|error| {
            Err(VmmError::Io { context: "capture a machine's writes".into(), source: error.into() })
        })
    }

    async fn snapshot(&self, dir: &Path) -> Result<SnapshotSummary, VmmError> {
        let machine = &self.0;
        machine.usable()?;
        let paused = machine.paused.lock().await;
        if !*paused {
            return Err(VmmError::Refused {
                context: "take a snapshot".into(),
                message: "the machine is not paused".into(),
            });
        }
        // The agent's stream would be in the snapshot as a connection that nobody has.
        drop(machine.begin_agent());
        machine.explain(machine.api.create_snapshot(STATE_PART, MEMORY_PART).await).await?;
        let (collector, target) = (Arc::clone(machine), dir.to_owned());
        let collected = tokio::task::spawn_blocking(move || collector.collect(&target)).await;
        let collected = collected
            .unwrap_or_else(|e| Err(VmmError::Io { context: "put a snapshot together".into(), source: e.into() }));
        if let Err(error) = collected {
            for name in [STATE_PART, MEMORY_PART] {
                machine.folder.remove(name);
            }
            return Err(error);
        }
        Ok(SnapshotSummary {
            compatibility: machine.compatibility.clone(),
            vcpus: machine.vcpus,
            memory_mib: machine.memory_mib,
            disk_bytes: machine.disk_bytes,
            files: [STATE, MEMORY, DISK_FILE, DESCRIPTION].map(str::to_owned).to_vec(),
            touched: Vec::new(),
            halted: false,
        })
    }

    async fn exited(&self) -> Ended {
        ended(self.0.process.exited().await)
    }

    fn nameless_bytes(&self) -> u64 {
        let metadata = self.0.written.as_ref().and_then(|file| file.metadata().ok());
        metadata.map_or(0, |metadata| sparse::stored_bytes(&metadata))
    }

    async fn usage(&self) -> Option<VmUsage> {
        let machine = &self.0;
        let counted = Counted {
            pid: machine.process.pid(),
            is_holder: machine.jailed,
            owns_memory_file: false,
            has_tap: machine.description.card,
        };
        let used = tokio::task::spawn_blocking(move || counted.usage()).await.ok()?;
        // After its end, the pid may be another process's.
        used.ok().filter(|_| machine.process.status().is_none())
    }

    async fn set_egress(&self, policy: &EgressPolicy) -> Result<(), VmmError> {
        match &self.0.egress {
            Some(egress) => egress.set(policy).await,
            None => Err(net::no_egress_control()),
        }
    }

    fn console_tail(&self) -> String {
        self.0.console.text()
    }

    async fn kill(&self) -> Result<(), VmmError> {
        self.0.process.kill().await?;
        *self.0.disk.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = DiskPlace::Gone;
        Ok(())
    }
}
