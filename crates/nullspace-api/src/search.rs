//! Searching in many files of a sandbox, replacing in them, and writing many.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::FileInfo;

/// Find lines in files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FindInFilesRequest {
    /// A directory, whose files are searched with those of its directories, or one file. Paths are those of
    /// [`PathRequest`](crate::PathRequest). Symbolic links below it are not followed.
    pub path: String,
    /// Regular expression, for one line at a time, at most 4096 bytes: the syntax of the crate `regex`, without `\p{…}`. A
    /// text without special characters is found as it is.
    pub pattern: String,
    /// User for the operation. Default: the sandbox's default user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// A line that matches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SearchMatch {
    /// Absolute path of the file.
    pub file: String,
    /// Number of the line, from 1.
    pub line: u64,
    /// The line without its end. Of a line above 4 KiB, 4 KiB around the match.
    pub content: String,
}

/// Find entries by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SearchFilesRequest {
    /// The directory below which to look, as in [`PathRequest`](crate::PathRequest).
    pub path: String,
    /// Glob with `*`, `?`, `[…]`, `{a,b}`. It is matched with the last part of a path, or, when it has a `/`, with the path
    /// below the directory; `**` then also matches slashes.
    pub pattern: String,
    /// As in [`FindInFilesRequest`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Replace in files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplaceInFilesRequest {
    /// The files, at most 1000, links followed.
    pub files: Vec<String>,
    /// Regular expression, as in [`FindInFilesRequest`], for the whole text of a file.
    pub pattern: String,
    /// Text for each match, as it is: `$1` has no meaning.
    pub replacement: String,
    /// As in [`FindInFilesRequest`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Only count what would be replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
}

/// Result of a replacement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplaceResult {
    /// Matches that were replaced.
    pub replacements: u64,
    /// Files that were changed.
    pub files_modified: u64,
    /// Files in which nothing could be replaced; binary ones are counted apart.
    pub files_skipped: u64,
    /// Binary files, which are never changed: with a NUL byte among their first 8 KiB.
    pub binary_files_skipped: u64,
    /// True: nothing was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<bool>,
    /// The files of `files_skipped`, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Vec<SkippedFile>>,
}

/// A file in which nothing could be replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SkippedFile {
    /// The path of the request.
    pub path: String,
    /// The reason.
    pub error: String,
}

/// The field `manifest` of a batch of files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchManifest {
    /// The files, at most 1000.
    pub files: Vec<BatchFile>,
    /// User for all of them. Default: the sandbox's default user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// One file of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchFile {
    /// Path in the sandbox.
    pub path: String,
    /// The form's field with its content.
    pub field: String,
}

/// Results of a batch, in the order of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchWriteResponse {
    /// One for each file.
    pub results: Vec<BatchWriteEntry>,
}

/// Result of one file of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
#[allow(clippy::large_enum_variant, reason = "a list of a request's files, most of which are written")]
pub enum BatchWriteEntry {
    /// It was not written.
    Error(BatchWriteErrorEntry),
    /// It is written.
    Success(BatchWriteSuccessEntry),
}

/// A file that was not written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchWriteErrorEntry {
    /// `error`.
    pub status: BatchWriteErrorEntryStatus,
    /// The path of the request.
    pub path: String,
    /// The reason.
    pub error: String,
}

/// Marks a file that was not written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BatchWriteErrorEntryStatus {
    /// It was not written.
    #[default]
    Error,
}

/// A file that is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchWriteSuccessEntry {
    /// `success`.
    pub status: BatchWriteSuccessEntryStatus,
    /// The path of the request.
    pub path: String,
    /// The file as it is now.
    pub info: FileInfo,
}

/// Marks a file that is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BatchWriteSuccessEntryStatus {
    /// It is written.
    #[default]
    Success,
}
