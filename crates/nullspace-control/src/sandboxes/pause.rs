//! Pause: a running sandbox becomes a stored one.
//!
//! ```text
//!   running ──freeze──> its machine stands still, and is captured
//!      ^                    ├── one transaction: `paused`, stored in this snapshot ──> the machine ends ──> published, see
//!      └──── go on ─────────┴── refused                                                                     `publications`
//! ```
//! When too many captures wait to be published, the publication comes before the transaction. The machine stands still meanwhile.
//! A caller that disconnects leaves a paused sandbox. A repetition gets the same snapshot.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use nullspace_api::{ErrorResponseCode, LifecycleActorKind, LifecycleOperation};
use nullspace_db::{DbError, NewSnapshot, Recorded, Sandbox, SandboxStatus, Snapshot, SnapshotKind};
use nullspace_host_interface::{Captured, FrozenSandbox};
use nullspace_service::chain;
use nullspace_types::{ArtifactId, Caller, SandboxId, SnapshotId, Streams, TenantId};
use serde_json::{Value, json};

use super::publications::Capture;
use super::snapshots::Limit;
use super::spec::Config;
use crate::Inner;
use crate::error::{Error, Result, Stored, of_store};
use crate::lifecycle::Event;

/// Time between two questions whether a snapshot was recorded, and their number. Meanwhile the machine stands still.
const ASK_AGAIN: Duration = Duration::from_millis(500);
const QUESTIONS: u32 = 40;

/// Why a sandbox is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its owner asked for it.
    Request,
    /// Its time, or its time without use, is over.
    Timeout { idle: bool },
    /// The service stops.
    Stop,
    /// Another sandbox needs its memory and processors. Only while nothing has used it since then.
    HostFull { idle_since: Timestamp },
}

impl Cause {
    fn actor(self) -> LifecycleActorKind {
        match self {
            Cause::Request => LifecycleActorKind::User,
            Cause::Timeout { .. } | Cause::Stop | Cause::HostFull { .. } => LifecycleActorKind::System,
        }
    }

    /// For events.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Cause::Request => "manual",
            Cause::Timeout { idle: false } => "timeout",
            Cause::Timeout { idle: true } => "inactivity",
            Cause::Stop => "service_stopped",
            Cause::HostFull { .. } => "host_full",
        }
    }
}

/// A paused sandbox's snapshot.
#[derive(Debug)]
pub(super) struct Paused {
    pub(super) snapshot: Snapshot,
    /// It was paused before.
    pub(super) earlier: bool,
}

impl Inner {
    /// Pauses a sandbox. Returns when its machine's resources are released.
    pub(super) async fn pause(&self, caller: &Caller, id: SandboxId, cause: Cause) -> Result<Paused> {
        let turn = self.sandboxes.transitions.begin(id, "paused");
        let sandbox = self.sandbox_of(caller, id).await?;
        match sandbox.status {
            SandboxStatus::Running => {}
            SandboxStatus::Creating => return Err(not_ready(id, "is not running yet; try again")),
            SandboxStatus::Paused => {
                let snapshot = sandbox.snapshot.ok_or_else(|| Error::sandbox_not_found(&id.to_string()))?;
                let stored = self.db.get_snapshot(caller, snapshot).await;
                let mut snapshot = stored.or_missing(|| Error::sandbox_not_found(&id.to_string()))?;
                if snapshot.evicted && cause == Cause::Request {
                    let _turn = turn?;
                    snapshot = self.pause_evicted(caller, &sandbox, snapshot.id).await?;
                }
                return Ok(Paused { snapshot, earlier: true });
            }
            SandboxStatus::Destroyed | SandboxStatus::Error => return Err(Error::sandbox_not_found(&id.to_string())),
        }
        let _turn = turn?;
        if cause == Cause::Request {
            self.not_stopping()?;
        }
        let config = Config::stored(&sandbox.config)?;
        let event = Event::requested(caller.tenant, LifecycleOperation::Hibernate)
            .by(cause.actor())
            .sandbox(id)
            .reason(cause.reason())
            .detail("timeout_action", config.at_timeout.word());
        self.lifecycle.record(event.clone());
        let paused = self.store_paused(caller, &sandbox, &config, cause).await;
        match &paused {
            Ok(snapshot) => {
                self.lifecycle.record(event.snapshot(snapshot.id).now_succeeded());
                self.lifecycle.record(
                    snapshot_created(caller.tenant, snapshot, "hibernate")
                        .by(cause.actor())
                        .reason(cause.reason())
                        .detail("timeout_action", config.at_timeout.word()),
                );
            }
            Err(error) => self.lifecycle.record(event.now_failed(error)),
        }
        paused.map(|snapshot| Paused { snapshot, earlier: false })
    }

    /// Makes the pause of an evicted sandbox its owner's: it does not end at its timeout any more.
    async fn pause_evicted(&self, caller: &Caller, sandbox: &Sandbox, snapshot: SnapshotId) -> Result<Snapshot> {
        let _counted = self.count_new(caller, Limit::Paused).await?;
        let delete_at = Config::stored(&sandbox.config)?.delete_at(Timestamp::now());
        self.db.settle_eviction(snapshot, delete_at).await.stored()
    }

    async fn store_paused(
        &self,
        caller: &Caller,
        sandbox: &Sandbox,
        config: &Config,
        cause: Cause,
    ) -> Result<Snapshot> {
        let (id, began) = (sandbox.id, Instant::now());
        if config.ephemeral {
            return Err(Error::new(
                ErrorResponseCode::TransitionConflict,
                format!("sandbox {id} is ephemeral: it is never stored, so it cannot be paused"),
            ));
        }
        let limit = match cause {
            // What the service pauses to come back must not end by a limit.
            Cause::Stop => None,
            Cause::HostFull { .. } => Some(Limit::Evicted),
            Cause::Request | Cause::Timeout { .. } => Some(Limit::Paused),
        };
        let _counted = match limit {
            None => None,
            Some(limit) => Some(self.count_new(caller, limit).await?),
        };
        self.touch(id).await;
        let idle_since = match cause {
            Cause::HostFull { idle_since } => Some(idle_since),
            Cause::Request | Cause::Timeout { .. } | Cause::Stop => None,
        };
        let frozen = self.host.freeze_sandbox(id, idle_since).await?;
        let mut captured = frozen.captured().clone();
        let resumed_from = captured.resumed_from.clone();
        let place = self.sandboxes.publications.admit(id, captured.size_bytes);
        if place.is_none() {
            let similar = resumed_from.iter().cloned().chain(self.template_streams(sandbox.artifact).await).collect();
            match self.publish_at_once(&captured.folder, similar).await {
                Ok(published) => {
                    (captured.streams, captured.stored_bytes) = (Some(published.streams), published.stored_bytes);
                }
                Err(error) => {
                    self.let_go_on(id, frozen, false).await;
                    return Err(error);
                }
            }
        }
        let delete_at = match cause {
            // An evicted one keeps its timeout.
            Cause::Stop | Cause::HostFull { .. } => None,
            Cause::Request | Cause::Timeout { .. } => config.delete_at(Timestamp::now()),
        };
        let snapshot = NewSnapshot {
            evicted: idle_since.is_some(),
            ..new_snapshot(SnapshotKind::Pause, id, &captured, json!({}), None)
        };
        match self.record_captured(caller, snapshot, delete_at).await {
            Ok(Recorded::New(snapshot) | Recorded::Repeated(snapshot)) => {
                frozen.end().await;
                self.collect.notify_one();
                match place {
                    Some(place) => self.publish_behind(place, Capture { snapshot: snapshot.clone(), resumed_from }),
                    None => self.drop_published(&captured.folder).await,
                }
                let (ms, frozen_ms) = (began.elapsed().as_millis(), captured.frozen.as_millis());
                tracing::info!(sandbox_id = %id, snapshot_id = %snapshot.id, ms, frozen_ms, captured.size_bytes,
                    captured.stored_bytes, "sandbox is paused");
                Ok(snapshot)
            }
            Err(error) => {
                // Files that a row may name stay; the next start's sweep knows.
                self.let_go_on(id, frozen, may_be_recorded(&error)).await;
                Err(error)
            }
        }
    }

    /// Lets a sandbox go on that was not paused, or ends it.
    async fn let_go_on(&self, id: SandboxId, frozen: Box<dyn FrozenSandbox>, may_be_named: bool) {
        if let Err(failed) = frozen.go_on(may_be_named).await {
            tracing::warn!(sandbox_id = %id, error = %failed, "a sandbox that was not paused cannot go on");
            self.end_sandbox(id, SandboxStatus::Error, Some("it could not go on after a pause that failed")).await;
        }
    }

    /// Records a captured snapshot.
    ///
    /// # Errors
    /// Only when it is not recorded, or when the database does not say so for a while.
    pub(super) async fn record_captured(
        &self,
        caller: &Caller,
        snapshot: NewSnapshot,
        delete_at: Option<Timestamp>,
    ) -> Result<Recorded> {
        let (id, sandbox, folder) = (snapshot.id, snapshot.sandbox, snapshot.folder.clone());
        let error = match self.db.record_snapshot(snapshot, delete_at, Timestamp::now()).await {
            Ok(recorded) => {
                self.host.artifact_named(&folder);
                return Ok(recorded);
            }
            Err(DbError::NotFound) => return Err(Error::sandbox_not_found(&sandbox.to_string())),
            Err(error @ DbError::Conflict { .. }) => return Err(of_store(error)),
            Err(error) => error,
        };
        // The answer may be lost, and not the change.
        for _ in 0..QUESTIONS {
            match self.db.get_snapshot(caller, id).await {
                Ok(snapshot) => {
                    self.host.artifact_named(&folder);
                    return Ok(Recorded::New(snapshot));
                }
                Err(DbError::NotFound) => return Err(of_store(error)),
                Err(other) => tracing::warn!(snapshot_id = %id, error = %chain(&other), "is a snapshot recorded?"),
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        tracing::error!(snapshot_id = %id, "the database does not say whether a snapshot is recorded");
        Err(of_store(error))
    }

    /// The files of a template's snapshot, which its sandboxes are likely to be much like.
    pub(super) async fn template_streams(&self, artifact: ArtifactId) -> Option<Streams> {
        self.db.get_artifact(artifact).await.ok().and_then(|artifact| artifact.streams)
    }

    /// Stored snapshots that a running sandbox is likely to be much like: its template's, and the one that it was made from.
    pub(super) async fn similar(&self, caller: &Caller, sandbox: &Sandbox) -> Vec<Streams> {
        let mut similar = Vec::new();
        if let Some(snapshot) = sandbox.snapshot
            && let Ok(snapshot) = self.db.get_snapshot(caller, snapshot).await
        {
            similar.extend(snapshot.streams);
        }
        similar.extend(self.template_streams(sandbox.artifact).await);
        similar
    }

    /// Records the time at which a running sandbox was last used.
    async fn touch(&self, id: SandboxId) {
        let Some(at) = self.host.last_active(id) else { return };
        if let Err(error) = self.db.touch_sandboxes(&[(id, at)]).await {
            tracing::debug!(sandbox_id = %id, error = %chain(&error), "the time of last use is not recorded");
        }
    }
}

/// Whether a snapshot may be recorded all the same: the database has not said.
pub(super) fn may_be_recorded(error: &Error) -> bool {
    matches!(error.code, ErrorResponseCode::DatabaseError | ErrorResponseCode::InternalError)
}

/// The row of a captured snapshot.
pub(super) fn new_snapshot(
    kind: SnapshotKind,
    sandbox: SandboxId,
    captured: &Captured,
    metadata: Value,
    idempotency: Option<nullspace_db::Idempotency>,
) -> NewSnapshot {
    NewSnapshot {
        id: SnapshotId::new(),
        kind,
        evicted: false,
        sandbox,
        folder: captured.folder.clone(),
        streams: captured.streams.clone(),
        summary: captured.summary.clone(),
        size_bytes: captured.size_bytes,
        stored_bytes: captured.stored_bytes,
        metadata,
        idempotency,
    }
}

/// The event of a stored snapshot.
pub(super) fn snapshot_created(tenant: TenantId, snapshot: &Snapshot, via: &'static str) -> Event {
    Event::succeeded(tenant, LifecycleOperation::SnapshotCreated)
        .sandbox(snapshot.sandbox)
        .snapshot(snapshot.id)
        .detail("created_via", via)
        .detail("size_bytes", snapshot.size_bytes)
}

/// The error of an operation that a sandbox cannot do in its state.
pub(super) fn not_ready(id: SandboxId, why: &str) -> Error {
    Error {
        retry_after: Some(Duration::from_secs(5)),
        ..Error::new(ErrorResponseCode::SandboxNotReady, format!("sandbox {id} {why}"))
    }
}
