//! Sandboxes, their commands and processes.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use nullspace_api::{
    CreateSandboxRequest, CreateSandboxResponse, DestroySandboxResponse, ExecRequest, ExecResponse, JsonObject,
    ProcessInfo, ProcessLogs, SandboxInfo, SandboxListPage, SandboxStatus,
};

use crate::{Caller, Memory, RequestContext, Result};

/// Which sandboxes to list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SandboxQuery {
    /// Only these states; all that have not ended when empty.
    pub states: Vec<SandboxStatus>,
    /// At most so many, 1 to 1000; `None`: 1000.
    pub limit: Option<u32>,
    /// Where the page starts, from the page before.
    pub next_token: Option<String>,
    /// Made from this reference, as it was written.
    pub template: Option<String>,
    /// Only with these entries in their metadata.
    pub metadata: JsonObject,
}

/// Sandboxes.
#[async_trait]
pub trait Sandboxes: Send + Sync + 'static {
    /// Resumes a template's snapshot as a new sandbox. Returns when the guest is a new one and answers.
    ///
    /// Dropping the future does not stop the work: a caller who hangs up leaves a sandbox that lists and times out, never
    /// half of one.
    async fn create_sandbox(
        &self,
        caller: &Caller,
        request: CreateSandboxRequest,
        context: &RequestContext,
    ) -> Result<CreateSandboxResponse>;

    /// The caller's sandboxes, newest first.
    async fn list_sandboxes(&self, caller: &Caller, query: SandboxQuery) -> Result<SandboxListPage>;

    /// One sandbox of the caller's, also one that has ended.
    async fn get_sandbox(&self, caller: &Caller, id: &str) -> Result<SandboxInfo>;

    /// Ends a sandbox; returns when nothing of it is left.
    async fn destroy_sandbox(&self, caller: &Caller, id: &str) -> Result<DestroySandboxResponse>;

    /// Runs a command in a sandbox and waits for its end. `memory` is charged with what is kept of its output. When there is
    /// no more, the rest of the output is dropped, and the answer says so: a command that has run must not be tried again
    /// for that.
    async fn exec(&self, caller: &Caller, id: &str, request: ExecRequest, memory: &dyn Memory) -> Result<ExecResponse>;
}

/// What a command does. Nothing follows [`CommandEvent::Exit`] or an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandEvent {
    /// It wrote to stdout.
    Stdout(Bytes),
    /// It wrote to stderr.
    Stderr(Bytes),
    /// It ended.
    Exit {
        /// Exit code; 128 + signal when a signal ended it.
        code: i32,
        /// True when its time was over.
        timed_out: bool,
    },
}

/// A command that is followed. Dropping it leaves the command running.
pub struct FollowedCommand {
    /// Its pid in the sandbox.
    pub pid: u32,
    /// Bytes of stdout and of stderr from before it was followed that are kept no more.
    pub lost: (u64, u64),
    /// What it does. The command waits for a slow reader.
    pub events: BoxStream<'static, Result<CommandEvent>>,
}

/// Commands that are followed.
#[async_trait]
pub trait Commands: Send + Sync + 'static {
    /// Whether the sandbox is the caller's and runs.
    async fn check_running(&self, caller: &Caller, id: &str) -> Result<()>;

    /// Starts a command and follows it. It has an open stdin, for [`Commands::send_stdin`].
    async fn run_command(&self, caller: &Caller, id: &str, request: ExecRequest) -> Result<FollowedCommand>;

    /// Follows a command that was started in the background, or by [`Commands::run_command`], or the start command.
    async fn connect_command(&self, caller: &Caller, id: &str, pid: u32) -> Result<FollowedCommand>;

    /// Writes to the stdin of a command that was started in the background or by [`Commands::run_command`]. Returns when all
    /// of it is on its way.
    async fn send_stdin(&self, caller: &Caller, id: &str, pid: u32, data: &[u8]) -> Result<()>;
}

/// Processes of a sandbox, beyond those that an exec waits for.
#[async_trait]
pub trait Processes: Send + Sync + 'static {
    /// The processes in a sandbox.
    async fn list_processes(&self, caller: &Caller, id: &str) -> Result<Vec<ProcessInfo>>;

    /// Ends a process at once.
    async fn kill_process(&self, caller: &Caller, id: &str, pid: u32) -> Result<()>;

    /// What a process that was started in the background, or the start command, has written so far: the last 256 KiB of
    /// each stream.
    async fn process_logs(&self, caller: &Caller, id: &str, pid: u32) -> Result<ProcessLogs>;
}
