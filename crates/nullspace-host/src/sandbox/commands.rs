//! Commands of a sandbox that a client follows, can lose, and can find again.
//!
//! ```text
//!   run_command ─────> started as a service of the guest, followed from its first byte
//!   connect_command ─> one that was started before: what is kept of its output, then what comes
//!                        └─ events ... Exit             dropped: the command runs on
//! ```
//! With a follower, no output is lost: a slow follower makes the command wait. Without a follower, a command keeps the last
//! 256 KiB of each stream, and [`FollowedCommand::lost`] counts the rest.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use nullspace_api::{ErrorResponseCode, ExecRequest};
use nullspace_guest::host::{AgentError, ExecEvent, ExecSession};
use nullspace_guest::message::Exec;
use nullspace_service::{CommandEvent, FollowedCommand};
use tokio::sync::OwnedSemaphorePermit;

use super::exec::{command, exec_error};
use super::live::Live;
use nullspace_service::{Error, Result};

/// Most commands of one sandbox that are followed at a time. The agent has 64 channels, and other operations need some.
pub(super) const MAX_FOLLOWED: usize = 32;
/// Time limit for a process to read the data written to its stdin.
const STDIN_LIMIT: Duration = Duration::from_secs(30);

/// The state of a follower.
struct Follower {
    session: ExecSession,
    live: Arc<Live>,
    name: String,
    _place: OwnedSemaphorePermit,
}

impl Follower {
    /// Returns the next event, or `None` after the end. Cancel safe.
    async fn next(&mut self) -> Result<Option<CommandEvent>> {
        let event = tokio::select! {
            biased;
            event = self.session.next() => event.map_err(|error| exec_error(error, &self.name))?,
            () = self.live.ended.cancelled() => return Err(self.live.gone()),
        };
        Ok(event.map(|event| match event {
            ExecEvent::Stdout(bytes) => CommandEvent::Stdout(bytes),
            ExecEvent::Stderr(bytes) => CommandEvent::Stderr(bytes),
            ExecEvent::Exit(exit) => CommandEvent::Exit { code: exit.code, timed_out: exit.timed_out },
        }))
    }
}

/// Starts a command and follows it; see [`LiveSandbox::run_command`](nullspace_service::LiveSandbox::run_command).
pub(super) async fn run(live: Arc<Live>, request: ExecRequest) -> Result<FollowedCommand> {
    let agent = live.agent()?;
    let exec = Exec { stdin: true, ..command(&live, &request)? };
    let place = live.place()?;
    let session = agent.run_service(exec).await;
    let session = session.map_err(|error| exec_error(error, &request.command))?;
    Ok(followed(session, live, place, request.command))
}

/// Follows a running command; see [`LiveSandbox::connect_command`](nullspace_service::LiveSandbox::connect_command).
pub(super) async fn connect(live: Arc<Live>, pid: u32) -> Result<FollowedCommand> {
    let agent = live.agent()?;
    let place = live.place()?;
    let name = format!("process {pid}");
    let session = agent.attach(pid).await.map_err(|error| exec_error(error, &name))?;
    Ok(followed(session, live, place, name))
}

/// Writes to a command's stdin; see [`LiveSandbox::send_stdin`](nullspace_service::LiveSandbox::send_stdin).
pub(super) async fn feed(live: &Live, pid: u32, data: &[u8]) -> Result<()> {
    let fed = tokio::select! {
        biased;
        fed = live.agent()?.feed_service(pid, data, STDIN_LIMIT) => fed,
        () = live.ended.cancelled() => return Err(live.gone()),
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

impl Live {
    fn place(&self) -> Result<OwnedSemaphorePermit> {
        Arc::clone(&self.followed).try_acquire_owned().map_err(|_| {
            let message = format!("{MAX_FOLLOWED} commands of this sandbox are followed already: let one go first");
            Error::new(ErrorResponseCode::RateLimitExceeded, message)
        })
    }
}

fn followed(session: ExecSession, live: Arc<Live>, place: OwnedSemaphorePermit, name: String) -> FollowedCommand {
    let (pid, lost) = (session.pid, session.lost);
    let follower = Follower { session, live, name, _place: place };
    let events = stream::try_unfold(follower, |mut follower| async move {
        Ok(follower.next().await?.map(|event| (event, follower)))
    });
    FollowedCommand { pid, lost, events: events.boxed() }
}
