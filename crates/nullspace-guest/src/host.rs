//! The host's end: an asynchronous client of the agent.
//!
//! ```text
//!  Agent (clones share it)        driver task                           guest
//!    exec, freeze, probe ..  ->  queue -> one write per batch  ------->
//!                                                              <-------  frames
//!    ExecSession::next       <-  per-channel queue, bounded by credit
//!    last clone and session dropped, or disconnect(): the stream is closed
//! ```
//!
//! The guest is hostile: every frame is checked, what it may make the host hold is bounded by credit and by
//! [`MAX_CHANNELS`](crate::frame::MAX_CHANNELS), and a peer that breaks the protocol or does not read is dropped with
//! [`AgentError::Protocol`]. Futures may be dropped at any await: the channel is reset then, and the agent kills what
//! ran in it.

mod files;
mod link;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

pub use self::files::{CopyWriter, FileReader, FileWriter};
use self::link::{Handle, Item};
pub use self::session::{ExecEvent, ExecOutput, ExecSession, ExecStdin};
use crate::message::{
    AgentInfo, Configure, Exec, Failure, FailureKind, KILL_AFTER_MS, Outcome, Probe, Process, RESUME_LIMIT_MS, Request,
    Restored,
};

/// Bound of an operation that only asks the kernel something.
const QUICK: Duration = Duration::from_secs(20);
/// Bound of an operation that may have to write a disk's dirty pages out first.
const FLUSH: Duration = Duration::from_secs(120);
/// Time beyond the timeout of a process or probe until the agent counts as hung.
const GRACE: Duration = Duration::from_millis(5000 + KILL_AFTER_MS);
/// Bound of a restored guest's hooks, once it has its identity.
const RESUME: Duration = Duration::from_millis(RESUME_LIMIT_MS).saturating_add(GRACE);
/// Name of a restored guest's first operation, in errors.
const IDENTITY: &str = "restored";
/// One reset comes with a restore; more than a few mean something else.
const MAX_RESETS: u32 = 5;
/// Bound of [`Agent::exec_collect`] for a process without a timeout of its own.
const LONGEST_EXEC: Duration = Duration::from_secs(24 * 3600);

/// Errors of the agent's operations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The stream ended: the machine is gone, or another connection took over.
    #[error("the connection to the guest agent is closed")]
    Closed,
    /// No answer in time.
    #[error("the guest agent did not answer {what} within {limit_ms} ms")]
    Timeout {
        /// The operation.
        what: &'static str,
        /// The bound in ms.
        limit_ms: u64,
    },
    /// The guest has not answered its heartbeat for so long: it is halted, frozen, or its agent is gone. The connection
    /// is closed.
    #[error("the guest agent has not given a sign of life for {secs} s")]
    Silent {
        /// Seconds of silence.
        secs: u64,
    },
    /// The agent answered that it could not.
    #[error(transparent)]
    Failed(Failure),
    /// The peer sent what no honest agent sends. The connection is closed.
    #[error("the guest agent broke the protocol: {0}")]
    Protocol(String),
    /// The agent is of another version than this host.
    #[error("the guest agent speaks version {found}, this host {expected}: the template must be rebuilt")]
    Abi {
        /// This host's [`AGENT_ABI`](crate::message::AGENT_ABI).
        expected: u32,
        /// The guest's.
        found: u32,
    },
}

impl AgentError {
    fn timeout(what: &'static str, limit: Duration) -> AgentError {
        AgentError::Timeout { what, limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }
    }

    fn unexpected(what: &str, outcome: &Outcome) -> AgentError {
        let mut shown = format!("{outcome:?}");
        if let Some((cut, _)) = shown.char_indices().nth(200) {
            shown.truncate(cut);
        }
        AgentError::Protocol(format!("{what} was answered with {shown}"))
    }
}

/// A session with the agent of one guest. Clones share it; the stream closes when the last clone and the last
/// [`ExecSession`] are gone.
#[derive(Debug, Clone)]
pub struct Agent {
    handle: Arc<Handle>,
}

impl Agent {
    /// Begins a session. Repeats HELLO until the agent answers, since a guest may still be booting, at most for `timeout`.
    /// On error the stream is closed. Whatever an older session ran is killed, services excepted.
    pub async fn connect<S>(stream: S, timeout: Duration) -> Result<(Agent, AgentInfo), AgentError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let handle = Handle::spawn(stream);
        let info = handle.greet(&[], timeout).await?;
        Ok((Agent { handle: Arc::new(handle) }, info))
    }

    /// As [`Agent::connect`], for a guest that was just restored from a snapshot: `restored` travels right behind HELLO,
    /// so that both take one round trip. It is made for each attempt, so that its clock is the sender's. Returns when the guest has its new identity and its resume hooks have run; for
    /// these it waits [`RESUME_LIMIT_MS`] beyond `timeout`.
    ///
    /// `open` opens a stream to the guest. It is asked again when the stream closes before the guest has answered: a
    /// vsock's driver is told after a restore that its transport was reset, and closes what it has just accepted, be it
    /// before the agent's first byte or behind its greeting. To be told twice who it is does a guest no harm: it does
    /// nothing twice.
    pub async fn connect_restored<S, E, F>(
        mut open: impl FnMut() -> F,
        restored: impl Fn() -> Restored,
        timeout: Duration,
    ) -> Result<(Agent, AgentInfo), E>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        E: From<AgentError>,
        F: Future<Output = Result<S, E>>,
    {
        let until = tokio::time::Instant::now() + timeout;
        let mut resets_left = MAX_RESETS;
        loop {
            let stream = open().await?;
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            match Agent::restore_over(stream, restored(), left).await {
                Err(AgentError::Closed) if resets_left > 0 => resets_left -= 1,
                Err(AgentError::Timeout { what: "hello" | IDENTITY, .. }) => {
                    return Err(AgentError::timeout(IDENTITY, timeout).into());
                }
                other => return Ok(other?),
            }
        }
    }

    async fn restore_over<S>(stream: S, restored: Restored, timeout: Duration) -> Result<(Agent, AgentInfo), AgentError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let until = tokio::time::Instant::now() + timeout;
        let agent = Agent { handle: Arc::new(Handle::spawn(stream)) };
        let (channel, open) = agent.handle.prepare(&Request::Restored(restored))?;
        let info = agent.handle.greet(&open, timeout).await?;
        let left = until.saturating_duration_since(tokio::time::Instant::now());
        let first = tokio::time::timeout(left, channel.next()).await;
        let end = match first.map_err(|_| AgentError::timeout(IDENTITY, timeout))? {
            Item::Reply(Outcome::Done) => channel.end(RESUME).await.map_err(|error| match error {
                AgentError::Timeout { .. } => AgentError::timeout("resume hooks", RESUME),
                error => error,
            })?,
            Item::End(end) => end?,
            Item::Reply(other) => return Err(AgentError::unexpected(IDENTITY, &other)),
            Item::Output(..) => return Err(AgentError::Protocol(format!("{IDENTITY} was answered with output"))),
        };
        match end {
            Outcome::Done => Ok((agent, info)),
            other => Err(AgentError::unexpected(IDENTITY, &other)),
        }
    }

    /// Sets hostname, hosts, resolver, clock and network after a cold boot.
    pub async fn configure(&self, configure: Configure) -> Result<(), AgentError> {
        self.done("configure", &Request::Configure(configure), QUICK).await
    }

    /// Starts a process whose life is bound to the returned session. Answers once it runs.
    pub async fn exec(&self, exec: Exec) -> Result<ExecSession, AgentError> {
        let stdin = exec.stdin;
        let session = ExecSession::start(&self.handle, &Request::Exec(exec), stdin, "exec").await?;
        Ok(session)
    }

    /// Runs a process to its end and keeps the first `max_bytes` of stdout and of stderr each; the rest is read and
    /// dropped, and `truncated` says so. Its bound is the process's own timeout, or a day.
    pub async fn exec_collect(&self, exec: Exec, max_bytes: usize) -> Result<ExecOutput, AgentError> {
        self.exec_collect_while(exec, max_bytes, |_| true).await
    }

    /// As [`Agent::exec_collect`], asking before memory is taken: see [`ExecSession::collect_while`].
    pub async fn exec_collect_while(
        &self,
        exec: Exec,
        max_bytes: usize,
        may_keep: impl FnMut(usize) -> bool,
    ) -> Result<ExecOutput, AgentError> {
        let limit = match exec.timeout_ms {
            Some(ms) => Duration::from_millis(ms).saturating_add(GRACE),
            None => LONGEST_EXEC,
        };
        let run = async { self.exec(Exec { stdin: false, ..exec }).await?.collect_while(max_bytes, may_keep).await };
        match tokio::time::timeout(limit, run).await {
            Ok(output) => output,
            Err(_) => Err(AgentError::timeout("exec", limit)),
        }
    }

    /// Starts a process that outlives this session: the template's start command. Answers its pid.
    pub async fn start_service(&self, exec: Exec) -> Result<u32, AgentError> {
        match self.call("start_service", &Request::StartService(exec), QUICK).await? {
            Outcome::Started { pid } => Ok(pid),
            other => Err(AgentError::unexpected("start_service", &other)),
        }
    }

    /// Starts a process that outlives this session, and follows it from its first byte on: while the returned session
    /// lives, nothing of its output is lost. Dropping the session leaves the process alone.
    pub async fn run_service(&self, exec: Exec) -> Result<ExecSession, AgentError> {
        ExecSession::start(&self.handle, &Request::RunService(exec), false, "run_service").await
    }

    /// Writes to the stdin of a service; returns once all of it is in the pipe, or after `limit` when the process does not
    /// read. What was written until then stays written.
    pub async fn feed_service(&self, pid: u32, bytes: &[u8], limit: Duration) -> Result<(), AgentError> {
        let channel = self.handle.open(&Request::FeedService { pid })?;
        let feed = async {
            match channel.write(bytes).await {
                // It has ended early, and its end says why.
                Ok(()) | Err(AgentError::Closed) => {}
                Err(error) => return Err(error),
            }
            channel.write_eof();
            channel.end(limit).await
        };
        match tokio::time::timeout(limit, feed).await {
            Ok(Ok(Outcome::Done)) => Ok(()),
            Ok(Ok(other)) => Err(AgentError::unexpected("feed_service", &other)),
            Ok(Err(AgentError::Timeout { .. })) | Err(_) => Err(AgentError::timeout("feed_service", limit)),
            Ok(Err(error)) => Err(error),
        }
    }

    /// Follows a service from its kept output's beginning (the last 256 KiB of each stream) until it exits. Dropping
    /// the session leaves the service alone.
    pub async fn attach(&self, pid: u32) -> Result<ExecSession, AgentError> {
        ExecSession::start(&self.handle, &Request::Attach { pid, follow: true }, false, "attach").await
    }

    /// A service's kept output; the events end without [`ExecEvent::Exit`] when it still runs.
    pub async fn output_so_far(&self, pid: u32) -> Result<ExecSession, AgentError> {
        let request = Request::Attach { pid, follow: false };
        Ok(ExecSession::start(&self.handle, &request, false, "attach").await?.that_may_run_on())
    }

    /// The guest's processes in ascending pid order, without kernel threads and the agent.
    pub async fn processes(&self) -> Result<Vec<Process>, AgentError> {
        match self.call("processes", &Request::Processes, QUICK).await? {
            Outcome::Processes { processes } => Ok(processes),
            other => Err(AgentError::unexpected("processes", &other)),
        }
    }

    /// Sends a signal to one process of the guest.
    pub async fn kill(&self, pid: u32, signal: i32) -> Result<(), AgentError> {
        self.done("kill", &Request::Kill { pid, signal }, QUICK).await
    }

    /// One readiness attempt: whether the check holds, and why not.
    pub async fn probe(&self, probe: Probe) -> Result<(bool, String), AgentError> {
        let limit = Duration::from_millis(probe.timeout_ms).saturating_add(GRACE);
        match self.call("probe", &Request::Probe(probe), limit).await? {
            Outcome::Probed { ready, detail } => Ok((ready, detail)),
            other => Err(AgentError::unexpected("probe", &other)),
        }
    }

    /// Flushes and freezes the root filesystem. Idempotent.
    pub async fn freeze(&self) -> Result<(), AgentError> {
        self.done("freeze", &Request::Freeze, FLUSH).await
    }

    /// Lets the root filesystem be written again. Idempotent.
    pub async fn thaw(&self) -> Result<(), AgentError> {
        self.done("thaw", &Request::Thaw, QUICK).await
    }

    /// Gives a restored guest its new identity; see [`Agent::connect_restored`] for the quicker way.
    pub async fn restored(&self, restored: Restored) -> Result<(), AgentError> {
        self.done(IDENTITY, &Request::Restored(restored), QUICK.saturating_add(RESUME)).await
    }

    /// Grows the root filesystem to its device; answers its size in bytes.
    pub async fn grow_root(&self) -> Result<u64, AgentError> {
        match self.call("grow_root", &Request::GrowRoot, FLUSH).await? {
            Outcome::Grown { bytes } => Ok(bytes),
            other => Err(AgentError::unexpected("grow_root", &other)),
        }
    }

    /// Ends all processes of the guest and what else they left outside the root's files; with `drop_caches` the guest is
    /// as after its boot. Processes of this session end too.
    pub async fn end_processes(&self, drop_caches: bool) -> Result<(), AgentError> {
        self.done("end_processes", &Request::EndProcesses { drop_caches }, FLUSH).await
    }

    /// Flushes and powers the guest off. A stream that ends meanwhile counts as done.
    pub async fn shutdown(&self) -> Result<(), AgentError> {
        match self.done("shutdown", &Request::Shutdown, FLUSH).await {
            Err(AgentError::Closed) => Ok(()),
            other => other,
        }
    }

    /// Resolves when the connection has ended, with why. The stream is dropped by then.
    pub async fn closed(&self) -> AgentError {
        self.handle.closed().await
    }

    /// Sends what is queued (for at most a second), then closes the stream for all clones. Processes of this session run on
    /// until the next session begins. Call it before a snapshot, so that no frame is cut by it.
    pub async fn disconnect(&self) {
        self.handle.disconnect().await;
    }

    async fn done(&self, what: &'static str, request: &Request, limit: Duration) -> Result<(), AgentError> {
        match self.call(what, request, limit).await? {
            Outcome::Done => Ok(()),
            other => Err(AgentError::unexpected(what, &other)),
        }
    }

    async fn call(&self, what: &'static str, request: &Request, limit: Duration) -> Result<Outcome, AgentError> {
        let channel = self.handle.open(request)?;
        channel.end(limit).await.map_err(|error| match error {
            AgentError::Timeout { .. } => AgentError::timeout(what, limit),
            error => error,
        })
    }
}

fn refused(kind: FailureKind, message: impl Into<String>) -> AgentError {
    AgentError::Failed(Failure { kind, message: message.into() })
}
