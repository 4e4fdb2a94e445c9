//! Lifecycle events, webhooks, and the deliveries between them.
//!
//! ```text
//!   record_events ── one transaction ──> events
//!                                   └──> deliveries (queued), one for each enabled webhook of the tenant that wants the operation
//!   take_deliveries ──lease──> in progress ── delivery_done ──> succeeded | queued again, later | dead letter
//! ```

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{Caller, SandboxId, SnapshotId, TenantId};
use serde_json::Value;
use uuid::Uuid;

#[cfg(doc)]
use crate::DbError;
use crate::Result;

/// An event to record. Words are those of the API, unread here.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// Identity: a UUIDv7, so that ids ascend with time.
    pub id: Uuid,
    /// The tenant that it belongs to.
    pub tenant: TenantId,
    /// When it happened.
    pub occurred_at: Timestamp,
    /// What happened.
    pub operation: String,
    /// How far it has come.
    pub status: String,
    /// Who caused it.
    pub actor: String,
    /// The sandbox that it happened to.
    pub sandbox: Option<SandboxId>,
    /// The snapshot that was made or used.
    pub snapshot: Option<SnapshotId>,
    /// The sandbox that was cloned, or whose snapshot was used.
    pub source: Option<SandboxId>,
    /// The sandbox that was made.
    pub target: Option<SandboxId>,
    /// Why.
    pub reason: Option<String>,
    /// The error's code and text, when it failed.
    pub error: Option<(String, String)>,
    /// Details.
    pub metadata: Value,
}

/// An event as stored.
pub type Event = NewEvent;

/// A query for events.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Only events that name this sandbox: as their own, their source or their target.
    pub about: Option<SandboxId>,
    /// Only events whose own sandbox is this.
    pub sandbox: Option<SandboxId>,
    /// Only events that name this snapshot.
    pub snapshot: Option<SnapshotId>,
    /// Only events with this source.
    pub source: Option<SandboxId>,
    /// Only events with this target.
    pub target: Option<SandboxId>,
    /// Only this operation.
    pub operation: Option<String>,
    /// Only this status.
    pub status: Option<String>,
    /// Only events at or after this time.
    pub from: Option<Timestamp>,
    /// Only events at or before this time.
    pub to: Option<Timestamp>,
    /// Only events after this one in the order of ids.
    pub after: Option<Uuid>,
    /// Oldest first; else newest first.
    pub ascending: bool,
    /// Events to skip.
    pub offset: u64,
    /// Page size, 1 to 1001.
    pub limit: u32,
}

/// A webhook as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Webhook {
    /// Identity.
    pub id: Uuid,
    /// The tenant that owns it.
    pub tenant: TenantId,
    /// Where events are sent.
    pub url: String,
    /// The operations that are sent.
    pub operations: Vec<String>,
    /// Key of the signature, sealed.
    pub sealed_secret: Vec<u8>,
    /// False: nothing is queued.
    pub enabled: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// The newest delivery that was tried: its last attempt's time, state and error.
    pub last: Option<(Timestamp, String, Option<String>)>,
}

/// Changes of a webhook. `None` leaves a value as it is.
#[derive(Debug, Clone, Default)]
pub struct WebhookChange {
    /// Where events are sent.
    pub url: Option<String>,
    /// The operations that are sent.
    pub operations: Option<Vec<String>>,
    /// Key of the signature, sealed.
    pub sealed_secret: Option<Vec<u8>>,
    /// False: nothing is queued.
    pub enabled: Option<bool>,
}

/// A delivery as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// Identity.
    pub id: Uuid,
    /// The webhook.
    pub webhook: Uuid,
    /// The event.
    pub event: Uuid,
    /// The event's operation.
    pub operation: String,
    /// The event's status.
    pub status: String,
    /// `queued`, `in_progress`, `succeeded` or `dead_letter`.
    pub delivery_status: String,
    /// Attempts so far.
    pub attempts: u32,
    /// When it was queued.
    pub created_at: Timestamp,
    /// When it is tried next.
    pub next_attempt_at: Option<Timestamp>,
    /// When it was last tried.
    pub last_attempt_at: Option<Timestamp>,
    /// The HTTP status that was last answered.
    pub last_response_status: Option<u16>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}

/// One attempt of a delivery.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// Identity.
    pub id: Uuid,
    /// Its number, from 1.
    pub number: u32,
    /// When it began.
    pub at: Timestamp,
    /// How long it took, ms.
    pub duration_ms: u64,
    /// The HTTP status that was answered.
    pub response_status: Option<u16>,
    /// Kind and text of the failure.
    pub error: Option<(String, String)>,
}

/// A delivery that was taken to be sent.
#[derive(Debug, Clone)]
pub struct TakenDelivery {
    /// The delivery.
    pub delivery: Delivery,
    /// Its webhook.
    pub webhook: Webhook,
    /// Its event.
    pub event: Event,
}

/// Stores lifecycle events, webhooks and deliveries.
#[async_trait]
pub trait Events: Send + Sync + 'static {
    /// Records events, and queues their deliveries. An event whose id is recorded already is left as it is. A webhook with 2,000
    /// unfinished deliveries gets no more: the delivery is a dead letter at once.
    async fn record_events(&self, events: Vec<NewEvent>, now: Timestamp) -> Result<()>;

    /// The caller's events.
    async fn list_events(&self, caller: &Caller, filter: EventFilter) -> Result<Vec<Event>>;

    /// Removes events from before a time, with their deliveries that are over, and what is left of deleted webhooks; at most
    /// `limit` of each. An event with an unfinished delivery stays. Returns the number of removed events and deliveries; 0 when
    /// nothing is left to remove.
    async fn forget_events(&self, before: Timestamp, limit: u32) -> Result<u64>;

    /// Records a webhook. [`DbError::Conflict`] when the tenant has `most` of them.
    async fn insert_webhook(&self, webhook: Webhook, most: u32) -> Result<Webhook>;

    /// The caller's webhooks, oldest first.
    async fn list_webhooks(&self, caller: &Caller) -> Result<Vec<Webhook>>;

    /// One of the caller's webhooks.
    async fn get_webhook(&self, caller: &Caller, webhook: Uuid) -> Result<Webhook>;

    /// Changes a webhook. One that is disabled loses its queued deliveries, and those that are taken get no further attempt.
    async fn update_webhook(
        &self,
        caller: &Caller,
        webhook: Uuid,
        change: WebhookChange,
        now: Timestamp,
    ) -> Result<Webhook>;

    /// Removes a webhook with its deliveries.
    async fn delete_webhook(&self, caller: &Caller, webhook: Uuid) -> Result<()>;

    /// A webhook's deliveries, newest first.
    async fn list_deliveries(&self, caller: &Caller, webhook: Uuid, offset: u64, limit: u32) -> Result<Vec<Delivery>>;

    /// One delivery with its event and attempts, oldest first.
    async fn get_delivery(
        &self,
        caller: &Caller,
        webhook: Uuid,
        delivery: Uuid,
    ) -> Result<(Delivery, Event, Vec<Attempt>)>;

    /// Takes at most `limit` deliveries that are due, and those in progress whose lease is over. They are in progress until
    /// `lease_until`, as `owner`'s. A webhook has at most `each` in progress. Webhooks take turns: those with fewer in progress come
    /// first.
    async fn take_deliveries(
        &self,
        owner: &str,
        now: Timestamp,
        lease_until: Timestamp,
        limit: u32,
        each: u32,
    ) -> Result<Vec<TakenDelivery>>;

    /// Makes the deliveries that `owner` has in progress due at once, and returns their number: for an owner that has just started,
    /// so that nobody sends them any more.
    async fn take_over_deliveries(&self, owner: &str, now: Timestamp) -> Result<u64>;

    /// Records an attempt of a delivery that was taken: `next` is the time of the next one; `None` after a success, and when it is
    /// given up. An attempt without error is a success. Its number is one more than the delivery's attempts when it was taken:
    /// [`DbError::Conflict`] when another worker has reported it since. [`DbError::NotFound`] when the webhook was deleted.
    async fn delivery_done(&self, delivery: Uuid, attempt: Attempt, next: Option<Timestamp>) -> Result<()>;

    /// The earliest time at which a delivery is due, or the lease of one in progress is over. It is in the past while more is due
    /// than a webhook may have in progress.
    async fn next_delivery(&self) -> Result<Option<Timestamp>>;
}
