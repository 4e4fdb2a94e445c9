//! Processes seen from the host: events out, stdin in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::AgentError;
use super::link::{Handle, Item, OpenChannel};
use crate::frame::Kind;
use crate::message::{Exit, Outcome, Request};

/// Bound from asking for a process until it runs.
const START: Duration = Duration::from_secs(30);

/// An event of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// It wrote to stdout.
    Stdout(Bytes),
    /// It wrote to stderr.
    Stderr(Bytes),
    /// It ended; the last event.
    Exit(Exit),
}

/// A process's collected output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its pid in the guest.
    pub pid: u32,
    /// The first bytes of stdout.
    pub stdout: Vec<u8>,
    /// The first bytes of stderr.
    pub stderr: Vec<u8>,
    /// Its end.
    pub exit: Exit,
    /// True when stdout or stderr was longer than what is kept here.
    pub truncated: bool,
}

/// A running process, or a followed service. Dropping it kills the process with its process group; a service lives on.
#[derive(Debug)]
pub struct ExecSession {
    /// Its pid in the guest.
    pub pid: u32,
    /// Of a service that was followed late: bytes of stdout and of stderr that came before what is kept of them.
    pub lost: (u64, u64),
    channel: Arc<OpenChannel>,
    stdin: Option<ExecStdin>,
    over: bool,
    /// True when the events may end before the process.
    may_run_on: bool,
    /// Keeps the connection open.
    _handle: Arc<Handle>,
}

/// A process's stdin. Dropping it closes the process's stdin.
#[derive(Debug)]
pub struct ExecStdin {
    channel: Arc<OpenChannel>,
    _handle: Arc<Handle>,
}

impl ExecStdin {
    /// Sends bytes, waiting while the process does not read. [`AgentError::Closed`] when it has ended.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        self.channel.write(bytes).await
    }
}

impl Drop for ExecStdin {
    fn drop(&mut self) {
        self.channel.write_eof();
    }
}

impl Drop for ExecSession {
    fn drop(&mut self) {
        // Not left to the channel's own drop: a stdin that was given away may outlive this session.
        self.channel.reset();
    }
}

impl ExecSession {
    pub(super) async fn start(
        handle: &Arc<Handle>,
        request: &Request,
        stdin: bool,
        what: &'static str,
    ) -> Result<ExecSession, AgentError> {
        let channel = Arc::new(handle.open(request)?);
        let first = tokio::time::timeout(START, channel.next()).await;
        let (pid, lost) = match first.map_err(|_| AgentError::timeout(what, START))? {
            Item::Reply(Outcome::Started { pid }) => (pid, (0, 0)),
            Item::Reply(Outcome::Attached { pid, lost_stdout, lost_stderr }) => (pid, (lost_stdout, lost_stderr)),
            Item::Reply(Outcome::Failed(failure)) => return Err(AgentError::Failed(failure)),
            Item::Reply(other) => return Err(AgentError::unexpected(what, &other)),
            Item::End(Err(error)) => return Err(error),
            Item::End(Ok(other)) => return Err(AgentError::unexpected(what, &other)),
            Item::Output(..) => return Err(AgentError::Protocol("output before the reply".to_owned())),
        };
        let stdin = stdin.then(|| ExecStdin { channel: channel.clone(), _handle: handle.clone() });
        Ok(ExecSession { pid, lost, channel, stdin, over: false, may_run_on: false, _handle: handle.clone() })
    }

    pub(super) fn that_may_run_on(self) -> ExecSession {
        let mut session = self;
        session.may_run_on = true;
        session
    }

    /// The next event; `None` after [`ExecEvent::Exit`]. May be cancelled without losing an event.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, AgentError> {
        if self.over {
            return Ok(None);
        }
        let end = match self.channel.next().await {
            Item::Output(Kind::Stderr, bytes) => return Ok(Some(ExecEvent::Stderr(bytes))),
            Item::Output(_, bytes) => return Ok(Some(ExecEvent::Stdout(bytes))),
            Item::Reply(other) => return Err(AgentError::unexpected("exec", &other)),
            Item::End(end) => end,
        };
        self.over = true;
        match end? {
            Outcome::Exit(exit) => Ok(Some(ExecEvent::Exit(exit))),
            Outcome::Done if self.may_run_on => Ok(None),
            other => Err(AgentError::unexpected("exec", &other)),
        }
    }

    /// Sends bytes to stdin, waiting while the process does not read. For a process that also writes much, use
    /// [`ExecSession::take_stdin`] and read beside it.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), AgentError> {
        match &mut self.stdin {
            Some(stdin) => stdin.write(bytes).await,
            None => Err(AgentError::Closed),
        }
    }

    /// Closes stdin. Idempotent.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Gives stdin away, to be written from another task; `None` when the process has none, or it was taken or closed.
    pub fn take_stdin(&mut self) -> Option<ExecStdin> {
        self.stdin.take()
    }

    /// Closes stdin and reads to the end; keeps the first `max_bytes` of each stream.
    pub async fn collect(self, max_bytes: usize) -> Result<ExecOutput, AgentError> {
        self.collect_while(max_bytes, |_| true).await
    }

    /// As [`ExecSession::collect`]. `may_keep` is asked before memory is taken for output, with how many bytes more; once it
    /// says no, nothing more of that stream is kept.
    pub async fn collect_while(
        mut self,
        max_bytes: usize,
        mut may_keep: impl FnMut(usize) -> bool,
    ) -> Result<ExecOutput, AgentError> {
        self.close_stdin();
        let mut output = ExecOutput { pid: self.pid, ..ExecOutput::default() };
        let (mut max_stdout, mut max_stderr) = (max_bytes, max_bytes);
        while let Some(event) = self.next().await? {
            let (kept, max, bytes) = match event {
                ExecEvent::Stdout(bytes) => (&mut output.stdout, &mut max_stdout, bytes),
                ExecEvent::Stderr(bytes) => (&mut output.stderr, &mut max_stderr, bytes),
                ExecEvent::Exit(exit) => {
                    output.exit = exit;
                    continue;
                }
            };
            let wanted = kept.len().saturating_add(bytes.len()).min(*max);
            if wanted > kept.capacity() {
                let capacity = wanted.max(2 * kept.capacity()).min(*max);
                if may_keep(capacity - kept.capacity()) {
                    kept.reserve_exact(capacity - kept.len());
                } else {
                    *max = kept.capacity();
                }
            }
            let room = max.saturating_sub(kept.len()).min(bytes.len());
            kept.extend_from_slice(&bytes[..room]);
            output.truncated |= room < bytes.len();
        }
        Ok(output)
    }
}
