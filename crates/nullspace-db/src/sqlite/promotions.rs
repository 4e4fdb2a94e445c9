//! Promotion of a snapshot of a sandbox to a template.
//!
//! ```text
//!   snapshot, not over ──one transaction──> build (ready at once) ── artifact: the snapshot's files, its root image ── tags
//!        └── deleted later: its row and name go; the artifact names the same files, and keeps them
//! ```

use jiff::Timestamp;
use nullspace_types::{Caller, TemplateRef};

use super::{SqliteStore, finish, queue, rows::Reader, templates};
use crate::{DbError, Promotion, Resolved, Result};

pub(super) async fn promote(
    store: &SqliteStore,
    caller: &Caller,
    promotion: Promotion,
    now: Timestamp,
) -> Result<Resolved> {
    let Promotion { snapshot, build, first, ready } = promotion;
    if build.tags.is_empty() {
        return Err(DbError::conflict("a template needs at least one tag"));
    }
    let mut tx = store.write().await?;
    if let Some(repeat) = &build.idempotency
        && let Some(earlier) = queue::earlier(&mut tx, caller, repeat).await?
    {
        return templates::resolve_in(&mut tx, caller, &TemplateRef::Artifact(earlier.artifact_id)).await;
    }
    let row = sqlx::query(
        "SELECT p.streams AS streams, a.rootfs_key AS rootfs_key FROM snapshots p JOIN artifacts a ON a.id = p.artifact_id
         WHERE p.id = ? AND p.tenant_id = ? AND p.ended_at IS NULL",
    )
    .bind(snapshot.to_string())
    .bind(caller.tenant.to_string())
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(DbError::NotFound)?;
    let row = Reader(&row);
    // From here on the row of the artifact keeps both, whatever becomes of the snapshot.
    if row.streams()? != ready.streams || row.optional_text("rootfs_key")?.as_ref() != Some(&ready.rootfs_key) {
        return Err(DbError::conflict("the artifact is not this snapshot's"));
    }
    let build = queue::insert(&mut tx, caller, build, first, now).await?;
    let artifact = TemplateRef::Artifact(build.artifact_id);
    sqlx::query("UPDATE builds SET attempt = 1, started_at = ? WHERE id = ?")
        .bind(now.as_microsecond())
        .bind(build.id.to_string())
        .execute(&mut *tx)
        .await?;
    finish::make_ready(&mut tx, build, ready, now).await?;
    let resolved = templates::resolve_in(&mut tx, caller, &artifact).await?;
    tx.commit().await?;
    Ok(resolved)
}
