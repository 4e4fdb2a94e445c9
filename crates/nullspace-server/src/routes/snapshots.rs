//! Snapshots of sandboxes.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use nullspace_api::{ErrorResponse, JsonObject, PromoteSnapshotRequest, SnapshotInfo, TemplateInfo};
use nullspace_service::{Caller, RequestContext, SnapshotQuery};
use serde::Deserialize;
use utoipa::IntoParams;

use super::answers::{json, warned};
use crate::error::Refusal;
use crate::extract::{JsonBody, PathParam, QueryParams};
use crate::state::AppState;

/// Which snapshots to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only those of this sandbox.
    sandbox_id: Option<String>,
    /// Only those with these entries in their metadata: a JSON object.
    metadata: Option<String>,
}

/// List snapshots
#[utoipa::path(
    get,
    path = "/v1/snapshots",
    operation_id = "list_snapshots",
    tag = "snapshots",
    params(ListQuery),
    responses(
        (status = 200, description = "The caller's snapshots, newest first.", body = Vec<SnapshotInfo>),
        (status = 501, description = "This deployment has no snapshots.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_snapshots(
    State(state): State<AppState>,
    caller: Caller,
    QueryParams(query): QueryParams<ListQuery>,
) -> Result<Response, Refusal> {
    let metadata = match query.metadata.as_deref() {
        None => JsonObject::new(),
        Some(text) => serde_json::from_str(text)
            .map_err(|error| Refusal::invalid(format!("`metadata` must be a JSON object: {error}.")))?,
    };
    let query = SnapshotQuery { sandbox_id: query.sandbox_id, metadata };
    json(StatusCode::OK, &state.service.list_snapshots(&caller, query).await?)
}

/// Get a snapshot
#[utoipa::path(
    get,
    path = "/v1/snapshots/{id}",
    operation_id = "get_snapshot",
    tag = "snapshots",
    params(("id" = String, Path, description = "`snap_…`")),
    responses(
        (status = 200, description = "The snapshot.", body = SnapshotInfo),
        (status = 404, description = "There is no such snapshot.", body = ErrorResponse),
        (status = 501, description = "This deployment has no snapshots.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_snapshot(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.get_snapshot(&caller, &id).await?)
}

/// Promote a snapshot to a template
///
/// An extension of the contract. Every sandbox of the template starts with the memory, processes and disk of the snapshot, and
/// with the settings of the template that its sandbox was made from. The snapshot is resumed once in trial before; afterwards it
/// may be deleted. Variables of the sandbox are no defaults of the template, but processes that have them in memory keep them:
/// the answer has the header `X-Nullspace-Warning`.
#[utoipa::path(
    post,
    path = "/v1/snapshots/{id}/promote",
    operation_id = "promote_snapshot",
    tag = "snapshots",
    params(
        ("id" = String, Path, description = "`snap_…`"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key means the same request."),
    ),
    request_body = PromoteSnapshotRequest,
    responses(
        (status = 201, description = "The template.", body = TemplateInfo),
        (status = 400, description = "The name or tag is not valid, or of another namespace.", body = ErrorResponse),
        (status = 404, description = "There is no such snapshot.", body = ErrorResponse),
        (status = 409, description = "The name is an alias or reserved, or the snapshot cannot be resumed here.",
            body = ErrorResponse),
        (status = 503, description = "The host is full: try again.", body = ErrorResponse),
    ),
)]
pub(super) async fn promote_snapshot(
    State(state): State<AppState>,
    caller: Caller,
    context: RequestContext,
    PathParam(id): PathParam,
    JsonBody(request): JsonBody<PromoteSnapshotRequest>,
) -> Result<Response, Refusal> {
    warned(StatusCode::CREATED, &state.service.promote_snapshot(&caller, &id, request, &context).await?)
}

/// Delete a snapshot
///
/// Sandboxes that were made from it live on.
#[utoipa::path(
    delete,
    path = "/v1/snapshots/{id}",
    operation_id = "delete_snapshot",
    tag = "snapshots",
    params(("id" = String, Path, description = "`snap_…`")),
    responses(
        (status = 204, description = "It is deleted."),
        (status = 404, description = "There is no such snapshot.", body = ErrorResponse),
        (status = 409, description = "A paused sandbox is stored in it: end the sandbox instead.", body = ErrorResponse),
        (status = 501, description = "This deployment has no snapshots.", body = ErrorResponse),
    ),
)]
pub(super) async fn delete_snapshot(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    state.service.delete_snapshot(&caller, &id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
