//! BuildKits for Dockerfiles: those of the settings, or one for each tenant in a machine, or those that are found on this host.
//!
//! ```text
//!   buildkit = …      docker, unix://, tcp://  ──> these
//!                     machine                  ──> builder machines; an error without their root
//!                     off                      ──> none
//!   not set           the root of builder machines is there ──> builder machines
//!                     else the usual sockets that are there ──> these
//! ```

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use nullspace_buildkit::{BuildKit, Endpoint, Tls};
use nullspace_host::BuilderConfig;

use crate::config::Config;
use crate::guest;

/// Sockets that are tried when the settings name none.
const USUAL: [&str; 2] = ["docker", "unix:///run/buildkit/buildkitd.sock"];

/// Virtual CPUs of a builder machine: the engine unpacks with one while a step runs on the other.
const BUILDER_VCPUS: u32 = 2;

/// The BuildKit of Dockerfiles.
#[derive(Debug)]
pub(crate) enum Choice {
    /// These, which all tenants share, in the order in which they are tried. None: Dockerfiles are refused.
    Engines(Vec<BuildKit>),
    /// One for each tenant, in a machine of its own.
    Machines(BuilderConfig),
}

/// What the settings say, or what is there.
pub(crate) fn choose(config: &Config) -> anyhow::Result<Choice> {
    let Some(texts) = config.buildkit.as_deref() else { return by_default(config) };
    if texts.iter().any(|text| text == "machine") {
        if texts.len() > 1 {
            bail!("buildkit: \"machine\" stands alone: builds use builder machines, or the BuildKits of the list");
        }
        let Some(machines) = machines(config) else {
            bail!(
                "buildkit = [\"machine\"]: the root of builder machines is missing: make builder, or give builder_tar"
            );
        };
        return Ok(Choice::Machines(machines));
    }
    all(config).map(Choice::Engines)
}

/// Builder machines if their root is there, else the engines that tenants share. A root that the settings name has to be there:
/// without it, steps would run with fewer walls than the operator has asked for.
fn by_default(config: &Config) -> anyhow::Result<Choice> {
    if let Some(machines) = machines(config) {
        return Ok(Choice::Machines(machines));
    }
    if let Some(tar) = &config.builder_tar {
        bail!("builder_tar: {} is not there: make builder, or set buildkit", tar.display());
    }
    all(config).map(Choice::Engines)
}

/// Builder machines by the settings; `None` without their root.
fn machines(config: &Config) -> Option<BuilderConfig> {
    let mirror = config.registry_mirrors.get("docker.io").map(|url| url.trim_end_matches('/'));
    // The engine refuses to start with one that has a path.
    let mirror = mirror.filter(|url| url.split_once("://").is_some_and(|(_, rest)| !rest.contains('/')));
    let mirror = mirror.map(|url| format!("--registry-mirror={url}"));
    // With its scheme: without one, the engine's BuildKit asks by HTTPS alone and takes any certificate.
    let plain = config.plain_http_registries.iter().map(|registry| format!("--insecure-registry=http://{registry}"));
    Some(BuilderConfig {
        tar: guest::builder_tar(config)?,
        memory_mib: config.builder_memory_mib,
        vcpus: BUILDER_VCPUS,
        disk_mib: config.builder_disk_mib,
        idle: Duration::from_secs(config.builder_idle_secs),
        most: config.builder_machines,
        engine_options: mirror.into_iter().chain(plain).collect(),
    })
}

/// The BuildKits that builds may use, in the order in which they are tried. Nothing is asked of them yet.
fn all(config: &Config) -> anyhow::Result<Vec<BuildKit>> {
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
        assert!(matches!(choose(&with(&["off"])).unwrap(), Choice::Engines(engines) if engines.is_empty()));
        let half = Config { buildkit_ca: Some("/nonexistent".into()), ..with(&["docker"]) };
        assert!(all(&half).unwrap_err().to_string().contains("together"));
    }

    #[test]
    fn builder_machines_are_the_default_where_their_root_is_there() {
        let guest = tempfile::tempdir().unwrap();
        let default = |config: Config| Config { guest_dir: Some(guest.path().to_owned()), ..config };
        // Whichever engines this host has.
        assert!(matches!(choose(&default(Config::default())).unwrap(), Choice::Engines(_)));
        std::fs::write(guest.path().join("builder.tar"), "x").unwrap();
        let Choice::Machines(machines) = choose(&default(Config::default())).unwrap() else { panic!("no machines") };
        assert_eq!(machines.tar, guest.path().join("builder.tar"));
        // What the settings say is followed.
        for texts in [["docker"], ["unix:///run/buildkit/buildkitd.sock"], ["off"]] {
            assert!(matches!(choose(&default(with(&texts))).unwrap(), Choice::Engines(_)), "{texts:?}");
        }
        let elsewhere = Config { builder_tar: Some("/nonexistent".into()), ..Config::default() };
        assert!(choose(&elsewhere).unwrap_err().to_string().contains("builder_tar"));
        assert!(choose(&Config { builder_tar: elsewhere.builder_tar, ..with(&["off"]) }).is_ok());
    }

    #[test]
    fn builder_machines_need_their_root_and_stand_alone() {
        let tar = tempfile::NamedTempFile::new().unwrap();
        let there = |config: Config| Config { builder_tar: Some(tar.path().to_owned()), ..config };
        let mirrors = [("docker.io", "http://10.0.0.1:5000/"), ("ghcr.io", "http://10.0.0.2")];
        let mirrors = mirrors.map(|(host, url)| (host.to_owned(), url.to_owned())).into();
        let plain = vec!["10.0.0.3:5000".to_owned()];
        let config = Config { registry_mirrors: mirrors, plain_http_registries: plain, ..with(&["machine"]) };
        let Choice::Machines(machines) = choose(&there(config)).unwrap() else { panic!("no machines") };
        let options = ["--registry-mirror=http://10.0.0.1:5000", "--insecure-registry=http://10.0.0.3:5000"];
        assert_eq!(machines.engine_options, options);
        let pathed = [("docker.io".to_owned(), "http://10.0.0.1/hub".to_owned())].into();
        let config = Config { registry_mirrors: pathed, ..with(&["machine"]) };
        let Choice::Machines(machines) = choose(&there(config)).unwrap() else { panic!("no machines") };
        assert!(machines.engine_options.is_empty());

        assert!(choose(&there(with(&["machine", "docker"]))).unwrap_err().to_string().contains("alone"));
        assert!(matches!(choose(&there(with(&["off"]))).unwrap(), Choice::Engines(engines) if engines.is_empty()));
        let missing = Config { builder_tar: Some("/nonexistent".into()), ..with(&["machine"]) };
        assert!(choose(&missing).unwrap_err().to_string().contains("make builder"));
    }
}
