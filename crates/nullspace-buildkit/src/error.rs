//! Errors of a build.

use crate::failure::Failure;

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// BuildKit is unreachable, closed the connection, or broke the protocol. Another BuildKit or a retry may succeed.
    #[error("BuildKit at {endpoint} {what}")]
    Unavailable {
        /// Which one.
        endpoint: String,
        /// How: a sentence's second half.
        what: String,
    },
    /// BuildKit has built the image, but its export failed. The cause is BuildKit's host, for example a full disk; neither
    /// the build nor the connection is at fault.
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
    /// An operation on a file of this host failed.
    #[error("{what}: {source}")]
    Io {
        /// The operation.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The call was cancelled.
    #[error("the build was given up")]
    Cancelled,
}
