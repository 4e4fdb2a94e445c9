//! Boot and shutdown: from the kernel's hand-over to a serving agent, and back.

#![allow(unsafe_code, reason = "PID 1 sets up its own descriptors and umask")]

use std::fs;
use std::os::fd::IntoRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use crate::agent::{Agent, Ground};
use crate::transport::{self, Transport};
use crate::{filesystem, log, modules, network, root, settings};

/// How long processes may take to end by themselves when the machine goes off.
const TERM_LIMIT: Duration = Duration::from_secs(1);

/// PID 1's life. Never comes back.
pub fn run() -> ! {
    root::mount_early();
    log::open();
    open_stdio();
    // SAFETY: a plain system call.
    unsafe { libc::umask(0o022) };
    modules::load(Path::new("/modules"));
    let _ = nix::unistd::sethostname("nullspace");
    if let Err(error) = network::loopback_up() {
        log::problem(format_args!("loopback: {error}"));
    }
    settings::apply_to_processes();
    modules::keep();
    let mut transport = transport::open();
    let arguments = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let device = root_argument(&arguments);
    let root =
        catch_unwind(|| root::enter(device)).unwrap_or_else(|_| Err("the agent failed while it mounted it".into()));
    if let Err(error) = &root {
        log::problem(format_args!("root: {error}"));
    }
    let off = match &transport {
        Transport::Port(..) => RebootMode::RB_POWER_OFF,
        // Firecracker has no power button; it ends when its guest reboots.
        Transport::Vsock(_) => RebootMode::RB_AUTOBOOT,
    };
    let agent = Agent::new(Ground { root: root.map(|()| device.to_owned()), off });
    log::note("agent serves");
    loop {
        if catch_unwind(AssertUnwindSafe(|| transport::run(&agent, &mut transport))).is_err() {
            log::problem("agent: a connection failed by a bug; serving again");
        }
    }
}

/// The kernel argument `nullspace.root=`.
fn root_argument(arguments: &str) -> &str {
    arguments
        .split_whitespace()
        .rev()
        .find_map(|argument| argument.strip_prefix("nullspace.root="))
        .unwrap_or("/dev/vda")
}

/// Makes descriptors 0 to 2 exist, so that none of ours takes their place: the kernel opens them on /dev/console,
/// which some have not.
fn open_stdio() {
    while let Ok(null) = fs::File::options().read(true).write(true).open("/dev/null") {
        let fd = null.into_raw_fd();
        if fd > 2 {
            // SAFETY: it was just opened and given up by its owner.
            unsafe { libc::close(fd) };
            break;
        }
        // SAFETY: children get descriptors of their own there; this one must only not be closed on exec by surprise.
        unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_device_is_an_argument() {
        assert_eq!(root_argument("console=ttyS0 quiet"), "/dev/vda");
        assert_eq!(root_argument("quiet nullspace.root=/dev/vdb panic=1"), "/dev/vdb");
        assert_eq!(root_argument("nullspace.root=/dev/vdb nullspace.root=/dev/vdc"), "/dev/vdc");
    }
}
