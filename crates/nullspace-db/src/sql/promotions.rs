//! Promotion of a snapshot of a sandbox to a template.
//!
//! ```text
//!   snapshot, not over ──one transaction──> build (ready at once) ── artifact: the snapshot's files, its root image ── tags
//!        └── deleted later: its row and name go; the artifact names the same files, and keeps them
//! ```

use jiff::Timestamp;
use nullspace_types::{Caller, TemplateRef};

use super::{Store, Tx, finish, queue, rows::Reader, templates};
use crate::{DbError, Idempotency, Promotion, Resolved, Result};

pub(super) async fn promote(store: &Store, caller: &Caller, promotion: Promotion, now: Timestamp) -> Result<Resolved> {
    let Promotion { snapshot, build, first, ready, most } = promotion;
    if build.tags.is_empty() {
        return Err(DbError::conflict("a template needs at least one tag"));
    }
    let mut tx = store.write().await?;
    if let Some(earlier) = earlier(&mut tx, caller, build.idempotency.as_ref()).await? {
        return Ok(earlier);
    }
    ensure_fits(&mut tx, caller, most).await?;
    let row = sqlx::query(
        "SELECT p.streams AS streams, a.rootfs_key AS rootfs_key FROM snapshots p JOIN artifacts a ON a.id = p.artifact_id
         WHERE p.id = $1 AND p.tenant_id = $2 AND p.ended_at IS NULL",
    )
    .bind(snapshot.to_string())
    .bind(caller.tenant.to_string())
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(DbError::NotFound)?;
    let row = Reader(&row);
    // From here on the row of the artifact keeps both, whatever becomes of the snapshot.
    let streams = row.streams()?;
    if streams.is_none() {
        return Err(DbError::conflict("the snapshot is not stored yet"));
    }
    if streams != ready.streams || row.optional_text("rootfs_key")?.as_ref() != Some(&ready.rootfs_key) {
        return Err(DbError::conflict("the artifact is not this snapshot's"));
    }
    let build = queue::insert(&mut tx, caller, build, first, now).await?;
    let artifact = TemplateRef::Artifact(build.artifact_id);
    sqlx::query("UPDATE builds SET attempt = 1, started_at = $1 WHERE id = $2")
        .bind(now.as_microsecond())
        .bind(build.id.to_string())
        .execute(&mut *tx)
        .await?;
    finish::make_ready(&mut tx, build, ready, now).await?;
    let resolved = templates::resolve_in(&mut tx, caller, &artifact).await?;
    tx.commit().await?;
    Ok(resolved)
}

pub(super) async fn before(
    store: &Store,
    caller: &Caller,
    idempotency: Option<&Idempotency>,
    most: u32,
) -> Result<Option<Resolved>> {
    let mut tx = store.read().await?;
    match earlier(&mut tx, caller, idempotency).await? {
        Some(earlier) => Ok(Some(earlier)),
        None => ensure_fits(&mut tx, caller, most).await.map(|()| None),
    }
}

/// The target of an earlier request with the same key.
async fn earlier(tx: &mut Tx, caller: &Caller, idempotency: Option<&Idempotency>) -> Result<Option<Resolved>> {
    let Some(repeat) = idempotency else { return Ok(None) };
    let Some(build) = queue::earlier(tx, caller, repeat).await? else { return Ok(None) };
    templates::resolve_in(tx, caller, &TemplateRef::Artifact(build.artifact_id)).await.map(Some)
}

/// Checks that the tenant may have one more promoted artifact. Each keeps the files of its snapshot.
async fn ensure_fits(tx: &mut Tx, caller: &Caller, most: u32) -> Result<()> {
    let promoted: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM builds b JOIN artifacts a ON a.build_id = b.id
         WHERE b.tenant_id = $1 AND b.source_type = 'snapshot' AND a.deleted_at IS NULL",
    )
    .bind(caller.tenant.to_string())
    .fetch_one(&mut **tx)
    .await?;
    if promoted >= i64::from(most) {
        return Err(DbError::LimitReached { what: "too many promoted snapshots", limit: most });
    }
    Ok(())
}
