//! Lifecycle events over a WebSocket: `GET /v1/lifecycle/ws` and `GET /v1/sandboxes/{id}/lifecycle/ws`, one JSON object a
//! message.
//!
//! ```text
//!   subscribe {filters, replay} ──>    <── subscribed {subscription, reconnect_mode}
//!                                      <── event {event} …      first those of the past, then those that happen
//!                                      <── error {code, message}
//! ```
//! A socket has one subscription. A further `subscribe` replaces it. After an error in the middle of the events, the service
//! closes the socket; a client that connects again with `after_event_id` misses nothing.

use serde::{Deserialize, Serialize};

use crate::{
    ErrorResponseCode, JsonObject, LifecycleAudience, LifecycleEventInfo, LifecycleOperation, LifecycleStatus,
};

/// A message of a client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LifecycleClientMessage {
    /// Begin to send events.
    Subscribe(LifecycleSubscribe),
}

/// Which events to send. Absent filters match everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LifecycleSubscribe {
    /// Only events whose own sandbox is this. On the socket of a sandbox: that sandbox, or absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Only events that name this snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Only this operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<LifecycleOperation>,
    /// Only this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<LifecycleStatus>,
    /// `customer`; nothing else is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<LifecycleAudience>,
    /// False: events of the past are sent first. Default: false when `replay_limit` is given, else true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live_only: Option<bool>,
    /// The last event that the client has. Those after it are sent first, also with `live_only`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_event_id: Option<String>,
    /// Most events of the past, 0 to 1000; default 100. They are counted before `metadata` is looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_limit: Option<u32>,
    /// Only events with these entries in their metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<JsonObject>,
}

impl LifecycleSubscribe {
    /// `replay_limit` of a subscription that wants the past and gives none.
    pub const DEFAULT_REPLAY_LIMIT: u32 = 100;
    /// Largest `replay_limit`.
    pub const MAX_REPLAY_LIMIT: u32 = 1000;
}

/// A message of the service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LifecycleServerMessage {
    /// Events that match are sent from here on.
    Subscribed {
        /// The filters in force.
        subscription: LifecycleSubscription,
        /// Whether events of the past are sent first.
        reconnect_mode: LifecycleReconnectMode,
    },
    /// An event.
    Event {
        /// The event.
        event: Box<LifecycleEventInfo>,
    },
    /// A message was wrong, or the events broke off.
    Error {
        /// Code for programs.
        code: ErrorResponseCode,
        /// Message for people.
        message: String,
    },
}

/// The filters of a subscription.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LifecycleSubscription {
    /// `customer`.
    pub audience: LifecycleAudience,
    /// Only this operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<LifecycleOperation>,
    /// Only this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<LifecycleStatus>,
    /// Only events of this sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// Only events that name this snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// Only events with these entries in their metadata.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<JsonObject>,
}

/// Where a subscription begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LifecycleReconnectMode {
    /// With events of the past.
    CursorReplay,
    /// With the next event.
    LiveOnly,
}
