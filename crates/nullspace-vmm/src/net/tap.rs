//! A tap device, made in the calling thread's network namespace.

#![allow(unsafe_code, reason = "tap devices are made by ioctls on structures of the C library")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::VmmError;

use super::TAP_NAME;

// <linux/if_tun.h>, on every architecture with the generic ioctl layout (x86-64, aarch64, riscv64).
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETPERSIST: libc::c_ulong = 0x4004_54cb;
const TUNSETOWNER: libc::c_ulong = 0x4004_54cc;

/// Opens a new tap. It goes when the descriptor is closed.
pub(super) fn open() -> Result<OwnedFd, VmmError> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(|source| VmmError::Io {
        context: "open /dev/net/tun (is the kernel's module `tun` loaded?)".into(),
        source,
    })?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(TAP_NAME.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives past the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &mut request) };
    check(done, "make a tap device")?;
    Ok(File::into(file))
}

/// Lets a process of `uid` in the same namespace open the tap by its name, and keeps it while nobody has it open.
pub(super) fn give_to(tap: impl AsFd, uid: u32) -> Result<(), VmmError> {
    let fd = tap.as_fd().as_raw_fd();
    // SAFETY: both take a number, not a pointer.
    check(unsafe { libc::ioctl(fd, TUNSETOWNER, libc::c_ulong::from(uid)) }, "set the tap's owner")?;
    // SAFETY: as above.
    check(unsafe { libc::ioctl(fd, TUNSETPERSIST, 1 as libc::c_ulong) }, "keep the tap")
}

fn check(result: libc::c_int, context: &str) -> Result<(), VmmError> {
    if result < 0 {
        return Err(VmmError::Io { context: context.into(), source: io::Error::last_os_error() });
    }
    Ok(())
}
