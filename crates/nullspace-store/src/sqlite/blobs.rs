//! Which files of build contexts a tenant has.

use std::collections::BTreeSet;

use jiff::Timestamp;
use sqlx::sqlite::SqliteRow;

use super::{
    SqliteStore,
    rows::{Reader, integer},
};
use crate::{Blob, BlobId, Caller, Result, StoreError};

/// Blobs asked for in one statement.
const AT_ONCE: usize = 500;

fn blob_id(row: &SqliteRow) -> Result<BlobId> {
    let row = Reader(row);
    Ok(BlobId::new(&row.text("sha256")?, row.integer("bytes")?)?)
}

fn blob(row: &SqliteRow) -> Result<Blob> {
    Ok(Blob { tenant: Reader(row).parsed("tenant_id")?, id: blob_id(row)? })
}

pub(super) async fn find(
    store: &SqliteStore,
    caller: &Caller,
    wanted: &[BlobId],
    now: Timestamp,
) -> Result<BTreeSet<BlobId>> {
    let mut found = BTreeSet::new();
    for some in wanted.chunks(AT_ONCE) {
        let digests = serde_json::json!(some.iter().map(BlobId::sha256).collect::<Vec<_>>()).to_string();
        let mut tx = store.write().await?;
        let rows = sqlx::query(
            "UPDATE blobs SET last_used_at = max(last_used_at, ?1)
             WHERE tenant_id = ?2 AND sha256 IN (SELECT value FROM json_each(?3)) RETURNING sha256, bytes",
        )
        .bind(now.as_microsecond())
        .bind(caller.tenant.to_string())
        .bind(digests)
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        for row in &rows {
            found.insert(blob_id(row)?);
        }
    }
    // The same digest with another size is another blob, which nobody can have.
    found.retain(|id| wanted.contains(id));
    Ok(found)
}

pub(super) async fn put(
    store: &SqliteStore,
    caller: &Caller,
    blob: &BlobId,
    limit_bytes: u64,
    now: Timestamp,
) -> Result<()> {
    let mut tx = store.write().await?;
    let others: i64 =
        sqlx::query_scalar("SELECT coalesce(sum(bytes), 0) FROM blobs WHERE tenant_id = ? AND sha256 != ?")
            .bind(caller.tenant.to_string())
            .bind(blob.sha256())
            .fetch_one(&mut *tx)
            .await?;
    let total = u64::try_from(others).unwrap_or(u64::MAX).saturating_add(blob.bytes());
    if total > limit_bytes {
        let limit = u32::try_from(limit_bytes >> 20).unwrap_or(u32::MAX);
        return Err(StoreError::LimitReached { what: "the uploaded files together are too large, in MiB", limit });
    }
    sqlx::query(
        "INSERT INTO blobs (tenant_id, sha256, bytes, stored_at, last_used_at) VALUES (?1, ?2, ?3, ?4, ?4)
         ON CONFLICT (tenant_id, sha256) DO UPDATE SET last_used_at = max(last_used_at, excluded.last_used_at)",
    )
    .bind(caller.tenant.to_string())
    .bind(blob.sha256())
    .bind(integer(blob.bytes())?)
    .bind(now.as_microsecond())
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}

pub(super) async fn collectable(store: &SqliteStore, unused_since: Timestamp, limit: u32) -> Result<Vec<Blob>> {
    let found = sqlx::query("SELECT * FROM blobs WHERE last_used_at < ? ORDER BY last_used_at, sha256 LIMIT ?")
        .bind(unused_since.as_microsecond())
        .bind(i64::from(limit))
        .fetch_all(&store.readers)
        .await?;
    found.iter().map(blob).collect()
}

pub(super) async fn purge(store: &SqliteStore, blob: &Blob, unused_since: Timestamp) -> Result<bool> {
    let done = sqlx::query("DELETE FROM blobs WHERE tenant_id = ? AND sha256 = ? AND last_used_at < ?")
        .bind(blob.tenant.to_string())
        .bind(blob.id.sha256())
        .bind(unused_since.as_microsecond())
        .execute(&store.writer)
        .await?;
    Ok(done.rows_affected() > 0)
}

pub(super) async fn known(store: &SqliteStore) -> Result<BTreeSet<Blob>> {
    let found = sqlx::query("SELECT * FROM blobs").fetch_all(&store.readers).await?;
    found.iter().map(blob).collect()
}
