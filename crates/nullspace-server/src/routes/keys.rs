//! API keys of the caller's own tenant.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use nullspace_api::{
    ApiKeyInfo, CreateApiKeyRequest, CreateApiKeyResponse, ErrorResponse, RevokeApiKeyResponse, to_wire_json,
};
use nullspace_service::Caller;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, PathParam};
use crate::state::AppState;

/// Create an API key
///
/// The answer is the only place where the key appears. A tenant has at most 100 valid keys.
#[utoipa::path(
    post,
    path = "/v1/keys",
    operation_id = "create_api_key",
    tag = "api_keys",
    request_body = CreateApiKeyRequest,
    responses(
        (status = 201, description = "The key.", body = CreateApiKeyResponse),
        (status = 401, description = "The request has no valid key.", body = ErrorResponse),
        (status = 403, description = "The request's key may only read.", body = ErrorResponse),
        (status = 503, description = "The database is down.", body = ErrorResponse),
    ),
)]
pub(super) async fn create_api_key(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(request): JsonBody<CreateApiKeyRequest>,
) -> Result<Response, Refusal> {
    made(&state.service.create_key(&caller, request).await?)
}

/// List API keys
#[utoipa::path(
    get,
    path = "/v1/keys",
    operation_id = "list_api_keys",
    tag = "api_keys",
    responses(
        (status = 200, description = "The tenant's keys, oldest first, with the last 100 that are over.", body = Vec<ApiKeyInfo>),
        (status = 401, description = "The request has no valid key.", body = ErrorResponse),
        (status = 403, description = "Never.", body = ErrorResponse),
        (status = 503, description = "The database is down.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_api_keys(State(state): State<AppState>, caller: Caller) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.list_keys(&caller).await?)
}

/// Revoke an API key
///
/// It may be the key of this request. What was begun with it ends within seconds. A second call changes nothing.
#[utoipa::path(
    delete,
    path = "/v1/keys/{id}",
    operation_id = "revoke_api_key",
    tag = "api_keys",
    params(("id" = String, Path, description = "The key's id.", format = "uuid")),
    responses(
        (status = 200, description = "It is revoked.", body = RevokeApiKeyResponse),
        (status = 401, description = "The request has no valid key.", body = ErrorResponse),
        (status = 403, description = "The request's key may only read.", body = ErrorResponse),
        (status = 404, description = "The tenant has no such key.", body = ErrorResponse),
        (status = 503, description = "The database is down.", body = ErrorResponse),
    ),
)]
pub(super) async fn revoke_api_key(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    state.service.revoke_key(&caller, &id).await?;
    json(StatusCode::OK, &RevokeApiKeyResponse { success: true })
}

/// Rotate an API key
///
/// Creates a key in its place, with its name and scope unless the request gives others. The older key ends at once, or after
/// `grace_secs`.
#[utoipa::path(
    post,
    path = "/v1/keys/{id}/rotate",
    operation_id = "rotate_api_key",
    tag = "api_keys",
    params(("id" = String, Path, description = "The key's id.", format = "uuid")),
    request_body = CreateApiKeyRequest,
    responses(
        (status = 201, description = "The new key.", body = CreateApiKeyResponse),
        (status = 401, description = "The request has no valid key.", body = ErrorResponse),
        (status = 403, description = "The request's key may only read.", body = ErrorResponse),
        (status = 404, description = "The tenant has no such key.", body = ErrorResponse),
        (status = 409, description = "It is over, or was rotated already.", body = ErrorResponse),
        (status = 503, description = "The database is down.", body = ErrorResponse),
    ),
)]
pub(super) async fn rotate_api_key(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    JsonBody(request): JsonBody<CreateApiKeyRequest>,
) -> Result<Response, Refusal> {
    made(&state.service.rotate_key(&caller, &id, request).await?)
}

/// The one answer that has a key in it, which no cache on the way may keep.
fn made(answer: &CreateApiKeyResponse) -> Result<Response, Refusal> {
    let bytes = to_wire_json(answer).map_err(Refusal::internal)?;
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, headers, bytes).into_response())
}
