//! A template's names, by id.
//!
//! The same operations by reference are in [`refs`](super::refs); both end in the functions here.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use nullspace_api::{
    AssignTagsRequest, ErrorResponse, RenameTemplateRequest, TemplateAliasInfo, TemplateBuildBackend,
    TemplateBuildListResponse, TemplateBuildSourceType, TemplateBuildStatus, TemplateInfo, TemplateTagInfo,
    UpdateTemplateVisibilityRequest,
};
use nullspace_service::{BuildQuery, Caller};
use serde::Deserialize;
use utoipa::IntoParams;

use super::answers::{json, warned};
use crate::error::Refusal;
use crate::extract::{JsonBody, PathParam, PathParams, QueryParams};
use crate::state::AppState;

/// Which builds to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct BuildsQuery {
    /// In this status only.
    #[param(inline)]
    status: Option<TemplateBuildStatus>,
    /// Made by this backend only.
    #[param(inline)]
    backend: Option<TemplateBuildBackend>,
    /// From this kind of source only.
    #[param(inline)]
    source_type: Option<TemplateBuildSourceType>,
    /// At most so many, 1 to 100; 50.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

impl From<BuildsQuery> for BuildQuery {
    fn from(query: BuildsQuery) -> Self {
        let BuildsQuery { status, backend, source_type, limit, cursor } = query;
        Self { status, backend, source_type, limit, cursor }
    }
}

/// List a template's tags
#[utoipa::path(
    get,
    path = "/v1/templates/{id}/tags",
    operation_id = "list_template_tags",
    tag = "templates",
    params(("id" = String, Path, description = "`tmpl_…` or a reference, percent-encoded")),
    responses(
        (status = 200, description = "Its tags, by name.", body = Vec<TemplateTagInfo>),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_template_tags(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(reference): PathParam,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.template_tags(&caller, &reference).await?)
}

/// Set tags
///
/// Makes tags point to what the reference means.
#[utoipa::path(
    post,
    path = "/v1/templates/{id}/tags",
    operation_id = "assign_template_tags",
    tag = "templates",
    params(("id" = String, Path, description = "`tmpl_…` or a reference, percent-encoded")),
    request_body = AssignTagsRequest,
    responses(
        (status = 200, description = "The template.", body = TemplateInfo),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
pub(super) async fn assign_template_tags(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(reference): PathParam,
    JsonBody(request): JsonBody<AssignTagsRequest>,
) -> Result<Response, Refusal> {
    warned(StatusCode::OK, &state.service.assign_tags(&caller, &reference, request.tags).await?)
}

/// Remove a tag
#[utoipa::path(
    delete,
    path = "/v1/templates/{id}/tags/{tag}",
    operation_id = "remove_template_tag",
    tag = "templates",
    params(("id" = String, Path, description = "`tmpl_…` or a reference, percent-encoded"), ("tag" = String, Path, description = "The tag")),
    responses(
        (status = 204, description = "It is removed."),
        (status = 404, description = "There is no such template or tag.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
pub(super) async fn remove_template_tag(
    State(state): State<AppState>,
    caller: Caller,
    PathParams(reference, tag): PathParams,
) -> Result<Response, Refusal> {
    state.service.remove_tag(&caller, &reference, &tag).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// List a template's older names
#[utoipa::path(
    get,
    path = "/v1/templates/{id}/aliases",
    operation_id = "list_template_aliases",
    tag = "templates",
    params(("id" = String, Path, description = "`tmpl_…` or a reference, percent-encoded")),
    responses(
        (status = 200, description = "Its older names.", body = Vec<TemplateAliasInfo>),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_template_aliases(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(reference): PathParam,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.template_aliases(&caller, &reference).await?)
}

/// Remove an older name
#[utoipa::path(
    delete,
    path = "/v1/templates/{id}/aliases/{alias}",
    operation_id = "remove_template_alias",
    tag = "templates",
    params(("id" = String, Path, description = "`tmpl_…` or a reference, percent-encoded"), ("alias" = String, Path, description = "`name` or `namespace/name`")),
    responses(
        (status = 204, description = "It is removed, and the name is free."),
        (status = 404, description = "There is no such template or alias.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
pub(super) async fn remove_template_alias(
    State(state): State<AppState>,
    caller: Caller,
    PathParams(reference, alias): PathParams,
) -> Result<Response, Refusal> {
    state.service.remove_alias(&caller, &reference, &alias).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// List a template's builds
///
/// Newest first; failed ones and those whose tags have moved, too.
#[utoipa::path(
    get,
    path = "/v1/templates/{id}/builds",
    operation_id = "list_template_builds",
    tag = "templates",
    params(("id" = String, Path, description = "`tmpl_…` or a reference, percent-encoded"), BuildsQuery),
    responses(
        (status = 200, description = "One page of builds.", body = TemplateBuildListResponse),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_template_builds(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(reference): PathParam,
    QueryParams(query): QueryParams<BuildsQuery>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.template_builds(&caller, &reference, query.into()).await?)
}

/// Rename a template
///
/// The old name stays as an alias.
#[utoipa::path(
    post,
    path = "/v1/templates/{id}/rename",
    operation_id = "rename_template",
    tag = "templates",
    params(("id" = String, Path, description = "`tmpl_…` or a reference, percent-encoded")),
    request_body = RenameTemplateRequest,
    responses(
        (status = 200, description = "The template.", body = TemplateInfo),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 409, description = "The name is taken.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
pub(super) async fn rename_template(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(reference): PathParam,
    JsonBody(request): JsonBody<RenameTemplateRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.rename_template(&caller, &reference, &request.new_name).await?)
}

/// Say who can use a template
///
/// A public template gives away the values of its variables and the memory of its start command: headers
/// `X-Nullspace-Warning` name the variables.
#[utoipa::path(
    patch,
    path = "/v1/templates/{id}/visibility",
    operation_id = "update_template_visibility",
    tag = "templates",
    params(("id" = String, Path, description = "`tmpl_…` or a reference, percent-encoded")),
    request_body = UpdateTemplateVisibilityRequest,
    responses(
        (status = 200, description = "The template.", body = TemplateInfo),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
pub(super) async fn update_template_visibility(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(reference): PathParam,
    JsonBody(request): JsonBody<UpdateTemplateVisibilityRequest>,
) -> Result<Response, Refusal> {
    warned(StatusCode::OK, &state.service.set_visibility(&caller, &reference, request.visibility).await?)
}
