//! Terminals of a sandbox: listed, measured and ended. They are opened and followed over a WebSocket.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use nullspace_api::{ErrorResponse, PtySessionInfo, ResizeRequest};
use nullspace_service::{Caller, TerminalAt};

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, OwnSandbox, OwnSandboxAnd, PathParams};
use crate::state::AppState;

/// List a sandbox's terminals
///
/// Those that are open, with or without a client.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/pty",
    operation_id = "list_pty_sessions",
    tag = "pty",
    params(("id" = String, Path, description = "`sb_…`")),
    responses(
        (status = 200, description = "The terminals, by pid.", body = Vec<PtySessionInfo>),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 409, description = "The sandbox does not run, or its template must be built again.", body = ErrorResponse),
        (status = 502, description = "The guest did not answer.", body = ErrorResponse),
        (status = 501, description = "This deployment has no terminals.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_pty_sessions(OwnSandbox(sandbox): OwnSandbox) -> Result<Response, Refusal> {
    json(StatusCode::OK, &sandbox.list_terminals().await?)
}

/// Get a terminal
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/pty/{sid}",
    operation_id = "get_pty_session",
    tag = "pty",
    params(
        ("id" = String, Path, description = "`sb_…`"),
        ("sid" = String, Path, description = "The terminal's `session_id`, `pty_…`"),
    ),
    responses(
        (status = 200, description = "The terminal.", body = PtySessionInfo),
        (status = 404, description = "There is no such sandbox, or no such terminal is open.", body = ErrorResponse),
        (status = 409, description = "The sandbox does not run, or its template must be built again.", body = ErrorResponse),
        (status = 501, description = "This deployment has no terminals.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_pty_session(
    State(state): State<AppState>,
    caller: Caller,
    PathParams(id, sid): PathParams,
) -> Result<Response, Refusal> {
    let sandbox = state.service.live_sandbox(&caller, &id).await?;
    json(StatusCode::OK, &sandbox.get_terminal(TerminalAt::Session(sid)).await?)
}

/// End a terminal
///
/// Its processes get SIGHUP, and SIGKILL a second later. The answer comes when they are gone.
#[utoipa::path(
    delete,
    path = "/v1/sandboxes/{id}/pty/{sid}",
    operation_id = "kill_pty_session",
    tag = "pty",
    params(
        ("id" = String, Path, description = "`sb_…`"),
        ("sid" = String, Path, description = "The terminal's `session_id`, `pty_…`"),
    ),
    responses(
        (status = 204, description = "It has ended."),
        (status = 404, description = "There is no such sandbox or terminal.", body = ErrorResponse),
        (status = 409, description = "The sandbox does not run, or its template must be built again.", body = ErrorResponse),
        (status = 501, description = "This deployment has no terminals.", body = ErrorResponse),
    ),
)]
pub(super) async fn kill_pty_session(
    State(state): State<AppState>,
    caller: Caller,
    PathParams(id, sid): PathParams,
) -> Result<Response, Refusal> {
    let sandbox = state.service.live_sandbox(&caller, &id).await?;
    sandbox.kill_terminal(TerminalAt::Session(sid)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Set the size of a terminal
///
/// Its foreground job gets SIGWINCH.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/pty/{sid}/resize",
    operation_id = "resize_pty_session",
    tag = "pty",
    params(
        ("id" = String, Path, description = "`sb_…`"),
        ("sid" = String, Path, description = "The terminal's `session_id`, `pty_…`"),
    ),
    request_body = ResizeRequest,
    responses(
        (status = 204, description = "It has that size."),
        (status = 400, description = "Columns or rows are not from 1 to 1000.", body = ErrorResponse),
        (status = 404, description = "There is no such sandbox, or no such terminal is open.", body = ErrorResponse),
        (status = 409, description = "The sandbox does not run, or its template must be built again.", body = ErrorResponse),
        (status = 501, description = "This deployment has no terminals.", body = ErrorResponse),
    ),
)]
pub(super) async fn resize_pty_session(
    OwnSandboxAnd(sandbox, sid): OwnSandboxAnd,
    JsonBody(request): JsonBody<ResizeRequest>,
) -> Result<Response, Refusal> {
    sandbox.resize_terminal(TerminalAt::Session(sid), request).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
