//! Lifecycle events over a WebSocket.
//!
//! ```text
//!   subscribe ──> one task ── subscribed, event, event, … ──> queue        a further subscribe replaces it
//! ```
//! A slow client is not waited for: the service's stream of events has a bounded buffer, and ends with an error when that is
//! full. The client is told so, and the socket is closed.

use axum::extract::ws::close_code;
use futures::StreamExt;
use nullspace_api::{
    ErrorResponseCode, JsonObject, LifecycleAudience, LifecycleClientMessage, LifecycleReconnectMode,
    LifecycleServerMessage, LifecycleSubscribe, LifecycleSubscription,
};
use nullspace_service::{Caller, Error, EventQuery};
use tokio::sync::mpsc;

use super::{Conversation, Farewell, Heard, Incoming, Session, Tasks, log_cause, parsed};
use crate::state::AppState;

/// The events that one socket follows.
pub(crate) struct Events {
    /// Only events about this sandbox; else all of the caller's.
    pub(crate) about: Option<String>,
}

/// A subscription as the service follows it.
#[derive(Debug, Clone, Default, PartialEq)]
struct Asked {
    query: EventQuery,
    after: Option<String>,
    replay: u32,
    metadata: JsonObject,
}

impl Conversation for Events {
    type Message = LifecycleServerMessage;

    async fn read(
        &self,
        session: &Session,
        mut incoming: Incoming<'_>,
        queue: mpsc::Sender<LifecycleServerMessage>,
    ) -> Option<Farewell> {
        // The task of the one subscription.
        let mut following = Tasks::new();
        loop {
            let bytes = match following.next(session, &mut incoming, "no subscription for a long time").await {
                Ok(Heard::Message(bytes)) => bytes,
                Ok(Heard::Ended(Some(Some(farewell)))) => return Some(farewell),
                Ok(Heard::Ended(_)) => continue,
                Err(farewell) => return farewell,
            };
            let asked = session
                .admit()
                .map_err(|text| refusal(ErrorResponseCode::RateLimitExceeded, text))
                .and_then(|()| self.asked(&bytes));
            match asked {
                Ok(asked) => {
                    following.running.shutdown().await;
                    let (state, caller) = (session.state.clone(), session.caller.clone());
                    following.running.spawn(follow(state, caller, asked, queue.clone()));
                }
                Err(refused) => queue.send(refused).await.ok()?,
            }
        }
    }
}

impl Events {
    /// Reads a message.
    fn asked(&self, bytes: &[u8]) -> Result<Asked, LifecycleServerMessage> {
        let invalid = |text: String| refusal(ErrorResponseCode::InvalidRequest, text);
        let LifecycleClientMessage::Subscribe(subscribe) = parsed(bytes).map_err(invalid)?;
        let LifecycleSubscribe {
            sandbox_id,
            snapshot_id,
            operation,
            status,
            audience,
            live_only,
            after_event_id,
            replay_limit,
            metadata,
        } = subscribe;
        if audience == Some(LifecycleAudience::Internal) {
            return Err(invalid("audience=internal is not served: leave audience out".to_owned()));
        }
        let most = LifecycleSubscribe::MAX_REPLAY_LIMIT;
        if replay_limit.is_some_and(|limit| limit > most) {
            return Err(invalid(format!("replay_limit must be at most {most}")));
        }
        let (about_sandbox, sandbox_id) = match (&self.about, sandbox_id) {
            (Some(about), Some(other)) if *about != other => {
                let text = format!("this socket is of sandbox {about}: subscribe to others over /v1/lifecycle/ws");
                return Err(invalid(text));
            }
            (Some(about), _) => (Some(about.clone()), None),
            (None, sandbox_id) => (None, sandbox_id),
        };
        // A cursor says more than `live_only` does.
        let replays = after_event_id.is_some() || !live_only.unwrap_or(replay_limit.is_none());
        let replay = if replays { replay_limit.unwrap_or(LifecycleSubscribe::DEFAULT_REPLAY_LIMIT) } else { 0 };
        Ok(Asked {
            query: EventQuery { about_sandbox, sandbox_id, snapshot_id, operation, status, ..EventQuery::default() },
            after: after_event_id,
            replay,
            metadata: metadata.unwrap_or_default(),
        })
    }
}

impl Asked {
    /// The answer to the subscription.
    fn confirmed(&self) -> LifecycleServerMessage {
        let EventQuery { about_sandbox, sandbox_id, snapshot_id, operation, status, .. } = self.query.clone();
        let replays = self.after.is_some() || self.replay > 0;
        LifecycleServerMessage::Subscribed {
            subscription: LifecycleSubscription {
                audience: LifecycleAudience::Customer,
                operation,
                status,
                sandbox_id: about_sandbox.or(sandbox_id),
                snapshot_id,
                metadata: (!self.metadata.is_empty()).then(|| self.metadata.clone()),
            },
            reconnect_mode: if replays {
                LifecycleReconnectMode::CursorReplay
            } else {
                LifecycleReconnectMode::LiveOnly
            },
        }
    }
}

fn refusal(code: ErrorResponseCode, message: String) -> LifecycleServerMessage {
    LifecycleServerMessage::Error { code, message }
}

fn failure(error: Error) -> LifecycleServerMessage {
    log_cause(&error, "events");
    refusal(error.code, error.message)
}

/// Sends the events of one subscription. Returns the closing message; `None` when the socket may take another subscription.
async fn follow(
    state: AppState,
    caller: Caller,
    asked: Asked,
    queue: mpsc::Sender<LifecycleServerMessage>,
) -> Option<Farewell> {
    let Asked { query, after, replay, metadata } = asked.clone();
    let mut events = match state.service.follow_events(&caller, query, after, replay).await {
        Ok(events) => events,
        Err(error) => {
            // Sending fails when the socket is gone.
            let _ = queue.send(failure(error)).await;
            return None;
        }
    };
    queue.send(asked.confirmed()).await.ok()?;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) if metadata.iter().any(|(name, value)| event.metadata.get(name) != Some(value)) => {}
            Ok(event) => queue.send(LifecycleServerMessage::Event { event: Box::new(event) }).await.ok()?,
            Err(error) => {
                queue.send(failure(error)).await.ok()?;
                return Some((close_code::AGAIN, "the events broke off"));
            }
        }
    }
    Some((close_code::AWAY, "no further events: connect again"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cursor_a_limit_or_a_word_brings_the_past_and_nothing_else_does() {
        let all = Events { about: None };
        for (message, after, replay) in [
            (json!({}), None, 0),
            (json!({"live_only": true, "replay_limit": 7}), None, 0),
            (json!({"live_only": false, "replay_limit": 7}), None, 7),
            (json!({"replay_limit": 7}), None, 7),
            (json!({"live_only": false}), None, 100),
            (json!({"live_only": false, "replay_limit": 0}), None, 0),
            (json!({"after_event_id": "e"}), Some("e"), 100),
            (json!({"after_event_id": "e", "live_only": true, "replay_limit": 25}), Some("e"), 25),
            (json!({"after_event_id": null, "live_only": null, "replay_limit": null, "metadata": null}), None, 0),
        ] {
            let mut message = message;
            message["type"] = json!("subscribe");
            let asked = all.asked(message.to_string().as_bytes()).unwrap();
            assert_eq!((asked.after.as_deref(), asked.replay), (after, replay), "{message}");
        }
    }
}
