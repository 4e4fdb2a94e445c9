//! `nullspace sandbox shell`: a terminal of a sandbox on this terminal.
//!
//! ```text
//!   stdin ── thread ── escape ──> type_in ──> sandbox          SIGWINCH ──> resize
//!   stdout <────────────────────── output <── sandbox          SIGTERM, SIGHUP, ~. ──> leave; the session stays open
//! ```
//! With a terminal on stdin that is in raw mode meanwhile: every key goes to the sandbox, Ctrl-C and Ctrl-D too. It gets its
//! settings back when this returns, fails or panics, and at every signal but SIGKILL. Without one, what comes on stdin is typed, and its end is typed as
//! Ctrl-D.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nullspace_api::PtyStart;
use nullspace_client::{TerminalEvent, TerminalInput, TerminalOutput};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::remote::Remote;

/// Ctrl-D.
const END: u8 = 4;
/// Between two of them, once stdin is at its end: a program that reads again finds the end again.
const END_AGAIN: Duration = Duration::from_secs(1);
/// Pieces of stdin that wait.
const PIECES: usize = 4;
/// Exit code when the connection to the session was lost, as of ssh.
const LOST: u8 = 255;

/// A terminal to open or to follow.
#[derive(Debug, Args)]
pub(crate) struct Shell {
    /// Id of the sandbox, `sb_…`.
    id: String,
    /// Program and arguments instead of the user's shell, after `--`.
    #[arg(last = true)]
    command: Vec<String>,
    /// Follow an open terminal, `pty_…`, instead of opening one.
    #[arg(long, conflicts_with_all = ["command", "user", "cwd"])]
    attach: Option<String>,
    /// User to run it as.
    #[arg(long)]
    user: Option<String>,
    /// Working directory.
    #[arg(long)]
    cwd: Option<String>,
    #[command(flatten)]
    remote: Remote,
}

/// How a session was left.
enum Left {
    /// It has ended, with this exit code.
    Ended(i32),
    /// The user has left it.
    Detached,
    /// A signal ended this command.
    Signal(u8),
    /// The connection has ended.
    Lost(nullspace_client::Error),
}

pub(crate) async fn run(shell: Shell) -> anyhow::Result<ExitCode> {
    let client = shell.remote.client()?;
    let size = size();
    let (output, mut input) = match &shell.attach {
        Some(session) => client.connect_terminal(&shell.id, session).await?,
        None => {
            let mut words = shell.command.into_iter();
            let command = words.next();
            let args: Vec<String> = words.collect();
            let start = PtyStart {
                args: command.is_some().then_some(args),
                command,
                cols: size.map(|(cols, _)| cols),
                rows: size.map(|(_, rows)| rows),
                cwd: shell.cwd,
                user: shell.user,
                ..PtyStart::default()
            };
            client.open_terminal(&shell.id, start).await?
        }
    };
    if let (Some(_), Some((cols, rows))) = (&shell.attach, size) {
        input.resize(cols, rows).await?;
    }
    let session = output.session().session_id.clone();
    let left = {
        let raw = Raw::begin().context("put the terminal into raw mode")?;
        join(output, input, raw.is_some()).await?
    };
    let stays = || eprintln!("Terminal {session} stays open: nullspace sandbox shell {} --attach {session}", shell.id);
    match left {
        Left::Ended(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        Left::Detached => {
            stays();
            Ok(ExitCode::SUCCESS)
        }
        Left::Signal(number) => {
            stays();
            Ok(ExitCode::from(number.saturating_add(128)))
        }
        Left::Lost(error) => {
            eprintln!("nullspace: {:#}", anyhow::Error::from(error));
            stays();
            Ok(ExitCode::from(LOST))
        }
    }
}

/// Columns and rows of this terminal, if there is one.
fn size() -> Option<(u32, u32)> {
    let found = tcgetwinsize(std::io::stdout()).or_else(|_| tcgetwinsize(std::io::stdin())).ok()?;
    (found.ws_col > 0 && found.ws_row > 0)
        .then(|| (u32::from(found.ws_col.min(1000)), u32::from(found.ws_row.min(1000))))
}

/// This terminal in raw mode. Dropping it restores the settings.
struct Raw(Termios);

impl Raw {
    /// `None` when stdin is no terminal.
    fn begin() -> std::io::Result<Option<Raw>> {
        if !std::io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        let restored = Raw(before);
        tcsetattr(std::io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Some(restored))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// What is done with the session, in order.
enum Order {
    Type(Vec<u8>),
    Resize,
    End,
}

/// Joins the session with stdin and stdout until one of them ends.
async fn join(mut output: TerminalOutput, input: TerminalInput, is_terminal: bool) -> anyhow::Result<Left> {
    let mut endings = [
        (1, signal(SignalKind::hangup())?),
        (2, signal(SignalKind::interrupt())?),
        (3, signal(SignalKind::quit())?),
        (15, signal(SignalKind::terminate())?),
    ];
    let mut resized = signal(SignalKind::window_change())?;
    let (keys, orders) = mpsc::channel(PIECES);
    // A thread of its own: a read of stdin cannot be given up, and nothing waits for this one.
    let reader = keys.clone();
    std::thread::Builder::new().name("stdin".into()).spawn(move || read(&reader, is_terminal))?;
    let mut typing = std::pin::pin!(obey(input, orders));
    let mut stdout = std::io::stdout();
    loop {
        tokio::select! {
            biased;
            number = any(&mut endings) => return Ok(Left::Signal(number)),
            left = &mut typing => return Ok(left),
            _ = resized.recv() => {
                // With keys before it the size is told a little later.
                let _ = keys.try_send(Order::Resize);
            }
            event = output.next() => match event {
                Ok(Some(TerminalEvent::Output(bytes))) => {
                    stdout.write_all(&bytes).context("write to stdout")?;
                    stdout.flush().context("write to stdout")?;
                }
                Ok(Some(TerminalEvent::Exit(code))) => return Ok(Left::Ended(code)),
                Ok(Some(TerminalEvent::Refused(what))) => eprint!("nullspace: {what}\r\n"),
                Ok(None) => return Ok(Left::Detached),
                Err(error) => return Ok(Left::Lost(error)),
            },
        }
    }
}

/// Waits for one of the signals. Returns its number.
async fn any(signals: &mut [(u8, Signal)]) -> u8 {
    std::future::poll_fn(|context| {
        for (number, signal) in &mut *signals {
            if signal.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(*number);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// Reads stdin to its end.
fn read(orders: &mpsc::Sender<Order>, is_terminal: bool) {
    let mut escape = is_terminal.then(Escape::default);
    let mut buffer = vec![0; 4096];
    let mut last = b'\n';
    loop {
        let read = match std::io::stdin().read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(len) => buffer.get(..len).unwrap_or_default(),
        };
        last = read.last().copied().unwrap_or(last);
        let (typed, leave) = match &mut escape {
            Some(escape) => escape.pass(read),
            None => (read.to_vec(), false),
        };
        if orders.blocking_send(Order::Type(typed)).is_err() {
            return;
        }
        if leave {
            let _ = orders.blocking_send(Order::End);
            return;
        }
    }
    if is_terminal {
        let _ = orders.blocking_send(Order::End);
        return;
    }
    // A last line that was not ended is ended.
    let mut end = if last == b'\n' { vec![END] } else { vec![b'\n', END] };
    while orders.blocking_send(Order::Type(std::mem::replace(&mut end, vec![END]))).is_ok() {
        std::thread::sleep(END_AGAIN);
    }
}

/// Types what is read, until the user leaves or the connection ends.
async fn obey(mut input: TerminalInput, mut orders: mpsc::Receiver<Order>) -> Left {
    while let Some(order) = orders.recv().await {
        let done = match order {
            Order::Type(bytes) => input.type_in(&bytes).await,
            Order::Resize => match size() {
                Some((cols, rows)) => input.resize(cols, rows).await,
                None => Ok(()),
            },
            Order::End => return Left::Detached,
        };
        if let Err(error) = done {
            return Left::Lost(error);
        }
    }
    Left::Detached
}

/// The escape of a session: `~.` at the beginning of a line leaves it, `~~` is `~`.
struct Escape {
    /// The last key ended a line.
    at_start: bool,
    /// `~` was typed there, and what follows decides.
    held: bool,
}

impl Default for Escape {
    fn default() -> Self {
        Self { at_start: true, held: false }
    }
}

impl Escape {
    /// What is typed into the session, and whether the user leaves.
    fn pass(&mut self, keys: &[u8]) -> (Vec<u8>, bool) {
        let mut typed = Vec::with_capacity(keys.len() + 1);
        for key in keys {
            if std::mem::take(&mut self.held) {
                match key {
                    b'.' => return (typed, true),
                    b'~' => {}
                    _ => typed.push(b'~'),
                }
            } else if self.at_start && *key == b'~' {
                (self.held, self.at_start) = (true, false);
                continue;
            }
            self.at_start = matches!(key, b'\r' | b'\n');
            typed.push(*key);
        }
        (typed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(pieces: &[&str]) -> (String, bool) {
        let mut escape = Escape::default();
        let mut all = String::new();
        for piece in pieces {
            let (typed, leave) = escape.pass(piece.as_bytes());
            all.push_str(std::str::from_utf8(&typed).unwrap());
            if leave {
                return (all, true);
            }
        }
        (all, false)
    }

    #[test]
    fn the_escape_leaves_at_the_beginning_of_a_line_alone() {
        for (pieces, expected, leaves) in [
            (&["ls ~.\r"][..], "ls ~.\r", false),
            (&["~."], "", true),
            (&["ls\r", "~", ".x"], "ls\r", true),
            (&["~~."], "~.", false),
            (&["~/bin/x\r"], "~/bin/x\r", false),
            (&["~", "\r", "~", "~", "."], "~\r~.", false),
            (&["\r~x~."], "\r~x~.", false),
        ] {
            assert_eq!(typed(pieces), (expected.to_owned(), leaves), "{pieces:?}");
        }
    }
}
