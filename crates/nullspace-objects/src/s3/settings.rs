//! Settings of an S3 store.

use std::net::IpAddr;

use reqwest::Url;

use super::S3Credentials;
use crate::{Error, ObjectName};

/// A bucket of an S3 store. `docs/object-store.md` has examples.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// Address of the store, `https://HOST[:PORT]`. Without one: Amazon S3 of the region.
    pub endpoint: Option<String>,
    /// The bucket, which must exist.
    pub bucket: String,
    /// A prefix of all keys, with the characters of an [`ObjectName`]; empty for none. What is below it belongs to this store.
    pub prefix: String,
    /// The region that requests are signed for: `us-east-1` by default.
    pub region: String,
    /// Whether the bucket is in the path of a URL (`https://HOST/BUCKET`) instead of its host name (`https://BUCKET.HOST`). By
    /// default it is in the path when there is an endpoint.
    pub path_style: Option<bool>,
    /// Allows `http://` to other hosts than this one: objects and listings are then readable on the way.
    pub allow_http: bool,
    /// The key pair.
    pub credentials: S3Credentials,
    /// Certificates that are trusted beside the system's, PEM.
    pub extra_ca_pem: Option<Vec<u8>>,
}

/// A setting of an S3 store that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct InvalidSetting {
    /// The field of [`S3Settings`].
    pub field: &'static str,
    /// The rule. Nothing of the value is in it.
    pub what: String,
}

impl InvalidSetting {
    pub(super) fn refused(self) -> Error {
        Error::Invalid(self.what)
    }
}

/// A checked address.
pub(super) struct Address {
    /// Scheme, host and port, with the bucket in the host when it is not in the path. `None`: Amazon S3.
    pub(super) endpoint: Option<String>,
    pub(super) path_style: bool,
    /// The store is on this host: no proxy stands between.
    pub(super) loopback: bool,
}

impl S3Settings {
    /// A bucket of Amazon S3 in `us-east-1`, without a prefix.
    #[must_use]
    pub fn new(bucket: impl Into<String>, credentials: S3Credentials) -> S3Settings {
        S3Settings {
            endpoint: None,
            bucket: bucket.into(),
            prefix: String::new(),
            region: "us-east-1".to_owned(),
            path_style: None,
            allow_http: false,
            credentials,
            extra_ca_pem: None,
        }
    }

    /// Bucket, prefix and endpoint, for logs.
    pub(crate) fn location(&self) -> String {
        let prefix = if self.prefix.is_empty() { String::new() } else { format!("/{}", self.prefix) };
        // An endpoint is shown only when it is one: another text may hold a password.
        let at = match self.address() {
            Ok(Address { endpoint: Some(_), .. }) => self.endpoint.clone().unwrap_or_default(),
            _ => format!("Amazon S3, {}", self.region),
        };
        format!("S3 bucket {}{prefix} at {at}", self.bucket)
    }

    /// Checks everything that can be checked without the credentials and without asking the store.
    ///
    /// # Errors
    /// The field that breaks a rule, with the rule.
    pub fn check(&self) -> Result<(), InvalidSetting> {
        self.prefix()?;
        self.address().map(drop)
    }

    /// The prefix, `None` when it is empty.
    pub(super) fn prefix(&self) -> Result<Option<ObjectName>, InvalidSetting> {
        match self.prefix.as_str() {
            "" => Ok(None),
            text => ObjectName::parse(text).map(Some).map_err(|error| InvalidSetting {
                field: "prefix",
                what: format!("the prefix of the S3 store is not usable: {error}"),
            }),
        }
    }

    pub(super) fn address(&self) -> Result<Address, InvalidSetting> {
        let invalid = |field, what: &str| Err(InvalidSetting { field, what: what.to_owned() });
        let all = |text: &str, of: fn(u8) -> bool| text.bytes().all(of);
        let in_bucket = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
        if !(3..=63).contains(&self.bucket.len())
            || !all(&self.bucket, in_bucket)
            || self.bucket.starts_with(['.', '-'])
        {
            return invalid(
                "bucket",
                "the bucket of the S3 store must have 3 to 63 characters of a-z, 0-9, '.' and '-'",
            );
        }
        if !(1..=60).contains(&self.region.len())
            || !all(&self.region, |byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            return invalid("region", "the region of the S3 store must have 1 to 60 letters, digits and '-'");
        }
        let Some(endpoint) = &self.endpoint else {
            return Ok(Address { endpoint: None, path_style: self.path_style.unwrap_or(false), loopback: false });
        };
        let Ok(url) = Url::parse(endpoint) else {
            return invalid("endpoint", "the endpoint of the S3 store must be a URL: https://HOST[:PORT]");
        };
        if !url.username().is_empty() || url.password().is_some() {
            return invalid(
                "endpoint",
                "the endpoint of the S3 store must not contain a user or password: keys are settings of their own",
            );
        }
        let Some(host) = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https")) else {
            return invalid("endpoint", "the endpoint of the S3 store must begin with https:// or http:// and a host");
        };
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return invalid(
                "endpoint",
                "the endpoint of the S3 store must end after host and port: bucket and prefix are settings of their own",
            );
        }
        let address: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
        let loopback = address.map_or(host == "localhost", |address| address.is_loopback());
        if url.scheme() == "http" && !loopback && !self.allow_http {
            return invalid(
                "endpoint",
                "the endpoint of the S3 store is http:// on another host, where everybody on the way reads the objects: use https://, \
                 or set allow_http",
            );
        }
        let path_style = self.path_style.unwrap_or(true);
        if !path_style && address.is_some() {
            return invalid(
                "endpoint",
                "the endpoint of the S3 store is an IP address, which cannot contain the bucket: set path_style",
            );
        }
        let bucket = if path_style { String::new() } else { format!("{}.", self.bucket) };
        let port = url.port().map_or_else(String::new, |port| format!(":{port}"));
        let endpoint = format!("{}://{bucket}{host}{port}", url.scheme());
        Ok(Address { endpoint: Some(endpoint), path_style, loopback })
    }
}
