//! Errors of the object store.

use std::io;
use std::path::Path;

use crate::ObjectName;

/// Errors of the store. `Display` never repeats its source, and no secret is in either.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No object has this name.
    #[error("the object store has no object {name}")]
    NotFound {
        /// The name.
        name: ObjectName,
    },
    /// The name is taken by an object of another length.
    #[error(
        "object {name} exists with {stored} bytes and is not replaced by one with {offered}: two contents have one name, or \
         the stored object is damaged"
    )]
    Exists {
        /// The name.
        name: ObjectName,
        /// Bytes of the stored object.
        stored: u64,
        /// Bytes of the refused one.
        offered: u64,
    },
    /// The store does not answer, or answers that it cannot now: 5xx, timeouts, refused and broken connections. All retries
    /// failed. A later call can succeed.
    #[error(
        "the object store is unavailable ({what}): try again later; if it lasts, check the store and the way to it"
    )]
    Unavailable {
        /// The last failure.
        what: String,
    },
    /// The store refuses the credentials or what they ask for. A retry does not help.
    #[error("the object store refuses the request ({what}): check {setting}")]
    Denied {
        /// The refusal.
        what: String,
        /// The setting that is most probably wrong.
        setting: &'static str,
    },
    /// An object has another length than it should have. The caller, or an operator, decides what to do with it.
    #[error("object {name} is damaged: {what}")]
    Damaged {
        /// The name.
        name: ObjectName,
        /// The difference.
        what: String,
    },
    /// An object is longer than the caller takes.
    #[error("object {name} has {bytes} bytes, more than the {limit} that are read at once")]
    TooLong {
        /// The name.
        name: ObjectName,
        /// Its length.
        bytes: u64,
        /// The caller's limit.
        limit: u64,
    },
    /// The request or a setting contradicts a rule. A retry does not help.
    #[error("{0}")]
    Invalid(String),
    /// The store has no space left.
    #[error("the object store is full ({what}): free space, or enlarge the store, then try again")]
    Full {
        /// What could not be stored.
        what: String,
    },
    /// The system reported an error of a file on this host.
    #[error("{what}")]
    Io {
        /// The operation, with the path.
        what: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// The call was stopped by its [`Stop`](crate::Stop).
    #[error("stopped")]
    Stopped,
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the same call can succeed later without a change of settings or data.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Error::Unavailable { .. } | Error::Full { .. })
    }

    /// Whether a request is worth repeating at once, within one call.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Error::Unavailable { .. })
    }

    /// The same error for another caller of one download.
    pub(crate) fn again(&self) -> Error {
        match self {
            Error::NotFound { name } => Error::NotFound { name: name.clone() },
            Error::Exists { name, stored, offered } => {
                Error::Exists { name: name.clone(), stored: *stored, offered: *offered }
            }
            Error::Unavailable { what } => Error::Unavailable { what: what.clone() },
            Error::Denied { what, setting } => Error::Denied { what: what.clone(), setting },
            Error::Damaged { name, what } => Error::Damaged { name: name.clone(), what: what.clone() },
            Error::TooLong { name, bytes, limit } => {
                Error::TooLong { name: name.clone(), bytes: *bytes, limit: *limit }
            }
            Error::Invalid(what) => Error::Invalid(what.clone()),
            Error::Full { what } => Error::Full { what: what.clone() },
            Error::Io { what, source } => {
                Error::Io { what: what.clone(), source: io::Error::new(source.kind(), source.to_string()) }
            }
            Error::Stopped => Error::Stopped,
        }
    }

    pub(crate) fn unavailable(what: impl Into<String>) -> Error {
        Error::Unavailable { what: what.into() }
    }

    pub(crate) fn damaged(name: &ObjectName, what: impl Into<String>) -> Error {
        Error::Damaged { name: name.clone(), what: what.into() }
    }

    pub(crate) fn not_found(name: &ObjectName) -> Error {
        Error::NotFound { name: name.clone() }
    }

    /// Of a file on this host: what was done to which file.
    pub(crate) fn io(what: &str, path: &Path, source: io::Error) -> Error {
        let what = format!("{what} {}", path.display());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Error::Full { what: format!("{what}: {source}") }
            }
            _ => Error::Io { what, source },
        }
    }
}

/// For `map_err`: what was done to which file.
pub(crate) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::io(what, path, source)
}
