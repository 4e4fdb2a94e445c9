//! The life of a sandbox after its start: pauses, snapshots, forks, timeouts; and the events that tell of it.

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use nullspace_api::{
    CreateLifecycleWebhookRequest, CreateSnapshotRequest, JsonObject, LifecycleEventInfo, LifecycleEventListResponse,
    LifecycleOperation, LifecycleOrder, LifecycleStatus, LifecycleWebhookDeliveryDetail, LifecycleWebhookDeliveryInfo,
    LifecycleWebhookInfo, PromoteSnapshotRequest, SandboxHandle, SandboxMetrics, SetTimeoutRequest, SetTimeoutResponse,
    SnapshotInfo, TemplateInfo, UpdateEgressRequest, UpdateEgressResponse, UpdateLifecycleWebhookRequest,
};

use crate::{Caller, RequestContext, Result, Warned};

/// A query for snapshots.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SnapshotQuery {
    /// Only those of this sandbox.
    pub sandbox_id: Option<String>,
    /// Only those with these entries in their metadata.
    pub metadata: JsonObject,
}

/// Pauses, snapshots, forks and timeouts of sandboxes.
///
/// Dropping a future does not stop the work: a caller that disconnects leaves a complete snapshot or sandbox.
///
/// # Errors
/// Of all calls: `sandbox_not_found` or `snapshot_not_found`, also for another tenant's and for what is over;
/// `transition_in_progress` while another pause, resume, snapshot or fork of the same sandbox runs, to be retried.
#[async_trait]
pub trait Life: Send + Sync + 'static {
    /// Pauses a sandbox into a snapshot, and ends its machine. The sandbox is then `paused` and can be resumed once.
    async fn hibernate_sandbox(&self, caller: &Caller, id: &str) -> Result<SnapshotInfo>;

    /// Resumes a paused sandbox, by the id of its snapshot or its own, or makes one from a reusable snapshot. The new sandbox
    /// has an id of its own. A paused one that was resumed is over.
    ///
    /// # Errors
    /// `incompatible_snapshot`, `rebuild_required`, `capacity_exceeded`. It never boots cold.
    async fn resume_sandbox(&self, caller: &Caller, id: &str, context: &RequestContext) -> Result<SandboxHandle>;

    /// Clones a running sandbox with its processes. The source goes on after a pause of some tens of ms.
    async fn fork_sandbox(&self, caller: &Caller, id: &str, context: &RequestContext) -> Result<SandboxHandle>;

    /// Takes a reusable snapshot of a running sandbox, which goes on.
    async fn create_snapshot(
        &self,
        caller: &Caller,
        id: &str,
        request: CreateSnapshotRequest,
        context: &RequestContext,
    ) -> Result<SnapshotInfo>;

    /// Sets a running sandbox's timeout, from now.
    async fn set_timeout(&self, caller: &Caller, id: &str, request: SetTimeoutRequest) -> Result<SetTimeoutResponse>;

    /// Replaces a running sandbox's egress policy. It holds for established connections, too, when this returns, and stays the
    /// sandbox's over pauses, forks and snapshots.
    ///
    /// # Errors
    /// `sandbox_not_ready` for a paused sandbox; `transition_conflict` for one without internet access; `not_implemented` where
    /// policies cannot be enforced.
    async fn update_egress(
        &self,
        caller: &Caller,
        id: &str,
        request: UpdateEgressRequest,
    ) -> Result<UpdateEgressResponse>;

    /// Returns the use of a running sandbox over time, oldest first. The last sample is of now.
    async fn sandbox_metrics(&self, caller: &Caller, id: &str) -> Result<Vec<SandboxMetrics>>;

    /// Returns the caller's snapshots, newest first.
    async fn list_snapshots(&self, caller: &Caller, query: SnapshotQuery) -> Result<Vec<SnapshotInfo>>;

    /// Returns one snapshot of the caller.
    async fn get_snapshot(&self, caller: &Caller, id: &str) -> Result<SnapshotInfo>;

    /// Makes a template of a snapshot: its sandboxes start with the memory, processes and disk of the snapshot, and with the
    /// settings of the template that the snapshot's sandbox was made from. The snapshot is resumed once in trial before. It may
    /// be deleted afterwards.
    ///
    /// # Errors
    /// `transition_conflict` for a name that is an alias or claimed; `invalid_request` for a name of another namespace;
    /// `incompatible_snapshot`, `capacity_exceeded`. Nothing has changed then.
    async fn promote_snapshot(
        &self,
        caller: &Caller,
        id: &str,
        request: PromoteSnapshotRequest,
        context: &RequestContext,
    ) -> Result<Warned<TemplateInfo>>;

    /// Deletes a snapshot.
    ///
    /// # Errors
    /// `snapshot_in_use` for the one that a paused sandbox is stored in: end the sandbox instead.
    async fn delete_snapshot(&self, caller: &Caller, id: &str) -> Result<()>;
}

/// A query for events.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EventQuery {
    /// Only events that name this sandbox: as their own, their source or their target.
    pub about_sandbox: Option<String>,
    /// Only events whose own sandbox is this.
    pub sandbox_id: Option<String>,
    /// Only events that name this snapshot.
    pub snapshot_id: Option<String>,
    /// Only events with this source.
    pub source_sandbox_id: Option<String>,
    /// Only events with this target.
    pub target_sandbox_id: Option<String>,
    /// Only this operation.
    pub operation: Option<LifecycleOperation>,
    /// Only this status.
    pub status: Option<LifecycleStatus>,
    /// Only events at or after this time.
    pub from: Option<Timestamp>,
    /// Only events at or before this time.
    pub to: Option<Timestamp>,
    /// Order by time.
    pub order: LifecycleOrder,
    /// Events to skip.
    pub offset: u64,
    /// Page size, 1 to 1000; `None`: 50.
    pub limit: Option<u32>,
}

/// Events as they happen. It ends with an error when the reader was too slow.
pub type EventStream = BoxStream<'static, Result<LifecycleEventInfo>>;

/// Lifecycle events.
#[async_trait]
pub trait Events: Send + Sync + 'static {
    /// Returns a page of the caller's events. Events of what is over stay for a while.
    async fn list_events(&self, caller: &Caller, query: EventQuery) -> Result<LifecycleEventListResponse>;

    /// Follows the caller's events that match a query: those from now on, and before them at most `replay` of the past, oldest
    /// first; or those after the event `after`.
    async fn follow_events(
        &self,
        caller: &Caller,
        query: EventQuery,
        after: Option<String>,
        replay: u32,
    ) -> Result<EventStream>;
}

/// Webhooks that receive lifecycle events.
#[async_trait]
pub trait Webhooks: Send + Sync + 'static {
    /// Makes a webhook. Addresses that are not public are refused unless the operator allows them.
    async fn create_webhook(
        &self,
        caller: &Caller,
        request: CreateLifecycleWebhookRequest,
    ) -> Result<LifecycleWebhookInfo>;

    /// Returns the caller's webhooks.
    async fn list_webhooks(&self, caller: &Caller) -> Result<Vec<LifecycleWebhookInfo>>;

    /// Returns one webhook.
    async fn get_webhook(&self, caller: &Caller, id: &str) -> Result<LifecycleWebhookInfo>;

    /// Changes a webhook.
    async fn update_webhook(
        &self,
        caller: &Caller,
        id: &str,
        request: UpdateLifecycleWebhookRequest,
    ) -> Result<LifecycleWebhookInfo>;

    /// Deletes a webhook, with its deliveries.
    async fn delete_webhook(&self, caller: &Caller, id: &str) -> Result<()>;

    /// Returns a webhook's deliveries, newest first.
    async fn list_deliveries(
        &self,
        caller: &Caller,
        id: &str,
        offset: u64,
        limit: u32,
    ) -> Result<Vec<LifecycleWebhookDeliveryInfo>>;

    /// Returns one delivery with its event and attempts.
    async fn get_delivery(&self, caller: &Caller, id: &str, delivery: &str) -> Result<LifecycleWebhookDeliveryDetail>;
}
