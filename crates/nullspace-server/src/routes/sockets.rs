//! The WebSockets. The OpenAPI document does not have them, because OpenAPI cannot describe WebSockets.

use std::sync::Arc;

use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::response::Response;
use nullspace_service::Caller;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::lifecycle::known_sandbox;
use crate::admit::Stay;
use crate::error::Refusal;
use crate::extract::{PathParam, QueryParams};
use crate::places::Place;
use crate::serve::Stopping;
use crate::socket::{Commands, Conversation, Events, Session, Terminals, Watches};
use crate::state::AppState;

/// The socket of a sandbox's commands, of its terminals, and of its watched directories.
pub(super) const COMMANDS: &str = "/v1/sandboxes/{id}/ws";
/// The socket of a tenant's events.
pub(super) const EVENTS: &str = "/v1/lifecycle/ws";
/// The socket of a sandbox's events.
pub(super) const SANDBOX_EVENTS: &str = "/v1/sandboxes/{id}/lifecycle/ws";

/// Largest message of a client that follows events, bytes: it is kept as long as the subscription.
const MAX_SUBSCRIPTION: usize = 64 << 10;

/// Largest message of a client that watches directories, bytes: a path and a few words.
const MAX_WATCH: usize = 64 << 10;

/// A request that is to become a socket.
pub(super) struct Handshake {
    caller: Caller,
    stopping: CancellationToken,
    stay: Option<Arc<Stay>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
}

impl FromRequestParts<AppState> for Handshake {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Refusal> {
        let stopping = parts.extensions.get::<Stopping>().map(|Stopping(token)| token.clone()).unwrap_or_default();
        Ok(Self {
            caller: Caller::from_request_parts(parts, state).await?,
            stopping,
            stay: parts.extensions.get::<Arc<Stay>>().cloned(),
            upgrade: WebSocketUpgrade::from_request_parts(parts, state).await,
        })
    }
}

impl Handshake {
    /// Changes the protocol and begins the conversation.
    fn open(
        self,
        state: AppState,
        place: Place,
        max_message: usize,
        conversation: impl Conversation,
    ) -> Result<Response, Refusal> {
        let Self { caller, stopping, stay, upgrade } = self;
        let upgrade = upgrade.map_err(|_| Refusal::invalid("This route speaks WebSocket: ask for an upgrade."))?;
        let max = max_message.min(state.config.sockets.max_message);
        let session = Session { state, caller, stopping, place, stay };
        let span = tracing::Span::current();
        let upgrade = upgrade.max_message_size(max).max_frame_size(max).read_buffer_size(16 << 10);
        Ok(upgrade.on_upgrade(move |socket| session.serve(conversation, socket).instrument(span)))
    }
}

#[derive(Deserialize)]
pub(super) struct SocketQuery {
    channel: Option<String>,
}

/// Checks and refuses everything before the connection changes its protocol.
pub(super) async fn commands(
    State(state): State<AppState>,
    PathParam(id): PathParam,
    QueryParams(query): QueryParams<SocketQuery>,
    handshake: Handshake,
) -> Result<Response, Refusal> {
    let channel = query.channel.as_deref().unwrap_or("files");
    if !matches!(channel, "exec" | "pty" | "files") {
        let message = "The channel in the query must be `exec` for commands, `pty` for terminals, or absent for watched directories.";
        return Err(Refusal::invalid(message));
    }
    // Each command, terminal and watch looks it up anew: the socket may outlive it.
    state.service.live_sandbox(&handshake.caller, &id).await?;
    let place = state.places.socket(handshake.caller.tenant, &id, &state.config)?;
    match channel {
        "exec" => handshake.open(state, place, usize::MAX, Commands { sandbox: id }),
        "pty" => handshake.open(state, place, usize::MAX, Terminals { sandbox: id }),
        _ => handshake.open(state, place, MAX_WATCH, Watches { sandbox: id }),
    }
}

/// The caller's events.
pub(super) async fn events(State(state): State<AppState>, handshake: Handshake) -> Result<Response, Refusal> {
    let place = state.places.tenant_socket(handshake.caller.tenant, &state.config)?;
    handshake.open(state, place, MAX_SUBSCRIPTION, Events { about: None })
}

/// A sandbox's events, also of one that is over.
pub(super) async fn sandbox_events(
    State(state): State<AppState>,
    PathParam(id): PathParam,
    handshake: Handshake,
) -> Result<Response, Refusal> {
    known_sandbox(&state, &handshake.caller, &id).await?;
    let place = state.places.socket(handshake.caller.tenant, &id, &state.config)?;
    handshake.open(state, place, MAX_SUBSCRIPTION, Events { about: Some(id) })
}
