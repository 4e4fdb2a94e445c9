//! Interfaces of the guest: loopback, and a static IPv4 address on eth0. By ioctl, netdevice(7): no netlink is needed for
//! one address and one route.

#![allow(unsafe_code, reason = "interface requests are ioctls on structures of the C library")]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nullspace_guest::message::{Failure, FailureKind, GuestNetwork};

// The C library has these constants as `int`, and the structures have narrower fields.
const IFF_UP: libc::c_short = 0x1;
const AF_INET: libc::sa_family_t = 2;
const _: () = assert!(libc::IFF_UP == 0x1 && libc::AF_INET == 2);

const INTERFACE: &str = "eth0";
/// How long the card may take to appear.
const CARD_LIMIT: Duration = Duration::from_secs(2);
/// Name servers taken; resolv.conf(5) reads three.
const MAX_DNS: usize = 8;

/// A checked [`GuestNetwork`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Plan {
    address: Ipv4Addr,
    netmask: Ipv4Addr,
    gateway: Option<Ipv4Addr>,
}

fn invalid(message: String) -> Failure {
    Failure { kind: FailureKind::Invalid, message }
}

/// Says what is wrong with a configuration, before any of it is applied.
pub(crate) fn check(network: &GuestNetwork) -> Result<(), Failure> {
    plan(network).map(|_| ())
}

fn plan(network: &GuestNetwork) -> Result<Plan, Failure> {
    let bad = || invalid(format!("`{}` is no IPv4 address with a prefix.", network.address.escape_debug()));
    let (address, prefix) = network.address.split_once('/').ok_or_else(bad)?;
    let prefix: u32 = prefix.parse().ok().filter(|prefix| (1..=32).contains(prefix)).ok_or_else(bad)?;
    let gateway = match &network.gateway {
        Some(text) => {
            let gateway = text.parse();
            Some(gateway.map_err(|_| invalid(format!("Gateway `{}` is no IPv4 address.", text.escape_debug())))?)
        }
        None => None,
    };
    if network.dns.len() > MAX_DNS {
        return Err(invalid(format!("More than {MAX_DNS} name servers are given.")));
    }
    if let Some(server) = network.dns.iter().find(|server| server.parse::<std::net::IpAddr>().is_err()) {
        return Err(invalid(format!("Name server `{}` is no IP address.", server.escape_debug())));
    }
    let netmask = Ipv4Addr::from(u32::MAX.checked_shl(32 - prefix).unwrap_or(0));
    Ok(Plan { address: address.parse().map_err(|_| bad())?, netmask, gateway })
}

/// Gives eth0 its address, and the default route.
pub(crate) fn configure(network: &GuestNetwork) -> Result<(), Failure> {
    let plan = plan(network)?;
    let until = Instant::now() + CARD_LIMIT;
    while !Path::new("/sys/class/net").join(INTERFACE).exists() {
        if Instant::now() >= until {
            let message = format!("This machine has no network card {INTERFACE}.");
            return Err(Failure { kind: FailureKind::Internal, message });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let apply = || -> io::Result<()> {
        let socket = socket()?;
        // Down first: that drops the routes of an older address.
        set_up(&socket, INTERFACE, false)?;
        set_address(&socket, libc::SIOCSIFADDR, plan.address)?;
        set_address(&socket, libc::SIOCSIFNETMASK, plan.netmask)?;
        set_up(&socket, INTERFACE, true)?;
        plan.gateway.map_or(Ok(()), |gateway| add_default_route(&socket, gateway))
    };
    apply().map_err(|error| Failure {
        kind: FailureKind::Internal,
        message: format!("{INTERFACE} cannot be configured: {error}."),
    })
}

/// Brings loopback up.
pub(crate) fn loopback_up() -> io::Result<()> {
    set_up(&socket()?, "lo", true)
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: a plain system call; the descriptor is ours alone.
    unsafe {
        match libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an `ifreq` of zeros is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The names are our own constants, shorter than the field.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn ioctl<T>(socket: &OwnedFd, number: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: callers pair each request with the structure that it takes.
    match unsafe { libc::ioctl(socket.as_raw_fd(), number as _, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn set_up(socket: &OwnedFd, name: &str, up: bool) -> io::Result<()> {
    let mut request = request(name);
    ioctl(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has filled the flags.
    unsafe {
        let flags = request.ifr_ifru.ifru_flags;
        request.ifr_ifru.ifru_flags = if up { flags | IFF_UP } else { flags & !IFF_UP };
    }
    ioctl(socket, libc::SIOCSIFFLAGS, &mut request)
}

/// An IPv4 address in the room of any socket address.
fn sockaddr(ip: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: AF_INET,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain data of 16 bytes; this is how the sockets API means them.
    unsafe { std::mem::transmute(address) }
}

fn set_address(socket: &OwnedFd, number: libc::c_ulong, ip: Ipv4Addr) -> io::Result<()> {
    let mut request = request(INTERFACE);
    request.ifr_ifru.ifru_addr = sockaddr(ip);
    ioctl(socket, number, &mut request)
}

fn add_default_route(socket: &OwnedFd, gateway: Ipv4Addr) -> io::Result<()> {
    // SAFETY: a `rtentry` of zeros is valid.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = sockaddr(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = sockaddr(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = sockaddr(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    match ioctl(socket, libc::SIOCADDRT, &mut route) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(address: &str, gateway: Option<&str>, dns: &[&str]) -> GuestNetwork {
        GuestNetwork {
            address: address.into(),
            gateway: gateway.map(str::to_owned),
            dns: dns.iter().map(|&server| server.to_owned()).collect(),
        }
    }

    #[test]
    fn configurations_are_checked() {
        let good = plan(&network("10.0.2.15/24", Some("10.0.2.2"), &["10.0.2.3", "fd00::1"])).unwrap();
        assert_eq!(good.netmask, Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(good.gateway, Some(Ipv4Addr::new(10, 0, 2, 2)));
        assert_eq!(plan(&network("10.0.2.15/32", None, &[])).unwrap().netmask, Ipv4Addr::BROADCAST);
        for bad in [
            network("10.0.2.15", None, &[]),
            network("10.0.2.15/0", None, &[]),
            network("10.0.2.15/33", None, &[]),
            network("fd00::1/64", None, &[]),
            network("10.0.2.15/24", Some("gw"), &[]),
            network("10.0.2.15/24", None, &["1.1.1.1\noptions x"]),
            network("10.0.2.15/24", None, &["1.1.1.1"; 9]),
        ] {
            assert_eq!(plan(&bad).unwrap_err().kind, FailureKind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn addresses_are_in_network_order() {
        let raw = sockaddr(Ipv4Addr::new(1, 2, 3, 4));
        assert_eq!(raw.sa_data[2..6], [1, 2, 3, 4]);
    }
}
