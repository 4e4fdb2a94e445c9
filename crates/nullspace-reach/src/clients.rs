//! HTTP clients that dial permitted destinations only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, Url};

use crate::reach::{Closed, Reach, is_local_name, is_loopback, literal};
use crate::resolver::{Local, Lookup, Resolver, Unresolved};

/// HTTP clients, chosen by the destination. A resolver learns no port, so each port that the operator lists has a client.
#[derive(Debug)]
pub struct Clients {
    reach: Arc<Reach>,
    lookup: Arc<dyn Lookup>,
    listed: BTreeMap<u16, Client>,
    other: Client,
    /// For this machine's own names and loopback addresses. No proxy reaches them.
    loopback: Client,
}

impl Clients {
    /// Makes the clients with `build`, which gets the finishing touch for its builder and may call it more than once.
    ///
    /// # Errors
    /// Those of `build`.
    pub fn new<E>(
        reach: Reach,
        lookup: Arc<dyn Lookup>,
        build: impl Fn(&dyn Fn(ClientBuilder) -> ClientBuilder) -> Result<Client, E>,
    ) -> Result<Clients, E> {
        let reach = Arc::new(reach);
        let outside = |port| {
            let resolver = Arc::new(Resolver { reach: Arc::clone(&reach), lookup: Arc::clone(&lookup), port });
            build(&|builder| builder.dns_resolver(Arc::clone(&resolver)))
        };
        let listed =
            reach.ports().into_iter().map(|port| Ok((port, outside(Some(port))?))).collect::<Result<_, E>>()?;
        let other = outside(None)?;
        let loopback = build(&|builder| builder.dns_resolver(Arc::new(Local)).no_proxy())?;
        Ok(Clients { reach, lookup, listed, other, loopback })
    }

    /// The client for a URL, if it may be gone to as far as the URL tells. A name is judged when it is dialled: see
    /// [`is_closed`](crate::is_closed).
    ///
    /// # Errors
    /// [`Closed`].
    pub fn of(&self, url: &Url) -> Result<&Client, Closed> {
        self.reach.judge(url)?;
        if is_loopback(url) {
            return Ok(&self.loopback);
        }
        Ok(url.port_or_known_default().and_then(|port| self.listed.get(&port)).unwrap_or(&self.other))
    }

    /// Whether a URL's host may be gone to by somebody who chooses among a name's addresses: all of them must be open. A name
    /// that does not resolve here within the time is no error.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn admit(&self, url: &Url, within: Duration) -> Result<(), Closed> {
        self.reach.judge(url)?;
        let host = url.host_str().unwrap_or_default();
        if literal(host).is_some() || is_local_name(host) {
            return Ok(());
        }
        let port = url.port_or_known_default().filter(|port| self.listed.contains_key(port));
        let resolver = Resolver { reach: Arc::clone(&self.reach), lookup: Arc::clone(&self.lookup), port };
        match tokio::time::timeout(within, resolver.resolve(host)).await {
            Ok(Ok((_, closed))) if closed > 0 => Err(Closed),
            Ok(Err(Unresolved::Closed { found })) if found > 0 => Err(Closed),
            _ => Ok(()),
        }
    }
}
