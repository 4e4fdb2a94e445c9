//! For whoever runs the service: is the process alive, can it serve, what does it count? Tenants have no part in these
//! routes, so no key opens them and the OpenAPI document, which is for tenants, has only the first.

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nullspace_api::{ErrorResponseCode, HealthCheckResponse200};
use secrecy::ExposeSecret;

use super::AppState;
use crate::edge;
use crate::serve::Peer;
use crate::service::{ErrorKind, ServiceError};

/// Is the service alive?
///
/// Needs no key and asks no backend.
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "health_check",
    tag = "health",
    security(()),
    responses((status = 200, description = "It is.", body = HealthCheckResponse200)),
)]
pub(super) async fn health_check() -> Result<Response, ServiceError> {
    super::json(StatusCode::OK, &HealthCheckResponse200 { status: "ok".to_owned() })
}

/// Can requests be served now? A load balancer asks this, a supervisor asks `/healthz`.
pub(super) async fn readiness(State(state): State<AppState>) -> Result<Response, ServiceError> {
    state.service.ready().await?;
    super::json(StatusCode::OK, &HealthCheckResponse200 { status: "ok".to_owned() })
}

/// Counters in Prometheus' text form.
pub(super) async fn metrics(
    State(state): State<AppState>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Response, ServiceError> {
    let allowed = match &state.config.metrics_token {
        Some(token) => edge::bearer(&headers).is_some_and(|shown| same(shown.expose_secret(), token.expose_secret())),
        None => peer.is_some_and(|Extension(Peer(address))| address.ip().to_canonical().is_loopback()),
    };
    if !allowed {
        let message = "Metrics are for this host, or for whoever shows the metrics_token of the settings.";
        return Err(ServiceError::new(ErrorKind::Unauthorized, ErrorResponseCode::Unauthorized, message));
    }
    let page = state.service.metrics().await?;
    let page = state.metrics.page(&page, state.budget.held()).map_err(ServiceError::internal)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], page).into_response())
}

/// Compares in a time that does not depend on where the two differ.
fn same(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().zip(other.bytes()).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
}
