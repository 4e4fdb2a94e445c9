//! Files of build contexts, by tenant.

use std::collections::BTreeSet;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{Blob, BlobId, BuildId, Caller};

use super::{
    DbRow, Store, Tx,
    rows::{Reader, integer},
};
use crate::{Blobs, DbError, HeldBlob, Lease, Result, WantedBlob};

#[async_trait]
impl Blobs for Store {
    async fn find_blobs(&self, caller: &Caller, wanted: &[BlobId], now: Timestamp) -> Result<BTreeSet<BlobId>> {
        find(self, caller, wanted, now).await
    }

    async fn put_blob(&self, caller: &Caller, blob: &BlobId, limit_bytes: u64, now: Timestamp) -> Result<()> {
        put(self, caller, blob, limit_bytes, now).await
    }

    async fn held_blobs(&self, lease: &Lease) -> Result<Vec<HeldBlob>> {
        held(self, lease).await
    }

    async fn collectable_blobs(&self, unused_since: Timestamp, limit: u32) -> Result<Vec<Blob>> {
        collectable(self, unused_since, limit).await
    }

    async fn purge_blob(&self, blob: &Blob, unused_since: Timestamp) -> Result<bool> {
        purge(self, blob, unused_since).await
    }

    async fn known_blobs(&self) -> Result<BTreeSet<Blob>> {
        known(self).await
    }
}

/// `$1` is the time since which it was not used.
const UNUSED: &str = "b.last_used_at < $1
    AND NOT EXISTS (SELECT 1 FROM blob_holds h WHERE h.tenant_id = b.tenant_id AND h.sha256 = b.sha256)";

/// Most blobs in one statement.
const AT_ONCE: usize = 500;

fn blob_id(row: &DbRow) -> Result<BlobId> {
    let row = Reader(row);
    Ok(BlobId::new(&row.text("sha256")?, row.integer("bytes")?)?)
}

fn blob(row: &DbRow) -> Result<Blob> {
    Ok(Blob { tenant: Reader(row).parsed("tenant_id")?, id: blob_id(row)? })
}

pub(super) async fn find(
    store: &Store,
    caller: &Caller,
    wanted: &[BlobId],
    now: Timestamp,
) -> Result<BTreeSet<BlobId>> {
    let mut found = BTreeSet::new();
    for some in wanted.chunks(AT_ONCE) {
        let digests = serde_json::json!(some.iter().map(BlobId::sha256).collect::<Vec<_>>()).to_string();
        let mut tx = store.write().await?;
        let rows = sqlx::query(
            "UPDATE blobs SET last_used_at = max(last_used_at, $1)
             WHERE tenant_id = $2 AND sha256 IN (SELECT value FROM json_each($3)) RETURNING sha256, bytes",
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

pub(super) async fn put(store: &Store, caller: &Caller, blob: &BlobId, limit_bytes: u64, now: Timestamp) -> Result<()> {
    let mut tx = store.write().await?;
    let others: i64 = sqlx::query_scalar(
        "SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM blobs WHERE tenant_id = $1 AND sha256 != $2",
    )
    .bind(caller.tenant.to_string())
    .bind(blob.sha256())
    .fetch_one(&mut *tx)
    .await?;
    let total = u64::try_from(others).unwrap_or(u64::MAX).saturating_add(blob.bytes());
    if total > limit_bytes {
        let limit = u32::try_from(limit_bytes >> 20).unwrap_or(u32::MAX);
        return Err(DbError::LimitReached { what: "the uploaded files together are too large, in MiB", limit });
    }
    sqlx::query(
        "INSERT INTO blobs (tenant_id, sha256, bytes, stored_at, last_used_at) VALUES ($1, $2, $3, $4, $4)
         ON CONFLICT (tenant_id, sha256) DO UPDATE SET last_used_at = max(blobs.last_used_at, excluded.last_used_at)",
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

/// Keeps the files of an accepted build's context.
pub(super) async fn hold(
    tx: &mut Tx,
    caller: &Caller,
    build: BuildId,
    wanted: &[WantedBlob],
    now: Timestamp,
) -> Result<()> {
    for blob in wanted {
        let held = sqlx::query(
            "UPDATE blobs SET last_used_at = max(last_used_at, $1), generation = generation + $2
             WHERE tenant_id = $3 AND sha256 = $4 AND bytes = $5 RETURNING generation",
        )
        .bind(now.as_microsecond())
        .bind(i64::from(blob.force))
        .bind(caller.tenant.to_string())
        .bind(blob.id.sha256())
        .bind(integer(blob.id.bytes())?)
        .fetch_optional(&mut **tx)
        .await?;
        let Some(held) = held else {
            return Err(DbError::conflict(format!("blob {} of the build context is not uploaded", blob.id)));
        };
        sqlx::query(
            "INSERT INTO blob_holds (build_id, tenant_id, sha256, bytes, generation) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (build_id, sha256) DO UPDATE SET generation = excluded.generation",
        )
        .bind(build.to_string())
        .bind(caller.tenant.to_string())
        .bind(blob.id.sha256())
        .bind(integer(blob.id.bytes())?)
        .bind(Reader(&held).integer::<i64>("generation")?)
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

pub(super) async fn held(store: &Store, lease: &Lease) -> Result<Vec<HeldBlob>> {
    let found = sqlx::query("SELECT * FROM blob_holds WHERE build_id = $1 ORDER BY sha256")
        .bind(lease.build.to_string())
        .fetch_all(&store.readers)
        .await?;
    found.iter().map(|row| Ok(HeldBlob { id: blob_id(row)?, generation: Reader(row).integer("generation")? })).collect()
}

pub(super) async fn collectable(store: &Store, unused_since: Timestamp, limit: u32) -> Result<Vec<Blob>> {
    let query = format!("SELECT b.* FROM blobs b WHERE {UNUSED} ORDER BY b.last_used_at, b.sha256 LIMIT $2");
    let found = sqlx::query(sqlx::AssertSqlSafe(query))
        .bind(unused_since.as_microsecond())
        .bind(i64::from(limit))
        .fetch_all(&store.readers)
        .await?;
    found.iter().map(blob).collect()
}

pub(super) async fn purge(store: &Store, blob: &Blob, unused_since: Timestamp) -> Result<bool> {
    let query = format!("DELETE FROM blobs AS b WHERE b.tenant_id = $2 AND b.sha256 = $3 AND {UNUSED}");
    let purge = sqlx::query(sqlx::AssertSqlSafe(query))
        .bind(unused_since.as_microsecond())
        .bind(blob.tenant.to_string())
        .bind(blob.id.sha256());
    Ok(store.run(purge).await? > 0)
}

pub(super) async fn known(store: &Store) -> Result<BTreeSet<Blob>> {
    let found = sqlx::query("SELECT * FROM blobs").fetch_all(&store.readers).await?;
    found.iter().map(blob).collect()
}
