//! API keys.

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use nullspace_types::{Caller, KeyId, TenantId};

use super::{DbRow, Store, Tx, grants, rows::Reader};
use crate::{ApiKey, DbError, KeyHash, KeyLimits, KeyScope, KeySpec, Keys, NewKey, Result, Rotation};

/// Precision of a key's last use, so that not every request writes it.
const LAST_USED_PRECISION: SignedDuration = SignedDuration::from_secs(60);

#[async_trait]
impl Keys for Store {
    async fn create_key(
        &self,
        tenant: TenantId,
        key: &NewKey,
        spec: KeySpec,
        limits: Option<KeyLimits>,
        now: Timestamp,
    ) -> Result<ApiKey> {
        let mut tx = self.write().await?;
        if let Some(limits) = limits {
            ensure_fits(&mut tx, tenant, limits, now).await?;
        }
        let end = end_by_maker(&mut tx, tenant, &spec, now).await?;
        let spec = KeySpec { expires_at: earlier(spec.expires_at, end), ..spec };
        let made = insert(&mut tx, tenant, key, spec, None, now).await?;
        tx.commit().await?;
        Ok(made)
    }

    async fn rotate_key(
        &self,
        tenant: TenantId,
        rotation: Rotation,
        key: &NewKey,
        spec: KeySpec,
        limits: KeyLimits,
        now: Timestamp,
    ) -> Result<ApiKey> {
        let Rotation { key: old, grace } = rotation;
        let mut tx = self.write().await?;
        let row = sqlx::query("SELECT * FROM api_keys WHERE id = $1 AND tenant_id = $2")
            .bind(old.to_string())
            .bind(tenant.to_string())
            .fetch_optional(&mut *tx)
            .await?
            .ok_or(DbError::NotFound)?;
        let older = api_key(&row)?;
        if !older.is_active(now) {
            return Err(DbError::conflict("the key is revoked or has expired"));
        }
        let rotated = sqlx::query("SELECT 1 FROM api_keys WHERE rotated_from = $1 AND tenant_id = $2")
            .bind(old.to_string())
            .bind(tenant.to_string())
            .fetch_optional(&mut *tx);
        if rotated.await?.is_some() {
            return Err(DbError::conflict("the key was rotated already: rotate the key that came in its place"));
        }
        // Before the rotation, which may be of this very key, changes its end.
        let by_maker = end_by_maker(&mut tx, tenant, &spec, now).await?;
        if grace.is_positive() {
            let end = now.checked_add(grace).map_err(|_| DbError::conflict("the grace is too long"))?;
            sqlx::query("UPDATE api_keys SET expires_at = min(coalesce(expires_at, $1), $1) WHERE id = $2")
                .bind(end.as_microsecond())
                .bind(old.to_string())
                .execute(&mut *tx)
                .await?;
            grants::end_with_key(&mut tx, old, end, now).await?;
        } else {
            revoke(&mut tx, Some(tenant), old, now).await?;
        }
        ensure_fits(&mut tx, tenant, limits, now).await?;
        let spec = KeySpec {
            label: Some(spec.label.unwrap_or(older.label)),
            scope: Some(spec.scope.unwrap_or(older.scope)),
            expires_at: earlier(spec.expires_at.or(older.expires_at), by_maker),
            maker: spec.maker,
        };
        let made = insert(&mut tx, tenant, key, spec, Some(old), now).await?;
        tx.commit().await?;
        Ok(made)
    }

    async fn list_keys(&self, tenant: TenantId) -> Result<Vec<ApiKey>> {
        let rows = sqlx::query("SELECT * FROM api_keys WHERE tenant_id = $1 ORDER BY id")
            .bind(tenant.to_string())
            .fetch_all(&self.readers)
            .await?;
        rows.iter().map(api_key).collect()
    }

    async fn revoke_key(&self, tenant: Option<TenantId>, key: KeyId, now: Timestamp) -> Result<()> {
        let mut tx = self.write().await?;
        revoke(&mut tx, tenant, key, now).await?;
        Ok(tx.commit().await?)
    }

    async fn authenticate(&self, key: &KeyHash, now: Timestamp) -> Result<Caller> {
        let row = sqlx::query(
            "SELECT k.id AS id, k.tenant_id AS tenant_id, k.scope AS scope, k.last_used_at AS last_used_at, n.slug AS slug
             FROM api_keys k JOIN namespaces n ON n.tenant_id = k.tenant_id AND n.is_default = 1
             WHERE k.hash = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $2)",
        )
        .bind(key.as_bytes().to_vec())
        .bind(now.as_microsecond())
        .fetch_optional(&self.readers)
        .await?
        .ok_or(DbError::NotFound)?;
        let caller = caller(&row)?;
        let stale = Reader(&row)
            .optional_time("last_used_at")?
            .is_none_or(|used| now.duration_since(used) >= LAST_USED_PRECISION);
        // Who finds another at it goes on: that one's note is as good, and a busy minute must not begin with a queue of writes.
        if stale && let (Some(id), Ok(_noting)) = (caller.key, self.noting.try_lock()) {
            let note = sqlx::query("UPDATE api_keys SET last_used_at = $1 WHERE id = $2");
            let noted = self.run(note.bind(now.as_microsecond()).bind(id.to_string())).await;
            if let Err(error) = noted {
                // A request that only reads must work while nothing can be written.
                tracing::warn!(key = %id, %error, "note the last use of a key");
            }
        }
        Ok(caller)
    }

    async fn caller_of_key(&self, key: KeyId, now: Timestamp) -> Result<Caller> {
        let row = sqlx::query(
            "SELECT k.id AS id, k.tenant_id AS tenant_id, k.scope AS scope, n.slug AS slug
             FROM api_keys k JOIN namespaces n ON n.tenant_id = k.tenant_id AND n.is_default = 1
             WHERE k.id = $1 AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $2)",
        )
        .bind(key.to_string())
        .bind(now.as_microsecond())
        .fetch_optional(&self.readers)
        .await?;
        caller(&row.ok_or(DbError::NotFound)?)
    }

    async fn keys_in_force(&self, keys: &[KeyId], now: Timestamp) -> Result<Vec<KeyId>> {
        let ids: Vec<String> = keys.iter().map(ToString::to_string).collect();
        let rows = sqlx::query(
            "SELECT k.id AS id FROM api_keys k JOIN namespaces n ON n.tenant_id = k.tenant_id AND n.is_default = 1
             WHERE k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $2)
               AND k.id IN (SELECT value FROM json_each($1))",
        )
        .bind(serde_json::Value::from(ids).to_string())
        .bind(now.as_microsecond())
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Reader(row).parsed("id")).collect()
    }
}

fn api_key(row: &DbRow) -> Result<ApiKey> {
    let row = Reader(row);
    Ok(ApiKey {
        id: row.parsed("id")?,
        tenant: row.parsed("tenant_id")?,
        label: row.text("label")?,
        shown: row.text("shown")?,
        created_at: row.time("created_at")?,
        last_used_at: row.optional_time("last_used_at")?,
        scope: scope(&row)?,
        expires_at: row.optional_time("expires_at")?,
        revoked_at: row.optional_time("revoked_at")?,
        rotated_from: row.optional_parsed("rotated_from")?,
    })
}

/// A key from before there were scopes has none, and may do everything.
fn scope(row: &Reader<'_>) -> Result<KeyScope> {
    Ok(row.optional_parsed("scope")?.unwrap_or(KeyScope::Full))
}

pub(super) fn caller(row: &DbRow) -> Result<Caller> {
    let row = Reader(row);
    Ok(Caller {
        tenant: row.parsed("tenant_id")?,
        namespace: row.text("slug")?,
        key: Some(row.parsed("id")?),
        read_only: scope(&row)? == KeyScope::Read,
    })
}

async fn insert(
    tx: &mut Tx,
    tenant: TenantId,
    key: &NewKey,
    spec: KeySpec,
    rotated_from: Option<KeyId>,
    now: Timestamp,
) -> Result<ApiKey> {
    let row = sqlx::query(
        "INSERT INTO api_keys (id, tenant_id, label, shown, hash, created_at, scope, expires_at, rotated_from)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING *",
    )
    .bind(KeyId::new().to_string())
    .bind(tenant.to_string())
    .bind(spec.label.unwrap_or_default())
    .bind(key.shown())
    .bind(key.hash().as_bytes().to_vec())
    .bind(now.as_microsecond())
    .bind(spec.scope.unwrap_or(KeyScope::Full).as_str())
    .bind(spec.expires_at.map(Timestamp::as_microsecond))
    .bind(rotated_from.map(|id| id.to_string()))
    .fetch_one(&mut **tx)
    .await?;
    api_key(&row)
}

async fn revoke(tx: &mut Tx, tenant: Option<TenantId>, key: KeyId, now: Timestamp) -> Result<()> {
    let done = sqlx::query(
        "UPDATE api_keys SET revoked_at = coalesce(revoked_at, $1) WHERE id = $2 AND ($3 IS NULL OR tenant_id = $3)",
    )
    .bind(now.as_microsecond())
    .bind(key.to_string())
    .bind(tenant.map(|tenant| tenant.to_string()))
    .execute(&mut **tx)
    .await?;
    if done.rows_affected() == 0 {
        return Err(DbError::NotFound);
    }
    grants::revoke_with_key(tx, key, now).await
}

/// The end of the key that makes another one. `None`: the new key has no such limit.
async fn end_by_maker(tx: &mut Tx, tenant: TenantId, spec: &KeySpec, now: Timestamp) -> Result<Option<Timestamp>> {
    let Some(maker) = spec.maker else { return Ok(None) };
    valid_until(tx, tenant, maker, now).await
}

/// The end of a valid key of a tenant; `None`: it has none.
///
/// # Errors
/// [`DbError::Conflict`] for a key that is over.
pub(super) async fn valid_until(
    tx: &mut Tx,
    tenant: TenantId,
    key: KeyId,
    now: Timestamp,
) -> Result<Option<Timestamp>> {
    let row = sqlx::query(
        "SELECT expires_at FROM api_keys
         WHERE id = $1 AND tenant_id = $2 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $3)",
    )
    .bind(key.to_string())
    .bind(tenant.to_string())
    .bind(now.as_microsecond())
    .fetch_optional(&mut **tx)
    .await?
    .ok_or_else(|| DbError::conflict("the key of this request is revoked or has expired"))?;
    Reader(&row).optional_time("expires_at")
}

/// The earlier of two ends. `None` is no end.
fn earlier(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}

/// Checks that one more key fits, and removes the oldest rows of keys that are over: making and revoking keys must not fill the
/// database.
async fn ensure_fits(tx: &mut Tx, tenant: TenantId, limits: KeyLimits, now: Timestamp) -> Result<()> {
    sqlx::query(
        "DELETE FROM api_keys WHERE id IN (
             SELECT id FROM api_keys
             WHERE tenant_id = $1 AND (revoked_at IS NOT NULL OR expires_at <= $2)
             ORDER BY id DESC LIMIT 9223372036854775807 OFFSET $3)",
    )
    .bind(tenant.to_string())
    .bind(now.as_microsecond())
    .bind(i64::from(limits.over))
    .execute(&mut **tx)
    .await?;
    let active: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM api_keys
         WHERE tenant_id = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)",
    )
    .bind(tenant.to_string())
    .bind(now.as_microsecond())
    .fetch_one(&mut **tx)
    .await?;
    if active >= i64::from(limits.active) {
        return Err(DbError::LimitReached { what: "too many API keys", limit: limits.active });
    }
    Ok(())
}
