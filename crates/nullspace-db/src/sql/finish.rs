//! Ends of builds: one transaction each, with the log's last entry.

use jiff::Timestamp;
use nullspace_types::{BuildId, Caller, TemplateId};
use serde_json::{Value, json};

use super::{
    Store, Tx, one_build,
    rows::{integer, select_build},
};
use crate::{
    Build, BuildStatus, CancelOutcome, CancelRequest, FinishError, FinishReady, Finished, Lease, NewLogEntry, Result,
};

pub(super) async fn ready(store: &Store, lease: &Lease, result: FinishReady, now: Timestamp) -> Result<Finished> {
    let mut tx = store.write().await?;
    one_build::fence(&mut tx, lease).await?;
    let (build, _) = one_build::get_any(&mut tx, lease.build).await?;
    if build.cancel_requested_at.is_some() {
        return Ok(Finished::CancelRequested);
    }
    let build = make_ready(&mut tx, build, result, now).await?;
    tx.commit().await?;
    Ok(Finished::Ready(Box::new(build)))
}

/// Records the artifact of an unfinished build, moves its tags, and ends it as `ready`.
pub(super) async fn make_ready(tx: &mut Tx, build: Build, result: FinishReady, now: Timestamp) -> Result<Build> {
    let micros = now.as_microsecond();
    let id = build.id.to_string();
    sqlx::query(
        "INSERT INTO artifacts (id, folder, tenant_id, build_id, rootfs_key, disk_bytes, stored_bytes, compatibility, snapshot,
             runtime, created_at, retention_expires_at, final_key, streams)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
    )
    .bind(build.artifact_id.to_string())
    .bind(&result.folder)
    .bind(build.tenant.to_string())
    .bind(&id)
    .bind(&result.rootfs_key)
    .bind(integer(result.disk_bytes)?)
    .bind(integer(result.stored_bytes)?)
    .bind(result.compatibility.to_string())
    .bind(result.snapshot.to_string())
    .bind(result.runtime.0.to_string())
    .bind(micros)
    .bind(result.retention_expires_at.map(Timestamp::as_microsecond))
    .bind(&result.final_key)
    .bind(result.streams.as_ref().map(|streams| json!(streams).to_string()))
    .execute(&mut **tx)
    .await?;
    sqlx::query("UPDATE rootfs SET last_used_at = max(last_used_at, $1) WHERE key = $2")
        .bind(micros)
        .bind(&result.rootfs_key)
        .execute(&mut **tx)
        .await?;
    for tag in &build.tags {
        sqlx::query(
            "INSERT INTO template_tags (template_id, tag, build_id, moved_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (template_id, tag) DO UPDATE SET build_id = excluded.build_id, moved_at = excluded.moved_at",
        )
        .bind(build.template.to_string())
        .bind(tag.as_str())
        .bind(&id)
        .bind(micros)
        .execute(&mut **tx)
        .await?;
    }
    if let Some(description) = &build.description {
        sqlx::query("UPDATE templates SET description = $1 WHERE id = $2")
            .bind(description)
            .bind(build.template.to_string())
            .execute(&mut **tx)
            .await?;
    }
    sqlx::query("UPDATE builds SET runtime_defaults = $1, oci_metadata = $2, cache_summary = $3 WHERE id = $4")
        .bind(result.runtime_defaults.to_string())
        .bind(result.oci_metadata.as_ref().map(Value::to_string))
        .bind(result.cache_summary.as_ref().map(Value::to_string))
        .bind(&id)
        .execute(&mut **tx)
        .await?;
    end(tx, build.id, BuildStatus::Ready, result.entry, now).await
}

pub(super) async fn error(store: &Store, lease: &Lease, error: FinishError, now: Timestamp) -> Result<Build> {
    let mut tx = store.write().await?;
    one_build::fence(&mut tx, lease).await?;
    sqlx::query(
        "UPDATE builds SET failure_phase = $1, error = $2, error_detail = $3, cache_summary = $4 WHERE id = $5",
    )
    .bind(error.phase)
    .bind(error.message)
    .bind(error.detail.to_string())
    .bind(error.cache_summary.as_ref().map(Value::to_string))
    .bind(lease.build.to_string())
    .execute(&mut *tx)
    .await?;
    let build = end(&mut tx, lease.build, BuildStatus::Error, error.entry, now).await?;
    tx.commit().await?;
    Ok(build)
}

pub(super) async fn cancelled(store: &Store, lease: &Lease, entry: NewLogEntry, now: Timestamp) -> Result<Build> {
    let mut tx = store.write().await?;
    one_build::fence(&mut tx, lease).await?;
    let build = end(&mut tx, lease.build, BuildStatus::Cancelled, entry, now).await?;
    tx.commit().await?;
    Ok(build)
}

/// The common part of every end: last entry, final status, no lease, nothing kept.
async fn end(tx: &mut Tx, build: BuildId, status: BuildStatus, entry: NewLogEntry, now: Timestamp) -> Result<Build> {
    one_build::append(tx, build, &[entry]).await?;
    sqlx::query(
        "UPDATE builds SET status = $1, finished_at = $2, updated_at = $2, lease_owner = NULL, lease_expires_at = NULL,
             not_before = NULL
         WHERE id = $3",
    )
    .bind(status.as_str())
    .bind(now.as_microsecond())
    .bind(build.to_string())
    .execute(&mut **tx)
    .await?;
    for release in [
        "DELETE FROM rootfs_holds WHERE build_id = $1",
        "DELETE FROM artifact_holds WHERE build_id = $1",
        "DELETE FROM blob_holds WHERE build_id = $1",
    ] {
        sqlx::query(release).bind(build.to_string()).execute(&mut **tx).await?;
    }
    Ok(one_build::get_any(tx, build).await?.0)
}

pub(super) async fn request_cancel(
    store: &Store,
    caller: &Caller,
    build: BuildId,
    request: CancelRequest,
    now: Timestamp,
) -> Result<CancelOutcome> {
    let mut tx = store.write().await?;
    let (found, _) = one_build::get_in(&mut tx, caller, build).await?;
    let outcome = cancel_in(&mut tx, found, &request, now).await?;
    tx.commit().await?;
    Ok(outcome)
}

async fn cancel_in(tx: &mut Tx, build: Build, request: &CancelRequest, now: Timestamp) -> Result<CancelOutcome> {
    if build.status.is_final() {
        return Ok(CancelOutcome { build, ended_now: false });
    }
    if build.cancel_requested_at.is_none() {
        sqlx::query(
            "UPDATE builds SET cancel_requested_at = $1, updated_at = $1, cancel_requested_by = $2, cancel_reason = $3
             WHERE id = $4",
        )
        .bind(now.as_microsecond())
        .bind(&request.by)
        .bind(&request.reason)
        .bind(build.id.to_string())
        .execute(&mut **tx)
        .await?;
    }
    let ended_now = build.status == BuildStatus::Waiting;
    let build = if ended_now {
        end(tx, build.id, BuildStatus::Cancelled, request.entry.clone(), now).await?
    } else {
        one_build::get_any(tx, build.id).await?.0
    };
    Ok(CancelOutcome { build, ended_now })
}

/// Cancels the unfinished builds of a template.
pub(super) async fn cancel_unfinished(
    tx: &mut Tx,
    template: TemplateId,
    request: &CancelRequest,
    now: Timestamp,
) -> Result<()> {
    let found = sqlx::query(select_build!("WHERE b.template_id = $1 AND b.finished_at IS NULL"))
        .bind(template.to_string())
        .fetch_all(&mut **tx)
        .await?;
    for row in &found {
        cancel_in(tx, super::rows::build(row)?, request, now).await?;
    }
    Ok(())
}
