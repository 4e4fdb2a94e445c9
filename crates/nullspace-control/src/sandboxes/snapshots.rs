//! Reusable snapshots of sandboxes: taken, listed, deleted, and removed from the host when they are over.
//!
//! ```text
//!   running ──capture──> goes on
//!                └── published ──> one transaction: the snapshot's row    └── refused: its files are removed
//!   deleted, or its paused sandbox over ──grace──> files removed ──> row removed
//! ```
//! A sandbox that starts from a snapshot at the moment of its deletion still finds its files: they stay for a grace that is longer
//! than any start.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use nullspace_api::{ErrorResponseCode, JsonObject, LifecycleOperation, SnapshotInfo};
use nullspace_db::{DbError, Idempotency, Recorded, Sandbox, SandboxStatus, Snapshot, SnapshotFilter, SnapshotKind};
use nullspace_service::{SnapshotQuery, chain};
use nullspace_types::{Caller, SandboxId, SnapshotId, TenantId};
use serde_json::json;

use super::answers;
use super::pause::{may_be_recorded, new_snapshot, not_ready, snapshot_created};
use super::spec::Config;
use crate::Inner;
use crate::collect::Broken;
use crate::error::{Error, Result, Stored};
use crate::lifecycle::Event;

/// Time for which the files of a snapshot that is over are kept.
const GRACE: SignedDuration = SignedDuration::from_mins(10);
/// Snapshots of a page of the database.
const PAGE: u32 = 1000;

/// The limits of a tenant's snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Limit {
    /// Paused sandboxes, without the evicted ones.
    Paused,
    /// Evicted sandboxes.
    Evicted,
    /// Reusable snapshots.
    Kept,
}

/// The snapshots that each tenant's requests are about to store.
#[derive(Debug, Default)]
pub(super) struct Pending(Mutex<HashMap<(TenantId, Limit), u64>>);

/// A snapshot that counts before it is stored.
#[derive(Debug)]
pub(super) struct Counted {
    pending: Arc<Pending>,
    of: (TenantId, Limit),
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut pending = self.pending.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = pending.get_mut(&self.of) {
            *number -= 1;
            if *number == 0 {
                pending.remove(&self.of);
            }
        }
    }
}

/// The error of a snapshot that does not exist for this caller.
pub(super) fn missing(id: &str) -> Error {
    Error::new(ErrorResponseCode::SnapshotNotFound, format!("there is no snapshot {id}, or it is over"))
}

fn parse(id: &str) -> Result<SnapshotId> {
    id.parse().map_err(|_| missing(id))
}

impl Inner {
    /// Counts a snapshot that is about to be stored against its tenant's limit.
    ///
    /// # Errors
    /// `QUOTA_EXCEEDED`.
    pub(super) async fn count_new(&self, caller: &Caller, limit: Limit) -> Result<Counted> {
        let of = (caller.tenant, limit);
        let pending = {
            let mut all = self.sandboxes.pending.0.lock().unwrap_or_else(PoisonError::into_inner);
            let number = all.entry(of).or_insert(0);
            *number += 1;
            *number
        };
        let counted = Counted { pending: Arc::clone(&self.sandboxes.pending), of };
        let stored = self.db.count_snapshots(caller).await.stored()?;
        let life = &self.config.life;
        let (has, limit, what, help) = match limit {
            Limit::Paused => (stored.paused, life.paused_per_tenant, "paused sandboxes", "resume or delete one"),
            Limit::Evicted => (stored.evicted, life.evicted_per_tenant(), "evicted sandboxes", "resume or delete one"),
            Limit::Kept => (stored.kept, life.snapshots_per_tenant, "snapshots", "delete one"),
        };
        // What is stored already may still be pending: at most as many as requests, and only for a moment.
        if has.saturating_add(pending) > u64::from(limit) {
            return Err(Error::new(
                ErrorResponseCode::QuotaExceeded,
                format!("the tenant has {has} of at most {limit} {what}: {help}, and try again"),
            ));
        }
        Ok(counted)
    }

    /// Takes a reusable snapshot of a running sandbox.
    pub(super) async fn snapshot_running(
        &self,
        caller: &Caller,
        id: SandboxId,
        metadata: JsonObject,
        idempotency: Option<Idempotency>,
    ) -> Result<SnapshotInfo> {
        self.not_stopping()?;
        let _turn = self.sandboxes.transitions.begin(id, "stored in a snapshot")?;
        let sandbox = self.running_of(caller, id).await?;
        let event = Event::requested(caller.tenant, LifecycleOperation::SnapshotCreated)
            .sandbox(id)
            .reason("manual")
            .detail("created_via", "snapshot");
        self.lifecycle.record(event.clone());
        let taken = self.take_snapshot(caller, &sandbox, metadata, idempotency).await;
        match &taken {
            Ok(snapshot) => {
                self.lifecycle.record(snapshot_created(caller.tenant, snapshot, "snapshot").reason("manual"));
            }
            Err(error) => self.lifecycle.record(event.now_failed(error)),
        }
        answers::snapshot(&taken?)
    }

    async fn take_snapshot(
        &self,
        caller: &Caller,
        sandbox: &Sandbox,
        metadata: JsonObject,
        idempotency: Option<Idempotency>,
    ) -> Result<Snapshot> {
        let id = sandbox.id;
        if Config::stored(&sandbox.config)?.ephemeral {
            return Err(Error::new(
                ErrorResponseCode::TransitionConflict,
                format!("sandbox {id} is ephemeral: it is never stored"),
            ));
        }
        let _counted = self.count_new(caller, Limit::Kept).await?;
        let similar = self.similar(caller, sandbox).await;
        let captured = self.host.snapshot_sandbox(id, similar).await?;
        let new = new_snapshot(SnapshotKind::Kept, id, &captured, json!(metadata), idempotency);
        let snapshot = match self.record_captured(caller, new, None).await {
            Ok(Recorded::New(snapshot)) => snapshot,
            Ok(Recorded::Repeated(earlier)) => {
                self.remove_files(&captured.folder).await;
                return Ok(earlier);
            }
            Err(error) => {
                // Files that a row may name stay; the next start's sweep knows.
                if !may_be_recorded(&error) {
                    self.remove_files(&captured.folder).await;
                }
                return Err(error);
            }
        };
        let (frozen_ms, size) = (captured.frozen.as_millis(), captured.size_bytes);
        tracing::info!(sandbox_id = %id, snapshot_id = %snapshot.id, frozen_ms, size, captured.stored_bytes,
            "snapshot of a sandbox is stored");
        Ok(snapshot)
    }

    async fn remove_files(&self, folder: &str) {
        if let Err(error) = self.host.remove_artifact(folder).await {
            tracing::warn!(folder, error = %chain(&error), "files of a snapshot that is not stored stay until the next start");
        }
    }

    /// The caller's snapshots that match, newest first. A tenant's limit bounds their number.
    pub(super) async fn snapshots_of(&self, caller: &Caller, query: SnapshotQuery) -> Result<Vec<SnapshotInfo>> {
        let sandbox = match &query.sandbox_id {
            None => None,
            // Another text names no sandbox, so nothing was taken of it.
            Some(id) => match id.parse() {
                Ok(id) => Some(id),
                Err(_) => return Ok(Vec::new()),
            },
        };
        let mut filter = SnapshotFilter { sandbox, after: None, limit: PAGE };
        let mut found = Vec::new();
        loop {
            let page = self.db.list_snapshots(caller, filter.clone()).await.stored()?;
            let full = page.len() >= PAGE as usize;
            filter.after = page.last().map(|last| last.id);
            for snapshot in page {
                if query.metadata.iter().all(|(key, value)| snapshot.metadata.get(key) == Some(value)) {
                    found.push(answers::snapshot(&snapshot)?);
                }
            }
            if !full {
                return Ok(found);
            }
        }
    }

    /// One snapshot of the caller that is not over.
    pub(super) async fn snapshot_of(&self, caller: &Caller, id: &str) -> Result<Snapshot> {
        self.db.get_snapshot(caller, parse(id)?).await.or_missing(|| missing(id))
    }

    /// Ends a reusable snapshot.
    pub(super) async fn end_snapshot(&self, caller: &Caller, id: &str) -> Result<()> {
        match self.db.delete_snapshot(caller, parse(id)?, Timestamp::now()).await {
            Err(DbError::Conflict { .. }) => Err(Error::new(
                ErrorResponseCode::SnapshotInUse,
                format!("a paused sandbox is stored in snapshot {id}: delete that sandbox instead"),
            )),
            ended => ended.or_missing(|| missing(id)),
        }
    }

    /// Removes the files of snapshots that are over, and then their rows.
    pub(crate) async fn collect_snapshots(&self, now: Timestamp, limit: u32) -> std::result::Result<bool, Broken> {
        let over = self.db.snapshots_to_remove(now - GRACE, limit).await?;
        let any = !over.is_empty();
        for (id, folder) in over {
            self.host.remove_artifact(&folder).await?;
            self.db.snapshot_removed(id).await?;
            tracing::info!(snapshot_id = %id, "snapshot removed");
        }
        Ok(any)
    }

    /// A running sandbox of the caller.
    pub(super) async fn running_of(&self, caller: &Caller, id: SandboxId) -> Result<Sandbox> {
        let sandbox = self.sandbox_of(caller, id).await?;
        match sandbox.status {
            SandboxStatus::Running => Ok(sandbox),
            SandboxStatus::Creating => Err(not_ready(id, "is not running yet; try again")),
            SandboxStatus::Paused => Err(not_ready(id, "is paused: resume it first")),
            SandboxStatus::Destroyed | SandboxStatus::Error => Err(Error::sandbox_not_found(&id.to_string())),
        }
    }
}
