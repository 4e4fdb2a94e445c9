//! Large uploads to a running sandbox, in parts that can be sent again: the fake's.

use async_trait::async_trait;
use futures::StreamExt;
use nullspace_api::*;
use nullspace_service::{ByteStream, Error, LiveUploads, Result, UploadPart};

use super::Live;

fn session(upload_id: &str, status: UploadSessionStatus, accepted_bytes: u64) -> UploadSessionInfo {
    let time: Time = serde_json::from_str("\"2026-01-01T00:00:00Z\"").unwrap();
    UploadSessionInfo {
        upload_id: upload_id.into(),
        kind: UploadKind::File,
        source_kind: UploadSourceKind::RestartableFile,
        target_path: "/workspace/a".into(),
        content_length: 10,
        accepted_bytes,
        reserved_staging_bytes: 10,
        part_size: 4,
        part_count: 3,
        max_concurrency: 2,
        status,
        conflict: UploadConflictPolicy::Merge,
        checksum_algorithm: UploadChecksumAlgorithm::Sha256,
        limits: UploadLimits {
            max_upload_bytes: 100,
            max_part_bytes: 4,
            max_concurrency: 2,
            sandbox_staging_quota_bytes: 200,
        },
        created_at: time,
        updated_at: time,
        expires_at: time,
        user: None,
        next_part: (accepted_bytes < 10).then_some(1),
        archive_format: None,
        whole_checksum_sha256: None,
    }
}

fn refused(upload_id: &str, reason: UploadFailureReason, message: &str) -> Error {
    let detail = UploadFailureDetail {
        reason,
        message: message.into(),
        retryable: false,
        upload_id: Some(upload_id.into()),
        request_id: None,
        path: None,
        part_number: None,
        details: None,
    };
    Error { upload: Some(Box::new(detail)), ..Error::new(ErrorResponseCode::FileUploadError, message) }
}

/// The name of an upload says what becomes of it.
fn known(upload_id: &str) -> Result<()> {
    match upload_id {
        "up_none" => Err(Error::new(ErrorResponseCode::NotFound, "There is no such upload.")),
        "up_expired" => Err(refused(upload_id, UploadFailureReason::UploadExpired, "It has expired.")),
        "up_taken" => Err(refused(upload_id, UploadFailureReason::TargetConflict, "Something is there.")),
        "up_huge" => Err(refused(upload_id, UploadFailureReason::SizeLimitExceeded, "It is too large.")),
        _ => Ok(()),
    }
}

#[async_trait]
impl LiveUploads for Live {
    async fn create_upload(
        &self,
        request: CreateUploadSessionRequest,
        idempotency_key: Option<String>,
    ) -> Result<UploadSessionInfo> {
        self.fake.call(format!("create_upload {} {idempotency_key:?} {request:?}", self.id));
        Ok(session("up_1", UploadSessionStatus::Created, 0))
    }

    async fn upload(&self, upload_id: &str) -> Result<UploadSessionInfo> {
        known(upload_id)?;
        Ok(session(upload_id, UploadSessionStatus::Uploading, 4))
    }

    async fn upload_part(&self, part: UploadPart, mut content: ByteStream) -> Result<UploadSessionInfo> {
        known(&part.upload_id)?;
        let mut len = 0;
        while let Some(piece) = content.next().await {
            len += piece.map_err(|_| Error::invalid("It broke off."))?.len();
        }
        self.fake.call(format!("{part:?} {len}"));
        Ok(session(&part.upload_id, UploadSessionStatus::Uploading, 4))
    }

    async fn complete_upload(&self, upload_id: &str, sha256: Option<String>) -> Result<CompleteUploadResponse> {
        known(upload_id)?;
        self.fake.call(format!("complete_upload {upload_id} {sha256:?}"));
        let session = session(upload_id, UploadSessionStatus::Completed, 10);
        Ok(CompleteUploadResponse { session, published_bytes: 10, published_file_count: 1 })
    }

    async fn abort_upload(&self, upload_id: &str) -> Result<()> {
        known(upload_id)?;
        self.fake.call(format!("abort_upload {upload_id}"));
        Ok(())
    }
}
