//! One running sandbox: its commands, processes and files.
//!
//! ```text
//!   Sandboxes::live_sandbox(caller, id) ──> Arc<dyn LiveSandbox> ── exec, run_command, read_file, … ──> guest
//! ```
//! The caller is checked once, where the sandbox is looked up. A [`LiveSandbox`] may end while it is held. Each of its
//! operations then fails with the error of a sandbox that does not exist.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use nullspace_api::{ExecRequest, ExecResponse, FileInfo, ProcessInfo, ProcessLogs};

use crate::{ByteStream, Depth, FileAt, FileDownload, Memory, Result};

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

/// The operations of one running sandbox, on behalf of the caller for whom it was looked up.
///
/// A method whose answer is a stream takes the sandbox by `Arc`: the stream outlives the call.
#[async_trait]
pub trait LiveSandbox: Send + Sync + 'static {
    /// Runs a command and waits for its end. Its kept output is charged to `memory`. When the memory limit is reached, the
    /// rest of the output is dropped and the answer says so: it is no error, because a command that has run must not be
    /// retried for it.
    async fn exec(&self, request: ExecRequest, memory: &dyn Memory) -> Result<ExecResponse>;

    /// Starts a command and follows it. It has an open stdin, for [`LiveSandbox::send_stdin`].
    async fn run_command(self: Arc<Self>, request: ExecRequest) -> Result<FollowedCommand>;

    /// Follows a command that was started in the background, or by [`LiveSandbox::run_command`], or the start command.
    async fn connect_command(self: Arc<Self>, pid: u32) -> Result<FollowedCommand>;

    /// Writes to the stdin of a command that was started in the background or by [`LiveSandbox::run_command`]. Returns when
    /// all of the data is written to the pipe.
    async fn send_stdin(&self, pid: u32, data: &[u8]) -> Result<()>;

    /// The processes in the sandbox.
    async fn list_processes(&self) -> Result<Vec<ProcessInfo>>;

    /// Ends a process at once.
    async fn kill_process(&self, pid: u32) -> Result<()>;

    /// Returns the output so far of the start command, or of a process that was started in the background: the last 256 KiB
    /// of each stream.
    async fn process_logs(&self, pid: u32) -> Result<ProcessLogs>;

    /// Opens a regular file for reading.
    async fn read_file(self: Arc<Self>, at: FileAt) -> Result<FileDownload>;

    /// Creates a file or replaces its content, and makes missing directories above it. When the content breaks off, the file
    /// keeps the part that has arrived.
    async fn write_file(&self, at: FileAt, content: ByteStream) -> Result<FileInfo>;

    /// Returns the entries of a directory, `depth` levels deep. They are charged to `memory`. When the memory limit is
    /// reached, its [`Exhausted`](crate::Exhausted) is the error.
    async fn list_files(&self, at: FileAt, depth: Depth, memory: &dyn Memory) -> Result<Vec<FileInfo>>;

    /// Returns one entry. A link is not followed.
    async fn file_info(&self, at: FileAt) -> Result<FileInfo>;

    /// Whether the path exists.
    async fn file_exists(&self, at: FileAt) -> Result<bool>;

    /// Makes a directory and missing directories above it.
    async fn make_dir(&self, at: FileAt) -> Result<()>;

    /// Removes an entry. A directory is removed with its contents.
    async fn remove_file(&self, at: FileAt) -> Result<()>;

    /// Renames an entry.
    async fn rename_file(&self, at: FileAt, to: String) -> Result<FileInfo>;

    /// Sets permission bits, given in octal.
    async fn set_file_permissions(&self, at: FileAt, permissions: &str) -> Result<()>;
}
