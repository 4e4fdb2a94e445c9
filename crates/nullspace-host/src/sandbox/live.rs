//! A running sandbox and its operations: each asks the guest's agent, and answers in the terms of the API.
//!
//! ```text
//!   Sandboxes::live_sandbox ──> Live ── using ── gate ──> guest's agent        exec, commands, processes, files
//!                                         ├─ has it ended? then there is no such sandbox
//!                                         └─ closed for a snapshot: it waits; for a pause: it is refused
//! ```

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use nullspace_api::{ErrorResponseCode, ExecRequest, ExecResponse, FileInfo, ProcessInfo, ProcessLogs};
use nullspace_data::{RootfsPin, Scratch};
use nullspace_definition::runtime::Runtime;
use nullspace_guest::file::FileOp;
use nullspace_guest::host::Agent;
use nullspace_host_interface::SnapshotSize;
use nullspace_service::{
    ByteStream, Depth, FileAt, FileDownload, FilePart, FollowedCommand, LiveCommands, LiveFiles, LiveSandbox, Memory,
    PartDownload,
};
use nullspace_types::{ArtifactId, Rootfs, SandboxId, Streams, TenantId};
use tokio_util::sync::CancellationToken;

use super::activity::{Active, Activity};
use super::followers::Followers;
use super::gate::{Gate, Pass, Shut};
use super::measure::Measured;
use super::start::SnapshotFiles;
use super::{commands, exec, files, processes};
use crate::disk::Writing;
use crate::machine::Body;
use nullspace_service::{Error, Result};

/// Longest wait of an operation for a snapshot of its sandbox.
const WAIT: Duration = Duration::from_secs(60);
/// Time after which an operation that met a pause should be retried.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// A sandbox whose machine runs here.
pub(super) struct Live {
    pub(super) id: SandboxId,
    pub(super) tenant: TenantId,
    pub(super) machine: Body,
    pub(super) size: SnapshotSize,
    pub(super) gate: Arc<Gate<Agent>>,
    pub(super) activity: Arc<Activity>,
    pub(super) measured: Measured,
    pub(super) artifact: ArtifactId,
    pub(super) rootfs: Rootfs,
    /// The snapshot that it was resumed from, if that is stored.
    pub(super) streams: Option<Streams>,
    pub(super) runtime: Runtime,
    pub(super) envs: BTreeMap<String, String>,
    pub(super) cwd: String,
    /// Cancelled when the sandbox ends. Stops the task that watches it, and all of its streams.
    pub(super) ended: CancellationToken,
    /// It ended by a pause.
    pub(super) paused: AtomicBool,
    /// Held by a pause, a snapshot or a fork: one at a time.
    pub(super) turn: Arc<tokio::sync::Mutex<()>>,
    pub(super) scratch: Mutex<Option<Scratch>>,
    /// Its folder, registered for the check of the host's disk.
    pub(super) writing: Writing,
    /// Keeps the root image under its disk.
    pub(super) _root: RootfsPin,
    /// Keeps the snapshot's raw files in their place.
    pub(super) snapshot: SnapshotFiles,
    pub(super) followers: Arc<Followers>,
}

/// An operation under way. It counts as use of the sandbox.
pub(super) struct Operation {
    pass: Pass<Agent>,
    _active: Active,
}

impl Deref for Operation {
    type Target = Agent;

    fn deref(&self) -> &Agent {
        &self.pass
    }
}

impl Operation {
    /// Cancelled when the operation has to end.
    pub(super) fn interrupt(&self) -> &CancellationToken {
        &self.pass.interrupt
    }

    /// Cancelled when a pause begins.
    pub(super) fn pausing(&self) -> &CancellationToken {
        &self.pass.pausing
    }
}

impl Live {
    /// Ends the machine and removes its files.
    pub(super) async fn end(&self) {
        self.ended.cancel();
        self.machine.end().await;
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(scratch);
    }

    /// Begins an operation. A sandbox that has ended since it was looked up is not found.
    pub(super) async fn begin(&self) -> Result<Operation> {
        let active = self.activity.begin();
        let pass = tokio::select! {
            biased;
            () = self.ended.cancelled() => return Err(self.gone()),
            pass = self.gate.enter(WAIT) => pass,
        };
        match pass {
            Ok(pass) => Ok(Operation { pass, _active: active }),
            Err(Shut::Pausing) => Err(self.pausing("it is being paused; ask again when it is resumed")),
            Err(Shut::TooLong) => Err(self.pausing("a snapshot of it takes too long; ask again")),
        }
    }

    /// Runs an operation with the guest's agent, until the sandbox ends or a pause interrupts it.
    pub(super) async fn using<T, F>(&self, work: impl FnOnce(Operation) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let operation = self.begin().await?;
        let interrupt = operation.interrupt().clone();
        tokio::select! {
            biased;
            done = work(operation) => done,
            error = self.stopped(&interrupt) => Err(error),
        }
    }

    /// Resolves with the error of an operation that has to end: the sandbox has ended, or a pause interrupts it.
    pub(super) async fn stopped(&self, interrupt: &CancellationToken) -> Error {
        tokio::select! {
            biased;
            () = self.ended.cancelled() => self.gone(),
            () = interrupt.cancelled() => self.pausing("this request was ended by a pause of it; ask again when it is resumed"),
        }
    }

    /// The error of operations that still run when the sandbox ends.
    pub(super) fn gone(&self) -> Error {
        if self.paused.load(Ordering::Relaxed) {
            let message = format!("sandbox {} was paused; resume it, then ask again", self.id);
            return Error::new(ErrorResponseCode::SandboxNotReady, message);
        }
        Error::sandbox_not_found(&self.id.to_string())
    }

    fn pausing(&self, what: &str) -> Error {
        let message = format!("sandbox {}: {what}", self.id);
        Error { retry_after: Some(RETRY_AFTER), ..Error::new(ErrorResponseCode::TransitionInProgress, message) }
    }
}

/// Operations of more than one line are in the file of their topic.
#[async_trait]
impl LiveCommands for Live {
    async fn exec(&self, request: ExecRequest, memory: &dyn Memory) -> Result<ExecResponse> {
        exec::run(self, &request, memory).await
    }

    async fn run_command(self: Arc<Self>, request: ExecRequest) -> Result<FollowedCommand> {
        commands::run(self, request).await
    }

    async fn connect_command(self: Arc<Self>, pid: u32) -> Result<FollowedCommand> {
        commands::connect(self, pid).await
    }

    async fn send_stdin(&self, pid: u32, data: &[u8], close: bool) -> Result<()> {
        commands::feed(self, pid, data, close).await
    }

    async fn list_processes(&self) -> Result<Vec<ProcessInfo>> {
        processes::list(self).await
    }

    async fn kill_process(&self, pid: u32, signal: i32) -> Result<()> {
        processes::kill(self, pid, signal).await
    }

    async fn process_logs(&self, pid: u32) -> Result<ProcessLogs> {
        processes::logs(self, pid).await
    }
}

#[async_trait]
impl LiveFiles for Live {
    async fn read_file(self: Arc<Self>, at: FileAt) -> Result<FileDownload> {
        files::read(self, at).await
    }

    async fn read_file_part(self: Arc<Self>, at: FileAt, part: FilePart) -> Result<PartDownload> {
        files::read_part(self, at, part).await
    }

    async fn write_file(&self, at: FileAt, content: ByteStream) -> Result<FileInfo> {
        files::write(self, at, content).await
    }

    async fn list_files(&self, at: FileAt, depth: Depth, memory: &dyn Memory) -> Result<Vec<FileInfo>> {
        files::list(self, at, depth, memory).await
    }

    async fn file_info(&self, at: FileAt) -> Result<FileInfo> {
        files::entry(self, at, |path| FileOp::Info { path }).await
    }

    async fn file_exists(&self, at: FileAt) -> Result<bool> {
        files::exists(self, at).await
    }

    async fn make_dir(&self, at: FileAt) -> Result<()> {
        files::change(self, at, |path| FileOp::MakeDir { path }).await.map(drop)
    }

    async fn remove_file(&self, at: FileAt) -> Result<()> {
        files::done(self, at, |path| FileOp::Remove { path }).await
    }

    async fn rename_file(&self, at: FileAt, to: String) -> Result<FileInfo> {
        files::rename(self, at, to).await
    }

    async fn set_file_permissions(&self, at: FileAt, permissions: &str) -> Result<()> {
        let mode = files::mode(permissions)?;
        files::done(self, at, |path| FileOp::SetMode { path, mode }).await
    }
}

impl LiveSandbox for Live {}
