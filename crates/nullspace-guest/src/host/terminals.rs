//! Terminals of the guest, seen from the host.
//!
//! A terminal is a service too: [`Agent::attach`] follows it again, and [`Agent::feed_service`] types into it.

use super::session::ExecSession;
use super::{Agent, AgentError, QUICK};
use crate::message::{Outcome, Request};
use crate::terminal::{OpenTerminal, Terminal, TerminalSize};

impl Agent {
    /// Opens a terminal and follows it from its first byte on. Dropping the session leaves the terminal alone. Its output is
    /// stdout.
    ///
    /// # Errors
    /// [`AgentError::Failed`] with [`FailureKind::Limit`](crate::message::FailureKind::Limit) when
    /// [`MAX_TERMINALS`](crate::terminal::MAX_TERMINALS) are open; [`AgentError::Lacking`] of an older agent.
    pub async fn open_terminal(&self, open: OpenTerminal) -> Result<ExecSession, AgentError> {
        ExecSession::start(&self.handle, &Request::OpenTerminal(open), false, "open_terminal").await
    }

    /// The terminals of the guest, in the guest's own words: names and number are not checked.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn terminals(&self) -> Result<Vec<Terminal>, AgentError> {
        match self.call("terminals", &Request::Terminals, QUICK).await? {
            Outcome::Terminals { terminals } => Ok(terminals),
            other => Err(AgentError::unexpected("terminals", &other)),
        }
    }

    /// Sets the size of the terminal whose first process has this pid.
    ///
    /// # Errors
    /// [`AgentError::Failed`] with [`FailureKind::NotFound`](crate::message::FailureKind::NotFound) when no open terminal has it.
    pub async fn resize(&self, pid: u32, size: TerminalSize) -> Result<(), AgentError> {
        self.done("resize", &Request::Resize { pid, size }, QUICK).await
    }

    /// Ends the session of the terminal whose first process has this pid. One that has ended already is no error.
    ///
    /// # Errors
    /// As [`Agent::resize`].
    pub async fn close_terminal(&self, pid: u32) -> Result<(), AgentError> {
        self.done("close_terminal", &Request::CloseTerminal { pid }, QUICK).await
    }
}
