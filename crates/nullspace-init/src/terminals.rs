//! Terminals: what is run in one, and the end of its session.
//!
//! ```text
//!   OpenTerminal ── complete ──> program, TERM, SHELL ── services ──> a service with a terminal
//!   CloseTerminal ── SIGHUP, SIGCONT ──> all of its session ── 1 s ──> SIGKILL
//! ```
//! The session is not a login shell's: the environment is the template's and the sandbox's, and /etc/profile of most images
//! would replace their PATH.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use nullspace_guest::message::{Exec, Failure, FailureKind, KILL_AFTER_MS};
use nullspace_guest::terminal::{OpenTerminal, TerminalSize};

use crate::process::handle::Handle;
use crate::process::list;
use crate::process::prepare::accounts;
use crate::process::reaper::Watch;

/// The shell of a user whose own cannot be used: the first of these that is there.
const SHELLS: [&str; 2] = ["/bin/bash", "/bin/sh"];
/// Shells in /etc/passwd that refuse a session.
const NO_SHELLS: [&str; 2] = ["nologin", "false"];
/// Longest name of a terminal, bytes.
const MAX_NAME: usize = 64;
/// Time limit for killed processes of a session to be gone.
const KILLED_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks at them.
const PAUSE: Duration = Duration::from_millis(10);

fn invalid(message: String) -> Failure {
    Failure { kind: FailureKind::Invalid, message }
}

/// Checks a size.
pub(crate) fn check(size: TerminalSize) -> Result<(), Failure> {
    if size.is_valid() {
        return Ok(());
    }
    let TerminalSize { cols, rows } = size;
    Err(invalid(format!("A terminal has 1 to {} columns and rows, not {cols} x {rows}.", TerminalSize::MAX)))
}

/// The process of a terminal, with all that the request left to the agent.
pub(crate) fn complete(open: &OpenTerminal) -> Result<Exec, Failure> {
    check(open.size)?;
    if open.name.is_empty() || open.name.len() > MAX_NAME {
        return Err(invalid(format!("A terminal's name has 1 to {MAX_NAME} bytes.")));
    }
    let mut exec = Exec { stdin: true, timeout_ms: None, first: false, ..open.exec.clone() };
    if exec.argv.is_empty() {
        let accounts = accounts()?;
        let account = accounts.resolve(exec.user.as_deref().unwrap_or_default())?;
        let shell = shell(accounts.shell(account.uid), is_program);
        exec.envs.entry("SHELL".to_owned()).or_insert_with(|| shell.to_owned());
        exec.argv.push(shell.to_owned());
    }
    exec.envs.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
    Ok(exec)
}

/// The user's own shell if it is a program that allows a session, else the first of [`SHELLS`] that is there.
fn shell(own: Option<&str>, is_program: impl Fn(&str) -> bool) -> &str {
    let refuses = |shell: &str| NO_SHELLS.contains(&shell.rsplit('/').next().unwrap_or_default());
    let own = own.filter(|shell| shell.starts_with('/') && !refuses(shell) && is_program(shell));
    let [first, last] = SHELLS;
    match own {
        Some(own) => own,
        None if is_program(first) => first,
        // The error that it is not there is that of any program.
        None => last,
    }
}

fn is_program(path: &str) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Ends the session that a process leads: what is left of it after [`KILL_AFTER_MS`] is killed. A process that has begun a
/// session of its own is not part of it. Nothing is done when the process has ended.
pub(crate) fn end_session(leader: &Watch) -> Result<(), Failure> {
    let gone = |members: &[i32]| members.is_empty() && leader.exit().is_some();
    let mut until = Instant::now() + Duration::from_millis(KILL_AFTER_MS);
    let mut killing = false;
    if leader.exit().is_some() {
        return Ok(());
    }
    // As the kernel does at a hangup: what was stopped has to go on to hear of it.
    signal(leader.pid(), &members(leader.pid())?, &[libc::SIGHUP, libc::SIGCONT]);
    loop {
        // While one is left, its session's number belongs to no other.
        let left = members(leader.pid())?;
        if gone(&left) {
            return Ok(());
        }
        if killing {
            signal(leader.pid(), &left, &[libc::SIGKILL]);
        }
        if Instant::now() >= until {
            if killing {
                let message = format!("{} processes of the terminal do not end by SIGKILL.", left.len());
                return Err(Failure { kind: FailureKind::Internal, message });
            }
            (killing, until) = (true, Instant::now() + KILLED_LIMIT);
            continue;
        }
        std::thread::sleep(PAUSE);
    }
}

/// Sends signals to processes that are still of this session.
fn signal(session: i32, pids: &[i32], signals: &[i32]) {
    for pid in pids {
        // Without descriptors for it, the next round tries again.
        let Ok(Some(process)) = Handle::open(*pid) else { continue };
        if session_of(*pid) == Some(session) {
            for signal in signals {
                let _ = process.signal(*signal);
            }
        }
    }
}

/// The processes of a session that run, by this process's numbers.
fn members(session: i32) -> Result<Vec<i32>, Failure> {
    let pids = list::numbers().map_err(|error| Failure {
        kind: FailureKind::Internal,
        message: format!("The processes cannot be listed: {error}."),
    })?;
    let pids = pids.into_iter().filter_map(|pid| i32::try_from(pid).ok());
    Ok(pids.filter(|pid| *pid > 1 && session_of(*pid) == Some(session)).collect())
}

fn session_of(pid: i32) -> Option<i32> {
    list::session_of(&list::text_of(pid, "stat").ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_shell_is_used_if_it_allows_a_session() {
        let all = |_: &str| true;
        assert_eq!(shell(Some("/bin/zsh"), all), "/bin/zsh");
        assert_eq!(shell(Some("/usr/sbin/nologin"), all), "/bin/bash");
        assert_eq!(shell(Some("/bin/false"), |path| path != "/bin/bash"), "/bin/sh");
        assert_eq!(shell(Some("zsh"), all), "/bin/bash");
        assert_eq!(shell(None, all), "/bin/bash");
        assert_eq!(shell(Some("/bin/zsh"), |_| false), "/bin/sh");
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        let size = TerminalSize::DEFAULT;
        let own = format!("{}", nix::unistd::geteuid());
        let exec = Exec { user: Some(own), ..Exec::default() };
        let made = complete(&OpenTerminal { name: "pty_1".into(), size, exec: exec.clone() }).unwrap();
        assert_eq!((made.argv.len(), made.stdin), (1, true));
        assert_eq!(made.envs.get("SHELL"), made.argv.first());
        assert_eq!(made.envs.get("TERM").map(String::as_str), Some("xterm-256color"));
        let mut own = exec;
        own.argv = vec!["top".into()];
        own.envs.insert("TERM".into(), "vt100".into());
        let made = complete(&OpenTerminal { name: "pty_1".into(), size, exec: own.clone() }).unwrap();
        assert_eq!((&made.argv, &made.envs), (&own.argv, &own.envs));
        for size in [TerminalSize { cols: 0, rows: 1 }, TerminalSize { cols: 1, rows: 1001 }] {
            let refused = complete(&OpenTerminal { name: "pty_1".into(), size, exec: own.clone() }).unwrap_err();
            assert_eq!(refused.kind, FailureKind::Invalid);
        }
        assert!(complete(&OpenTerminal { name: String::new(), size, exec: own }).is_err());
    }
}
