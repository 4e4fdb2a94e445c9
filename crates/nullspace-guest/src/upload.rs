//! Uploads in parts, which are kept in the guest until they are whole.
//!
//! ```text
//!  Create                                       end Upload
//!  Look                                         end Upload
//!  Part      reply Done   stdin: its bytes, EOF end Upload      reset: the part is not taken
//!  Complete                                     end Upload      published at its target
//!  Abort                                        end Upload
//!  each may end with UploadRefused instead
//! ```
//! An upload and its parts are files of the guest. So they survive a restart of the service and a pause of the sandbox, and
//! they end with it.

use serde::{Deserialize, Serialize};

/// Most uploads of one guest that are not ended.
pub const MAX_UPLOADS: usize = 16;
/// Most bytes of one upload.
pub const MAX_UPLOAD_BYTES: u64 = 16 << 30;
/// Most bytes of all uploads of one guest that are not ended.
pub const MAX_STAGED_BYTES: u64 = 32 << 30;
/// Bytes of a part; the last one is shorter.
pub const PART_BYTES: u64 = 8 << 20;
/// Seconds after which an upload that was not completed expires.
pub const UPLOAD_LIFETIME_SECS: u64 = 24 * 3600;

/// An operation on an upload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadCall {
    /// The upload's id: `up_` and 32 lower-case hex digits. Chosen by the host.
    pub id: String,
    /// The operation.
    pub action: UploadOp,
}

/// Operations on uploads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "upload", rename_all = "snake_case")]
pub enum UploadOp {
    /// Begin an upload, and reserve its bytes on the disk. With a key that was used before, the upload of that key is answered.
    Create(UploadSpec),
    /// Look at it.
    Look,
    /// Take one part. Asked for again, it is written again.
    Part {
        /// Its number, from 0.
        number: u32,
    },
    /// Check the whole and publish it at its target. Asked for again, the answer is the same.
    Complete {
        /// SHA-256 of the whole, lower-case hex.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sha256: Option<String>,
    },
    /// End it without publishing it. Asked for again, the answer is the same.
    Abort,
}

/// An upload, as it is begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadSpec {
    /// True: a tar archive whose entries go below `target`. False: one file.
    pub archive: bool,
    /// The file or directory to publish. The answer has it as an absolute path.
    pub target: String,
    /// An absolute path, where a relative target starts. `None`: the user's home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// The user who publishes, as in [`Exec::user`](crate::message::Exec::user).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// True: a file that is overwritten keeps its owner and mode. False: it belongs to `user` afterwards.
    pub keep_owner: bool,
    /// Bytes of the whole.
    pub bytes: u64,
    /// What becomes of an existing target.
    pub conflict: UploadConflict,
    /// SHA-256 of the whole, lower-case hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// The request's idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The host's own words on it, kept as they are.
    pub note: String,
}

impl UploadSpec {
    /// Number of its parts.
    pub fn parts(&self) -> u32 {
        u32::try_from(self.bytes.div_ceil(PART_BYTES)).unwrap_or(u32::MAX)
    }

    /// Bytes of one part; `None` when there is no such part.
    pub fn part_bytes(&self, number: u32) -> Option<u64> {
        let start = u64::from(number).checked_mul(PART_BYTES)?;
        let left = self.bytes.checked_sub(start).filter(|left| *left > 0)?;
        Some(left.min(PART_BYTES))
    }
}

/// What becomes of an existing target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadConflict {
    /// The upload is refused.
    Error,
    /// A file is overwritten. A directory gets the archive's entries beside its own.
    Merge,
    /// A file is overwritten. A directory is exchanged.
    Replace,
}

/// An upload, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadState {
    /// Its id.
    pub id: String,
    /// How it was begun, with an absolute target.
    pub spec: UploadSpec,
    /// Its status.
    pub status: UploadStatus,
    /// Bytes of the parts that were taken.
    pub accepted_bytes: u64,
    /// The first part that is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_part: Option<u32>,
    /// Time of its beginning, seconds since 1970 by the guest's clock.
    pub created_secs: u64,
    /// Time of its last change, seconds since 1970.
    pub updated_secs: u64,
    /// Bytes of the files that were published.
    pub published_bytes: u64,
    /// Files that were published.
    pub published_files: u64,
}

/// Statuses of [`UploadState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadStatus {
    /// No part was taken.
    Created,
    /// Parts are missing.
    Uploading,
    /// All parts were taken.
    Staged,
    /// It is being published.
    Completing,
    /// It was published.
    Completed,
    /// It was ended by [`UploadOp::Abort`].
    Aborted,
    /// It was not completed in time.
    Expired,
}

/// Why an operation on an upload was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct UploadRefusal {
    /// For programs.
    pub reason: UploadReason,
    /// For people.
    pub message: String,
    /// The path of the target, or in the archive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<u32>,
}

/// Reasons of [`UploadRefusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UploadReason {
    /// An entry of the archive would be outside its target.
    InvalidPath,
    /// A link of the archive leads out of its target.
    InvalidLink,
    /// An entry of the archive is no file, directory or link, or the archive is damaged.
    UnsupportedEntry,
    /// The disk has no space for it.
    NoSpace,
    /// Parts are missing.
    MissingParts,
    /// There is no such part.
    NoSuchPart,
    /// The part has another length.
    PartSize,
    /// It is larger than an upload may be, or than all may be together.
    TooLarge,
    /// Something is at the target that is not to be replaced.
    Conflict,
    /// It was aborted.
    Aborted,
    /// It was completed.
    Completed,
    /// It has expired.
    Expired,
    /// The whole has another checksum.
    Checksum,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_whole_and_no_more() {
        for (bytes, parts, last) in [
            (0, 0, None),
            (1, 1, Some(1)),
            (PART_BYTES, 1, Some(PART_BYTES)),
            (PART_BYTES + 1, 2, Some(1)),
            (3 * PART_BYTES - 1, 3, Some(PART_BYTES - 1)),
        ] {
            let spec = UploadSpec {
                archive: false,
                target: "/a".into(),
                cwd: None,
                user: None,
                keep_owner: true,
                bytes,
                conflict: UploadConflict::Merge,
                sha256: None,
                key: None,
                note: String::new(),
            };
            assert_eq!(spec.parts(), parts);
            assert_eq!(parts.checked_sub(1).and_then(|part| spec.part_bytes(part)), last);
            assert_eq!(spec.part_bytes(parts), None);
            assert_eq!((0..parts).filter_map(|part| spec.part_bytes(part)).sum::<u64>(), bytes);
        }
    }
}
