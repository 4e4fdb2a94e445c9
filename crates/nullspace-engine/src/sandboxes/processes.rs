//! Processes of a sandbox, beyond those that an exec waits for.

use async_trait::async_trait;
use nullspace_api::{ErrorResponseCode, ProcessInfo, ProcessLogs};
use nullspace_guest::host::ExecEvent;
use nullspace_service::Processes;
use nullspace_store::Caller;

use super::exec_error;
use crate::Engine;
use crate::error::{Error, Result};

/// `SIGKILL`, in every Linux guest.
const KILL: i32 = 9;

/// What the agent keeps of a process's output at most: 256 KiB of each stream, and what comes while that is sent.
const MAX_KEPT: usize = 2 << 20;

#[async_trait]
impl Processes for Engine {
    async fn list_processes(&self, caller: &Caller, id: &str) -> Result<Vec<ProcessInfo>> {
        let live = self.live(caller, id).await?;
        let processes = live.machine.agent.processes().await.map_err(|error| exec_error(error, "processes"))?;
        let shown = |process: nullspace_guest::message::Process| ProcessInfo {
            pid: process.pid,
            command: process.command,
            running: process.running,
        };
        Ok(processes.into_iter().map(shown).collect())
    }

    async fn kill_process(&self, caller: &Caller, id: &str, pid: u32) -> Result<()> {
        let live = self.live(caller, id).await?;
        live.machine.agent.kill(pid, KILL).await.map_err(|error| exec_error(error, "kill"))
    }

    async fn process_logs(&self, caller: &Caller, id: &str, pid: u32) -> Result<ProcessLogs> {
        let live = self.live(caller, id).await?;
        let failed = |error| exec_error(error, "logs");
        let mut session = live.machine.agent.output_so_far(pid).await.map_err(failed)?;
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
}
