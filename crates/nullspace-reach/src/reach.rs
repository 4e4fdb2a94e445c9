//! Judgement of a destination: by the URL alone, and by an address.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use reqwest::Url;

use crate::address::is_public;
use crate::private::PrivateHost;

/// Variables that name a proxy (curl's manual, "ENVIRONMENT").
const PROXIES: [&str; 6] = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// The destinations that the operator's settings open beside the internet.
#[derive(Debug, Default)]
pub struct Reach {
    listed: Vec<PrivateHost>,
    /// Hosts of the environment's proxies: looked up as any name, asked for nothing themselves.
    proxies: BTreeSet<String>,
}

/// A destination that is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has no public address and is not listed")]
pub struct Closed;

impl Reach {
    /// The internet and these hosts, for clients that connect directly.
    pub fn new(listed: Vec<PrivateHost>) -> Reach {
        Reach { listed, proxies: BTreeSet::new() }
    }

    /// The same, for clients that use the proxies of the environment.
    #[must_use]
    pub fn with_proxies(self) -> Reach {
        let proxies = PROXIES.iter().filter_map(|name| std::env::var(name).ok());
        let proxies = proxies.filter_map(|text| proxy_host(&text)).collect();
        Reach { proxies, ..self }
    }

    /// Ports that some entry names.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.listed.iter().filter_map(PrivateHost::port).collect()
    }

    /// Whether an address may be dialled; `None` is a port that no entry names.
    pub(crate) fn admits(&self, address: IpAddr, port: Option<u16>) -> bool {
        is_public(address) || self.listed.iter().any(|entry| entry.has(address, port))
    }

    /// Whether a name is listed for a port.
    pub(crate) fn names(&self, name: &str, port: Option<u16>) -> bool {
        self.listed.iter().any(|entry| entry.is_name(name, port))
    }

    /// Whether a name is a proxy's.
    pub(crate) fn is_proxy(&self, name: &str) -> bool {
        self.proxies.contains(name)
    }

    /// Judges what the URL alone tells: an address, this machine's own names, a proxy. Other names are the resolver's.
    ///
    /// # Errors
    /// [`Closed`] also for a URL without host or port.
    pub fn judge(&self, url: &Url) -> Result<(), Closed> {
        let (Some(host), port) = (url.host_str(), url.port_or_known_default()) else { return Err(Closed) };
        if self.names(host, port) {
            return Ok(());
        }
        let open = match literal(host) {
            Some(address) => self.admits(address, port),
            None if is_local_name(host) => self.admits(Ipv4Addr::LOCALHOST.into(), port),
            None => !self.is_proxy(host),
        };
        if open { Ok(()) } else { Err(Closed) }
    }
}

/// `http://user:password@proxy:3128`, or the same without a scheme.
fn proxy_host(text: &str) -> Option<String> {
    let url = if text.contains("://") { Url::parse(text) } else { Url::parse(&format!("http://{text}")) };
    url.ok()?.host_str().map(str::to_owned)
}

/// The address that a URL's host is.
pub fn literal(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// `localhost` and names under it (RFC 6761, 6.3).
pub fn is_local_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host == "localhost" || host.ends_with(".localhost")
}

/// Whether the URL's host is this machine, by its name or its literal address.
pub fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(is_loopback_host)
}

/// `localhost`, `127.…`, `[::1]`.
pub fn is_loopback_host(host: &str) -> bool {
    is_local_name(host) || literal(host).is_some_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_judged_by_their_addresses_and_by_the_list() {
        let listed = ["127.0.0.1:5000", "inside.corp:80"].map(|text| text.parse().unwrap());
        let reach = Reach::new(listed.into());
        let open = |url: &str| reach.judge(&Url::parse(url).unwrap()).is_ok();
        for url in ["https://example.com/", "http://1.1.1.1:81/", "http://localhost:5000/", "http://inside.corp/"] {
            assert!(open(url), "{url}");
        }
        for url in [
            "http://127.0.0.1:5001/",
            "http://localhost/",
            "http://a.localhost./",
            "http://[::ffff:10.0.0.1]/",
            "http://2130706433/",
            "http://169.254.169.254/latest",
            "data:text/plain,x",
        ] {
            assert!(!open(url), "{url}");
        }
    }
}
