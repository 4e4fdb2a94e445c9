//! Warm pools of templates.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use nullspace_api::{
    CreateTemplateWarmPoolRequest, ErrorResponse, ListTemplateWarmPoolsStatus, TemplateWarmPool,
    TemplateWarmPoolListResponse, TemplateWarmPoolState, TemplateWarmPoolStatusCounts, UpdateTemplateWarmPoolRequest,
};
use nullspace_service::{Caller, WarmPoolAct, WarmPoolQuery};
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::IntoParams;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, PathParam, QueryParams};
use crate::state::AppState;

/// Create a warm pool
///
/// It resumes machines from the template ahead, up to `min_ready`. A create with `warm_pool` takes one of them.
#[utoipa::path(
    post,
    path = "/v1/template-warm-pools",
    operation_id = "create_template_warm_pool",
    tag = "warm pools",
    request_body = CreateTemplateWarmPoolRequest,
    responses(
        (status = 201, description = "The pool, which begins to make machines.", body = TemplateWarmPool),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
    ),
)]
pub(super) async fn create_template_warm_pool(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(request): JsonBody<CreateTemplateWarmPoolRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::CREATED, &state.service.create_warm_pool(&caller, request).await?)
}

/// Which pools to list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the query is read pair by pair, since `label` may be there several times")]
pub(super) struct ListQuery {
    /// Only those of this template, as their requests named it.
    template: Option<String>,
    /// Only those in this state. Without it, those that are not deleted.
    #[param(inline)]
    state: Option<TemplateWarmPoolState>,
    /// Only those that fare so.
    #[param(inline)]
    status: Option<ListTemplateWarmPoolsStatus>,
    /// Only those with this label, `key=value`. May be given several times.
    label: Option<Vec<String>>,
    /// At most so many.
    limit: Option<u32>,
}

/// Reads the word of an enum.
fn word<T: DeserializeOwned>(name: &str, value: &str) -> Result<T, Refusal> {
    serde_json::from_value(Value::String(value.to_owned()))
        .map_err(|_| Refusal::invalid(format!("`{name}` has no value `{}`.", value.escape_debug())))
}

fn query(pairs: Vec<(String, String)>) -> Result<WarmPoolQuery, Refusal> {
    let mut query = WarmPoolQuery::default();
    for (name, value) in pairs {
        match name.as_str() {
            "template" => query.template = Some(value),
            "state" => query.state = Some(word("state", &value)?),
            "status" => query.status = Some(word("status", &value)?),
            "label" => match value.split_once('=') {
                Some((key, value)) => query.labels.push((key.to_owned(), value.to_owned())),
                None => return Err(Refusal::invalid("`label` is written `key=value`.")),
            },
            "limit" => match value.parse() {
                Ok(limit) if limit > 0 => query.limit = Some(limit),
                _ => return Err(Refusal::invalid("`limit` must be a whole number, and at least 1.")),
            },
            _ => {}
        }
    }
    Ok(query)
}

/// List warm pools
#[utoipa::path(
    get,
    path = "/v1/template-warm-pools",
    operation_id = "list_template_warm_pools",
    tag = "warm pools",
    params(ListQuery),
    responses((status = 200, description = "The caller's pools, newest first.", body = TemplateWarmPoolListResponse)),
)]
pub(super) async fn list_template_warm_pools(
    State(state): State<AppState>,
    caller: Caller,
    QueryParams(pairs): QueryParams<Vec<(String, String)>>,
) -> Result<Response, Refusal> {
    let items = state.service.list_warm_pools(&caller, query(pairs)?).await?;
    json(StatusCode::OK, &TemplateWarmPoolListResponse { items })
}

/// Get a warm pool
#[utoipa::path(
    get,
    path = "/v1/template-warm-pools/{warm_pool_id}",
    operation_id = "get_template_warm_pool",
    tag = "warm pools",
    params(("warm_pool_id" = String, Path, description = "`twp_…`")),
    responses(
        (status = 200, description = "The pool.", body = TemplateWarmPool),
        (status = 404, description = "There is no such pool.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_template_warm_pool(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.get_warm_pool(&caller, &id).await?)
}

/// Change a warm pool
///
/// What is left out stays. Machines of a template that it had before are ended.
#[utoipa::path(
    patch,
    path = "/v1/template-warm-pools/{warm_pool_id}",
    operation_id = "update_template_warm_pool",
    tag = "warm pools",
    params(("warm_pool_id" = String, Path, description = "`twp_…`")),
    request_body = UpdateTemplateWarmPoolRequest,
    responses(
        (status = 200, description = "The pool as it is now.", body = TemplateWarmPool),
        (status = 404, description = "There is no such pool or template.", body = ErrorResponse),
    ),
)]
pub(super) async fn update_template_warm_pool(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    JsonBody(request): JsonBody<UpdateTemplateWarmPoolRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.update_warm_pool(&caller, &id, request).await?)
}

/// Delete a warm pool
///
/// Its machines are ended. Sandboxes that came from it stay.
#[utoipa::path(
    delete,
    path = "/v1/template-warm-pools/{warm_pool_id}",
    operation_id = "delete_template_warm_pool",
    tag = "warm pools",
    params(("warm_pool_id" = String, Path, description = "`twp_…`")),
    responses(
        (status = 200, description = "The pool, deleted.", body = TemplateWarmPool),
        (status = 404, description = "There is no such pool.", body = ErrorResponse),
    ),
)]
pub(super) async fn delete_template_warm_pool(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    act(&state, &caller, &id, WarmPoolAct::Delete).await
}

/// Enable a warm pool
#[utoipa::path(
    post,
    path = "/v1/template-warm-pools/{warm_pool_id}/enable",
    operation_id = "enable_template_warm_pool",
    tag = "warm pools",
    params(("warm_pool_id" = String, Path, description = "`twp_…`")),
    responses(
        (status = 200, description = "The pool, which makes machines again.", body = TemplateWarmPool),
        (status = 404, description = "There is no such pool.", body = ErrorResponse),
    ),
)]
pub(super) async fn enable_template_warm_pool(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    act(&state, &caller, &id, WarmPoolAct::Enable).await
}

/// Disable a warm pool
///
/// Its machines are ended.
#[utoipa::path(
    post,
    path = "/v1/template-warm-pools/{warm_pool_id}/disable",
    operation_id = "disable_template_warm_pool",
    tag = "warm pools",
    params(("warm_pool_id" = String, Path, description = "`twp_…`")),
    responses(
        (status = 200, description = "The pool, without machines.", body = TemplateWarmPool),
        (status = 404, description = "There is no such pool.", body = ErrorResponse),
    ),
)]
pub(super) async fn disable_template_warm_pool(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    act(&state, &caller, &id, WarmPoolAct::Disable).await
}

/// Drain a warm pool
///
/// Its machines are ended, and it makes no more until it is enabled again.
#[utoipa::path(
    post,
    path = "/v1/template-warm-pools/{warm_pool_id}/drain",
    operation_id = "drain_template_warm_pool",
    tag = "warm pools",
    params(("warm_pool_id" = String, Path, description = "`twp_…`")),
    responses(
        (status = 200, description = "The pool, draining.", body = TemplateWarmPool),
        (status = 404, description = "There is no such pool.", body = ErrorResponse),
    ),
)]
pub(super) async fn drain_template_warm_pool(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    act(&state, &caller, &id, WarmPoolAct::Drain).await
}

/// Reconcile a warm pool
///
/// Compares its machines with what it should have, now, and makes what is missing.
#[utoipa::path(
    post,
    path = "/v1/template-warm-pools/{warm_pool_id}/reconcile",
    operation_id = "reconcile_template_warm_pool",
    tag = "warm pools",
    params(("warm_pool_id" = String, Path, description = "`twp_…`")),
    responses(
        (status = 200, description = "The pool after the comparison.", body = TemplateWarmPool),
        (status = 404, description = "There is no such pool.", body = ErrorResponse),
    ),
)]
pub(super) async fn reconcile_template_warm_pool(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    act(&state, &caller, &id, WarmPoolAct::Reconcile).await
}

async fn act(state: &AppState, caller: &Caller, id: &str, act: WarmPoolAct) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.act_on_warm_pool(caller, id, act).await?)
}

/// Count a warm pool's machines
#[utoipa::path(
    get,
    path = "/v1/template-warm-pools/{warm_pool_id}/status",
    operation_id = "get_template_warm_pool_status",
    tag = "warm pools",
    params(("warm_pool_id" = String, Path, description = "`twp_…`")),
    responses(
        (status = 200, description = "Its machines, by what they are.", body = TemplateWarmPoolStatusCounts),
        (status = 404, description = "There is no such pool.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_template_warm_pool_status(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.get_warm_pool(&caller, &id).await?.status)
}
