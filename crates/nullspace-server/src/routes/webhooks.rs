//! Webhooks of lifecycle events, and their deliveries.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use nullspace_api::{
    CreateLifecycleWebhookRequest, ErrorResponse, LifecycleWebhookDeliveryDetail, LifecycleWebhookDeliveryInfo,
    LifecycleWebhookInfo, UpdateLifecycleWebhookRequest,
};
use nullspace_service::Caller;
use serde::Deserialize;
use utoipa::IntoParams;

use super::answers::json;
use crate::error::Refusal;
use crate::extract::{JsonBody, PathParam, PathParams, QueryParams};
use crate::state::AppState;

/// Deliveries of a page when the request says nothing.
const PAGE: u32 = 50;
/// Largest page of deliveries; a larger `limit` gets this many.
const MAX_PAGE: u32 = 1000;

/// Create a webhook
///
/// Events of its operations are sent to its URL by POST, signed, and sent again until they are confirmed.
#[utoipa::path(
    post,
    path = "/v1/lifecycle/webhooks",
    operation_id = "create_lifecycle_webhook",
    tag = "webhooks",
    request_body = CreateLifecycleWebhookRequest,
    responses(
        (status = 201, description = "Events are sent from now on.", body = LifecycleWebhookInfo),
        (status = 501, description = "This deployment has no webhooks.", body = ErrorResponse),
    ),
)]
pub(super) async fn create_lifecycle_webhook(
    State(state): State<AppState>,
    caller: Caller,
    JsonBody(request): JsonBody<CreateLifecycleWebhookRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::CREATED, &state.service.create_webhook(&caller, request).await?)
}

/// List webhooks
#[utoipa::path(
    get,
    path = "/v1/lifecycle/webhooks",
    operation_id = "list_lifecycle_webhooks",
    tag = "webhooks",
    responses(
        (status = 200, description = "The caller's webhooks.", body = Vec<LifecycleWebhookInfo>),
        (status = 501, description = "This deployment has no webhooks.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_lifecycle_webhooks(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.list_webhooks(&caller).await?)
}

/// Get a webhook
#[utoipa::path(
    get,
    path = "/v1/lifecycle/webhooks/{id}",
    operation_id = "get_lifecycle_webhook",
    tag = "webhooks",
    params(("id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The webhook. Its secret is never shown.", body = LifecycleWebhookInfo),
        (status = 404, description = "There is no such webhook.", body = ErrorResponse),
        (status = 501, description = "This deployment has no webhooks.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_lifecycle_webhook(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.get_webhook(&caller, &id).await?)
}

/// Change a webhook
///
/// What is left out stays. A webhook that is disabled loses the deliveries that wait.
#[utoipa::path(
    patch,
    path = "/v1/lifecycle/webhooks/{id}",
    operation_id = "update_lifecycle_webhook",
    tag = "webhooks",
    params(("id" = String, Path, description = "Its id")),
    request_body = UpdateLifecycleWebhookRequest,
    responses(
        (status = 200, description = "The webhook as it is now.", body = LifecycleWebhookInfo),
        (status = 404, description = "There is no such webhook.", body = ErrorResponse),
        (status = 501, description = "This deployment has no webhooks.", body = ErrorResponse),
    ),
)]
pub(super) async fn update_lifecycle_webhook(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    JsonBody(request): JsonBody<UpdateLifecycleWebhookRequest>,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.update_webhook(&caller, &id, request).await?)
}

/// Delete a webhook
///
/// Its deliveries are deleted with it.
#[utoipa::path(
    delete,
    path = "/v1/lifecycle/webhooks/{id}",
    operation_id = "delete_lifecycle_webhook",
    tag = "webhooks",
    params(("id" = String, Path, description = "Its id")),
    responses(
        (status = 204, description = "It is deleted."),
        (status = 404, description = "There is no such webhook.", body = ErrorResponse),
        (status = 501, description = "This deployment has no webhooks.", body = ErrorResponse),
    ),
)]
pub(super) async fn delete_lifecycle_webhook(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
) -> Result<Response, Refusal> {
    state.service.delete_webhook(&caller, &id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Which deliveries to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DeliveriesQuery {
    /// Deliveries to skip.
    offset: Option<u32>,
    /// At most so many, 1 to 1000; default 50.
    limit: Option<u32>,
}

/// List a webhook's deliveries
#[utoipa::path(
    get,
    path = "/v1/lifecycle/webhooks/{id}/deliveries",
    operation_id = "list_lifecycle_webhook_deliveries",
    tag = "webhooks",
    params(("id" = String, Path, description = "Its id"), DeliveriesQuery),
    responses(
        (status = 200, description = "Its deliveries, newest first.", body = Vec<LifecycleWebhookDeliveryInfo>),
        (status = 404, description = "There is no such webhook.", body = ErrorResponse),
        (status = 501, description = "This deployment has no webhooks.", body = ErrorResponse),
    ),
)]
pub(super) async fn list_lifecycle_webhook_deliveries(
    State(state): State<AppState>,
    caller: Caller,
    PathParam(id): PathParam,
    QueryParams(query): QueryParams<DeliveriesQuery>,
) -> Result<Response, Refusal> {
    let DeliveriesQuery { offset, limit } = query;
    if limit == Some(0) {
        return Err(Refusal::invalid("`limit` must be at least 1."));
    }
    let (offset, limit) = (offset.unwrap_or_default().into(), limit.unwrap_or(PAGE).min(MAX_PAGE));
    json(StatusCode::OK, &state.service.list_deliveries(&caller, &id, offset, limit).await?)
}

/// Get a delivery
#[utoipa::path(
    get,
    path = "/v1/lifecycle/webhooks/{id}/deliveries/{delivery_id}",
    operation_id = "get_lifecycle_webhook_delivery",
    tag = "webhooks",
    params(
        ("id" = String, Path, description = "The webhook's id"),
        ("delivery_id" = String, Path, description = "The delivery's id"),
    ),
    responses(
        (status = 200, description = "The delivery, with its event and attempts.", body = LifecycleWebhookDeliveryDetail),
        (status = 404, description = "There is no such webhook or delivery.", body = ErrorResponse),
        (status = 501, description = "This deployment has no webhooks.", body = ErrorResponse),
    ),
)]
pub(super) async fn get_lifecycle_webhook_delivery(
    State(state): State<AppState>,
    caller: Caller,
    PathParams(id, delivery): PathParams,
) -> Result<Response, Refusal> {
    json(StatusCode::OK, &state.service.get_delivery(&caller, &id, &delivery).await?)
}
