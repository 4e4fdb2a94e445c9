//! Boot: from the kernel's hand-over to a serving agent.

#![allow(unsafe_code, reason = "PID 1 sets up its own descriptors and umask")]

use std::fs;
use std::os::fd::IntoRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use nix::sys::reboot::RebootMode;

use crate::agent::{Agent, Ground};
use crate::transport::{self, Transport};
use crate::{halt, log, modules, network, root, settings};

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
    halt::prepare();
    #[cfg(feature = "disguise")]
    crate::disguise::find();
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
