//! Lifecycle events.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use nullspace_api::{
    ErrorResponse, ErrorResponseCode, LifecycleAudience, LifecycleEventListResponse, LifecycleOperation,
    LifecycleOrder, LifecycleStatus, Time,
};
use nullspace_service::{Caller, Error, EventQuery};
use serde::Deserialize;
use utoipa::IntoParams;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{PathParam, QueryParams};
use crate::state::AppState;

/// Largest page of events; a larger `limit` gets this many.
const MAX_PAGE: u32 = 1000;

/// Which events of a sandbox or snapshot to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct EventsQuery {
    /// Events to skip.
    offset: Option<u32>,
    /// At most so many, 1 to 1000; default 50.
    limit: Option<u32>,
    /// `asc` for the oldest first; default `desc`.
    #[param(inline)]
    order: Option<LifecycleOrder>,
    /// Only this operation.
    #[param(inline)]
    operation: Option<LifecycleOperation>,
    /// Only this status.
    #[param(inline)]
    status: Option<LifecycleStatus>,
    /// Only events at or after this time.
    #[param(inline)]
    from: Option<Time>,
    /// Only events at or before this time.
    #[param(inline)]
    to: Option<Time>,
}

impl TryFrom<EventsQuery> for EventQuery {
    type Error = Refusal;

    fn try_from(query: EventsQuery) -> Result<Self, Refusal> {
        let EventsQuery { offset, limit, order, operation, status, from, to } = query;
        if limit == Some(0) {
            return Err(Refusal::invalid("`limit` must be at least 1."));
        }
        if let (Some(from), Some(to)) = (from, to)
            && from > to
        {
            return Err(Refusal::invalid("`from` must not be after `to`."));
        }
        Ok(Self {
            operation,
            status,
            from: from.map(Time::timestamp),
            to: to.map(Time::timestamp),
            order: order.unwrap_or_default(),
            offset: offset.unwrap_or_default().into(),
            limit: limit.map(|limit| limit.min(MAX_PAGE)),
            ..Self::default()
        })
    }
}

/// Whose events to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WhoseQuery {
    /// `customer`; others are not served.
    #[param(inline)]
    audience: Option<LifecycleAudience>,
    /// Only events of this sandbox.
    sandbox_id: Option<String>,
    /// Only events that name this snapshot.
    snapshot_id: Option<String>,
    /// Only events with this source: the sandbox that was cloned, or whose snapshot was used.
    source_sandbox_id: Option<String>,
    /// Only events with this target: the sandbox that was made.
    target_sandbox_id: Option<String>,
}

/// List lifecycle events
///
/// Events of what is over stay for a while.
#[utoipa::path(
    get,
    path = "/v1/lifecycle/events",
    operation_id = "list_lifecycle_events",
    tag = "sandboxes",
    params(EventsQuery, WhoseQuery),
    responses(
        (status = 200, description = "A page of the caller's events.", body = LifecycleEventListResponse),
        (status = 501, description = "This deployment records no events.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_lifecycle_events(
    State(state): State<AppState>,
    caller: Caller,
    QueryParams(query): QueryParams<EventsQuery>,
    QueryParams(whose): QueryParams<WhoseQuery>,
) -> Result<Response, Refusal> {
    let WhoseQuery { audience, sandbox_id, snapshot_id, source_sandbox_id, target_sandbox_id } = whose;
    if audience == Some(LifecycleAudience::Internal) {
        return Err(Refusal::invalid("`audience=internal` is not served: leave `audience` out."));
    }
    let query =
        EventQuery { sandbox_id, snapshot_id, source_sandbox_id, target_sandbox_id, ..EventQuery::try_from(query)? };
    json(StatusCode::OK, &state.service.list_events(&caller, query).await?)
}

/// List a sandbox's lifecycle events
///
/// Also of a sandbox that is over, for a while. They are those that name it as their own sandbox, as source or as target.
#[utoipa::path(
    get,
    path = "/v1/sandboxes/{id}/lifecycle",
    operation_id = "list_sandbox_lifecycle_events",
    tag = "sandboxes",
    params(("id" = String, Path, description = "`sb_…`"), EventsQuery),
    responses(
        (status = 200, description = "A page of its events.", body = LifecycleEventListResponse),
        (status = 404, description = "There is no such sandbox, and there are no events of one.", body = ErrorResponse),
        (status = 501, description = "This deployment records no events.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_sandbox_lifecycle_events(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    QueryParams(query): QueryParams<EventsQuery>,
) -> Result<Response, Refusal> {
    let query = EventQuery { about_sandbox: Some(id.clone()), ..query.try_into()? };
    let page = state.service.list_events(&caller, query).await?;
    if page.events.is_empty() {
        known_sandbox(&state, &caller, &id).await?;
    }
    json(StatusCode::OK, &page)
}

/// List a snapshot's lifecycle events
///
/// Also of a snapshot that was deleted, for a while.
#[utoipa::path(
    get,
    path = "/v1/snapshots/{id}/lifecycle",
    operation_id = "list_snapshot_lifecycle_events",
    tag = "snapshots",
    params(("id" = String, Path, description = "`snap_…`"), EventsQuery),
    responses(
        (status = 200, description = "A page of the events that name it.", body = LifecycleEventListResponse),
        (status = 404, description = "There is no such snapshot, and there are no events of one.", body = ErrorResponse),
        (status = 501, description = "This deployment records no events.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_snapshot_lifecycle_events(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    QueryParams(query): QueryParams<EventsQuery>,
) -> Result<Response, Refusal> {
    let query = EventQuery { snapshot_id: Some(id.clone()), ..query.try_into()? };
    let page = state.service.list_events(&caller, query).await;
    if !page.as_ref().is_ok_and(|page| !page.events.is_empty()) {
        let any = EventQuery { snapshot_id: Some(id.clone()), limit: Some(1), ..EventQuery::default() };
        exists(&state, &caller, any, state.service.get_snapshot(&caller, &id).await.map(drop)).await?;
    }
    json(StatusCode::OK, &page?)
}

/// Refuses a sandbox that the caller never had. One that is over is known by its events.
pub(super) async fn known_sandbox(state: &AppState, caller: &Caller, id: &str) -> Result<(), Refusal> {
    let any = EventQuery { about_sandbox: Some(id.to_owned()), limit: Some(1), ..EventQuery::default() };
    exists(state, caller, any, state.service.get_sandbox(caller, id).await.map(drop)).await
}

/// `found`, or success when there are events of what was not found.
async fn exists(state: &AppState, caller: &Caller, any: EventQuery, found: Result<(), Error>) -> Result<(), Refusal> {
    match found.map_err(Refusal::from) {
        Err(missing) if missing.status == StatusCode::NOT_FOUND => {
            match state.service.list_events(caller, any).await {
                Ok(page) if !page.events.is_empty() => Ok(()),
                // A word that is no id is nothing's id.
                Err(error) if error.code != ErrorResponseCode::InvalidRequest => Err(error.into()),
                Ok(_) | Err(_) => Err(missing),
            }
        }
        other => other,
    }
}
