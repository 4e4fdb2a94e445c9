//! The SSH server: its settings and keys, wired.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, ensure};
use nullspace_control::Control;
use nullspace_data::{ArtifactStore, KeyFile};
use nullspace_ssh::{Authority, SshKeys, SshLimits, SshSettings};
use secrecy::{ExposeSecret, SecretString};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::serve::reachable;

/// An SSH server that is ready to serve.
pub(crate) struct Ssh {
    listener: TcpListener,
    keys: SshKeys,
}

/// Listens for SSH, if the settings want it.
pub(crate) async fn bind(config: &Config) -> anyhow::Result<Option<TcpListener>> {
    let Some(address) = config.ssh_listen else { return Ok(None) };
    let bound = TcpListener::bind(address).await;
    Ok(Some(bound.with_context(|| format!("listen on {address} (ssh_listen)"))?))
}

/// Reads the server's keys, made at the first start, and lets the service make certificates.
pub(crate) fn prepare(
    config: &Config,
    listener: TcpListener,
    files: &ArtifactStore,
    control: &Control,
) -> anyhow::Result<Ssh> {
    let address = listener.local_addr().context("read the address listened on")?;
    let keys = SshKeys::parse(&key(files, KeyFile::SshHost)?, &key(files, KeyFile::SshAuthority)?)
        .context("ssh_host.key and ssh_authority.key of the data folder")?;
    control.use_ssh(Arc::new(Authority::new(keys.clone(), settings(config, address)?)));
    tracing::info!("SSH into sandboxes on {address}");
    Ok(Ssh { listener, keys })
}

impl Ssh {
    /// Serves until `stop`, and until all connections have ended.
    pub(crate) async fn serve(self, control: Control, stop: CancellationToken) {
        nullspace_ssh::serve(self.listener, Arc::new(control), self.keys, SshLimits::default(), stop).await;
    }
}

fn key(files: &ArtifactStore, file: KeyFile) -> anyhow::Result<SecretString> {
    if let Some(text) = files.key_file(file).with_context(|| format!("read {}", file.name()))? {
        return Ok(text.into());
    }
    let made = SshKeys::generate().with_context(|| format!("make {}", file.name()))?;
    files.put_key_file(file, made.expose_secret()).with_context(|| format!("store {}", file.name()))?;
    tracing::info!("made {} in the data folder; keep a copy of it", file.name());
    Ok(made)
}

/// Where clients reach the server.
fn settings(config: &Config, listening: SocketAddr) -> anyhow::Result<SshSettings> {
    let (host, port) = address(config)?;
    Ok(SshSettings {
        host: host.unwrap_or_else(|| reachable(listening.ip()).to_string()),
        port: port.unwrap_or(listening.port()),
    })
}

/// Host and port of `ssh_address`: `host`, `host:port`, an IPv6 address, or one in brackets with a port. The host becomes a word of
/// a command line that users copy, so it is nothing but a name or an address.
pub(crate) fn address(config: &Config) -> anyhow::Result<(Option<String>, Option<u16>)> {
    let Some(text) = &config.ssh_address else { return Ok((None, None)) };
    let wrong = || format!("ssh_address is '{text}': it must be a host or host:port, such as ssh.example.com:2222");
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok((Some(text.clone()), None));
    }
    if let Ok(SocketAddr::V6(address)) = text.parse() {
        return Ok((Some(address.ip().to_string()), Some(address.port())));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port.parse::<u16>().ok().filter(|port| *port > 0).with_context(wrong)?)),
        None => (text.as_str(), None),
    };
    let plain = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-'));
    ensure!(plain && host.starts_with(|first: char| first.is_ascii_alphanumeric()) && host.len() <= 253, wrong());
    Ok((Some(host.to_owned()), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<(String, u16)> {
        let config = Config { ssh_address: Some(text.to_owned()), ..Config::default() };
        let listening = SocketAddr::from(([0, 0, 0, 0], 2222));
        settings(&config, listening).ok().map(|settings| (settings.host, settings.port))
    }

    #[test]
    fn an_address_is_a_host_with_or_without_a_port() {
        for (text, host, port) in [
            ("ssh.example.com", "ssh.example.com", 2222),
            ("ssh.example.com:22", "ssh.example.com", 22),
            ("192.0.2.1:1", "192.0.2.1", 1),
            ("2001:db8::1", "2001:db8::1", 2222),
            ("[2001:db8::1]:22", "2001:db8::1", 22),
        ] {
            assert_eq!(of(text), Some((host.to_owned(), port)), "{text}");
        }
        for text in ["", ":22", "-oProxyCommand=id", "a b", "a;id", "host:0", "host:70000", "host:", "[::1", "a:b:c"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn without_an_address_clients_reach_the_one_that_is_listened_on() {
        let settings = settings(&Config::default(), SocketAddr::from(([0, 0, 0, 0], 2222))).unwrap();
        assert_eq!((settings.host.as_str(), settings.port), ("127.0.0.1", 2222));
    }
}
