//! Processes of a sandbox.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use nullspace_api::{ErrorResponse, ProcessInfo, ProcessLogs, SendStdinRequest};
use nullspace_service::Caller;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, OwnSandbox, OwnSandboxAnd, PathParams};
use crate::state::AppState;

/// List a sandbox's processes
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/processes",
    operation_id = "list_processes",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`")),
    responses(
        (status = 200, description = "The processes, by pid.", body = Vec<ProcessInfo>),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 409, description = "The sandbox does not run.", body = ErrorResponse),
        (status = 502, description = "The guest did not answer.", body = ErrorResponse),
        (status = 504, description = "The guest took too long.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_processes(OwnSandbox(sandbox): OwnSandbox) -> Result<Response, Refusal> {
    json(StatusCode::OK, &sandbox.list_processes().await?)
}

/// End a process
///
/// By SIGKILL.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/processes/{pid}/kill",
    operation_id = "kill_process",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`"), ("pid" = u32, Path, description = "Its pid in the sandbox")),
    responses(
        (status = 204, description = "It was sent the signal."),
        (status = 404, description = "There is no such sandbox or process.", body = ErrorResponse),
    ),
)]
pub(super) async fn kill_process(
    State(state): State<AppState>,
    caller: Caller,
    PathParams(id, pid): PathParams,
) -> Result<Response, Refusal> {
    let pid = number(&pid)?;
    state.service.live_sandbox(&caller, &id).await?.kill_process(pid).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Get a process's output
///
/// Of the start command, or of a command that was started in the background: what is kept of it so far.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/processes/{pid}/logs",
    operation_id = "get_process_logs",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`"), ("pid" = u32, Path, description = "Its pid in the sandbox")),
    responses(
        (status = 200, description = "The last 256 KiB of each stream.", body = ProcessLogs),
        (status = 404, description = "There is no such sandbox or process.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_process_logs(
    State(state): State<AppState>,
    caller: Caller,
    PathParams(id, pid): PathParams,
) -> Result<Response, Refusal> {
    let pid = number(&pid)?;
    json(StatusCode::OK, &state.service.live_sandbox(&caller, &id).await?.process_logs(pid).await?)
}

/// Write to a process's stdin
///
/// Of a command that was started in the background, or over the WebSocket. Its stdin stays open.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/processes/{pid}/stdin",
    operation_id = "send_stdin",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`"), ("pid" = u32, Path, description = "Its pid in the sandbox")),
    request_body = SendStdinRequest,
    responses(
        (status = 204, description = "It is written."),
        (status = 404, description = "There is no such sandbox or process.", body = ErrorResponse),
        (status = 409, description = "The sandbox does not run, or the process has no open stdin.", body = ErrorResponse),
        (status = 502, description = "The guest did not answer.", body = ErrorResponse),
        (status = 504, description = "The process does not read.", body = ErrorResponse),
    ),
)]
pub(super) async fn send_stdin(
    OwnSandboxAnd(sandbox, pid): OwnSandboxAnd,
    JsonBody(request): JsonBody<SendStdinRequest>,
) -> Result<Response, Refusal> {
    sandbox.send_stdin(number(&pid)?, request.data.as_bytes()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn number(pid: &str) -> Result<u32, Refusal> {
    pid.parse().map_err(|_| Refusal::invalid("The pid in the path must be a number."))
}
