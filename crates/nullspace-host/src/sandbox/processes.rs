//! Processes of a sandbox, beyond those of an exec.

use nullspace_api::{ErrorResponseCode, ProcessInfo, ProcessLogs};
use nullspace_guest::host::{Agent, ExecEvent};

use super::exec::exec_error;
use super::live::Live;
use nullspace_service::{Error, Result};

/// Most bytes of a process's output from the agent: 256 KiB of each stream, and the output during the transfer.
const MAX_KEPT: usize = 2 << 20;

/// The processes of the sandbox.
pub(super) async fn list(live: &Live) -> Result<Vec<ProcessInfo>> {
    let processes =
        live.using(|agent| async move { agent.processes().await.map_err(|error| exec_error(error, "processes")) });
    let processes = processes.await?;
    let shown = |process: nullspace_guest::message::Process| ProcessInfo {
        pid: process.pid,
        command: process.command,
        running: process.running,
    };
    Ok(processes.into_iter().map(shown).collect())
}

/// Sends a signal to a process.
pub(super) async fn kill(live: &Live, pid: u32, signal: i32) -> Result<()> {
    let killed =
        live.using(|agent| async move { agent.kill(pid, signal).await.map_err(|error| exec_error(error, "kill")) });
    killed.await
}

/// Returns the kept output of a process; see [`LiveCommands::process_logs`](nullspace_service::LiveCommands::process_logs).
pub(super) async fn logs(live: &Live, pid: u32) -> Result<ProcessLogs> {
    live.using(|agent| async move { collect(&agent, pid).await }).await
}

async fn collect(agent: &Agent, pid: u32) -> Result<ProcessLogs> {
    let failed = |error| exec_error(error, "logs");
    let mut session = agent.output_so_far(pid).await.map_err(failed)?;
    let (mut stdout, mut stderr, mut output, mut exit_code) = (Vec::new(), Vec::new(), Vec::new(), None);
    let mut left = MAX_KEPT;
    while let Some(event) = session.next().await.map_err(failed)? {
        if let ExecEvent::Stdout(bytes) | ExecEvent::Stderr(bytes) = &event {
            // An honest agent has no more; one that goes on for ever must not be kept.
            left = left.checked_sub(bytes.len()).ok_or_else(|| {
                Error::new(ErrorResponseCode::ExecFailed, "the sandbox sends more output than it can have kept")
            })?;
        }
        match event {
            ExecEvent::Stdout(bytes) => {
                stdout.extend_from_slice(&bytes);
                output.extend_from_slice(&bytes);
            }
            ExecEvent::Stderr(bytes) => {
                stderr.extend_from_slice(&bytes);
                output.extend_from_slice(&bytes);
            }
            ExecEvent::Exit(exit) => exit_code = Some(exit.code),
        }
    }
    let (lost_out, lost_err) = session.lost;
    if lost_out > 0 || lost_err > 0 {
        let marker = format!(
            "[nullspace: the first {lost_out} bytes of stdout and {lost_err} bytes of stderr are kept no more]\n"
        );
        stderr.splice(..0, marker.bytes());
        output.splice(..0, marker.bytes());
    }
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok(ProcessLogs { stdout: text(stdout), stderr: text(stderr), output: text(output), exit_code })
}
