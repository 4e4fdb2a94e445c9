//! URLs of one file that work without a key.

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use nullspace_api::{ErrorResponse, PathRequest, SignedUploadUrlResponse, SignedUrlResponse};
use nullspace_service::{Caller, SignedFile, Transfer};

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, PathParam};
use crate::signed;
use crate::state::AppState;

/// Make a URL to download a file
///
/// It works without a key, for this file alone, for an hour: not after the key that made it is revoked, or the sandbox is over.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/download-url",
    operation_id = "download_url",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body(content = PathRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The URL.", body = SignedUrlResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
    ),
)]
pub(super) async fn download_url(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    parts: Parts,
    JsonBody(request): JsonBody<PathRequest>,
) -> Result<Response, Refusal> {
    let (url, _) = sign(&state, &caller, &parts, &id, &request, Transfer::Download).await?;
    json(StatusCode::OK, &SignedUrlResponse { url })
}

/// Make a URL to upload a file
///
/// As for a download. The file is written as an upload with the key would write it.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/upload-url",
    operation_id = "upload_url",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body(content = PathRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The URL.", body = SignedUploadUrlResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
    ),
)]
pub(super) async fn upload_url(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    parts: Parts,
    JsonBody(request): JsonBody<PathRequest>,
) -> Result<Response, Refusal> {
    let (url, token) = sign(&state, &caller, &parts, &id, &request, Transfer::Upload).await?;
    json(StatusCode::OK, &SignedUploadUrlResponse { url, token })
}

async fn sign(
    state: &AppState,
    caller: &Caller,
    parts: &Parts,
    id: &str,
    request: &PathRequest,
    transfer: Transfer,
) -> Result<(String, String), Refusal> {
    let file = SignedFile { sandbox: id, path: &request.path, user: request.user.as_deref(), transfer };
    let token = state.service.sign_file(caller, file).await?;
    Ok((signed::url(parts, file, &token)?, token))
}
