//! Snapshots of sandboxes.
//!
//! ```text
//!   recorded ──> not over ──resumed, deleted, its paused sandbox ended──> over ──files removed──> no row
//! ```
//! A snapshot of the kind `pause` is over exactly when no paused sandbox is stored in it: both change in one transaction. One that is a
//! capture has no streams: `{}`.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{Caller, SandboxId, SnapshotId, Streams};
use serde_json::json;
use sqlx::QueryBuilder;

use super::{
    Db, DbRow, Store, Tx,
    dialect::UNINDEXED,
    promotions,
    rows::{self, Reader},
    sandboxes,
};
use crate::{
    DbError, Idempotency, NewSnapshot, Promotion, Recorded, Resolved, Result, Sandbox, SandboxStatus, Snapshot,
    SnapshotCounts, SnapshotFilter, SnapshotKind, Snapshots,
};

#[async_trait]
impl Snapshots for Store {
    async fn record_snapshot(
        &self,
        snapshot: NewSnapshot,
        delete_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Recorded> {
        record(self, snapshot, delete_at, now).await
    }

    async fn captures(&self, host: &str) -> Result<Vec<Snapshot>> {
        captures(self, host).await
    }

    async fn set_streams(&self, snapshot: SnapshotId, streams: &Streams, stored_bytes: u64) -> Result<bool> {
        set_streams(self, snapshot, streams, stored_bytes).await
    }

    async fn settle_eviction(&self, snapshot: SnapshotId, delete_at: Option<Timestamp>) -> Result<Snapshot> {
        settle(self, snapshot, delete_at).await
    }

    async fn count_snapshots(&self, caller: &Caller) -> Result<SnapshotCounts> {
        count(self, caller).await
    }

    async fn get_snapshot(&self, caller: &Caller, snapshot: SnapshotId) -> Result<Snapshot> {
        get(self, caller, snapshot).await
    }

    async fn list_snapshots(&self, caller: &Caller, filter: SnapshotFilter) -> Result<Vec<Snapshot>> {
        list(self, caller, filter).await
    }

    async fn promote_snapshot(&self, caller: &Caller, promotion: Promotion, now: Timestamp) -> Result<Resolved> {
        promotions::promote(self, caller, promotion, now).await
    }

    async fn promoted_before(
        &self,
        caller: &Caller,
        idempotency: Option<&Idempotency>,
        most: u32,
    ) -> Result<Option<Resolved>> {
        promotions::before(self, caller, idempotency, most).await
    }

    async fn resume_paused(
        &self,
        snapshot: SnapshotId,
        resumed: SandboxId,
        timeout_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Sandbox> {
        resume(self, snapshot, resumed, timeout_at, now).await
    }

    async fn continue_paused(
        &self,
        sandbox: SandboxId,
        timeout_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Sandbox> {
        go_on(self, sandbox, timeout_at, now).await
    }

    async fn to_continue(&self, host: &str) -> Result<Vec<(Sandbox, Snapshot)>> {
        to_continue(self, host).await
    }

    async fn mark_to_continue(&self, sandbox: SandboxId, remaining_ms: Option<u64>) -> Result<()> {
        mark(self, sandbox, true, remaining_ms).await
    }

    async fn give_up_continuing(&self, sandbox: SandboxId) -> Result<()> {
        mark(self, sandbox, false, None).await
    }

    async fn delete_snapshot(&self, caller: &Caller, snapshot: SnapshotId, now: Timestamp) -> Result<()> {
        delete(self, caller, snapshot, now).await
    }

    async fn snapshot_in_folder(&self, folder: &str) -> Result<Option<Snapshot>> {
        let row =
            sqlx::query("SELECT * FROM snapshots WHERE folder = $1").bind(folder).fetch_optional(&self.readers).await?;
        row.as_ref().map(rows::snapshot).transpose()
    }

    async fn snapshots_to_remove(&self, before: Timestamp, limit: u32) -> Result<Vec<(SnapshotId, String)>> {
        to_remove(self, before, limit).await
    }

    async fn snapshot_removed(&self, snapshot: SnapshotId) -> Result<()> {
        removed(self, snapshot).await
    }
}

/// Longest page of snapshots.
const MAX_PAGE: u32 = 1000;

async fn record(
    store: &Store,
    snapshot: NewSnapshot,
    delete_at: Option<Timestamp>,
    now: Timestamp,
) -> Result<Recorded> {
    let mut tx = store.write().await?;
    let sandbox = sandboxes::in_tx(&mut tx, snapshot.sandbox).await?;
    if let Some(repeat) = &snapshot.idempotency {
        let earlier = sqlx::query("SELECT * FROM snapshots WHERE tenant_id = $1 AND idempotency_key = $2")
            .bind(sandbox.tenant.to_string())
            .bind(&repeat.key)
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(row) = earlier {
            if Reader(&row).text("idempotency_digest")? == repeat.request_digest {
                return Ok(Recorded::Repeated(rows::snapshot(&row)?));
            }
            return Err(DbError::conflict("this idempotency key was used for another request"));
        }
    }
    if sandbox.status != SandboxStatus::Running {
        return Err(DbError::conflict(format!("the sandbox is {}, not running", sandbox.status)));
    }
    let (key, digest) = snapshot.idempotency.map(|repeat| (repeat.key, repeat.request_digest)).unzip();
    let row = sqlx::query(
        "INSERT INTO snapshots (id, tenant_id, kind, evicted, sandbox_id, artifact_id, folder, streams, summary, size_bytes,
             stored_bytes, metadata, template_ref, config, sandbox_metadata, sealed_envs, created_at, idempotency_key,
             idempotency_digest)
         SELECT $1, s.tenant_id, $2, $3, s.id, s.artifact_id, $4, $5, $6, $7, $8, $9, s.template_ref, s.config, s.metadata,
             s.sealed_envs, $10, $11, $12 FROM sandboxes s WHERE s.id = $13 RETURNING *",
    )
    .bind(snapshot.id.to_string())
    .bind(snapshot.kind.as_str())
    .bind(i64::from(snapshot.evicted))
    .bind(snapshot.folder)
    .bind(json!(snapshot.streams.unwrap_or_default()).to_string())
    .bind(snapshot.summary.to_string())
    .bind(rows::integer(snapshot.size_bytes)?)
    .bind(rows::integer(snapshot.stored_bytes)?)
    .bind(snapshot.metadata.to_string())
    .bind(now.as_microsecond())
    .bind(key)
    .bind(digest)
    .bind(sandbox.id.to_string())
    .fetch_one(&mut *tx)
    .await?;
    if snapshot.kind == SnapshotKind::Pause {
        sqlx::query(
            "UPDATE sandboxes SET status = 'paused', reason = NULL, snapshot_id = $1, timeout_at = iif($2 = 1, timeout_at, $3),
                 continues = 0, continue_ms = NULL
             WHERE id = $4",
        )
        .bind(snapshot.id.to_string())
        .bind(i64::from(snapshot.evicted))
        .bind(delete_at.map(Timestamp::as_microsecond))
        .bind(sandbox.id.to_string())
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    Ok(Recorded::New(rows::snapshot(&row)?))
}

async fn captures(store: &Store, host: &str) -> Result<Vec<Snapshot>> {
    let found = sqlx::query(
        "SELECT p.* FROM snapshots p JOIN sandboxes s ON s.id = p.sandbox_id
         WHERE p.streams = '{}' AND p.kind = 'pause' AND p.ended_at IS NULL AND s.host = $1 ORDER BY p.id",
    )
    .bind(host)
    .fetch_all(&store.readers)
    .await?;
    found.iter().map(rows::snapshot).collect()
}

async fn set_streams(store: &Store, snapshot: SnapshotId, streams: &Streams, stored_bytes: u64) -> Result<bool> {
    let set = sqlx::query(
        "UPDATE snapshots SET streams = $1, stored_bytes = $2 WHERE id = $3 AND streams = '{}' AND ended_at IS NULL",
    )
    .bind(json!(streams).to_string())
    .bind(rows::integer(stored_bytes)?)
    .bind(snapshot.to_string());
    Ok(store.run(set).await? > 0)
}

async fn settle(store: &Store, snapshot: SnapshotId, delete_at: Option<Timestamp>) -> Result<Snapshot> {
    let mut tx = store.write().await?;
    let no_eviction = || DbError::conflict("no evicted sandbox is stored in this snapshot");
    let row =
        sqlx::query("UPDATE snapshots SET evicted = 0 WHERE id = $1 AND evicted = 1 AND ended_at IS NULL RETURNING *")
            .bind(snapshot.to_string())
            .fetch_optional(&mut *tx)
            .await?
            .ok_or_else(no_eviction)?;
    let settled = rows::snapshot(&row)?;
    let done =
        sqlx::query("UPDATE sandboxes SET timeout_at = $1 WHERE id = $2 AND status = 'paused' AND snapshot_id = $3")
            .bind(delete_at.map(Timestamp::as_microsecond))
            .bind(settled.sandbox.to_string())
            .bind(snapshot.to_string())
            .execute(&mut *tx)
            .await?;
    if done.rows_affected() == 0 {
        return Err(no_eviction());
    }
    tx.commit().await?;
    Ok(settled)
}

async fn count(store: &Store, caller: &Caller) -> Result<SnapshotCounts> {
    let row = sqlx::query(
        "SELECT count(*) FILTER (WHERE kind = 'pause' AND evicted = 0) AS paused,
             count(*) FILTER (WHERE kind = 'pause' AND evicted = 1) AS evicted, count(*) FILTER (WHERE kind = 'kept') AS kept
         FROM snapshots WHERE tenant_id = $1 AND ended_at IS NULL",
    )
    .bind(caller.tenant.to_string())
    .fetch_one(&store.readers)
    .await?;
    let row = Reader(&row);
    Ok(SnapshotCounts { paused: row.integer("paused")?, evicted: row.integer("evicted")?, kept: row.integer("kept")? })
}

async fn get(store: &Store, caller: &Caller, snapshot: SnapshotId) -> Result<Snapshot> {
    let row = sqlx::query("SELECT * FROM snapshots WHERE id = $1 AND tenant_id = $2 AND ended_at IS NULL")
        .bind(snapshot.to_string())
        .bind(caller.tenant.to_string())
        .fetch_optional(&store.readers)
        .await?
        .ok_or(DbError::NotFound)?;
    rows::snapshot(&row)
}

async fn list(store: &Store, caller: &Caller, filter: SnapshotFilter) -> Result<Vec<Snapshot>> {
    let mut query: QueryBuilder<Db> = QueryBuilder::new("SELECT * FROM snapshots WHERE ended_at IS NULL");
    match filter.sandbox {
        None => query.push(" AND tenant_id = ").push_bind(caller.tenant.to_string()),
        // The sandbox's few are found by its index.
        Some(sandbox) => {
            query.push(" AND sandbox_id = ").push_bind(sandbox.to_string());
            query.push(" AND ").push(UNINDEXED).push("tenant_id = ").push_bind(caller.tenant.to_string())
        }
    };
    if let Some(after) = filter.after {
        query.push(" AND id < ").push_bind(after.to_string());
    }
    query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(filter.limit.clamp(1, MAX_PAGE)));
    let found = query.build().fetch_all(&store.readers).await?;
    found.iter().map(rows::snapshot).collect()
}

/// Any tenant's snapshot, also one that is over.
async fn row(tx: &mut Tx, snapshot: SnapshotId) -> Result<DbRow> {
    sqlx::query("SELECT * FROM snapshots WHERE id = $1")
        .bind(snapshot.to_string())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(DbError::NotFound)
}

/// Ends a snapshot. Its variables are gone then.
pub(super) async fn end(tx: &mut Tx, snapshot: SnapshotId, now: Timestamp) -> Result<()> {
    sqlx::query("UPDATE snapshots SET ended_at = $1, sealed_envs = NULL WHERE id = $2 AND ended_at IS NULL")
        .bind(now.as_microsecond())
        .bind(snapshot.to_string())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Ends a snapshot whose files are lost, and the sandbox that is paused in it. Its row goes: it has no files to be removed.
pub(super) async fn lose(tx: &mut Tx, row: &DbRow, now: Timestamp) -> Result<()> {
    let lost = rows::snapshot(row)?;
    let over = Reader(row).optional_time("ended_at")?.is_some();
    if lost.kind == SnapshotKind::Pause && !over {
        let paused = sandboxes::in_tx(tx, lost.sandbox).await?;
        let reason = "the snapshot that it was stored in is lost";
        sandboxes::end(tx, &paused, SandboxStatus::Error, Some(reason), now).await?;
    }
    sqlx::query("DELETE FROM snapshots WHERE id = $1").bind(lost.id.to_string()).execute(&mut **tx).await?;
    Ok(())
}

async fn resume(
    store: &Store,
    snapshot: SnapshotId,
    resumed: SandboxId,
    timeout_at: Option<Timestamp>,
    now: Timestamp,
) -> Result<Sandbox> {
    let mut tx = store.write().await?;
    let stored = row(&mut tx, snapshot).await?;
    let gone = || DbError::conflict("the sandbox is not paused any more");
    if Reader(&stored).optional_time("ended_at")?.is_some() {
        return Err(gone());
    }
    let stored = rows::snapshot(&stored)?;
    if stored.kind != SnapshotKind::Pause {
        return Err(DbError::conflict("no sandbox is paused in this snapshot"));
    }
    let paused = sandboxes::in_tx(&mut tx, stored.sandbox).await?;
    if paused.status != SandboxStatus::Paused || paused.snapshot != Some(snapshot) {
        return Err(gone());
    }
    let new = sandboxes::in_tx(&mut tx, resumed).await?;
    if new.status != SandboxStatus::Creating || new.snapshot != Some(snapshot) || new.tenant != stored.tenant {
        return Err(DbError::conflict("the resumed sandbox does not start from this snapshot any more"));
    }
    let reason = format!("resumed as {resumed}");
    // The snapshot is over with it.
    sandboxes::end(&mut tx, &paused, SandboxStatus::Destroyed, Some(&reason), now).await?;
    let running = run(&mut tx, resumed, timeout_at, now).await?;
    tx.commit().await?;
    Ok(running)
}

async fn go_on(store: &Store, sandbox: SandboxId, timeout_at: Option<Timestamp>, now: Timestamp) -> Result<Sandbox> {
    let mut tx = store.write().await?;
    let paused = sandboxes::in_tx(&mut tx, sandbox).await?;
    let (SandboxStatus::Paused, Some(snapshot)) = (paused.status, paused.snapshot) else {
        return Err(DbError::conflict("the sandbox is not paused any more"));
    };
    end(&mut tx, snapshot, now).await?;
    let running = run(&mut tx, sandbox, timeout_at, now).await?;
    tx.commit().await?;
    Ok(running)
}

async fn run(tx: &mut Tx, sandbox: SandboxId, timeout_at: Option<Timestamp>, now: Timestamp) -> Result<Sandbox> {
    let row = sqlx::query(
        "UPDATE sandboxes SET status = 'running', reason = NULL, started_at = coalesce(started_at, $1), timeout_at = $2,
             continues = 0, continue_ms = NULL
         WHERE id = $3 RETURNING *",
    )
    .bind(now.as_microsecond())
    .bind(timeout_at.map(Timestamp::as_microsecond))
    .bind(sandbox.to_string())
    .fetch_one(&mut **tx)
    .await?;
    rows::sandbox(&row)
}

async fn to_continue(store: &Store, host: &str) -> Result<Vec<(Sandbox, Snapshot)>> {
    let mut tx = store.read().await?;
    let found = sqlx::query("SELECT * FROM sandboxes WHERE host = $1 AND continues = 1 ORDER BY created_at, id")
        .bind(host)
        .fetch_all(&mut *tx)
        .await?;
    let mut listed = Vec::new();
    for found in &found {
        let sandbox = rows::sandbox(found)?;
        let snapshot = sandbox.snapshot.ok_or_else(|| DbError::corrupt("sandboxes.snapshot_id"))?;
        let stored = row(&mut tx, snapshot).await?;
        listed.push((sandbox, rows::snapshot(&stored)?));
    }
    Ok(listed)
}

async fn mark(store: &Store, sandbox: SandboxId, continues: bool, remaining_ms: Option<u64>) -> Result<()> {
    let mut tx = store.write().await?;
    let done = sqlx::query("UPDATE sandboxes SET continues = $1, continue_ms = $2 WHERE id = $3 AND status = 'paused'")
        .bind(i64::from(continues))
        .bind(remaining_ms.map(rows::integer).transpose()?)
        .bind(sandbox.to_string())
        .execute(&mut *tx)
        .await?;
    if done.rows_affected() == 0 {
        sandboxes::in_tx(&mut tx, sandbox).await?;
        return Err(DbError::conflict("the sandbox is not paused any more"));
    }
    tx.commit().await?;
    Ok(())
}

async fn delete(store: &Store, caller: &Caller, snapshot: SnapshotId, now: Timestamp) -> Result<()> {
    let mut tx = store.write().await?;
    let row = sqlx::query("SELECT kind FROM snapshots WHERE id = $1 AND tenant_id = $2 AND ended_at IS NULL")
        .bind(snapshot.to_string())
        .bind(caller.tenant.to_string())
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(DbError::NotFound)?;
    if Reader(&row).parsed::<SnapshotKind>("kind")? == SnapshotKind::Pause {
        return Err(DbError::conflict("a paused sandbox is stored in this snapshot: end the sandbox instead"));
    }
    end(&mut tx, snapshot, now).await?;
    tx.commit().await?;
    Ok(())
}

async fn to_remove(store: &Store, before: Timestamp, limit: u32) -> Result<Vec<(SnapshotId, String)>> {
    let found = sqlx::query(
        "SELECT p.id AS id, p.folder AS folder FROM snapshots p
         WHERE p.ended_at IS NOT NULL AND p.ended_at < $1
             AND NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.snapshot_id = p.id AND s.status = 'creating')
         ORDER BY p.ended_at, p.id LIMIT $2",
    )
    .bind(before.as_microsecond())
    .bind(i64::from(limit))
    .fetch_all(&store.readers)
    .await?;
    found.iter().map(|row| Ok((Reader(row).parsed("id")?, Reader(row).text("folder")?))).collect()
}

async fn removed(store: &Store, snapshot: SnapshotId) -> Result<()> {
    let mut tx = store.write().await?;
    sqlx::query("DELETE FROM snapshots WHERE id = $1 AND ended_at IS NOT NULL")
        .bind(snapshot.to_string())
        .execute(&mut *tx)
        .await?;
    let left = sqlx::query("SELECT 1 FROM snapshots WHERE id = $1").bind(snapshot.to_string());
    if left.fetch_optional(&mut *tx).await?.is_some() {
        return Err(DbError::conflict("the snapshot is not over"));
    }
    tx.commit().await?;
    Ok(())
}
