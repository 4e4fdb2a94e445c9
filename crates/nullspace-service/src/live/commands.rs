//! Commands and processes of a running sandbox.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use nullspace_api::{ExecRequest, ExecResponse, ProcessInfo, ProcessLogs};

use crate::{Memory, Result};

/// An event of a command. Nothing follows [`CommandEvent::Exit`] or an error.
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
        /// True when it timed out.
        timed_out: bool,
    },
}

/// A command that is followed. Dropping it leaves the command running.
pub struct FollowedCommand {
    /// Its pid in the sandbox.
    pub pid: u32,
    /// Bytes of stdout and of stderr from before it was followed that were dropped.
    pub lost: (u64, u64),
    /// Its events. The command waits for a slow reader.
    pub events: BoxStream<'static, Result<CommandEvent>>,
}

/// Commands and processes of a running sandbox.
#[async_trait]
pub trait LiveCommands: Send + Sync + 'static {
    /// Runs a command and waits for its end. Its kept output is charged to `memory`. When the memory limit is reached, the
    /// rest of the output is dropped and the answer says so: it is no error, because a command that has run must not be
    /// retried for it.
    async fn exec(&self, request: ExecRequest, memory: &dyn Memory) -> Result<ExecResponse>;

    /// Starts a command and follows it. It has an open stdin, for [`LiveCommands::send_stdin`].
    async fn run_command(self: Arc<Self>, request: ExecRequest) -> Result<FollowedCommand>;

    /// Follows a command that was started in the background, or by [`LiveCommands::run_command`], or the start command.
    async fn connect_command(self: Arc<Self>, pid: u32) -> Result<FollowedCommand>;

    /// Writes to the stdin of a command that was started in the background or by [`LiveCommands::run_command`]. Returns when
    /// all of the data is written to the pipe. `close`: its stdin is closed behind the data.
    async fn send_stdin(&self, pid: u32, data: &[u8], close: bool) -> Result<()>;

    /// The processes in the sandbox.
    async fn list_processes(&self) -> Result<Vec<ProcessInfo>>;

    /// Sends a signal to a process, 1 to 64 as in `kill(2)`. A command that was started by [`LiveCommands::run_command`] or in the
    /// background gets it with its process group.
    async fn kill_process(&self, pid: u32, signal: i32) -> Result<()>;

    /// Returns the output so far of the start command, or of a process that was started in the background: the last 256 KiB
    /// of each stream.
    async fn process_logs(&self, pid: u32) -> Result<ProcessLogs>;
}
