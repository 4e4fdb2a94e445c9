//! The guest's use of memory, disk, processors and network, from /proc and the root filesystem.

use std::fs;
use std::io;

use nix::unistd::{SysconfVar, sysconf};
use nullspace_guest::message::Usage;

/// The network card.
const CARD: &str = "eth0";
/// Ticks a second of /proc/stat, where the system does not tell.
const TICKS: u64 = 100;

fn malformed(file: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{file} has another format"))
}

/// Measures all of it.
pub(crate) fn measure() -> io::Result<Usage> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let (memory_total, memory_used) = memory_of(&memory).ok_or_else(|| malformed("/proc/meminfo"))?;
    let root = nix::sys::statvfs::statvfs("/")?;
    let disk_total = root.blocks().saturating_mul(root.fragment_size());
    let disk_free = root.blocks_free().saturating_mul(root.fragment_size());
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    let ticks = ticks.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0).unwrap_or(TICKS);
    let stat = fs::read_to_string("/proc/stat")?;
    let busy = busy_ticks(&stat).ok_or_else(|| malformed("/proc/stat"))?;
    let (received, sent) = traffic(&fs::read_to_string("/proc/net/dev")?, CARD);
    Ok(Usage {
        memory_total,
        memory_used,
        disk_total,
        disk_used: disk_total.saturating_sub(disk_free),
        cpu_ms: busy.saturating_mul(1000) / ticks,
        received,
        sent,
    })
}

/// Total and used memory in bytes, of `/proc/meminfo`.
fn memory_of(meminfo: &str) -> Option<(u64, u64)> {
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    let total = field("MemTotal")?;
    Some((total, total.saturating_sub(field("MemAvailable")?)))
}

/// Ticks in which the processors worked, of the first line of `/proc/stat`: user, nice, system, irq and softirq. A virtual
/// machine's guest time is in user's already, and stolen time is the host's.
fn busy_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.lines().find_map(|line| line.strip_prefix("cpu "))?.split_whitespace();
    let ticks: Vec<u64> = fields.by_ref().take(7).map_while(|field| field.parse().ok()).collect();
    match ticks[..] {
        [user, nice, system, _idle, _waits, irq, softirq] => {
            Some([user, nice, system, irq, softirq].into_iter().fold(0, u64::saturating_add))
        }
        _ => None,
    }
}

/// Bytes received and sent by an interface, of `/proc/net/dev`; zeros without that interface.
fn traffic(dev: &str, interface: &str) -> (u64, u64) {
    let fields = dev.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
    let mut fields = fields.unwrap_or_default().split_whitespace().map(|field| field.parse().unwrap_or(0));
    // Received: bytes packets errs drop fifo frame compressed multicast. Sent: bytes …
    (fields.next().unwrap_or(0), fields.nth(7).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_that_is_not_available() {
        let meminfo =
            "MemTotal:         1000 kB\nMemFree:           10 kB\nMemAvailable:     400 kB\nSwapTotal:  5 kB\n";
        assert_eq!(memory_of(meminfo), Some((1000 * 1024, 600 * 1024)));
        assert_eq!(memory_of("MemTotal: 1000 kB\n"), None);
        assert_eq!(memory_of("MemTotal: x kB\nMemAvailable: 1 kB\n"), None);
    }

    #[test]
    fn waiting_and_stolen_time_is_not_work() {
        let stat = "cpu  100 20 30 4000 500 6 7 80 90 0\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 5\n";
        assert_eq!(busy_ticks(stat), Some(100 + 20 + 30 + 6 + 7));
        assert_eq!(busy_ticks("cpu  1 2 3\n"), None);
        assert_eq!(busy_ticks("cpu0 1 2 3 4 5 6 7\n"), None);
    }

    #[test]
    fn only_the_card_is_counted() {
        let dev = "Inter-|   Receive                            |  Transmit\n face |bytes packets\n\
                   \x20   lo: 9 9 9 9 9 9 9 9 9 9\n  eth0: 1234 5 0 0 0 0 0 0 987 4 0 0 0 0 0 0\n eth01: 1 1\n";
        assert_eq!(traffic(dev, "eth0"), (1234, 987));
        assert_eq!(traffic(dev, "eth1"), (0, 0));
    }

    #[test]
    fn this_system_has_figures() {
        let usage = measure().unwrap();
        assert!(usage.memory_used > 0 && usage.memory_used < usage.memory_total, "{usage:?}");
        assert!(usage.disk_used > 0 && usage.disk_used <= usage.disk_total, "{usage:?}");
        assert!(usage.cpu_ms > 0, "{usage:?}");
    }
}
