//! Faults in the form of an image's documents.

use crate::digest::Digest;

/// Why a document of an image cannot be used. None of these goes away by trying again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It is not JSON, or not of the right shape.
    #[error("the {what} is malformed: {reason}")]
    Json {
        /// `image config`, `image manifest`, `image index`.
        what: &'static str,
        /// The parser's words.
        reason: String,
    },
    /// Docker's manifest schema 1.
    #[error("the image uses Docker's manifest schema 1, which is not supported; push it again with a current Docker")]
    Schema1,
    /// A document of another kind: an artifact, a Helm chart, …
    #[error("\"{media_type}\" is not an image this program can read")]
    UnsupportedMediaType {
        /// Its media type.
        media_type: String,
    },
    /// A layer in a form that is not tar, tar+gzip or tar+zstd.
    #[error("layer {digest} has the unsupported media type \"{media_type}\"")]
    UnsupportedLayer {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// Manifest and config disagree about the number of layers.
    #[error("the manifest has {layers} layers, the config has {diff_ids} diff ids")]
    LayerCount {
        /// Layers in the manifest.
        layers: usize,
        /// Entries in the config.
        diff_ids: usize,
    },
    /// More layers than allowed.
    #[error("the image has {layers} layers, the limit is {limit}")]
    TooManyLayers {
        /// Layers in the manifest.
        layers: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// Indexes inside indexes, too deep.
    #[error("the image index refers to further indexes more than {0} deep")]
    NestedTooDeep(usize),
    /// A document larger than [`MAX_DOCUMENT`](crate::manifest::MAX_DOCUMENT).
    #[error("the {what} has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
}
