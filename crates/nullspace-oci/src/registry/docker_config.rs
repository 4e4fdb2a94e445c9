//! The host's Docker config (`~/.docker/config.json`) as a source of credentials.
//!
//! Only what the file itself holds is used: `auths`, each with `auth` (base64 of `user:password`) or `username` and
//! `password`. Credential helpers (`credsStore`, `credHelpers`) are programs, and a file must not make a service run
//! programs; `identitytoken` is for a login that this client does not do. Both are counted, so that someone can say so.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use secrecy::SecretString;
use serde::Deserialize;

use crate::reference::{DEFAULT_REGISTRY, Reference};

use super::credentials::Credentials;

/// Largest file taken, bytes.
const MAX_FILE: usize = 1 << 20;

/// Some tools leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a Docker config cannot be used. Says nothing of what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DockerConfigError {
    /// It is too large.
    #[error("the Docker config has {size} bytes, the limit is {MAX_FILE}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// It is not JSON of the right shape.
    #[error("the Docker config is malformed at line {line}")]
    Malformed {
        /// Where; 0 if unknown.
        line: usize,
    },
    /// An `auth` is not the base64 of `user:password`.
    #[error("the Docker config's \"auth\" of {registry} is not the base64 of user:password")]
    BadAuth {
        /// Whose it is.
        registry: String,
    },
}

/// Credentials by registry. `Debug` shows no secret.
#[derive(Clone, Default)]
pub struct DockerConfig {
    logins: BTreeMap<String, (String, SecretString)>,
    unused: Vec<String>,
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registries: Vec<&String> = self.logins.keys().collect();
        f.debug_struct("DockerConfig").field("logins", &registries).field("unused", &self.unused).finish()
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default, deserialize_with = "crate::json::null_default")]
    auths: BTreeMap<String, Option<Entry>>,
    #[serde(rename = "credHelpers", default, deserialize_with = "crate::json::null_default")]
    helpers: BTreeMap<String, serde_json::Value>,
    #[serde(rename = "credsStore", default, deserialize_with = "crate::json::null_default")]
    store: String,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default, deserialize_with = "crate::json::null_default")]
    auth: String,
    #[serde(default, deserialize_with = "crate::json::null_default")]
    username: String,
    #[serde(default)]
    password: Option<SecretString>,
}

impl DockerConfig {
    /// Parses the file's content.
    pub fn parse(bytes: &[u8]) -> Result<DockerConfig, DockerConfigError> {
        if bytes.len() > MAX_FILE {
            return Err(DockerConfigError::TooLarge { size: bytes.len() });
        }
        // The parser's own words may quote the file.
        let file: File =
            serde_json::from_slice(bytes).map_err(|error| DockerConfigError::Malformed { line: error.line() })?;
        let mut config = DockerConfig::default();
        for (key, entry) in file.auths {
            let (registry, entry) = (host_of(&key), entry.unwrap_or_default());
            let login = match entry.password {
                Some(password) if !entry.username.is_empty() => Some((entry.username, password)),
                _ if !entry.auth.is_empty() => {
                    Some(decode(&entry.auth).ok_or(DockerConfigError::BadAuth { registry: registry.clone() })?)
                }
                _ => None,
            };
            match login {
                Some(login) => {
                    config.logins.insert(registry, login);
                }
                None => config.unused.push(registry),
            }
        }
        config.unused.extend(file.helpers.keys().map(|key| host_of(key)));
        if !file.store.is_empty() && config.unused.is_empty() {
            config.unused.push("all registries (credsStore)".to_owned());
        }
        config.unused.retain(|registry| !config.logins.contains_key(registry));
        config.unused.dedup();
        Ok(config)
    }

    /// Registries of which the file has something, and nothing that is used here: a helper, an identity token.
    pub fn unused(&self) -> &[String] {
        &self.unused
    }

    /// What the host has for the registry of a reference; [`Credentials::Anonymous`] if nothing.
    pub fn credentials(&self, reference: &Reference) -> Credentials {
        match self.logins.get(reference.registry()) {
            Some((username, password)) => Credentials::Basic { username: username.clone(), password: password.clone() },
            None => Credentials::Anonymous,
        }
    }

    /// Name and password by registry's host.
    pub fn logins(&self) -> impl Iterator<Item = (&str, &str, &SecretString)> {
        self.logins.iter().map(|(registry, (username, password))| (registry.as_str(), username.as_str(), password))
    }
}

/// A key of the file as a registry's host: Docker has written whole URLs there, and its Hub has a name of its own.
fn host_of(key: &str) -> String {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or(rest).to_ascii_lowercase();
    match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY.to_owned(),
        _ => host,
    }
}

fn decode(auth: &str) -> Option<(String, SecretString)> {
    // Docker's own reader drops NULs at the end.
    let pair = String::from_utf8(BASE64.decode(auth.trim()).ok()?).ok()?;
    let (username, password) = pair.trim_end_matches('\0').split_once(':')?;
    (!username.is_empty()).then(|| (username.to_owned(), password.into()))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn login(config: &DockerConfig, reference: &str) -> Option<(String, String)> {
        match config.credentials(&reference.parse().unwrap()) {
            Credentials::Basic { username, password } => Some((username, password.expose_secret().to_owned())),
            _ => None,
        }
    }

    #[test]
    fn logins_are_found_by_registry_however_the_key_is_written() {
        let config = DockerConfig::parse(
            br#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldDp3aXRoOmNvbG9ucw=="},
                "https://REGISTRY.example:5000/v2/": {"auth": "YTpi"},
                "plain.example": {"username": "u", "password": "p"},
                "unpadded.example": {"auth": "YWI6Yw", "email": null},
                "nothing.example": {},
                "token.example": {"identitytoken": "x"}
            }, "credHelpers": {"aws.example": "ecr-login"}, "HttpHeaders": {}}"#,
        )
        .unwrap();
        let pair = |user: &str, password: &str| Some((user.to_owned(), password.to_owned()));
        assert_eq!(login(&config, "ubuntu"), pair("hub", "secret:with:colons"));
        assert_eq!(login(&config, "docker.io/team/app:1"), pair("hub", "secret:with:colons"));
        assert_eq!(login(&config, "registry.example:5000/x"), pair("a", "b"));
        assert_eq!(login(&config, "registry.example/x"), None, "another port is another registry");
        assert_eq!(login(&config, "plain.example/x"), pair("u", "p"));
        assert_eq!(login(&config, "unpadded.example/x"), pair("ab", "c"));
        for none in ["nothing.example/x", "token.example/x", "aws.example/x", "other.example/x"] {
            assert_eq!(login(&config, none), None, "{none}");
        }
        assert_eq!(config.unused(), ["nothing.example", "token.example", "aws.example"]);
        let shown = format!("{config:?}");
        assert!(shown.contains("plain.example") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn helpers_are_named_and_never_run() {
        let config = DockerConfig::parse(br#"{"credsStore": "/bin/false", "auths": null}"#).unwrap();
        assert_eq!(config.unused().len(), 1);
        assert_eq!(login(&config, "ubuntu"), None);
        assert!(DockerConfig::parse(b"{}").unwrap().unused().is_empty());
    }

    #[test]
    fn what_is_malformed_is_told_without_its_content() {
        let bad = |text: &[u8]| DockerConfig::parse(text).unwrap_err();
        assert_eq!(bad(b"{\n\"auths\": canary"), DockerConfigError::Malformed { line: 2 });
        for auth in ["%%%", "bm9jb2xvbg==", "OnBhc3N3b3Jk", "/w=="] {
            let error = bad(format!(r#"{{"auths":{{"r.example":{{"auth":"{auth}"}}}}}}"#).as_bytes());
            assert_eq!(error, DockerConfigError::BadAuth { registry: "r.example".to_owned() });
        }
        assert!(matches!(bad(&vec![b' '; MAX_FILE + 1]), DockerConfigError::TooLarge { .. }));
    }
}
