//! Networks of machines: a network namespace each, with a tap for the VMM and a way out that is closed where it must be.
//!
//! ```text
//!   guest eth0 172.30.255.2        the same address, gateway, resolver and MAC in every machine: they are in the snapshot
//!      |
//!   tap0 172.30.255.1   } namespace of this machine alone, held by a file descriptor:
//!      | masquerade     } it has no name, so nothing of it outlives the service and its VMM
//!   up0  100.96.x.odd   }
//!      |
//!   nsv<slot> 100.96.x.even        this host: table `nullspace` decides what may pass, and masquerades
//!      |
//!   the host's own route
//! ```
//!
//! By default a guest reaches addresses of the internet. Closed are this host (any of its addresses),
//! other machines, loopback, link-local (the clouds' metadata service at 169.254.169.254), private and shared ranges,
//! multicast, and anything over IPv6 (its namespace has none). [`NetConfig::allow`] opens holes. Name servers are
//! reached through the gateway's address, which the namespace rewrites to the host's resolvers: a snapshot holds no
//! address of the host that made it, and a resolver in a private range is open at port 53 and nowhere else.
//! [`Network::Isolated`] is the same tap in a namespace with nothing else in it.
//!
//! A machine's egress policy narrows this further, by rules in its namespace that can be replaced while it runs (`egress.rs`).
//!
//! Uses `ip` (iproute2) and `nft` (nftables); the text they get on stdin is made here from numbers and parsed addresses,
//! nothing from outside reaches it. Needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN).
//!
//! A host whose iptables drop forwarded packets by default, as Docker sets them up, gets two rules there too
//! (`iptables.rs`). Other firewalls that reject what they do not know, such as firewalld's, must let `nsv*` pass: an accept
//! in one nftables table does not overrule a drop in another.

mod cidr;
mod commands;
mod egress;
mod flows;
mod iptables;
mod rules;
mod tap;
mod worker;

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak, mpsc};
use std::time::Duration;

use ipnet::Ipv4Net;
use nullspace_guest::message::GuestNetwork;
use nullspace_types::EgressPolicy;
use tokio::sync::oneshot;

pub use cidr::{Allowed, InvalidNetwork, pairs, parse_network};

use crate::{Network, VmmError};

/// Name of the tap in its namespace; Firecracker's snapshots hold it.
pub const TAP_NAME: &str = "tap0";
/// The guest's address, with prefix length.
pub const GUEST_ADDRESS: &str = "172.30.255.2/29";
/// The tap's address: the guest's gateway and first name server.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 30, 255, 1);
/// The guest's second name server, an address of the tap too.
pub const SECOND_RESOLVER: Ipv4Addr = Ipv4Addr::new(172, 30, 255, 3);
/// The guest's card. Locally administered.
pub const GUEST_MAC: &str = "06:00:ac:1e:ff:02";
/// The tap itself; fixed because a snapshot's ARP cache holds it.
const TAP_MAC: &str = "06:00:ac:1e:ff:01";

/// Time limit for one machine's network.
const ACQUIRE_LIMIT: Duration = Duration::from_secs(20);

/// Settings of [`NetPool`].
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Name of the nftables table, `[a-z][a-z0-9_]{0,31}`; one service at a time may use it.
    pub table: String,
    /// Prefix of the host's interfaces, `[a-z]{1,8}`; at start, leftovers of that prefix are removed.
    pub interface_prefix: String,
    /// Addresses for the links between host and namespaces, two for each machine.
    pub pool: Ipv4Net,
    /// Destinations that are open although they are private or this host's own.
    pub allow: Vec<Allowed>,
    /// Name servers; empty: those of this host's /etc/resolv.conf, without loopback, else 1.1.1.1 and 8.8.8.8.
    pub resolvers: Vec<Ipv4Addr>,
    /// Turn on this host's IPv4 forwarding when it is off. Packets that are not of our machines stay unforwarded then.
    pub enable_forwarding: bool,
    /// Number of namespaces with a way out that are made ahead.
    pub spare: usize,
    /// Limits of one machine on the network.
    pub limits: NetLimits,
}

/// Limits of one machine on the network that it shares with others; packets beyond them are dropped. The rules are in its namespace,
/// which its guest cannot reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetLimits {
    /// Connections and flows at a time: the host's table of them has room for some hundred thousand.
    pub connections: u32,
    /// New ones in a second; as many again may come at once.
    pub new_connections_per_second: u32,
    /// Packets from the guest in a second, segments that a tap hands over in one piece counted once.
    pub packets_per_second: u32,
    /// Both ways together, MiB in a second.
    pub mib_per_second: u32,
}

impl Default for NetLimits {
    /// More than a build with a package manager or a busy server needs.
    fn default() -> Self {
        Self { connections: 4_096, new_connections_per_second: 500, packets_per_second: 100_000, mib_per_second: 256 }
    }
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            table: "nullspace".into(),
            interface_prefix: "nsv".into(),
            pool: Ipv4Net::new_assert(Ipv4Addr::new(100, 96, 0, 0), 16),
            allow: Vec::new(),
            resolvers: Vec::new(),
            enable_forwarding: true,
            spare: 2,
            limits: NetLimits::default(),
        }
    }
}

/// Makes networks for machines. One thread of its own does the work, because a thread that enters another network
/// namespace must not be one that runs anything else. Dropping the pool removes the table and the host's interfaces.
pub struct NetPool {
    requests: mpsc::Sender<worker::Request>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl NetPool {
    /// Checks rights and tools, removes what a crashed service left, installs the host's rules.
    pub async fn new(config: NetConfig) -> Result<Self, VmmError> {
        let (ready_sender, ready) = oneshot::channel();
        let (requests, inbox) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("nullspace-net".into())
            .spawn(move || worker::run(&config, &inbox, ready_sender))
            .map_err(|source| VmmError::Io { context: "start the network thread".into(), source })?;
        let pool = Self { requests, thread: Some(thread) };
        match tokio::time::timeout(ACQUIRE_LIMIT, ready).await {
            Ok(Ok(result)) => result.map(|()| pool),
            Ok(Err(_)) => Err(VmmError::Unavailable("the network thread ended".into())),
            Err(_) => Err(timed_out("setting up the host's network")),
        }
    }

    /// A network for one machine. With `owner`, the VMM of that uid opens the tap by its name from inside the
    /// namespace; without, the lease carries an open descriptor of it.
    pub async fn acquire(&self, network: &Network, owner: Option<u32>) -> Result<NetLease, VmmError> {
        let (reply, answer) = oneshot::channel();
        let request =
            worker::Request::Acquire { uplink: network.has_uplink(), egress: network.egress().cloned(), owner, reply };
        self.requests.send(request).map_err(|_| VmmError::Unavailable("the network thread ended".into()))?;
        match tokio::time::timeout(ACQUIRE_LIMIT, answer).await {
            Ok(Ok(made)) => made.map(|made| NetLease {
                namespace: Arc::new(made.namespace),
                tap: made.tap,
                slot: made.slot,
                requests: self.requests.clone(),
            }),
            Ok(Err(_)) => Err(VmmError::Unavailable("the network thread ended".into())),
            Err(_) => Err(timed_out("making a network namespace")),
        }
    }

    /// Returns the configuration of a guest's `eth0`; the same for all guests of a pool.
    pub fn guest_network() -> GuestNetwork {
        GuestNetwork {
            address: GUEST_ADDRESS.into(),
            gateway: Some(GATEWAY.to_string()),
            dns: vec![GATEWAY.to_string(), SECOND_RESOLVER.to_string()],
        }
    }
}

impl Drop for NetPool {
    fn drop(&mut self) {
        let _ = self.requests.send(worker::Request::Stop);
        if let Some(thread) = self.thread.take() {
            // Bounded: each command of the worker is.
            let _ = thread.join();
        }
    }
}

/// The error of a machine whose network takes no egress policy.
pub(crate) fn no_egress_control() -> VmmError {
    VmmError::Unavailable("the machine has no network whose egress policy could be changed".into())
}

fn timed_out(what: &str) -> VmmError {
    VmmError::Timeout { what: what.into(), limit_ms: ACQUIRE_LIMIT.as_millis() as u64 }
}

/// One machine's network. The namespace lives until the lease and the last process in it are gone.
#[derive(Debug)]
pub struct NetLease {
    namespace: Arc<OwnedFd>,
    tap: Option<OwnedFd>,
    slot: Option<u32>,
    requests: mpsc::Sender<worker::Request>,
}

impl NetLease {
    /// The namespace, for `setns(2)` in the VMM's process.
    pub fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// The open tap (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`: frames carry a virtio-net header, so that checksums and
    /// segmentation stay offloaded) for a VMM that takes a descriptor. `None` when it was acquired for an owner, or
    /// was taken before.
    pub fn take_tap(&mut self) -> Option<OwnedFd> {
        self.tap.take()
    }

    /// True when the machine reaches the internet.
    pub fn has_uplink(&self) -> bool {
        self.slot.is_some()
    }

    /// Returns a handle that changes the machine's egress policy; `None` for a machine without a way out.
    pub fn egress_control(&self) -> Option<EgressControl> {
        let control = EgressControl { namespace: Arc::downgrade(&self.namespace), requests: self.requests.clone() };
        self.has_uplink().then_some(control)
    }
}

/// Changes the egress policy of one machine's network. It does not keep the network alive.
#[derive(Debug, Clone)]
pub struct EgressControl {
    namespace: Weak<OwnedFd>,
    requests: mpsc::Sender<worker::Request>,
}

impl EgressControl {
    /// Replaces the policy in one transaction. Established connections that the new one denies carry no packet any more when this
    /// returns.
    ///
    /// # Errors
    /// [`VmmError::Exited`] when the machine is gone. After any other error the policy is the one before.
    pub async fn set(&self, policy: &EgressPolicy) -> Result<(), VmmError> {
        let gone = || VmmError::Exited("it has no network any more".into());
        let namespace = self.namespace.upgrade().ok_or_else(gone)?;
        let (reply, answer) = oneshot::channel();
        let request = worker::Request::SetEgress { namespace, policy: policy.clone(), reply };
        self.requests.send(request).map_err(|_| VmmError::Unavailable("the network thread ended".into()))?;
        match tokio::time::timeout(ACQUIRE_LIMIT, answer).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(VmmError::Unavailable("the network thread ended".into())),
            Err(_) => Err(timed_out("changing an egress policy")),
        }
    }
}

impl Drop for NetLease {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            // The worker removes the host's end and reuses the slot. When it has gone, it removed all ends.
            let _ = self.requests.send(worker::Request::Release { slot });
        }
    }
}
