//! A running sandbox and its operations: each asks the guest's agent, and answers in the terms of the API.
//!
//! ```text
//!   Sandboxes::live_sandbox ──> Live ── agent()? ──> guest        exec, commands, processes, files
//!                                        └─ has it ended? then there is no such sandbox
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use nullspace_api::{ExecRequest, ExecResponse, FileInfo, ProcessInfo, ProcessLogs};
use nullspace_data::{RootfsPin, Scratch};
use nullspace_definition::runtime::Runtime;
use nullspace_guest::file::FileOp;
use nullspace_guest::host::Agent;
use nullspace_service::{ByteStream, Depth, FileAt, FileDownload, FollowedCommand, LiveSandbox, Memory};
use nullspace_types::{SandboxId, TenantId};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{commands, exec, files, processes};
use crate::disk::Writing;
use crate::machine::Machine;
use nullspace_service::{Error, Result};

/// A sandbox whose machine runs here.
pub(super) struct Live {
    pub(super) id: SandboxId,
    pub(super) tenant: TenantId,
    pub(super) machine: Machine,
    pub(super) runtime: Runtime,
    pub(super) envs: BTreeMap<String, String>,
    pub(super) cwd: String,
    /// Cancelled when the sandbox ends. Stops the task that watches it, and all of its streams.
    pub(super) ended: CancellationToken,
    pub(super) scratch: Mutex<Option<Scratch>>,
    /// Its folder, registered for the check of the host's disk.
    pub(super) writing: Writing,
    /// Keeps the root image under its disk.
    pub(super) _root: RootfsPin,
    /// Permits for followed commands.
    pub(super) followed: Arc<Semaphore>,
}

impl Live {
    /// Ends the machine and removes its files.
    pub(super) async fn end(&self) {
        self.ended.cancel();
        self.machine.end().await;
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(scratch);
    }

    /// Returns the guest's agent. A sandbox that has ended since it was looked up is not found.
    pub(super) fn agent(&self) -> Result<&Agent> {
        if self.ended.is_cancelled() { Err(self.gone()) } else { Ok(&self.machine.agent) }
    }

    /// The error of operations that still run when the sandbox ends.
    pub(super) fn gone(&self) -> Error {
        Error::sandbox_not_found(&self.id.to_string())
    }
}

/// Operations of more than one line are in the file of their topic.
#[async_trait]
impl LiveSandbox for Live {
    async fn exec(&self, request: ExecRequest, memory: &dyn Memory) -> Result<ExecResponse> {
        exec::run(self, &request, memory).await
    }

    async fn run_command(self: Arc<Self>, request: ExecRequest) -> Result<FollowedCommand> {
        commands::run(self, request).await
    }

    async fn connect_command(self: Arc<Self>, pid: u32) -> Result<FollowedCommand> {
        commands::connect(self, pid).await
    }

    async fn send_stdin(&self, pid: u32, data: &[u8]) -> Result<()> {
        commands::feed(self, pid, data).await
    }

    async fn list_processes(&self) -> Result<Vec<ProcessInfo>> {
        processes::list(self).await
    }

    async fn kill_process(&self, pid: u32) -> Result<()> {
        processes::kill(self, pid).await
    }

    async fn process_logs(&self, pid: u32) -> Result<ProcessLogs> {
        processes::logs(self, pid).await
    }

    async fn read_file(self: Arc<Self>, at: FileAt) -> Result<FileDownload> {
        files::read(self, at).await
    }

    async fn write_file(&self, at: FileAt, content: ByteStream) -> Result<FileInfo> {
        files::write(self, at, content).await
    }

    async fn list_files(&self, at: FileAt, depth: Depth, memory: &dyn Memory) -> Result<Vec<FileInfo>> {
        files::list(self, at, depth, memory).await
    }

    async fn file_info(&self, at: FileAt) -> Result<FileInfo> {
        files::entry(self, at.user, FileOp::Info { path: at.path }).await
    }

    async fn file_exists(&self, at: FileAt) -> Result<bool> {
        files::exists(self, at).await
    }

    async fn make_dir(&self, at: FileAt) -> Result<()> {
        files::entry(self, at.user, FileOp::MakeDir { path: at.path }).await.map(drop)
    }

    async fn remove_file(&self, at: FileAt) -> Result<()> {
        files::done(self, at.user, FileOp::Remove { path: at.path }).await
    }

    async fn rename_file(&self, at: FileAt, to: String) -> Result<FileInfo> {
        files::entry(self, at.user, FileOp::Rename { from: at.path, to }).await
    }

    async fn set_file_permissions(&self, at: FileAt, permissions: &str) -> Result<()> {
        let mode = files::mode(permissions)?;
        files::done(self, at.user, FileOp::SetMode { path: at.path, mode }).await
    }
}
