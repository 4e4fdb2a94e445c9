//! SSH access to sandboxes.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use nullspace_api::{ErrorResponse, SshAccessRequest, SshAccessResponse};
use nullspace_service::Caller;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, PathParam};
use crate::state::AppState;

/// Create SSH access
///
/// Signs a public key into a certificate that lets it log in to the sandbox for a time. The access ends with its time, with the
/// sandbox and with the API key that made it; its connections end then, too.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/ssh-access",
    operation_id = "create_ssh_access",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = SshAccessRequest,
    responses(
        (status = 200, description = "The access.", body = SshAccessResponse),
        (status = 400, description = "The key is none, or of a kind that is not supported; a time is out of range.", body = ErrorResponse),
        (status = 401, description = "The API key is missing or wrong.", body = ErrorResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 429, description = "The sandbox has too many accesses in force.", body = ErrorResponse),
        (status = 503, description = "The service has no SSH server (setting `ssh_listen`).", body = ErrorResponse),
    ),
)]
pub(super) async fn create_ssh_access(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    JsonBody(request): JsonBody<SshAccessRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.create_ssh_access(&caller, &id, request).await?)
}
