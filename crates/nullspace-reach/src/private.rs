//! Entries of the operator's lists of hosts outside the internet.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use reqwest::Url;

/// A permitted host, or network of hosts, outside the internet: `127.0.0.1`, `10.0.0.0/8`, `[fd00::5]:5000`,
/// `registry.corp`, `registry.corp:5000`. Without a port it permits all ports. A name permits every address that it resolves
/// to. An address or a network permits every name that resolves to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivateHost {
    host: Host,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Network(IpNet),
    /// In lower case, as URLs have it.
    Name(String),
}

/// A text that is not a [`PrivateHost`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not an address, a network or a host name, with or without a port")]
pub struct InvalidPrivateHost(String);

impl FromStr for PrivateHost {
    type Err = InvalidPrivateHost;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        parse(text).ok_or_else(|| InvalidPrivateHost(text.chars().take(100).collect()))
    }
}

fn parse(text: &str) -> Option<PrivateHost> {
    if let Some(host) = network(text) {
        return Some(PrivateHost { host, port: None });
    }
    let (host, port) = match text.rsplit_once(':') {
        // A colon inside brackets is an address's.
        Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok().filter(|&port: &u16| port > 0)?)),
        _ => (text, None),
    };
    let host = match network(host) {
        Some(host) => host,
        None => named(host)?,
    };
    Some(PrivateHost { host, port })
}

fn network(text: &str) -> Option<Host> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let net = bare.parse::<IpNet>().or_else(|_| bare.parse::<IpAddr>().map(|address| canonical(address).into()));
    net.ok().map(|net| Host::Network(net.trunc()))
}

/// A name as a URL has it; what a URL takes for an address is one.
fn named(text: &str) -> Option<Host> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if text.is_empty() || !text.bytes().all(plain) {
        return None;
    }
    let url = Url::parse(&format!("http://{text}/")).ok()?;
    let host = url.host_str()?;
    Some(network(host).unwrap_or_else(|| Host::Name(host.to_owned())))
}

/// An IPv4 address that is written as an IPv6 one is that IPv4 address.
pub(crate) fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

impl PrivateHost {
    /// The host of a URL, for its port alone.
    pub fn of_url(url: &Url) -> Option<PrivateHost> {
        let host = url.host_str()?;
        let host = network(host).unwrap_or_else(|| Host::Name(host.to_owned()));
        Some(PrivateHost { host, port: Some(url.port_or_known_default()?) })
    }

    /// A host that is spoken to in plain HTTP: `host` or `host:port`, port 80 if there is none.
    pub fn of_plain_http(text: &str) -> Option<PrivateHost> {
        PrivateHost::of_url(&Url::parse(&format!("http://{text}/")).ok()?)
    }

    /// The one port that it permits; `None`: all.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    fn takes(&self, port: Option<u16>) -> bool {
        self.port.is_none() || self.port == port
    }

    /// Whether this name is listed for this port; `None` is a port that no entry names.
    pub(crate) fn is_name(&self, name: &str, port: Option<u16>) -> bool {
        matches!(&self.host, Host::Name(listed) if listed == name.trim_end_matches('.')) && self.takes(port)
    }

    /// Whether this address is listed for this port.
    pub(crate) fn has(&self, address: IpAddr, port: Option<u16>) -> bool {
        matches!(&self.host, Host::Network(net) if net.contains(&canonical(address))) && self.takes(port)
    }
}

impl fmt::Display for PrivateHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (Host::Network(IpNet::V6(net)), Some(port)) if net.prefix_len() == 128 => {
                write!(f, "[{}]:{port}", net.addr())
            }
            (Host::Network(net), _) if net.prefix_len() == net.max_prefix_len() => {
                write!(f, "{}{}", net.addr(), self.port.map(|port| format!(":{port}")).unwrap_or_default())
            }
            (Host::Network(net), port) => {
                write!(f, "{net}{}", port.map(|port| format!(":{port}")).unwrap_or_default())
            }
            (Host::Name(name), port) => {
                write!(f, "{name}{}", port.map(|port| format!(":{port}")).unwrap_or_default())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(text: &str) -> PrivateHost {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn entries_are_addresses_networks_or_names_with_or_without_a_port() {
        for (text, shown) in [
            ("127.0.0.1", "127.0.0.1"),
            (" 127.0.0.1:5000 ", "127.0.0.1:5000"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.0.0.0/8:5000", "10.0.0.0/8:5000"),
            ("::1", "::1"),
            ("[::1]", "::1"),
            ("[::1]:5000", "[::1]:5000"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("fd00::/8", "fd00::/8"),
            ("Registry.Corp", "registry.corp"),
            ("registry.corp:5000", "registry.corp:5000"),
            ("127.1", "127.0.0.1"),
        ] {
            assert_eq!(listed(text).to_string(), shown, "{text}");
        }
        for bad in ["", ":5000", "a:0", "a:70000", "a:b", "http://a", "a/b", "10.0.0.0/33", "[::1", "a b", "u@h"] {
            assert!(bad.parse::<PrivateHost>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_entry_covers_its_ports_and_what_leads_to_its_addresses() {
        let at = |text: &str, address: &str, port| listed(text).has(address.parse().unwrap(), Some(port));
        assert!(at("127.0.0.1", "127.0.0.1", 1) && at("127.0.0.1", "::ffff:127.0.0.1", 1));
        assert!(!at("127.0.0.1", "127.0.0.2", 1) && !at("127.0.0.1", "::1", 1));
        assert!(at("10.0.0.0/8:5000", "10.9.9.9", 5000) && !at("10.0.0.0/8:5000", "10.9.9.9", 5001));
        let name = listed("registry.corp:5000");
        assert!(name.is_name("registry.corp", Some(5000)) && name.is_name("registry.corp.", Some(5000)));
        assert!(!name.is_name("registry.corp", Some(443)) && !name.is_name("registry.corp", None));
        assert!(!name.is_name("x.registry.corp", Some(5000)));
        assert!(listed("registry.corp").is_name("registry.corp", None));
        let plain = PrivateHost::of_plain_http("plain").unwrap();
        assert!(plain.is_name("plain", Some(80)) && !plain.is_name("plain", Some(443)));
    }
}
