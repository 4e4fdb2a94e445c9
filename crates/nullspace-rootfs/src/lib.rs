//! Writes layers or a tar into an ext4 image. Joins `nullspace-oci`, which has no filesystem, and `nullspace-ext4`, which has
//! no images.
//!
//! ```text
//!   reader's thread (nullspace-oci)                   writer's thread (nullspace-ext4)
//!     decompress, hash, merge ──bounded channel──>      blocks of file contents, as they come
//!     merged tree ───────────────────────────────>      directories, inodes, journal: the image
//! ```
//!
//! [`begin`] gives the two ends: a [`Sink`] for any import of `nullspace-oci`, and a [`Writing`], which takes the tree that
//! the import returns. Names from an image exist only in the two trees in memory; what is opened on this host is one file.
//!
//! Memory is bounded by the channel (at most 16 MiB), the reader's own bounds, and the trees.

#![warn(clippy::cast_possible_truncation)]

mod sink;
mod writing;

pub use sink::{Content, Sink};
pub use writing::{Writing, Written, begin};

/// Errors of writing an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filesystem cannot hold something, or its file failed.
    #[error("{source}")]
    Ext4 {
        /// The entry that cannot be held, where one is to blame: `usr/bin/x`, lossy.
        path: Option<String>,
        /// Why.
        source: nullspace_ext4::Error,
    },
    /// The writer's thread could not be started.
    #[error("start the image's writer: {0}")]
    Thread(#[source] std::io::Error),
    /// The writer's thread died.
    #[error("the image's writer died")]
    Died,
    /// The tree is not the one that the sink's contents belong to.
    #[error("the tree names a content that does not exist or is already in use")]
    ForeignTree,
}

impl From<nullspace_ext4::Error> for Error {
    fn from(source: nullspace_ext4::Error) -> Error {
        Error::Ext4 { path: None, source }
    }
}
