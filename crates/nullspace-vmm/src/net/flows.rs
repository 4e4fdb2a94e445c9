//! Connections that the host's kernel remembers of machines (conntrack), and their removal.
//!
//! ```text
//!   a machine ends                dump: flows whose first sender is its address   ──┐
//!   the service starts or stops   dump: all flows, of which those from its pool   ──┴─> one deletion for each flow
//! ```
//! The kernel keeps an established connection for five days after the machine is gone. Machines that come and go would fill
//! the host's table, which all share. Deleting by a filter needs Linux 6.8; so flows are listed, by a filter where the kernel
//! knows it (5.8), and deleted one by one. No kernel filters by a network. The messages go to ctnetlink in the thread's network
//! namespace; they are those of `linux/netfilter/nfnetlink_conntrack.h`.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// Bound of one wait for the kernel, seconds.
const WAIT: i64 = 2;
/// Bound of a whole removal.
const LIMIT: Duration = Duration::from_secs(5);
/// Most flows that are listed before they are deleted. The limit of one machine is far below.
const MOST: usize = 1 << 16;
/// A datagram of a dump has at most so many bytes.
const DATAGRAM: usize = 1 << 16;

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Subsystem 1, message 1.
const CT_GET: u16 = 0x101;
/// Subsystem 1, message 2.
const CT_DELETE: u16 = 0x102;
const NESTED: u16 = 0x8000;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
/// Within a tuple, and within its addresses.
const FIRST: u16 = 1;
const HEADER: usize = 16;
const FAMILY: usize = 4;

/// Forgets the connections that machines of this address have begun. Returns how many.
pub(super) fn forget(address: Ipv4Addr) -> io::Result<usize> {
    let table = Table::open()?;
    let own = |sender| sender == address;
    let found = match table.list(&filter(address), own) {
        // A kernel that knows no filters.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => table.list(&[], own)?,
        found => found?,
    };
    table.delete(&found)
}

/// Forgets the connections that addresses of a pool have begun, except those of the networks in `others`. Returns how many.
pub(super) fn forget_pool(pool: Ipv4Net, others: &[Ipv4Net]) -> io::Result<usize> {
    let table = Table::open()?;
    let own = |sender| pool.contains(&sender) && !others.iter().any(|other| other.contains(&sender));
    let mut deleted = 0;
    loop {
        let found = table.list(&[], own)?;
        deleted += table.delete(&found)?;
        if found.len() < MOST {
            return Ok(deleted);
        }
    }
}

/// The kernel's table, for one removal.
struct Table {
    netlink: OwnedFd,
    until: Instant,
}

impl Table {
    fn open() -> io::Result<Self> {
        let netlink =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)?;
        setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::seconds(WAIT))?;
        Ok(Self { netlink, until: Instant::now() + LIMIT })
    }

    /// The attributes by which the flows of wanted senders are deleted, at most [`MOST`].
    fn list(&self, filter: &[u8], wanted: impl Fn(Ipv4Addr) -> bool) -> io::Result<Vec<Vec<u8>>> {
        self.send(CT_GET, REQUEST | DUMP, filter)?;
        let mut found = Vec::new();
        self.answers(|kind, body| {
            if kind == CT_GET - 1
                && found.len() < MOST
                && let Some(flow) = flow_of(body, &wanted)
            {
                found.push(flow);
            }
        })?;
        Ok(found)
    }

    /// Deletes flows. Returns how many were still there.
    fn delete(&self, flows: &[Vec<u8>]) -> io::Result<usize> {
        let mut deleted = 0;
        for flow in flows {
            self.send(CT_DELETE, REQUEST | ACK, flow)?;
            match self.answers(|_, _| {}) {
                Ok(()) => deleted += 1,
                // It has ended by itself.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }

    fn send(&self, kind: u16, flags: u16, attributes: &[u8]) -> io::Result<()> {
        let length = HEADER + FAMILY + attributes.len();
        let mut message = Vec::with_capacity(length);
        message.extend_from_slice(&(length as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&[0; 8]);
        message.extend_from_slice(&[libc::AF_INET as u8, 0, 0, 0]);
        message.extend_from_slice(attributes);
        sendto(self.netlink.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    /// Reads until the kernel says that it is done; `each` gets the kind and the attributes of every other message.
    fn answers(&self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            if Instant::now() >= self.until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let length = recv(self.netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some((head, _)) = rest.split_first_chunk::<HEADER>() {
                let size = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
                let kind = u16::from_ne_bytes([head[4], head[5]]);
                let body = rest.get(HEADER..size).ok_or(io::ErrorKind::InvalidData)?;
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let (code, _) = body.split_first_chunk::<4>().ok_or(io::ErrorKind::InvalidData)?;
                        return match i32::from_ne_bytes(*code) {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    kind => each(kind, body.get(FAMILY..).unwrap_or_default()),
                }
                rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// What names a flow, when its first sender is wanted. `body` are the attributes of a flow.
fn flow_of(body: &[u8], wanted: impl Fn(Ipv4Addr) -> bool) -> Option<Vec<u8>> {
    let tuple = attribute(body, CTA_TUPLE_ORIG)?;
    let sender: [u8; 4] = attribute(attribute(tuple, FIRST)?, FIRST)?.try_into().ok()?;
    if !wanted(sender.into()) {
        return None;
    }
    let mut flow = Vec::new();
    put(&mut flow, CTA_TUPLE_ORIG | NESTED, tuple);
    for kind in [CTA_ID, CTA_ZONE] {
        if let Some(value) = attribute(body, kind) {
            put(&mut flow, kind, value);
        }
    }
    Some(flow)
}

/// The attributes of a dump of flows from this address.
fn filter(address: Ipv4Addr) -> Vec<u8> {
    let (mut sender, mut addresses, mut tuple, mut flags) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    put(&mut sender, FIRST, &address.octets());
    put(&mut addresses, FIRST | NESTED, &sender);
    put(&mut tuple, CTA_TUPLE_ORIG | NESTED, &addresses);
    // Of the first direction compare the sender, of the other nothing.
    put(&mut flags, 1, &1_u32.to_ne_bytes());
    put(&mut flags, 2, &0_u32.to_ne_bytes());
    put(&mut tuple, CTA_FILTER | NESTED, &flags);
    tuple
}

/// Adds an attribute: length, kind, value, filled up to four bytes.
fn put(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // A value is a few dozen bytes.
    to.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// The value of the first attribute of a kind.
fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    while let Some((head, _)) = attributes.split_first_chunk::<4>() {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let found = u16::from_ne_bytes([head[2], head[3]]) & !NESTED;
        let value = attributes.get(4..length)?;
        if found == kind {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_is_named_by_its_tuple_and_only_its_senders() {
        let own = Ipv4Addr::new(100, 97, 0, 5);
        let (mut sender, mut addresses, mut proto, mut tuple, mut body) = Default::default();
        put(&mut sender, FIRST, &own.octets());
        put(&mut sender, 2, &[1, 1, 1, 1]);
        put(&mut addresses, FIRST | NESTED, &sender);
        put(&mut proto, 1, &[6]);
        put(&mut addresses, 2 | NESTED, &proto);
        put(&mut tuple, 3, &[0; 5]);
        put(&mut body, 3, &[0, 0, 0, 8]);
        put(&mut body, CTA_TUPLE_ORIG | NESTED, &addresses);
        put(&mut body, CTA_ID, &[9, 9, 9, 9]);
        let flow = flow_of(&body, |sender| sender == own).unwrap();
        assert_eq!(attribute(&flow, CTA_TUPLE_ORIG), Some(&addresses[..]));
        assert_eq!(attribute(&flow, CTA_ID), Some(&[9, 9, 9, 9][..]));
        assert_eq!(attribute(&flow, CTA_ZONE), None);
        assert_eq!(flow_of(&body, |sender| sender != own), None);
        for length in 0..body.len() {
            let _ = flow_of(&body[..length], |_| true);
        }
        assert_eq!(attribute(&[0; 8], 1), None, "a length of nothing ends the search");
        assert_eq!(filter(own).len() % 4, 0);
    }
}
