//! TCP connections that a resume has severed: those to other machines. They are reset, so that their processes see an error
//! and not silence.
//!
//! ```text
//!   /proc/<pid>/net/tcp, tcp6 of each network namespace ── both ends in this guest? ── yes: it lives on
//!                                                             └─ no ──> its inode
//!   /proc/<pid>/fd/* of that inode ── pidfd_getfd ── connect(AF_UNSPEC): RST to the peer, ECONNRESET for the process
//! ```
//! Before a halted snapshot they are looked for while the processes stand still, so that the resume has only to reset them.
//! After any other snapshot they are looked for at the resume. Connections that no process has accepted yet have no
//! descriptor, and are left to TCP's own timers.

#![allow(unsafe_code, reason = "descriptors of other processes are taken by system calls without a wrapper")]

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::log;
use crate::process::list;

/// Bytes of one table of connections that are read at most: some 100 000 connections.
const MAX_TABLE: u64 = 16 * 1024 * 1024;
/// Time limit for the search through all processes.
const LIMIT: Duration = Duration::from_secs(2);

/// An end of a connection.
type End = (IpAddr, u16);

/// A descriptor of a process that is a connection to another machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Severed {
    pid: u32,
    fd: i32,
    inode: u64,
}

/// A connection in a table of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Connection {
    local: End,
    peer: End,
    inode: u64,
}

/// Finds the connections to other machines.
pub(crate) fn find() -> io::Result<Vec<Severed>> {
    let until = Instant::now() + LIMIT;
    // Kernel threads too: they have no descriptors, and to tell them apart costs more than to look.
    let pids = list::numbers()?;
    let mut connections = tables("/proc/self");
    let mut seen: HashSet<_> = fs::read_link("/proc/self/ns/net").into_iter().collect();
    for pid in &pids {
        if let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/net"))
            && seen.insert(namespace)
        {
            connections.extend(tables(&format!("/proc/{pid}")));
        }
    }
    let wanted = leaving(&connections);
    let mut found = Vec::new();
    if wanted.is_empty() {
        return Ok(found);
    }
    for pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            let inode = target.to_str().and_then(socket_inode).filter(|inode| wanted.contains(inode));
            let fd = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if let (Some(inode), Some(fd)) = (inode, fd) {
                found.push(Severed { pid, fd, inode });
            }
        }
        if Instant::now() >= until {
            log::problem("connections: there are too many descriptors to look at all of them");
            break;
        }
    }
    Ok(found)
}

/// Resets connections. One that its process has closed meanwhile is none.
pub(crate) fn reset(severed: &[Severed]) {
    let mut done = HashSet::new();
    for one in severed {
        // Several processes may share one socket.
        if done.contains(&one.inode) {
            continue;
        }
        match reset_one(one) {
            Ok(reset) => {
                if reset {
                    done.insert(one.inode);
                }
            }
            Err(error) => log::problem(format_args!("a connection of process {} stays: {error}", one.pid)),
        }
    }
    if !done.is_empty() {
        log::note(format_args!("{} connections to other machines were reset", done.len()));
    }
}

/// False when the descriptor is another file now, or its process has ended.
fn reset_one(severed: &Severed) -> io::Result<bool> {
    let gone = |error: io::Error| match error.raw_os_error() {
        Some(libc::ESRCH | libc::EBADF) => Ok(false),
        _ => Err(error),
    };
    // SAFETY: plain system calls; the descriptors that they answer are ours alone.
    let (process, socket) = unsafe {
        let process = match libc::syscall(libc::SYS_pidfd_open, severed.pid, 0) {
            -1 => return gone(io::Error::last_os_error()),
            fd => owned(fd)?,
        };
        let socket = match libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), severed.fd, 0) {
            -1 => return gone(io::Error::last_os_error()),
            fd => owned(fd)?,
        };
        (process, socket)
    };
    drop(process);
    let target = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd()))?;
    if target.to_str().and_then(socket_inode) != Some(severed.inode) {
        return Ok(false);
    }
    // Not a shutdown: that waits for a peer which never answers. An address of no family dissolves the connection.
    // SAFETY: a `sockaddr` of zeros is AF_UNSPEC, and is as long as is said.
    let done = unsafe {
        let nobody: libc::sockaddr = std::mem::zeroed();
        libc::connect(socket.as_raw_fd(), &raw const nobody, LENGTH)
    };
    if done == 0 { Ok(true) } else { Err(io::Error::last_os_error()) }
}

/// Bytes of a `sockaddr`.
const LENGTH: libc::socklen_t = 16;
const _: () = assert!(size_of::<libc::sockaddr>() == 16);

/// # Safety
/// `fd` is a descriptor that nobody else has.
unsafe fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: as promised by the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The connections of a process's network namespace.
fn tables(process: &str) -> Vec<Connection> {
    let mut connections = Vec::new();
    for name in ["tcp", "tcp6"] {
        let mut text = String::new();
        // A kernel without IPv6 has no second table.
        let read =
            File::open(format!("{process}/net/{name}")).and_then(|file| file.take(MAX_TABLE).read_to_string(&mut text));
        if read.is_ok() {
            connections.extend(text.lines().skip(1).filter_map(parse));
        }
    }
    connections
}

/// A line of /proc/net/tcp or tcp6: `sl local remote st tx:rx tr:when retrnsmt uid timeout inode`. `None` for one that listens, is
/// not connected yet, or is over.
fn parse(line: &str) -> Option<Connection> {
    let mut fields = line.split_whitespace();
    let (local, peer) = (end(fields.nth(1)?)?, end(fields.next()?)?);
    let state = u8::from_str_radix(fields.next()?, 16).ok()?;
    // include/net/tcp_states.h: established, two of FIN_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING.
    matches!(state, 1 | 4 | 5 | 8 | 9 | 11).then_some(())?;
    Some(Connection { local, peer, inode: fields.nth(5)?.parse().ok()? })
}

/// `address:port` in hexadecimal: the address as words of the processor's byte order.
fn end(text: &str) -> Option<End> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| Some(u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, to) in bytes.chunks_exact_mut(4).enumerate() {
                to.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some((address, port))
}

/// The inodes of the connections whose other end is not in this guest.
fn leaving(connections: &[Connection]) -> HashSet<u64> {
    let here: HashSet<(End, End)> = connections.iter().map(|one| (one.local, one.peer)).collect();
    let leaves =
        |one: &&Connection| one.inode != 0 && !one.peer.0.is_loopback() && !here.contains(&(one.peer, one.local));
    connections.iter().filter(leaves).map(|one| one.inode).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0 100 0 0 10 0
   1: 0F02000A:C350 08080808:01BB 01 00000000:00000000 02:000005DC 00000000     0        0 101 2 0 20 4 30 10 -1
   2: 0100007F:C351 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 102 1 0 20 4 30 10 -1
   3: 0F02000A:C352 08080404:01BB 02 00000000:00000000 00:00000000 00000000     0        0 103 1 0 20 4 30 10 -1
   4: 0F02000A:C353 08080404:01BB 06 00000000:00000000 00:00000000 00000000     0        0 0 1 0 20 4 30 10 -1
   5: 010011AC:C354 020011AC:0050 01 00000000:00000000 00:00000000 00000000     0        0 104 1 0 20 4 30 10 -1
   6: 020011AC:0050 010011AC:C354 08 00000000:00000000 00:00000000 00000000     0        0 105 1 0 20 4 30 10 -1
   7: 0F02000A:C355 08080404:0050 08 00000000:00000000 00:00000000 00000000     0        0 106 1 0 20 4 30 10 -1
  broken
";

    #[test]
    fn only_connections_to_other_machines_are_severed() {
        let connections: Vec<_> = TABLE.lines().skip(1).filter_map(parse).collect();
        assert_eq!(connections[0].local, (IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15)), 50_000));
        assert_eq!(connections[0].peer, (IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8)), 443));
        // Neither who listens, connects or is over; nor loopback; nor both ends of a bridge.
        assert_eq!(leaving(&connections), HashSet::from([101, 106]));
    }

    #[test]
    fn mapped_addresses_are_the_same_in_both_tables() {
        let mapped = end("0000000000000000FFFF00000100007F:0050").unwrap();
        assert_eq!(mapped, (IpAddr::V4(Ipv4Addr::LOCALHOST), 80));
        assert_eq!(end("00000000000000000000000001000000:0050").unwrap().0, IpAddr::V6(Ipv6Addr::LOCALHOST));
        assert_eq!(end("0100007F"), None);
        assert_eq!(end("01007F:0050"), None);
    }

    #[test]
    fn a_connection_of_another_process_is_reset() {
        use std::io::Write as _;
        use std::net::{TcpListener, TcpStream};
        use std::process::{Command, Stdio};

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut child = Command::new("sh")
            .args(["-c", "echo up >&0; read line; echo ended"])
            .stdin(Stdio::from(OwnedFd::from(TcpStream::connect(listener.local_addr().unwrap()).unwrap())))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let mut up = [0; 3];
        peer.read_exact(&mut up).unwrap();
        let link = fs::read_link(format!("/proc/{}/fd/0", child.id())).unwrap();
        let inode = socket_inode(link.to_str().unwrap()).unwrap();
        let other = Severed { pid: child.id(), fd: 0, inode: inode + 1 };
        assert!(!reset_one(&other).unwrap(), "another file by now");
        let one = Severed { inode, ..other };
        match reset_one(&one) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                eprintln!("skipped: descriptors of other processes are not given here");
                child.kill().unwrap();
                child.wait().unwrap();
                return;
            }
            reset => assert!(reset.unwrap()),
        }
        // The process sees an error, and so does its peer.
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "ended");
        let mut rest = Vec::new();
        let read = peer.read_to_end(&mut rest).and_then(|_| peer.write_all(b"x")).and_then(|()| peer.write_all(b"y"));
        assert!(read.is_err(), "{read:?}");
        assert!(!reset_one(&one).unwrap(), "the process has ended");
    }
}
