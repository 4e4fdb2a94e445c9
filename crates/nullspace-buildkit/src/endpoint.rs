//! The address of a BuildKit.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The Docker Engine's usual socket.
const DOCKER: &str = "/var/run/docker.sock";
/// buildkitd's usual port.
const PORT: u16 = 1234;

/// A BuildKit's address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Endpoint {
    /// Inside a Docker Engine, whose API is on this socket. `docker`, or `docker:///path/of.sock`.
    Docker(PathBuf),
    /// buildkitd on a socket. `unix:///path/of.sock`.
    Unix(PathBuf),
    /// buildkitd over TCP. `tcp://host[:port]`.
    Tcp {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

/// Text that is no address of a BuildKit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not docker, docker:///path, unix:///path or tcp://host:port")]
pub struct InvalidEndpoint(pub String);

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidEndpoint(text.to_owned());
        let path = |path: &str| path.starts_with('/').then(|| PathBuf::from(path)).ok_or_else(invalid);
        if text == "docker" {
            return Ok(Endpoint::Docker(DOCKER.into()));
        }
        match text.split_once("://").ok_or_else(invalid)? {
            ("docker", socket) => Ok(Endpoint::Docker(path(socket)?)),
            ("unix", socket) => Ok(Endpoint::Unix(path(socket)?)),
            ("tcp", authority) => {
                // The colons of an IPv6 address are inside brackets.
                let (host, port) = match authority.rsplit_once(':') {
                    Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| invalid())?),
                    _ => (authority, PORT),
                };
                let host = host.trim_start_matches('[').trim_end_matches(']');
                if host.is_empty() || host.contains(['/', '@', ' ']) {
                    return Err(invalid());
                }
                Ok(Endpoint::Tcp { host: host.to_owned(), port })
            }
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Docker(path) => write!(f, "docker://{}", path.display()),
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
            Endpoint::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown() {
        for (text, shown) in [
            ("docker", "docker:///var/run/docker.sock"),
            ("docker:///x/d.sock", "docker:///x/d.sock"),
            ("unix:///run/buildkit/buildkitd.sock", "unix:///run/buildkit/buildkitd.sock"),
            ("tcp://build.example", "tcp://build.example:1234"),
            ("tcp://10.0.0.1:99", "tcp://10.0.0.1:99"),
            ("tcp://[::1]:99", "tcp://[::1]:99"),
            ("tcp://[::1]", "tcp://[::1]:1234"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
        }
        for text in
            ["", "x", "unix://relative", "docker://x", "tcp://", "tcp://h:x", "tcp://h:70000", "http://h", "tcp://u@h"]
        {
            assert_eq!(text.parse::<Endpoint>(), Err(InvalidEndpoint(text.to_owned())));
        }
    }
}
