//! Searching in many files of a sandbox, and replacing in them. What a search has left out, because of a limit or of a
//! user's rights, is in the header `X-Nullspace-Warning`: the answers of the contract have no place for it.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use nullspace_api::{
    ErrorResponse, FindInFilesRequest, ReplaceInFilesRequest, ReplaceResult, SearchFilesRequest, SearchMatch,
};
use nullspace_service::{Caller, FileAt};

use super::answers::{json, warned};
use crate::error::Refusal;
use crate::extract::{JsonBody, OwnSandbox};
use crate::state::AppState;

/// Find lines in files
///
/// Lines that match a regular expression, in the files below a directory or in one file, by path. Binary files are left out.
/// A search ends at 1000 lines, 4 MiB, 200000 files and directories, or 30 s; then a header `X-Nullspace-Warning` begins with
/// `truncated`.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/find",
    operation_id = "find_in_files",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body(content = FindInFilesRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The lines.", body = Vec<SearchMatch>),
        (status = 403, description = "The sandbox's user may not read there.", body = ErrorResponse),
        (status = 404, description = "There is no such sandbox or file.", body = ErrorResponse),
    ),
)]
pub(super) async fn find_in_files(
    State(state): State<AppState>,
    caller: Caller,
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<FindInFilesRequest>,
) -> Result<Response, Refusal> {
    let room = state.budget.room(caller.tenant);
    let at = FileAt { path: request.path, user: request.user };
    warned(StatusCode::OK, &sandbox.find_in_files(at, request.pattern, &room).await?)
}

/// Find files by name
///
/// Absolute paths of what is below a directory and matches a glob, in order. A search ends at 10000 names, or at the other
/// limits of `find`, with the same header.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/search",
    operation_id = "search_files",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body(content = SearchFilesRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The paths, a JSON array of strings."),
        (status = 403, description = "The sandbox's user may not read there.", body = ErrorResponse),
        (status = 404, description = "There is no such sandbox or directory.", body = ErrorResponse),
    ),
)]
pub(super) async fn search_files(
    State(state): State<AppState>,
    caller: Caller,
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<SearchFilesRequest>,
) -> Result<Response, Refusal> {
    let room = state.budget.room(caller.tenant);
    let at = FileAt { path: request.path, user: request.user };
    warned(StatusCode::OK, &sandbox.search_files(at, request.pattern, &room).await?)
}

/// Replace in files
///
/// In place: files keep their owner, mode and links. Files of up to 16 MiB, before and after. One in which nothing can be
/// replaced is named in the answer, and the others are changed.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/files/replace",
    operation_id = "replace_in_files",
    tag = "files",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body(content = ReplaceInFilesRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "What was replaced.", body = ReplaceResult),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
    ),
)]
pub(super) async fn replace_in_files(
    State(state): State<AppState>,
    caller: Caller,
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<ReplaceInFilesRequest>,
) -> Result<Response, Refusal> {
    let room = state.budget.room(caller.tenant);
    json(StatusCode::OK, &sandbox.replace_in_files(request, &room).await?)
}
