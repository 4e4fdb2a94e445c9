//! Is the process alive?

use axum::http::StatusCode;
use axum::response::Response;
use nullspace_api::HealthCheckResponse200;

use crate::service::ServiceError;

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
