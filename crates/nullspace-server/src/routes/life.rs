//! The life of a sandbox after its start: pauses, forks, snapshots, its timeout, and its use.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use nullspace_api::{
    CreateSnapshotRequest, ErrorResponse, SandboxHandle, SandboxMetrics, SetTimeoutRequest, SetTimeoutResponse,
    SnapshotInfo, UpdateEgressRequest, UpdateEgressResponse,
};
use nullspace_service::{Caller, RequestContext};
use serde::Deserialize;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, OptionalJsonBody, PathParam};
use crate::state::AppState;

/// The body of an operation that takes none: absent, empty, or an object.
#[derive(Default, Deserialize)]
pub(super) struct Nothing {}

/// Pause a sandbox
///
/// Memory, processes and disk are kept as a snapshot, and its machine ends. The sandbox is then `paused`, and can be resumed
/// once.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/hibernate",
    operation_id = "hibernate_sandbox",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`")),
    responses(
        (status = 200, description = "It is paused. The snapshot can be resumed.", body = SnapshotInfo),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 409, description = "It does not run, or another transition of it is under way: try again.",
            body = ErrorResponse),
        (status = 501, description = "This deployment cannot pause sandboxes.", body = ErrorResponse),
    ),
)]
pub(super) async fn hibernate_sandbox(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    OptionalJsonBody(Nothing {}): OptionalJsonBody<Nothing>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.hibernate_sandbox(&caller, &id).await?)
}

/// Resume a sandbox
///
/// The new sandbox has an id of its own, and processes, files, variables and network as before. A paused sandbox that was
/// resumed is over. A reusable snapshot can be resumed any number of times.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/resume",
    operation_id = "resume_sandbox",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`snap_…`, or `sb_…` of a paused sandbox")),
    responses(
        (status = 200, description = "It runs.", body = SandboxHandle),
        (status = 404, description = "There is no such snapshot or paused sandbox.", body = ErrorResponse),
        (status = 409, description = "It cannot be resumed here, or another transition of it is under way.",
            body = ErrorResponse),
        (status = 501, description = "This deployment cannot resume sandboxes.", body = ErrorResponse),
    ),
)]
pub(super) async fn resume_sandbox(
    State(state): State<AppState>,
    caller: Caller,
    context: RequestContext,
    PathParam(id): PathParam,
    OptionalJsonBody(Nothing {}): OptionalJsonBody<Nothing>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.resume_sandbox(&caller, &id, &context).await?)
}

/// Fork a sandbox
///
/// A clone of its live state: processes, memory and files, with an id and a network of its own. The source goes on.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/fork",
    operation_id = "fork_sandbox",
    tag = "sandboxes",
    params(
        ("id" = String, Path, description = "`sb_…`"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key means the same request."),
    ),
    responses(
        (status = 201, description = "The clone runs.", body = SandboxHandle),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 409, description = "It does not run, or another transition of it is under way: try again.",
            body = ErrorResponse),
        (status = 501, description = "This deployment cannot fork sandboxes.", body = ErrorResponse),
    ),
)]
pub(super) async fn fork_sandbox(
    State(state): State<AppState>,
    caller: Caller,
    context: RequestContext,
    PathParam(id): PathParam,
    OptionalJsonBody(Nothing {}): OptionalJsonBody<Nothing>,
) -> Result<Response, Refusal> {
    json(StatusCode::CREATED, &state.service.fork_sandbox(&caller, &id, &context).await?)
}

/// Take a snapshot of a sandbox
///
/// Any number of sandboxes can be made from it. The source goes on after a short pause.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/snapshots",
    operation_id = "create_snapshot",
    tag = "sandboxes",
    params(
        ("id" = String, Path, description = "`sb_…`"),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key means the same request."),
    ),
    request_body = Option<CreateSnapshotRequest>,
    responses(
        (status = 201, description = "It is stored.", body = SnapshotInfo),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 409, description = "It does not run, or another transition of it is under way: try again.",
            body = ErrorResponse),
        (status = 501, description = "This deployment cannot take snapshots.", body = ErrorResponse),
    ),
)]
pub(super) async fn create_snapshot(
    State(state): State<AppState>,
    caller: Caller,
    context: RequestContext,
    PathParam(id): PathParam,
    OptionalJsonBody(request): OptionalJsonBody<CreateSnapshotRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::CREATED, &state.service.create_snapshot(&caller, &id, request, &context).await?)
}

/// Set a sandbox's timeout
///
/// It counts from now.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/timeout",
    operation_id = "set_timeout",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = SetTimeoutRequest,
    responses(
        (status = 200, description = "The timeout in force.", body = SetTimeoutResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 409, description = "It does not run, or a transition of it is under way: try again.",
            body = ErrorResponse),
        (status = 501, description = "This deployment cannot change timeouts.", body = ErrorResponse),
    ),
)]
pub(super) async fn set_timeout(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    JsonBody(request): JsonBody<SetTimeoutRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.set_timeout(&caller, &id, request).await?)
}

/// Change a sandbox's egress policy
///
/// The policy replaces the one before. It holds at once, also for established connections.
#[utoipa::path(
    patch,
    path = "/v1/sandboxes/{id}/egress",
    operation_id = "update_sandbox_egress",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = UpdateEgressRequest,
    responses(
        (status = 200, description = "The policy in force.", body = UpdateEgressResponse),
        (status = 400, description = "The policy is not valid.", body = ErrorResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 409, description = "It does not run, has no internet access, or a transition of it is under way.",
            body = ErrorResponse),
        (status = 501, description = "This deployment cannot enforce egress policies.", body = ErrorResponse),
    ),
)]
pub(super) async fn update_sandbox_egress(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    JsonBody(request): JsonBody<UpdateEgressRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.update_egress(&caller, &id, request).await?)
}

/// Get a sandbox's use of its machine
///
/// Samples, oldest first. The last one is of now.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/metrics",
    operation_id = "get_metrics",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`")),
    responses(
        (status = 200, description = "The samples.", body = Vec<SandboxMetrics>),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 409, description = "The sandbox does not run.", body = ErrorResponse),
        (status = 501, description = "This deployment does not measure sandboxes.", body = ErrorResponse),
        (status = 502, description = "The guest did not answer.", body = ErrorResponse),
        (status = 504, description = "The guest took too long.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_metrics(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.sandbox_metrics(&caller, &id).await?)
}
