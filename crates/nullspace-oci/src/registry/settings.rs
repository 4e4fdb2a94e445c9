//! Settings of the registry client.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use nullspace_reach::PrivateHost;
use reqwest::Url;

use super::docker_config::DockerConfig;

/// Settings for all registries.
#[derive(Clone)]
pub struct RegistryConfig {
    /// For a registry host (`docker.io`), where to ask first, in order. A mirror's URL may carry a user and password for
    /// it, and a path, which goes in front of the repository's name.
    pub mirrors: BTreeMap<String, Vec<Url>>,
    /// PEM bundle of certificate authorities trusted besides the system's.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// The host's own logins, for callers without credentials. Every caller that may name an image can then pull with the
    /// host's rights.
    pub docker_config: Option<DockerConfig>,
    /// Registry hosts (with port, if not 80) that are spoken to over plain HTTP. Each may be asked wherever it lies.
    pub plain_http: BTreeSet<String>,
    /// Registries outside the internet that may be asked. Mirrors and `plain_http` need not be in it.
    pub private_registries: Vec<PrivateHost>,
    /// Waiting times.
    pub timeouts: Timeouts,
    /// How often a request is tried, first try included.
    pub attempts: usize,
    /// Wait before the first retry; doubles with each one.
    pub backoff: Duration,
    /// Longest wait before a retry; also the most of a `Retry-After` that is waited for. A registry that asks for more
    /// makes the request fail.
    pub max_backoff: Duration,
    /// Most layers in an image.
    pub max_layers: usize,
    /// `User-Agent`.
    pub user_agent: String,
    /// Where ECR logins are asked for instead of the region's own API: a VPC endpoint. ECR credentials then serve for
    /// registries of any name.
    pub ecr_endpoint: Option<Url>,
    /// Where Google service accounts are exchanged instead of Google's own token server, likewise.
    pub gcp_token_url: Option<Url>,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        RegistryConfig {
            mirrors: BTreeMap::new(),
            extra_ca_pem: None,
            docker_config: None,
            plain_http: BTreeSet::new(),
            private_registries: Vec::new(),
            timeouts: Timeouts::default(),
            attempts: 5,
            backoff: Duration::from_millis(300),
            max_backoff: Duration::from_secs(20),
            max_layers: 256,
            user_agent: concat!("nullspace/", env!("CARGO_PKG_VERSION")).to_owned(),
            ecr_endpoint: None,
            gcp_token_url: None,
        }
    }
}

impl fmt::Debug for RegistryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Mirror URLs may carry passwords.
        f.debug_struct("RegistryConfig")
            .field("mirrors", &self.mirrors.keys().collect::<Vec<_>>())
            .field("docker_config", &self.docker_config)
            .field("plain_http", &self.plain_http)
            .field("private_registries", &self.private_registries)
            .field("timeouts", &self.timeouts)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

/// Time limits.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// TCP and TLS set-up.
    pub connect: Duration,
    /// From a request to its answer's head.
    pub response: Duration,
    /// Between two pieces of an answer's body.
    pub idle: Duration,
    /// A body slower than [`Timeouts::min_rate`] over this time counts as stalled.
    pub rate_window: Duration,
    /// Bytes a second.
    pub min_rate: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            connect: Duration::from_secs(10),
            response: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            rate_window: Duration::from_secs(60),
            min_rate: 1024,
        }
    }
}
