//! Sandboxes and commands in them.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use nullspace_api::{
    CreateSandboxRequest, CreateSandboxResponse, DestroySandboxResponse, ErrorResponse, ExecRequest, ExecResponse,
    JsonObject, SandboxInfo, SandboxListResponse, SandboxStatus,
};
use nullspace_service::{Caller, RequestContext, SandboxQuery};
use serde::Deserialize;
use serde_json::{Value, json as object};
use utoipa::IntoParams;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, OwnSandbox, PathParam, QueryParams};
use crate::fields::{self, Fields};
use crate::long::{self, Long};
use crate::state::AppState;

/// Largest page of sandboxes; a larger `limit` gets this many.
const MAX_PAGE: u32 = 1000;

/// What a command is charged with before it has written anything, bytes.
const EXEC: usize = 16 << 10;

/// Create a sandbox
///
/// A template's snapshot fixes processors and memory: when the request asks for others, the template's are used and
/// `warnings` says so.
#[utoipa::path(
    post,
    path = "/v1/sandboxes",
    operation_id = "create_sandbox",
    tag = "sandboxes",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key means the same request.")),
    request_body = CreateSandboxRequest,
    responses(
        (status = 201, description = "It runs.", body = CreateSandboxResponse),
        (status = 404, description = "There is no such template.", body = ErrorResponse),
        (status = 409, description = "The template must be rebuilt, or the Idempotency-Key was used otherwise.",
            body = ErrorResponse),
        (status = 501, description = "This deployment cannot make such a sandbox.", body = ErrorResponse),
    ),
)]
pub(super) async fn create_sandbox(
    State(state): State<AppState>,
    caller: Caller,
    context: RequestContext,
    JsonBody(request): JsonBody<CreateSandboxRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::CREATED, &state.service.create_sandbox(&caller, request, &context).await?)
}

/// Which sandboxes to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Only these states, separated by commas; all that have not ended when left out.
    state: Option<String>,
    /// At most so many, 1 to 1000.
    limit: Option<u32>,
    /// From the page before.
    next_token: Option<String>,
    /// Only of this template.
    template: Option<String>,
    /// Only with these entries in their metadata: a JSON object.
    metadata: Option<String>,
    /// Only these fields, separated by commas.
    fields: Option<String>,
}

/// List sandboxes
///
/// A bare array, or a page when `limit` or `next_token` is given.
#[utoipa::path(
    get,
    path = "/v1/sandboxes",
    operation_id = "list_sandboxes",
    tag = "sandboxes",
    params(ListQuery),
    responses((status = 200, description = "The caller's sandboxes.", body = SandboxListResponse)),
)]
pub(super) async fn list_sandboxes(
    State(state): State<AppState>,
    caller: Caller,
    QueryParams(query): QueryParams<ListQuery>,
) -> Result<Response, Refusal> {
    let fields = Fields::parse(query.fields.as_deref(), fields::SANDBOX)?;
    let paged = query.limit.is_some() || query.next_token.is_some();
    let page = state.service.list_sandboxes(&caller, query.try_into()?).await?;
    let items: Vec<Value> = page.items.iter().map(|sandbox| fields.pick(sandbox)).collect::<Result<_, _>>()?;
    if !paged {
        return json(StatusCode::OK, &items);
    }
    let mut body = object!({ "items": items, "has_next": page.has_next });
    if let (Some(token), Some(body)) = (page.next_token, body.as_object_mut()) {
        body.insert("next_token".to_owned(), token.into());
    }
    json(StatusCode::OK, &body)
}

impl TryFrom<ListQuery> for SandboxQuery {
    type Error = Refusal;

    fn try_from(query: ListQuery) -> Result<Self, Refusal> {
        let states = query.state.as_deref().unwrap_or_default();
        let states = states.split(',').map(str::trim).filter(|state| !state.is_empty());
        let states = states
            .map(|state| {
                serde_json::from_value::<SandboxStatus>(state.into())
                    .map_err(|error| Refusal::invalid(format!("`state` is wrong: {error}.")))
            })
            .collect::<Result<_, _>>()?;
        if query.limit == Some(0) {
            return Err(Refusal::invalid("`limit` must be at least 1."));
        }
        let metadata = match query.metadata.as_deref() {
            None => JsonObject::new(),
            Some(text) => serde_json::from_str(text)
                .map_err(|error| Refusal::invalid(format!("`metadata` must be a JSON object: {error}.")))?,
        };
        Ok(Self {
            states,
            limit: query.limit.map(|limit| limit.min(MAX_PAGE)),
            next_token: query.next_token,
            template: query.template,
            metadata,
        })
    }
}

/// What to answer with.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct FieldsQuery {
    /// Only these fields, separated by commas.
    fields: Option<String>,
}

/// Get a sandbox
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}",
    operation_id = "get_sandbox",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`"), FieldsQuery),
    responses(
        (status = 200, description = "The sandbox.", body = SandboxInfo),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_sandbox(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    QueryParams(query): QueryParams<FieldsQuery>,
) -> Result<Response, Refusal> {
    let fields = Fields::parse(query.fields.as_deref(), fields::SANDBOX)?;
    let mut sandbox = state.service.get_sandbox(&caller, &id).await?;
    if caller.read_only {
        // What listens on its ports does more than read.
        sandbox.traffic_access_token = None;
    }
    json(StatusCode::OK, &fields.pick(&sandbox)?)
}

/// End a sandbox
#[utoipa::path(
    delete,
    path = "/v1/sandboxes/{id}",
    operation_id = "destroy_sandbox",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`")),
    responses(
        (status = 200, description = "It has ended, and nothing of it is left.", body = DestroySandboxResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
    ),
)]
pub(super) async fn destroy_sandbox(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.destroy_sandbox(&caller, &id).await?)
}

/// Run a command
///
/// Answers when the command has ended, or with `background` as soon as it runs. The command is ended when its time is
/// over or when the client goes away.
#[utoipa::path(
    post,
    path = "/v1/sandboxes/{id}/exec",
    operation_id = "exec_command",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`")),
    request_body = ExecRequest,
    responses(
        (status = 200, description = "It has ended.", body = ExecResponse),
        (status = 404, description = "There is no such sandbox.", body = ErrorResponse),
        (status = 409, description = "The sandbox does not run.", body = ErrorResponse),
        (status = 502, description = "It could not be started.", body = ErrorResponse),
        (status = 504, description = "It took too long.", body = ErrorResponse),
    ),
)]
pub(super) async fn exec_command(
    State(state): State<AppState>,
    caller: Caller,
    OwnSandbox(sandbox): OwnSandbox,
    JsonBody(request): JsonBody<ExecRequest>,
) -> Result<Response, Refusal> {
    let room = state.budget.room(caller.tenant);
    // Nothing has run yet, so a client may try again; what runs and finds no room loses output, and says so.
    room.grow(EXEC)?;
    let mut answer = sandbox.exec(request, &room).await?;
    let (stdout, stderr) = (std::mem::take(&mut answer.stdout), std::mem::take(&mut answer.stderr));
    let fields = long::without(object!(answer), &["stdout", "stderr"])?;
    long::object(fields, vec![("stdout", Long::Text(stdout)), ("stderr", Long::Text(stderr))], room)
}
