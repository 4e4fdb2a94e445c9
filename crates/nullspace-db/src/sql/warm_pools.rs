//! Warm pools of templates.

use std::collections::HashMap;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use nullspace_types::{Caller, WarmPoolId};

use super::{DbRow, Store, Tx, rows::Reader};
use crate::{DbError, Result, WarmPool, WarmPoolLimits, WarmPools};

#[async_trait]
impl WarmPools for Store {
    async fn insert_warm_pool(&self, new: WarmPool, limits: WarmPoolLimits) -> Result<WarmPool> {
        let mut tx = self.write().await?;
        ensure_fits(&mut tx, &new, limits).await?;
        let row = sqlx::query(
            "INSERT INTO warm_pools (id, tenant_id, state, spec, max_ready, version, artifact_id, created_at, updated_at,
                 enabled_at, disabled_at, drain_requested_at, deleted_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) RETURNING *",
        )
        .bind(new.id.to_string())
        .bind(new.tenant.to_string())
        .bind(new.state.as_str())
        .bind(new.spec.to_string())
        .bind(i64::from(new.max_ready))
        .bind(new.version.to_string())
        .bind(new.artifact.to_string())
        .bind(new.created_at.as_microsecond())
        .bind(new.updated_at.as_microsecond())
        .bind(new.enabled_at.map(Timestamp::as_microsecond))
        .bind(new.disabled_at.map(Timestamp::as_microsecond))
        .bind(new.drain_requested_at.map(Timestamp::as_microsecond))
        .bind(new.deleted_at.map(Timestamp::as_microsecond))
        .fetch_one(&mut *tx)
        .await?;
        tx.commit().await?;
        pool(&row)
    }

    async fn list_warm_pools(&self, caller: &Caller) -> Result<Vec<WarmPool>> {
        let rows = sqlx::query("SELECT * FROM warm_pools WHERE tenant_id = $1 ORDER BY id DESC")
            .bind(caller.tenant.to_string())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(pool).collect()
    }

    async fn get_warm_pool(&self, caller: &Caller, id: WarmPoolId) -> Result<WarmPool> {
        let row = sqlx::query("SELECT * FROM warm_pools WHERE id = $1 AND tenant_id = $2")
            .bind(id.to_string())
            .bind(caller.tenant.to_string())
            .fetch_optional(&self.readers)
            .await?
            .ok_or(DbError::NotFound)?;
        pool(&row)
    }

    async fn change_warm_pool(
        &self,
        changed: WarmPool,
        read_at: Timestamp,
        limits: WarmPoolLimits,
        now: Timestamp,
    ) -> Result<WarmPool> {
        let mut tx = self.write().await?;
        ensure_fits(&mut tx, &changed, limits).await?;
        // Two changes within a microsecond, or a clock that went back.
        let now = now.max(read_at + SignedDuration::from_micros(1));
        let row = sqlx::query(
            "UPDATE warm_pools SET state = $1, spec = $2, max_ready = $3, version = $4, artifact_id = $5, updated_at = $6,
                 enabled_at = $7, disabled_at = $8, drain_requested_at = $9, deleted_at = $10
             WHERE id = $11 AND tenant_id = $12 AND updated_at = $13 AND deleted_at IS NULL RETURNING *",
        )
        .bind(changed.state.as_str())
        .bind(changed.spec.to_string())
        .bind(i64::from(changed.max_ready))
        .bind(changed.version.to_string())
        .bind(changed.artifact.to_string())
        .bind(now.as_microsecond())
        .bind(changed.enabled_at.map(Timestamp::as_microsecond))
        .bind(changed.disabled_at.map(Timestamp::as_microsecond))
        .bind(changed.drain_requested_at.map(Timestamp::as_microsecond))
        .bind(changed.deleted_at.map(Timestamp::as_microsecond))
        .bind(changed.id.to_string())
        .bind(changed.tenant.to_string())
        .bind(read_at.as_microsecond())
        .fetch_optional(&mut *tx)
        .await?
        .ok_or_else(|| DbError::conflict("the warm pool was changed or deleted by another request"))?;
        tx.commit().await?;
        pool(&row)
    }

    async fn warm_pools(&self) -> Result<Vec<WarmPool>> {
        let rows = sqlx::query("SELECT * FROM warm_pools WHERE deleted_at IS NULL ORDER BY id")
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(pool).collect()
    }

    async fn claimed_of_warm_pools(&self, pools: &[WarmPoolId]) -> Result<HashMap<WarmPoolId, u64>> {
        let ids: Vec<String> = pools.iter().map(ToString::to_string).collect();
        let rows = sqlx::query(
            "SELECT warm_pool_id, count(*) AS claimed FROM sandboxes
             WHERE warm_pool_id IS NOT NULL AND ended_at IS NULL
               AND warm_pool_id IN (SELECT value FROM json_each($1))
             GROUP BY warm_pool_id",
        )
        .bind(serde_json::Value::from(ids).to_string())
        .fetch_all(&self.readers)
        .await?;
        rows.iter()
            .map(|row| {
                let row = Reader(row);
                Ok((row.parsed("warm_pool_id")?, row.integer("claimed")?))
            })
            .collect()
    }

    async fn forget_warm_pools(&self, deleted_before: Timestamp, limit: u32) -> Result<u64> {
        let forget = sqlx::query(
            "DELETE FROM warm_pools WHERE id IN (
                 SELECT id FROM warm_pools WHERE deleted_at IS NOT NULL AND deleted_at < $1 ORDER BY deleted_at LIMIT $2)",
        );
        self.run(forget.bind(deleted_before.as_microsecond()).bind(i64::from(limit))).await
    }
}

fn pool(row: &DbRow) -> Result<WarmPool> {
    let row = Reader(row);
    Ok(WarmPool {
        id: row.parsed("id")?,
        tenant: row.parsed("tenant_id")?,
        state: row.parsed("state")?,
        spec: row.json("spec")?,
        max_ready: row.integer("max_ready")?,
        version: row.json("version")?,
        artifact: row.parsed("artifact_id")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        enabled_at: row.optional_time("enabled_at")?,
        disabled_at: row.optional_time("disabled_at")?,
        drain_requested_at: row.optional_time("drain_requested_at")?,
        deleted_at: row.optional_time("deleted_at")?,
    })
}

/// Checks that a pool fits beside the others of its tenant. One that takes no more than before always does.
async fn ensure_fits(tx: &mut Tx, pool: &WarmPool, limits: WarmPoolLimits) -> Result<()> {
    if pool.deleted_at.is_some() {
        return Ok(());
    }
    let row = sqlx::query(
        "SELECT count(*) AS pools, coalesce(CAST(sum(max_ready) AS BIGINT), 0) AS ready,
             coalesce(max(CASE WHEN id = $2 THEN max_ready END), -1) AS before
         FROM warm_pools WHERE tenant_id = $1 AND deleted_at IS NULL",
    )
    .bind(pool.tenant.to_string())
    .bind(pool.id.to_string())
    .fetch_one(&mut **tx)
    .await?;
    let row = Reader(&row);
    let (pools, ready, before): (i64, i64, i64) =
        (row.integer("pools")?, row.integer("ready")?, row.integer("before")?);
    if before < 0 && pools >= i64::from(limits.pools) {
        return Err(DbError::LimitReached { what: "too many warm pools", limit: limits.pools });
    }
    let wanted = i64::from(pool.max_ready);
    if wanted > before && ready - before.max(0) + wanted > i64::from(limits.ready) {
        return Err(DbError::LimitReached {
            what: "max_ready of all warm pools together is too large",
            limit: limits.ready,
        });
    }
    Ok(())
}
