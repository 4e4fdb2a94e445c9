//! Output of a guest's process in the build's log.
//!
//! ```text
//!  ExecSession ── stdout, stderr ──> Lines ──> entries (info | warn), at most so many ──together──> BuildLog
//! ```
//! Lines of one moment share a transaction. One entry says that the rest is cut off. The last lines are kept for the
//! failure's details, even if the log has no room for them.

use std::time::Duration;

use nullspace_api::{TemplateBuildLogEntry, TemplateBuildLogLevel};
use nullspace_guest::host::{AgentError, ExecEvent, ExecSession};
use nullspace_guest::message::Exit;
use nullspace_host_interface::{Place, RecordError};

use super::log::BuildLog;
use crate::lines::{LastLines, Lines};

/// Longest log line that is kept whole, bytes.
const LINE: usize = 8 * 1024;
/// Most lines of one process in the log.
pub(crate) const MOST_LINES: usize = 5_000;
/// Most bytes of one process in the log.
pub(crate) const MOST_BYTES: usize = 4 << 20;
/// Lines that come within this time share a transaction.
const TOGETHER: Duration = Duration::from_millis(50);
/// Number of lines that are written at once, without a wait for more.
const MANY: usize = 200;

/// The reasons for which output cannot be followed to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// The agent failed or is gone.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The log was refused.
    #[error(transparent)]
    Record(#[from] RecordError),
}

/// Output of a process, from its first byte to its last.
pub(crate) struct Output {
    place: Place,
    out: Lines,
    err: Lines,
    lines_left: usize,
    bytes_left: usize,
    entries: Vec<TemplateBuildLogEntry>,
    last: LastLines,
}

impl Output {
    /// The output of a process, for the log's `place`.
    pub(crate) fn new(place: Place) -> Output {
        let (lines_left, bytes_left) = (MOST_LINES, MOST_BYTES);
        let (out, err) = (Lines::new(LINE), Lines::new(LINE));
        Output { place, out, err, lines_left, bytes_left, entries: Vec::new(), last: LastLines::new("…") }
    }

    /// The last lines, of both streams, oldest first.
    pub(crate) fn last(&self) -> Vec<String> {
        self.last.all()
    }

    /// Copies output into the log until the process ends (`Some`) or the agent closes the stream (`None`). Cancel safe.
    pub(crate) async fn follow(&mut self, session: &mut ExecSession, log: &BuildLog) -> Result<Option<Exit>, Lost> {
        let mut flush = None;
        let ended = loop {
            let due = async {
                match flush {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {
                    self.flush(log).await?;
                    flush = None;
                }
                event = session.next() => match event {
                    Ok(Some(ExecEvent::Exit(exit))) => break Ok(Some(exit)),
                    Ok(Some(event)) => self.take(event, log),
                    Ok(None) => break Ok(None),
                    Err(error) => break Err(error),
                },
            }
            if flush.is_none() && !self.entries.is_empty() {
                flush = Some(tokio::time::Instant::now() + TOGETHER);
            }
            if self.entries.len() >= MANY {
                self.flush(log).await?;
            }
        };
        let (out, err) = (self.out.finish(), self.err.finish());
        self.keep(out, TemplateBuildLogLevel::Info, log);
        self.keep(err, TemplateBuildLogLevel::Warn, log);
        self.flush(log).await?;
        Ok(ended?)
    }

    fn take(&mut self, event: ExecEvent, log: &BuildLog) {
        let (lines, level) = match event {
            ExecEvent::Stdout(bytes) => (self.out.push(&bytes), TemplateBuildLogLevel::Info),
            ExecEvent::Stderr(bytes) => (self.err.push(&bytes), TemplateBuildLogLevel::Warn),
            ExecEvent::Exit(_) => return,
        };
        self.keep(lines, level, log);
    }

    fn keep(&mut self, lines: Vec<String>, level: TemplateBuildLogLevel, log: &BuildLog) {
        for line in lines {
            self.last.push(&line);
            let kept = self.bytes_left.checked_sub(line.len()).filter(|_| self.lines_left > 1);
            match kept {
                Some(left) => {
                    self.bytes_left = left;
                    self.lines_left -= 1;
                    self.entries.push(log.message(self.place, level, line));
                }
                None if self.lines_left > 0 => {
                    // Nothing follows it, not even a shorter line.
                    (self.lines_left, self.bytes_left) = (0, 0);
                    let notice = format!("Output beyond {MOST_LINES} lines or {} MiB is not kept", MOST_BYTES >> 20);
                    self.entries.push(log.message(self.place, TemplateBuildLogLevel::Warn, notice));
                }
                None => {}
            }
        }
    }

    async fn flush(&mut self, log: &BuildLog) -> Result<(), RecordError> {
        log.append(std::mem::take(&mut self.entries)).await
    }
}
