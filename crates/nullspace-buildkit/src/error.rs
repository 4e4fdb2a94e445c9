//! Errors of a build.

use crate::failure::Failure;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// BuildKit cannot be reached, went away, or does not speak as it should. Another one, or a later try, may do.
    #[error("BuildKit at {endpoint} {what}")]
    Unavailable {
        /// Which one.
        endpoint: String,
        /// How: a sentence's second half.
        what: String,
    },
    /// BuildKit has built the image, and what should hand it over answers with an error. Neither the build nor the way to
    /// BuildKit is at fault: its host is, for lack of room, say.
    #[error("BuildKit at {endpoint} built the image and {what}")]
    NotExported {
        /// Which one.
        endpoint: String,
        /// A sentence's second half, with its words. They are the host's, and not for users.
        what: String,
    },
    /// BuildKit did its work and the build failed.
    #[error("{0}")]
    Failed(Failure),
    /// The image's archive is larger than the caller allows.
    #[error("the image's archive has more than {limit} bytes")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// A file on this host.
    #[error("{what}: {source}")]
    Io {
        /// What was done with it.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The caller gave up.
    #[error("the build was given up")]
    Cancelled,
}
