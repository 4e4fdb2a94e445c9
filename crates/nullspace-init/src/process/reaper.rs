//! The one place that waits for children.

#![allow(unsafe_code, reason = "waits and signals name processes by number")]

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use nullspace_guest::message::Exit;

use crate::wake::Wake;

/// How a child of ours ended, for the thread that supervises it.
#[derive(Debug)]
pub(crate) struct Watch {
    pid: i32,
    /// What the process itself and the host know it by: its pid in its own namespace.
    shown: AtomicI32,
    exit: OnceLock<Exit>,
    wake: Wake,
}

impl Watch {
    /// The pid that this process, PID 1, knows it by.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// The pid that it has itself, which the host is told.
    pub(crate) fn shown(&self) -> u32 {
        u32::try_from(self.shown.load(Ordering::Relaxed)).unwrap_or_default()
    }

    /// It has told its own pid.
    pub(crate) fn show(&self, pid: i32) {
        self.shown.store(pid, Ordering::Relaxed);
    }

    /// How it ended, once it has.
    pub(crate) fn exit(&self) -> Option<Exit> {
        self.exit.get().copied()
    }

    /// Set once it has ended.
    pub(crate) fn wake(&self) -> &Wake {
        &self.wake
    }
}

/// Waits for every child of this process: those spawned here, and orphans that PID 1 inherits.
#[derive(Debug)]
pub(crate) struct Reaper {
    watched: Mutex<HashMap<i32, Arc<Watch>>>,
    /// There may be children again.
    spawned: Condvar,
}

impl Reaper {
    /// The process's only reaper; started at first use.
    pub(crate) fn get() -> &'static Reaper {
        static REAPER: OnceLock<Reaper> = OnceLock::new();
        static STARTED: OnceLock<()> = OnceLock::new();
        let reaper = REAPER.get_or_init(|| Reaper { watched: Mutex::default(), spawned: Condvar::new() });
        STARTED.get_or_init(|| {
            // Without this thread nothing works: there is nobody to report to, and a retry comes with the next call's.
            let _ = std::thread::Builder::new().name("reaper".into()).spawn(|| reaper.run());
        });
        reaper
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Arc<Watch>>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `start`, which answers the child's pid. The child is known before the reaper can see it end.
    pub(crate) fn spawn(&self, start: impl FnOnce() -> io::Result<i32>) -> io::Result<Arc<Watch>> {
        let wake = Wake::new()?;
        let mut watched = self.lock();
        let pid = start()?;
        let watch = Arc::new(Watch { pid, shown: AtomicI32::new(pid), exit: OnceLock::new(), wake });
        watched.insert(pid, watch.clone());
        self.spawned.notify_all();
        Ok(watch)
    }

    /// Signals the process group that a child leads; nothing when the child was reaped and `even_reaped` is false.
    pub(crate) fn signal_group(&self, watch: &Watch, signal: i32, even_reaped: bool) {
        // Under the lock a child is not reaped, so that its number cannot mean another process.
        let _watched = self.lock();
        if even_reaped || watch.exit().is_none() {
            // SAFETY: a plain system call; a group that is gone answers ESRCH.
            unsafe { libc::kill(-watch.pid, signal) };
        }
    }

    /// Kills a child, if it was not reaped.
    pub(crate) fn kill(&self, watch: &Watch) {
        let _watched = self.lock();
        if watch.exit().is_none() {
            // SAFETY: a plain system call. Under the lock the child is not reaped, and keeps its number.
            unsafe { libc::kill(watch.pid, libc::SIGKILL) };
        }
    }

    fn run(&self) {
        loop {
            // First only look: the child is taken under the lock, or its number could be reused by a child that `spawn` is
            // about to register.
            // SAFETY: `siginfo_t` is plain data for which zeros are valid, and outlives the call.
            let (answer, pid) = unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                let answer = libc::waitid(libc::P_ALL, 0, &mut info, libc::WEXITED | libc::WNOWAIT);
                (answer, info.si_pid())
            };
            if answer == 0 {
                self.reap(pid);
            } else if io::Error::last_os_error().raw_os_error() == Some(libc::ECHILD) {
                // Orphans descend from children of ours: without children there is nothing to wait for.
                let watched = self.lock();
                if watched.is_empty() {
                    drop(self.spawned.wait(watched).unwrap_or_else(PoisonError::into_inner));
                }
            }
        }
    }

    fn reap(&self, pid: i32) {
        let mut watched = self.lock();
        let mut status = 0;
        // SAFETY: a plain system call that writes into `status`.
        if unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) } != pid {
            return;
        }
        let Some(watch) = watched.remove(&pid) else { return };
        let exit = if libc::WIFSIGNALED(status) {
            let signal = libc::WTERMSIG(status);
            Exit { code: 128 + signal, signal: Some(signal), ..Exit::default() }
        } else {
            Exit { code: libc::WEXITSTATUS(status), ..Exit::default() }
        };
        let _ = watch.exit.set(exit);
        watch.wake.set();
    }
}
