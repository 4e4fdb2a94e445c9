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
//! For a capture of a machine that lives on, [`Agent::halt`] stops what is on the wire with the guest's processes. The
//! session then survives its stream:
//!
//! ```text
//!   halt ──Done──> nothing travels; operations wait ──┬── thaw ────────────────────────> all goes on
//!                                                     └── the stream is lost ── rejoin ── thaw ──> all goes on
//! ```
//!
//! The guest is hostile: every frame is checked, what it may make the host hold is bounded by credit and by
//! [`MAX_CHANNELS`](crate::frame::MAX_CHANNELS) and [`MAX_DIALLED`](crate::frame::MAX_DIALLED), and a peer that breaks the protocol
//! or does not read is dropped with
//! [`AgentError::Protocol`]. Futures may be dropped at any await: the channel is reset then, and the agent kills what
//! ran in it.

mod dial;
mod files;
mod link;
mod search;
mod session;
mod terminals;
#[cfg(test)]
mod tests;
mod uploads;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

pub use self::dial::Dialled;
pub use self::files::{CopyWriter, FileReader, FileWriter};
pub use self::link::REJOIN_LIMIT;
use self::link::{Handle, Item};
pub use self::session::{ExecEvent, ExecOutput, ExecSession, ExecStdin};
pub use self::uploads::{PartWriter, Uploaded};
pub use self::watch::DirWatch;
use crate::capability::{AGENT_ABI, Capability, OLDEST_AGENT_ABI};
use crate::message::{
    AgentInfo, Configure, Exec, Failure, FailureKind, KILL_AFTER_MS, Outcome, Probe, Process, RESUME_LIMIT_MS, Request,
    Restored, Usage,
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
    /// The agent's interface version is outside the range that this host speaks. The connection is closed.
    #[error(
        "this template's agent has interface version {found}, this host speaks {} to {}: build the template again",
        OLDEST_AGENT_ABI,
        AGENT_ABI
    )]
    Abi {
        /// The guest's version.
        found: u32,
    },
    /// The agent is older and lacks a capability. Nothing was sent to it; other operations go on.
    #[error(
        "this template's agent is older (interface version {version}) and cannot {capability}: build the template again"
    )]
    Lacking {
        /// The missing capability.
        capability: Capability,
        /// The agent's interface version.
        version: u32,
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
    info: Arc<AgentInfo>,
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
        Ok((Agent { handle: Arc::new(handle), info: Arc::new(info.clone()) }, info))
    }

    /// The agent's description of itself, as it was told at the session's beginning.
    pub fn info(&self) -> AgentInfo {
        self.info.as_ref().clone()
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
        let handle = Handle::spawn(stream);
        let request = Request::Restored(restored);
        let (channel, info) = if request.needs().is_universal() {
            let (channel, open) = handle.prepare(&request)?;
            (channel, handle.greet(&open, timeout).await?)
        } else {
            // What an older agent may lack is only sent to one that has told it.
            let info = handle.greet(&[], timeout).await?;
            (handle.open(&request)?, info)
        };
        let agent = Agent { handle: Arc::new(handle), info: Arc::new(info.clone()) };
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
        self.feed(pid, bytes, false, limit).await
    }

    /// As [`Agent::feed_service`], and closes the stdin behind the bytes.
    pub async fn close_service_stdin(&self, pid: u32, bytes: &[u8], limit: Duration) -> Result<(), AgentError> {
        self.feed(pid, bytes, true, limit).await
    }

    async fn feed(&self, pid: u32, bytes: &[u8], close: bool, limit: Duration) -> Result<(), AgentError> {
        let channel = self.handle.open(&Request::FeedService { pid, close })?;
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
        self.done("freeze", &Request::Freeze { halt: false }, FLUSH).await
    }

    /// As [`Agent::freeze`], and stops all processes of the guest, for a capture of the machine. Where the snapshot is resumed
    /// they stand still until the guest has its new identity, clock, random numbers and network
    /// ([`Agent::connect_restored`]); in this machine until [`Agent::thaw`].
    ///
    /// Once it has answered, this session sends nothing and receives nothing: operations of all clones, and those that
    /// begin now, wait. A lost stream does not end it for [`REJOIN_LIMIT`]: see [`Agent::rejoin`]. On an error nothing is
    /// stopped, unless the connection is closed.
    pub async fn halt(&self) -> Result<(), AgentError> {
        self.handle.halt(FLUSH).await.map_err(|error| match error {
            AgentError::Timeout { .. } => AgentError::timeout("halt", FLUSH),
            error => error,
        })
    }

    /// Closes the stream of a halted session, which waits for [`Agent::rejoin`]. Without it the stream may stay.
    ///
    /// # Errors
    /// [`AgentError::Closed`] when the session is not halted, or has ended.
    pub async fn part(&self) -> Result<(), AgentError> {
        self.handle.part().await
    }

    /// Continues a halted session over another stream to the same machine, which `open` opens; closes the older one before.
    /// Everything that was under way goes on, and nothing is lost of it. Processes still stand still: [`Agent::thaw`] is
    /// next. `open` is asked again when the stream closes at once, as with [`Agent::connect_restored`].
    ///
    /// # Errors
    /// [`AgentError::Timeout`] after `timeout`; [`AgentError::Closed`] when the session is not halted, has ended, or its
    /// streams are closed again and again. The session stays halted, and may be rejoined again within its limit.
    pub async fn rejoin<S, E, F>(&self, mut open: impl FnMut() -> F, timeout: Duration) -> Result<(), E>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        E: From<AgentError>,
        F: Future<Output = Result<S, E>>,
    {
        let until = tokio::time::Instant::now() + timeout;
        self.handle.part().await?;
        let mut resets_left = MAX_RESETS;
        loop {
            let stream = open().await?;
            match self.handle.rejoin(stream, until).await {
                Err(AgentError::Closed) if resets_left > 0 && !self.handle.is_over() => resets_left -= 1,
                Err(AgentError::Timeout { .. }) => return Err(AgentError::timeout("hello", timeout).into()),
                other => return Ok(other?),
            }
        }
    }

    /// Lets the root filesystem be written again, and stopped processes go on. Idempotent.
    ///
    /// # Errors
    /// Of a halted session without a stream: [`AgentError::Closed`]; [`Agent::rejoin`] comes first.
    pub async fn thaw(&self) -> Result<(), AgentError> {
        self.thaw_with(None).await
    }

    /// As [`Agent::thaw`], after the guest's clock is set: for a machine that stood still. The clock of an agent without
    /// [`Capability::Halt`] is left alone.
    ///
    /// # Errors
    /// As [`Agent::thaw`].
    pub async fn thaw_at(&self, unix_time_ns: u64) -> Result<(), AgentError> {
        self.thaw_with(self.info.can(Capability::Halt).then_some(unix_time_ns)).await
    }

    async fn thaw_with(&self, unix_time_ns: Option<u64>) -> Result<(), AgentError> {
        self.handle.go_on()?;
        self.done("thaw", &Request::Thaw { unix_time_ns }, QUICK).await
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

    /// Measures what the guest uses.
    pub async fn usage(&self) -> Result<Usage, AgentError> {
        match self.call("usage", &Request::Usage, QUICK).await? {
            Outcome::Usage { usage } => Ok(usage),
            other => Err(AgentError::unexpected("usage", &other)),
        }
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
