//! What the HTTP layer asks of the domain about a sandbox's files and processes; rules as for [`Service`](crate::Service).
//!
//! Contents travel as streams in both directions: no file is ever whole in this process, unless a client asks for it in
//! JSON.

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use nullspace_api::{FileInfo, ProcessLogs};

use crate::budget::Room;
use crate::service::{Caller, ServiceError};

/// Bytes piece by piece. Nothing follows an error.
pub type FileContent = BoxStream<'static, Result<Bytes, ServiceError>>;

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
    /// What it is.
    pub info: FileInfo,
    /// Its content.
    pub content: FileContent,
}

/// Files and processes of sandboxes.
#[async_trait]
pub trait FileService: Send + Sync + 'static {
    /// A regular file's content.
    async fn read_file(&self, caller: &Caller, at: FileAt) -> Result<FileDownload, ServiceError>;

    /// Make or replace a file's content, with the directories above it.
    async fn write_file(&self, caller: &Caller, at: FileAt, content: FileContent) -> Result<FileInfo, ServiceError>;

    /// The entries of a directory, so many levels deep (1 and more). `room` is charged with what they take; when it has no
    /// more, its [`Exhausted`](crate::Exhausted) is the error.
    async fn list_files(
        &self,
        caller: &Caller,
        at: FileAt,
        depth: u32,
        room: &Room,
    ) -> Result<Vec<FileInfo>, ServiceError>;

    /// One entry; a link itself.
    async fn file_info(&self, caller: &Caller, at: FileAt) -> Result<FileInfo, ServiceError>;

    /// Whether there is something.
    async fn file_exists(&self, caller: &Caller, at: FileAt) -> Result<bool, ServiceError>;

    /// Make a directory and those above it; one that exists is fine.
    async fn make_dir(&self, caller: &Caller, at: FileAt) -> Result<(), ServiceError>;

    /// Remove an entry, a directory with all that is in it.
    async fn remove_file(&self, caller: &Caller, at: FileAt) -> Result<(), ServiceError>;

    /// Rename an entry.
    async fn rename_file(&self, caller: &Caller, at: FileAt, to: String) -> Result<FileInfo, ServiceError>;

    /// Set permission bits, given in octal.
    async fn set_file_permissions(&self, caller: &Caller, at: FileAt, permissions: &str) -> Result<(), ServiceError>;

    /// End a process at once.
    async fn kill_process(&self, caller: &Caller, id: &str, pid: u32) -> Result<(), ServiceError>;

    /// What a process in the background has written so far.
    async fn process_logs(&self, caller: &Caller, id: &str, pid: u32) -> Result<ProcessLogs, ServiceError>;
}
