//! Argument and answer types of file operations. Contents travel as streams in both directions: no file is ever whole in this
//! process, unless a client asks for it in JSON.

use bytes::Bytes;
use futures::stream::BoxStream;
use nullspace_api::FileInfo;

use crate::{Error, Result};

/// The bytes of a download. Nothing follows an error.
pub type FileContent = BoxStream<'static, Result<Bytes>>;

/// A file operation's path and user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileAt {
    /// Path in the sandbox. A relative path starts at its working directory. When a user is named and the sandbox was not
    /// created with a working directory of its own, it starts at that user's home.
    pub path: String,
    /// The user. `None`: the sandbox's default user.
    pub user: Option<String>,
}

/// A file to download.
pub struct FileDownload {
    /// Its metadata. If the file grows meanwhile, its content is longer than this says.
    pub info: FileInfo,
    /// Its content.
    pub content: FileContent,
}

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FilePart {
    /// From a position on.
    From {
        /// Bytes before it.
        start: u64,
        /// Most bytes; `None`: to the file's end.
        length: Option<u64>,
    },
    /// The end of the file.
    Last {
        /// Most bytes.
        length: u64,
    },
}

/// What of a file a [`PartDownload`] has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// A part: exactly `length` bytes, or the content ends with an error.
    Part {
        /// Bytes before it.
        start: u64,
        /// Its bytes, at least 1.
        length: u64,
    },
    /// Nothing: the part is outside the file.
    Nothing,
    /// The whole file: the sandbox's agent is older and reads no parts.
    Whole,
}

/// A part of a file to download.
pub struct PartDownload {
    /// The file's metadata, with the size in which the part was looked for.
    pub info: FileInfo,
    /// What the content is.
    pub extent: Extent,
    /// The content.
    pub content: FileContent,
}

/// The levels of a directory listing: 1 is the directory's own entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth(u32);

impl Depth {
    /// The deepest listing.
    pub const MAX: u32 = 32;

    /// The number of levels, 1 to [`Depth::MAX`].
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Depth {
    type Error = Error;

    fn try_from(depth: u32) -> Result<Self> {
        if !(1..=Self::MAX).contains(&depth) {
            return Err(Error::invalid(format!("depth is {depth}: it must be 1 to {}", Self::MAX)));
        }
        Ok(Self(depth))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_depth_is_1_to_32() {
        for (depth, fits) in [(0, false), (1, true), (32, true), (33, false), (u32::MAX, false)] {
            assert_eq!(Depth::try_from(depth).map(Depth::get).ok(), fits.then_some(depth));
        }
    }
}
