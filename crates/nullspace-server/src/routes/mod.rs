//! The routes. A handler takes what it needs from the request, asks the service, and answers; nothing else.

mod builds;
mod files;
mod health;
mod processes;
mod sandboxes;
mod templates;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::config::ServerConfig;
use crate::service::{Service, ServiceError};
use crate::{edge, not_served};

/// What every handler can reach.
#[derive(Clone)]
pub(crate) struct AppState {
    pub(crate) service: Arc<dyn Service>,
    pub(crate) config: Arc<ServerConfig>,
}

/// All routes with their part of the OpenAPI document.
pub(crate) fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(health::health_check))
        .routes(routes!(builds::start_template_build))
        .routes(routes!(builds::get_template_build_status))
        .routes(routes!(builds::stream_template_build_logs))
        .routes(routes!(builds::cancel_template_build))
        .routes(routes!(templates::list_templates))
        .routes(routes!(templates::get_template, templates::delete_template))
        .routes(routes!(sandboxes::create_sandbox, sandboxes::list_sandboxes))
        .routes(routes!(sandboxes::get_sandbox, sandboxes::destroy_sandbox))
        .routes(routes!(sandboxes::exec_command))
        .routes(routes!(processes::list_processes))
        .routes(routes!(processes::kill_process))
        .routes(routes!(processes::get_process_logs))
        .routes(routes!(files::download_file, files::upload_file_raw, files::upload_file_multipart))
        .routes(routes!(files::list_dir))
        .routes(routes!(files::read_file))
        .routes(routes!(files::write_file))
        .routes(routes!(files::file_info))
        .routes(routes!(files::file_exists))
        .routes(routes!(files::make_dir))
        .routes(routes!(files::remove_file))
        .routes(routes!(files::rename_file))
        .routes(routes!(files::set_file_permissions))
}

/// The service's HTTP interface, ready to be served.
pub fn router(service: Arc<dyn Service>, config: ServerConfig) -> Router {
    let state = AppState { service, config: Arc::new(config) };
    let (routes, _) = documented().split_for_parts();
    routes
        .fallback(fallback)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(state.clone(), edge::authenticate))
        .layer(middleware::from_fn_with_state(state.clone(), edge::edge))
        .with_state(state)
}

async fn fallback(method: Method, uri: Uri) -> ServiceError {
    not_served::refusal(&method, uri.path())
}

/// The path has a handler, but not for this method: the contract may still know the operation.
async fn method_not_allowed(method: Method, uri: Uri) -> ServiceError {
    match not_served::refusal(&method, uri.path()) {
        known if known.kind() == crate::ErrorKind::NotImplemented => known,
        _ => not_served::method_not_allowed(&method),
    }
}

/// An answer with a JSON body.
fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Response, ServiceError> {
    let bytes = serde_json::to_vec(value).map_err(ServiceError::internal)?;
    Ok((status, [(axum::http::header::CONTENT_TYPE, "application/json")], bytes).into_response())
}
