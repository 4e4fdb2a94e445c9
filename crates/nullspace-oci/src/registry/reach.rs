//! Permitted destinations of this client: the internet, and the operator's list, which is made of several settings.
//!
//! `nullspace-reach` judges; what it refuses is [`NotAllowed`](super::NotAllowed) here.

use nullspace_reach::{PrivateHost, Reach};

use super::error::RegistryError;
use super::settings::RegistryConfig;

/// The destinations that the settings open. What a setting names counts as listed, for its own port.
pub(super) fn of(config: &RegistryConfig) -> Result<Reach, RegistryError> {
    let mut listed = config.private_registries.clone();
    for text in &config.plain_http {
        let entry = PrivateHost::of_plain_http(text);
        listed.push(entry.ok_or_else(|| RegistryError::Setup(format!("\"{text}\" is not a registry's host")))?);
    }
    let urls = config.mirrors.values().flatten().chain(&config.ecr_endpoint).chain(&config.gcp_token_url);
    listed.extend(urls.filter_map(PrivateHost::of_url));
    Ok(Reach::new(listed).with_proxies())
}

#[cfg(test)]
#[path = "reach_tests.rs"]
mod tests;
