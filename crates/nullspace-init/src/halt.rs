//! A stop of all processes but the agent, from before a snapshot until the resumed guest has its identity.
//!
//! ```text
//!   halt:    state FROZEN ──> every process of / moves to /guest, and stops as it arrives, until none is left in /
//!   go on:   state THAWED     they stay in /guest, and what they start is born there
//! ```
//! The groups belong to a hierarchy of the freezer controller (cgroup v1) that is mounted nowhere: a detached mount, held by
//! its descriptor since the boot. So /sys/fs/cgroup, which is cgroup v2, is the image's alone. A stop by signals would be
//! seen by parents, and would wake what was stopped before.
//!
//! A stopped process notices nothing, but for the calls that Linux interrupts at a stop (`epoll_wait` and others of
//! signal(7) give EINTR). What it has drawn from the kernel's random numbers before the snapshot it keeps: only a resume hook
//! or the generation file can make it draw anew. A process with root's rights can leave its group, and then runs while the
//! others stand still: it is its own machine that it deceives.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nullspace_guest::message::{Failure, FailureKind};

use crate::process::list;
use crate::severed::{self, Severed};
use crate::{filesystem, log};

/// Where the hierarchy is mounted for a moment, in the initramfs.
const PLACE: &str = "/freezer";
/// Time limit for all processes to be in the group.
const GATHER_LIMIT: Duration = Duration::from_secs(5);
/// Time limit for them to stand still. Those that sleep in the kernel stop on their way out of it.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);
/// Bytes of a list of pids that are read at most.
const MAX_LIST: u64 = 4 * 1024 * 1024;

/// The group of the guest's processes.
#[derive(Debug)]
struct Group {
    state: File,
    folder: OwnedFd,
    members: File,
}

static GROUP: OnceLock<Group> = OnceLock::new();

/// How a guest is halted, and goes on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Halting {
    /// Stops processes and writers. Answers the connections to other machines.
    pub(crate) halt: fn() -> Result<Vec<Severed>, Failure>,
    /// Lets writers and processes go on. Done already is done.
    pub(crate) thaw: fn() -> Result<(), Failure>,
}

impl Halting {
    /// The whole guest.
    pub(crate) const OF_A_GUEST: Halting = Halting { halt: halt_guest, thaw: thaw_guest };
}

/// Processes stop before writers: none of them sleeps in the kernel behind the frozen disk.
fn halt_guest() -> Result<Vec<Severed>, Failure> {
    internal("The root filesystem cannot be written out", filesystem::write_out())?;
    internal("The processes cannot be stopped", stop())?;
    let rest = || {
        let severed = internal("The connections cannot be listed", severed::find())?;
        internal("The root filesystem cannot be frozen", filesystem::freeze())?;
        Ok(severed)
    };
    rest().inspect_err(|_| {
        let _ = thaw_guest();
    })
}

fn thaw_guest() -> Result<(), Failure> {
    internal("The root filesystem cannot be thawed", filesystem::thaw())?;
    internal("The processes cannot go on", go_on())
}

fn internal<T>(what: &str, result: io::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| Failure { kind: FailureKind::Internal, message: format!("{what}: {error}.") })
}

/// Makes the group. To be called in the initramfs, before any process of an image runs. Without it the guest cannot be
/// halted; the log says why.
pub(crate) fn prepare() {
    match make() {
        Ok(group) => {
            let _ = GROUP.set(group);
        }
        Err(error) => log::problem(format_args!("freezer: {error}")),
    }
}

fn make() -> io::Result<Group> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    fs::create_dir_all(PLACE)?;
    mount(Some("freezer"), PLACE, Some("cgroup"), flags, Some("freezer"))?;
    let group = || -> io::Result<Group> {
        fs::create_dir_all(Path::new(PLACE).join("guest"))?;
        let folder = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = open(&Path::new(PLACE).join("guest"), folder, Mode::empty())?;
        let file = |name: &str| openat(&folder, name, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty());
        let (state, members) = (file("freezer.state")?.into(), file("cgroup.procs")?.into());
        Ok(Group { state, folder, members })
    }();
    // Out of sight; the descriptors keep it.
    umount2(PLACE, MntFlags::MNT_DETACH)?;
    group
}

/// Stops every process of the guest but this one. Done already is done.
fn stop() -> io::Result<()> {
    let group = GROUP.get().ok_or_else(|| io::Error::other("this guest has no control group for it"))?;
    group.stop().inspect_err(|_| {
        let _ = group.go_on();
    })
}

/// Lets them go on. Done already is done.
pub(crate) fn go_on() -> io::Result<()> {
    GROUP.get().map_or(Ok(()), Group::go_on)
}

impl Group {
    fn stop(&self) -> io::Result<()> {
        // First: a process stops as it arrives, and so do the children that it may have.
        self.state.write_all_at(b"FROZEN", 0)?;
        let until = Instant::now() + GATHER_LIMIT;
        while self.gather()? > 0 {
            if Instant::now() >= until {
                return Err(io::Error::other(format!(
                    "new processes keep coming for {} s, faster than they can be stopped",
                    GATHER_LIMIT.as_secs()
                )));
            }
        }
        let until = Instant::now() + STOP_LIMIT;
        while !self.stands_still()? {
            if Instant::now() >= until {
                log::note("halt: some processes sleep in the kernel, and stop when they leave it");
                break;
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Moves processes into the group; how many.
    fn gather(&self) -> io::Result<usize> {
        let inside = self.inside()?;
        let mut moved = 0;
        for pid in list::pids()? {
            if inside.contains(&pid) {
                continue;
            }
            match self.members.write_all_at(pid.to_string().as_bytes(), 0) {
                Ok(()) => moved += 1,
                // It has ended meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(moved)
    }

    fn inside(&self) -> io::Result<HashSet<u32>> {
        let mut text = String::new();
        self.read("cgroup.procs")?.take(MAX_LIST).read_to_string(&mut text)?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    fn stands_still(&self) -> io::Result<bool> {
        let mut text = String::new();
        self.read("freezer.state")?.take(MAX_LIST).read_to_string(&mut text)?;
        Ok(text.trim() == "FROZEN")
    }

    /// A file of the group, opened anew: what is read is as of now.
    fn read(&self, name: &str) -> io::Result<File> {
        Ok(openat(&self.folder, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?.into())
    }

    fn go_on(&self) -> io::Result<()> {
        self.state.write_all_at(b"THAWED", 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guest_stops_its_processes() {
        let refused = stop().unwrap_err();
        assert!(refused.to_string().contains("no control group"), "{refused}");
        go_on().unwrap();
    }
}
