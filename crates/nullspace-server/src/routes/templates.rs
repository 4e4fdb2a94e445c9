//! Templates.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use nullspace_api::{ErrorResponse, TemplateInfo};
use nullspace_service::Caller;
use serde::Deserialize;
use serde_json::Value;
use utoipa::IntoParams;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{PathParam, QueryParams};
use crate::fields::{self, Fields};
use crate::state::AppState;

/// What to answer with.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct FieldsQuery {
    /// Only these fields, separated by commas.
    fields: Option<String>,
}

/// List templates
#[utoipa::path(
    get,
    path = "/v1/templates",
    operation_id = "list_templates",
    tag = "templates",
    params(FieldsQuery),
    responses(
        (status = 200, description = "The templates that the caller can use.", body = Vec<TemplateInfo>),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_templates(
    State(state): State<AppState>,
    caller: Caller,
    QueryParams(query): QueryParams<FieldsQuery>,
) -> Result<Response, Refusal> {
    let fields = Fields::parse(query.fields.as_deref(), fields::TEMPLATE)?;
    let templates = state.service.list_templates(&caller).await?;
    let templates: Vec<Value> = templates.iter().map(|template| fields.pick(template)).collect::<Result<_, _>>()?;
    json(StatusCode::OK, &templates)
}

/// Get a template
#[utoipa::path(
    get,
    path = "/v1/templates/{id}",
    operation_id = "get_template",
    tag = "templates",
    params(("id" = String, Path, description = "`tmpl_…` or a reference, percent-encoded"), FieldsQuery),
    responses(
        (status = 200, description = "The template.", body = TemplateInfo),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_template(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    QueryParams(query): QueryParams<FieldsQuery>,
) -> Result<Response, Refusal> {
    let fields = Fields::parse(query.fields.as_deref(), fields::TEMPLATE)?;
    let template = state.service.get_template(&caller, &id).await?;
    json(StatusCode::OK, &fields.pick(&template)?)
}

/// Delete a template
///
/// Sandboxes that were made from it live on.
#[utoipa::path(
    delete,
    path = "/v1/templates/{id}",
    operation_id = "delete_template",
    tag = "templates",
    params(("id" = String, Path, description = "`tmpl_…` or a reference, percent-encoded")),
    responses(
        (status = 204, description = "It is deleted."),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 501, description = "This deployment has no template store.", body = ErrorResponse),
    ),
)]
pub(super) async fn delete_template(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    state.service.delete_template(&caller, &id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
