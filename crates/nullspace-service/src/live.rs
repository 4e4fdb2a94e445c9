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

/// The operations of one running sandbox, on behalf of the caller for whom it was looked up.
///
/// A method whose answer is a stream takes the sandbox by `Arc`: the stream outlives the call.
#[async_trait]
pub trait LiveSandbox: Send + Sync + 'static {
    /// Runs a command and waits for its end. `memory` is charged with what is kept of its output. When there is no more,
    /// the rest of the output is dropped, and the answer says so: a command that has run must not be tried again for that.
    async fn exec(&self, request: ExecRequest, memory: &dyn Memory) -> Result<ExecResponse>;

    /// Starts a command and follows it. It has an open stdin, for [`LiveSandbox::send_stdin`].
    async fn run_command(self: Arc<Self>, request: ExecRequest) -> Result<FollowedCommand>;

    /// Follows a command that was started in the background, or by [`LiveSandbox::run_command`], or the start command.
    async fn connect_command(self: Arc<Self>, pid: u32) -> Result<FollowedCommand>;

    /// Writes to the stdin of a command that was started in the background or by [`LiveSandbox::run_command`]. Returns when
    /// all of it is on its way.
    async fn send_stdin(&self, pid: u32, data: &[u8]) -> Result<()>;

    /// The processes in the sandbox.
    async fn list_processes(&self) -> Result<Vec<ProcessInfo>>;

    /// Ends a process at once.
    async fn kill_process(&self, pid: u32) -> Result<()>;

    /// What a process that was started in the background, or the start command, has written so far: the last 256 KiB of
    /// each stream.
    async fn process_logs(&self, pid: u32) -> Result<ProcessLogs>;

    /// Opens a regular file for reading.
    async fn read_file(self: Arc<Self>, at: FileAt) -> Result<FileDownload>;

    /// Makes or replaces a file's content, with the directories above it. When the content breaks off, the file stays as far
    /// as it has come.
    async fn write_file(&self, at: FileAt, content: ByteStream) -> Result<FileInfo>;

    /// The entries of a directory, so many levels deep. `memory` is charged with what they take; when there is no more, its
    /// [`Exhausted`](crate::Exhausted) is the error.
    async fn list_files(&self, at: FileAt, depth: Depth, memory: &dyn Memory) -> Result<Vec<FileInfo>>;

    /// One entry; a link itself.
    async fn file_info(&self, at: FileAt) -> Result<FileInfo>;

    /// Whether there is something at the path.
    async fn file_exists(&self, at: FileAt) -> Result<bool>;

    /// Makes a directory and those above it that are missing.
    async fn make_dir(&self, at: FileAt) -> Result<()>;

    /// Removes an entry, a directory with all that is in it.
    async fn remove_file(&self, at: FileAt) -> Result<()>;

    /// Renames an entry.
    async fn rename_file(&self, at: FileAt, to: String) -> Result<FileInfo>;

    /// Sets permission bits, given in octal.
    async fn set_file_permissions(&self, at: FileAt, permissions: &str) -> Result<()>;
}
