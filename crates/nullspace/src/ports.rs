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

/// Makes the edge of a service that listens on `address`, and gives the service its local listeners.
pub(crate) fn edge(
    config: &Config,
    control: &Control,
    address: SocketAddr,
    stop: &CancellationToken,
) -> anyhow::Result<Arc<Edge>> {
    let limits = EdgeLimits {
        response_timeout: Duration::from_secs(config.preview_response_timeout_secs),
        ..EdgeLimits::default()
    };
    let settings = EdgeSettings {
        // The port is for clients; requests are told apart by the name alone.
        domain: config.preview_domain.as_deref().map(|domain| domain.split(':').next().unwrap_or(domain).to_owned()),
        paths: config.preview_paths.unwrap_or(config.preview_domain.is_none()),
        proxies: proxies(config)?,
        limits: limits.clone(),
    };
    let edge = Edge::new(Arc::new(control.clone()), settings);
    if config.local_ports.unwrap_or(config.preview_domain.is_none() && address.ip().is_loopback()) {
        let listeners = LocalListeners::new(limits, stop.clone());
        listeners.lead_to(&edge);
        control.use_local_ports(Arc::new(Locals(listeners)));
    }
    Ok(edge)
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
