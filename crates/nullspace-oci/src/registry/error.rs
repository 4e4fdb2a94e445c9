//! Errors of the registry client.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::digest::Digest;
use crate::manifest::FormatError;
use crate::platform::UnsupportedPlatform;

/// The place of an error: the object, the repository and the host. Never a whole URL, because URLs have tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    parts: Arc<Parts>,
}

#[derive(Debug, PartialEq, Eq)]
struct Parts {
    host: String,
    repository: String,
    what: String,
}

impl At {
    pub(super) fn new(host: impl Into<String>, repository: impl Into<String>, what: impl Into<String>) -> At {
        At { parts: Arc::new(Parts { host: host.into(), repository: repository.into(), what: what.into() }) }
    }

    /// The host that was asked: the registry, a mirror of it, or a token server.
    pub fn host(&self) -> &str {
        &self.parts.host
    }

    /// The repository.
    pub fn repository(&self) -> &str {
        &self.parts.repository
    }

    /// `manifest latest`, `blob sha256:…`, `token`.
    pub fn what(&self) -> &str {
        &self.parts.what
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} at {}", self.what(), self.repository(), self.host())
    }
}

/// Errors of the registry client. No variant has a credential, a token or a query string.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RegistryError {
    /// The client could not be set up: no TLS provider, a bad CA bundle, an unusable mirror URL.
    #[error("set up the registry client: {0}")]
    Setup(String),
    /// 401 or 403: the credentials are wrong or missing, or the repository does not exist (registries do not say which).
    #[error("access denied to {at}{}", because(.message))]
    Unauthorized {
        /// Where.
        at: At,
        /// The registry's words, if it had any.
        message: String,
    },
    /// 404.
    #[error("there is no {at}{}", because(.message))]
    NotFound {
        /// Where.
        at: At,
        /// The registry's words, if it had any.
        message: String,
    },
    /// 429 in all attempts, or a `Retry-After` longer than the limit.
    #[error("{at}: the registry's rate limit is reached{}", .retry_after.map(|wait| format!(", it asks to wait {} s", wait.as_secs())).unwrap_or_default())]
    RateLimited {
        /// Where.
        at: At,
        /// The `Retry-After` of the last answer.
        retry_after: Option<Duration>,
    },
    /// The destination is not permitted. Nothing was sent there.
    #[error("cannot get {at}: {source}")]
    NotAllowed {
        /// The object and the host.
        at: At,
        /// The refused host.
        source: NotAllowed,
        /// It was a name: it may mean something else, or be found at all, later.
        by_name: bool,
    },
    /// No answer: name resolution, connection, TLS, a time-out.
    #[error("cannot reach {at}: {reason}")]
    Unreachable {
        /// Where.
        at: At,
        /// What failed.
        reason: String,
    },
    /// The connection broke or stalled while the answer came, again and again.
    #[error("{at}: the transfer broke off after {received} bytes: {reason}")]
    Interrupted {
        /// Where.
        at: At,
        /// Bytes received by then.
        received: u64,
        /// What happened last.
        reason: String,
    },
    /// Any other status.
    #[error("{at}: the registry answered {status}{}", because(.message))]
    Status {
        /// Where.
        at: At,
        /// The HTTP status.
        status: u16,
        /// The registry's words, if it had any.
        message: String,
        /// Its `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The answer breaks the protocol.
    #[error("{at}: {reason}")]
    Protocol {
        /// Where.
        at: At,
        /// Which rule.
        reason: String,
    },
    /// The registry led elsewhere, where this client does not go.
    #[error("{at}: refused to follow a redirect: {reason}")]
    Redirect {
        /// Where.
        at: At,
        /// Why not.
        reason: &'static str,
    },
    /// The content is not what its digest says.
    #[error("{at}: the content's digest is {actual}, expected {expected}")]
    DigestMismatch {
        /// Where.
        at: At,
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The content is not as long as its descriptor says.
    #[error("{at}: the content has {actual} bytes, expected {expected}")]
    SizeMismatch {
        /// Where.
        at: At,
        /// Bytes announced by the manifest.
        expected: u64,
        /// Bytes the registry has (at least).
        actual: u64,
    },
    /// Nothing the image offers can run here.
    #[error("the image is not available for {wanted}; available: {}", if .available.is_empty() { "nothing".to_owned() } else { .available.join(", ") })]
    UnsupportedPlatform {
        /// The platform asked for, `linux/amd64`.
        wanted: String,
        /// What the image offers.
        available: Vec<String>,
    },
    /// Manifest, index or config cannot be used.
    #[error("{at}: {source}")]
    Format {
        /// Where.
        at: At,
        /// Why.
        source: FormatError,
    },
    /// Mirrors failed, and then the registry itself did.
    #[error("{origin} (before that, {})", .mirrors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    AllFailed {
        /// The registry's own answer.
        origin: Box<RegistryError>,
        /// The mirrors', in order.
        mirrors: Vec<RegistryError>,
    },
}

/// A host that is asked for nothing: it has no address on the internet (or none at all), and the operator does not list
/// it. Says nothing of what is there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{host} has no public address, and is not among the operator's private_registries")]
pub struct NotAllowed {
    /// The host, with its port if the URL has one.
    pub host: String,
}

impl From<UnsupportedPlatform> for RegistryError {
    fn from(error: UnsupportedPlatform) -> RegistryError {
        RegistryError::UnsupportedPlatform { wanted: error.wanted, available: error.available }
    }
}

fn because(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl RegistryError {
    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            RegistryError::RateLimited { .. }
            | RegistryError::Unreachable { .. }
            | RegistryError::Interrupted { .. }
            | RegistryError::DigestMismatch { .. } => true,
            RegistryError::NotAllowed { by_name, .. } => *by_name,
            RegistryError::Status { status, .. } => *status >= 500 || *status == 408,
            RegistryError::AllFailed { origin, mirrors } => {
                origin.is_retryable() || mirrors.iter().any(RegistryError::is_retryable)
            }
            RegistryError::Setup(_)
            | RegistryError::Unauthorized { .. }
            | RegistryError::NotFound { .. }
            | RegistryError::Protocol { .. }
            | RegistryError::Redirect { .. }
            | RegistryError::SizeMismatch { .. }
            | RegistryError::UnsupportedPlatform { .. }
            | RegistryError::Format { .. } => false,
        }
    }

    /// The error that decides: the registry's own, where mirrors failed before it.
    pub fn decisive(&self) -> &RegistryError {
        match self {
            // A registry that cannot be reached says nothing; then the last mirror's answer is the best one there is.
            RegistryError::AllFailed { origin, mirrors } => match (origin.decisive(), mirrors.last()) {
                (RegistryError::Unreachable { .. } | RegistryError::NotAllowed { .. }, Some(mirror)) => {
                    mirror.decisive()
                }
                (origin, _) => origin,
            },
            other => other,
        }
    }

    /// Whether credentials are wrong or missing.
    pub fn is_unauthorized(&self) -> bool {
        matches!(self.decisive(), RegistryError::Unauthorized { .. })
    }

    /// Whether the image, or a part of it, does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self.decisive(), RegistryError::NotFound { .. })
    }
}
