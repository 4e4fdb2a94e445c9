//! Files of sandboxes. Contents travel as streams in both directions: no file is ever whole in this process, unless a
//! client asks for it in JSON.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use nullspace_api::FileInfo;

use crate::{ByteStream, Caller, Memory, Result};

/// A file's bytes on their way out. Nothing follows an error.
pub type FileContent = BoxStream<'static, Result<Bytes>>;

/// Where a file operation works, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileAt {
    /// The sandbox.
    pub sandbox_id: String,
    /// Path in it; a relative one starts at its working directory.
    pub path: String,
    /// `None`: the sandbox's default user.
    pub user: Option<String>,
}

/// A file on its way out.
pub struct FileDownload {
    /// What it is. A file that grows meanwhile is longer in the end.
    pub info: FileInfo,
    /// Its content.
    pub content: FileContent,
}

/// Files of sandboxes.
#[async_trait]
pub trait Files: Send + Sync + 'static {
    /// Opens a regular file for reading.
    async fn read_file(&self, caller: &Caller, at: FileAt) -> Result<FileDownload>;

    /// Makes or replaces a file's content, with the directories above it. When the content breaks off, the file stays as far
    /// as it has come.
    async fn write_file(&self, caller: &Caller, at: FileAt, content: ByteStream) -> Result<FileInfo>;

    /// The entries of a directory, so many levels deep, 1 to 32. `memory` is charged with what they take; when there is no
    /// more, its [`Exhausted`](crate::Exhausted) is the error.
    async fn list_files(&self, caller: &Caller, at: FileAt, depth: u32, memory: &dyn Memory) -> Result<Vec<FileInfo>>;

    /// One entry; a link itself.
    async fn file_info(&self, caller: &Caller, at: FileAt) -> Result<FileInfo>;

    /// Whether there is something at the path.
    async fn file_exists(&self, caller: &Caller, at: FileAt) -> Result<bool>;

    /// Makes a directory and those above it that are missing.
    async fn make_dir(&self, caller: &Caller, at: FileAt) -> Result<()>;

    /// Removes an entry, a directory with all that is in it.
    async fn remove_file(&self, caller: &Caller, at: FileAt) -> Result<()>;

    /// Renames an entry.
    async fn rename_file(&self, caller: &Caller, at: FileAt, to: String) -> Result<FileInfo>;

    /// Sets permission bits, given in octal.
    async fn set_file_permissions(&self, caller: &Caller, at: FileAt, permissions: &str) -> Result<()>;
}
