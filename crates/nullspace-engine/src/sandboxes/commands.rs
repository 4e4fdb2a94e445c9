//! Commands of a sandbox that somebody follows from afar, may lose, and finds again.
//!
//! ```text
//!   run_command ─────> started as a service of the guest, followed from its first byte
//!   connect_command ─> one that was started before: what is kept of its output, then what comes
//!                        └─ events ... Exit             dropped: the command runs on
//! ```
//! While it is followed nothing of its output is lost: a follower that is slow makes the command wait. What one writes that
//! nobody follows is kept to its last 256 KiB of each stream, and [`FollowedCommand::lost`] counts the rest.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use nullspace_api::{ErrorResponseCode, ExecRequest};
use nullspace_guest::host::{AgentError, ExecEvent, ExecSession};
use nullspace_guest::message::Exec;
use nullspace_service::{CommandEvent, Commands, FollowedCommand};
use nullspace_store::Caller;
use tokio::sync::OwnedSemaphorePermit;

use super::{Live, command, exec_error};
use crate::Engine;
use crate::error::{Error, Result};

/// Commands of one sandbox that are followed at a time. The agent has 64 channels, and other operations want some too.
pub(super) const MAX_FOLLOWED: usize = 32;
/// How long a process may take to read what is written to its stdin.
const STDIN_LIMIT: Duration = Duration::from_secs(30);

/// What a follower holds.
struct Follower {
    session: ExecSession,
    live: Arc<Live>,
    sandbox_id: String,
    name: String,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    /// The next event; `None` after its end. May be cancelled without losing an event.
    async fn next(&mut self) -> Result<Option<CommandEvent>> {
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

#[async_trait]
impl Commands for Engine {
    async fn check_running(&self, caller: &Caller, id: &str) -> Result<()> {
        self.live(caller, id).await.map(drop)
    }

    async fn run_command(&self, caller: &Caller, id: &str, request: ExecRequest) -> Result<FollowedCommand> {
        let live = self.live(caller, id).await?;
        let exec = Exec { stdin: true, ..command(&live, &request)? };
        let place = live.place()?;
        let session = live.machine.agent.run_service(exec).await;
        let session = session.map_err(|error| exec_error(error, &request.command))?;
        Ok(followed(session, live, place, id, request.command))
    }

    async fn connect_command(&self, caller: &Caller, id: &str, pid: u32) -> Result<FollowedCommand> {
        let live = self.live(caller, id).await?;
        let place = live.place()?;
        let name = format!("process {pid}");
        let session = live.machine.agent.attach(pid).await.map_err(|error| exec_error(error, &name))?;
        Ok(followed(session, live, place, id, name))
    }

    async fn send_stdin(&self, caller: &Caller, id: &str, pid: u32, data: &[u8]) -> Result<()> {
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

fn followed(
    session: ExecSession,
    live: Arc<Live>,
    place: OwnedSemaphorePermit,
    id: &str,
    name: String,
) -> FollowedCommand {
    let (pid, lost) = (session.pid, session.lost);
    let follower = Follower { session, live, sandbox_id: id.to_owned(), name, _place: place };
    let events = stream::try_unfold(follower, |mut follower| async move {
        Ok(follower.next().await?.map(|event| (event, follower)))
    });
    FollowedCommand { pid, lost, events: events.boxed() }
}
