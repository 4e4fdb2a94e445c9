//! The root filesystem as a whole: freeze, thaw, grow.

#![allow(unsafe_code, reason = "freeze and thaw are ioctls")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

// From the kernel's include/uapi/linux/fs.h and Documentation/filesystems/ext4 (ioctl table).
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;

fn root() -> io::Result<File> {
    File::open("/")
}

fn ioctl_int(file: &File, request: libc::c_ulong, value: libc::c_int) -> io::Result<()> {
    let mut value = value;
    // SAFETY: the requests used with this take a pointer to an int, or ignore it.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, &mut value) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn ioctl_u64(file: &File, request: libc::c_ulong, value: &mut u64) -> io::Result<()> {
    // SAFETY: the requests used with this take a pointer to 64 bits.
    match unsafe { libc::ioctl(file.as_raw_fd(), request, value) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes everything out, while writers still run: a freeze that follows is short.
pub(crate) fn write_out() -> io::Result<()> {
    // SAFETY: a plain system call.
    match unsafe { libc::syncfs(root()?.as_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Writes the rest out and stops writers: the device is clean as if unmounted. Done already is done.
pub(crate) fn freeze() -> io::Result<()> {
    match ioctl_int(&root()?, FIFREEZE, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        other => other,
    }
}

/// Lets writers go on. Done already is done.
pub(crate) fn thaw() -> io::Result<()> {
    match ioctl_int(&root()?, FITHAW, 0) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

/// Grows the mounted ext4 to its device; answers its size in bytes.
pub(crate) fn grow(device: &str) -> io::Result<u64> {
    let root = root()?;
    let mut bytes = 0;
    ioctl_u64(&File::open(device)?, BLKGETSIZE64, &mut bytes)?;
    let block = nix::sys::statfs::fstatfs(&root)?.block_size();
    let block = u64::try_from(block).ok().filter(|block| *block > 0);
    let block = block.ok_or_else(|| io::Error::other("the filesystem has no block size"))?;
    let mut blocks = bytes / block;
    ioctl_u64(&root, EXT4_IOC_RESIZE_FS, &mut blocks)?;
    blocks.checked_mul(block).ok_or_else(|| io::Error::other("the device's size is no number of bytes"))
}
