//! Errors and limits of a layer's content.

use crate::tar::{TarError, TarLimits};

use super::sink::SinkError;

/// Bounds on what an image may unpack to.
#[derive(Clone, Copy, Debug)]
pub struct MergeLimits {
    /// Bounds inside one archive entry.
    pub tar: TarLimits,
    /// Most entries and implied directories, over all layers.
    pub entries: u64,
    /// Longest file name, bytes (`NAME_MAX`).
    pub name: usize,
    /// Longest path, bytes (`PATH_MAX`).
    pub path: usize,
    /// Longest symlink target, bytes (`PATH_MAX` with its NUL).
    pub symlink: usize,
    /// Bytes of names, link targets and extended attributes held in memory, over all layers.
    pub metadata: u64,
}

impl Default for MergeLimits {
    fn default() -> Self {
        MergeLimits {
            tar: TarLimits::default(),
            entries: 2_000_000,
            name: 255,
            path: 4096,
            symlink: 4095,
            metadata: 256 << 20,
        }
    }
}

/// Why a layer could not be merged. Paths are shown lossily and cut to a sane length.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The archive is malformed, or its source failed.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A device, fifo or socket.
    #[error("\"{path}\" is a {entry_type}, which a template cannot contain")]
    UnsupportedSpecialFile {
        /// The entry, without a leading slash: `run/fifo`.
        path: String,
        /// `fifo`, `socket`, `block_device`, `character_device`.
        entry_type: &'static str,
    },
    /// A path with `..`, a NUL, a whiteout of nothing, or a root that is no directory.
    #[error("the entry \"{path}\" is not allowed: {reason}")]
    InvalidPath {
        /// The name as stored.
        path: String,
        /// The rule it breaks.
        reason: &'static str,
    },
    /// An entry below something that the same layer made a file.
    #[error("\"{path}\" lies below something that is not a directory")]
    NotADirectory {
        /// The entry.
        path: String,
    },
    /// Symlinks in an entry's path lead in a circle, or are too many.
    #[error("too many symbolic links in the path \"{path}\"")]
    SymlinkLoop {
        /// The entry.
        path: String,
    },
    /// A hard link to something that no layer has (any more).
    #[error("\"{path}\" is a hard link to \"{target}\", which does not exist")]
    HardLinkTargetMissing {
        /// The link.
        path: String,
        /// The target of the link.
        target: String,
    },
    /// A hard link to a directory.
    #[error("\"{path}\" is a hard link to \"{target}\", which is a directory")]
    HardLinkToDirectory {
        /// The link.
        path: String,
        /// The target of the link.
        target: String,
    },
    /// A limit of [`MergeLimits`] is exceeded.
    #[error("{what} exceeds the limit of {limit}{}", at.as_ref().map(|at| format!(" at \"{at}\"")).unwrap_or_default())]
    Limit {
        /// The limited thing.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// The entry, where one is to blame.
        at: Option<String>,
    },
    /// The second reading of a layer did not have what the first had.
    #[error("the layer changed between two readings")]
    Changed,
    /// The sink could not take content.
    #[error("store the content of \"{path}\"")]
    Sink {
        /// The file.
        path: String,
        /// Why.
        source: SinkError,
    },
}
