//! Reserved names and namespaces.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use nullspace_api::{ErrorResponse, ReserveTemplateNameRequest, TemplateNameClaim, TemplateNamespaceInfo};
use nullspace_service::Caller;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, PathParam};
use crate::state::AppState;

/// Reserve a name
///
/// Until the claim lapses or is released, only a build with its token may use the name.
#[utoipa::path(
    post,
    path = "/v1/templates/claims",
    operation_id = "reserve_template_name",
    tag = "templates",
    request_body = ReserveTemplateNameRequest,
    responses(
        (status = 201, description = "The claim.", body = TemplateNameClaim),
        (status = 409, description = "A template, an alias or a claim has the name.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
pub(super) async fn reserve_template_name(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(request): JsonBody<ReserveTemplateNameRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::CREATED, &state.service.reserve_name(&caller, &request.template_ref).await?)
}

/// Release a reserved name
#[utoipa::path(
    delete,
    path = "/v1/templates/claims/{claim_token}",
    operation_id = "release_template_name_claim",
    tag = "templates",
    params(("claim_token" = String, Path, description = "As the reservation gave it")),
    responses(
        (status = 204, description = "It is released."),
        (status = 404, description = "There is no such claim, or its time is over.", body = ErrorResponse),
        (status = 409, description = "The claim is in use.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
pub(super) async fn release_template_name_claim(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(token): PathParam,
) -> Result<Response, Refusal> {
    state.service.release_name(&caller, &token).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Get a namespace
#[utoipa::path(
    get,
    path = "/v1/templates/namespaces/{slug}",
    operation_id = "get_template_namespace",
    tag = "templates",
    params(("slug" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The namespace.", body = TemplateNamespaceInfo),
        (status = 404, description = "There is no such namespace, or it shows nothing to the caller.",
            body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_template_namespace(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(slug): PathParam,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.namespace(&caller, &slug).await?)
}
