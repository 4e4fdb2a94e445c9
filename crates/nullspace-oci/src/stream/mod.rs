//! From a layer's blob to its tar, checked on the way.
//!
//! ```text
//!  blob ─▶ Decoder (magic bytes checked; gzip, zstd or plain) ─▶ Pump (a thread of its own) ─▶ Tally ─▶ tar reader
//!                                                                                   hash = diff id, limits
//! ```
//!
//! Everything travels as `std::io`; what went wrong travels inside the [`std::io::Error`] as a [`StreamError`].

mod decode;
mod pump;
mod tally;

pub use decode::Decoder;
pub(crate) use pump::pump;
pub use tally::{StreamLimits, Tally};

use std::io;

use crate::digest::Digest;
use crate::manifest::Compression;
use crate::registry::RegistryError;

/// Why a layer's bytes are no good.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The blob's first bytes are not those of the compression its media type names.
    #[error("the layer is declared with compression {declared}, but its bytes are {found}")]
    WrongCompression {
        /// What the media type says.
        declared: Compression,
        /// What the bytes look like.
        found: &'static str,
    },
    /// The compressed data is malformed.
    #[error("the layer's {compression} data is corrupt: {reason}")]
    Corrupt {
        /// Its compression.
        compression: Compression,
        /// The decompressor's words.
        reason: String,
    },
    /// The compressed data ends too early.
    #[error("the layer's {compression} data is truncated")]
    Truncated {
        /// Its compression.
        compression: Compression,
    },
    /// The uncompressed tar is not what the image config says.
    #[error("the layer's content has diff id {actual}, the image config says {expected}")]
    DiffIdMismatch {
        /// From the config.
        expected: Digest,
        /// What was unpacked.
        actual: Digest,
    },
    /// The blob is not what its digest says. (From a registry, that is a [`RegistryError`].)
    #[error("the layer's blob has digest {actual}, expected {expected}")]
    BlobMismatch {
        /// The digest asked for.
        expected: Digest,
        /// The digest of what was read.
        actual: Digest,
    },
    /// All layers together unpack to more than allowed.
    #[error("the image unpacks to more than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// A layer expands out of all proportion.
    #[error("the layer expands to more than {limit} times its compressed size")]
    Ratio {
        /// The limit.
        limit: u64,
    },
    /// The blob could not be had.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The import was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> io::Error {
        io::Error::other(error)
    }
}

impl StreamError {
    /// The stream error inside an I/O error, or the I/O error itself if it is of another kind.
    pub fn find(error: io::Error) -> Result<StreamError, io::Error> {
        error.downcast::<StreamError>()
    }
}
