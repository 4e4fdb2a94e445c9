//! IPv4 networks and the allow list's entries, as they are written in the configuration.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// An IPv4 network: `a.b.c.d/len`, host bits zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ipv4Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

/// Not a network, an address or an allow list's entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no IPv4 network: write `a.b.c.d`, `a.b.c.d/len` or, in an allow list, either with `:port`")]
pub struct InvalidNetwork(pub String);

impl Ipv4Cidr {
    /// The network of `prefix` bits that `address` is in; more than 32 bits count as 32.
    pub const fn from_parts(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = if prefix > 32 { 32 } else { prefix };
        Self { network: Ipv4Addr::from_bits(address.to_bits() & Self::mask(prefix)), prefix }
    }

    const fn mask(prefix: u8) -> u32 {
        if prefix == 0 { 0 } else { u32::MAX << (32 - prefix as u32) }
    }

    /// True when `address` is in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & Self::mask(self.prefix) == self.network.to_bits()
    }

    /// True when the whole of it is in `other`.
    pub fn is_in(&self, other: &Ipv4Cidr) -> bool {
        other.prefix <= self.prefix && other.contains(self.network)
    }

    /// Pairs of neighbouring addresses (RFC 3021's /31 links) in it.
    pub fn pairs(&self) -> u32 {
        let bits = 32 - u32::from(self.prefix);
        if bits == 0 { 0 } else { 1 << (bits - 1) }
    }

    /// The pair `index`, host's end first; `None` past the last.
    pub fn pair(&self, index: u32) -> Option<(Ipv4Addr, Ipv4Addr)> {
        (index < self.pairs()).then(|| {
            let first = self.network.to_bits() + index * 2;
            (Ipv4Addr::from_bits(first), Ipv4Addr::from_bits(first + 1))
        })
    }
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Ipv4Cidr {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let bad = || InvalidNetwork(text.into());
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, prefix.parse().map_err(|_| bad())?),
            None => (text, 32),
        };
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let cidr = Self::from_parts(address, prefix);
        // `10.1.2.3/8` is more likely a slip than a wish.
        if prefix > 32 || cidr.network != address {
            return Err(bad());
        }
        Ok(cidr)
    }
}

/// A hole in the default rules: a network, at one TCP and UDP port or at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    /// Where to.
    pub network: Ipv4Cidr,
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
                Ok(Self { network: network.parse().map_err(|_| bad())?, port: Some(port) })
            }
            None => Ok(Self { network: text.parse()?, port: None }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_parsed_and_slips_refused() {
        assert_eq!("10.0.0.0/8".parse::<Ipv4Cidr>().unwrap().to_string(), "10.0.0.0/8");
        assert_eq!("1.2.3.4".parse::<Ipv4Cidr>().unwrap().to_string(), "1.2.3.4/32");
        assert_eq!("0.0.0.0/0".parse::<Ipv4Cidr>().unwrap().pairs(), 1 << 31);
        for bad in ["10.1.2.3/8", "10.0.0.0/33", "10.0.0/8", "", "::1", "10.0.0.0/8; drop"] {
            assert!(bad.parse::<Ipv4Cidr>().is_err(), "{bad}");
        }
        assert_eq!("10.0.0.5:5432".parse::<Allowed>().unwrap().port, Some(5432));
        for bad in ["10.0.0.5:0", "10.0.0.5:", "10.0.0.5:http", ":53"] {
            assert!(bad.parse::<Allowed>().is_err(), "{bad}");
        }
    }

    #[test]
    fn pairs_stay_inside_the_pool() {
        let pool: Ipv4Cidr = "100.96.0.0/30".parse().unwrap();
        assert_eq!(pool.pairs(), 2);
        let (host, inner) = pool.pair(1).unwrap();
        assert_eq!((host.to_string(), inner.to_string()), ("100.96.0.2".into(), "100.96.0.3".into()));
        assert!(pool.pair(2).is_none());
        assert!("1.1.1.1".parse::<Ipv4Cidr>().unwrap().pair(0).is_none());
        assert!(pool.contains(Ipv4Addr::new(100, 96, 0, 3)));
        assert!(!pool.contains(Ipv4Addr::new(100, 96, 0, 4)));
        let shared: Ipv4Cidr = "100.64.0.0/10".parse().unwrap();
        assert!(pool.is_in(&shared) && shared.is_in(&shared) && !shared.is_in(&pool));
        assert!(!"10.0.0.0/8".parse::<Ipv4Cidr>().unwrap().is_in(&shared));
    }
}
