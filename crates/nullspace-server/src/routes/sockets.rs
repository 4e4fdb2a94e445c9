//! The WebSocket of a sandbox. The OpenAPI document does not have it, because OpenAPI cannot describe WebSockets.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::StatusCode;
use axum::response::Response;
use nullspace_api::ErrorResponseCode;
use nullspace_service::Caller;
use serde::Deserialize;
use tracing::Instrument;

use crate::admit::Stay;
use crate::error::Refusal;
use crate::extract::{PathParam, QueryParams};
use crate::serve::Stopping;
use crate::socket::Session;
use crate::state::AppState;

/// The route.
pub(super) const ROUTE: &str = "/v1/sandboxes/{id}/ws";

#[derive(Deserialize)]
pub(super) struct SocketQuery {
    channel: Option<String>,
}

/// Checks and refuses everything before the connection changes its protocol.
pub(super) async fn connect(
    State(state): State<AppState>,
    caller: Caller,
    stopping: Option<Extension<Stopping>>,
    stay: Option<Extension<Arc<Stay>>>,
    PathParam(id): PathParam,
    QueryParams(query): QueryParams<SocketQuery>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    match query.channel.as_deref() {
        Some("exec") => {}
        Some("pty") => {
            let message = "This deployment does not offer terminals.";
            return Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, ErrorResponseCode::NotImplemented, message));
        }
        _ => return Err(Refusal::invalid("The query must name a channel: `channel=exec`.")),
    }
    // Each command looks it up anew: the socket may outlive it.
    state.service.live_sandbox(&caller, &id).await?;
    let upgrade = upgrade.map_err(|_| Refusal::invalid("This route speaks WebSocket: ask for an upgrade."))?;
    let place = state.places.socket(caller.tenant, &id, &state.config)?;
    let max = state.config.sockets.max_message;
    let stopping = stopping.map(|Extension(Stopping(token))| token).unwrap_or_default();
    let session = Session { state, caller, sandbox: id, stopping, place, stay: stay.map(|Extension(stay)| stay) };
    let span = tracing::Span::current();
    let upgrade = upgrade.max_message_size(max).max_frame_size(max).read_buffer_size(16 << 10);
    Ok(upgrade.on_upgrade(move |socket| session.serve(socket).instrument(span)))
}
