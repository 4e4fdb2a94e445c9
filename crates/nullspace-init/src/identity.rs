//! The guest's identity: name, machine id, time, randomness.

#![allow(unsafe_code, reason = "the random device is reseeded by ioctl")]

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use base64::Engine;
use nix::sys::time::TimeSpec;
use nullspace_guest::message::{Failure, FailureKind, GuestNetwork, Restored};

use crate::process::prepare;

// From the kernel's include/uapi/linux/random.h.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
/// Random bytes taken at most.
const MAX_ENTROPY: usize = 512;
/// Random bytes below which the guest would not be unique.
const MIN_ENTROPY: usize = 32;

fn internal(what: &str, error: impl std::fmt::Display) -> Failure {
    Failure { kind: FailureKind::Internal, message: format!("{what}: {error}.") }
}

fn invalid(message: String) -> Failure {
    Failure { kind: FailureKind::Invalid, message }
}

/// Checks everything that `restored` is going to use, so that it is not left half done.
pub(crate) fn check(restored: &Restored) -> Result<Vec<u8>, Failure> {
    check_hostname(&restored.hostname)?;
    let id = &restored.machine_id;
    if id.len() != 32 || !id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(invalid("A machine id is 32 lower-case hex digits.".to_owned()));
    }
    match base64::engine::general_purpose::STANDARD.decode(&restored.entropy) {
        Ok(entropy) if (MIN_ENTROPY..=MAX_ENTROPY).contains(&entropy.len()) => Ok(entropy),
        _ => Err(invalid(format!("Entropy is base64 of {MIN_ENTROPY} to {MAX_ENTROPY} bytes."))),
    }
}

/// A host name as in hostname(7).
pub(crate) fn check_hostname(name: &str) -> Result<(), Failure> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= 64 && name.split('.').all(label) {
        Ok(())
    } else {
        Err(invalid(format!("`{}` is no host name.", name.escape_debug())))
    }
}

/// Mixes `entropy` into the kernel's pool, credits it, and derives all further random numbers from the new state.
pub(crate) fn reseed(entropy: &[u8]) -> Result<(), Failure> {
    #[repr(C)]
    struct PoolInfo {
        bits: libc::c_int,
        bytes: libc::c_int,
        pool: [u8; MAX_ENTROPY],
    }
    let mut info = PoolInfo { bits: 0, bytes: 0, pool: [0; MAX_ENTROPY] };
    let len = entropy.len().min(MAX_ENTROPY);
    info.pool[..len].copy_from_slice(&entropy[..len]);
    info.bytes = libc::c_int::try_from(len).unwrap_or(0);
    info.bits = info.bytes * 8;
    let device = File::open("/dev/urandom").map_err(|error| internal("/dev/urandom cannot be opened", error))?;
    // SAFETY: RNDADDENTROPY reads a `struct rand_pool_info`, whose layout `PoolInfo` has; RNDRESEEDCRNG takes nothing.
    let done = unsafe {
        libc::ioctl(device.as_raw_fd(), RNDADDENTROPY, &info) == 0
            && libc::ioctl(device.as_raw_fd(), RNDRESEEDCRNG) == 0
    };
    if done { Ok(()) } else { Err(internal("The kernel takes no entropy", io::Error::last_os_error())) }
}

/// Sets the wall clock.
pub(crate) fn set_clock(unix_time_ns: u64) -> Result<(), Failure> {
    const SECOND: u64 = 1_000_000_000;
    let seconds = libc::time_t::try_from(unix_time_ns / SECOND).unwrap_or(libc::time_t::MAX);
    let time = TimeSpec::new(seconds, (unix_time_ns % SECOND).cast_signed());
    nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, time)
        .map_err(|error| internal("The clock cannot be set", error))
}

/// Sets the kernel's host name, /etc/hostname and the name's line in /etc/hosts. `alias` is resolved too: the name that
/// services from before a snapshot have learned.
pub(crate) fn set_hostname(name: &str, alias: Option<&str>) -> Result<(), Failure> {
    check_hostname(name)?;
    nix::unistd::sethostname(name).map_err(|error| internal("The host name cannot be set", error))?;
    replace("/etc/hostname", format!("{name}\n").as_bytes(), 0o644)?;
    let old = fs::read_to_string("/etc/hosts").unwrap_or_default();
    replace("/etc/hosts", hosts(&old, name, alias).as_bytes(), 0o644)
}

/// Writes /etc/machine-id.
pub(crate) fn set_machine_id(id: &str) -> Result<(), Failure> {
    replace("/etc/machine-id", format!("{id}\n").as_bytes(), 0o444)
}

/// Gives a freshly booted guest a machine id when its image has none: services may want one before the first restore,
/// which then only overwrites it. The kernel's boot id is random and as long.
pub(crate) fn ensure_machine_id(boot_id: &str) -> Result<(), Failure> {
    match fs::metadata("/etc/machine-id") {
        Ok(meta) if meta.len() > 0 => Ok(()),
        _ => set_machine_id(&boot_id.replace('-', "")),
    }
}

/// Gives an image's user a name when the image only has its number. A user that cannot be resolved is not an error here: the
/// command that runs as it fails.
pub(crate) fn ensure_account(user: &str) -> Result<(), Failure> {
    let Some(line) = prepare::accounts()?.imported(user) else { return Ok(()) };
    // As bytes: other lines may be anything.
    let mut passwd = match fs::read("/etc/passwd") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(internal("/etc/passwd cannot be read", error));
        }
        read => read.unwrap_or_default(),
    };
    if passwd.last().is_some_and(|&last| last != b'\n') {
        passwd.push(b'\n');
    }
    passwd.extend_from_slice(line.as_bytes());
    replace("/etc/passwd", &passwd, 0o644)
}

/// Writes /etc/resolv.conf.
pub(crate) fn set_resolver(network: &GuestNetwork) -> Result<(), Failure> {
    let servers: String = network.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
    replace("/etc/resolv.conf", servers.as_bytes(), 0o644)
}

/// /etc/hosts with this name and its alias on 127.0.1.1, as Debian has it; other lines stay.
fn hosts(old: &str, name: &str, alias: Option<&str>) -> String {
    let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
    let mut lines: Vec<String> = Vec::new();
    let has = |ip: &str| old.lines().any(|line| first(line).as_deref() == Some(ip));
    if !has("127.0.0.1") {
        lines.push("127.0.0.1\tlocalhost".to_owned());
    }
    if !has("::1") {
        lines.push("::1\tlocalhost ip6-localhost ip6-loopback".to_owned());
    }
    lines.extend(old.lines().filter(|line| first(line).as_deref() != Some("127.0.1.1")).map(str::to_owned));
    lines.push(match alias.filter(|alias| *alias != name) {
        Some(alias) => format!("127.0.1.1\t{name} {alias}"),
        None => format!("127.0.1.1\t{name}"),
    });
    lines.join("\n") + "\n"
}

/// Makes `path` a file of this content. A symbolic link is replaced, not followed: images link /etc/resolv.conf to files
/// of daemons that do not run here.
fn replace(path: &str, content: &[u8], mode: u32) -> Result<(), Failure> {
    let write = || -> io::Result<()> {
        let path = Path::new(path);
        if overwrite(path, content)? {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let new = path.with_extension("nullspace-new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(content)?;
        fs::rename(&new, path).inspect_err(|_| {
            // Somebody made a folder of that name; our file must not stay beside it.
            let _ = fs::remove_file(&new);
        })
    };
    write().map_err(|error| internal(&format!("{path} cannot be written"), error))
}

/// Writes into the file that is there, when it is a plain one that has no other name: much less work for the filesystem
/// than a new file, and all of it is waited for after a restore. False when there is none.
fn overwrite(path: &Path, content: &[u8]) -> io::Result<bool> {
    let plain = |meta: &fs::Metadata| meta.is_file() && meta.nlink() == 1;
    if !fs::symlink_metadata(path).is_ok_and(|meta| plain(&meta)) {
        return Ok(false);
    }
    let mut file = fs::OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let meta = file.metadata()?;
    if !plain(&meta) {
        return Ok(false);
    }
    file.write_all(content)?;
    if meta.len() > content.len() as u64 {
        file.set_len(content.len() as u64)?;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_keeps_other_lines_and_replaces_the_name() {
        let fresh = hosts("", "sb-1", None);
        assert_eq!(fresh, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\tsb-1\n");
        assert_eq!(hosts(&fresh, "sb-2", None), fresh.replace("sb-1", "sb-2"));
        let restored = hosts(&fresh, "sb-2", Some("build-1"));
        assert!(restored.ends_with("127.0.1.1\tsb-2 build-1\n"), "{restored}");
        // The next restore of a snapshot of that one keeps the first name and no other.
        assert_eq!(hosts(&restored, "sb-3", Some("build-1")), restored.replace("sb-2", "sb-3"));
        assert_eq!(hosts(&fresh, "sb-1", Some("sb-1")), fresh);
        let own = "127.0.0.1 localhost\n::1 ip6-localhost\n10.0.0.5 db # ours\n127.0.1.1 old\n";
        assert_eq!(hosts(own, "n", None), "127.0.0.1 localhost\n::1 ip6-localhost\n10.0.0.5 db # ours\n127.0.1.1\tn\n");
    }

    #[test]
    fn host_names() {
        for good in ["a", "sb-0", "a.b-c.D9", &"x".repeat(63)] {
            assert_eq!(check_hostname(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "a..b", "a b", "a\n127.0.0.1 x", "ä", &"x".repeat(64), &"a.".repeat(40)] {
            assert!(check_hostname(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_new_identity_is_checked_before_anything_is_set() {
        let good = Restored {
            hostname: "sb".into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            entropy: base64::engine::general_purpose::STANDARD.encode([7; 32]),
            unix_time_ns: 0,
            network: None,
            resume: None,
            trial: false,
        };
        assert_eq!(check(&good), Ok(vec![7; 32]));
        let bad = [
            Restored { hostname: "a/b".into(), ..good.clone() },
            Restored { machine_id: "0123".into(), ..good.clone() },
            Restored { machine_id: "0123456789ABCDEF0123456789abcdef".into(), ..good.clone() },
            Restored { entropy: String::new(), ..good.clone() },
            Restored { entropy: "no base64!".into(), ..good.clone() },
            Restored { entropy: base64::engine::general_purpose::STANDARD.encode([7; 31]), ..good },
        ];
        for restored in bad {
            assert_eq!(check(&restored).unwrap_err().kind, FailureKind::Invalid, "{restored:?}");
        }
    }

    #[test]
    fn files_replace_links_and_keep_their_mode() {
        use std::os::unix::fs::PermissionsExt;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etc/resolv.conf");
        fs::create_dir(folder.path().join("etc")).unwrap();
        fs::write(folder.path().join("victim"), "old").unwrap();
        std::os::unix::fs::symlink("../victim", &path).unwrap();
        replace(path.to_str().unwrap(), b"new", 0o444).unwrap();
        replace(path.to_str().unwrap(), b"newer than new", 0o444).unwrap();
        replace(path.to_str().unwrap(), b"newer", 0o444).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("victim")).unwrap(), "old");
        assert_eq!(fs::read_to_string(&path).unwrap(), "newer");
        let meta = fs::symlink_metadata(&path).unwrap();
        assert!(meta.is_file());
        assert_eq!(meta.permissions().mode() & 0o777, 0o444);
        // A file with a second name keeps what that name stands for.
        fs::hard_link(&path, folder.path().join("other")).unwrap();
        replace(path.to_str().unwrap(), b"newest", 0o644).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("other")).unwrap(), "newer");
        assert_eq!(fs::read_to_string(&path).unwrap(), "newest");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(replace(path.to_str().unwrap(), b"x", 0o644).is_err());
        assert_eq!(fs::read_dir(folder.path().join("etc")).unwrap().count(), 1);
    }
}
