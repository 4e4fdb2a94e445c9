//! The image's root filesystem: mounted, filled up with what every Linux process expects, entered.
//!
//! The root is entered before it is filled up, so that the image's symbolic links stay inside it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nullspace_guest::message::ROOT_FULL;

use crate::process::prepare::WORKSPACE;
use crate::{generation, log, modules, settings};

/// Time limit for the root's device to appear.
const DEVICE_LIMIT: Duration = Duration::from_secs(10);

struct Mount {
    at: &'static str,
    kind: &'static str,
    flags: MsFlags,
    data: &'static str,
    /// Whether processes need it.
    needed: bool,
}

const fn special(at: &'static str, kind: &'static str, flags: MsFlags, data: &'static str, needed: bool) -> Mount {
    Mount { at, kind, flags, data, needed }
}

const NO_SUID: MsFlags = MsFlags::MS_NOSUID;
const PLAIN: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);
const DATA: MsFlags = PLAIN.union(MsFlags::MS_NOEXEC);

/// In order: later ones lie in earlier ones.
const MOUNTS: [Mount; 6] = [
    special("/proc", "proc", DATA, "", true),
    special("/sys", "sysfs", DATA, "", true),
    special("/dev", "devtmpfs", NO_SUID, "mode=0755", true),
    // Group 5 is tty in every distribution.
    special("/dev/pts", "devpts", NO_SUID.union(MsFlags::MS_NOEXEC), "gid=5,mode=0620,ptmxmode=0666", false),
    special("/dev/shm", "tmpfs", PLAIN, "mode=1777", false),
    special("/sys/fs/cgroup", "cgroup2", DATA, "", false),
];

/// Where the agent has mounted something, the root itself included.
pub(crate) fn own_mounts() -> impl Iterator<Item = &'static str> {
    MOUNTS.iter().map(|wanted| wanted.at).chain(["/"]).chain(generation::places())
}

/// /proc, /sys and /dev of the initramfs.
pub(crate) fn mount_early() {
    for wanted in MOUNTS.iter().filter(|wanted| wanted.needed) {
        let _ = fs::create_dir(wanted.at);
        if let Err(error) = mount(Some(wanted.kind), wanted.at, Some(wanted.kind), wanted.flags, None::<&str>) {
            // devtmpfs may be mounted by the kernel already.
            log::problem(format_args!("initramfs {}: {error}", wanted.at));
        }
    }
}

/// Mounts `device` and makes it this process's root. The error is one sentence part for the host.
pub(crate) fn enter(device: &str) -> Result<(), String> {
    let until = Instant::now() + DEVICE_LIMIT;
    while !Path::new(device).exists() {
        if Instant::now() >= until {
            return Err(format!("{device} did not appear within {} s", DEVICE_LIMIT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let step = |what: &str, result: nix::Result<()>| {
        result.map_err(|error| format!("{what}: {}", std::io::Error::from(error)))
    };
    let _ = fs::create_dir("/newroot");
    // No access times: they would turn every read of the image into a write of its copy-on-write disk.
    let mounted = mount(Some(device), "/newroot", Some("ext4"), MsFlags::MS_NOATIME, None::<&str>);
    step(&format!("mount {device} as ext4"), mounted)?;
    step("enter the root", nix::unistd::chdir("/newroot"))?;
    step("move the root", mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>))?;
    step("enter the root", nix::unistd::chroot("."))?;
    step("enter the root", nix::unistd::chdir("/"))?;
    fill_up()
}

fn fill_up() -> Result<(), String> {
    for wanted in &MOUNTS {
        let mounted = folder(wanted.at, 0o755).and_then(|_| {
            mount(Some(wanted.kind), wanted.at, Some(wanted.kind), wanted.flags, Some(wanted.data))
                .map_err(std::io::Error::from)
        });
        match mounted {
            Ok(()) => {}
            Err(error) if wanted.needed && error.kind() == std::io::ErrorKind::StorageFull => {
                return Err(format!("{ROOT_FULL}: {} cannot be made", wanted.at));
            }
            Err(error) if wanted.needed => return Err(format!("mount {}: {error}", wanted.at)),
            Err(error) => log::problem(format_args!("mount {}: {error}", wanted.at)),
        }
    }
    for (link, to) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")] {
        let _ = symlink(format!("/proc/self/fd{to}"), format!("/dev/{link}"));
    }
    settings::apply();
    // On disk, not tmpfs, as in a container: what a build leaves there (a /run/sshd, say) is part of the image. Folders
    // that the image has stay as they are.
    let folders = [("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/run", 0o755), ("/etc", 0o755), (WORKSPACE, 0o755)];
    for (path, mode) in folders {
        if let Err(error) = folder(path, mode) {
            log::problem(format_args!("{path}: {error}"));
        }
    }
    if let Err(error) = generation::set_up() {
        log::problem(format_args!("{}: {error}", generation::FOLDER));
    }
    modules::serve();
    Ok(())
}

/// Makes a folder with its parents when it is missing.
fn folder(path: &str, mode: u32) -> std::io::Result<()> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => Err(std::io::Error::other("the image has a file there, not a directory")),
        Err(_) => {
            fs::create_dir_all(path)?;
            fs::set_permissions(path, Permissions::from_mode(mode))
        }
    }
}
