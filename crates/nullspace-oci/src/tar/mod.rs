//! A streaming tar reader for hostile archives.
//!
//! Reads what image builders write: v7, ustar, GNU (long names, old sparse maps, base-256 numbers), PAX (paths, sizes,
//! times to the nanosecond, `SCHILY.xattr.*`, sparse 0.0, 0.1 and 1.0), star. Names are bytes, never text. Where the
//! formats leave room, it reads as Go's `archive/tar` does, because that is what Docker and containerd read images with.
//!
//! ```text
//!  512-byte blocks ─▶ header ─▶ [x: PAX records] [L/K: GNU long name] [S: sparse map] ─▶ Entry
//!                                                                                         │ read_data
//!                                                                                         ▼
//!                                                                               Chunk::Data / Chunk::Hole
//! ```
//!
//! It allocates only what its [`TarLimits`] allow, never seeks, and ends every malformed input in a [`TarError`].
//! It does not interpret names (whiteouts, `..`): that is [`crate::merge`].

mod header;
mod pax;
mod reader;
mod sparse;

pub use reader::TarReader;

/// Bounds on what one entry may make the reader hold in memory.
#[derive(Clone, Copy, Debug)]
pub struct TarLimits {
    /// Largest PAX header or GNU long name record, bytes. Go's limit is 1 MiB too.
    pub extended_header: u64,
    /// Most data segments in a sparse file.
    pub sparse_segments: usize,
    /// Largest value of one extended attribute, bytes (Linux' `XATTR_SIZE_MAX`).
    pub xattr_value: usize,
    /// Largest file, bytes, holes included. ext4 ends at 16 TiB.
    pub file_size: u64,
}

impl Default for TarLimits {
    fn default() -> Self {
        TarLimits {
            extended_header: 1 << 20,
            sparse_segments: 1 << 16,
            xattr_value: 1 << 16,
            file_size: (16 << 40) - (1 << 16),
        }
    }
}

/// Linux' `XATTR_NAME_MAX`.
const MAX_XATTR_NAME: usize = 255;

/// Errors of an archive, with their position. Offsets are bytes into the uncompressed archive.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The source failed: the network, the decompressor, a limit or a digest above this reader.
    #[error("read the archive: {0}")]
    Read(#[source] std::io::Error),
    /// The archive ends in the middle of an entry.
    #[error("the archive is truncated at byte {offset}")]
    Truncated {
        /// Where it ended.
        offset: u64,
    },
    /// A block that should be a header is none.
    #[error("no valid tar header at byte {offset}: {reason}")]
    Header {
        /// Where the block starts.
        offset: u64,
        /// Which field is wrong.
        reason: &'static str,
    },
    /// A PAX extended header is malformed.
    #[error("malformed PAX header at byte {offset}: {reason}")]
    Pax {
        /// Where the header block of the record starts.
        offset: u64,
        /// The fault.
        reason: &'static str,
    },
    /// A sparse map is malformed.
    #[error("malformed sparse map of \"{path}\": {reason}")]
    Sparse {
        /// The file.
        path: String,
        /// The fault.
        reason: &'static str,
    },
    /// A limit of [`TarLimits`] is exceeded.
    #[error("{what} at byte {offset} is {size}, the limit is {limit}")]
    TooLarge {
        /// The thing that is too large.
        what: &'static str,
        /// Where the entry's header starts.
        offset: u64,
        /// How large it is.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// An entry of a type that no file system has (multi-volume continuation, directory dump, …).
    #[error("\"{path}\" has the unsupported tar entry type {flag:?}")]
    UnsupportedType {
        /// The entry.
        path: String,
        /// Its type flag.
        flag: char,
    },
}

/// Seconds and nanoseconds since the epoch; before 1970 the seconds are negative and the nanoseconds still count forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// 0..1_000_000_000.
    pub nanos: u32,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; the target is [`Entry::link`].
    Symlink,
    /// A hard link; the target is [`Entry::link`].
    HardLink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket (no tar type of its own; some writers store one as GNU `A`-style vendor type `s`).
    Socket,
}

/// One entry's header, after all extended headers have been applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its kind.
    pub kind: EntryKind,
    /// The name as stored.
    pub path: Vec<u8>,
    /// Target of a symlink or hard link, as stored.
    pub link: Vec<u8>,
    /// Length in bytes with holes; 0 for everything but files.
    pub size: u64,
    /// Permission bits with set-uid, set-gid and sticky (`07777`).
    pub mode: u16,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Extended attributes, sorted by name, each name once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A piece of a file's content, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chunk<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// This many zero bytes that the archive does not store.
    Hole(u64),
}

/// A name from an archive for an error message: lossy, control characters escaped, bounded.
pub(crate) fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path.get(..512).unwrap_or(path));
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect()
}
