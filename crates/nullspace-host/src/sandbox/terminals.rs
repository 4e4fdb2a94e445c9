//! Terminals in a running sandbox.
//!
//! ```text
//!   open ────> a service of the guest with a terminal, named pty_… ── followed as a command is
//!   connect ─> the guest's list of terminals: pty_… or pid ──────────┘
//! ```
//! The guest keeps the list, so terminals outlive the client's connection, a pause, and a restart of this service. What the
//! guest says of it is checked: a terminal without one of our names is not there.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use nullspace_api::{ErrorResponseCode, ExecRequest, PtySessionInfo, PtyStart, ResizeRequest};
use nullspace_guest::host::{Agent, AgentError};
use nullspace_guest::message::{Exec, FailureKind};
use nullspace_guest::terminal::{OpenTerminal, Terminal, TerminalSize};
use nullspace_service::{
    CommandEvent, Error, FollowedCommand, FollowedTerminal, LiveTerminals, Result, TerminalAt, TerminalEvent,
};
use nullspace_types::TerminalId;

use super::commands::{self, followed};
use super::exec::{command, exec_error};
use super::live::Live;

/// Most terminals of a guest that are looked at: an honest agent remembers 64 services.
const MAX_LISTED: usize = 64;

#[async_trait]
impl LiveTerminals for Live {
    async fn open_terminal(self: Arc<Self>, request: PtyStart) -> Result<FollowedTerminal> {
        let size = size(request.cols, request.rows)?;
        let exec = session(&self, &request)?;
        let permit = self.may_follow()?;
        let live = Arc::clone(&self);
        let opening = self.using(|agent| async move {
            let name = TerminalId::new().to_string();
            let open = OpenTerminal { name: name.clone(), size, exec };
            let session = agent.open_terminal(open).await.map_err(failed)?;
            let terminal = Terminal { name: name.clone(), pid: session.pid, size, exit: None };
            Ok(shown(told(&terminal), followed(session, live, permit, name)))
        });
        opening.await
    }

    async fn connect_terminal(self: Arc<Self>, at: TerminalAt) -> Result<FollowedTerminal> {
        let permit = self.may_follow()?;
        let live = Arc::clone(&self);
        let connecting = self.using(|agent| async move {
            let terminal = find(&agent, &at).await?;
            let session = agent.attach(terminal.pid).await.map_err(failed)?;
            Ok(shown(told(&terminal), followed(session, live, permit, terminal.name)))
        });
        connecting.await
    }

    async fn type_into_terminal(&self, pid: u32, data: &[u8]) -> Result<()> {
        commands::feed(self, pid, data, false).await
    }

    async fn resize_terminal(&self, at: TerminalAt, asked: ResizeRequest) -> Result<()> {
        let size = size(Some(asked.cols), Some(asked.rows))?;
        let resizing = self.using(|agent| async move {
            let pid = pid(&agent, &at).await?;
            agent.resize(pid, size).await.map_err(failed)
        });
        resizing.await
    }

    async fn list_terminals(&self) -> Result<Vec<PtySessionInfo>> {
        let terminals = self.using(|agent| async move { list(&agent).await }).await?;
        Ok(terminals.iter().filter(|terminal| terminal.exit.is_none()).map(told).collect())
    }

    async fn get_terminal(&self, at: TerminalAt) -> Result<PtySessionInfo> {
        let terminal = self.using(|agent| async move { find(&agent, &at).await }).await?;
        if let Some(exit) = terminal.exit {
            let message = format!("terminal {} has ended with exit code {}", terminal.name, exit.code);
            return Err(Error::new(ErrorResponseCode::NotFound, message));
        }
        Ok(told(&terminal))
    }

    async fn kill_terminal(&self, at: TerminalAt) -> Result<()> {
        let killing = self.using(|agent| async move {
            let pid = pid(&agent, &at).await?;
            agent.close_terminal(pid).await.map_err(failed)
        });
        killing.await
    }
}

/// The size that was asked for.
fn size(cols: Option<u32>, rows: Option<u32>) -> Result<TerminalSize> {
    let number = |name: &str, asked: Option<u32>, default: u16| match asked {
        None => Ok(default),
        Some(asked) => u16::try_from(asked)
            .ok()
            .filter(|number| (1..=TerminalSize::MAX).contains(number))
            .ok_or_else(|| Error::invalid(format!("{name} is {asked}: it must be 1 to {}", TerminalSize::MAX))),
    };
    let default = TerminalSize::DEFAULT;
    Ok(TerminalSize { cols: number("cols", cols, default.cols)?, rows: number("rows", rows, default.rows)? })
}

/// The process of a terminal: as a command's, with the settings of template and sandbox. An empty `argv` is the user's shell.
fn session(live: &Live, request: &PtyStart) -> Result<Exec> {
    if request.command.is_none() && request.args.is_some() {
        return Err(Error::invalid("args are given without a command"));
    }
    let asked = ExecRequest {
        command: request.command.clone().unwrap_or_else(|| "sh".to_owned()),
        args: request.args.clone(),
        cwd: request.cwd.clone(),
        envs: request.envs.clone(),
        user: request.user.clone(),
        ..ExecRequest::default()
    };
    let mut exec = command(live, &asked)?;
    if request.command.is_none() {
        exec.argv.clear();
    }
    Ok(Exec { timeout_ms: None, ..exec })
}

fn failed(error: AgentError) -> Error {
    match error {
        AgentError::Failed(failure) if failure.kind == FailureKind::Limit => {
            Error::new(ErrorResponseCode::RateLimitExceeded, failure.message)
        }
        error => exec_error(error, "terminal"),
    }
}

/// The terminals that the guest remembers.
async fn list(agent: &Agent) -> Result<Vec<Terminal>> {
    let mut terminals = agent.terminals().await.map_err(failed)?;
    terminals.truncate(MAX_LISTED);
    terminals.retain(is_proper);
    Ok(terminals)
}

/// True when a terminal has a name of ours.
fn is_proper(terminal: &Terminal) -> bool {
    terminal.name.parse::<TerminalId>().is_ok()
}

async fn find(agent: &Agent, at: &TerminalAt) -> Result<Terminal> {
    let terminals = list(agent).await?;
    let found = terminals.into_iter().rev().find(|terminal| match at {
        TerminalAt::Session(id) => terminal.name == *id,
        TerminalAt::Pid(pid) => terminal.pid == *pid,
    });
    found.ok_or_else(|| {
        let what = match at {
            TerminalAt::Session(_) => "with this id".to_owned(),
            TerminalAt::Pid(pid) => format!("with pid {pid}"),
        };
        let message = format!("there is no terminal {what} in the sandbox; list its terminals");
        Error::new(ErrorResponseCode::NotFound, message)
    })
}

async fn pid(agent: &Agent, at: &TerminalAt) -> Result<u32> {
    match at {
        TerminalAt::Pid(pid) => Ok(*pid),
        TerminalAt::Session(_) => Ok(find(agent, at).await?.pid),
    }
}

fn told(terminal: &Terminal) -> PtySessionInfo {
    PtySessionInfo {
        session_id: terminal.name.clone(),
        pid: terminal.pid,
        cols: terminal.size.cols.into(),
        rows: terminal.size.rows.into(),
        exec_id: terminal.name.clone(),
    }
}

/// A terminal's output is a command's stdout. What is said of bytes that were lost is for the reader, too.
fn shown(session: PtySessionInfo, command: FollowedCommand) -> FollowedTerminal {
    let events = command.events.map(|event| {
        event.map(|event| match event {
            CommandEvent::Stdout(bytes) | CommandEvent::Stderr(bytes) => TerminalEvent::Output(bytes),
            CommandEvent::Exit { code, .. } => TerminalEvent::Exit { code },
        })
    });
    FollowedTerminal { session, lost: command.lost.0, events: events.boxed() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_has_defaults_and_bounds() {
        assert_eq!(size(None, None).unwrap(), TerminalSize { cols: 120, rows: 30 });
        assert_eq!(size(Some(1), Some(1000)).unwrap(), TerminalSize { cols: 1, rows: 1000 });
        for (cols, rows, expected) in [
            (Some(0), None, "cols is 0: it must be 1 to 1000"),
            (None, Some(1001), "rows is 1001: it must be 1 to 1000"),
            (Some(u32::MAX), None, "cols is 4294967295: it must be 1 to 1000"),
        ] {
            assert_eq!(size(cols, rows).unwrap_err().message, expected);
        }
    }

    #[test]
    fn a_guest_cannot_name_a_terminal_as_it_likes() {
        let terminal = |name: &str| Terminal { name: name.to_owned(), pid: 7, size: TerminalSize::DEFAULT, exit: None };
        assert!(is_proper(&terminal(&TerminalId::new().to_string())));
        assert!(!is_proper(&terminal("pty_1")));
        assert!(!is_proper(&terminal("<script>")));
    }
}
