//! Resolution of names to the addresses that may be dialled.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::reach::{Closed, Reach};

/// Where names are looked up.
pub trait Lookup: fmt::Debug + Send + Sync {
    /// Returns the addresses of a name.
    fn lookup(&self, name: String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The host's own resolver.
#[derive(Debug)]
pub struct SystemLookup;

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
pub struct Resolver {
    pub(crate) reach: Arc<Reach>,
    pub(crate) lookup: Arc<dyn Lookup>,
    pub(crate) port: Option<u16>,
}

impl Resolver {
    /// The addresses among a name's that may be dialled, and how many there are that may not.
    ///
    /// # Errors
    /// [`Unresolved`].
    pub async fn resolve(&self, name: &str) -> Result<(Vec<IpAddr>, usize), Unresolved> {
        let found = self.lookup.lookup(name.to_owned()).await;
        if self.reach.names(name, self.port) || self.reach.is_proxy(name) {
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
pub enum Unresolved {
    /// A listed name cannot be found.
    Lookup(io::Error),
    /// It has none that may be dialled, perhaps none at all.
    Closed {
        /// Its addresses, all of them closed.
        found: usize,
    },
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

/// Resolves this machine's own names to its loopback address, without the host's resolver.
#[derive(Debug)]
pub(crate) struct Local;

impl Resolve for Local {
    fn resolve(&self, _name: Name) -> Resolving {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Box::pin(std::future::ready(Ok(Box::new(std::iter::once(address)) as Addrs)))
    }
}

/// Whether a request failed because of [`Closed`].
pub fn is_closed(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<Closed>() {
            return true;
        }
        cause = error.source();
    }
    false
}
