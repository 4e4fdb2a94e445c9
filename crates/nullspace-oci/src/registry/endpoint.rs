//! The hosts that can answer for a repository: its mirrors, then the registry itself.

use std::sync::{Mutex, PoisonError};

use percent_encoding::percent_decode_str;
use reqwest::header::HeaderValue;
use reqwest::{Response, Url};
use secrecy::SecretString;

use crate::reference::{DEFAULT_REGISTRY, Reference};

use super::auth::{self, Access};
use super::credentials::Credentials;
use super::error::{At, RegistryError};
use super::exchange;
use super::http::{Answer, Get, Http, host_port, is_loopback_host};
use super::settings::RegistryConfig;

/// Where docker.io's registry answers.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// One host, with the repository's name there and the way in.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Scheme, host and port. The scheme of a loopback registry is settled by the first answer.
    base: Mutex<Base>,
    repository: String,
    credentials: Credentials,
    access: Mutex<Access>,
}

#[derive(Clone, Debug)]
struct Base {
    url: Url,
    /// Plain HTTP may be tried if TLS fails.
    may_downgrade: bool,
}

/// The endpoints for a reference, in the order they are asked.
pub(super) fn endpoints(
    config: &RegistryConfig,
    reference: &Reference,
    credentials: Credentials,
) -> Result<Vec<Endpoint>, RegistryError> {
    let mut endpoints = Vec::new();
    for mirror in config.mirrors.get(reference.registry()).into_iter().flatten() {
        endpoints.push(mirror_endpoint(mirror, reference)?);
    }
    let host = if reference.registry() == DEFAULT_REGISTRY { DOCKER_HUB } else { reference.registry() };
    let plain = config.plain_http.contains(reference.registry());
    let scheme = if plain { "http" } else { "https" };
    let url = Url::parse(&format!("{scheme}://{host}/"))
        .map_err(|_| RegistryError::Setup(format!("\"{host}\" is not a usable registry host")))?;
    let credentials = match (credentials, &config.docker_config) {
        (Credentials::Anonymous, Some(host)) => host.credentials(reference),
        (given, _) => given,
    };
    // One that is not listed is not asked at all.
    let may_downgrade = !plain && url.host_str().is_some_and(is_loopback_host);
    endpoints.push(Endpoint {
        base: Mutex::new(Base { url, may_downgrade }),
        repository: reference.repository().to_owned(),
        credentials,
        access: Mutex::default(),
    });
    Ok(endpoints)
}

/// A mirror as the settings have it: `http://user:password@host:5000/prefix`.
fn mirror_endpoint(mirror: &Url, reference: &Reference) -> Result<Endpoint, RegistryError> {
    if !matches!(mirror.scheme(), "http" | "https") || mirror.host_str().is_none() {
        let registry = reference.registry();
        return Err(RegistryError::Setup(format!("a mirror of {registry} is not an http or https URL with a host")));
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let credentials = match (mirror.username(), mirror.password()) {
        ("", None) => Credentials::Anonymous,
        (user, password) => Credentials::Basic {
            username: decoded(user),
            password: SecretString::from(decoded(password.unwrap_or(""))),
        },
    };
    let mut url = mirror.clone();
    let prefix = mirror.path().trim_matches('/');
    // Some settings spell out the API root; it is put in front of every request anyway.
    let prefix = prefix.strip_prefix("v2").map_or(prefix, |rest| rest.trim_start_matches('/'));
    let repository = if prefix.is_empty() {
        reference.repository().to_owned()
    } else {
        format!("{prefix}/{}", reference.repository())
    };
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_path("/");
    url.set_query(None);
    url.set_fragment(None);
    Ok(Endpoint {
        base: Mutex::new(Base { url, may_downgrade: false }),
        repository,
        credentials,
        access: Mutex::default(),
    })
}

impl Endpoint {
    /// For messages: what of what where.
    pub(super) fn at(&self, what: &str) -> At {
        At::new(host_port(&self.base().url), &*self.repository, what)
    }

    /// GETs `v2/<repository>/<path>`, answering a challenge once.
    pub(super) async fn get(
        &self,
        http: &Http,
        path: &str,
        what: &str,
        accept: Option<&str>,
        offset: u64,
    ) -> Result<Response, RegistryError> {
        self.settle_scheme(http).await;
        let at = self.at(what);
        let base = self.base().url;
        let url = base.join(&format!("/v2/{}/{path}", self.repository)).map_err(|_| RegistryError::Protocol {
            at: at.clone(),
            reason: "the request's URL cannot be formed".to_owned(),
        })?;
        let mut get = Get { url, accept, authorization: self.authorization(), offset };
        let (challenges, message) = match http.get(&get, &at).await? {
            Answer::Success(response) => return Ok(response),
            Answer::Challenge { challenges, message } => (challenges, message),
        };
        let registry = base.host_str().unwrap_or_default();
        let login = exchange::login(http, registry, &self.repository, &self.credentials).await?;
        let access = auth::answer(http, &base, &challenges, message, login, &at).await?;
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = access;
        get.authorization = self.authorization();
        match http.get(&get, &at).await? {
            Answer::Success(response) => Ok(response),
            Answer::Challenge { message, .. } => Err(RegistryError::Unauthorized { at, message }),
        }
    }

    fn authorization(&self) -> Option<HeaderValue> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner).header()
    }

    fn base(&self) -> Base {
        self.base.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Docker tries TLS first on loopback registries too, and plain HTTP if that fails. Anything but a TLS failure is left
    /// for the real request to report.
    async fn settle_scheme(&self, http: &Http) {
        let mut base = self.base();
        if !base.may_downgrade {
            return;
        }
        let secure = http.speaks(&base.url).await;
        if !secure {
            let mut plain = base.url.clone();
            // Setting the scheme drops the port if it is the new scheme's default one, never another.
            if plain.set_scheme("http").is_ok() && http.speaks(&plain).await {
                base.url = plain;
            }
        }
        base.may_downgrade = false;
        *self.base.lock().unwrap_or_else(PoisonError::into_inner) = base;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repositories(mirror: &str) -> (String, String) {
        let reference: Reference = "ubuntu".parse().unwrap();
        let endpoint = mirror_endpoint(&mirror.parse().unwrap(), &reference).unwrap();
        (endpoint.base().url.to_string(), endpoint.repository)
    }

    #[test]
    fn mirror_urls_give_host_prefix_and_credentials() {
        let is = |mirror, url: &str, repository: &str| {
            assert_eq!(repositories(mirror), (url.to_owned(), repository.to_owned()), "{mirror}");
        };
        is("http://127.0.0.1:5000", "http://127.0.0.1:5000/", "library/ubuntu");
        is("https://h/proxy/hub/", "https://h/", "proxy/hub/library/ubuntu");
        is("https://h/v2/hub", "https://h/", "hub/library/ubuntu");
        is("https://u:p@h/v2/", "https://h/", "library/ubuntu");
        let reference: Reference = "ubuntu".parse().unwrap();
        let escaped = mirror_endpoint(&"http://a%40b%zz:p@h/".parse().unwrap(), &reference).unwrap();
        assert!(matches!(&escaped.credentials, Credentials::Basic { username, .. } if username == "a@b%zz"));
        assert!(matches!(mirror_endpoint(&"ftp://h/".parse().unwrap(), &reference), Err(RegistryError::Setup(_))));
    }

    #[test]
    fn the_registry_comes_after_its_mirrors() {
        let mut config = RegistryConfig::default();
        config.mirrors.insert("docker.io".to_owned(), vec!["http://127.0.0.1:1".parse().unwrap()]);
        config.plain_http.insert("plain:80".to_owned());
        let hosts = |config: &RegistryConfig, reference: &str| {
            let endpoints = endpoints(config, &reference.parse().unwrap(), Credentials::Anonymous).unwrap();
            endpoints.iter().map(|endpoint| endpoint.base().url.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(hosts(&config, "ubuntu"), ["http://127.0.0.1:1/", "https://registry-1.docker.io/"]);
        assert_eq!(hosts(&config, "ghcr.io/a/b"), ["https://ghcr.io/"]);
        assert_eq!(hosts(&config, "plain:80/a/b"), ["http://plain/"]);
    }
}
