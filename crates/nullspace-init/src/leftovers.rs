//! Cleanup after a build's step: ends processes, empties temporary filesystems, undoes mounts.
//!
//! Docker ends the container of a RUN; here the next step runs in the same machine, and must not see more of the one
//! before than a later build sees that takes it from the cache: its files.

#![allow(unsafe_code, reason = "all other processes are killed by one call")]

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nullspace_guest::message::{Failure, FailureKind};

use crate::process::list;
use crate::{modules, root};

/// How long killed processes may take to be gone.
const LIMIT: Duration = Duration::from_secs(20);
/// Between two looks at them.
const PAUSE: Duration = Duration::from_millis(2);

fn internal(message: String) -> Failure {
    Failure { kind: FailureKind::Internal, message }
}

/// Ends everything; with `drop_caches` also forgets what was read from the disk.
pub(crate) fn clear(drop_caches: bool) -> Result<(), Failure> {
    // Anywhere but in a guest this would end the whole system.
    if std::process::id() != 1 {
        return Err(internal("Only the first process of a guest ends all others.".into()));
    }
    end_processes()?;
    empty(Path::new("/dev/shm"));
    let table = fs::read("/proc/self/mounts").unwrap_or_default();
    for place in foreign_mounts(&table).into_iter().rev() {
        // Detached: nothing runs that could use it.
        let _ = umount2(Path::new(&place), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    // Unmounted with the others.
    modules::offer();
    if drop_caches {
        nix::unistd::sync();
        fs::write("/proc/sys/vm/drop_caches", "3")
            .map_err(|error| internal(format!("The page cache cannot be dropped: {error}.")))?;
    }
    Ok(())
}

fn end_processes() -> Result<(), Failure> {
    let until = Instant::now() + LIMIT;
    loop {
        // SAFETY: a plain system call; -1 is every process but this one, PID 1, and the kernel's own do not mind. Again and
        // again, since a process may have been forked while the others were killed.
        unsafe { libc::kill(-1, libc::SIGKILL) };
        let left =
            list::processes(|_| None).map_err(|error| internal(format!("Processes cannot be listed: {error}.")))?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            let limit = LIMIT.as_secs();
            return Err(internal(format!("Processes of the step do not end within {limit} s of being killed.")));
        }
        std::thread::sleep(PAUSE);
    }
}

fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let _ = match entry.file_type() {
            Ok(kind) if kind.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
    }
}

/// Mount points in `/proc/self/mounts` that the agent has not made, in their order. One that lies over the agent's own is
/// foreign too.
fn foreign_mounts(table: &[u8]) -> Vec<OsString> {
    let mut own: HashSet<&[u8]> = root::own_mounts().map(str::as_bytes).collect();
    let mut foreign = Vec::new();
    for line in table.split(|byte| *byte == b'\n') {
        let Some(place) = line.split(|byte| *byte == b' ').nth(1) else { continue };
        // The root may be listed twice: the initramfs is below it.
        if place != b"/" && !own.remove(place) {
            foreign.push(OsString::from_vec(unescape(place)));
        }
    }
    foreign
}

/// Blank, tab, newline and backslash stand as three octal digits, proc(5).
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..3).filter(|_| first == b'\\');
        let byte = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 8).ok());
        plain.push(byte.unwrap_or(first));
        rest = if byte.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guests_first_process_ends_all_others() {
        let refused = clear(true).unwrap_err();
        assert!(refused.message.contains("first process of a guest"), "{refused}");
    }

    #[test]
    fn mounts_that_the_agent_did_not_make_are_found() {
        let table =
            b"rootfs / rootfs rw 0 0\n/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\nsysfs /sys sysfs rw 0 0\n\
            devtmpfs /dev devtmpfs rw 0 0\ntmpfs /dev/shm tmpfs rw 0 0\ntmpfs /mnt/a\\040b\\134 tmpfs rw 0 0\n\
            tmpfs /dev/shm tmpfs rw 0 0\nbroken\n";
        assert_eq!(foreign_mounts(table), [OsString::from("/mnt/a b\\"), OsString::from("/dev/shm")]);
        assert_eq!(unescape(b"\\04 \\999x"), b"\\04 \\999x");
    }
}
