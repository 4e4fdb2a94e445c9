//! Egress policies: what they deny, what they leave, and what a change does to connections.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nullspace_types::{EgressPolicy, EgressRate, EgressReach, parse_egress_network};
use nullspace_vmm::net::{GATEWAY, NetConfig, NetPool};
use nullspace_vmm::{Network, VmmError};

use crate::stage::*;

/// A second public address outside.
const OTHER: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 77);

fn lists(allow: &[&str], deny: &[&str]) -> EgressPolicy {
    let parsed = |texts: &[&str]| texts.iter().map(|text| parse_egress_network(text).unwrap()).collect();
    EgressPolicy { reach: EgressReach::Lists { allow: parsed(allow), deny: parsed(deny) }, ..EgressPolicy::default() }
}

fn nothing() -> EgressPolicy {
    EgressPolicy { reach: EgressReach::Nothing, ..EgressPolicy::default() }
}

/// Echoes what every connection sends, on a port of every address outside.
fn echo(outside: std::os::fd::BorrowedFd<'_>, port: u16) {
    let listener = in_namespace(outside, move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Whether a byte comes back within two seconds.
fn echoes(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

#[test]
fn a_machine_that_starts_with_a_policy_reaches_only_what_it_leaves() {
    in_a_host(|outside| async move {
        in_namespace(outside.as_fd(), || sh(&format!("ip addr add {OTHER}/24 dev eth0")));
        // With a spare network, which was made without a policy, and without one.
        for spare in [0, 1] {
            let pool =
                NetPool::new(NetConfig { spare, allow: vec!["10.9.9.9".parse().unwrap()], ..config() }).await.unwrap();
            if spare == 0 {
                serve(outside.as_fd(), 80);
                serve(outside.as_fd(), 53);
            } else {
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
            let (open, closed) = (true, false);
            let cases = [
                // Policy; two public addresses, one that the operator has opened, metadata, name service.
                (nothing(), [closed, closed, closed, closed, closed]),
                (lists(&["93.184.216.34"], &[]), [open, closed, closed, closed, closed]),
                (lists(&["93.184.216.34", "172.30.255.1"], &["0.0.0.0/0"]), [open, closed, closed, closed, open]),
                (lists(&[], &["93.184.216.34", "172.16.0.0/12"]), [closed, open, open, closed, open]),
                (lists(&["93.184.216.34"], &["93.184.216.0/24"]), [open, closed, open, closed, open]),
                // The walls stay, whatever a policy allows.
                (lists(&["0.0.0.0/0"], &[]), [open, open, open, closed, open]),
                (lists(&["169.254.169.254"], &["0.0.0.0/0", "::/0"]), [closed, closed, closed, closed, closed]),
            ];
            for (policy, expected) in cases {
                let mut lease = pool.acquire(&Network::Narrowed(policy.clone()), None).await.unwrap();
                let guest = Guest::attach(&mut lease);
                let tried = [(PUBLIC, 80), (OTHER, 80), (PRIVATE, 80), (METADATA, 80), (GATEWAY, 53)];
                let found = tried.map(|(address, port)| guest.ask(address, port).is_ok());
                assert_eq!(found, expected, "{policy:?}");
            }
            drop(pool);
        }
    });
}

#[test]
fn a_change_cuts_established_connections_at_once_and_a_wider_policy_opens_again() {
    in_a_host(|outside| async move {
        in_namespace(outside.as_fd(), || sh(&format!("ip addr add {OTHER}/24 dev eth0")));
        let pool = NetPool::new(config()).await.unwrap();
        echo(outside.as_fd(), 7);
        let (mut lease, mut neighbours) = (
            pool.acquire(&Network::Internet, None).await.unwrap(),
            pool.acquire(&Network::Internet, None).await.unwrap(),
        );
        let (guest, neighbour) = (Guest::attach(&mut lease), Guest::attach(&mut neighbours));
        let control = lease.egress_control().unwrap();
        let [mut one, mut two] = [PUBLIC, OTHER].map(|address| guest.connect(address, 7).unwrap());
        let mut beside = neighbour.connect(PUBLIC, 7).unwrap();
        for stream in [&mut one, &mut two, &mut beside] {
            echoes(stream).unwrap();
        }
        let began = Instant::now();
        control.set(&lists(&[], &["93.184.216.34"])).await.unwrap();
        // It is reset at once, not left to time out; the other destination goes on, and so does the neighbour.
        let cut = echoes(&mut one).unwrap_err();
        assert!(matches!(cut.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{cut}");
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        assert!(guest.connect(PUBLIC, 7).is_err());
        echoes(&mut two).unwrap();
        echoes(&mut beside).unwrap();
        control.set(&nothing()).await.unwrap();
        assert!(echoes(&mut two).is_err());
        control.set(&EgressPolicy::default()).await.unwrap();
        echoes(&mut guest.connect(PUBLIC, 7).unwrap()).unwrap();
        echoes(&mut beside).unwrap();
        drop((guest, lease));
        let gone = control.set(&nothing()).await.unwrap_err();
        assert!(matches!(gone, VmmError::Exited(_)), "{gone}");
        drop((neighbour, neighbours, pool));
    });
}

#[test]
fn what_a_denied_peer_still_sends_does_not_arrive() {
    in_a_host(|outside| async move {
        let pool = NetPool::new(config()).await.unwrap();
        let peer = in_namespace(outside.as_fd(), || UdpSocket::bind((PUBLIC, 9999)).unwrap());
        let mut lease = pool.acquire(&Network::Internet, None).await.unwrap();
        let guest = Guest::attach(&mut lease);
        let socket = guest.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        socket.send_to(b"x", (PUBLIC, 9999)).unwrap();
        let (_, from) = peer.recv_from(&mut [0; 8]).unwrap();
        peer.send_to(b"y", from).unwrap();
        socket.recv_from(&mut [0; 8]).unwrap();
        lease.egress_control().unwrap().set(&lists(&["1.2.3.4"], &[])).await.unwrap();
        peer.send_to(b"z", from).unwrap();
        assert!(socket.recv_from(&mut [0; 8]).is_err(), "a denied peer was heard");
    });
}

#[test]
fn a_denied_packet_with_a_forged_source_is_not_answered_to_others() {
    in_a_host(|outside| async move {
        let pool = NetPool::new(config()).await.unwrap();
        // What the host sees leave the machine's namespace.
        let mut lease = pool.acquire(&Network::Narrowed(nothing()), None).await.unwrap();
        let guest = Guest::attach(&mut lease);
        guest.run("ip addr add 93.184.216.200/32 dev eth0");
        let left = || {
            let names = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
            let line = names.lines().find(|line| line.trim().starts_with("nsv0:")).unwrap().to_owned();
            line.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap()
        };
        thread::sleep(Duration::from_millis(300));
        let before = left();
        for source in [[93, 184, 216, 200], [172, 30, 255, 2]] {
            guest.inside(move || {
                let socket = UdpSocket::bind((Ipv4Addr::from(source), 0)).unwrap();
                for _ in 0..20 {
                    let _ = socket.send_to(b"x", (PUBLIC, 9999));
                }
            });
        }
        thread::sleep(Duration::from_millis(500));
        assert_eq!(left(), before, "packets left the namespace");
        drop((guest, outside));
    });
}

#[test]
fn a_rate_limits_what_a_guest_sends_and_not_its_neighbour() {
    in_a_host(|outside| async move {
        let pool = NetPool::new(config()).await.unwrap();
        let peer = in_namespace(outside.as_fd(), || UdpSocket::bind((PUBLIC, 9999)).unwrap());
        peer.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let rate = |pps, burst, kbit| EgressPolicy {
            rate: EgressRate { kbit_per_sec: kbit, pps, burst },
            ..EgressPolicy::default()
        };
        // 600 KB in datagrams of 1000 bytes: a burst of 256 KiB, and 1000 bytes for each second.
        for (policy, most) in
            [(rate(Some(10), Some(20), None), 100), (rate(None, None, Some(8)), 280), (EgressPolicy::default(), 600)]
        {
            let mut lease = pool.acquire(&Network::Narrowed(policy.clone()), None).await.unwrap();
            let guest = Guest::attach(&mut lease);
            // Read meanwhile: a socket's buffer holds less.
            let reader = peer.try_clone().unwrap();
            let arrived = thread::spawn(move || {
                let mut arrived = 0;
                while reader.recv_from(&mut [0; 1500]).is_ok() {
                    arrived += 1;
                }
                arrived
            });
            guest.inside(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                for _ in 0..600 {
                    let _ = socket.send_to(&[0; 1000], (PUBLIC, 9999));
                    thread::sleep(Duration::from_micros(300));
                }
            });
            let arrived = arrived.join().unwrap();
            assert!(arrived <= most && arrived >= 15, "{arrived} of 600 with {policy:?}");
            assert!(!policy.is_open() || arrived > 300, "{arrived} of 600 without a limit");
        }
    });
}

#[test]
fn an_isolated_machine_takes_no_policy() {
    in_a_host(|_outside| async move {
        let pool = NetPool::new(config()).await.unwrap();
        let lease = pool.acquire(&Network::Isolated, None).await.unwrap();
        assert!(lease.egress_control().is_none());
    });
}
