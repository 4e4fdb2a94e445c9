//! The services that have a terminal.

use std::sync::Arc;

use nullspace_guest::message::{Failure, FailureKind, Outcome};
use nullspace_guest::terminal::{OpenTerminal, Terminal, TerminalSize};

use super::Services;
use super::service::Service;
use crate::session::Channel;
use crate::terminals;

impl Services {
    /// Opens a terminal and sends all of its output to `channel`.
    pub(crate) fn open_terminal(&self, open: OpenTerminal, channel: &Arc<Channel>) -> Outcome {
        match terminals::complete(&open) {
            Ok(exec) => self.run_with(exec, Some((open.name, open.size)), channel),
            Err(failure) => Outcome::Failed(failure),
        }
    }

    /// The terminals that are remembered.
    pub(crate) fn terminals(&self) -> Vec<Terminal> {
        self.lock().values().filter_map(|service| service.terminal()).collect()
    }

    /// Sets the size of a terminal.
    pub(crate) fn resize(&self, pid: u32, size: TerminalSize) -> Result<(), Failure> {
        terminals::check(size)?;
        match self.terminal(pid)?.resize(size) {
            Ok(true) => Ok(()),
            Ok(false) => Err(not_found(pid)),
            Err(error) => {
                let message = format!("The size of terminal {pid} cannot be set: {error}.");
                Err(Failure { kind: FailureKind::Internal, message })
            }
        }
    }

    /// Ends the session of a terminal. One that has ended stays as it is.
    pub(crate) fn close_terminal(&self, pid: u32) -> Result<(), Failure> {
        terminals::end_session(self.terminal(pid)?.watch())
    }

    fn terminal(&self, pid: u32) -> Result<Arc<Service>, Failure> {
        let service = self.lock().get(&pid).filter(|service| service.screen.is_some()).cloned();
        service.ok_or_else(|| not_found(pid))
    }
}

fn not_found(pid: u32) -> Failure {
    Failure { kind: FailureKind::NotFound, message: format!("No terminal with pid {pid} is open in this sandbox.") }
}
