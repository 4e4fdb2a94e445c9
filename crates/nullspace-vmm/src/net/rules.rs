//! The input of `ip` and `nft`. Every value in it is a number or a parsed address.

use std::fmt::Write;
use std::net::Ipv4Addr;

use super::{Allowed, GATEWAY, GUEST_ADDRESS, NetConfig, NetLimits, SECOND_RESOLVER, TAP_MAC, TAP_NAME, egress};

/// The namespace's end of the link to the host.
const UPLINK: &str = "up0";

/// Destinations that are closed unless allowed: "this" network, private (RFC 1918), shared (RFC 6598), loopback,
/// link-local, IETF and documentation ranges (RFC 6890), benchmarking, multicast, reserved, broadcast; and the one public
/// address from which a cloud's host agent gives a machine its certificates and settings (Azure: "What is IP address
/// 168.63.129.16?"). As a name server it stays open on port 53, where the host has it for one.
const CLOSED: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16, 172.16.0.0/12, \
192.0.0.0/24, 192.0.2.0/24, 192.88.99.0/24, 192.168.0.0/16, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24, 224.0.0.0/3";

/// The host's whole table, replacing the one before in the same transaction.
///
/// `was_closed`: forwarding was off before us, so what is not ours stays closed.
pub(super) fn host_table(config: &NetConfig, resolvers: &[Ipv4Addr], was_closed: bool) -> String {
    let table = &config.table;
    let prefix = &config.interface_prefix;
    let pool = config.pool;
    let mut holes = String::new();
    for Allowed { network, port } in &config.allow {
        // Writing to a String cannot fail.
        let _ = match port {
            Some(port) => writeln!(holes, "    ip daddr {network} meta l4proto {{ tcp, udp }} th dport {port} accept"),
            None => writeln!(holes, "    ip daddr {network} accept"),
        };
    }
    for resolver in resolvers {
        let _ = writeln!(holes, "    ip daddr {resolver} meta l4proto {{ tcp, udp }} th dport 53 accept");
    }
    let rest = if was_closed { "    drop\n" } else { "" };
    let closed_marker = if was_closed { "  chain forwarding_was_off { }\n" } else { "" };
    format!(
        "table inet {table}
delete table inet {table}
table inet {table} {{
  chain input {{
    type filter hook input priority filter - 5; policy accept;
    iifname \"{prefix}*\" jump to_host
  }}
  chain forward {{
    type filter hook forward priority filter - 5; policy accept;
    iifname \"{prefix}*\" jump egress
    oifname \"{prefix}*\" ct state established,related accept
    oifname \"{prefix}*\" drop
{rest}  }}
  chain to_host {{
    meta nfproto != ipv4 drop
    ip saddr != {pool} drop
{holes}    reject with icmpx admin-prohibited
  }}
  chain egress {{
    meta nfproto != ipv4 drop
    ip saddr != {pool} drop
    oifname \"{prefix}*\" reject with icmpx admin-prohibited
    tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
{holes}    ip daddr {{ {CLOSED} }} reject with icmpx admin-prohibited
    accept
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pool} oifname != \"{prefix}*\" masquerade
  }}
{closed_marker}}}
"
    )
}

/// Removes [`host_table`]; fine when it is not there.
pub(super) fn drop_host_table(config: &NetConfig) -> String {
    let table = &config.table;
    format!("table inet {table}\ndelete table inet {table}\n")
}

/// Inside a namespace: the tap, and nothing else that is up.
pub(super) fn tap_links() -> String {
    format!(
        "link set lo up
link set dev {TAP_NAME} address {TAP_MAC}
addr add {GATEWAY}/29 dev {TAP_NAME}
addr add {SECOND_RESOLVER}/29 dev {TAP_NAME}
link set dev {TAP_NAME} up
"
    )
}

/// Inside a namespace: the link to the host. `host_namespace` is a path of /proc with only numbers from us.
pub(super) fn uplink_links(name: &str, host_namespace: &str, host: Ipv4Addr, inner: Ipv4Addr) -> String {
    format!(
        "link add name {UPLINK} type veth peer name {name} netns {host_namespace}
addr add {inner}/31 dev {UPLINK}
link set dev {UPLINK} up
route add default via {host} dev {UPLINK}
"
    )
}

/// On the host: its end of the link.
pub(super) fn host_end(name: &str, host: Ipv4Addr) -> String {
    format!("addr add {host}/31 dev {name}\nlink set dev {name} up\n")
}

/// Inside a namespace: only the guest's address passes, within its limits and its egress policy, answers come back, name servers are
/// rewritten.
pub(super) fn namespace_table(resolvers: &[Ipv4Addr], limits: &NetLimits) -> String {
    let NetLimits { connections, new_connections_per_second, packets_per_second, mib_per_second } = *limits;
    let guest = GUEST_ADDRESS.split('/').next().unwrap_or(GUEST_ADDRESS);
    let chains = egress::CHAINS;
    let mut rewrites = String::new();
    if let Some(first) = resolvers.first() {
        let second = resolvers.get(1).unwrap_or(first);
        for (from, to) in [(GATEWAY, first), (SECOND_RESOLVER, second)] {
            for protocol in ["udp", "tcp"] {
                let _ =
                    writeln!(rewrites, "    iifname \"{TAP_NAME}\" ip daddr {from} {protocol} dport 53 dnat to {to}");
            }
        }
    }
    format!(
        "table ip nat {{
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
{rewrites}  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"{UPLINK}\" masquerade
  }}
}}
table ip filter {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname \"{TAP_NAME}\" ip saddr {guest} icmp type echo-request limit rate 50/second accept
    iifname \"{UPLINK}\" ct state established,related accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    iifname \"{TAP_NAME}\" limit rate over {packets_per_second}/second burst {packets_per_second} packets drop
    limit rate over {mib_per_second} mbytes/second burst {mib_per_second} mbytes drop
    iifname \"{TAP_NAME}\" ip saddr {guest} jump egress_sent
    oifname \"{TAP_NAME}\" jump egress_received
    iifname \"{TAP_NAME}\" ip saddr {guest} ct state new jump begin
    iifname \"{TAP_NAME}\" oifname \"{UPLINK}\" ip saddr {guest} accept
    iifname \"{UPLINK}\" oifname \"{TAP_NAME}\" ct state established,related accept
  }}
  chain begin {{
    limit rate over {new_connections_per_second}/second burst {new_connections_per_second} packets drop
    ct count over {connections} drop
  }}
{chains}}}
"
    )
}

/// Inside a namespace without a way out: the gateway answers ping, so that a guest sees a link, and nothing more.
pub(super) fn isolated_table() -> String {
    format!(
        "table ip filter {{
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname \"{TAP_NAME}\" icmp type echo-request limit rate 50/second accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
  }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_come_before_the_closed_ranges() {
        let config = NetConfig { allow: vec!["10.0.0.5:5432".parse().unwrap()], ..NetConfig::default() };
        let table = host_table(&config, &[Ipv4Addr::new(10, 0, 0, 53)], false);
        let egress = &table[table.find("chain egress").unwrap()..];
        let hole = egress.find("ip daddr 10.0.0.5/32 meta l4proto { tcp, udp } th dport 5432 accept").unwrap();
        let resolver = egress.find("ip daddr 10.0.0.53 meta l4proto { tcp, udp } th dport 53 accept").unwrap();
        let closed = egress.find("169.254.0.0/16").unwrap();
        assert!(hole < closed && resolver < closed);
        assert!(!table.contains("forwarding_was_off"));
    }

    #[test]
    fn what_clouds_tell_their_machines_is_closed_to_guests() {
        let azure = Ipv4Addr::new(168, 63, 129, 16);
        let table = host_table(&NetConfig::default(), &[azure], false);
        let egress = &table[table.find("chain egress").unwrap()..];
        let closed = egress.lines().find(|line| line.contains("reject") && line.contains("ip daddr {")).unwrap();
        for address in ["168.63.129.16", "169.254.0.0/16", "100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24"] {
            assert!(closed.contains(address), "{address}: {closed}");
        }
        // The name server alone, and before the rest is closed.
        let resolver = "ip daddr 168.63.129.16 meta l4proto { tcp, udp } th dport 53 accept";
        assert!(egress.find(resolver).unwrap() < egress.find(closed).unwrap());
    }

    #[test]
    fn a_host_that_forwarded_nothing_forwards_only_for_machines() {
        let table = host_table(&NetConfig::default(), &[], true);
        assert!(table.contains("forwarding_was_off"));
        assert!(table.contains("oifname \"nsv*\" drop\n    drop\n  }"));
    }

    #[test]
    fn a_machines_limits_come_before_what_lets_its_packets_pass() {
        let limits =
            NetLimits { connections: 7, new_connections_per_second: 8, packets_per_second: 9, mib_per_second: 10 };
        let table = namespace_table(&[], &limits);
        let forward = &table[table.find("chain forward").unwrap()..];
        let at = |text: &str| forward.find(text).unwrap_or_else(|| panic!("{text}: {forward}"));
        let passes = at("oifname \"up0\" ip saddr 172.30.255.2 accept");
        assert!(at("limit rate over 9/second burst 9 packets drop") < passes);
        assert!(at("limit rate over 10 mbytes/second burst 10 mbytes drop") < passes);
        assert!(at("ct state new jump begin") < passes);
        assert!(at("iifname \"tap0\" ip saddr 172.30.255.2 jump egress_sent") < at("ct state new jump begin"));
        assert!(at("oifname \"tap0\" jump egress_received") < passes);
        assert!(forward.contains("limit rate over 8/second burst 8 packets drop\n    ct count over 7 drop"));
    }
}
