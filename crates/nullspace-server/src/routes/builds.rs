//! Starting and following builds.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use nullspace_api::{
    CancelTemplateBuildRequest, CreateTemplateRequest, ErrorResponse, PromoteTemplateBuildRequest,
    RetryTemplateBuildRequest, TemplateBuild, TemplateBuildLogEntry, TemplateBuildPlanResponse,
    TemplateBuildStatusSnapshot, TemplateBuildValidationResponse, TemplateInfo,
};
use nullspace_service::{Caller, RequestContext, Warned};
use serde::Deserialize;
use utoipa::IntoParams;

use super::answers::{json, warned, with_warnings};
use crate::error::Refusal;
use crate::extract::{JsonBody, OptionalJsonBody, PathParam, QueryParams};
use crate::serve::Stopping;
use crate::sse;
use crate::state::AppState;

/// Start a background template build
///
/// The build is queued; follow it by its status or its log. One whose context names files that nobody uploaded is accepted,
/// and ends with `file_upload_error`, phase `preflight`, reason `unknown_blob`.
#[utoipa::path(
    post,
    path = "/v1/templates/builds",
    operation_id = "start_template_build",
    tag = "templates",
    request_body = CreateTemplateRequest,
    responses(
        (status = 202, description = "Build accepted", body = TemplateBuild),
        (status = 404, description = "There is no such template or name claim.", body = ErrorResponse),
        (status = 409, description = "The name is claimed, or the Idempotency-Key was used for another request.",
            body = ErrorResponse),
        (status = 501, description = "This deployment cannot build from such a source.", body = ErrorResponse),
    ),
)]
pub(super) async fn start_template_build(
    State(state): State<AppState>,
    caller: Caller,
    context: RequestContext,
    JsonBody(request): JsonBody<CreateTemplateRequest>,
) -> Result<Response, Refusal> {
    warned(StatusCode::ACCEPTED, &state.service.start_build(&caller, request, &context).await?)
}

/// Start a build and stream its log
///
/// The log as server-sent events, from its first entry to its last. The build goes on when the client goes away: follow it
/// by its `build_id`, which every entry has.
#[utoipa::path(
    post,
    path = "/v1/templates/build",
    operation_id = "build_template",
    tag = "templates",
    request_body = CreateTemplateRequest,
    responses(
        (status = 200, description = "Log entries.", body = TemplateBuildLogEntry, content_type = "text/event-stream"),
        (status = 404, description = "There is no such template or name claim.", body = ErrorResponse),
        (status = 409, description = "The name is claimed, or the Idempotency-Key was used for another request.",
            body = ErrorResponse),
        (status = 501, description = "This deployment cannot build from such a source.", body = ErrorResponse),
    ),
)]
pub(super) async fn build_template(
    State(state): State<AppState>,
    caller: Caller,
    context: RequestContext,
    stopping: Option<Extension<Stopping>>,
    JsonBody(request): JsonBody<CreateTemplateRequest>,
) -> Result<Response, Refusal> {
    // Before anything is begun that nobody would hear of.
    let following = sse::follow(&state, &caller)?;
    let context = RequestContext { refuse_unknown_files: true, ..context };
    let Warned { value: build, warnings } = state.service.start_build(&caller, request, &context).await?;
    let entries = state.service.build_logs(&caller, &build.build_id, 0, true).await?;
    let stopping = stopping.map(|Extension(Stopping(token))| token).unwrap_or_default();
    Ok(with_warnings(sse::response(entries, following, state.config.heartbeat, stopping), &warnings))
}

/// Start a build and wait for its end
///
/// Deprecated: an answer takes as long as the build. The build goes on when the client goes away.
#[utoipa::path(
    post,
    path = "/v1/templates",
    operation_id = "create_template",
    tag = "templates",
    request_body = CreateTemplateRequest,
    responses(
        (status = 201, description = "The template.", body = TemplateInfo),
        (status = 404, description = "There is no such template or name claim.", body = ErrorResponse),
        (status = 409, description = "The name is claimed, or the build was cancelled.", body = ErrorResponse),
        (status = 501, description = "This deployment cannot build from such a source.", body = ErrorResponse),
    ),
)]
pub(super) async fn create_template(
    State(state): State<AppState>,
    caller: Caller,
    context: RequestContext,
    JsonBody(request): JsonBody<CreateTemplateRequest>,
) -> Result<Response, Refusal> {
    let context = RequestContext { refuse_unknown_files: true, ..context };
    let Warned { value: build, warnings } = state.service.start_build(&caller, request, &context).await?;
    let value = state.service.wait_for_template(&caller, &build.build_id).await?;
    warned(StatusCode::CREATED, &Warned { value, warnings })
}

/// Check a build request
///
/// Says everything that is wrong with it at once; nothing is built or stored.
#[utoipa::path(
    post,
    path = "/v1/templates/validate",
    operation_id = "validate_template_build",
    tag = "templates",
    request_body = CreateTemplateRequest,
    responses((status = 200, description = "What is wrong with it.", body = TemplateBuildValidationResponse)),
)]
pub(super) async fn validate_template_build(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(request): JsonBody<CreateTemplateRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.validate_build(&caller, request).await?)
}

/// Plan a build
///
/// What a build of the request would do; nothing is built or stored.
#[utoipa::path(
    post,
    path = "/v1/templates/plan",
    operation_id = "plan_template_build",
    tag = "templates",
    request_body = CreateTemplateRequest,
    responses(
        (status = 200, description = "The plan.", body = TemplateBuildPlanResponse),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
    ),
)]
pub(super) async fn plan_template_build(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(request): JsonBody<CreateTemplateRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.plan_build(&caller, request).await?)
}

/// Retry a build
///
/// A new build of the same definition. Credentials are not stored: those of the first time must be given again.
#[utoipa::path(
    post,
    path = "/v1/templates/builds/{build_id}/retry",
    operation_id = "retry_template_build",
    tag = "templates",
    params(("build_id" = String, Path, description = "`tb_…`")),
    request_body = Option<RetryTemplateBuildRequest>,
    responses(
        (status = 202, description = "Build accepted", body = TemplateBuild),
        (status = 404, description = "There is no such build.", body = ErrorResponse),
        (status = 409, description = "The build is not over, or it is ready.", body = ErrorResponse),
        (status = 501, description = "This deployment cannot build from such a source.", body = ErrorResponse),
    ),
)]
pub(super) async fn retry_template_build(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(build_id): PathParam,
    OptionalJsonBody(request): OptionalJsonBody<RetryTemplateBuildRequest>,
) -> Result<Response, Refusal> {
    warned(StatusCode::ACCEPTED, &state.service.retry_build(&caller, &build_id, request).await?)
}

/// Promote a build
///
/// Moves tags to what the build made.
#[utoipa::path(
    post,
    path = "/v1/templates/builds/{build_id}/promote",
    operation_id = "promote_template_build",
    tag = "templates",
    params(("build_id" = String, Path, description = "`tb_…`")),
    request_body = PromoteTemplateBuildRequest,
    responses(
        (status = 200, description = "The template.", body = TemplateInfo),
        (status = 404, description = "There is no such build.", body = ErrorResponse),
        (status = 409, description = "The build made nothing that can be used.", body = ErrorResponse),
    ),
)]
pub(super) async fn promote_template_build(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(build_id): PathParam,
    JsonBody(request): JsonBody<PromoteTemplateBuildRequest>,
) -> Result<Response, Refusal> {
    warned(StatusCode::OK, &state.service.promote_build(&caller, &build_id, request).await?)
}

/// Where to start reading.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StatusQuery {
    /// First log entry to answer with; 0.
    offset: Option<u64>,
}

/// Get a build and its new log entries
#[utoipa::path(
    get,
    path = "/v1/templates/builds/{build_id}",
    operation_id = "get_template_build_status",
    tag = "templates",
    params(("build_id" = String, Path, description = "`tb_…`"), StatusQuery),
    responses(
        (status = 200, description = "The build, and its log from the offset on.", body = TemplateBuildStatusSnapshot),
        (status = 404, description = "There is no such build.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_template_build_status(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(build_id): PathParam,
    QueryParams(query): QueryParams<StatusQuery>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.build_status(&caller, &build_id, query.offset.unwrap_or(0)).await?)
}

/// Where to start reading, and whether to wait for more.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsQuery {
    /// First log entry to send; 0. Goes before `cursor`.
    offset: Option<u64>,
    /// Another spelling of `offset`.
    cursor: Option<u64>,
    /// True: go on until the build ends. False: end after what there is.
    follow: Option<bool>,
}

/// Stream a build's log
///
/// Server-sent events, one entry each: `id` is the entry's offset, `event` is `log`, `data` is the entry as one line of
/// JSON. The stream ends after the entry of kind `end`, `error` or `cancelled`. A `Last-Event-ID` header is honoured when
/// neither `offset` nor `cursor` is given.
#[utoipa::path(
    get,
    path = "/v1/templates/builds/{build_id}/logs",
    operation_id = "stream_template_build_logs",
    tag = "templates",
    params(("build_id" = String, Path, description = "`tb_…`"), LogsQuery),
    responses(
        (status = 200, description = "Log entries.", body = TemplateBuildLogEntry, content_type = "text/event-stream"),
        (status = 404, description = "There is no such build.", body = ErrorResponse),
    ),
)]
pub(super) async fn stream_template_build_logs(
    State(state): State<AppState>,
    caller: Caller,
    stopping: Option<Extension<Stopping>>,
    headers: HeaderMap,
    PathParam(build_id): PathParam,
    QueryParams(query): QueryParams<LogsQuery>,
) -> Result<Response, Refusal> {
    let offset = query.offset.or(query.cursor).or_else(|| after_last_event(&headers)).unwrap_or(0);
    let following = sse::follow(&state, &caller)?;
    let entries = state.service.build_logs(&caller, &build_id, offset, query.follow.unwrap_or(false)).await?;
    // Without a server around the router there is nothing that stops.
    let stopping = stopping.map(|Extension(Stopping(token))| token).unwrap_or_default();
    Ok(sse::response(entries, following, state.config.heartbeat, stopping))
}

/// What a browser's EventSource asks for when it comes back by itself.
fn after_last_event(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.parse::<u64>().ok()?.checked_add(1)
}

/// Cancel a build
///
/// A build that has ended stays as it is.
#[utoipa::path(
    post,
    path = "/v1/templates/builds/{build_id}/cancel",
    operation_id = "cancel_template_build",
    tag = "templates",
    params(("build_id" = String, Path, description = "`tb_…`")),
    request_body = Option<CancelTemplateBuildRequest>,
    responses(
        (status = 200, description = "The build, cancelled or about to be.", body = TemplateBuildStatusSnapshot),
        (status = 404, description = "There is no such build.", body = ErrorResponse),
    ),
)]
pub(super) async fn cancel_template_build(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(build_id): PathParam,
    OptionalJsonBody(request): OptionalJsonBody<CancelTemplateBuildRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.cancel_build(&caller, &build_id, request.reason).await?)
}
