//! Shutdown: ends what runs in the guest and switches the machine off.

#![allow(unsafe_code, reason = "signals go to all processes, and the disks are flushed, by plain system calls")]

use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use crate::{filesystem, log};

/// How long processes may take to end by themselves when the machine goes off.
const TERM_LIMIT: Duration = Duration::from_secs(1);

/// Ends all processes, writes everything out and switches the machine off.
pub(crate) fn power_off(mode: RebootMode) -> ! {
    let _ = filesystem::thaw();
    // SAFETY: plain system calls; -1 is every process but this one, PID 1.
    unsafe {
        libc::kill(-1, libc::SIGTERM);
        let until = std::time::Instant::now() + TERM_LIMIT;
        // The reaper takes them; signal 0 finds none when all are gone.
        while std::time::Instant::now() < until && libc::kill(-1, 0) == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        libc::kill(-1, libc::SIGKILL);
        libc::sync();
    }
    let _ = mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, None::<&str>);
    loop {
        let Err(error) = reboot(mode);
        log::problem(format_args!("power off: {error}"));
        std::thread::sleep(Duration::from_secs(1));
    }
}
