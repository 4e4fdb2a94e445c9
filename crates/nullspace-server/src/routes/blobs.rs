//! Files of build contexts.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use nullspace_api::{ErrorResponse, TemplateBlobPreflightRequest, TemplateBlobPreflightResponse};
use nullspace_service::Caller;
use utoipa::ToSchema;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, PathParam, RawBody};
use crate::state::AppState;

/// A body of raw bytes, for the document.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "it only says what a body is")]
pub(super) struct RawBytes(Vec<u8>);

/// Ask which files to upload
///
/// The answer has one item for each file of the request, in its order.
#[utoipa::path(
    post,
    path = "/v1/templates/blobs/preflight",
    operation_id = "preflight_template_blobs",
    tag = "templates",
    request_body = TemplateBlobPreflightRequest,
    responses((status = 200, description = "What is missing.", body = TemplateBlobPreflightResponse)),
)]
pub(super) async fn preflight_template_blobs(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(request): JsonBody<TemplateBlobPreflightRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.preflight_blobs(&caller, request).await?)
}

/// Upload a file
///
/// Its digest and size must be those of its `blob_id`. Uploading it again changes nothing.
#[utoipa::path(
    put,
    path = "/v1/templates/blobs/{blob_id}",
    operation_id = "upload_template_blob",
    tag = "templates",
    params(("blob_id" = String, Path, description = "As preflight gave it")),
    request_body(content = inline(RawBytes), content_type = "application/octet-stream"),
    responses(
        (status = 204, description = "It is stored."),
        (status = 415, description = "The body is not raw bytes.", body = ErrorResponse),
    ),
)]
pub(super) async fn upload_template_blob(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(blob_id): PathParam,
    RawBody(bytes): RawBody,
) -> Result<Response, Refusal> {
    state.service.upload_blob(&caller, &blob_id, bytes).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
