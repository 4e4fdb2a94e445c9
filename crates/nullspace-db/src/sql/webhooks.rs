//! Webhooks: receivers of lifecycle events.
//!
//! A deleted webhook is seen by nobody from that transaction on. Its deliveries may be many, so they are removed afterwards, in
//! batches, and its row with the last of them.

use jiff::Timestamp;
use nullspace_types::Caller;
use serde_json::json;
use uuid::Uuid;

use super::{DbRow, Store, Tx, rows::Reader};
use crate::{DbError, Result, Webhook, WebhookChange};

fn webhook(row: &DbRow) -> Result<Webhook> {
    let row = Reader(row);
    let operations = serde_json::from_value(row.json("operations")?);
    let last = match (row.optional_time("last_at")?, row.optional_text("last_status")?) {
        (Some(at), Some(status)) => Some((at, status, row.optional_text("last_error")?)),
        _ => None,
    };
    Ok(Webhook {
        id: row.parsed("id")?,
        tenant: row.parsed("tenant_id")?,
        url: row.text("url")?,
        operations: operations.map_err(|_| DbError::corrupt("column operations"))?,
        sealed_secret: row.bytes("sealed_secret")?,
        enabled: row.integer::<i64>("enabled")? != 0,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        last,
    })
}

pub(super) async fn insert(store: &Store, new: Webhook, most: u32) -> Result<Webhook> {
    let mut tx = store.write().await?;
    let have: i64 = sqlx::query_scalar("SELECT count(*) FROM webhooks WHERE tenant_id = $1 AND deleted_at IS NULL")
        .bind(new.tenant.to_string())
        .fetch_one(&mut *tx)
        .await?;
    if have >= i64::from(most) {
        return Err(DbError::conflict(format!("there are {have} webhooks: the limit is {most}")));
    }
    let row = sqlx::query(
        "INSERT INTO webhooks (id, tenant_id, url, operations, sealed_secret, enabled, created_at, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) RETURNING *",
    )
    .bind(new.id.to_string())
    .bind(new.tenant.to_string())
    .bind(new.url)
    .bind(json!(new.operations).to_string())
    .bind(new.sealed_secret)
    .bind(i64::from(new.enabled))
    .bind(new.created_at.as_microsecond())
    .bind(new.updated_at.as_microsecond())
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    webhook(&row)
}

pub(super) async fn list(store: &Store, caller: &Caller) -> Result<Vec<Webhook>> {
    let found = sqlx::query("SELECT * FROM webhooks WHERE tenant_id = $1 AND deleted_at IS NULL ORDER BY id")
        .bind(caller.tenant.to_string())
        .fetch_all(&store.readers)
        .await?;
    found.iter().map(webhook).collect()
}

pub(super) async fn get(tx: &mut Tx, caller: &Caller, id: Uuid) -> Result<Webhook> {
    let row = sqlx::query("SELECT * FROM webhooks WHERE id = $1 AND tenant_id = $2 AND deleted_at IS NULL")
        .bind(id.to_string())
        .bind(caller.tenant.to_string())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(DbError::NotFound)?;
    webhook(&row)
}

/// Any tenant's webhook that is not deleted.
pub(super) async fn in_tx(tx: &mut Tx, id: &str) -> Result<Webhook> {
    let row = sqlx::query("SELECT * FROM webhooks WHERE id = $1 AND deleted_at IS NULL")
        .bind(id)
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(DbError::NotFound)?;
    webhook(&row)
}

pub(super) async fn update(
    store: &Store,
    caller: &Caller,
    id: Uuid,
    change: WebhookChange,
    now: Timestamp,
) -> Result<Webhook> {
    let mut tx = store.write().await?;
    let row = sqlx::query(
        "UPDATE webhooks SET url = coalesce($1, url), operations = coalesce($2, operations),
             sealed_secret = coalesce($3, sealed_secret), enabled = coalesce($4, enabled), updated_at = $5
         WHERE id = $6 AND tenant_id = $7 AND deleted_at IS NULL RETURNING *",
    )
    .bind(change.url)
    .bind(change.operations.map(|operations| json!(operations).to_string()))
    .bind(change.sealed_secret)
    .bind(change.enabled.map(i64::from))
    .bind(now.as_microsecond())
    .bind(id.to_string())
    .bind(caller.tenant.to_string())
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(DbError::NotFound)?;
    let changed = webhook(&row)?;
    if !changed.enabled {
        for statement in [
            "DELETE FROM attempts WHERE delivery_id IN (
                 SELECT id FROM deliveries WHERE webhook_id = $1 AND due_at IS NOT NULL AND delivery_status = 'queued')",
            "DELETE FROM deliveries WHERE webhook_id = $1 AND due_at IS NOT NULL AND delivery_status = 'queued'",
        ] {
            sqlx::query(statement).bind(id.to_string()).execute(&mut *tx).await?;
        }
    }
    tx.commit().await?;
    Ok(changed)
}

pub(super) async fn delete(store: &Store, caller: &Caller, id: Uuid) -> Result<()> {
    let mut tx = store.write().await?;
    // Its secret goes at once. Its deliveries are nobody's to send any more.
    let done = sqlx::query(
        "UPDATE webhooks SET deleted_at = updated_at, enabled = 0, sealed_secret = $1
         WHERE id = $2 AND tenant_id = $3 AND deleted_at IS NULL",
    )
    .bind(Vec::<u8>::new())
    .bind(id.to_string())
    .bind(caller.tenant.to_string())
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Err(DbError::NotFound);
    }
    sqlx::query(
        "UPDATE deliveries SET delivery_status = 'dead_letter', due_at = NULL WHERE webhook_id = $1 AND due_at IS NOT NULL",
    )
    .bind(id.to_string())
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}

/// Whether something is left of a deleted webhook.
pub(super) async fn any_deleted(tx: &mut Tx) -> Result<bool> {
    let found = sqlx::query("SELECT 1 FROM webhooks WHERE deleted_at IS NOT NULL LIMIT 1");
    Ok(found.fetch_optional(&mut **tx).await?.is_some())
}

/// Removes up to `limit` deliveries of deleted webhooks, and the webhooks that have none. Returns the number of removed rows.
pub(super) async fn remove_deleted(tx: &mut Tx, limit: u32) -> Result<u64> {
    let deliveries: Vec<String> = sqlx::query_scalar(
        "SELECT d.id FROM webhooks w JOIN deliveries d ON d.webhook_id = w.id WHERE w.deleted_at IS NOT NULL LIMIT $1",
    )
    .bind(i64::from(limit))
    .fetch_all(&mut **tx)
    .await?;
    let ids = json!(deliveries).to_string();
    for statement in [
        "DELETE FROM attempts WHERE delivery_id IN (SELECT value FROM json_each($1))",
        "DELETE FROM deliveries WHERE id IN (SELECT value FROM json_each($1))",
    ] {
        sqlx::query(statement).bind(&ids).execute(&mut **tx).await?;
    }
    let webhooks = sqlx::query(
        "DELETE FROM webhooks WHERE deleted_at IS NOT NULL
             AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.webhook_id = webhooks.id)",
    )
    .execute(&mut **tx)
    .await?;
    Ok(deliveries.len() as u64 + webhooks.rows_affected())
}
