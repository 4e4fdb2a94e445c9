//! Git repositories of a sandbox.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use nullspace_api::{
    ErrorResponse, GitAddRequest, GitBranchList, GitBranchRequest, GitCheckoutRequest, GitCloneRequest,
    GitCloneResponse, GitCommitRequest, GitCommitResponse, GitLogResponse200, GitOkResponse, GitStatus, GitSyncRequest,
    GitSyncResponse,
};
use nullspace_service::Caller;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, OwnSandbox, QueryParams};
use crate::state::AppState;

/// Which repository.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct RepositoryQuery {
    /// Path of the repository; a relative one starts at the sandbox's working directory.
    path: String,
}

/// Which commits.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct LogQuery {
    /// Path of the repository; a relative one starts at the sandbox's working directory.
    path: String,
    /// Most commits, 1 to 1000; 50.
    limit: Option<u32>,
}

fn ok() -> Result<Response, Refusal> {
    json(StatusCode::OK, &GitOkResponse { ok: true })
}

/// Clone a repository
///
/// Credentials are used for this clone and are not kept.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/git/clone",
    operation_id = "git_clone",
    tag = "git",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = GitCloneRequest,
    responses(
        (status = 200, description = "It is cloned.", body = GitCloneResponse),
        (status = 409, description = "The directory is not empty, or the image has no git.", body = ErrorResponse),
        (status = 502, description = "The remote refuses, or is not reached.", body = ErrorResponse),
        (status = 504, description = "It took longer than ten minutes.", body = ErrorResponse),
    ),
)]
pub(super) async fn git_clone(
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<GitCloneRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &sandbox.git_clone(request).await?)
}

/// Show what has changed in a repository
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/git/status",
    operation_id = "git_status",
    tag = "git",
    params(("id" = String, Path, description = "`sb_…`"), RepositoryQuery),
    responses(
        (status = 200, description = "Its state.", body = GitStatus),
        (status = 404, description = "There is no such sandbox or repository.", body = ErrorResponse),
    ),
)]
pub(super) async fn git_status(
    State(state): State<AppState>,
    caller: Caller,
    OwnSandbox(sandbox): OwnSandbox,
    QueryParams(query): QueryParams<RepositoryQuery>,
) -> Result<Response, Refusal> {
    let room = state.budget.room(caller.tenant);
    json(StatusCode::OK, &sandbox.git_status(&query.path, &room).await?)
}

/// Add files to the index
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/git/add",
    operation_id = "git_add",
    tag = "git",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = GitAddRequest,
    responses(
        (status = 200, description = "They are added.", body = GitOkResponse),
        (status = 404, description = "There is no such sandbox or repository.", body = ErrorResponse),
    ),
)]
pub(super) async fn git_add(
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<GitAddRequest>,
) -> Result<Response, Refusal> {
    sandbox.git_add(request).await?;
    ok()
}

/// Record a commit
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/git/commit",
    operation_id = "git_commit",
    tag = "git",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = GitCommitRequest,
    responses(
        (status = 200, description = "It is recorded.", body = GitCommitResponse),
        (status = 404, description = "There is no such sandbox or repository.", body = ErrorResponse),
        (status = 409, description = "There is nothing to commit, or nobody as its author.", body = ErrorResponse),
    ),
)]
pub(super) async fn git_commit(
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<GitCommitRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &sandbox.git_commit(request).await?)
}

/// Push commits
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/git/push",
    operation_id = "git_push",
    tag = "git",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = GitSyncRequest,
    responses(
        (status = 200, description = "They are pushed.", body = GitSyncResponse),
        (status = 404, description = "There is no such sandbox or repository.", body = ErrorResponse),
        (status = 409, description = "The remote has commits that this repository lacks.", body = ErrorResponse),
        (status = 502, description = "The remote refuses, or is not reached.", body = ErrorResponse),
    ),
)]
pub(super) async fn git_push(
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<GitSyncRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &sandbox.git_push(request).await?)
}

/// Pull commits
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/git/pull",
    operation_id = "git_pull",
    tag = "git",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = GitSyncRequest,
    responses(
        (status = 200, description = "They are merged.", body = GitSyncResponse),
        (status = 404, description = "There is no such sandbox or repository.", body = ErrorResponse),
        (status = 409, description = "They conflict with what is there.", body = ErrorResponse),
        (status = 502, description = "The remote refuses, or is not reached.", body = ErrorResponse),
    ),
)]
pub(super) async fn git_pull(
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<GitSyncRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &sandbox.git_pull(request).await?)
}

/// List branches
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/git/branch",
    operation_id = "git_branch_list",
    tag = "git",
    params(("id" = String, Path, description = "`sb_…`"), RepositoryQuery),
    responses(
        (status = 200, description = "The local branches.", body = GitBranchList),
        (status = 404, description = "There is no such sandbox or repository.", body = ErrorResponse),
    ),
)]
pub(super) async fn git_branch_list(
    State(state): State<AppState>,
    caller: Caller,
    OwnSandbox(sandbox): OwnSandbox,
    QueryParams(query): QueryParams<RepositoryQuery>,
) -> Result<Response, Refusal> {
    let room = state.budget.room(caller.tenant);
    json(StatusCode::OK, &sandbox.git_branches(&query.path, &room).await?)
}

/// Create or delete a branch
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/git/branch",
    operation_id = "git_branch",
    tag = "git",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = GitBranchRequest,
    responses(
        (status = 200, description = "It is done.", body = GitOkResponse),
        (status = 404, description = "There is no such sandbox or repository.", body = ErrorResponse),
        (status = 409, description = "The branch exists, does not exist, or is not merged.", body = ErrorResponse),
    ),
)]
pub(super) async fn git_branch(
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<GitBranchRequest>,
) -> Result<Response, Refusal> {
    sandbox.git_branch(request).await?;
    ok()
}

/// Check out a branch, tag or commit
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/git/checkout",
    operation_id = "git_checkout",
    tag = "git",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = GitCheckoutRequest,
    responses(
        (status = 200, description = "It is checked out.", body = GitOkResponse),
        (status = 404, description = "There is no such sandbox or repository.", body = ErrorResponse),
        (status = 409, description = "There is no such branch, tag or commit, or local changes are in the way.", body = ErrorResponse),
    ),
)]
pub(super) async fn git_checkout(
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<GitCheckoutRequest>,
) -> Result<Response, Refusal> {
    sandbox.git_checkout(request).await?;
    ok()
}

/// List the newest commits
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/git/log",
    operation_id = "git_log",
    tag = "git",
    params(("id" = String, Path, description = "`sb_…`"), LogQuery),
    responses(
        (status = 200, description = "The commits, newest first; none in a repository without a commit.", body = GitLogResponse200),
        (status = 404, description = "There is no such sandbox or repository.", body = ErrorResponse),
    ),
)]
pub(super) async fn git_log(
    State(state): State<AppState>,
    caller: Caller,
    OwnSandbox(sandbox): OwnSandbox,
    QueryParams(query): QueryParams<LogQuery>,
) -> Result<Response, Refusal> {
    let room = state.budget.room(caller.tenant);
    let commits = sandbox.git_log(&query.path, query.limit, &room).await?;
    json(StatusCode::OK, &GitLogResponse200 { commits })
}
