//! What a machine uses of its host, as the kernel counts it for the VMM's process.
//!
//! ```text
//!   process's CPU clock          time of all its threads, those that have ended included
//!   /proc/PID/status             RssAnon: pages of its own; RssShmem: pages of memory files
//!   /proc/PID/net/dev            the tap in the process's network namespace
//! ```
//! Firecracker's jailer runs below a process that only waits for it (`firecracker/jail.rs`): its children are counted too.

use std::fs;
use std::io::{self, Read};

use nix::time::ClockId;
use nix::unistd::Pid;

use crate::net::TAP_NAME;
use crate::spec::{NetworkUsage, VmUsage};

/// Longest file of `/proc` that is read, bytes. A namespace has two or three interfaces.
const LONGEST: u64 = 64 << 10;
/// Most children that are counted: a jailer's holder has one.
const MOST_CHILDREN: usize = 16;

/// A machine's process as it is to be counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counted {
    pub(crate) pid: u32,
    /// The process only waits for the VMM, which is its child.
    pub(crate) is_holder: bool,
    /// The memory file that it maps is its own, and not a template's.
    pub(crate) owns_memory_file: bool,
    /// It has a tap in a network namespace of its own.
    pub(crate) has_tap: bool,
}

impl Counted {
    /// Reads the counters. An error when the process has ended. Blocks, for some tens of µs.
    pub(crate) fn usage(self) -> io::Result<VmUsage> {
        let mut pids = vec![self.pid];
        if self.is_holder {
            pids = children(self.pid)?;
            if pids.is_empty() {
                return Err(io::ErrorKind::NotFound.into());
            }
        }
        let (mut cpu_ns, mut private_bytes) = (0_u64, 0_u64);
        for pid in pids {
            cpu_ns = cpu_ns.saturating_add(cpu_time(pid)?);
            let status = read(&format!("/proc/{pid}/status"))?;
            private_bytes = private_bytes.saturating_add(resident(&status, self.owns_memory_file)?);
        }
        let network = match self.has_tap {
            true => read(&format!("/proc/{}/net/dev", self.pid)).ok().and_then(|table| tap(&table)),
            false => None,
        };
        Ok(VmUsage { cpu_ns, private_bytes, network })
    }
}

fn children(pid: u32) -> io::Result<Vec<u32>> {
    let list = read(&format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(list.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).take(MOST_CHILDREN).collect())
}

fn cpu_time(pid: u32) -> io::Result<u64> {
    let pid = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
    let time = ClockId::pid_cpu_clock_id(pid)?.now()?;
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(number(time.tv_sec()).saturating_mul(1_000_000_000).saturating_add(number(time.tv_nsec())))
}

/// Bytes of a process's own pages in memory, from its `status`.
fn resident(status: &str, with_files: bool) -> io::Result<u64> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    };
    // A process that has ended and is not reaped has no memory, and no such lines.
    let own = field("RssAnon:").ok_or(io::ErrorKind::NotFound)?;
    Ok(own + if with_files { field("RssShmem:").unwrap_or(0) } else { 0 })
}

/// The tap's counters as the guest at its other end sees them.
fn tap(table: &str) -> Option<NetworkUsage> {
    let counters = table.lines().find_map(|line| line.trim_start().strip_prefix(TAP_NAME)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = counters.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect();
    // Eight counters of what the host receives from the guest, then eight of what it sends: bytes are the first of each.
    Some(NetworkUsage { received_bytes: *numbers.get(8)?, sent_bytes: *numbers.first()? })
}

fn read(path: &str) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_time_and_memory_of_a_process_are_counted() {
        let own = Counted { pid: std::process::id(), is_holder: false, owns_memory_file: false, has_tap: false };
        let before = own.usage().unwrap();
        let filled = std::hint::black_box(vec![1_u8; 32 << 20]);
        let after = own.usage().unwrap();
        assert!(after.cpu_ns > before.cpu_ns, "{before:?} {after:?}");
        // The kernel counts in batches, and other tests of this process free some.
        assert!(after.private_bytes > before.private_bytes + (16 << 20), "{before:?} {after:?}");
        assert_eq!(after.network, None);
        drop(filled);
    }

    #[test]
    fn a_holder_is_counted_by_its_child_and_its_end_is_an_error() {
        let script = "while :; do :; done & echo $!; wait";
        let mut holder = Command::new("/bin/sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(holder.stdout.take().unwrap()), &mut line).unwrap();
        let child = Pid::from_raw(line.trim().parse().unwrap());
        let counted = Counted { pid: holder.id(), is_holder: true, owns_memory_file: false, has_tap: false };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while counted.usage().unwrap().cpu_ns < 30_000_000 {
            assert!(std::time::Instant::now() < deadline, "the child's time is not counted");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL).unwrap();
        holder.wait().unwrap();
        assert!(counted.usage().is_err());
    }

    #[test]
    fn a_guest_receives_what_its_tap_sends() {
        let table = "Inter-|   Receive  |  Transmit\n face |bytes packets\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  \
                     tap01: 5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n  tap0:  1500      12    0    0    0     0          0         0     \
                     7100 40 0 0 0 0 0 0\n";
        assert_eq!(tap(table), Some(NetworkUsage { received_bytes: 7100, sent_bytes: 1500 }));
        assert_eq!(tap("  tap0: 1 2 x\n"), None);
        assert_eq!(tap(""), None);
    }

    #[test]
    fn pages_of_memory_files_count_for_their_owner_alone() {
        let status = "Name:\tqemu\nRssAnon:\t    1000 kB\nRssFile:\t  77 kB\nRssShmem:\t  3000 kB\n";
        assert_eq!(resident(status, false).unwrap(), 1_024_000);
        assert_eq!(resident(status, true).unwrap(), 4_096_000);
        assert!(resident("Name:\tgone\n", false).is_err());
    }
}
