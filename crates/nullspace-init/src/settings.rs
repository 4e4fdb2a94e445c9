//! Limits of the kernel that a machine of its own should have. The kernel's defaults are small, or follow from a machine's
//! memory; what a guest uses of its own memory is its own concern.

use std::fs;

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use crate::log;

/// Open files of a process: the soft limit is what most programs meet, the hard one is the kernel's `fs.nr_open`.
const FILES: (u64, u64) = (65_536, 1_048_576);

/// Raised to at least so much.
const AT_LEAST: [(&str, u64); 10] = [
    // As on a desktop of today; a kernel gives a machine of 512 MiB some 4000 watches.
    ("fs/inotify/max_user_watches", 524_288),
    ("fs/inotify/max_user_instances", 1_024),
    ("fs/inotify/max_queued_events", 65_536),
    // What Elasticsearch, ClickHouse and sanitizers ask for, as Debian 13 and Fedora have it.
    ("vm/max_map_count", 1_048_576),
    ("net/core/somaxconn", 4_096),
    ("kernel/pid_max", 4_194_304),
    // Of all processes together: as systemd does, no limit but memory.
    ("fs/file-max", i64::MAX as u64),
    ("fs/aio-max-nr", 1_048_576),
    ("kernel/threads-max", 65_536),
    // Keys of a user: each container has a keyring.
    ("kernel/keys/maxkeys", 2_000),
];

const EXACTLY: [(&str, &str); 6] = [
    // As containers have them: any user may ping and serve port 80.
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    // As systemd sets them: in a directory such as /tmp, nobody is led to another place, or into a file, by what another user
    // has put there. That holds for the agent's file operations, too.
    ("fs/protected_symlinks", "1"),
    ("fs/protected_hardlinks", "1"),
    ("fs/protected_fifos", "1"),
    ("fs/protected_regular", "2"),
];

/// Sets all of it that this kernel has. /proc must be mounted.
pub(crate) fn apply() {
    for (name, least) in AT_LEAST {
        let path = path(name);
        let now = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        if now.is_some_and(|now| now < least)
            && let Err(error) = fs::write(&path, least.to_string())
        {
            log::problem(format_args!("{path}: {error}"));
        }
    }
    for (name, value) in EXACTLY {
        // Not every kernel has every one.
        let _ = fs::write(path(name), value);
    }
}

fn path(name: &str) -> String {
    format!("/proc/sys/{name}")
}

/// Limits of this process, which all others inherit.
pub(crate) fn apply_to_processes() {
    // Processes of a user: by default what fits into an eighth of the memory, which a build with make -j meets.
    let limits = [(Resource::RLIMIT_NOFILE, FILES.0, FILES.1), (Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY)];
    for (resource, soft, hard) in limits {
        if let Err(error) = setrlimit(resource, soft, hard) {
            log::problem(format_args!("{resource:?}: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_one_that_linux_has() {
        let names = AT_LEAST.iter().map(|(name, _)| name).chain(EXACTLY.iter().map(|(name, _)| name));
        for name in names {
            assert!(fs::metadata(path(name)).is_ok(), "{name}");
        }
    }
}
