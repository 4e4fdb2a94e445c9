//! Pseudo-terminals: a master, which the agent keeps, and a slave, which becomes a session's controlling terminal.

#![allow(unsafe_code, reason = "terminals are set up by ioctls without safe wrappers here")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nullspace_guest::terminal::TerminalSize;

use super::spawn::above_stdio;
use crate::users::Account;

/// `TIOCGPTPEER` of `asm-generic/ioctls.h`: opens the slave of a master, whatever is mounted at /dev/pts.
const OPEN_SLAVE: libc::Ioctl = 0x5441;

/// A new terminal.
#[derive(Debug)]
pub(crate) struct Pty {
    /// Close-on-exec, and it never blocks.
    pub(crate) master: OwnedFd,
    /// For the child alone.
    pub(crate) slave: OwnedFd,
}

impl Pty {
    /// Opens a terminal of the given size that belongs to `account`.
    pub(crate) fn open(size: TerminalSize, account: &Account) -> io::Result<Pty> {
        let open = |path| {
            let flags = libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
            File::options().read(true).write(true).custom_flags(flags).open(path)
        };
        let master = above_stdio(open("/dev/ptmx").or_else(|_| open("/dev/pts/ptmx"))?.into())?;
        let unlock: libc::c_int = 0;
        // SAFETY: plain system calls. The first reads an int; the second answers a new descriptor, ours from then on.
        let slave = unsafe {
            check(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock))?;
            let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
            OwnedFd::from_raw_fd(check(libc::ioctl(master.as_raw_fd(), OPEN_SLAVE, flags))?)
        };
        let slave = above_stdio(slave)?;
        // SAFETY: plain system calls on a terminal that is ours alone; `settings` is plain data that the first call fills.
        unsafe {
            // Its group is tty, by the options of the mount. An agent in a developer's tests may not give things away; the user
            // is the same there.
            libc::fchown(slave.as_raw_fd(), account.uid, u32::MAX);
            let mut settings: libc::termios = std::mem::zeroed();
            if libc::tcgetattr(slave.as_raw_fd(), &mut settings) == 0 {
                // So that the erase key takes a whole character.
                settings.c_iflag |= libc::IUTF8;
                libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &settings);
            }
        }
        set_size(&master, size)?;
        Ok(Pty { master, slave })
    }
}

fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

/// Sets the size of a master's terminal. The kernel sends SIGWINCH to its foreground job if the size is new.
pub(crate) fn set_size(master: &OwnedFd, size: TerminalSize) -> io::Result<()> {
    let wanted = libc::winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads a `winsize`.
    check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &wanted) }).map(drop)
}

/// The size of a master's terminal, which its programs may have changed.
pub(crate) fn size(master: &OwnedFd) -> io::Result<TerminalSize> {
    // SAFETY: TIOCGWINSZ fills a `winsize`, which is plain data.
    let found = unsafe {
        let mut found: libc::winsize = std::mem::zeroed();
        check(libc::ioctl(master.as_raw_fd(), libc::TIOCGWINSZ, &mut found))?;
        found
    };
    Ok(TerminalSize { cols: found.ws_col, rows: found.ws_row })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_terminal_has_its_size_and_carries_bytes_both_ways() {
        // SAFETY: plain system calls.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        let account = Account { uid, gid, groups: vec![], name: "me".into(), home: "/".into() };
        let pty = Pty::open(TerminalSize { cols: 97, rows: 41 }, &account).unwrap();
        assert_eq!(size(&pty.slave).unwrap(), TerminalSize { cols: 97, rows: 41 });
        set_size(&pty.master, TerminalSize { cols: 1000, rows: 1 }).unwrap();
        assert_eq!(size(&pty.slave).unwrap(), TerminalSize { cols: 1000, rows: 1 });
        let (mut master, mut slave) = (File::from(pty.master), File::from(pty.slave));
        slave.write_all(b"out\n").unwrap();
        let mut buffer = [0; 64];
        let len = master.read(&mut buffer).unwrap();
        assert_eq!(buffer.get(..len), Some(&b"out\r\n"[..]));
        master.write_all(b"in\r").unwrap();
        let len = slave.read(&mut buffer).unwrap();
        assert_eq!(buffer.get(..len), Some(&b"in\n"[..]));
    }
}
