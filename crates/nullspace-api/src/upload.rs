//! Large uploads to a sandbox, in parts that can be sent again.
//!
//! ```text
//!   POST   …/uploads                    how large, to where, what becomes of what is there      part_size, part_count
//!   PUT    …/uploads/{id}/parts/{n}     the bytes of part n, from 0; in any order, several at once
//!   GET    …/uploads/{id}               next_part: the first that is missing
//!   POST   …/uploads/{id}/complete      checked and published
//!   DELETE …/uploads/{id}               given up
//! ```

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{JsonObject, Time};

/// What is uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UploadKind {
    /// A directory as a tar archive: its entries go below the target.
    DirectoryTar,
    /// One file.
    File,
}

/// Where the client has it from. The service makes no difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UploadSourceKind {
    /// An archive that the client made of a directory.
    DirectoryArchive,
    /// A file that can be read again.
    RestartableFile,
    /// A stream that the client keeps.
    SpooledStream,
}

/// What becomes of an existing target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UploadConflictPolicy {
    /// The upload is refused.
    Error,
    /// A file is overwritten; a directory gets the archive's entries beside its own.
    Merge,
    /// A file is overwritten; a directory is exchanged.
    Replace,
}

/// Format of a directory's archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UploadArchiveFormat {
    /// tar: ustar, pax or GNU, not compressed.
    Tar,
}

/// Checksum of parts and of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UploadChecksumAlgorithm {
    /// SHA-256.
    Sha256,
}

/// Status of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum UploadSessionStatus {
    /// It was given up.
    Aborted,
    /// It was published.
    Completed,
    /// It is being published.
    Completing,
    /// No part was taken.
    Created,
    /// It was not completed in time.
    Expired,
    /// It cannot be completed. This service does not use it: a failed completion may be tried again.
    Failed,
    /// All parts were taken.
    Staged,
    /// Some parts were taken.
    Uploading,
}

/// Limits of uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UploadLimits {
    /// Most bytes of an upload.
    pub max_upload_bytes: u64,
    /// Most bytes of a part.
    pub max_part_bytes: u64,
    /// Parts that a client should send at a time.
    pub max_concurrency: u32,
    /// Most bytes of all uploads of a sandbox that are not ended.
    pub sandbox_staging_quota_bytes: u64,
}

/// An upload.
///
/// Published clients reject any other field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UploadSessionInfo {
    /// `up_…`
    pub upload_id: String,
    /// What is uploaded.
    pub kind: UploadKind,
    /// Where the client has it from.
    pub source_kind: UploadSourceKind,
    /// Absolute path in the sandbox.
    pub target_path: String,
    /// Bytes of the whole.
    pub content_length: u64,
    /// Bytes of the parts that were taken.
    pub accepted_bytes: u64,
    /// Bytes of the sandbox's disk that are reserved for it.
    pub reserved_staging_bytes: u64,
    /// Bytes of a part. The last one is shorter.
    pub part_size: u64,
    /// Number of parts.
    pub part_count: u32,
    /// Parts that a client should send at a time.
    pub max_concurrency: u32,
    /// Status.
    pub status: UploadSessionStatus,
    /// What becomes of an existing target.
    pub conflict: UploadConflictPolicy,
    /// Checksum of parts and of the whole.
    pub checksum_algorithm: UploadChecksumAlgorithm,
    /// Limits.
    pub limits: UploadLimits,
    /// Time of its beginning.
    pub created_at: Time,
    /// Time of its last change.
    pub updated_at: Time,
    /// Time at which it expires.
    pub expires_at: Time,
    /// The user who was named for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The first part that is missing. Absent when none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_part: Option<u32>,
    /// Format of a directory's archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive_format: Option<UploadArchiveFormat>,
    /// SHA-256 of the whole, as it was announced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole_checksum_sha256: Option<String>,
}

/// Begin an upload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreateUploadSessionRequest {
    /// What is uploaded.
    pub kind: UploadKind,
    /// Where the client has it from.
    pub source_kind: UploadSourceKind,
    /// Path in the sandbox. A relative one starts at its working directory, or at the user's home when `user` is given.
    pub target_path: String,
    /// Bytes of the whole.
    pub content_length: u64,
    /// What becomes of an existing target.
    pub conflict: UploadConflictPolicy,
    /// Checksum of parts and of the whole.
    pub checksum_algorithm: UploadChecksumAlgorithm,
    /// The user to whom it belongs afterwards; the sandbox's default. Without one, a file that is overwritten keeps its owner
    /// and mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Format of a directory's archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub archive_format: Option<UploadArchiveFormat>,
    /// SHA-256 of the whole, hex. It is checked before the upload is published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole_checksum_sha256: Option<String>,
    /// Taken and not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metadata: Option<JsonObject>,
}

/// An upload has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CreateUploadSessionResponse {
    /// The upload.
    pub session: UploadSessionInfo,
}

/// Complete an upload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CompleteUploadRequest {
    /// SHA-256 of the whole, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole_checksum_sha256: Option<String>,
}

/// An upload was published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CompleteUploadResponse {
    /// The upload.
    pub session: UploadSessionInfo,
    /// Bytes of the files that were published.
    pub published_bytes: u64,
    /// Number of files that were published.
    pub published_file_count: u64,
}
