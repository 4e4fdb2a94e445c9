//! Starting a QEMU: its sockets, its process, its monitor.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use rustix::pipe::PipeFlags;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use super::agent::AgentPort;
use super::args::CommandLine;
use super::qmp::{Pending, Qmp};
use crate::process::{Confinement, Identity, Launch, Process, launch};
use crate::tail::Tail;
use crate::uids::Uid;
use crate::walls::{Around, Walls};
use crate::{EndCause, Ended, VmmError};

/// Bytes of the guest's console that are kept.
const CONSOLE: usize = 64 * 1024;
/// Bytes of QEMU's own output that are kept.
const LOG: usize = 8 * 1024;
/// Bound of `--version`, on a host that is busy.
const TRIAL: Duration = Duration::from_secs(20);
/// Time limit for the end of a QEMU that closed its monitor.
const ENDING: Duration = Duration::from_secs(5);

/// Everything that a QEMU process is started with.
pub(super) struct Parts<'a> {
    pub(super) binary: &'a Path,
    pub(super) line: CommandLine,
    /// Network namespace to run in.
    pub(super) namespace: Option<OwnedFd>,
    /// Other namespaces and Landlock.
    pub(super) walls: &'a Walls,
    /// QEMU itself opens sockets of this host.
    pub(super) user_network: bool,
    /// The files by which it enters the machine's control group.
    pub(super) groups: Vec<OwnedFd>,
    pub(super) identity: Option<Identity>,
    /// Longest file that QEMU may write, bytes.
    pub(super) file_limit: u64,
}

/// A QEMU that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) process: Process,
    pub(super) monitor: Qmp,
    pub(super) agent: AgentPort,
    pub(super) console: Tail,
    pub(super) log: Tail,
}

/// Starts it. Commands may be sent to the monitor at once; the handshake's answer is still to come. `held` lives as long
/// as the process.
pub(super) async fn start<G: Send + 'static>(parts: Parts<'_>, held: G) -> Result<(Running, Pending), VmmError> {
    let Parts { binary, mut line, namespace, walls, user_network, groups, identity, file_limit } = parts;
    let failed = |source| VmmError::Io { context: "make sockets for QEMU".into(), source };
    let (monitor, monitor_end) = StdUnixStream::pair().map_err(failed)?;
    let (agent, agent_end) = StdUnixStream::pair().map_err(failed)?;
    let (console, console_end) = StdUnixStream::pair().map_err(failed)?;
    let (log, log_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
    line.sockets(monitor_end.into(), agent_end.into(), console_end.into());

    let tails = follow(console, log).map_err(failed)?;
    let agent = AgentPort::new(agent).map_err(failed)?;
    let (monitor, hello) = Qmp::begin(monitor).await?;
    let failed = |source| VmmError::Io { context: "set up walls around QEMU".into(), source };
    let Around { namespaces, ruleset } = walls.around(&line.inherit, user_network).map_err(failed)?;
    let launched = Launch {
        program: binary.to_path_buf(),
        args: line.args.into_iter().map(Into::into).collect(),
        directory: "/".into(),
        output: log_end,
        inherit: line.inherit,
        network: namespace,
        namespaces,
        confinement: Some(Confinement { groups, identity, file_limit, ruleset }),
    };
    let failed = |source| VmmError::Io { context: format!("start {}", binary.display()), source };
    let process = launch(launched, held).await.map_err(failed)?;
    let (console, log) = tails;
    Ok((Running { process, monitor, agent, console, log }, hello))
}

/// Runs `--version` within the walls: whether the program starts in them.
pub(super) async fn try_walls(binary: &Path, walls: &Walls, uid: Option<Uid>) -> io::Result<()> {
    let (output, output_end) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    let log = Tail::new(LOG);
    rustix::fs::fcntl_setfl(&output, rustix::fs::OFlags::NONBLOCK)?;
    log.follow(pipe::Receiver::from_owned_fd(output)?);
    let Around { namespaces, ruleset } = walls.around(&[], false)?;
    let identity = uid.as_ref().map(|uid| Identity { id: uid.number(), group: None });
    let launched = Launch {
        program: binary.to_path_buf(),
        args: vec!["--version".into()],
        directory: "/".into(),
        output: output_end,
        inherit: Vec::new(),
        network: None,
        namespaces,
        confinement: Some(Confinement { groups: Vec::new(), identity, file_limit: 0, ruleset }),
    };
    let process = launch(launched, uid).await?;
    let ended = tokio::time::timeout(TRIAL, process.exited()).await;
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(io::Error::other(format!("--version ended with {status}: {}", log.text().trim()))),
        Err(_) => Err(io::Error::other(format!("--version did not end within {} s", TRIAL.as_secs()))),
    }
}

fn follow(console: StdUnixStream, log: OwnedFd) -> io::Result<(Tail, Tail)> {
    let tails = (Tail::new(CONSOLE), Tail::new(LOG));
    console.set_nonblocking(true)?;
    tails.0.follow(UnixStream::from_std(console)?);
    tails.1.follow(pipe::Receiver::from_owned_fd(log)?);
    Ok(tails)
}

impl Running {
    /// Ends a QEMU that could not be started, and says why as well as it can be known.
    pub(super) async fn fail(self, error: VmmError) -> VmmError {
        if let VmmError::Exited(_) = error {
            // It ends by itself: its last words and its status are worth a moment.
            let _ = tokio::time::timeout(ENDING, self.process.exited()).await;
        }
        let by_itself = self.process.status().is_some();
        if let Err(error) = self.process.kill().await {
            tracing::error!(%error, "a QEMU that failed to start could not be ended");
        }
        if by_itself { VmmError::Exited(self.how_it_ended().await.how) } else { error }
    }

    /// Waits until QEMU and its resources are gone, and returns how it ended.
    pub(super) async fn how_it_ended(&self) -> Ended {
        let status = self.process.gone().await;
        // What it said last may still be on its way through our readers. Bounded: a forked child of QEMU, which its
        // sandbox denies, would keep the socket open.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.monitor.closed()).await;
        let (cause, mut how) = match (self.monitor.observed().shutdown.as_deref(), status.signal()) {
            // A killed QEMU says nothing more, whatever it said before.
            (_, Some(signal)) => (EndCause::Signal(signal), format!("QEMU ended with {status}")),
            (Some("guest-shutdown"), _) => (EndCause::Guest, "the guest powered off".into()),
            (Some("guest-reset" | "subsystem-reset"), _) => match self.panicked() {
                Some(panic) => (EndCause::Guest, format!("the guest's kernel stopped ({panic})")),
                None => (EndCause::Guest, "the guest rebooted".into()),
            },
            _ => (EndCause::Vmm, format!("QEMU ended with {status}")),
        };
        let last_words = self.last_words();
        if !status.success() && !last_words.is_empty() {
            how = format!("{how}: {last_words}");
        }
        Ended { cause, how }
    }

    /// The last lines that QEMU itself printed.
    fn last_words(&self) -> String {
        let log = self.log.text();
        let telling =
            log.lines().filter(|line| !line.is_empty() && !line.contains(" is not connected to host network"));
        let lines: Vec<&str> = telling.map(|line| line.trim_start_matches("qemu-system-x86_64: ")).collect();
        lines[lines.len().saturating_sub(3)..].join("; ")
    }

    fn panicked(&self) -> Option<String> {
        let console = self.console.text();
        let line = console.lines().find(|line| line.contains("Kernel panic - not syncing"))?;
        Some(line.split_once("] ").map_or(line, |(_, message)| message).chars().take(200).collect())
    }
}
