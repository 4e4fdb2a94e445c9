//! Detection of processes that the kernel killed for lack of memory, from its log.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

/// Records of the kernel's log that are looked at, at most.
const MAX_RECORDS: usize = 8192;
/// The log's clock and the monotonic one are not the same.
const SKEW: Duration = Duration::from_millis(500);
/// What the kernel writes of a process that it killed (`mm/oom_kill.c`), for the machine and for a memory group.
const KILLED: &str = "ut of memory: Killed process ";

/// The monotonic clock, from boot.
pub(crate) fn now() -> Duration {
    let Ok(now) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC) else { return Duration::ZERO };
    Duration::new(u64::try_from(now.tv_sec()).unwrap_or_default(), u32::try_from(now.tv_nsec()).unwrap_or_default())
}

/// True when the kernel killed a process for want of memory since `began`. False when its log cannot be read.
pub(crate) fn ran_out_since(began: Duration) -> bool {
    let log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg");
    let Ok(mut log) = log else { return false };
    let mut record = [0; 8192];
    for _ in 0..MAX_RECORDS {
        match log.read(&mut record) {
            Ok(0) => return false,
            Ok(len) => {
                if told(&String::from_utf8_lossy(record.get(..len).unwrap_or_default()), began) {
                    return true;
                }
            }
            // Overwritten while it was read: the next one is there.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(_) => return false,
        }
    }
    false
}

/// Whether a record, `priority,sequence,microseconds,flags;text`, tells of it: one of the kernel's own, not older than
/// `began`.
fn told(record: &str, began: Duration) -> bool {
    let Some((head, text)) = record.split_once(';') else { return false };
    let mut fields = head.split(',');
    let kernels = fields.next().and_then(|field| field.parse::<u32>().ok()).is_some_and(|priority| priority >> 3 == 0);
    let at = fields.nth(1).and_then(|field| field.parse().ok()).map(Duration::from_micros);
    kernels && text.contains(KILLED) && at.is_some_and(|at| at.saturating_add(SKEW) >= began)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernels_own_words_from_then_on_count() {
        let began = Duration::from_secs(100);
        for (record, expected) in [
            ("3,812,100500000,-;Out of memory: Killed process 77 (python3) total-vm:900kB, anon-rss:1kB", true),
            ("3,812,99700000,-;Memory cgroup out of memory: Killed process 77 (python3)", true),
            ("3,812,99000000,-;Out of memory: Killed process 77 (python3)", false),
            // Written by a process into /dev/kmsg: another facility.
            ("11,812,100500000,-;Out of memory: Killed process 77 (python3)", false),
            ("6,812,100500000,-;eth0: link up", false),
            ("3,812,x,-;Out of memory: Killed process 1 (a)", false),
            ("3;Out of memory: Killed process 1 (a)", false),
            ("Out of memory: Killed process 1 (a)", false),
            ("", false),
        ] {
            assert_eq!(told(record, began), expected, "{record}");
        }
    }

    #[test]
    fn nothing_runs_out_of_memory_in_the_future() {
        assert!(!ran_out_since(now() + Duration::from_secs(3600)));
    }
}
