//! IPv4 networks and the allow list's entries, as they are written in the configuration.

use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;

/// Not a network, an address or an allow list's entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no IPv4 network: write `a.b.c.d`, `a.b.c.d/len` or, in an allow list, either with `:port`")]
pub struct InvalidNetwork(pub String);

/// Reads `a.b.c.d` or `a.b.c.d/len`, host bits zero.
pub fn parse_network(text: &str) -> Result<Ipv4Net, InvalidNetwork> {
    let network: Option<Ipv4Net> = match text.contains('/') {
        true => text.parse().ok(),
        false => text.parse().ok().map(|address: Ipv4Addr| address.into()),
    };
    // `10.1.2.3/8` is more likely a slip than a wish.
    network.filter(|network| network.addr() == network.network()).ok_or_else(|| InvalidNetwork(text.into()))
}

/// Counts the pairs of neighbouring addresses (RFC 3021's /31 links) in a network.
pub fn pairs(network: &Ipv4Net) -> u32 {
    31_u8.checked_sub(network.prefix_len()).map_or(0, |bits| 1 << bits)
}

/// The pair `index`, host's end first; `None` past the last.
pub(super) fn pair(network: &Ipv4Net, index: u32) -> Option<(Ipv4Addr, Ipv4Addr)> {
    (index < pairs(network)).then(|| {
        let first = network.network().to_bits() + index * 2;
        (Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(first + 1))
    })
}

/// A hole in the default rules: a network, at one TCP and UDP port or at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// The destination.
    pub network: Ipv4Net,
    /// `None`: every port and protocol.
    pub port: Option<u16>,
}

impl FromStr for Allowed {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let bad = || InvalidNetwork(text.into());
        match text.split_once(':') {
            Some((network, port)) => {
                let port: u16 = port.parse().map_err(|_| bad())?;
                if port == 0 {
                    return Err(bad());
                }
                Ok(Self { network: parse_network(network).map_err(|_| bad())?, port: Some(port) })
            }
            None => Ok(Self { network: parse_network(text)?, port: None }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_parsed_and_slips_refused() {
        assert_eq!(parse_network("10.0.0.0/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(parse_network("1.2.3.4").unwrap().to_string(), "1.2.3.4/32");
        for bad in ["10.1.2.3/8", "10.0.0.0/33", "10.0.0/8", "", "::1", "10.0.0.0/8; drop"] {
            assert!(parse_network(bad).is_err(), "{bad}");
        }
        assert_eq!("10.0.0.5:5432".parse::<Allowed>().unwrap().port, Some(5432));
        for bad in ["10.0.0.5:0", "10.0.0.5:", "10.0.0.5:http", ":53"] {
            assert!(bad.parse::<Allowed>().is_err(), "{bad}");
        }
    }

    #[test]
    fn pairs_stay_inside_the_pool() {
        let network = |text| parse_network(text).unwrap();
        let pool = network("100.96.0.0/30");
        assert_eq!(pairs(&pool), 2);
        let (host, inner) = pair(&pool, 1).unwrap();
        assert_eq!((host.to_string(), inner.to_string()), ("100.96.0.2".into(), "100.96.0.3".into()));
        assert!(pair(&pool, 2).is_none());
        assert!(pair(&network("1.1.1.1"), 0).is_none());
        assert_eq!([pairs(&network("0.0.0.0/0")), pairs(&network("1.1.1.0/31"))], [1 << 31, 1]);
    }
}
