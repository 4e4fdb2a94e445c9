//! Lifecycle events of sandboxes and snapshots, and the webhooks that receive them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{JsonObject, Secret, Time};

/// What happened to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LifecycleOperation {
    /// It was created.
    Create,
    /// It was ended.
    Destroy,
    /// It was cloned while it ran.
    Fork,
    /// It was paused into a snapshot.
    Hibernate,
    /// The service compared its rows with its machines, and corrected a row.
    Reconcile,
    /// A sandbox was made from a snapshot.
    ResumeFromSnapshot,
    /// A snapshot was stored.
    SnapshotCreated,
    /// Its time was up.
    TimeoutExpired,
    /// Its timeout was changed.
    TimeoutUpdated,
}

/// How far an operation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LifecycleStatus {
    /// It failed.
    Failed,
    /// It was asked for.
    Requested,
    /// It is done.
    Succeeded,
}

/// Who may see an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LifecycleAudience {
    /// The owner of the sandbox.
    Customer,
    /// Operators only. No such event is served.
    Internal,
}

/// Who caused an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LifecycleActorKind {
    /// The comparison of rows with machines.
    Reconcile,
    /// The service itself: a timeout, a stop.
    System,
    /// A request.
    User,
}

/// An event in the life of a sandbox or snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LifecycleEventInfo {
    /// Its id, which ascends with time.
    #[schema(format = "uuid")]
    pub id: String,
    /// When it happened.
    pub occurred_at: Time,
    /// `customer`.
    pub audience: LifecycleAudience,
    /// What happened.
    pub operation: LifecycleOperation,
    /// How far it has come.
    pub status: LifecycleStatus,
    /// Who caused it.
    pub actor_kind: LifecycleActorKind,
    /// Details of the operation, for example `timeout_action` and `created_via`.
    #[schema(value_type = Object)]
    pub metadata: JsonObject,
    /// The sandbox that it happened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// The snapshot that was made or used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
    /// The sandbox that was cloned, or whose snapshot was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_sandbox_id: Option<String>,
    /// The sandbox that was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_sandbox_id: Option<String>,
    /// The owner, as a bare UUID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = "uuid")]
    pub user_id: Option<String>,
    /// Why, for example `timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The error's code, when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// The error's text, when it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
}

/// A page of events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LifecycleEventListResponse {
    /// The events of this page.
    pub events: Vec<LifecycleEventInfo>,
    /// Events before this page.
    pub offset: u64,
    /// Most events of a page.
    pub limit: u32,
    /// True when there is a next page.
    pub has_more: bool,
}

/// An order of events by time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LifecycleOrder {
    /// Oldest first.
    Asc,
    /// Newest first.
    #[default]
    Desc,
}

/// A webhook to make.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreateLifecycleWebhookRequest {
    /// Where events are sent: `https://…`, or `http://…`.
    pub url: String,
    /// The operations whose events are sent; at least one.
    pub operations: Vec<LifecycleOperation>,
    /// The key of the signature.
    #[schema(value_type = String)]
    pub signing_secret: Secret,
    /// False: nothing is sent for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// Changes of a webhook. What is left out stays.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct UpdateLifecycleWebhookRequest {
    /// Where events are sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The operations whose events are sent; at least one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operations: Option<Vec<LifecycleOperation>>,
    /// The key of the signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub signing_secret: Option<Secret>,
    /// False: nothing is sent for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// A webhook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LifecycleWebhookInfo {
    /// Its id.
    #[schema(format = "uuid")]
    pub id: String,
    /// Where events are sent.
    pub url: String,
    /// The operations whose events are sent.
    pub operations: Vec<LifecycleOperation>,
    /// False: nothing is sent for now.
    pub enabled: bool,
    /// True: what is sent is signed.
    pub has_signing_secret: bool,
    /// When it was made.
    pub created_at: Time,
    /// When it was last changed.
    pub updated_at: Time,
    /// The last delivery's time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_delivery_at: Option<Time>,
    /// The last delivery's state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_delivery_status: Option<LifecycleWebhookDeliveryStatus>,
    /// The last delivery's error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// State of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LifecycleWebhookDeliveryStatus {
    /// All attempts failed. It is not tried again.
    DeadLetter,
    /// It is being sent.
    InProgress,
    /// It waits for its next attempt.
    Queued,
    /// The receiver has confirmed it.
    Succeeded,
}

/// An event on its way to a webhook.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LifecycleWebhookDeliveryInfo {
    /// Its id.
    #[schema(format = "uuid")]
    pub id: String,
    /// The webhook.
    #[schema(format = "uuid")]
    pub webhook_id: String,
    /// The event.
    #[schema(format = "uuid")]
    pub event_id: String,
    /// The event's operation.
    pub operation: LifecycleOperation,
    /// The event's status.
    pub status: LifecycleStatus,
    /// The delivery's own state.
    pub delivery_status: LifecycleWebhookDeliveryStatus,
    /// Attempts so far.
    pub attempt_count: u32,
    /// When it was queued.
    pub created_at: Time,
    /// When it is tried next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Time>,
    /// When it was last tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_attempt_at: Option<Time>,
    /// The HTTP status that the receiver last answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_response_status: Option<u16>,
    /// Why the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// One attempt of a delivery.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LifecycleWebhookDeliveryAttemptInfo {
    /// Its id.
    #[schema(format = "uuid")]
    pub id: String,
    /// The delivery.
    #[schema(format = "uuid")]
    pub delivery_id: String,
    /// Its number, from 1.
    pub attempt_number: u32,
    /// When it began.
    pub attempted_at: Time,
    /// How long it took, ms.
    pub duration_ms: u64,
    /// The HTTP status that the receiver answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_status: Option<u16>,
    /// The kind of failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
}

/// A delivery with its event and attempts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LifecycleWebhookDeliveryDetail {
    /// The delivery.
    pub delivery: LifecycleWebhookDeliveryInfo,
    /// The event.
    pub event: LifecycleEventInfo,
    /// Its attempts, oldest first.
    pub attempts: Vec<LifecycleWebhookDeliveryAttemptInfo>,
}
