//! Large uploads to a running sandbox, in parts that can be sent again.

use async_trait::async_trait;
use nullspace_api::{CompleteUploadResponse, CreateUploadSessionRequest, UploadSessionInfo};

use crate::{ByteStream, Result};

/// One part of an upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadPart {
    /// The upload.
    pub upload_id: String,
    /// Number of the part, from 0.
    pub number: u32,
    /// SHA-256 of its bytes, hex. With another one, the part is refused.
    pub sha256: Option<String>,
}

/// Large uploads to a running sandbox, in parts that can be sent again. Parts and uploads are kept in the sandbox. So they
/// survive a restart of the service, and end with the sandbox.
///
/// The errors of all have an [`UploadFailureDetail`](nullspace_api::UploadFailureDetail) where the contract has a reason; an
/// upload that does not exist is `NotFound`.
#[async_trait]
pub trait LiveUploads: Send + Sync + 'static {
    /// Begins an upload. With an idempotency key that was used before, that key's upload is the answer.
    async fn create_upload(
        &self,
        request: CreateUploadSessionRequest,
        idempotency_key: Option<String>,
    ) -> Result<UploadSessionInfo>;

    /// Returns an upload.
    async fn upload(&self, upload_id: &str) -> Result<UploadSessionInfo>;

    /// Takes one part. A part that is sent again is written again. When the content breaks off, the part is missing.
    async fn upload_part(&self, part: UploadPart, content: ByteStream) -> Result<UploadSessionInfo>;

    /// Checks and publishes an upload. The answer to a repetition is the same.
    async fn complete_upload(&self, upload_id: &str, sha256: Option<String>) -> Result<CompleteUploadResponse>;

    /// Gives an upload up. Its parts are removed.
    async fn abort_upload(&self, upload_id: &str) -> Result<()>;
}
