//! Errors of the chunk store.

use std::io;
use std::path::Path;

use crate::ManifestId;

/// Why the store did not do what was asked. `Display` never repeats its source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An image cannot be read whole: a file of the store was damaged or removed by something else.
    #[error(
        "stored image {manifest} is damaged ({what}): restore the store's files from a backup, or make the image again, \
         which stores what is lost anew"
    )]
    Damaged {
        /// Which image.
        manifest: ManifestId,
        /// What of it.
        what: String,
    },
    /// No such image is stored.
    #[error("no image {0} is stored")]
    Unknown(ManifestId),
    /// What was to be stored contradicts itself or its parent.
    #[error("an image cannot be stored: {what}")]
    Invalid {
        /// The contradiction.
        what: String,
    },
    /// Whoever asked wants it no more.
    #[error("stopped")]
    Stopped,
    /// Another collection or check has the store.
    #[error("another collection or check of the store is running: try again when it is over")]
    Busy,
    /// The system refused.
    #[error("{what}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

/// Short form used throughout the crate.
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
