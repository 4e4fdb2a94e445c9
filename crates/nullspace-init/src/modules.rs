//! Kernel modules: those that every machine needs are loaded at boot, the others when the kernel asks for one.
//!
//! ```text
//!  boot       /modules/order: loaded, then removed from memory
//!  on demand  kernel: request_module("nft-chain-1-nat") ── runs ──> /proc/1/exe -q -- nft-chain-1-nat
//!                       this program, as `modprobe` ──> PID 1's descriptor STORE ──> nft_chain_nat.ko.zst + what it needs
//!  by name    modprobe(8) of the image finds the same files at /lib/modules/<release>, where it is mounted
//! ```
//! The kernel starts its helper inside the image's root, where nothing of ours is: the program is found as the image of
//! PID 1, and the modules, in the initramfs below that root, through a descriptor that PID 1 keeps open.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::log;

/// PID 1's descriptor of [`FOLDER`] of the initramfs. Above those that programs use.
const STORE: i32 = 1000;
/// Where the initramfs has the modules that are loaded on demand, in a folder named as the kernel's release.
const FOLDER: &str = "/lib/modules";
/// This program, for the kernel.
pub(crate) const HELPER: &str = "/proc/1/exe";

/// Loads what `folder/order` lists, in that order, then frees its memory. A kernel that has them built in needs no
/// folder; one that fails is told and skipped: the devices that are missing then say more.
pub(crate) fn load(folder: &Path) {
    let order = fs::read_to_string(folder.join("order")).unwrap_or_default();
    for name in order.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let path = folder.join(name);
        let loaded = File::open(&path).map_err(|error| error.to_string()).and_then(|file| {
            match finit_module(&file, c"", ModuleInitFlags::empty()) {
                Ok(()) | Err(nix::Error::EEXIST) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        });
        if let Err(error) = loaded {
            log::problem(format_args!("module {name}: {error}"));
        }
        let _ = fs::remove_file(path);
    }
}

/// Keeps the folder of modules reachable when the image's root is entered. A guest image without one has none on demand.
pub(crate) fn keep() {
    let kept = File::options().read(true).custom_flags(libc::O_DIRECTORY).open(FOLDER).and_then(|folder| {
        let kept = fcntl(&folder, FcntlArg::F_DUPFD_CLOEXEC(STORE))?;
        // It stays open for ever; PID 1 never opens as many.
        if kept == STORE { Ok(()) } else { Err(io::Error::other("the descriptor is taken")) }
    });
    match kept {
        Err(error) if error.kind() != io::ErrorKind::NotFound => log::problem(format_args!("modules: {error}")),
        _ => {}
    }
}

/// This kernel's folder in the store, by a path that PID 1 and its helper can open.
pub(crate) fn store() -> io::Result<String> {
    Ok(format!("/proc/1/fd/{STORE}/{}", release()?))
}

fn release() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned())
}

/// Makes this program the one that the kernel asks for modules, and the device files that ask for one when they are opened.
/// The image's root must be entered.
pub(crate) fn serve() {
    let Ok(store) = store() else { return };
    let Ok(devices) = fs::read_to_string(format!("{store}/modules.devname")) else { return };
    if let Err(error) = fs::write("/proc/sys/kernel/modprobe", HELPER) {
        return log::problem(format_args!("modules on demand: {error}"));
    }
    for (name, kind, number) in devices.lines().filter_map(device) {
        let path = Path::new("/dev").join(name);
        let made = path.parent().map_or(Ok(()), |folder| match fs::DirBuilder::new().mode(0o755).create(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        });
        // As udev's rules have it: what is not root's own matter is judged by the driver.
        let mode = if matches!(name, "fuse" | "net/tun") { 0o666 } else { 0o600 };
        let made = made.and_then(|()| match mknod(&path, kind, Mode::from_bits_truncate(mode), number) {
            Ok(()) => Ok(fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))?),
            Err(nix::Error::EEXIST) => Ok(()),
            Err(error) => Err(error.into()),
        });
        if let Err(error) = made {
            log::problem(format_args!("{}: {error}", path.display()));
        }
    }
}

/// A line of modules.devname: `module name c10:229`.
fn device(line: &str) -> Option<(&str, SFlag, libc::dev_t)> {
    let mut fields = line.split(' ');
    let (module, name, number) = (fields.next()?, fields.next()?, fields.next()?);
    let (kind, number) = match number.split_at_checked(1)? {
        ("c", number) => (SFlag::S_IFCHR, number),
        ("b", number) => (SFlag::S_IFBLK, number),
        _ => return None,
    };
    let (major, minor) = number.split_once(':')?;
    let plain = !module.starts_with('#') && !name.starts_with('/') && !name.split('/').any(|part| part == "..");
    plain.then_some((name, kind, makedev(major.parse().ok()?, minor.parse().ok()?)))
}

/// Lets an image that has modprobe(8) find the modules: mounts them at `/lib/modules/RELEASE`, read-only. Done already is
/// done. Images without the program are left as they are.
pub(crate) fn offer() {
    let programs = ["/sbin/modprobe", "/usr/sbin/modprobe", "/bin/kmod", "/usr/bin/kmod"];
    if !programs.iter().any(|program| fs::symlink_metadata(program).is_ok()) {
        return;
    }
    let offered = || -> io::Result<()> {
        let (store, at) = (store()?, format!("{FOLDER}/{}", release()?));
        if !Path::new(&store).exists() || Path::new(&at).join("modules.dep").exists() {
            return Ok(());
        }
        fs::create_dir_all(&at)?;
        mount(Some(store.as_str()), at.as_str(), None::<&CStr>, MsFlags::MS_BIND, None::<&CStr>)?;
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&CStr>, at.as_str(), None::<&CStr>, read_only, None::<&CStr>)?;
        Ok(())
    };
    if let Err(error) = offered() {
        log::problem(format_args!("modules for the image's modprobe: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_lines_are_read() {
        assert_eq!(device("fuse fuse c10:229"), Some(("fuse", SFlag::S_IFCHR, makedev(10, 229))));
        assert_eq!(device("tun net/tun c10:200"), Some(("net/tun", SFlag::S_IFCHR, makedev(10, 200))));
        for none in ["# Device nodes to trigger", "fuse fuse 10:229", "x ../y c1:2", "x /etc/y c1:2", "x y c1", "x", ""]
        {
            assert_eq!(device(none), None, "{none}");
        }
    }
}
