//! The edge of the service: settings of ports of sandboxes, wired.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use nullspace_control::Control;
use nullspace_edge::{Edge, EdgeLimits, EdgeSettings, LocalListeners, Locals};
use tokio_util::sync::CancellationToken;

use crate::config::Config;

/// Whether `/p/…` leads to ports.
pub(crate) fn paths(config: &Config) -> bool {
    config.preview_paths.unwrap_or(config.preview_domain.is_none())
}

/// Makes the edge of a service that listens on `address`, and gives the service its local listeners. They are on by default where only
/// this host's users and programs reach the loopback, and not where its guests do too.
pub(crate) fn edge(
    config: &Config,
    control: &Control,
    address: SocketAddr,
    guests_on_loopback: bool,
    stop: &CancellationToken,
) -> anyhow::Result<Arc<Edge>> {
    let limits = EdgeLimits {
        per_tenant: per_tenant(config.max_connections),
        response_timeout: Duration::from_secs(config.preview_response_timeout_secs),
        ..EdgeLimits::default()
    };
    let settings = EdgeSettings {
        // The port is for clients; requests are told apart by the name alone.
        domain: config.preview_domain.as_deref().map(|domain| domain.split(':').next().unwrap_or(domain).to_owned()),
        paths: paths(config),
        proxies: proxies(config)?,
        limits: limits.clone(),
    };
    let edge = Edge::new(Arc::new(control.clone()), settings);
    if local(config, address, guests_on_loopback) {
        if guests_on_loopback {
            tracing::warn!(
                "local_ports is on, and guests on QEMU's user network reach this host's loopback: guests of all tenants reach the public \
                 ports of all sandboxes that have a local address. Use it where tenants trust one another"
            );
        }
        let listeners = LocalListeners::new(limits, stop.clone());
        listeners.lead_to(&edge);
        control.use_local_ports(Arc::new(Locals(listeners)));
    }
    Ok(edge)
}

/// Requests and WebSockets to one tenant's sandboxes at a time: a third of the connections that may be in use for ports.
fn per_tenant(max_connections: usize) -> usize {
    (max_connections / 4).max(1)
}

/// Whether ports have local listeners.
fn local(config: &Config, address: SocketAddr, guests_on_loopback: bool) -> bool {
    let alone = config.preview_domain.is_none() && address.ip().is_loopback() && !guests_on_loopback;
    config.local_ports.unwrap_or(alone)
}

/// The operator's proxies: addresses and networks.
pub(crate) fn proxies(config: &Config) -> anyhow::Result<Vec<IpNet>> {
    let parse = |text: &String| {
        let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        network
            .with_context(|| format!("preview_proxies: '{text}' must be an address or a network, such as 10.0.0.0/8"))
    };
    config.preview_proxies.iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tenants_visitors_take_a_third_of_the_places_at_most() {
        assert_eq!(per_tenant(Config::default().max_connections), EdgeLimits::default().per_tenant);
        assert_eq!((per_tenant(100), per_tenant(1)), (25, 1));
    }

    #[test]
    fn local_listeners_are_off_where_guests_reach_them_unless_the_operator_wants_them() {
        let loopback: SocketAddr = "127.0.0.1:3000".parse().unwrap();
        let config = Config::default();
        assert!(local(&config, loopback, false));
        assert!(!local(&config, loopback, true));
        assert!(!local(&config, "0.0.0.0:3000".parse().unwrap(), false));
        let named = Config { preview_domain: Some("boxes.example.com".into()), ..Config::default() };
        assert!(!local(&named, loopback, false) && !paths(&named) && paths(&config));
        let wanted = Config { local_ports: Some(true), ..named };
        assert!(local(&wanted, loopback, true) && local(&wanted, loopback, false));
        let unwanted = Config { local_ports: Some(false), ..Config::default() };
        assert!(!local(&unwanted, loopback, false));
    }
}
