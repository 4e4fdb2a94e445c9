//! Files of a sandbox.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Time;

/// One entry of a sandbox's filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileInfo {
    /// Last part of its path.
    pub name: String,
    /// Absolute path.
    pub path: String,
    /// True for directories.
    pub is_dir: bool,
    /// Bytes.
    pub size: u64,
    /// `file`, `dir`, `symlink` or `other`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Permission bits in octal: `0644`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// As `ls -l` shows them: `-rw-r--r--`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permissions: Option<String>,
    /// Owner's name, or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Group's name, or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// When its content last changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modified_time: Option<Time>,
    /// Target of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub symlink_target: Option<String>,
}

/// A file, a directory, or what is to become one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PathRequest {
    /// Path in the sandbox. A relative one starts at the sandbox's working directory. With `user` it starts at that user's
    /// home, unless the sandbox was created with a `cwd` of its own.
    pub path: String,
    /// User for the operation. Default: the sandbox's default user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Read a file into the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadFileRequest {
    /// As in [`PathRequest`].
    pub path: String,
    /// Encoding of the content in the answer. Default `utf8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<ReadFileRequestEncoding>,
    /// As in [`PathRequest`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Encoding of a file's content in a JSON answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadFileRequestEncoding {
    /// RFC 4648, with padding.
    Base64,
    /// As it is; what is not UTF-8 becomes U+FFFD.
    #[default]
    Utf8,
}

/// A file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadFileResponse {
    /// The content.
    pub content: String,
    /// `utf8` or `base64`.
    pub encoding: String,
    /// Bytes of the file.
    pub size: u64,
}

/// Write a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WriteFileRequest {
    /// As in [`PathRequest`]. Missing directories above it are made.
    pub path: String,
    /// The content.
    pub content: String,
    /// Encoding of `content`. Default `utf8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<WriteFileRequestEncoding>,
    /// As in [`PathRequest`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Encoding of a file's content in a JSON request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WriteFileRequestEncoding {
    /// RFC 4648, with padding.
    Base64,
    /// As it is.
    #[default]
    Utf8,
}

/// Rename a file or directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RenameRequest {
    /// As in [`PathRequest`].
    pub old_path: String,
    /// Its new path. A file that is there is replaced.
    pub new_path: String,
    /// As in [`PathRequest`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Set permission bits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetPermissionsRequest {
    /// As in [`PathRequest`].
    pub path: String,
    /// Octal, at most `7777`: `0644`.
    pub permissions: String,
    /// As in [`PathRequest`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Whether a path exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileExistsResponse200 {
    /// True when there is something, also a link that leads nowhere.
    pub exists: bool,
}
