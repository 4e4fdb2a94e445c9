//! SSH accesses: the rights to log in to sandboxes.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{Caller, SshAccessId};

use super::{Store, keys, rows::Reader};
use crate::{DbError, NewSshAccess, Result, SshAccess, SshAccesses};

#[async_trait]
impl SshAccesses for Store {
    async fn insert_ssh_access(&self, caller: &Caller, access: NewSshAccess, most: u32, now: Timestamp) -> Result<()> {
        let key = caller.key.ok_or(DbError::NotFound)?;
        let mut tx = self.write().await?;
        sqlx::query("SELECT 1 FROM sandboxes WHERE id = $1 AND tenant_id = $2 AND ended_at IS NULL")
            .bind(access.sandbox.to_string())
            .bind(caller.tenant.to_string())
            .fetch_optional(&mut *tx)
            .await?
            .ok_or(DbError::NotFound)?;
        sqlx::query("DELETE FROM ssh_accesses WHERE sandbox_id = $1 AND expires_at <= $2")
            .bind(access.sandbox.to_string())
            .bind(now.as_microsecond())
            .execute(&mut *tx)
            .await?;
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM ssh_accesses WHERE sandbox_id = $1")
            .bind(access.sandbox.to_string())
            .fetch_one(&mut *tx)
            .await?;
        if left >= i64::from(most) {
            return Err(DbError::LimitReached { what: "too many SSH accesses of one sandbox", limit: most });
        }
        sqlx::query(
            "INSERT INTO ssh_accesses (id, tenant_id, sandbox_id, key_id, \"user\", issued_at, expires_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(access.id.to_string())
        .bind(caller.tenant.to_string())
        .bind(access.sandbox.to_string())
        .bind(key.to_string())
        .bind(access.user)
        .bind(now.as_microsecond())
        .bind(access.expires_at.as_microsecond())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    async fn ssh_access(&self, access: SshAccessId, now: Timestamp) -> Result<SshAccess> {
        let row = sqlx::query(
            "SELECT a.sandbox_id AS sandbox_id, a.\"user\" AS \"user\", a.expires_at AS expires_at,
                 k.id AS id, k.tenant_id AS tenant_id, k.scope AS scope, n.slug AS slug
             FROM ssh_accesses a
             JOIN sandboxes s ON s.id = a.sandbox_id AND s.ended_at IS NULL
             JOIN api_keys k ON k.id = a.key_id AND k.tenant_id = a.tenant_id
             JOIN namespaces n ON n.tenant_id = a.tenant_id AND n.is_default = 1
             WHERE a.id = $1 AND a.expires_at > $2
               AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $2)",
        )
        .bind(access.to_string())
        .bind(now.as_microsecond())
        .fetch_optional(&self.readers)
        .await?
        .ok_or(DbError::NotFound)?;
        let caller = keys::caller(&row)?;
        let row = Reader(&row);
        Ok(SshAccess {
            caller,
            sandbox: row.parsed("sandbox_id")?,
            user: row.optional_text("user")?,
            expires_at: row.time("expires_at")?,
        })
    }

    async fn ssh_accesses_in_force(&self, accesses: &[SshAccessId], now: Timestamp) -> Result<Vec<SshAccessId>> {
        let ids: Vec<String> = accesses.iter().map(ToString::to_string).collect();
        let rows = sqlx::query(
            "SELECT a.id AS id
             FROM ssh_accesses a
             JOIN sandboxes s ON s.id = a.sandbox_id AND s.ended_at IS NULL
             JOIN api_keys k ON k.id = a.key_id AND k.tenant_id = a.tenant_id
             JOIN namespaces n ON n.tenant_id = a.tenant_id AND n.is_default = 1
             WHERE a.id IN (SELECT value FROM json_each($1)) AND a.expires_at > $2
               AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > $2)",
        )
        .bind(serde_json::Value::from(ids).to_string())
        .bind(now.as_microsecond())
        .fetch_all(&self.readers)
        .await?;
        rows.iter().map(|row| Reader(row).parsed("id")).collect()
    }
}
