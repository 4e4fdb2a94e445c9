//! Terminals in a running sandbox.
//!
//! ```text
//!   open_terminal ──────> pty_…: a shell with a terminal of its own, followed from its first byte
//!   connect_terminal ───> what is kept of its output, then what comes
//!                           └─ events … Exit           dropped: the terminal stays open
//! ```

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use nullspace_api::{PtySessionInfo, PtyStart, ResizeRequest};

use crate::Result;

/// A terminal of a sandbox, as a caller names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TerminalAt {
    /// By the id of its session, `pty_…`.
    Session(String),
    /// By the pid of the first process of its session.
    Pid(u32),
}

/// An event of a terminal. Nothing follows [`TerminalEvent::Exit`] or an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TerminalEvent {
    /// Output, as the programs wrote it.
    Output(Bytes),
    /// The first process of its session ended.
    Exit {
        /// Exit code; 128 + signal when a signal ended it.
        code: i32,
    },
}

/// A terminal that is followed. Dropping it leaves the terminal open.
pub struct FollowedTerminal {
    /// The terminal.
    pub session: PtySessionInfo,
    /// Bytes of output from before it was followed that were dropped.
    pub lost: u64,
    /// Its events. The terminal waits for a slow reader.
    pub events: BoxStream<'static, Result<TerminalEvent>>,
}

/// Terminals in a running sandbox. At most 16 are open at a time.
#[async_trait]
pub trait LiveTerminals: Send + Sync + 'static {
    /// Opens a terminal and follows it. `id` of the request has no meaning here.
    ///
    /// # Errors
    /// `RateLimitExceeded` when 16 are open; `RebuildRequired` when the sandbox's agent is older than this operation.
    async fn open_terminal(self: Arc<Self>, request: PtyStart) -> Result<FollowedTerminal>;

    /// Follows a terminal: the last 256 KiB of its output, then what comes. One whose session has ended is followed to its end.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    async fn connect_terminal(self: Arc<Self>, at: TerminalAt) -> Result<FollowedTerminal>;

    /// Types into the terminal with this pid. Returns when the kernel of the guest has taken all of it.
    ///
    /// # Errors
    /// `NotFound` when there is none; `TransitionConflict` when it has ended; `ExecTimeout` when no program reads it for 30 s.
    async fn type_into_terminal(&self, pid: u32, data: &[u8]) -> Result<()>;

    /// Sets the size of a terminal.
    ///
    /// # Errors
    /// `NotFound` when none of that name is open; `InvalidRequest` when a number is not from 1 to 1000.
    async fn resize_terminal(&self, at: TerminalAt, size: ResizeRequest) -> Result<()>;

    /// The open terminals, by pid.
    async fn list_terminals(&self) -> Result<Vec<PtySessionInfo>>;

    /// An open terminal.
    ///
    /// # Errors
    /// `NotFound` when none of that name is open.
    async fn get_terminal(&self, at: TerminalAt) -> Result<PtySessionInfo>;

    /// Ends the session of a terminal: SIGHUP to its processes, then SIGKILL. Returns when they are gone. One that has ended is
    /// no error.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    async fn kill_terminal(&self, at: TerminalAt) -> Result<()>;
}
