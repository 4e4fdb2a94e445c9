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
    /// Path in the sandbox. A relative path starts at its working directory.
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
