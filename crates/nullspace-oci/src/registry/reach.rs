//! Permitted destinations of this client: the internet, and the operator's list.
//!
//! A caller names the registry, and a registry names token servers and storage; the service must not become their way
//! to what only its own host reaches. So every request, wherever its URL came from, is judged by the address that is
//! dialled:
//!
//! ```text
//!  URL ─┬─ an address ──────────> public, or listed for the port? ──> dialled
//!       └─ a name ──> resolved by [`Resolver`], inside the connection's set-up
//!                        └─ the public and the listed addresses among the answers, and no others ──> dialled
//! ```
//! The addresses that were judged are those that the connector gets: a name that means something else a moment later
//! (DNS rebinding) is judged anew with the next connection. A name that leads nowhere and one that leads to a closed
//! address end in the same error, so that names inside a network cannot be guessed; nothing is sent to a closed address,
//! so that its ports cannot be told apart.
//!
//! Through a proxy of the environment the proxy resolves names, and only addresses in URLs are judged here.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::address::is_public;
use super::error::RegistryError;
use super::private::PrivateRegistry;
use super::settings::RegistryConfig;

/// Variables that name a proxy (curl's manual, "ENVIRONMENT").
const PROXIES: [&str; 6] = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

/// What the operator's settings open beside the internet.
#[derive(Debug)]
pub(super) struct Reach {
    listed: Vec<PrivateRegistry>,
    /// Hosts of the environment's proxies: looked up as any name, asked for nothing themselves.
    proxies: BTreeSet<String>,
}

/// A host that this client does not go to.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it has no public address and is not listed")]
pub(super) struct Closed;

impl Reach {
    /// What a setting names counts as listed, for its own port.
    pub(super) fn new(config: &RegistryConfig) -> Result<Reach, RegistryError> {
        let mut listed = config.private_registries.clone();
        for text in &config.plain_http {
            let entry = PrivateRegistry::of_plain_http(text);
            listed.push(entry.ok_or_else(|| RegistryError::Setup(format!("\"{text}\" is not a registry's host")))?);
        }
        let urls = config.mirrors.values().flatten().chain(&config.ecr_endpoint).chain(&config.gcp_token_url);
        listed.extend(urls.filter_map(PrivateRegistry::of_url));
        let proxies = PROXIES.iter().filter_map(|name| std::env::var(name).ok());
        let proxies = proxies.filter_map(|text| proxy_host(&text)).collect();
        Ok(Reach { listed, proxies })
    }

    /// Ports that some entry names.
    pub(super) fn ports(&self) -> BTreeSet<u16> {
        self.listed.iter().filter_map(PrivateRegistry::port).collect()
    }

    /// Whether an address may be dialled; `None` is a port that no entry names.
    fn admits(&self, address: IpAddr, port: Option<u16>) -> bool {
        is_public(address) || self.listed.iter().any(|entry| entry.has(address, port))
    }

    fn names(&self, name: &str, port: Option<u16>) -> bool {
        self.listed.iter().any(|entry| entry.is_name(name, port))
    }

    /// Judges what the URL alone tells: an address, this machine's own names, a proxy. Other names are the resolver's.
    pub(super) fn judge(&self, url: &Url) -> Result<(), Closed> {
        let (Some(host), port) = (url.host_str(), url.port_or_known_default()) else { return Err(Closed) };
        if self.names(host, port) {
            return Ok(());
        }
        let open = match literal(host) {
            Some(address) => self.admits(address, port),
            None if is_local_name(host) => self.admits(Ipv4Addr::LOCALHOST.into(), port),
            None => !self.proxies.contains(host),
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
pub(super) fn literal(host: &str) -> Option<IpAddr> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.parse().ok()
}

/// `localhost` and names under it (RFC 6761, 6.3).
pub(super) fn is_local_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host == "localhost" || host.ends_with(".localhost")
}

/// Where names are looked up.
pub(super) trait Lookup: fmt::Debug + Send + Sync {
    fn lookup(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The host's own resolver.
#[derive(Debug)]
pub(super) struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// Resolves names for connections to one port (`None`: to any that no entry names), to what may be dialled.
#[derive(Clone, Debug)]
pub(super) struct Resolver {
    pub(super) reach: Arc<Reach>,
    pub(super) lookup: Arc<dyn Lookup>,
    pub(super) port: Option<u16>,
}

impl Resolver {
    /// The addresses among a name's that may be dialled, and how many there are that may not.
    pub(super) async fn resolve(&self, name: &str) -> Result<(Vec<IpAddr>, usize), Unresolved> {
        let found = self.lookup.lookup(name.to_owned()).await;
        if self.reach.names(name, self.port) || self.reach.proxies.contains(name) {
            // Its operator wants to read why it cannot be found.
            return found.map(|found| (found, 0)).map_err(Unresolved::Lookup);
        }
        let mut found = found.unwrap_or_default();
        let all = found.len();
        found.retain(|address| self.reach.admits(*address, self.port));
        if found.is_empty() {
            return Err(Unresolved::Closed { found: all });
        }
        let closed = all - found.len();
        Ok((found, closed))
    }
}

/// Why a name gives no address.
#[derive(Debug)]
pub(super) enum Unresolved {
    /// A listed name cannot be found.
    Lookup(io::Error),
    /// It has none that may be dialled, perhaps none at all.
    Closed { found: usize },
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let resolved: Result<Addrs, Box<dyn std::error::Error + Send + Sync>> =
                match Resolver::resolve(&resolver, name.as_str()).await {
                    Ok((found, _)) => Ok(Box::new(found.into_iter().map(|ip| SocketAddr::new(ip, 0)))),
                    Err(Unresolved::Lookup(error)) => Err(error.into()),
                    Err(Unresolved::Closed { .. }) => Err(Closed.into()),
                };
            resolved
        })
    }
}

/// Whether a request failed because of [`Closed`].
pub(super) fn is_closed(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<Closed>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
#[path = "reach_tests.rs"]
mod tests;
