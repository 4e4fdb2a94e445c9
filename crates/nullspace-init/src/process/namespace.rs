//! The PID namespace of a command that is the first process of its own, as a container's command is.
//!
//! ```text
//!  agent, PID 1 of the machine
//!   ├── start command   clone(NEWPID, NEWNS): PID 1 of the namespace, its own /proc over the machine's
//!   │     └── its children
//!   └── exec, probe, hook: joins both namespaces while the start command lives
//! ```
//! Mounts are shared between the two mount namespaces, but for /proc: what the command mounts, file operations see. The
//! pids that the host hears of are the namespace's, so that they are those that `ps` and `$!` show inside.

#![allow(unsafe_code, reason = "setns on a pidfd is called directly")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};

use super::list;
use super::reaper::Watch;

/// How long a first process may take to be reaped behind those that ended with it.
const ENDING: Duration = Duration::from_secs(1);

/// The namespaces of a first process.
#[derive(Debug)]
pub(crate) struct Namespace {
    pids: OwnedFd,
    mounts: OwnedFd,
    /// What `/proc/<pid>/ns/pid` of a process in it links to.
    name: String,
    first: Arc<Watch>,
}

static CURRENT: Mutex<Option<Arc<Namespace>>> = Mutex::new(None);

/// The namespace that processes are started in: none before there is a first process, and none when it has ended.
pub(crate) fn current() -> Option<Arc<Namespace>> {
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    if current.as_ref().is_some_and(|namespace| namespace.first.exit().is_some()) {
        *current = None;
    }
    current.clone()
}

/// Lets mounts of either side appear on the other. To be called before the first process is cloned.
pub(crate) fn share_mounts() -> io::Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)?;
    Ok(())
}

/// Makes the namespaces of a first process those that others join. One that has ended already leaves none.
pub(crate) fn adopt(first: &Arc<Watch>) {
    let open = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", first.pid())).map(OwnedFd::from);
    let opened = || -> io::Result<Namespace> {
        let name = name_of(first.pid())?;
        Ok(Namespace { pids: open("pid")?, mounts: open("mnt")?, name, first: first.clone() })
    };
    let namespace = opened().ok().map(Arc::new);
    *CURRENT.lock().unwrap_or_else(PoisonError::into_inner) = namespace;
}

fn name_of(pid: i32) -> io::Result<String> {
    Ok(fs::read_link(format!("/proc/{pid}/ns/pid"))?.to_string_lossy().into_owned())
}

impl Namespace {
    /// Whether its first process has ended, or is ending: the kernel kills and forgets all others before that one is gone
    /// (`zap_pid_ns_processes`), so that a process which was killed with it is reaped earlier.
    pub(crate) fn ends(&self) -> bool {
        // Its number is its own until it was reaped. Without this look, whoever kills another process would wait for nothing.
        let stat = list::text_of(self.first.pid(), "stat");
        if self.first.exit().is_none() && stat.is_ok_and(|stat| !is_exiting(&stat)) {
            return false;
        }
        let until = Instant::now() + ENDING;
        loop {
            if self.first.exit().is_some() {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The mount namespace, for a child to enter.
    pub(crate) fn mounts(&self) -> RawFd {
        self.mounts.as_raw_fd()
    }

    /// Runs `clone` so that its child is born in the PID namespace.
    pub(crate) fn bear<T>(&self, clone: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let own = File::open("/proc/thread-self/ns/pid")?;
        // Only the children of this thread are concerned, and only until it is taken back.
        set_children(&self.pids)?;
        let born = clone();
        set_children(&own.into())?;
        born
    }

    /// The pid that a process of it has inside; `None` for one that is not in it.
    pub(crate) fn inside(&self, pid: u32) -> Option<u32> {
        let name = name_of(i32::try_from(pid).ok()?).ok()?;
        (name == self.name).then(|| inner_pid(&list::text_of(pid, "status").ok()?))?
    }

    /// The machine's pid of the process that has this one inside.
    pub(crate) fn outside(&self, inner: u32) -> Option<u32> {
        let mut pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.find(|pid| self.inside(*pid) == Some(inner))
    }
}

/// Whether a line of `/proc/<pid>/stat` is that of a process which is ending: `PF_EXITING` (`include/linux/sched.h`) among
/// its flags, the seventh field behind the name in parentheses.
fn is_exiting(stat: &str) -> bool {
    const PF_EXITING: u32 = 4;
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u32>().ok());
    flags.is_some_and(|flags| flags & PF_EXITING != 0)
}

fn set_children(pids: &OwnedFd) -> io::Result<()> {
    // SAFETY: a plain system call on a descriptor that is open.
    match unsafe { libc::setns(pids.as_raw_fd(), libc::CLONE_NEWPID) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The last number of the line `NSpid` of `/proc/<pid>/status`: the pid in the innermost namespace.
fn inner_pid(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().next_back()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_process_is_known_by_its_flags() {
        assert!(!is_exiting("7 (a) b) S 1 7 7 0 -1 4194304 100 0"));
        assert!(is_exiting("7 (a) b) S 1 7 7 0 -1 4194308 100 0"));
        assert!(!is_exiting("7 (a) S 1"));
        assert!(!is_exiting(&fs::read_to_string("/proc/self/stat").unwrap()));
    }

    #[test]
    fn the_innermost_pid_is_the_last() {
        assert_eq!(inner_pid("Name:\tsh\nNSpid:\t812\t7\t1\nVmPeak:\t1 kB\n"), Some(1));
        assert_eq!(inner_pid("NSpid:\t812\n"), Some(812));
        assert_eq!(inner_pid("Name:\tNSpid: 5\n"), None);
        assert_eq!(inner_pid(""), None);
    }
}
