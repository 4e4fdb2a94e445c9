//! Large uploads to a sandbox, in parts that can be sent again.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use nullspace_api::{
    CompleteUploadRequest, CompleteUploadResponse, CreateUploadSessionRequest, CreateUploadSessionResponse,
    ErrorResponse, ErrorResponseCode, UploadSessionInfo,
};
use nullspace_service::{Caller, RequestContext, UploadPart};

use super::answers::json;
use super::blobs::RawBytes;
use crate::error::Refusal;
use crate::extract::{JsonBody, OptionalJsonBody, OwnSandbox, OwnSandboxAnd, as_it_arrives};
use crate::state::AppState;

/// Header with a part's SHA-256, hex.
const PART_SHA256: &str = "x-nullspace-part-sha256";

/// Begin an upload
///
/// The parts go to the sandbox's disk, where they wait until the upload is completed, at most for 24 hours.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/uploads",
    operation_id = "create_upload_session",
    tag = "files",
    params(
        ("id" = String, Path, description = "`sb_…`"),
        ("Idempotency-Key" = Option<String>, Header, description = "A repetition with the same key answers the same upload."),
    ),
    request_body = CreateUploadSessionRequest,
    responses(
        (status = 200, description = "The upload, with the size and number of its parts.", body = CreateUploadSessionResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 409, description = "Something is at the target.", body = ErrorResponse),
        (status = 413, description = "It is too large, or the sandbox's disk has no space for it.", body = ErrorResponse),
    ),
)]
pub(super) async fn create_upload_session(
    OwnSandbox(sandbox): OwnSandbox,
    context: RequestContext,
    JsonBody(request): JsonBody<CreateUploadSessionRequest>,
) -> Result<Response, Refusal> {
    let session = sandbox.create_upload(request, context.idempotency_key).await?;
    json(StatusCode::OK, &CreateUploadSessionResponse { session })
}

/// Get an upload
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/uploads/{upload_id}",
    operation_id = "get_upload_session",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`"), ("upload_id" = String, Path, description = "`up_…`")),
    responses(
        (status = 200, description = "The upload, with the first part that is missing.", body = UploadSessionInfo),
        (status = 404, description = "There is no such sandbox or upload.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_upload_session(OwnSandboxAnd(sandbox, upload_id): OwnSandboxAnd) -> Result<Response, Refusal> {
    json(StatusCode::OK, &sandbox.upload(&upload_id).await?)
}

/// Give an upload up
///
/// Its parts are removed.
#[utoipa::path(
    delete,
    path = "/v1/sandboxes/{id}/uploads/{upload_id}",
    operation_id = "abort_upload_session",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`"), ("upload_id" = String, Path, description = "`up_…`")),
    responses(
        (status = 204, description = "It is given up."),
        (status = 404, description = "There is no such sandbox or upload.", body = ErrorResponse),
        (status = 409, description = "It is complete.", body = ErrorResponse),
    ),
)]
pub(super) async fn abort_upload_session(
    OwnSandboxAnd(sandbox, upload_id): OwnSandboxAnd,
) -> Result<Response, Refusal> {
    sandbox.abort_upload(&upload_id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Send a part of an upload
///
/// Parts are numbered from 0, and may be sent in any order, several at a time, and again.
#[utoipa::path(
    put,
    path = "/v1/sandboxes/{id}/uploads/{upload_id}/parts/{part_number}",
    operation_id = "upload_session_part",
    tag = "files",
    params(
        ("id" = String, Path, description = "`sb_…`"),
        ("upload_id" = String, Path, description = "`up_…`"),
        ("part_number" = u32, Path, description = "From 0"),
        ("x-nullspace-part-sha256" = Option<String>, Header, description = "SHA-256 of the part, hex: another part is refused."),
    ),
    request_body(content = inline(RawBytes), content_type = "application/octet-stream"),
    responses(
        (status = 200, description = "It is taken.", body = UploadSessionInfo),
        (status = 400, description = "It has another length or checksum, or there is no such part.", body = ErrorResponse),
        (status = 404, description = "There is no such sandbox or upload.", body = ErrorResponse),
        (status = 409, description = "The upload is complete, or was given up.", body = ErrorResponse),
        (status = 410, description = "The upload has expired.", body = ErrorResponse),
    ),
)]
pub(super) async fn upload_session_part(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    path: Path<(String, String, String)>,
    request: Request,
) -> Result<Response, Refusal> {
    let Path((id, upload_id, number)) = path;
    let number = number.parse().map_err(|_| Refusal::invalid("The part in the path must be a number from 0."))?;
    let sha256 = match headers.get(PART_SHA256).map(|value| value.to_str().map(str::to_owned)) {
        None => None,
        Some(Ok(sha256)) => Some(sha256),
        Some(Err(_)) => return Err(Refusal::invalid(format!("{PART_SHA256} must be hex digits."))),
    };
    let sandbox = state.service.live_sandbox(&caller, &id).await?;
    // The service knows only that the body broke off; what was wrong with it is noted here.
    let broke = Arc::new(Mutex::new(None));
    let noted = Arc::clone(&broke);
    let content = as_it_arrives(request, &state.config).map(move |piece| {
        piece.inspect_err(|error| {
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.kind());
        })
    });
    let taken = sandbox.upload_part(UploadPart { upload_id, number, sha256 }, content.boxed()).await;
    if let Some(io::ErrorKind::TimedOut) = *broke.lock().unwrap_or_else(PoisonError::into_inner) {
        let message =
            format!("Nothing of the part arrived for {} s: send it again.", state.config.body_timeout.as_secs());
        return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, ErrorResponseCode::InvalidRequest, message));
    }
    json(StatusCode::OK, &taken?)
}

/// Complete an upload
///
/// The whole is checked and published. The answer to a repetition is the same.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/uploads/{upload_id}/complete",
    operation_id = "complete_upload_session",
    tag = "files",
    params(
        ("id" = String, Path, description = "`sb_…`"),
        ("upload_id" = String, Path, description = "`up_…`"),
        ("Idempotency-Key" = Option<String>, Header, description = "Not needed: a repetition has the same answer."),
    ),
    request_body = Option<CompleteUploadRequest>,
    responses(
        (status = 200, description = "It is published.", body = CompleteUploadResponse),
        (status = 400, description = "Parts are missing, the checksum is another, or the archive is refused.", body = ErrorResponse),
        (status = 404, description = "There is no such sandbox or upload.", body = ErrorResponse),
        (status = 409, description = "Something is at the target, or the upload was given up.", body = ErrorResponse),
        (status = 410, description = "The upload has expired.", body = ErrorResponse),
    ),
)]
pub(super) async fn complete_upload_session(
    OwnSandboxAnd(sandbox, upload_id): OwnSandboxAnd,
    OptionalJsonBody(request): OptionalJsonBody<CompleteUploadRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &sandbox.complete_upload(&upload_id, request.whole_checksum_sha256).await?)
}
