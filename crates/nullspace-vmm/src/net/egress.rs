//! The egress policy of one machine as rules in its own namespace.
//!
//! ```text
//!   guest ──> egress_sent ──┬── above the rate: dropped
//!                           ├── in the allow list: returns ──> limits and rules that all machines have
//!                           ├── denied ──> egress_refused: TCP is reset, the rest is answered "prohibited"
//!                           └── else: returns
//!   guest <── egress_received: what belongs to a connection that is denied is dropped
//! ```
//! The rules see every packet, not only the first of a connection. A change therefore acts on established connections.
//! Only packets with the guest's own address come here, so an answer goes to the guest and nowhere else.
//! Destinations are compared as the guest wrote them, before name servers are rewritten: name service is the gateway's addresses.
//! A deny list closes it when it holds every address or names the gateway's network; a larger private network in it does not.
//! Networks of IPv6 make no rules: a namespace has no IPv6.

use std::fmt::Write;
use std::net::Ipv4Addr;

use ipnet::{IpNet, Ipv4Net};
use nullspace_types::{EgressPolicy, EgressRate, EgressReach};

use super::{GATEWAY, SECOND_RESOLVER};

/// The chains of a namespace that hold a policy. They are empty in a new one.
pub(super) const CHAINS: &str = "  chain egress_sent { }
  chain egress_received { }
  chain egress_refused {
    meta l4proto tcp reject with tcp reset
    reject with icmp type admin-prohibited
  }
";

/// A burst of bytes is at least this: a packet of the guest's card may have 64 KiB, and must fit.
const LEAST_BURST: u64 = 256 << 10;
/// The network of guest and gateway, as in [`super::GUEST_ADDRESS`].
const GATEWAY_NETWORK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 30, 255, 0), 29);

/// Replaces the policy of a namespace. For one transaction.
pub(super) fn change(policy: &EgressPolicy) -> String {
    let (mut sent, mut received) = (rate(&policy.rate), String::new());
    match &policy.reach {
        EgressReach::All => {}
        EgressReach::Nothing => {
            sent.push_str("    goto egress_refused\n");
            received.push_str("    drop\n");
        }
        EgressReach::Lists { allow, deny } => {
            let allowed = set(allow);
            // A packet without a known connection has no destination that these rules could compare. An error message that
            // belongs to a connection may go to another destination than the connection.
            sent.push_str("    ct state { invalid, related, untracked } drop\n");
            if let Some(allowed) = &allowed {
                let _ = writeln!(sent, "    ct original ip daddr {{ {allowed} }} return");
                let _ = writeln!(received, "    ct original ip daddr {{ {allowed} }} return");
            }
            if deny.is_empty() && !allow.is_empty() {
                sent.push_str("    goto egress_refused\n");
                received.push_str("    drop\n");
            } else if let Some(denied) = set(deny) {
                if !closes_name_service(deny) {
                    let _ = writeln!(sent, "    ct original ip daddr {{ {GATEWAY}, {SECOND_RESOLVER} }} return");
                    let _ = writeln!(received, "    ct original ip daddr {{ {GATEWAY}, {SECOND_RESOLVER} }} return");
                }
                let _ = writeln!(sent, "    ct original ip daddr {{ {denied} }} goto egress_refused");
                let _ = writeln!(received, "    ct original ip daddr {{ {denied} }} drop");
            }
        }
    }
    format!(
        "flush chain ip filter egress_sent
flush chain ip filter egress_received
table ip filter {{
  chain egress_sent {{
{sent}  }}
  chain egress_received {{
{received}  }}
}}
"
    )
}

fn rate(rate: &EgressRate) -> String {
    let mut rules = String::new();
    if let Some(pps) = rate.pps {
        let burst = rate.burst.unwrap_or(pps);
        // Writing to a String cannot fail.
        let _ = writeln!(rules, "    limit rate over {pps}/second burst {burst} packets drop");
    }
    if let Some(kbit) = rate.kbit_per_sec {
        let bytes = kbit.saturating_mul(125);
        let burst = bytes.max(LEAST_BURST);
        let _ = writeln!(rules, "    limit rate over {bytes} bytes/second burst {burst} bytes drop");
    }
    rules
}

/// Whether a deny list is meant for the gateway's addresses, too.
fn closes_name_service(deny: &[IpNet]) -> bool {
    let v4 = v4(deny);
    let everything = Ipv4Net::aggregate(&v4).iter().any(|network| network.prefix_len() == 0);
    everything || v4.iter().any(|network| GATEWAY_NETWORK.contains(network))
}

/// The IPv4 networks of a list as the elements of a set, without overlaps, which a set refuses. `None` when there are none.
fn set(networks: &[IpNet]) -> Option<String> {
    let elements: Vec<String> = Ipv4Net::aggregate(&v4(networks)).iter().map(ToString::to_string).collect();
    (!elements.is_empty()).then(|| elements.join(", "))
}

fn v4(networks: &[IpNet]) -> Vec<Ipv4Net> {
    let is_v4 = |network: &IpNet| match network {
        IpNet::V4(network) => Some(*network),
        IpNet::V6(_) => None,
    };
    networks.iter().filter_map(is_v4).collect()
}

#[cfg(test)]
mod tests {
    use nullspace_types::parse_egress_network;
    use proptest::prelude::*;

    use super::*;

    fn lists(allow: &[&str], deny: &[&str]) -> EgressPolicy {
        let parsed = |texts: &[&str]| texts.iter().map(|text| parse_egress_network(text).unwrap()).collect();
        EgressPolicy { reach: EgressReach::Lists { allow: parsed(allow), deny: parsed(deny) }, ..Default::default() }
    }

    fn chain<'a>(script: &'a str, name: &str) -> Vec<&'a str> {
        let body = &script[script.find(&format!("  chain {name} {{\n")).unwrap()..];
        body.lines().skip(1).take_while(|line| *line != "  }").map(str::trim).collect()
    }

    #[test]
    fn an_open_policy_empties_the_chains_and_nothing_refuses_all() {
        let open = change(&EgressPolicy::default());
        assert!(open.starts_with("flush chain ip filter egress_sent\nflush chain ip filter egress_received\n"));
        assert!(chain(&open, "egress_sent").is_empty() && chain(&open, "egress_received").is_empty());
        let nothing = change(&EgressPolicy { reach: EgressReach::Nothing, ..Default::default() });
        assert_eq!(chain(&nothing, "egress_sent"), ["goto egress_refused"]);
        assert_eq!(chain(&nothing, "egress_received"), ["drop"]);
    }

    #[test]
    fn allowed_comes_before_denied_and_an_allow_list_alone_denies_the_rest() {
        let both = change(&lists(&["1.2.3.4", "1.2.3.4", "9.0.0.0/8"], &["0.0.0.0/0", "10.0.0.0/8", "::/0"]));
        assert_eq!(
            chain(&both, "egress_sent"),
            [
                "ct state { invalid, related, untracked } drop",
                "ct original ip daddr { 1.2.3.4/32, 9.0.0.0/8 } return",
                "ct original ip daddr { 0.0.0.0/0 } goto egress_refused",
            ]
        );
        assert_eq!(chain(&both, "egress_received")[1], "ct original ip daddr { 0.0.0.0/0 } drop");
        for alone in [lists(&["1.2.3.4"], &[]), lists(&["2001:db8::/32"], &[])] {
            let script = change(&alone);
            assert_eq!(chain(&script, "egress_sent").last(), Some(&"goto egress_refused"));
            assert_eq!(chain(&script, "egress_received").last(), Some(&"drop"));
        }
    }

    #[test]
    fn denied_private_networks_leave_name_service_and_the_gateways_own_does_not() {
        let names = "ct original ip daddr { 172.30.255.1, 172.30.255.3 } return";
        for (deny, open) in [
            (&["8.8.8.8"][..], true),
            (&["10.0.0.0/8", "172.16.0.0/12"], true),
            (&["172.30.255.0/29"], false),
            (&["172.30.255.1", "10.0.0.0/8"], false),
            (&["0.0.0.0/0"], false),
            (&["0.0.0.0/1", "128.0.0.0/1"], false),
        ] {
            let script = change(&lists(&[], deny));
            assert_eq!(chain(&script, "egress_sent").contains(&names), open, "{deny:?}");
            assert_eq!(chain(&script, "egress_received").contains(&names), open, "{deny:?}");
        }
    }

    #[test]
    fn a_rate_comes_first_and_lets_the_largest_packet_pass() {
        let rate = EgressRate { kbit_per_sec: Some(8), pps: Some(100), burst: Some(5) };
        let script = change(&EgressPolicy { reach: EgressReach::Nothing, rate });
        assert_eq!(
            chain(&script, "egress_sent"),
            [
                "limit rate over 100/second burst 5 packets drop",
                "limit rate over 1000 bytes/second burst 262144 bytes drop",
                "goto egress_refused",
            ]
        );
    }

    fn networks() -> impl Strategy<Value = Vec<IpNet>> {
        let v4 = (any::<u32>(), 0..=32_u8)
            .prop_map(|(bits, len)| IpNet::V4(Ipv4Net::new(Ipv4Addr::from_bits(bits), len).unwrap().trunc()));
        let v6 = (any::<u128>(), 0..=128_u8)
            .prop_map(|(bits, len)| IpNet::V6(ipnet::Ipv6Net::new(bits.into(), len).unwrap().trunc()));
        proptest::collection::vec(prop_oneof![4 => v4, 1 => v6], 0..20)
    }

    /// What the chain's rules decide for a new connection, read from their text.
    fn passes(script: &str, address: Ipv4Addr) -> bool {
        for rule in chain(script, "egress_sent") {
            if let Some((_, rest)) = rule.split_once("ct original ip daddr { ") {
                let (elements, verdict) = rest.split_once(" } ").unwrap();
                let nets: Vec<Ipv4Net> =
                    elements.split(", ").map(|text| super::super::parse_network(text).unwrap()).collect();
                let overlaps =
                    nets.iter().enumerate().any(|(i, one)| nets[i + 1..].iter().any(|two| one.contains(two)));
                assert!(!overlaps, "{elements}");
                if nets.iter().any(|net| net.contains(&address)) {
                    return verdict == "return";
                }
            } else if rule == "goto egress_refused" {
                return false;
            } else {
                assert_eq!(rule, "ct state { invalid, related, untracked } drop");
            }
        }
        true
    }

    proptest! {
        #[test]
        fn the_rules_decide_as_the_lists_say(allow in networks(), deny in networks(), bits: u32, pick: usize) {
            // Some address of one of the lists, or any.
            let listed: Vec<Ipv4Addr> = allow.iter().chain(&deny).filter_map(|net| match net {
                IpNet::V4(net) => Some(net.network()),
                IpNet::V6(_) => None,
            }).collect();
            let any = Ipv4Addr::from_bits(bits);
            let address = listed.get(pick % (listed.len() + 1)).copied().unwrap_or(any);
            prop_assume!(!GATEWAY_NETWORK.contains(&address));
            let within = |list: &[IpNet]| list.iter().any(|net| net.contains(&std::net::IpAddr::V4(address)));
            let expected = within(&allow) || !(within(&deny) || (deny.is_empty() && !allow.is_empty()));
            let script = change(&EgressPolicy { reach: EgressReach::Lists { allow, deny }, ..Default::default() });
            prop_assert_eq!(passes(&script, address), expected);
        }
    }
}
