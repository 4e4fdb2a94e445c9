//! A client for the registry protocol (OCI distribution-spec), as far as pulling needs it.
//!
//! ```text
//!  Registry (settings, HTTP clients)
//!     └─ repository(reference, credentials) ─▶ Repository (endpoints: mirrors…, origin; a token for each)
//!           ├─ resolve(platform) ─▶ ResolvedImage     tag ─▶ [index] ─▶ manifest ─▶ config, every digest checked
//!           └─ blob(digest, size) ─▶ BlobReader       streamed, resumed by Range, size and digest checked at the end
//! ```
//!
//! It is written on `reqwest` and not on `oci-client`, which was tried first: that crate reads manifests without a bound,
//! cannot resume a blob it has begun to hand out, ignores `Retry-After`, knows no mirrors, follows redirects wherever they
//! lead, and sends a registry's password to whatever token server it names, over plain HTTP as well.
//!
//! # Permitted destinations
//! - Only the internet and the operator's list, by the address that is dialled (`nullspace-reach`). It does not matter where the name
//!   comes from: a caller, a redirect, a token realm or a cloud's endpoint.
//! - Plain HTTP only to hosts in [`RegistryConfig::plain_http`] and, as with Docker, to loopback registries that are
//!   listed and do not speak TLS.
//! - The caller's credentials go to the reference's own registry and the token server it names, never to a mirror, and
//!   never along a redirect to another host. A mirror's credentials stand in its URL.
//! - A registry cannot lead the client from a public host to a loopback one, nor from HTTPS to HTTP.
//! - Every request has timeouts, every document a size limit, every retry an end. `Retry-After` is honoured within bounds.

mod auth;
mod blob;
mod credentials;
mod docker_config;
mod endpoint;
mod error;
mod exchange;
mod http;
mod reach;
mod repository;
mod settings;

pub use blob::BlobReader;
pub use credentials::Credentials;
pub use docker_config::{DockerConfig, DockerConfigError};
pub use error::{At, NotAllowed, RegistryError};
pub use nullspace_reach::{InvalidPrivateHost as InvalidPrivateRegistry, PrivateHost as PrivateRegistry};
pub use repository::{Repository, ResolvedImage};

pub use crate::manifest::Layer;
pub use settings::{RegistryConfig, Timeouts};

use std::sync::Arc;

use reqwest::Url;
use secrecy::SecretString;

use crate::reference::{DEFAULT_REGISTRY, Reference};

/// The client for all registries. Cheap to clone. Keep one for the life of the program, because it pools connections.
#[derive(Clone, Debug)]
pub struct Registry {
    http: Arc<http::Http>,
}

impl Registry {
    /// Sets up the HTTP clients. The process must have a default rustls crypto provider by now.
    pub fn new(config: RegistryConfig) -> Result<Registry, RegistryError> {
        Ok(Registry { http: Arc::new(http::Http::new(config)?) })
    }

    /// The repository a reference names, to be talked to with these credentials, or for [`Credentials::Anonymous`] with
    /// the host's, if [`RegistryConfig::docker_config`] has some. Nothing is sent yet.
    pub fn repository(&self, reference: &Reference, credentials: Credentials) -> Result<Repository, RegistryError> {
        Repository::new(self.http.clone(), reference.clone(), credentials)
    }

    /// Whether another program may be sent to a registry (a host, perhaps with a port), as it will be when it builds a
    /// Dockerfile that names an image there.
    ///
    /// # Errors
    /// The registry is neither on the internet nor listed. A name that does not resolve here is no error.
    pub async fn admits_registry(&self, registry: &str) -> Result<(), NotAllowed> {
        // The operator's own choice, and a name that is nobody's to bend.
        if self.http.config.mirrors.contains_key(registry) || registry == DEFAULT_REGISTRY {
            return Ok(());
        }
        let scheme = if self.http.config.plain_http.contains(registry) { "http" } else { "https" };
        self.admits(&format!("{scheme}://{registry}/")).await
    }

    /// Whether another program may be sent to a URL's host; as [`Registry::admits_registry`]. Of the URL only scheme,
    /// host and port count.
    ///
    /// # Errors
    /// Likewise; and for a URL whose host cannot be read.
    pub async fn admits(&self, url: &str) -> Result<(), NotAllowed> {
        match Url::parse(url) {
            Ok(url) if url.host_str().is_some() => self.http.admit(&url).await,
            _ => Err(NotAllowed { host: http::clean(url) }),
        }
    }

    /// The host's own logins, if [`RegistryConfig::docker_config`] has some: registry, name and password, for others that
    /// talk to registries.
    pub fn host_logins(&self) -> impl Iterator<Item = (&str, &str, &SecretString)> {
        self.http.config.docker_config.iter().flat_map(DockerConfig::logins)
    }

    /// The name and password that these credentials come to at a registry (a host, perhaps with a port), for others that
    /// talk to it: a cloud identity is exchanged for a password that lasts some hours. `None` for
    /// [`Credentials::Anonymous`].
    pub async fn login(
        &self,
        registry: &str,
        credentials: &Credentials,
    ) -> Result<Option<(String, SecretString)>, RegistryError> {
        let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
        let login = exchange::login(&self.http, host, "", credentials).await?;
        Ok(login.map(|login| (login.username, login.password)))
    }
}
