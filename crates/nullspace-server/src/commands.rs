//! What the HTTP layer asks of the domain about commands that are followed; rules as for [`Service`](crate::Service).

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use nullspace_api::ExecRequest;

use crate::service::{Caller, ServiceError};

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

/// A command that is followed. Whoever drops it leaves the command running.
pub struct FollowedCommand {
    /// Its pid in the sandbox.
    pub pid: u32,
    /// Bytes of stdout and of stderr from before it was followed that are kept no more.
    pub lost: (u64, u64),
    /// What it does; it waits for a slow reader.
    pub events: BoxStream<'static, Result<CommandEvent, ServiceError>>,
}

/// Commands in sandboxes.
#[async_trait]
pub trait CommandService: Send + Sync + 'static {
    /// Whether the sandbox is the caller's and runs.
    async fn check_running(&self, caller: &Caller, id: &str) -> Result<(), ServiceError>;

    /// Start a command and follow it.
    async fn run_command(
        &self,
        caller: &Caller,
        id: &str,
        request: ExecRequest,
    ) -> Result<FollowedCommand, ServiceError>;

    /// Follow a command that was started before.
    async fn connect_command(&self, caller: &Caller, id: &str, pid: u32) -> Result<FollowedCommand, ServiceError>;

    /// Write to a command's stdin; returns when all of it is on its way.
    async fn send_stdin(&self, caller: &Caller, id: &str, pid: u32, data: &[u8]) -> Result<(), ServiceError>;
}
