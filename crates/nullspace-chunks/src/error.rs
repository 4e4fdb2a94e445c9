//! Errors of the chunk store.

use std::io;
use std::path::Path;

use crate::ManifestId;

/// Errors of the store. `Display` never repeats its source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An image is incomplete: another program has damaged or removed a file of the store.
    #[error(
        "stored image {manifest} is damaged ({what}): restore the store's files from a backup, or make the image again, \
         which stores what is lost anew"
    )]
    Damaged {
        /// The image.
        manifest: ManifestId,
        /// The damaged part.
        what: String,
    },
    /// No such image is stored.
    #[error("no image {0} is stored")]
    Unknown(ManifestId),
    /// The data to store contradicts itself or its parent.
    #[error("an image cannot be stored: {what}")]
    Invalid {
        /// The contradiction.
        what: String,
    },
    /// The call was stopped by its [`Stop`](crate::Stop).
    #[error("stopped")]
    Stopped,
    /// Another collection or check uses the store.
    #[error("another collection or check of the store is running: try again when it is over")]
    Busy,
    /// The system reported an error.
    #[error("{what}")]
    Io {
        /// The operation, with the path.
        what: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn invalid(what: impl Into<String>) -> Error {
        Error::Invalid { what: what.into() }
    }
}

/// For `map_err`: what was done to which file.
pub(crate) fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { what: format!("{what} {}", path.display()), source }
}
