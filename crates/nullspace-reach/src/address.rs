//! Classification of addresses: public, or local to a host or network.
//!
//! Closed are the special-purpose ranges of IANA's registries (RFC 6890), multicast, reserved space, and one public
//! address that clouds answer their guests' hosts from. An IPv6 address that carries an IPv4 one is judged by what it
//! carries: a NAT64 gateway or the kernel's own mapping leads there. A NAT64 prefix that a network chose for itself
//! (RFC 6052, 2.2) looks like any other address and cannot be told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(first: u16, second: u16, third: u16, prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(first, second, third, 0, 0, 0, 0, 0), prefix)
}

const CLOSED_V4: [Ipv4Net; 15] = [
    v4(0, 0, 0, 0, 8),        // "this" network; Linux takes 0.0.0.0 for loopback
    v4(10, 0, 0, 0, 8),       // private (RFC 1918)
    v4(100, 64, 0, 0, 10),    // shared by carriers (RFC 6598)
    v4(127, 0, 0, 0, 8),      // loopback
    v4(168, 63, 129, 16, 32), // Azure's host agent
    v4(169, 254, 0, 0, 16),   // link-local, and the metadata services of clouds
    v4(172, 16, 0, 0, 12),    // private
    v4(192, 0, 0, 0, 24),     // IETF protocols
    v4(192, 0, 2, 0, 24),     // documentation
    v4(192, 88, 99, 0, 24),   // 6to4 relays, withdrawn
    v4(192, 168, 0, 0, 16),   // private
    v4(198, 18, 0, 0, 15),    // benchmarking
    v4(198, 51, 100, 0, 24),  // documentation
    v4(203, 0, 113, 0, 24),   // documentation
    v4(224, 0, 0, 0, 3),      // multicast, reserved, broadcast
];

/// All that is global unicast; what is outside is loopback, link-local, unique local, multicast or unassigned.
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 0, 3);
const CLOSED_V6: [Ipv6Net; 3] = [
    v6(0x2001, 0, 0, 23),     // IETF protocols, Teredo among them
    v6(0x2001, 0xdb8, 0, 32), // documentation
    v6(0x3fff, 0, 0, 20),     // documentation
];
/// IPv4 in the last 32 bits: mapped (RFC 4291), and NAT64's well-known prefix (RFC 6052).
const CARRIES_LAST: [Ipv6Net; 2] = [
    Ipv6Net::new_assert(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    Ipv6Net::new_assert(Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96),
];
/// 6to4: IPv4 behind the first 16 bits (RFC 3056).
const SIX_TO_FOUR: Ipv6Net = v6(0x2002, 0, 0, 16);

/// Whether an address is one of the internet's.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match carried(address) {
            Some(inner) => is_public_v4(inner),
            None => GLOBAL_V6.contains(&address) && !CLOSED_V6.iter().any(|net| net.contains(&address)),
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    !CLOSED_V4.iter().any(|net| net.contains(&address))
}

fn carried(address: Ipv6Addr) -> Option<Ipv4Addr> {
    if CARRIES_LAST.iter().any(|net| net.contains(&address)) {
        return Some(v4_at(address, 12));
    }
    SIX_TO_FOUR.contains(&address).then(|| v4_at(address, 2))
}

fn v4_at(address: Ipv6Addr, at: usize) -> Ipv4Addr {
    let bytes = address.octets();
    Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_hosts_and_networks_behind_them_are_not_public() {
        for closed in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "168.63.129.16",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.1.1",
            "198.19.0.1",
            "203.0.113.9",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::ffff:127.0.0.1",
            "::ffff:10.1.2.3",
            "::ffff:0:10.1.2.3",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::10.0.0.1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::",
            "2002:a9fe:a9fe::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(closed.parse().unwrap()), "{closed}");
        }
    }

    #[test]
    fn addresses_of_the_internet_are_public() {
        for open in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.1",
            "168.63.129.15",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "223.255.255.255",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
            "2002:101:101::1",
            "2606:4700::1111",
            "2a00:1450::1",
        ] {
            assert!(is_public(open.parse().unwrap()), "{open}");
        }
    }

    /// The blocks of IANA's special-purpose address registries (RFC 6890), and whether an address of one counts as public here. Blocks
    /// that carry an IPv4 address are judged by it: the tests above have those (`::ffff:0:0/96`, `64:ff9b::/96`, `2002::/16`).
    const REGISTERED: [(&str, &str, bool); 42] = [
        ("0.0.0.0/8", "this network", false),
        ("10.0.0.0/8", "private use", false),
        ("100.64.0.0/10", "shared address space", false),
        ("127.0.0.0/8", "loopback", false),
        ("169.254.0.0/16", "link local", false),
        ("172.16.0.0/12", "private use", false),
        ("192.0.0.0/24", "IETF protocol assignments", false),
        ("192.0.0.0/29", "IPv4 service continuity", false),
        ("192.0.0.8/32", "dummy address", false),
        ("192.0.0.9/32", "Port Control Protocol anycast: the network's own gateway answers", false),
        ("192.0.0.10/32", "TURN anycast: the network's own relay answers", false),
        ("192.0.0.170/31", "NAT64 discovery", false),
        ("192.0.2.0/24", "documentation", false),
        ("192.31.196.0/24", "AS112", true),
        ("192.52.193.0/24", "AMT", true),
        ("192.88.99.0/24", "6to4 relay anycast, deprecated", false),
        ("192.88.99.2/32", "6a44 relay anycast", false),
        ("192.168.0.0/16", "private use", false),
        ("192.175.48.0/24", "AS112", true),
        ("198.18.0.0/15", "benchmarking", false),
        ("198.51.100.0/24", "documentation", false),
        ("203.0.113.0/24", "documentation", false),
        ("240.0.0.0/4", "reserved", false),
        ("255.255.255.255/32", "limited broadcast", false),
        ("::1/128", "loopback", false),
        ("::/128", "unspecified", false),
        ("64:ff9b:1::/48", "NAT64 of a network's own", false),
        ("100::/64", "discard only", false),
        ("100:0:0:1::/64", "dummy prefix", false),
        ("2001::/23", "IETF protocol assignments", false),
        ("2001::/32", "Teredo", false),
        ("2001:1::1/128", "Port Control Protocol anycast", false),
        ("2001:2::/48", "benchmarking", false),
        ("2001:4:112::/48", "AS112", false),
        ("2001:20::/28", "ORCHIDv2", false),
        ("2001:30::/28", "drone remote ids", false),
        ("2001:db8::/32", "documentation", false),
        ("2620:4f:8000::/48", "AS112", true),
        ("3fff::/20", "documentation", false),
        ("5f00::/16", "segment routing ids", false),
        ("fc00::/7", "unique local", false),
        ("fe80::/10", "link local", false),
    ];

    #[test]
    fn special_purpose_blocks_are_closed_unless_they_belong_to_the_internet() {
        for (block, name, expected) in REGISTERED {
            let net: ipnet::IpNet = block.parse().unwrap();
            for address in [net.network(), net.broadcast()] {
                assert_eq!(is_public(address), expected, "{address} of {block}, {name}");
            }
        }
    }
}
