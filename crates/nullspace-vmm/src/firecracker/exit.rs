//! The exit status of a Firecracker, and the cause of its end.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::{EndCause, Ended};

/// Tells whose doing the end of a VMM was. Firecracker ends with 0 when its guest reboots, and has numbers of its own for
/// the signals that it catches (`FcExitCode`); the shell above the jailer passes others on as 128 and their number.
pub(super) fn ended(status: ExitStatus) -> Ended {
    let code = status.code();
    let signal = status.signal().or(match code {
        Some(148) => Some(libc::SIGSYS),
        Some(149) => Some(libc::SIGBUS),
        Some(150) => Some(libc::SIGSEGV),
        Some(151) => Some(libc::SIGXFSZ),
        // Its settings or arguments.
        Some(152 | 153) => None,
        Some(154) => Some(libc::SIGXCPU),
        Some(155) => Some(libc::SIGPIPE),
        Some(156) => Some(libc::SIGHUP),
        Some(157) => Some(libc::SIGILL),
        Some(code @ 129..=192) => Some(code - 128),
        _ => None,
    });
    match (signal, code) {
        (Some(signal), _) => Ended { cause: EndCause::Signal(signal), how: format!("killed by signal {signal}") },
        (None, Some(0)) => Ended { cause: EndCause::Guest, how: "exit status 0".into() },
        (None, Some(code)) => Ended { cause: EndCause::Vmm, how: format!("exit status {code}") },
        (None, None) => Ended { cause: EndCause::Vmm, how: "it ended".into() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_says_whose_doing_it_was() {
        for (raw, cause) in [
            (0 << 8, EndCause::Guest),
            (1 << 8, EndCause::Vmm),
            (137 << 8, EndCause::Signal(libc::SIGKILL)),
            (143 << 8, EndCause::Signal(libc::SIGTERM)),
            (148 << 8, EndCause::Signal(libc::SIGSYS)),
            (150 << 8, EndCause::Signal(libc::SIGSEGV)),
            (153 << 8, EndCause::Vmm),
            (157 << 8, EndCause::Signal(libc::SIGILL)),
            (9, EndCause::Signal(libc::SIGKILL)),
        ] {
            assert_eq!(ended(ExitStatus::from_raw(raw)).cause, cause, "{raw}");
        }
    }
}
