//! Files of a running sandbox, one at a time.

use std::sync::Arc;

use async_trait::async_trait;
use nullspace_api::FileInfo;

use crate::{ByteStream, Depth, FileAt, FileDownload, FilePart, Memory, PartDownload, Result};

/// Files of a running sandbox, one at a time.
#[async_trait]
pub trait LiveFiles: Send + Sync + 'static {
    /// Opens a regular file for reading.
    async fn read_file(self: Arc<Self>, at: FileAt) -> Result<FileDownload>;

    /// Opens a part of a regular file for reading.
    async fn read_file_part(self: Arc<Self>, at: FileAt, part: FilePart) -> Result<PartDownload>;

    /// Creates a file or replaces its content, and makes missing directories above it. An existing file keeps its mode, and its
    /// owner unless `at` names a user. When the content breaks off, the file keeps the part that has arrived.
    async fn write_file(&self, at: FileAt, content: ByteStream) -> Result<FileInfo>;

    /// Returns the entries of a directory, `depth` levels deep. They are charged to `memory`. When the memory limit is
    /// reached, its [`Exhausted`](crate::Exhausted) is the error.
    async fn list_files(&self, at: FileAt, depth: Depth, memory: &dyn Memory) -> Result<Vec<FileInfo>>;

    /// Returns one entry. A link is not followed.
    async fn file_info(&self, at: FileAt) -> Result<FileInfo>;

    /// Whether the path exists.
    async fn file_exists(&self, at: FileAt) -> Result<bool>;

    /// Makes a directory and missing directories above it.
    async fn make_dir(&self, at: FileAt) -> Result<()>;

    /// Removes an entry. A directory is removed with its contents.
    async fn remove_file(&self, at: FileAt) -> Result<()>;

    /// Renames an entry.
    async fn rename_file(&self, at: FileAt, to: String) -> Result<FileInfo>;

    /// Sets permission bits, given in octal.
    async fn set_file_permissions(&self, at: FileAt, permissions: &str) -> Result<()>;
}
