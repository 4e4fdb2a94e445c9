//! Large uploads to a running sandbox, in parts that can be sent again.
//!
//! ```text
//!   client ── part ──> SHA-256 while it passes ──> agent ──> staging file in the guest
//!                        └─ another one: the channel is reset, and the part is missing
//! ```
//! No part is kept here, in memory or on disk. The guest keeps the uploads themselves, so this host needs no record of them. What
//! it says about them is checked, but concerns nobody except its own tenant.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use jiff::Timestamp;
use nullspace_api::{
    CompleteUploadResponse, CreateUploadSessionRequest, ErrorResponseCode, Time, UploadArchiveFormat,
    UploadConflictPolicy, UploadFailureDetail, UploadFailureReason, UploadKind, UploadLimits, UploadSessionInfo,
    UploadSessionStatus,
};
use nullspace_guest::host::{AgentError, Uploaded};
use nullspace_guest::message::FailureKind;
use nullspace_guest::upload::{
    MAX_STAGED_BYTES, MAX_UPLOAD_BYTES, PART_BYTES, UPLOAD_LIFETIME_SECS, UploadConflict, UploadOp, UploadReason,
    UploadRefusal, UploadSpec, UploadState, UploadStatus,
};
use nullspace_service::{ByteStream, Error, LiveUploads, Result, UploadPart, chain};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::live::Live;

/// Parts that a client should send at a time.
const CONCURRENCY: u32 = 4;

#[async_trait]
impl LiveUploads for Live {
    async fn create_upload(
        &self,
        request: CreateUploadSessionRequest,
        idempotency_key: Option<String>,
    ) -> Result<UploadSessionInfo> {
        let spec = self.upload_spec(request, idempotency_key)?;
        let id = format!("up_{}", Uuid::now_v7().simple());
        self.upload_op(&id, UploadOp::Create(spec)).await.and_then(info)
    }

    async fn upload(&self, upload_id: &str) -> Result<UploadSessionInfo> {
        self.upload_op(upload_id, UploadOp::Look).await.and_then(info)
    }

    async fn upload_part(&self, part: UploadPart, mut content: ByteStream) -> Result<UploadSessionInfo> {
        let UploadPart { upload_id: id, number, sha256 } = part;
        let wanted = sha256.as_deref().map(|sha256| checksum(sha256, "x-nullspace-part-sha256")).transpose()?;
        let taken = self.using(|agent| async move {
            let mut writer = agent.upload_part(&id, number).await.map_err(failed)?;
            let mut hash = Sha256::new();
            while let Some(piece) = content.next().await {
                let piece = piece.map_err(|error| Error {
                    source: Some(Arc::new(error)),
                    ..Error::invalid("the part ended before it was whole; send it again")
                })?;
                hash.update(&piece);
                writer.write(&piece).await.map_err(failed)?;
            }
            let found = hex::encode(hash.finalize());
            if let Some(wanted) = wanted
                && wanted != found
            {
                // Without its end the agent does not take the part.
                drop(writer);
                let message = format!("part {number} has the SHA-256 {found}, not {wanted}: send it again");
                return Err(Error {
                    upload: Some(Box::new(UploadFailureDetail {
                        part_number: Some(number.into()),
                        ..detail(UploadFailureReason::InvalidPartChecksum, &message, true, &id)
                    })),
                    ..Error::new(ErrorResponseCode::FileUploadError, message)
                });
            }
            state(writer.finish().await.map_err(failed)?, &id)
        });
        taken.await.and_then(info)
    }

    async fn complete_upload(&self, upload_id: &str, sha256: Option<String>) -> Result<CompleteUploadResponse> {
        let sha256 = sha256.as_deref().map(|sha256| checksum(sha256, "whole_checksum_sha256")).transpose()?;
        let state = self.upload_op(upload_id, UploadOp::Complete { sha256 }).await?;
        let (published_bytes, published_file_count) = (state.published_bytes, state.published_files);
        Ok(CompleteUploadResponse { session: info(state)?, published_bytes, published_file_count })
    }

    async fn abort_upload(&self, upload_id: &str) -> Result<()> {
        self.upload_op(upload_id, UploadOp::Abort).await.map(drop)
    }
}

impl Live {
    async fn upload_op(&self, id: &str, op: UploadOp) -> Result<UploadState> {
        let asked = self.using(|agent| async move { state(agent.upload(id, op).await.map_err(failed)?, id) });
        asked.await
    }

    fn upload_spec(&self, request: CreateUploadSessionRequest, key: Option<String>) -> Result<UploadSpec> {
        let archive = match (request.kind, request.archive_format) {
            (UploadKind::DirectoryTar, Some(UploadArchiveFormat::Tar)) => true,
            (UploadKind::DirectoryTar, None) => {
                return Err(Error::invalid("archive_format is missing: a directory is uploaded as `tar`"));
            }
            (UploadKind::File, None) => false,
            (UploadKind::File, Some(_)) => return Err(Error::invalid("archive_format is for directories only")),
        };
        if request.target_path.is_empty() {
            return Err(Error::invalid("target_path is empty"));
        }
        let sha256 = request.whole_checksum_sha256.as_deref();
        let sha256 = sha256.map(|sha256| checksum(sha256, "whole_checksum_sha256")).transpose()?;
        let user = request.user.clone().filter(|user| !user.is_empty());
        // Kept in the guest with the upload, and read from there by whichever service looks at it next.
        let note = CreateUploadSessionRequest { metadata: None, user: user.clone(), ..request.clone() };
        let note = serde_json::to_string(&note)
            .map_err(|error| nullspace_host_interface::internal("describe an upload", &error))?;
        Ok(UploadSpec {
            archive,
            target: request.target_path,
            cwd: user.is_none().then(|| self.cwd.clone()),
            keep_owner: user.is_none(),
            user: user.or_else(|| self.runtime.user.clone()),
            bytes: request.content_length,
            conflict: match request.conflict {
                UploadConflictPolicy::Error => UploadConflict::Error,
                UploadConflictPolicy::Merge => UploadConflict::Merge,
                UploadConflictPolicy::Replace => UploadConflict::Replace,
            },
            sha256,
            key,
            note,
        })
    }
}

/// A SHA-256 in lower-case hex.
fn checksum(text: &str, field: &str) -> Result<String> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Error::invalid(format!("{field} must be the 64 hex digits of a SHA-256")));
    }
    Ok(text.to_ascii_lowercase())
}

fn detail(reason: UploadFailureReason, message: &str, retryable: bool, id: &str) -> UploadFailureDetail {
    UploadFailureDetail {
        reason,
        message: message.to_owned(),
        retryable,
        upload_id: Some(id.to_owned()),
        request_id: None,
        path: None,
        part_number: None,
        details: None,
    }
}

fn state(uploaded: Uploaded, id: &str) -> Result<UploadState> {
    uploaded.map_err(|UploadRefusal { reason, message, path, part }| {
        let retryable = matches!(reason, UploadReason::PartSize | UploadReason::MissingParts | UploadReason::Checksum);
        let reason = match reason {
            UploadReason::InvalidPath => UploadFailureReason::DirectoryExtractInvalidPath,
            UploadReason::InvalidLink => UploadFailureReason::DirectoryExtractInvalidSymlink,
            UploadReason::UnsupportedEntry => UploadFailureReason::DirectoryExtractUnsupportedEntry,
            UploadReason::NoSpace => UploadFailureReason::InsufficientStagingSpace,
            UploadReason::MissingParts => UploadFailureReason::MissingParts,
            UploadReason::NoSuchPart => UploadFailureReason::PartOutOfRange,
            UploadReason::PartSize => UploadFailureReason::PartSizeMismatch,
            UploadReason::TooLarge => UploadFailureReason::SizeLimitExceeded,
            UploadReason::Conflict => UploadFailureReason::TargetConflict,
            UploadReason::Aborted => UploadFailureReason::UploadAborted,
            UploadReason::Completed => UploadFailureReason::UploadAlreadyCompleted,
            UploadReason::Expired => UploadFailureReason::UploadExpired,
            UploadReason::Checksum => UploadFailureReason::WholeChecksumMismatch,
        };
        let detail =
            UploadFailureDetail { path, part_number: part.map(u64::from), ..detail(reason, &message, retryable, id) };
        Error { upload: Some(Box::new(detail)), ..Error::new(ErrorResponseCode::FileUploadError, message) }
    })
}

/// An upload in the terms of the API. The guest is hostile: what it kept may be anything.
fn info(state: UploadState) -> Result<UploadSessionInfo> {
    let damaged = |what: String| {
        tracing::warn!(upload_id = %state.id, what, "a guest's record of an upload is damaged");
        Error::new(ErrorResponseCode::ExecFailed, "the sandbox's record of this upload is damaged; begin another one")
    };
    let note: CreateUploadSessionRequest =
        serde_json::from_str(&state.spec.note).map_err(|error| damaged(error.to_string()))?;
    let time = |secs: u64| {
        let time = i64::try_from(secs).ok().and_then(|secs| Timestamp::from_second(secs).ok()).map(Time::from);
        time.ok_or_else(|| damaged(format!("{secs} is no time")))
    };
    let status = match state.status {
        UploadStatus::Created => UploadSessionStatus::Created,
        UploadStatus::Uploading => UploadSessionStatus::Uploading,
        UploadStatus::Staged => UploadSessionStatus::Staged,
        UploadStatus::Completing => UploadSessionStatus::Completing,
        UploadStatus::Completed => UploadSessionStatus::Completed,
        UploadStatus::Aborted => UploadSessionStatus::Aborted,
        UploadStatus::Expired => UploadSessionStatus::Expired,
    };
    let over = matches!(state.status, UploadStatus::Completed | UploadStatus::Aborted | UploadStatus::Expired);
    Ok(UploadSessionInfo {
        created_at: time(state.created_secs)?,
        updated_at: time(state.updated_secs)?,
        expires_at: time(state.created_secs.saturating_add(UPLOAD_LIFETIME_SECS))?,
        part_count: state.spec.parts(),
        upload_id: state.id,
        kind: note.kind,
        source_kind: note.source_kind,
        target_path: state.spec.target,
        content_length: state.spec.bytes,
        accepted_bytes: state.accepted_bytes,
        reserved_staging_bytes: if over { 0 } else { state.spec.bytes },
        part_size: PART_BYTES,
        max_concurrency: CONCURRENCY,
        status,
        conflict: note.conflict,
        checksum_algorithm: note.checksum_algorithm,
        limits: UploadLimits {
            max_upload_bytes: MAX_UPLOAD_BYTES,
            max_part_bytes: PART_BYTES,
            max_concurrency: CONCURRENCY,
            sandbox_staging_quota_bytes: MAX_STAGED_BYTES,
        },
        user: note.user,
        next_part: state.next_part,
        archive_format: note.archive_format,
        whole_checksum_sha256: state.spec.sha256,
    })
}

fn failed(error: AgentError) -> Error {
    match error {
        AgentError::Failed(failure) => match failure.kind {
            FailureKind::NotFound | FailureKind::FileNotFound => {
                Error::new(ErrorResponseCode::NotFound, failure.message)
            }
            FailureKind::Limit => Error::new(ErrorResponseCode::RateLimitExceeded, failure.message),
            FailureKind::Invalid | FailureKind::UnknownUser => Error::invalid(failure.message),
            FailureKind::PermissionDenied => {
                Error { forbidden: true, ..Error::new(ErrorResponseCode::FileError, failure.message) }
            }
            _ => Error::new(ErrorResponseCode::FileError, failure.message),
        },
        AgentError::Lacking { .. } => Error::new(ErrorResponseCode::RebuildRequired, error.to_string()),
        AgentError::Timeout { .. } => {
            let message =
                "the sandbox did not answer in time while it took an upload; look at the upload, and go on with it";
            Error::new(ErrorResponseCode::ExecTimeout, message)
        }
        other => {
            tracing::warn!(error = %chain(&other), "an upload failed");
            Error::new(ErrorResponseCode::ExecFailed, "the sandbox stopped answering; create a new one")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn staged(note: &str, status: UploadStatus, created_secs: u64) -> UploadState {
        UploadState {
            id: "up_1".into(),
            spec: UploadSpec {
                archive: false,
                target: "/a".into(),
                cwd: None,
                user: None,
                keep_owner: true,
                bytes: PART_BYTES + 1,
                conflict: UploadConflict::Merge,
                sha256: None,
                key: None,
                note: note.into(),
            },
            status,
            accepted_bytes: PART_BYTES,
            next_part: Some(1),
            created_secs,
            updated_secs: created_secs,
            published_bytes: 0,
            published_files: 0,
        }
    }

    const NOTE: &str = r#"{"kind":"file","source_kind":"restartable_file","target_path":"a","content_length":8388609,
        "conflict":"merge","checksum_algorithm":"sha256"}"#;

    #[test]
    fn an_upload_is_shown_as_the_guest_kept_it() {
        let shown = info(staged(NOTE, UploadStatus::Uploading, 1_700_000_000)).unwrap();
        assert_eq!((shown.part_count, shown.next_part, shown.reserved_staging_bytes), (2, Some(1), PART_BYTES + 1));
        assert_eq!(shown.expires_at.to_string(), "2023-11-15T22:13:20.000000Z");
        let over = info(staged(NOTE, UploadStatus::Expired, 0)).unwrap();
        assert_eq!((over.status, over.reserved_staging_bytes), (UploadSessionStatus::Expired, 0));
    }

    #[test]
    fn a_record_that_a_guest_has_changed_is_an_error() {
        for state in [staged("{}", UploadStatus::Created, 0), staged(NOTE, UploadStatus::Created, u64::MAX)] {
            assert_eq!(info(state).unwrap_err().code, ErrorResponseCode::ExecFailed);
        }
    }

    #[test]
    fn refusals_have_the_contracts_reasons() {
        let refusal = |reason, part| UploadRefusal { reason, message: "It says why.".into(), path: None, part };
        let error = state(Err(refusal(UploadReason::NoSuchPart, Some(7))), "up_1").unwrap_err();
        let detail = error.upload.unwrap();
        assert_eq!((detail.reason, detail.part_number), (UploadFailureReason::PartOutOfRange, Some(7)));
        assert_eq!((detail.retryable, detail.upload_id.as_deref()), (false, Some("up_1")));
        assert!(state(Err(refusal(UploadReason::Checksum, None)), "up_1").unwrap_err().upload.unwrap().retryable);
    }

    #[test]
    fn checksums_are_64_hex_digits() {
        assert_eq!(checksum(&"aB".repeat(32), "f").unwrap(), "ab".repeat(32));
        for wrong in ["", "ab", &"g".repeat(64), &"a".repeat(63)] {
            assert!(checksum(wrong, "f").is_err());
        }
    }
}
