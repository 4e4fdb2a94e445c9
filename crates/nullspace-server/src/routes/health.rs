//! Routes of operators: liveness, readiness and metrics. They need no key, and the OpenAPI document, which is for tenants,
//! has only the first.

use axum::Extension;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use nullspace_api::{ErrorResponseCode, HealthCheckResponse200};
use secrecy::ExposeSecret;

use super::answers::json;
use crate::edge;
use crate::error::Refusal;
use crate::serve::Peer;
use crate::state::AppState;

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
pub(super) async fn health_check() -> Result<Response, Refusal> {
    json(StatusCode::OK, &HealthCheckResponse200 { status: "ok".to_owned() })
}

/// Can requests be served now? A load balancer asks this, a supervisor asks `/healthz`. `?verbose` answers with lines of
/// text on what there is: for whoever may read the metrics.
pub(super) async fn readiness(
    State(state): State<AppState>,
    RawQuery(query): RawQuery,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    state.service.ready().await?;
    let verbose =
        query.as_deref().is_some_and(|query| query.split('&').any(|part| matches!(part, "verbose" | "verbose=")));
    if !verbose {
        return json(StatusCode::OK, &HealthCheckResponse200 { status: "ok".to_owned() });
    }
    for_operators(&state, peer.as_deref(), &headers)?;
    let mut page = String::from("ok\n");
    for line in state.service.details().await {
        page.push_str(&line);
        page.push('\n');
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], page).into_response())
}

/// Refuses callers without the token or, if the settings have none, callers that are not on this host.
fn for_operators(state: &AppState, peer: Option<&Peer>, headers: &HeaderMap) -> Result<(), Refusal> {
    let config = &state.config;
    let allowed = match &config.metrics_token {
        Some(token) => edge::bearer(headers).is_some_and(|shown| same(shown.expose_secret(), token.expose_secret())),
        None => {
            !config.guests_on_loopback && peer.is_some_and(|Peer(address)| address.ip().to_canonical().is_loopback())
        }
    };
    if allowed {
        return Ok(());
    }
    let message = match config.metrics_token.is_none() && config.guests_on_loopback {
        true => {
            "This page needs a metrics_token in the settings: guests reach this host's loopback, as it does itself."
        }
        false => "This page is for this host, or for whoever shows the metrics_token of the settings.",
    };
    Err(Refusal::new(StatusCode::UNAUTHORIZED, ErrorResponseCode::Unauthorized, message))
}

/// Counters in Prometheus' text form.
pub(super) async fn metrics(
    State(state): State<AppState>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    for_operators(&state, peer.as_deref(), &headers)?;
    let page = state.service.metrics().await?;
    let page = state.metrics.page(&page, state.budget.held()).map_err(Refusal::internal)?;
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], page).into_response())
}

/// Compares in a time that does not depend on where the two differ.
fn same(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().zip(other.bytes()).fold(0, |seen, (a, b)| seen | (a ^ b)) == 0
}
