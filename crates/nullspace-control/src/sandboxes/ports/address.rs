//! Addresses of ports.

use std::net::SocketAddr;

use nullspace_types::SandboxId;
use secrecy::{ExposeSecret, SecretString};

/// Where a port is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// What `get_host` answers: with `http://` before it and `/` behind it, a URL.
    pub(super) host: String,
    /// URL for HTTP. It ends in `/`.
    pub(super) http: String,
    /// URL for WebSockets.
    pub(super) websocket: String,
}

impl Address {
    fn new(host: String, tls: bool) -> Address {
        let s = if tls { "s" } else { "" };
        Address { http: format!("http{s}://{host}/"), websocket: format!("ws{s}://{host}/"), host }
    }

    /// A host name of its own under a domain.
    pub(super) fn named(domain: &str, tls: bool, sandbox: SandboxId, port: u16) -> Address {
        Address::new(format!("{port}-{sandbox}.{domain}"), tls)
    }

    /// A listener of its own on this host.
    pub(super) fn local(listener: SocketAddr) -> Address {
        Address::new(listener.to_string(), false)
    }

    /// A path on the service's own address.
    pub(super) fn path(address: &str, sandbox: SandboxId, port: u16) -> Address {
        Address::new(format!("{address}/p/{sandbox}/{port}"), false)
    }

    /// One of the URLs with a token.
    pub(super) fn with_token(&self, url: &str, token: &SecretString) -> String {
        format!("{url}?edge_token={}", token.expose_secret())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_a_host_name_a_listener_or_a_path() {
        let id: SandboxId = "sb_01a219eba6037134b8244e934ac9a21f".parse().unwrap();
        let all = |address: Address| [address.host.clone(), address.http.clone(), address.websocket];
        assert_eq!(
            all(Address::named("boxes.example", true, id, 8000)),
            [
                "8000-sb_01a219eba6037134b8244e934ac9a21f.boxes.example",
                "https://8000-sb_01a219eba6037134b8244e934ac9a21f.boxes.example/",
                "wss://8000-sb_01a219eba6037134b8244e934ac9a21f.boxes.example/",
            ]
        );
        assert_eq!(
            all(Address::named("localhost:3000", false, id, 1))[1],
            "http://1-sb_01a219eba6037134b8244e934ac9a21f.localhost:3000/"
        );
        assert_eq!(
            all(Address::local("127.0.0.1:4100".parse().unwrap())),
            ["127.0.0.1:4100", "http://127.0.0.1:4100/", "ws://127.0.0.1:4100/"]
        );
        let path = Address::path("127.0.0.1:3000", id, 65535);
        assert_eq!(path.host, "127.0.0.1:3000/p/sb_01a219eba6037134b8244e934ac9a21f/65535");
        assert_eq!(
            path.with_token(&path.websocket, &"nse_1".into()),
            "ws://127.0.0.1:3000/p/sb_01a219eba6037134b8244e934ac9a21f/65535/?edge_token=nse_1"
        );
    }
}
