//! What a machine's network lets through, with real namespaces, taps and nftables.
//!
//! Each test runs in a network namespace of its own that plays the host, so that nothing touches this machine's:
//!
//! ```text
//!   guest namespace --tap--wire--tap--[lease]--veth--[host]--veth--[outside: 93.184.216.34, 10.9.9.9, 169.254.169.254]
//! ```
//!
//! Needs root; as another user the tests say so and pass.

// The stage is test code too, which clippy's exception for tests does not see.
#![allow(clippy::unwrap_used)]

mod egress;
mod stage;

use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nullspace_vmm::net::{GATEWAY, NetConfig, NetLimits, NetPool};
use nullspace_vmm::{Network, VmmError};

use self::stage::*;

#[test]
fn two_machines_with_one_address_reach_the_internet_and_nothing_private() {
    in_a_host(|outside| async move {
        let pool = NetPool::new(config()).await.unwrap();
        serve(outside.as_fd(), 80);
        serve(outside.as_fd(), 53);
        serve_here(8080);
        let mut guests = Vec::new();
        for _ in 0..2 {
            let mut lease = pool.acquire(&Network::Internet, None).await.unwrap();
            guests.push((Guest::attach(&mut lease), lease));
        }
        for (guest, _) in &guests {
            // The server answers with the address it sees: the host's own, twice masqueraded.
            assert_eq!(guest.ask(PUBLIC, 80).unwrap(), "93.184.216.1");
            for (address, port) in [
                (PRIVATE, 80),
                (METADATA, 80),
                (RESOLVER, 80),
                (Ipv4Addr::new(93, 184, 216, 1), 8080), // the host, by its outer address
                (GATEWAY, 8080),
                (Ipv4Addr::new(100, 96, 0, 0), 8080), // the host, by a machine's link
                (Ipv4Addr::new(127, 0, 0, 2), 8080),
            ] {
                assert!(guest.ask(address, port).is_err(), "{address}:{port} is open");
            }
            // Name service through the gateway, and through it only.
            assert_eq!(guest.ask(GATEWAY, 53).unwrap(), "93.184.216.1");
            assert_eq!(guest.ask(Ipv4Addr::new(172, 30, 255, 3), 53).unwrap(), "93.184.216.1");
        }
        // Machines do not reach each other's links.
        for slot in 0..4u8 {
            let other = Ipv4Addr::new(100, 96, 0, slot * 2 + 1);
            assert!(guests[0].0.ask(other, 80).is_err(), "{other} is open");
        }
        // A closed destination is refused, not left to time out.
        let refused = guests[0].0.ask(PRIVATE, 80).unwrap_err();
        assert_ne!(refused.kind(), std::io::ErrorKind::TimedOut, "{refused}");
    });
}

#[test]
fn a_forged_source_address_does_not_leave() {
    in_a_host(|outside| async move {
        let pool = NetPool::new(config()).await.unwrap();
        let udp = in_namespace(outside.as_fd(), || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9999)).unwrap());
        let mut lease = pool.acquire(&Network::Internet, None).await.unwrap();
        let guest = Guest::attach(&mut lease);
        guest.run("ip addr add 192.0.2.77/32 dev eth0");
        let send = |source: [u8; 4]| {
            guest.inside(move || {
                let socket = UdpSocket::bind((Ipv4Addr::from(source), 0)).unwrap();
                let _ = socket.send_to(b"x", (PUBLIC, 9999));
            });
        };
        let mut buffer = [0; 8];
        udp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        send([172, 30, 255, 2]);
        assert!(udp.recv_from(&mut buffer).is_ok(), "the true address passes");
        udp.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
        send([192, 0, 2, 77]);
        assert!(udp.recv_from(&mut buffer).is_err(), "a forged one passed");
    });
}

#[test]
fn the_allow_list_opens_what_it_names() {
    in_a_host(|outside| async move {
        let pool = NetPool::new(NetConfig {
            allow: vec!["10.9.9.9:80".parse().unwrap(), "93.184.216.1:8080".parse().unwrap()],
            ..config()
        })
        .await
        .unwrap();
        serve(outside.as_fd(), 80);
        serve(outside.as_fd(), 81);
        serve_here(8080);
        serve_here(8081);
        let mut lease = pool.acquire(&Network::Internet, None).await.unwrap();
        let guest = Guest::attach(&mut lease);
        assert!(guest.ask(PRIVATE, 80).is_ok());
        assert!(guest.ask(PRIVATE, 81).is_err());
        assert!(guest.ask(Ipv4Addr::new(93, 184, 216, 1), 8080).is_ok());
        assert!(guest.ask(Ipv4Addr::new(93, 184, 216, 1), 8081).is_err());
    });
}

#[test]
fn a_host_where_docker_drops_what_is_forwarded_lets_machines_pass() {
    in_a_host(|outside| async move {
        if !std::path::Path::new("/usr/sbin/iptables").exists() {
            eprintln!("skipped: needs iptables");
            return;
        }
        serve(outside.as_fd(), 80);
        sh("iptables -P FORWARD DROP");
        let rules = || Command::new("/usr/sbin/iptables").args(["-S", "FORWARD"]).output().unwrap().stdout;
        let before = rules();
        let pool = NetPool::new(config()).await.unwrap();
        let mut lease = pool.acquire(&Network::Internet, None).await.unwrap();
        let guest = Guest::attach(&mut lease);
        assert!(guest.ask(PUBLIC, 80).is_ok());
        assert!(guest.ask(PRIVATE, 80).is_err());
        drop((lease, pool));
        assert_eq!(rules(), before);
    });
}

#[test]
fn an_isolated_machine_reaches_nothing() {
    in_a_host(|outside| async move {
        let pool = NetPool::new(config()).await.unwrap();
        serve(outside.as_fd(), 80);
        let mut lease = pool.acquire(&Network::Isolated, None).await.unwrap();
        assert!(!lease.has_uplink());
        let guest = Guest::attach(&mut lease);
        for address in [PUBLIC, PRIVATE, METADATA, GATEWAY] {
            assert!(guest.ask(address, 80).is_err(), "{address} is open");
        }
    });
}

#[test]
fn a_machine_has_no_more_connections_than_its_limit_and_its_neighbour_has_its_own() {
    in_a_host(|outside| async move {
        let limits = NetLimits { connections: 4, ..NetLimits::default() };
        let pool = NetPool::new(NetConfig { limits, ..config() }).await.unwrap();
        serve(outside.as_fd(), 80);
        let mut leases = [
            pool.acquire(&Network::Internet, None).await.unwrap(),
            pool.acquire(&Network::Internet, None).await.unwrap(),
        ];
        let [one, other] = leases.each_mut().map(Guest::attach);
        let held: Vec<TcpStream> = (0..4).map(|_| one.connect(PUBLIC, 80).unwrap()).collect();
        assert!(one.connect(PUBLIC, 80).is_err(), "a fifth connection");
        other.ask(PUBLIC, 80).unwrap();
        drop(held);
        let deadline = Instant::now() + Duration::from_secs(30);
        while one.ask(PUBLIC, 80).is_err() {
            assert!(Instant::now() < deadline, "connections that are over still count");
        }
        drop((one, other));
    });
}

#[test]
fn a_machine_begins_no_more_connections_in_a_second_than_its_limit() {
    in_a_host(|outside| async move {
        let limits = NetLimits { new_connections_per_second: 5, ..NetLimits::default() };
        let pool = NetPool::new(NetConfig { limits, ..config() }).await.unwrap();
        let udp = in_namespace(outside.as_fd(), || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9999)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
            socket
        });
        let mut lease = pool.acquire(&Network::Internet, None).await.unwrap();
        let guest = Guest::attach(&mut lease);
        // Each from a port of its own, so each a flow of its own.
        let began = Instant::now();
        guest.inside(|| {
            for _ in 0..100 {
                UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap().send_to(b"x", (PUBLIC, 9999)).unwrap();
            }
        });
        let mut arrived = 0;
        while udp.recv_from(&mut [0; 8]).is_ok() {
            arrived += 1;
        }
        // Five at once, and five for each second that it took.
        let most = 5 + 5 * (began.elapsed().as_secs() + 1);
        assert!((1..=most).contains(&arrived) && most < 100, "{arrived} of 100 flows, {most} are allowed");
        drop(guest);
    });
}

#[test]
fn nothing_is_left_of_fifty_networks_nor_of_the_pool() {
    in_a_host(|_outside| async move {
        let before = state();
        let pool = NetPool::new(config()).await.unwrap();
        for round in 0..10 {
            let mut leases = Vec::new();
            for _ in 0..5 {
                leases.push(pool.acquire(&Network::Internet, Some(100_000 + round)).await.unwrap());
            }
            // An owner's tap is left for the VMM to open.
            assert!(leases.iter_mut().all(|lease| lease.take_tap().is_none()));
        }
        drop(pool);
        // The kernel takes namespaces down in the background.
        let deadline = Instant::now() + Duration::from_secs(30);
        while state() != before && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(state(), before);
    });
}

#[test]
fn connections_of_a_machine_go_with_it_and_others_stay() {
    in_a_host(|outside| async move {
        let pool = NetPool::new(config()).await.unwrap();
        serve(outside.as_fd(), 80);
        let mut guests = Vec::new();
        for _ in 0..2 {
            let mut lease = pool.acquire(&Network::Internet, None).await.unwrap();
            let guest = Guest::attach(&mut lease);
            for _ in 0..3 {
                guest.ask(PUBLIC, 80).unwrap();
            }
            guests.push((guest, lease));
        }
        let Some(before) = senders("100.96.") else { return };
        assert_eq!(before.len(), 2, "one address for each machine: {before:?}");
        drop(guests.pop());
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut after = senders("100.96.").unwrap();
        while after.len() > 1 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
            after = senders("100.96.").unwrap();
        }
        assert_eq!(after.len(), 1, "{before:?}, {after:?}");
        assert!(after.is_subset(&before));
        drop((guests, pool));
    });
}

#[test]
fn connections_of_a_killed_service_go_at_the_next_start_and_others_stay() {
    in_a_host(|outside| async move {
        serve(outside.as_fd(), 80);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        // A machine of the killed service, and its table.
        sh("nft add table inet nullspace \
            && nft 'add chain inet nullspace postrouting { type nat hook postrouting priority srcnat; }' \
            && nft add rule inet nullspace postrouting oifname wan0 masquerade");
        let dead = linked("nsv7", "100.96.0.14", "100.96.0.15");
        dead.ask(PUBLIC, 80).unwrap();
        // Another program's link, which has addresses of the same pool.
        let neighbour = linked("vpn0", "100.96.200.0", "100.96.200.1");
        neighbour.ask(PUBLIC, 80).unwrap();
        // Another service, with a machine.
        let other = NetConfig {
            table: "other".into(),
            interface_prefix: "nso".into(),
            pool: "100.97.0.0/16".parse().unwrap(),
            ..config()
        };
        let other_pool = NetPool::new(other).await.unwrap();
        let mut other_lease = other_pool.acquire(&Network::Internet, None).await.unwrap();
        let living = Guest::attach(&mut other_lease);
        living.ask(PUBLIC, 80).unwrap();
        // The host itself.
        TcpStream::connect((PUBLIC, 80)).unwrap();

        let Some(before) = senders("") else { return };
        let of = |address: &str| before.iter().find(|sender| sender.starts_with(address)).cloned().unwrap();
        let gone = of("100.96.0.15");
        let stay = ["100.96.200.1", "100.97.0.", "93.184.216.1"].map(of);

        let pool = NetPool::new(config()).await.unwrap();
        let after = senders("").unwrap();
        assert!(!after.contains(&gone), "{after:?}");
        assert!(stay.iter().all(|sender| after.contains(sender)), "{before:?}, {after:?}");
        // The living machine still has its network.
        living.ask(PUBLIC, 80).unwrap();

        // A service that ends forgets the connections of the machines that it ends, too.
        let mut lease = pool.acquire(&Network::Internet, None).await.unwrap();
        let guest = Guest::attach(&mut lease);
        guest.ask(PUBLIC, 80).unwrap();
        assert_eq!(senders("100.96.0.").unwrap().len(), 1);
        drop(pool);
        let after = senders("").unwrap();
        assert!(!after.iter().any(|sender| sender.starts_with("100.96.0.")), "{after:?}");
        assert!(stay.iter().all(|sender| after.contains(sender)), "{before:?}, {after:?}");
        drop((dead, neighbour, guest, lease, living, other_lease, other_pool));
    });
}

/// Addresses that begin with this text and from which the host remembers connections. `None` after saying so, when the kernel
/// does not list them.
fn senders(beginning: &str) -> Option<std::collections::BTreeSet<String>> {
    let path = "/proc/thread-self/net/nf_conntrack";
    let flows = match std::fs::read_to_string(path) {
        Ok(flows) => flows,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: this kernel does not list its connections: it has no {path}");
            return None;
        }
        Err(error) => panic!("{path}: {error}"),
    };
    let first = |line: &str| line.split_whitespace().find_map(|word| word.strip_prefix("src=").map(str::to_owned));
    Some(flows.lines().filter_map(first).filter(|sender| sender.starts_with(beginning)).collect())
}

/// A namespace at the far end of a link that no pool has made.
fn linked(name: &str, host: &'static str, inner: &'static str) -> Guest {
    let namespace = in_new_namespace();
    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    sh(&format!(
        "ip link add {name} type veth peer name up0 netns {path} && ip addr add {host}/31 dev {name} \
         && ip link set {name} up"
    ));
    in_namespace(namespace.as_fd(), move || {
        sh(&format!("ip addr add {inner}/31 dev up0; ip link set up0 up; ip route add default via {host}"));
    });
    Guest { namespace }
}

#[test]
fn a_killed_services_leftovers_are_swept_and_a_living_ones_are_not() {
    in_a_host(|_outside| async move {
        sh("ip link add nsv7 type veth peer name x7 && ip link add nsvother type veth peer name x8");
        sh("nft add table inet nullspace && nft 'add chain inet nullspace forwarding_was_off'");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let pool = NetPool::new(config()).await.unwrap();
        let names = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        assert!(!names.contains("nsv7:") && names.contains("nsvother:"));
        match NetPool::new(config()).await.err() {
            Some(VmmError::Unavailable(text)) => assert!(text.contains("another service"), "{text}"),
            other => panic!("{other:?}"),
        }
        drop(pool);
        // The killed service had found forwarding off: that is how it ends.
        let forwarding = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        assert_eq!(forwarding.trim(), "0");
    });
}

#[test]
fn a_full_pool_is_said_and_a_freed_slot_serves_again() {
    in_a_host(|_outside| async move {
        let pool =
            NetPool::new(NetConfig { pool: "100.96.0.0/30".parse().unwrap(), spare: 0, ..config() }).await.unwrap();
        let first = pool.acquire(&Network::Internet, None).await.unwrap();
        let _second = pool.acquire(&Network::Internet, None).await.unwrap();
        assert!(matches!(pool.acquire(&Network::Internet, None).await, Err(VmmError::Unavailable(_))));
        drop(first);
        pool.acquire(&Network::Internet, None).await.unwrap();
    });
}
