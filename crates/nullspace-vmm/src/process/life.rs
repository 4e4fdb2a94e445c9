//! A child's life: waiting for its end, reaping it, and telling how it ended.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::VmmError;

/// Time limit for a process and its resources to vanish after SIGKILL: the kernel may have to free gigabytes, a disk may
/// be dying, and folders and control groups are removed.
const REAP_LIMIT: Duration = Duration::from_secs(30);

/// Resources that live as long as a child: dropped when the child is gone, and not before.
pub(super) type Held = Box<dyn Send>;

/// A child that was not reaped yet. Dropping it before its end was seen ends it, and blocks until it is gone.
#[derive(Debug)]
pub(super) struct Child {
    pidfd: OwnedFd,
    pid: Pid,
    reaped: bool,
}

impl Child {
    pub(super) fn new(pid: Pid, pidfd: OwnedFd) -> Self {
        Self { pidfd, pid, reaped: false }
    }

    /// Waits for its end, in an async task.
    async fn ended(&mut self, readable: &AsyncFd<OwnedFd>) -> ExitStatus {
        let unknown = ExitStatus::from_raw(libc::SIGKILL);
        loop {
            let Ok(mut ready) = readable.readable().await else { return unknown }; // the runtime is shutting down
            match rustix::process::waitid(
                WaitId::PidFd(self.pidfd.as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            ) {
                Ok(Some(status)) => {
                    self.reaped = true;
                    let raw = match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => (code & 0xff) << 8,
                        (None, Some(signal)) => signal & 0x7f,
                        (None, None) => libc::SIGKILL,
                    };
                    return ExitStatus::from_raw(raw);
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => ready.clear_ready(),
                // ECHILD: somebody reaped it behind our back. It is gone all the same.
                Err(_) => {
                    self.reaped = true;
                    return unknown;
                }
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
            let _ = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        }
    }
}

/// A child and what it holds. Dropping it ends the child first: the order of the fields is the order of the drops.
pub(super) struct Started {
    pub(super) child: Child,
    pub(super) _held: Held,
}

/// The state of a child.
#[derive(Debug, Clone, Copy)]
enum Life {
    Running,
    /// Reaped; what it held is being dropped.
    Ended(ExitStatus),
    /// Its resources are dropped too.
    Gone(ExitStatus),
}

impl Started {
    /// Hands the child to a task that waits for its end.
    #[allow(unsafe_code, reason = "registers a descriptor that the value owns itself")]
    pub(super) fn supervise(self) -> io::Result<Process> {
        let (pid, pidfd) = (self.child.pid, self.child.pidfd.try_clone()?);
        // SAFETY: the `AsyncFd` owns the descriptor, which nobody else knows or closes.
        let readable = unsafe { AsyncFd::register_with_interest(self.child.pidfd.try_clone()?, Interest::READABLE) }?;
        let (sender, life) = watch::channel(Life::Running);
        let mut started = self;
        tokio::spawn(async move {
            let status = started.child.ended(&readable).await;
            tracing::debug!(pid = pid.as_raw_nonzero().get(), %status, "a VMM has ended");
            sender.send_replace(Life::Ended(status));
            // Removing control groups and giving memory back takes the kernel a moment.
            let _ = tokio::task::spawn_blocking(move || drop(started)).await;
            sender.send_replace(Life::Gone(status));
        });
        Ok(Process { pidfd, pid, life })
    }
}

/// A running child. Dropping it kills it; its task reaps it.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: OwnedFd,
    pid: Pid,
    life: watch::Receiver<Life>,
}

impl Process {
    /// Its pid, for the log.
    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Returns its exit status; `None` while it runs.
    pub(crate) fn status(&self) -> Option<ExitStatus> {
        match *self.life.borrow() {
            Life::Running => None,
            Life::Ended(status) | Life::Gone(status) => Some(status),
        }
    }

    /// Waits for its end, and tells how it ended. What it held may still be there.
    pub(crate) async fn exited(&self) -> ExitStatus {
        self.reaches(|life| !matches!(life, Life::Running)).await
    }

    /// Waits until it and all that it held are gone, and tells how it ended.
    pub(crate) async fn gone(&self) -> ExitStatus {
        self.reaches(|life| matches!(life, Life::Gone(_))).await
    }

    async fn reaches(&self, stage: impl FnMut(&Life) -> bool) -> ExitStatus {
        let mut life = self.life.clone();
        match life.wait_for(stage).await.map(|life| *life) {
            Ok(Life::Ended(status) | Life::Gone(status)) => status,
            // The runtime that reaps it is shutting down: nobody will ever know.
            Ok(Life::Running) | Err(_) => ExitStatus::from_raw(libc::SIGKILL),
        }
    }

    /// Sends SIGKILL. A process that is gone already is fine.
    pub(crate) fn signal_kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Ends it, and waits until it and all that it held are gone.
    pub(crate) async fn kill(&self) -> Result<(), VmmError> {
        self.signal_kill();
        match tokio::time::timeout(REAP_LIMIT, self.gone()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(VmmError::Timeout {
                what: format!("ending process {}", self.pid()),
                limit_ms: REAP_LIMIT.as_millis() as u64,
            }),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal_kill();
    }
}
