//! BuildKits for Dockerfiles: those of the settings, or those that are found on this host.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, bail};
use nullspace_buildkit::{BuildKit, Endpoint, Tls};

use crate::config::Config;

/// Sockets that are tried when the settings name none.
const USUAL: [&str; 2] = ["docker", "unix:///run/buildkit/buildkitd.sock"];

/// The BuildKits that builds may use, in the order in which they are tried. Nothing is asked of them yet.
pub(crate) fn all(config: &Config) -> anyhow::Result<Vec<BuildKit>> {
    let endpoints = endpoints(config)?;
    let tls = match (&config.buildkit_ca, &config.buildkit_cert, &config.buildkit_key) {
        (None, None, None) => None,
        (Some(ca), Some(cert), Some(key)) => Some(Tls::read(ca, cert, key).context("buildkit_ca, _cert and _key")?),
        _ => bail!("buildkit_ca, buildkit_cert and buildkit_key are needed together"),
    };
    for endpoint in &endpoints {
        if let Endpoint::Tcp { host, .. } = endpoint
            && tls.is_none()
            && !is_loopback(host)
        {
            bail!("buildkit: secrets would travel to {endpoint} in the clear: give buildkit_ca, _cert and _key");
        }
    }
    Ok(endpoints.into_iter().map(|endpoint| BuildKit::new(endpoint, tls.clone())).collect())
}

fn endpoints(config: &Config) -> anyhow::Result<Vec<Endpoint>> {
    let Some(texts) = &config.buildkit else {
        let usual = USUAL.iter().filter_map(|text| text.parse().ok());
        let there = |endpoint: &Endpoint| match endpoint {
            Endpoint::Docker(path) | Endpoint::Unix(path) => Path::exists(path),
            Endpoint::Tcp { .. } => false,
        };
        return Ok(usual.filter(there).collect());
    };
    if let [only] = texts.as_slice()
        && only == "off"
    {
        return Ok(Vec::new());
    }
    texts.iter().map(|text| text.parse().context("buildkit")).collect()
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(texts: &[&str]) -> Config {
        Config { buildkit: Some(texts.iter().map(|&text| text.to_owned()).collect()), ..Config::default() }
    }

    #[test]
    fn endpoints_are_those_of_the_settings() {
        let found = all(&with(&["docker", "tcp://127.0.0.1:1"])).unwrap();
        let shown: Vec<String> = found.iter().map(|kit| kit.endpoint().to_string()).collect();
        assert_eq!(shown, ["docker:///var/run/docker.sock", "tcp://127.0.0.1:1"]);
        assert!(all(&with(&["off"])).unwrap().is_empty());
        for wrong in [with(&["podman"]), with(&["docker", "off"]), with(&["tcp://build.example:1234"])] {
            assert!(all(&wrong).is_err(), "{:?}", wrong.buildkit);
        }
        let half = Config { buildkit_ca: Some("/nonexistent".into()), ..with(&["docker"]) };
        assert!(all(&half).unwrap_err().to_string().contains("together"));
    }
}
