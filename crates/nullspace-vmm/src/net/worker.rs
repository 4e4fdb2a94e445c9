//! The thread that makes and removes networks. It is the only thread that changes its network namespace. It returns to
//! the host's namespace after each request; if it cannot return, the process ends.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use nullspace_types::EgressPolicy;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

use crate::VmmError;

use super::cidr::{pair, pairs};
use super::commands::Commands;
use super::iptables::Iptables;
use super::{NetConfig, egress, flows, rules, tap};

/// More machines than this on one host would need another look at much else.
const MAX_SLOTS: u32 = 16_384;
/// Making a namespace takes 15 ms of a processor. A machine that was just given one is starting, and shall have it:
/// the next spare waits until nobody has asked for so long,
const QUIET: Duration = Duration::from_millis(300);
/// or until one has been missing for so long.
const OVERDUE: Duration = Duration::from_secs(2);

pub(super) enum Request {
    Acquire {
        uplink: bool,
        egress: Option<EgressPolicy>,
        owner: Option<u32>,
        reply: oneshot::Sender<Result<Made, VmmError>>,
    },
    SetEgress {
        namespace: Arc<OwnedFd>,
        policy: EgressPolicy,
        reply: oneshot::Sender<Result<(), VmmError>>,
    },
    Release {
        slot: u32,
    },
    Stop,
}

/// A finished network.
pub(super) struct Made {
    pub(super) namespace: OwnedFd,
    pub(super) tap: Option<OwnedFd>,
    pub(super) slot: Option<u32>,
}

pub(super) fn run(config: &NetConfig, inbox: &mpsc::Receiver<Request>, ready: oneshot::Sender<Result<(), VmmError>>) {
    let mut worker = match Worker::start(config) {
        Ok(worker) => {
            let _ = ready.send(Ok(()));
            worker
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    worker.serve(inbox);
    worker.stop();
}

struct Worker<'a> {
    config: &'a NetConfig,
    commands: Commands,
    iptables: Iptables,
    host: OwnedFd,
    resolvers: Vec<Ipv4Addr>,
    forwarding_was_off: bool,
    spares: VecDeque<Made>,
    /// A spare could not be made: no more tries until a request has succeeded.
    spares_fail: bool,
    next_slot: u32,
    free_slots: VecDeque<u32>,
    /// Held for life: tells a second service that the table and the interfaces are taken. Abstract, so it is of this
    /// network namespace and goes with the process.
    _lock: UnixListener,
}

impl<'a> Worker<'a> {
    fn start(config: &'a NetConfig) -> Result<Self, VmmError> {
        check(config)?;
        if !rustix::process::geteuid().is_root() {
            return Err(VmmError::Unavailable(
                "network namespaces and taps need root: run the service as root, or use a driver with a user network"
                    .into(),
            ));
        }
        let commands = Commands::find()?;
        let lock = lock(&config.table)?;
        let host = current_namespace()?;
        let resolvers = if config.resolvers.is_empty() {
            host_resolvers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
        } else {
            config.resolvers.clone()
        };
        let mut worker = Self {
            config,
            commands,
            iptables: Iptables::new(&config.interface_prefix),
            host,
            resolvers,
            forwarding_was_off: false,
            spares: VecDeque::new(),
            spares_fail: false,
            next_slot: 0,
            free_slots: VecDeque::new(),
            _lock: lock,
        };
        worker.remove_interfaces()?;
        worker.forget_pool();
        worker.install_rules()?;
        worker.iptables.remove();
        worker.iptables.keep_open();
        Ok(worker)
    }

    /// Host interfaces of our prefix: of a service that was killed, or at the end of this one.
    fn remove_interfaces(&self) -> Result<(), VmmError> {
        let prefix = &self.config.interface_prefix;
        let mut script = String::new();
        for name in interface_names()? {
            let ours = name
                .strip_prefix(prefix.as_str())
                .is_some_and(|slot| !slot.is_empty() && slot.bytes().all(|b| b.is_ascii_digit()));
            if ours {
                script.push_str(&format!("link del dev {name}\n"));
            }
        }
        if script.is_empty() {
            return Ok(());
        }
        // One may vanish by itself while we ask: its namespace is being taken down.
        let _ = self.commands.ip_force(&script);
        Ok(())
    }

    /// Connections of machines of a service that was killed, or of this one at its end. Call this when our interfaces are gone:
    /// what is routed into the pool after that is not ours, and its connections stay.
    fn forget_pool(&self) {
        let pool = self.config.pool;
        let forgotten = std::fs::read_to_string("/proc/thread-self/net/route")
            .and_then(|routes| flows::forget_pool(pool, &routed_within(&pool, &routes)));
        match forgotten {
            Ok(0) => {}
            Ok(count) => {
                tracing::info!(count, %pool, "connections of machines that are gone were removed from the host's table")
            }
            Err(error) => {
                tracing::warn!(%error, %pool, "connections of machines that are gone stay in the host's table");
            }
        }
    }

    fn install_rules(&mut self) -> Result<(), VmmError> {
        const FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
        let off = std::fs::read_to_string(FORWARD).is_ok_and(|text| text.trim() == "0");
        if off && !self.config.enable_forwarding {
            return Err(VmmError::Unavailable(
                "this host forwards no packets (net.ipv4.ip_forward is 0) and the configuration says to leave that"
                    .into(),
            ));
        }
        // A service that was killed had turned it on: the mark is in the table that it left.
        let marked = self.commands.nft(&format!("list chain inet {} forwarding_was_off\n", self.config.table)).is_ok();
        self.forwarding_was_off = off || marked;
        let table = rules::host_table(self.config, &self.resolvers, self.forwarding_was_off);
        self.commands.nft(&table)?;
        if off {
            // Only after the rules are in place.
            std::fs::write(FORWARD, "1").map_err(io_error("turn on IPv4 forwarding"))?;
        }
        Ok(())
    }

    fn serve(&mut self, inbox: &mpsc::Receiver<Request>) {
        let mut last_start = None;
        let mut missing_since = Instant::now();
        loop {
            let wants_spare = !self.spares_fail && self.spares.len() < self.config.spare;
            let request = if wants_spare {
                let quiet = last_start.map_or(missing_since, |start: Instant| start + QUIET);
                let due = quiet.min(missing_since + OVERDUE);
                match inbox.recv_timeout(due.saturating_duration_since(Instant::now())) {
                    Ok(request) => request,
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        match self.make(true) {
                            Ok(spare) => self.spares.push_back(spare),
                            Err(error) => {
                                tracing::warn!(%error, "a spare network could not be made");
                                self.spares_fail = true;
                            }
                        }
                        continue;
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
            } else {
                let request = inbox.recv();
                missing_since = Instant::now();
                match request {
                    Ok(request) => request,
                    Err(_) => return,
                }
            };
            match request {
                Request::Acquire { uplink, egress, owner, reply } => {
                    let made = self.acquire(uplink, egress.as_ref(), owner);
                    if made.is_ok() {
                        self.spares_fail = false;
                    }
                    last_start = Some(Instant::now());
                    if let Err(Ok(unwanted)) = reply.send(made) {
                        // The caller stopped waiting.
                        self.release(unwanted);
                    }
                }
                Request::SetEgress { namespace, policy, reply } => {
                    // Whoever has stopped waiting takes the policy for unchanged.
                    if !reply.is_closed() {
                        let _ = reply.send(self.set_egress(namespace.as_fd(), &policy));
                    }
                }
                Request::Release { slot } => {
                    self.free(slot);
                    self.forget(slot);
                }
                Request::Stop => return,
            }
        }
    }

    fn acquire(&mut self, uplink: bool, egress: Option<&EgressPolicy>, owner: Option<u32>) -> Result<Made, VmmError> {
        if uplink {
            self.iptables.keep_open();
        }
        let spare = if uplink { self.spares.pop_front() } else { None };
        let mut made = match spare {
            Some(spare) => spare,
            None => self.make(uplink)?,
        };
        if let Some(policy) = egress
            && let Err(error) = self.set_egress(made.namespace.as_fd(), policy)
        {
            self.release(made);
            return Err(error);
        }
        if let Some(uid) = owner
            && let Some(tap) = made.tap.take()
        {
            // Closed afterwards: one process at a time has a tap's queue.
            if let Err(error) = tap::give_to(&tap, uid) {
                self.release(made);
                return Err(error);
            }
        }
        Ok(made)
    }

    /// For a network that no machine has used.
    fn release(&mut self, made: Made) {
        if let Some(slot) = made.slot {
            drop(made);
            self.free(slot);
        }
    }

    /// The namespace may live a moment longer (the kernel takes it down in the background, and the VMM's process may
    /// still be ending), so the host's end is removed by name, which removes the other end too.
    fn free(&mut self, slot: u32) {
        let name = self.interface(slot);
        if interface_names().is_ok_and(|names| names.contains(&name)) {
            let _ = self.commands.ip_force(&format!("link del dev {name}\n"));
        }
        self.free_slots.push_back(slot);
    }

    /// Connections of the machine that had this slot. A network that no machine has used has none: its release does without
    /// this, which reads the host's whole table.
    fn forget(&self, slot: u32) {
        if let Some((_, address)) = pair(&self.config.pool, slot)
            && let Err(error) = flows::forget(address)
        {
            tracing::warn!(%error, %address, "connections of a machine that is gone stay in the host's table");
        }
    }

    fn interface(&self, slot: u32) -> String {
        format!("{}{slot}", self.config.interface_prefix)
    }

    fn take_slot(&mut self) -> Result<u32, VmmError> {
        if self.next_slot < pairs(&self.config.pool).min(MAX_SLOTS) {
            self.next_slot += 1;
            return Ok(self.next_slot - 1);
        }
        self.free_slots.pop_front().ok_or_else(|| {
            VmmError::Unavailable(format!(
                "all {} networks of the pool {} are in use",
                self.next_slot, self.config.pool
            ))
        })
    }

    fn make(&mut self, uplink: bool) -> Result<Made, VmmError> {
        if !uplink {
            let (namespace, tap) = self.in_new_namespace(None)?;
            return Ok(Made { namespace, tap: Some(tap), slot: None });
        }
        let slot = self.take_slot()?;
        let link = pair(&self.config.pool, slot)
            .ok_or_else(|| VmmError::Unavailable(format!("no address is left in {}", self.config.pool)))?;
        let name = self.interface(slot);
        let made = self.in_new_namespace(Some((&name, link))).and_then(|(namespace, tap)| {
            self.commands.ip(&rules::host_end(&name, link.0))?;
            Ok(Made { namespace, tap: Some(tap), slot: Some(slot) })
        });
        if made.is_err() {
            self.free(slot);
        }
        made
    }

    fn in_new_namespace(&self, uplink: Option<(&str, (Ipv4Addr, Ipv4Addr))>) -> Result<(OwnedFd, OwnedFd), VmmError> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .map_err(|e| io_error("make a network namespace")(e.into()))?;
        let made = self.furnish(uplink);
        self.return_to_host();
        made
    }

    fn return_to_host(&self) {
        move_into_link_name_space(self.host.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|e| io_error("return to the host's network namespace")(e.into()))
            .unwrap_or_else(|error| {
                // Going on here would apply the next host rule to some machine's namespace.
                tracing::error!(%error, "the network thread cannot return to the host's namespace; ending the service");
                std::process::abort()
            });
    }

    /// Replaces the egress policy of a namespace with a way out.
    fn set_egress(&self, namespace: BorrowedFd<'_>, policy: &EgressPolicy) -> Result<(), VmmError> {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
            .map_err(|e| io_error("enter a machine's network namespace")(e.into()))?;
        let done = self.commands.nft(&egress::change(policy));
        self.return_to_host();
        done
    }

    fn furnish(&self, uplink: Option<(&str, (Ipv4Addr, Ipv4Addr))>) -> Result<(OwnedFd, OwnedFd), VmmError> {
        let namespace = current_namespace()?;
        for setting in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{setting}/disable_ipv6");
            match std::fs::write(path, "1") {
                // A kernel without IPv6.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other.map_err(io_error("turn off IPv6 in a namespace"))?,
            }
        }
        let tap = tap::open()?;
        let mut links = rules::tap_links();
        let table = if let Some((name, (host, inner))) = uplink {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
                .map_err(io_error("turn on forwarding in a namespace"))?;
            let path = format!("/proc/{}/fd/{}", std::process::id(), self.host.as_raw_fd());
            links.push_str(&rules::uplink_links(name, &path, host, inner));
            rules::namespace_table(&self.resolvers, &self.config.limits)
        } else {
            rules::isolated_table()
        };
        // Rules first: nothing passes in between.
        self.commands.nft(&table)?;
        self.commands.ip(&links)?;
        Ok((namespace, tap))
    }

    fn stop(&mut self) {
        self.spares.clear();
        self.iptables.remove();
        if let Err(error) = self.remove_interfaces() {
            tracing::warn!(%error, "interfaces of machines may not have been removed");
        }
        self.forget_pool();
        if self.forwarding_was_off
            && let Err(error) = std::fs::write("/proc/sys/net/ipv4/ip_forward", "0")
        {
            tracing::warn!(%error, "IPv4 forwarding could not be turned off");
            // The table holds the rule that keeps others' packets unforwarded.
            return;
        }
        if let Err(error) = self.commands.nft(&rules::drop_host_table(self.config)) {
            tracing::warn!(%error, "the nftables table was not removed");
        }
    }
}

fn check(config: &NetConfig) -> Result<(), VmmError> {
    let lower = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase());
    let prefix = &config.interface_prefix;
    let table = &config.table;
    let table_ok = (1..=32).contains(&table.len())
        && table.starts_with(|c: char| c.is_ascii_lowercase())
        && table.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if !table_ok {
        return Err(VmmError::Unavailable(format!("`{table}` is no name for a table: use [a-z][a-z0-9_]{{0,31}}")));
    }
    if !(1..=8).contains(&prefix.len()) || !lower(prefix) {
        return Err(VmmError::Unavailable(format!("`{prefix}` is no interface prefix: use [a-z]{{1,8}}")));
    }
    if config.pool.contains(&super::GATEWAY) {
        return Err(VmmError::Unavailable(format!("the pool {} must not hold the guests' own address", config.pool)));
    }
    Ok(())
}

fn lock(table: &str) -> Result<UnixListener, VmmError> {
    let name = format!("nullspace-net-{table}");
    let address = SocketAddr::from_abstract_name(&name).map_err(io_error("name the lock"))?;
    UnixListener::bind_addr(&address).map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => VmmError::Unavailable(format!(
            "another service on this host manages the network table `{table}`: stop it, or give this one another \
             table, interface prefix and pool"
        )),
        _ => io_error("lock the network table")(error),
    })
}

fn current_namespace() -> Result<OwnedFd, VmmError> {
    File::open("/proc/thread-self/ns/net").map(File::into).map_err(io_error("open the network namespace"))
}

/// Names of the interfaces in the thread's namespace. From /proc, which follows the reading thread; /sys does not.
fn interface_names() -> Result<Vec<String>, VmmError> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").map_err(io_error("list network interfaces"))?;
    Ok(text.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect())
}

/// Networks inside the pool that this host routes to some interface. `routes` is the text of /proc/net/route, whose addresses are
/// numbers in the host's order of bytes.
fn routed_within(pool: &Ipv4Net, routes: &str) -> Vec<Ipv4Net> {
    let address = |text: &str| u32::from_str_radix(text, 16).ok().map(|number| Ipv4Addr::from(number.to_ne_bytes()));
    routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            // An unreachable or prohibited network has no interface.
            fields.next().filter(|interface| *interface != "*")?;
            let network = address(fields.next()?)?;
            Ipv4Net::with_netmask(network, address(fields.nth(5)?)?).ok()
        })
        .filter(|network| pool.contains(network))
        .collect()
}

/// The IPv4 name servers of a resolv.conf that a namespace can reach; public ones when there are none.
fn host_resolvers(resolv_conf: &str) -> Vec<Ipv4Addr> {
    let mut found: Vec<Ipv4Addr> = resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse().ok())
        .filter(|address: &Ipv4Addr| !address.is_loopback() && !address.is_unspecified())
        .collect();
    found.truncate(2);
    if found.is_empty() {
        found = vec![Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)];
    }
    found
}

fn io_error(context: &str) -> impl FnOnce(io::Error) -> VmmError + use<> {
    let context = context.to_owned();
    move |source| VmmError::Io { context, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_resolver_on_loopback_is_not_for_guests() {
        assert_eq!(
            host_resolvers("nameserver 127.0.0.53\noptions edns0\n"),
            vec![Ipv4Addr::new(1, 1, 1, 1), Ipv4Addr::new(8, 8, 8, 8)]
        );
        assert_eq!(
            host_resolvers("# x\nnameserver 10.0.0.53\nnameserver fe80::1\n"),
            vec![Ipv4Addr::new(10, 0, 0, 53)]
        );
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn networks_routed_inside_the_pool_are_not_ours() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            wan0\t00000000\t22D8B85D\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            lan0\t00004064\t00000000\t0001\t0\t0\t0\t0000C0FF\t0\t0\t0\n\
            *\t00006064\t00000000\t0200\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            nso3\t06006164\t00000000\t0001\t0\t0\t0\tFEFFFFFF\t0\t0\t0\n\
            vpn0\t00C86064\t00000000\t0001\t0\t0\t0\tFEFFFFFF\t0\t0\t0\nvpn0\tX\n";
        let pool = NetConfig::default().pool;
        assert_eq!(routed_within(&pool, routes), vec!["100.96.200.0/31".parse::<Ipv4Net>().unwrap()]);
        assert_eq!(routed_within(&pool, ""), vec![]);
    }

    #[test]
    fn names_that_would_reach_a_script_are_checked() {
        for (table, prefix) in
            [("a b", "nsv"), ("t;", "nsv"), ("", "nsv"), ("t", "n\"v"), ("t", ""), ("t", "toolongprefix")]
        {
            let config = NetConfig { table: table.into(), interface_prefix: prefix.into(), ..NetConfig::default() };
            assert!(check(&config).is_err(), "{table:?} {prefix:?}");
        }
        assert!(check(&NetConfig::default()).is_ok());
    }
}
