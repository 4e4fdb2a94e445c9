//! The routes. A handler takes what it needs from the request, asks the service, and answers; nothing else.

mod answers;
mod batch;
mod blobs;
mod builds;
mod claims;
mod files;
mod git;
mod health;
mod keys;
mod life;
mod lifecycle;
mod names;
mod ports;
mod processes;
mod ranges;
mod refs;
mod sandboxes;
mod search;
mod signed;
mod snapshots;
mod sockets;
mod ssh;
mod templates;
mod terminals;
mod uploads;
mod warm_pools;
mod webhooks;

pub(crate) use refs::document as document_by_reference;

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode};
use axum::middleware;
use axum::routing::{any, get};
use nullspace_service::Service;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::budget::Budget;
use crate::config::ServerConfig;
use crate::error::Refusal;
use crate::limits::Limiter;
use crate::standing::Standings;
use crate::state::AppState;
use crate::{admit, compress, edge};

/// All routes with their part of the OpenAPI document.
pub(crate) fn documented() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(health::health_check))
        .routes(routes!(builds::start_template_build))
        .routes(routes!(builds::get_template_build_status))
        .routes(routes!(builds::stream_template_build_logs))
        .routes(routes!(builds::cancel_template_build))
        .routes(routes!(builds::build_template))
        .routes(routes!(builds::validate_template_build))
        .routes(routes!(builds::plan_template_build))
        .routes(routes!(builds::retry_template_build))
        .routes(routes!(builds::promote_template_build))
        .routes(routes!(blobs::preflight_template_blobs))
        .routes(routes!(blobs::upload_template_blob))
        .routes(routes!(claims::reserve_template_name))
        .routes(routes!(claims::release_template_name_claim))
        .routes(routes!(claims::get_template_namespace))
        .routes(routes!(templates::list_templates, builds::create_template))
        .routes(routes!(names::list_template_tags, names::assign_template_tags))
        .routes(routes!(names::remove_template_tag))
        .routes(routes!(names::list_template_aliases))
        .routes(routes!(names::remove_template_alias))
        .routes(routes!(names::list_template_builds))
        .routes(routes!(names::rename_template))
        .routes(routes!(names::update_template_visibility))
        .routes(routes!(templates::get_template, templates::delete_template))
        .routes(routes!(sandboxes::create_sandbox, sandboxes::list_sandboxes))
        .routes(routes!(sandboxes::get_sandbox, sandboxes::destroy_sandbox))
        .routes(routes!(sandboxes::exec_command))
        .routes(routes!(life::hibernate_sandbox))
        .routes(routes!(life::resume_sandbox))
        .routes(routes!(life::fork_sandbox))
        .routes(routes!(life::create_snapshot))
        .routes(routes!(life::set_timeout))
        .routes(routes!(life::update_sandbox_egress))
        .routes(routes!(life::get_metrics))
        .routes(routes!(snapshots::list_snapshots))
        .routes(routes!(snapshots::get_snapshot, snapshots::delete_snapshot))
        .routes(routes!(snapshots::promote_snapshot))
        .routes(routes!(lifecycle::list_lifecycle_events))
        .routes(routes!(lifecycle::list_sandbox_lifecycle_events))
        .routes(routes!(lifecycle::list_snapshot_lifecycle_events))
        .routes(routes!(webhooks::create_lifecycle_webhook, webhooks::list_lifecycle_webhooks))
        .routes(routes!(
            webhooks::get_lifecycle_webhook,
            webhooks::update_lifecycle_webhook,
            webhooks::delete_lifecycle_webhook
        ))
        .routes(routes!(webhooks::list_lifecycle_webhook_deliveries))
        .routes(routes!(webhooks::get_lifecycle_webhook_delivery))
        .routes(routes!(warm_pools::create_template_warm_pool, warm_pools::list_template_warm_pools))
        .routes(routes!(
            warm_pools::get_template_warm_pool,
            warm_pools::update_template_warm_pool,
            warm_pools::delete_template_warm_pool
        ))
        .routes(routes!(warm_pools::enable_template_warm_pool))
        .routes(routes!(warm_pools::disable_template_warm_pool))
        .routes(routes!(warm_pools::drain_template_warm_pool))
        .routes(routes!(warm_pools::reconcile_template_warm_pool))
        .routes(routes!(warm_pools::get_template_warm_pool_status))
        .routes(routes!(ports::get_host))
        .routes(routes!(ports::get_preview_url))
        .routes(routes!(ports::create_signed_preview_url))
        .routes(routes!(ports::check_preview_readiness))
        .routes(routes!(ports::list_preview_urls))
        .routes(routes!(ports::revoke_preview_url))
        .routes(routes!(ssh::create_ssh_access))
        .routes(routes!(processes::list_processes))
        .routes(routes!(processes::kill_process))
        .routes(routes!(processes::get_process_logs))
        .routes(routes!(processes::send_stdin))
        .routes(routes!(terminals::list_pty_sessions))
        .routes(routes!(terminals::get_pty_session, terminals::kill_pty_session))
        .routes(routes!(terminals::resize_pty_session))
        .routes(routes!(files::download_file, files::upload_file_raw, files::upload_file_multipart))
        .routes(routes!(uploads::create_upload_session))
        .routes(routes!(uploads::get_upload_session, uploads::abort_upload_session))
        .routes(routes!(uploads::upload_session_part))
        .routes(routes!(uploads::complete_upload_session))
        .routes(routes!(files::list_dir))
        .routes(routes!(files::read_file))
        .routes(routes!(files::write_file))
        .routes(routes!(files::file_info))
        .routes(routes!(files::file_exists))
        .routes(routes!(files::make_dir))
        .routes(routes!(files::remove_file))
        .routes(routes!(files::rename_file))
        .routes(routes!(files::set_file_permissions))
        .routes(routes!(batch::batch_write_files))
        .routes(routes!(search::find_in_files))
        .routes(routes!(search::search_files))
        .routes(routes!(search::replace_in_files))
        .routes(routes!(signed::download_url))
        .routes(routes!(signed::upload_url))
        .routes(routes!(git::git_clone))
        .routes(routes!(git::git_status))
        .routes(routes!(git::git_add))
        .routes(routes!(git::git_commit))
        .routes(routes!(git::git_push))
        .routes(routes!(git::git_pull))
        .routes(routes!(git::git_branch_list, git::git_branch))
        .routes(routes!(git::git_checkout))
        .routes(routes!(git::git_log))
        .routes(routes!(keys::create_api_key, keys::list_api_keys))
        .routes(routes!(keys::revoke_api_key))
        .routes(routes!(keys::rotate_api_key))
}

/// The service's HTTP interface in two parts that share their counters.
#[derive(Debug)]
pub struct Routers {
    /// Everything, for everybody.
    pub api: Router,
    /// `/healthz`, `/readyz` and `/metrics` alone, for a listener that tenants do not reach.
    pub operators: Router,
}

/// The service's HTTP interface, ready to be served.
pub fn router(service: Arc<dyn Service>, config: ServerConfig) -> Router {
    routers(service, config).api
}

/// The same, with the operators' part of it on its own besides.
pub fn routers(service: Arc<dyn Service>, config: ServerConfig) -> Routers {
    let state = AppState {
        limiter: Arc::new(Limiter::new(config.rate)),
        places: Arc::default(),
        budget: Budget::new(config.buffers),
        standings: Standings::new(Arc::clone(&service), config.key_check),
        metrics: Arc::default(),
        config: Arc::new(config),
        service,
    };
    let (routes, _) = documented().split_for_parts();
    let api = routes
        .route(refs::ROUTE, any(refs::dispatch))
        .route(sockets::COMMANDS, get(sockets::commands))
        .route(sockets::EVENTS, get(sockets::events))
        .route(sockets::SANDBOX_EVENTS, get(sockets::sandbox_events))
        .route("/readyz", get(health::readiness))
        .route("/metrics", get(health::metrics))
        .fallback(fallback)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(compress::compress))
        .layer(middleware::from_fn_with_state(state.clone(), admit::authenticate))
        .layer(middleware::from_fn(admit::reserve))
        .layer(middleware::from_fn_with_state(state.clone(), edge::edge))
        .with_state(state.clone());
    let operators = Router::new()
        .route("/healthz", get(health::health_check))
        .route("/readyz", get(health::readiness))
        .route("/metrics", get(health::metrics))
        .fallback(no_operators_route)
        .layer(middleware::from_fn(admit::reserve))
        .layer(middleware::from_fn_with_state(state.clone(), edge::edge))
        .with_state(state);
    Routers { api, operators }
}

async fn no_operators_route() -> Refusal {
    let message = "There is no such route here: this address has /healthz, /readyz and /metrics.";
    Refusal::new(StatusCode::NOT_FOUND, nullspace_api::ErrorResponseCode::NotFound, message)
}

async fn fallback() -> Refusal {
    Refusal::no_route()
}

async fn method_not_allowed(method: Method) -> Refusal {
    Refusal::method_not_allowed(&method)
}
