//! Processes of a sandbox, beyond those of an exec.

use nullspace_api::{ErrorResponseCode, ProcessInfo, ProcessLogs};
use nullspace_guest::host::ExecEvent;

use super::exec::exec_error;
use super::live::Live;
use nullspace_service::{Error, Result};

/// `SIGKILL`, in every Linux guest.
const KILL: i32 = 9;

/// Most bytes of a process's output from the agent: 256 KiB of each stream, and the output during the transfer.
const MAX_KEPT: usize = 2 << 20;

/// The processes of the sandbox.
pub(super) async fn list(live: &Live) -> Result<Vec<ProcessInfo>> {
    let processes = live.agent()?.processes().await.map_err(|error| exec_error(error, "processes"))?;
    let shown = |process: nullspace_guest::message::Process| ProcessInfo {
        pid: process.pid,
        command: process.command,
        running: process.running,
    };
    Ok(processes.into_iter().map(shown).collect())
}

/// Ends a process by SIGKILL.
pub(super) async fn kill(live: &Live, pid: u32) -> Result<()> {
    live.agent()?.kill(pid, KILL).await.map_err(|error| exec_error(error, "kill"))
}

/// Returns the kept output of a process; see [`LiveSandbox::process_logs`](nullspace_service::LiveSandbox::process_logs).
pub(super) async fn logs(live: &Live, pid: u32) -> Result<ProcessLogs> {
    let failed = |error| exec_error(error, "logs");
    let mut session = live.agent()?.output_so_far(pid).await.map_err(failed)?;
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
