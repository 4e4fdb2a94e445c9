//! The egress policy of a sandbox: the part of its network that its guest may send to.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Most networks in one list of a policy.
pub const MAX_EGRESS_NETWORKS: usize = 64;
/// Least and most of [`EgressRate::kbit_per_sec`].
pub const EGRESS_KBIT: std::ops::RangeInclusive<u64> = 8..=10_000_000;
/// Least and most of [`EgressRate::pps`].
pub const EGRESS_PPS: std::ops::RangeInclusive<u64> = 1..=10_000_000;
/// Least and most of [`EgressRate::burst`].
pub const EGRESS_BURST: std::ops::RangeInclusive<u64> = 1..=1_000_000;

/// An egress policy. It narrows what the operator's rules let pass, and never widens it. The default narrows nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressPolicy {
    /// Destinations that are left.
    pub reach: EgressReach,
    /// Rate that is left.
    #[serde(default)]
    pub rate: EgressRate,
}

/// Destinations that an egress policy leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EgressReach {
    /// All that the operator's rules let pass.
    #[default]
    All,
    /// A destination in `allow` passes. Any other destination in `deny` is refused. The rest passes, unless `deny` is empty:
    /// an allow list alone refuses the rest.
    Lists {
        /// At most [`MAX_EGRESS_NETWORKS`].
        #[serde(with = "texts")]
        allow: Vec<IpNet>,
        /// At most [`MAX_EGRESS_NETWORKS`].
        #[serde(with = "texts")]
        deny: Vec<IpNet>,
    },
    /// None: no packet leaves.
    Nothing,
}

/// Limits of what a guest sends. The operator's limits hold besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRate {
    /// Kilobits (1000 bits) in a second, within [`EGRESS_KBIT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kbit_per_sec: Option<u64>,
    /// Packets in a second, within [`EGRESS_PPS`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pps: Option<u64>,
    /// Packets that may be sent at once beyond `pps`, within [`EGRESS_BURST`]. Without it, one second's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

impl EgressPolicy {
    /// True when the policy narrows nothing.
    pub fn is_open(&self) -> bool {
        *self == EgressPolicy::default()
    }

    /// True when no packet may leave.
    pub fn denies_all(&self) -> bool {
        self.reach == EgressReach::Nothing
    }
}

/// The reasons for which a text is no network of an egress policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEgressNetwork {
    /// It is neither an address nor a CIDR, so probably a host name.
    #[error("is not an IP address or CIDR such as 192.0.2.0/24: host names are not supported, give the addresses")]
    NotANetwork,
    /// Bits of the host are set.
    #[error("has bits set after its prefix: the network is {0}")]
    HostBits(IpNet),
    /// It is an IPv4 address that is written as IPv6.
    #[error("is an IPv4 address in IPv6 notation: write it as IPv4")]
    Mapped,
}

/// Reads an address or a CIDR, of IPv4 or IPv6.
///
/// # Errors
/// [`InvalidEgressNetwork`].
pub fn parse_egress_network(text: &str) -> Result<IpNet, InvalidEgressNetwork> {
    let network: IpNet = match text.parse::<IpAddr>() {
        Ok(address) => address.into(),
        Err(_) => text.parse().map_err(|_| InvalidEgressNetwork::NotANetwork)?,
    };
    if network != network.trunc() {
        return Err(InvalidEgressNetwork::HostBits(network.trunc()));
    }
    if let IpNet::V6(v6) = network
        && v6.prefix_len() >= 96
        && v6.addr().to_ipv4_mapped().is_some()
    {
        return Err(InvalidEgressNetwork::Mapped);
    }
    Ok(network)
}

/// Networks as texts, which are parsed and bounded again when they are read.
mod texts {
    use ipnet::IpNet;
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{MAX_EGRESS_NETWORKS, parse_egress_network};

    pub(super) fn serialize<S: Serializer>(networks: &[IpNet], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(networks.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        if texts.len() > MAX_EGRESS_NETWORKS {
            return Err(D::Error::custom("too many networks"));
        }
        let parse = |text: String| parse_egress_network(&text).map_err(|why| D::Error::custom(format!("{text} {why}")));
        texts.into_iter().map(parse).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_parsed_by_type_and_the_rest_is_refused_with_its_reason() {
        for (text, printed) in [
            ("1.2.3.4", "1.2.3.4/32"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:db8::1", "2001:db8::1/128"),
        ] {
            assert_eq!(parse_egress_network(text).unwrap().to_string(), printed);
        }
        for name in ["example.com", "*.example.com", "", "10.0.0.0/33", "1.2.3.4:80", "1.2.3", "1.2.3.4 ", "a; drop"] {
            assert_eq!(parse_egress_network(name), Err(InvalidEgressNetwork::NotANetwork), "{name}");
        }
        let slip = parse_egress_network("10.1.2.3/8").unwrap_err();
        assert!(slip.to_string().contains("10.0.0.0/8"), "{slip}");
        assert_eq!(parse_egress_network("::ffff:1.2.3.4"), Err(InvalidEgressNetwork::Mapped));
    }

    #[test]
    fn a_policy_is_read_as_it_was_written_and_the_default_is_open() {
        let networks = |texts: &[&str]| texts.iter().map(|text| parse_egress_network(text).unwrap()).collect();
        let policy = EgressPolicy {
            reach: EgressReach::Lists {
                allow: networks(&["1.2.3.0/24", "2001:db8::/32"]),
                deny: networks(&["0.0.0.0/0", "::/0"]),
            },
            rate: EgressRate { kbit_per_sec: Some(1000), pps: None, burst: None },
        };
        let text = serde_json::to_string(&policy).unwrap();
        assert!(text.contains("\"1.2.3.0/24\""), "{text}");
        assert_eq!(serde_json::from_str::<EgressPolicy>(&text).unwrap(), policy);
        assert!(serde_json::from_str::<EgressPolicy>(&text.replace("1.2.3.0/24", "example.com")).is_err());
        assert!(EgressPolicy::default().is_open() && !policy.is_open());
        let nothing = EgressPolicy { reach: EgressReach::Nothing, ..EgressPolicy::default() };
        let text = serde_json::to_string(&nothing).unwrap();
        assert!(serde_json::from_str::<EgressPolicy>(&text).unwrap().denies_all());
    }
}
