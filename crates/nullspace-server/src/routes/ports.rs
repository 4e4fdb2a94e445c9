//! Ports of sandboxes: their addresses, and the tokens for them.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use nullspace_api::{
    CreateSignedPreviewUrlRequest, ErrorResponse, GetHostRequest, GetHostResponse, ListPreviewGrantsResponse,
    PreviewReadinessRequest, PreviewReadinessResponse, PreviewUrlResponse, RevokePreviewGrantResponse,
};
use nullspace_service::Caller;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, PathParam, PathParams, QueryParams};
use crate::state::AppState;

/// The port of a path.
fn port(text: &str) -> Result<u32, Refusal> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| Refusal::invalid("The port in the path is wrong: it must be a number from 1 to 65535."))
}

/// Get the address of a port
///
/// With a domain, ports have host names. Without one, they have a listener on the service's own host, or a path. The URLs have a
/// token when the sandbox's ports are not public.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/host",
    operation_id = "get_host",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = GetHostRequest,
    responses(
        (status = 200, description = "The address.", body = GetHostResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_host(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    JsonBody(request): JsonBody<GetHostRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.get_host(&caller, &id, request.port).await?)
}

/// Get a preview URL
///
/// Its token holds for an hour. Calls within that hour may get the same URL.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/ports/{port}/preview-url",
    operation_id = "get_preview_url",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`"), ("port" = u32, Path, description = "1 to 65535")),
    responses(
        (status = 200, description = "The URL. It is as good as a password.", body = PreviewUrlResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 429, description = "The sandbox has too many preview URLs in force.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_preview_url(
    State(state): State<AppState>,
    caller: Caller,
    PathParams(id, number): PathParams,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.get_preview_url(&caller, &id, port(&number)?).await?)
}

/// Create a signed preview URL
///
/// Each call makes a new token, which holds for the requested time.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/ports/{port}/signed-preview-url",
    operation_id = "create_signed_preview_url",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`"), ("port" = u32, Path, description = "1 to 65535")),
    request_body = CreateSignedPreviewUrlRequest,
    responses(
        (status = 200, description = "The URL. It is as good as a password.", body = PreviewUrlResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 429, description = "The sandbox has too many preview URLs in force.", body = ErrorResponse),
    ),
)]
pub(super) async fn create_signed_preview_url(
    State(state): State<AppState>,
    caller: Caller,
    PathParams(id, number): PathParams,
    JsonBody(request): JsonBody<CreateSignedPreviewUrlRequest>,
) -> Result<Response, Refusal> {
    let made = state.service.create_signed_preview_url(&caller, &id, port(&number)?, request).await?;
    json(StatusCode::OK, &made)
}

/// Wait for a server on a port
///
/// Answers when the server does, or when the time is over. That it does not is an answer, and no error.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/ports/{port}/readiness",
    operation_id = "check_preview_readiness",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`"), ("port" = u32, Path, description = "1 to 65535")),
    request_body = PreviewReadinessRequest,
    responses(
        (status = 200, description = "Whether the sandbox and the server answer.", body = PreviewReadinessResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 409, description = "The sandbox does not run.", body = ErrorResponse),
        (status = 501, description = "The sandbox's agent is too old to connect to ports.", body = ErrorResponse),
    ),
)]
pub(super) async fn check_preview_readiness(
    State(state): State<AppState>,
    caller: Caller,
    PathParams(id, number): PathParams,
    JsonBody(request): JsonBody<PreviewReadinessRequest>,
) -> Result<Response, Refusal> {
    let answer = state.service.check_preview_readiness(&caller, &id, port(&number)?, request).await?;
    json(StatusCode::OK, &answer)
}

/// Which preview URLs to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only those of this port.
    port: Option<u32>,
}

/// List preview URLs
///
/// Newest first, with what they were used for, and without their tokens. Those that are over stay for a while.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/preview-urls",
    operation_id = "list_preview_urls",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`"), ListQuery),
    responses(
        (status = 200, description = "The sandbox's preview URLs.", body = ListPreviewGrantsResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_preview_urls(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    QueryParams(query): QueryParams<ListQuery>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.list_preview_urls(&caller, &id, query.port).await?)
}

/// Revoke a preview URL
///
/// Its token is refused from now on, and connections that it let in end within seconds.
#[utoipa::path(
    delete,
    path = "/v1/sandboxes/{id}/preview-urls/{grant_id}",
    operation_id = "revoke_preview_url",
    tag = "sandboxes",
    params(
        ("id" = String, Path, description = "`sb_…`"),
        ("grant_id" = String, Path, description = "`pvg_…`"),
    ),
    responses(
        (status = 200, description = "It is revoked.", body = RevokePreviewGrantResponse),
        (status = 404, description = "There is no such sandbox or preview URL.", body = ErrorResponse),
    ),
)]
pub(super) async fn revoke_preview_url(
    State(state): State<AppState>,
    caller: Caller,
    PathParams(id, grant): PathParams,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.revoke_preview_url(&caller, &id, &grant).await?)
}
