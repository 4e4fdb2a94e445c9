//! Commands of a sandbox that a client follows, can lose, and can find again.
//!
//! ```text
//!   run_command ─────> started as a service of the guest, followed from its first byte
//!   connect_command ─> one that was started before: what is kept of its output, then what comes
//!                        └─ events ... Exit             dropped: the command runs on
//! ```
//! With a follower, no output is lost: a slow follower makes the command wait, also over a snapshot of the sandbox
//! ([`followers`](super::followers)). Without a follower, a command keeps the last
//! 256 KiB of each stream, and [`FollowedCommand::lost`] counts the rest.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use nullspace_api::{ErrorResponseCode, ExecRequest};
use nullspace_guest::host::{AgentError, ExecEvent, ExecSession};
use nullspace_guest::message::Exec;
use nullspace_service::{CommandEvent, FollowedCommand};
use tokio::sync::OwnedSemaphorePermit;

use super::activity::Active;
use super::exec::{command, exec_error};
use super::followers::{MAX_FOLLOWED, Registered, Seen};
use super::live::Live;
use nullspace_service::{Error, Result};

/// Time limit for a process to read the data written to its stdin.
const STDIN_LIMIT: Duration = Duration::from_secs(30);

/// The state of a follower.
struct Follower {
    session: ExecSession,
    /// The session's connection is closed: the next one is in the registration.
    closed: bool,
    seen: Seen,
    live: Arc<Live>,
    name: String,
    registered: Registered,
    _active: Active,
}

impl Follower {
    /// Returns the next event, or `None` after the end. Cancel safe.
    async fn next(&mut self) -> Result<Option<CommandEvent>> {
        let live = Arc::clone(&self.live);
        tokio::select! {
            biased;
            event = self.next_event() => event.map_err(|error| exec_error(error, &self.name)),
            () = live.ended.cancelled() => Err(live.gone()),
        }
    }

    async fn next_event(&mut self) -> std::result::Result<Option<CommandEvent>, AgentError> {
        loop {
            if self.closed {
                // A connection that was not closed for a snapshot ends the sandbox, and with it this wait.
                self.session = self.registered.next().await?;
                self.closed = false;
                let dropped = self.seen.again(self.session.lost);
                if dropped > 0 {
                    tracing::warn!(sandbox_id = %self.live.id, dropped, "output of a command was lost during a snapshot");
                    let marker = format!("[nullspace: {dropped} bytes of output were dropped during a snapshot]\n");
                    return Ok(Some(CommandEvent::Stderr(Bytes::from(marker))));
                }
            }
            let event = match self.session.next().await {
                Err(AgentError::Closed) => {
                    self.closed = true;
                    continue;
                }
                event => event?,
            };
            let event = match event {
                None => return Ok(None),
                Some(ExecEvent::Stdout(bytes)) => self.seen.stdout(bytes).map(CommandEvent::Stdout),
                Some(ExecEvent::Stderr(bytes)) => self.seen.stderr(bytes).map(CommandEvent::Stderr),
                Some(ExecEvent::Exit(exit)) => Some(CommandEvent::Exit { code: exit.code, timed_out: exit.timed_out }),
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }
}

/// Starts a command and follows it; see [`LiveCommands::run_command`](nullspace_service::LiveCommands::run_command).
pub(super) async fn run(live: Arc<Live>, request: ExecRequest) -> Result<FollowedCommand> {
    let exec = Exec { stdin: true, ..command(&live, &request)? };
    let permit = live.may_follow()?;
    let name = request.command;
    let sandbox = Arc::clone(&live);
    let running = sandbox.using(|agent| async move {
        let session = agent.run_service(exec).await.map_err(|error| exec_error(error, &name))?;
        Ok(followed(session, live, permit, name))
    });
    running.await
}

/// Follows a running command; see [`LiveCommands::connect_command`](nullspace_service::LiveCommands::connect_command).
pub(super) async fn connect(live: Arc<Live>, pid: u32) -> Result<FollowedCommand> {
    let permit = live.may_follow()?;
    let name = format!("process {pid}");
    let sandbox = Arc::clone(&live);
    let running = sandbox.using(|agent| async move {
        let session = agent.attach(pid).await.map_err(|error| exec_error(error, &name))?;
        Ok(followed(session, live, permit, name))
    });
    running.await
}

/// Writes to a command's stdin; see [`LiveCommands::send_stdin`](nullspace_service::LiveCommands::send_stdin).
pub(super) async fn feed(live: &Live, pid: u32, data: &[u8], close: bool) -> Result<()> {
    let feed = live.using(|agent| async move {
        let fed = match close {
            true => agent.close_service_stdin(pid, data, STDIN_LIMIT).await,
            false => agent.feed_service(pid, data, STDIN_LIMIT).await,
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
    });
    feed.await
}

impl Live {
    pub(super) fn may_follow(&self) -> Result<OwnedSemaphorePermit> {
        self.followers.permit().ok_or_else(|| {
            let message =
                format!("{MAX_FOLLOWED} commands and terminals of this sandbox are followed already: let one go first");
            Error::new(ErrorResponseCode::RateLimitExceeded, message)
        })
    }
}

pub(super) fn followed(
    session: ExecSession,
    live: Arc<Live>,
    permit: OwnedSemaphorePermit,
    name: String,
) -> FollowedCommand {
    let (pid, lost) = (session.pid, session.lost);
    let registered = live.followers.register(pid, permit);
    let _active = live.activity.begin();
    let follower = Follower { session, closed: false, seen: Seen::from(lost), live, name, registered, _active };
    let events = stream::try_unfold(follower, |mut follower| async move {
        Ok(follower.next().await?.map(|event| (event, follower)))
    });
    FollowedCommand { pid, lost, events: events.boxed() }
}
