//! Commands of a sandbox that somebody follows from afar, may lose, and finds again.
//!
//! ```text
//!   run_command ─────> started as a service of the guest, followed from its first byte
//!   connect_command ─> one that was started before: what is kept of its output, then what comes
//!                        └─ Command::next ... Exit      dropped: the command runs on
//! ```
//! While it is followed nothing of its output is lost: a follower that is slow makes the command wait. What one writes that
//! nobody follows is kept to its last 256 KiB of each stream, and [`Command::lost`] counts the rest.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nullspace_api::{ErrorResponseCode, ExecRequest};
use nullspace_guest::host::{AgentError, ExecEvent, ExecSession};
use nullspace_guest::message::Exec;
use nullspace_store::Caller;
use tokio::sync::OwnedSemaphorePermit;

use super::{Live, command, exec_error};
use crate::Engine;
use crate::error::{Error, Result};

/// Commands of one sandbox that are followed at a time. The agent has 64 channels, and other operations want some too.
pub(super) const MAX_FOLLOWED: usize = 32;
/// How long a process may take to read what is written to its stdin.
const STDIN_LIMIT: Duration = Duration::from_secs(30);

/// A command that is followed. Dropping it leaves the command running.
pub struct Command {
    /// Its pid in the guest.
    pub pid: u32,
    /// Bytes of stdout and of stderr from before it was followed that are kept no more.
    pub lost: (u64, u64),
    session: ExecSession,
    live: Arc<Live>,
    sandbox_id: String,
    name: String,
    _place: OwnedSemaphorePermit,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandEvent {
    /// It wrote to stdout.
    Stdout(Bytes),
    /// It wrote to stderr.
    Stderr(Bytes),
    /// It ended; the last event.
    Exit {
        /// Exit code; 128 + signal when a signal ended it.
        code: i32,
        /// True when its time was over.
        timed_out: bool,
    },
}

impl Command {
    /// The next event; `None` after its end. May be cancelled without losing an event.
    pub async fn next(&mut self) -> Result<Option<CommandEvent>> {
        let event = tokio::select! {
            biased;
            event = self.session.next() => event.map_err(|error| exec_error(error, &self.name))?,
            () = self.live.ended.cancelled() => return Err(Error::sandbox_not_found(&self.sandbox_id)),
        };
        Ok(event.map(|event| match event {
            ExecEvent::Stdout(bytes) => CommandEvent::Stdout(bytes),
            ExecEvent::Stderr(bytes) => CommandEvent::Stderr(bytes),
            ExecEvent::Exit(exit) => CommandEvent::Exit { code: exit.code, timed_out: exit.timed_out },
        }))
    }
}

impl Engine {
    /// Whether the sandbox is the caller's and runs.
    pub async fn check_running(&self, caller: &Caller, id: &str) -> Result<()> {
        self.live(caller, id).await.map(drop)
    }

    /// Starts a command and follows it. It has an open stdin, for [`Engine::send_stdin`].
    pub async fn run_command(&self, caller: &Caller, id: &str, request: ExecRequest) -> Result<Command> {
        let live = self.live(caller, id).await?;
        let exec = Exec { stdin: true, ..command(&live, &request)? };
        let place = live.place()?;
        let session = live.machine.agent.run_service(exec).await;
        let session = session.map_err(|error| exec_error(error, &request.command))?;
        Ok(followed(session, live, place, id, request.command))
    }

    /// Follows a command that was started in the background, or by [`Engine::run_command`], or the start command.
    pub async fn connect_command(&self, caller: &Caller, id: &str, pid: u32) -> Result<Command> {
        let live = self.live(caller, id).await?;
        let place = live.place()?;
        let name = format!("process {pid}");
        let session = live.machine.agent.attach(pid).await.map_err(|error| exec_error(error, &name))?;
        Ok(followed(session, live, place, id, name))
    }

    /// Writes to the stdin of a command that was started in the background or by [`Engine::run_command`].
    pub async fn send_stdin(&self, caller: &Caller, id: &str, pid: u32, data: &[u8]) -> Result<()> {
        let live = self.live(caller, id).await?;
        let fed = tokio::select! {
            biased;
            fed = live.machine.agent.feed_service(pid, data, STDIN_LIMIT) => fed,
            () = live.ended.cancelled() => return Err(Error::sandbox_not_found(id)),
        };
        fed.map_err(|error| match error {
            AgentError::Timeout { .. } => Error::new(
                ErrorResponseCode::ExecTimeout,
                format!(
                    "process {pid} did not read its stdin within {} s; what it has room for was written",
                    STDIN_LIMIT.as_secs()
                ),
            ),
            error => exec_error(error, "stdin"),
        })
    }
}

impl Live {
    fn place(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.followed).try_acquire_owned().map_err(|_| {
            let message = format!("{MAX_FOLLOWED} commands of this sandbox are followed already: let one go first");
            Error::new(ErrorResponseCode::RateLimitExceeded, message)
        })
    }
}

fn followed(session: ExecSession, live: Arc<Live>, place: OwnedSemaphorePermit, id: &str, name: String) -> Command {
    let (pid, lost) = (session.pid, session.lost);
    Command { pid, lost, session, live, sandbox_id: id.to_owned(), name, _place: place }
}
