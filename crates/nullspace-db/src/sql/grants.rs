//! Grants: tokens for ports of sandboxes.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{Caller, GrantId, KeyId, SandboxId};

use super::{
    DbRow, Store, Tx, keys,
    rows::{self, Reader},
};
use crate::grants::OVER_PER_SANDBOX;
use crate::{DbError, Grant, GrantUse, Grants, NewGrant, Result, Sandbox};

#[async_trait]
impl Grants for Store {
    async fn insert_grant(&self, caller: &Caller, grant: NewGrant, most: u32, now: Timestamp) -> Result<Grant> {
        insert(self, caller, grant, most, now).await
    }

    async fn list_grants(&self, caller: &Caller, sandbox: SandboxId, port: Option<u16>) -> Result<Vec<Grant>> {
        let found = sqlx::query(
            "SELECT * FROM grants WHERE sandbox_id = $1 AND tenant_id || '' = $2 AND ($3 IS NULL OR port = $3)
             ORDER BY id DESC",
        )
        .bind(sandbox.to_string())
        .bind(caller.tenant.to_string())
        .bind(port.map(i64::from))
        .fetch_all(&self.readers)
        .await?;
        found.iter().map(grant).collect()
    }

    async fn revoke_grant(&self, caller: &Caller, sandbox: SandboxId, grant: GrantId, now: Timestamp) -> Result<Grant> {
        revoke(self, caller, sandbox, grant, now).await
    }

    async fn grant_of_token(&self, token_hash: [u8; 32]) -> Result<Grant> {
        let row = sqlx::query("SELECT * FROM grants WHERE token_hash = $1")
            .bind(token_hash.to_vec())
            .fetch_optional(&self.readers)
            .await?
            .ok_or(DbError::NotFound)?;
        grant(&row)
    }

    async fn grants_in_force(&self, grants: &[GrantId], now: Timestamp) -> Result<Vec<GrantId>> {
        let ids: Vec<String> = grants.iter().map(ToString::to_string).collect();
        let rows = sqlx::query(
            "SELECT id FROM grants
             WHERE revoked_at IS NULL AND expires_at > $2 AND id IN (SELECT value FROM json_each($1))",
        )
        .bind(serde_json::Value::from(ids).to_string())
        .bind(now.as_microsecond())
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Reader(row).parsed("id")).collect()
    }

    async fn sandbox_of_anyone(&self, sandbox: SandboxId) -> Result<Sandbox> {
        let row = sqlx::query("SELECT * FROM sandboxes WHERE id = $1")
            .bind(sandbox.to_string())
            .fetch_optional(&self.readers)
            .await?
            .ok_or(DbError::NotFound)?;
        rows::sandbox(&row)
    }

    async fn count_grants(&self, uses: &[GrantUse], now: Timestamp) -> Result<()> {
        count(self, uses, now).await
    }

    async fn remove_grants(&self, before: Timestamp, limit: u32) -> Result<u32> {
        let remove = sqlx::query(
            "DELETE FROM grants WHERE id IN (SELECT id FROM grants WHERE expires_at < $1 ORDER BY expires_at LIMIT $2)",
        );
        let removed = self.run(remove.bind(before.as_microsecond()).bind(i64::from(limit))).await?;
        Ok(u32::try_from(removed).unwrap_or(u32::MAX))
    }
}

fn grant(row: &DbRow) -> Result<Grant> {
    let row = Reader(row);
    Ok(Grant {
        id: row.parsed("id")?,
        tenant: row.parsed("tenant_id")?,
        sandbox: row.parsed("sandbox_id")?,
        port: row.integer("port")?,
        kind: row.parsed("kind")?,
        key: row.optional_parsed("key_id")?,
        issued_at: row.time("issued_at")?,
        expires_at: row.time("expires_at")?,
        revoked_at: row.optional_time("revoked_at")?,
        updated_at: row.time("updated_at")?,
        http_requests: row.integer("http_requests")?,
        websockets: row.integer("websockets")?,
        bytes_in: row.integer("bytes_in")?,
        bytes_out: row.integer("bytes_out")?,
        used: row.optional_time("first_used_at")?.zip(row.optional_time("last_used_at")?),
        last_error: row.optional_text("last_error_code")?.zip(row.optional_time("last_error_at")?),
    })
}

async fn insert(store: &Store, caller: &Caller, new: NewGrant, most: u32, now: Timestamp) -> Result<Grant> {
    let mut tx = store.write().await?;
    sqlx::query("SELECT 1 FROM sandboxes WHERE id = $1 AND tenant_id = $2 AND ended_at IS NULL")
        .bind(new.sandbox.to_string())
        .bind(caller.tenant.to_string())
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(DbError::NotFound)?;
    let key_end = match caller.key {
        Some(key) => keys::valid_until(&mut tx, caller.tenant, key, now).await?,
        None => None,
    };
    let expires_at = key_end.map_or(new.expires_at, |end| end.min(new.expires_at));
    let active: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM grants WHERE sandbox_id = $1 AND revoked_at IS NULL AND expires_at > $2",
    )
    .bind(new.sandbox.to_string())
    .bind(now.as_microsecond())
    .fetch_one(&mut *tx)
    .await?;
    if active >= i64::from(most) {
        return Err(DbError::LimitReached { what: "too many active preview URLs of one sandbox", limit: most });
    }
    forget_oldest(&mut tx, new.sandbox, now).await?;
    let row = sqlx::query(
        "INSERT INTO grants (id, tenant_id, sandbox_id, port, kind, key_id, token_hash, issued_at, expires_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING *",
    )
    .bind(new.id.to_string())
    .bind(caller.tenant.to_string())
    .bind(new.sandbox.to_string())
    .bind(i64::from(new.port))
    .bind(new.kind.as_str())
    .bind(caller.key.map(|key| key.to_string()))
    .bind(new.token_hash.to_vec())
    .bind(now.as_microsecond())
    .bind(expires_at.as_microsecond())
    .bind(now.as_microsecond())
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    grant(&row)
}

/// Removes the oldest of a sandbox's grants that are over, beyond [`OVER_PER_SANDBOX`].
async fn forget_oldest(tx: &mut Tx, sandbox: SandboxId, now: Timestamp) -> Result<()> {
    sqlx::query(
        "DELETE FROM grants WHERE id IN (
             SELECT id FROM grants WHERE sandbox_id = $1 AND (revoked_at IS NOT NULL OR expires_at <= $2)
             ORDER BY id DESC LIMIT 9223372036854775807 OFFSET $3)",
    )
    .bind(sandbox.to_string())
    .bind(now.as_microsecond())
    .bind(i64::from(OVER_PER_SANDBOX))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn revoke(store: &Store, caller: &Caller, sandbox: SandboxId, id: GrantId, now: Timestamp) -> Result<Grant> {
    let mut tx = store.write().await?;
    let row = sqlx::query(
        "UPDATE grants SET revoked_at = coalesce(revoked_at, $1), updated_at = iif(revoked_at IS NULL, $1, updated_at)
         WHERE id = $2 AND sandbox_id = $3 AND tenant_id = $4 RETURNING *",
    )
    .bind(now.as_microsecond())
    .bind(id.to_string())
    .bind(sandbox.to_string())
    .bind(caller.tenant.to_string())
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(DbError::NotFound)?;
    tx.commit().await?;
    grant(&row)
}

async fn count(store: &Store, uses: &[GrantUse], now: Timestamp) -> Result<()> {
    if uses.is_empty() {
        return Ok(());
    }
    let mut tx = store.write().await?;
    for used in uses {
        let (first, last) = used.used.unzip();
        let (code, failed_at) = used.last_error.clone().unzip();
        sqlx::query(
            "UPDATE grants SET http_requests = http_requests + $1, websockets = websockets + $2, bytes_in = bytes_in + $3,
                 bytes_out = bytes_out + $4, first_used_at = coalesce(first_used_at, $5),
                 last_used_at = coalesce($6, last_used_at), last_error_code = coalesce($7, last_error_code),
                 last_error_at = coalesce($8, last_error_at), updated_at = $9
             WHERE id = $10",
        )
        .bind(rows::integer(used.http_requests)?)
        .bind(rows::integer(used.websockets)?)
        .bind(rows::integer(used.bytes_in)?)
        .bind(rows::integer(used.bytes_out)?)
        .bind(first.map(Timestamp::as_microsecond))
        .bind(last.map(Timestamp::as_microsecond))
        .bind(code)
        .bind(failed_at.map(Timestamp::as_microsecond))
        .bind(now.as_microsecond())
        .bind(used.grant.to_string())
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Revokes the grants that a key has made.
pub(super) async fn revoke_with_key(tx: &mut Tx, key: KeyId, now: Timestamp) -> Result<()> {
    sqlx::query(
        "UPDATE grants SET revoked_at = $1, updated_at = $1 WHERE key_id = $2 AND revoked_at IS NULL AND expires_at > $1",
    )
    .bind(now.as_microsecond())
    .bind(key.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Ends the grants that a key has made at `end`, if they do not end before.
pub(super) async fn end_with_key(tx: &mut Tx, key: KeyId, end: Timestamp, now: Timestamp) -> Result<()> {
    sqlx::query(
        "UPDATE grants SET expires_at = $1, updated_at = $2 WHERE key_id = $3 AND revoked_at IS NULL AND expires_at > $1",
    )
    .bind(end.as_microsecond())
    .bind(now.as_microsecond())
    .bind(key.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Removes the grants of a sandbox that ends.
pub(super) async fn end_with(tx: &mut Tx, sandbox: SandboxId) -> Result<()> {
    sqlx::query("DELETE FROM grants WHERE sandbox_id = $1").bind(sandbox.to_string()).execute(&mut **tx).await?;
    Ok(())
}
