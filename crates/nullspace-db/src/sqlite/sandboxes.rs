//! Sandboxes and their states.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{Caller, SandboxId};
use sqlx::{QueryBuilder, Sqlite};

use super::{
    SqliteStore,
    rows::{self, Reader},
    templates,
};
use crate::{DbError, Inserted, NewSandbox, Result, Sandbox, SandboxFilter, SandboxStatus, Sandboxes};

#[async_trait]
impl Sandboxes for SqliteStore {
    async fn insert_sandbox(&self, caller: &Caller, sandbox: NewSandbox, now: Timestamp) -> Result<Inserted> {
        insert(self, caller, sandbox, now).await
    }

    async fn set_sandbox_status(
        &self,
        sandbox: SandboxId,
        status: SandboxStatus,
        reason: Option<&str>,
        now: Timestamp,
    ) -> Result<Sandbox> {
        set_status(self, sandbox, status, reason, now).await
    }

    async fn set_sandbox_timeout(
        &self,
        caller: &Caller,
        sandbox: SandboxId,
        timeout_at: Option<Timestamp>,
    ) -> Result<Sandbox> {
        set_timeout(self, caller, sandbox, timeout_at).await
    }

    async fn get_sandbox(&self, caller: &Caller, sandbox: SandboxId) -> Result<Sandbox> {
        get(self, caller, sandbox).await
    }

    async fn list_sandboxes(&self, caller: &Caller, filter: SandboxFilter) -> Result<Vec<Sandbox>> {
        list(self, caller, filter).await
    }

    async fn end_sandboxes_of_host(
        &self,
        host: &str,
        status: SandboxStatus,
        reason: &str,
        now: Timestamp,
    ) -> Result<Vec<SandboxId>> {
        end_of_host(self, host, status, reason, now).await
    }
}

/// Longest page of sandboxes.
const MAX_PAGE: u32 = 1000;

pub(super) async fn insert(
    store: &SqliteStore,
    caller: &Caller,
    sandbox: NewSandbox,
    now: Timestamp,
) -> Result<Inserted> {
    let mut tx = store.write().await?;
    if let Some(repeat) = &sandbox.idempotency {
        let earlier = sqlx::query("SELECT * FROM sandboxes WHERE tenant_id = ? AND idempotency_key = ?")
            .bind(caller.tenant.to_string())
            .bind(&repeat.key)
            .fetch_optional(&mut *tx)
            .await?;
        if let Some(row) = earlier {
            if Reader(&row).text("idempotency_digest")? == repeat.request_digest {
                return Ok(Inserted::Repeated(rows::sandbox(&row)?));
            }
            return Err(DbError::conflict("this idempotency key was used for another request"));
        }
    }
    templates::visible_artifact(&mut tx, caller, sandbox.artifact).await?.ok_or(DbError::NotFound)?;
    let (key, digest) = sandbox.idempotency.map(|repeat| (repeat.key, repeat.request_digest)).unzip();
    let row = sqlx::query(
        "INSERT INTO sandboxes (id, tenant_id, artifact_id, template_ref, status, config, metadata, created_at, timeout_at,
             host, idempotency_key, idempotency_digest)
         VALUES (?, ?, ?, ?, 'creating', ?, ?, ?, ?, ?, ?, ?) RETURNING *",
    )
    .bind(sandbox.id.to_string())
    .bind(caller.tenant.to_string())
    .bind(sandbox.artifact.to_string())
    .bind(sandbox.template_ref)
    .bind(sandbox.config.to_string())
    .bind(sandbox.metadata.to_string())
    .bind(now.as_microsecond())
    .bind(sandbox.timeout_at.map(Timestamp::as_microsecond))
    .bind(sandbox.host)
    .bind(key)
    .bind(digest)
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(Inserted::New(rows::sandbox(&row)?))
}

pub(super) async fn set_status(
    store: &SqliteStore,
    sandbox: SandboxId,
    status: SandboxStatus,
    reason: Option<&str>,
    now: Timestamp,
) -> Result<Sandbox> {
    let started = (status == SandboxStatus::Running).then(|| now.as_microsecond());
    let ended = status.is_final().then(|| now.as_microsecond());
    let mut tx = store.write().await?;
    let row = sqlx::query(
        "UPDATE sandboxes SET status = ?, reason = ?, started_at = coalesce(started_at, ?), ended_at = ?
         WHERE id = ? AND ended_at IS NULL RETURNING *",
    )
    .bind(status.as_str())
    .bind(reason)
    .bind(started)
    .bind(ended)
    .bind(sandbox.to_string())
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else {
        let known = sqlx::query("SELECT 1 FROM sandboxes WHERE id = ?").bind(sandbox.to_string());
        return Err(match known.fetch_optional(&mut *tx).await? {
            Some(_) => DbError::conflict("the sandbox is over"),
            None => DbError::NotFound,
        });
    };
    tx.commit().await?;
    rows::sandbox(&row)
}

pub(super) async fn set_timeout(
    store: &SqliteStore,
    caller: &Caller,
    sandbox: SandboxId,
    timeout_at: Option<Timestamp>,
) -> Result<Sandbox> {
    let mut tx = store.write().await?;
    let row = sqlx::query(
        "UPDATE sandboxes SET timeout_at = ? WHERE id = ? AND tenant_id = ? AND ended_at IS NULL RETURNING *",
    )
    .bind(timeout_at.map(Timestamp::as_microsecond))
    .bind(sandbox.to_string())
    .bind(caller.tenant.to_string())
    .fetch_optional(&mut *tx)
    .await?;
    tx.commit().await?;
    match row {
        Some(row) => rows::sandbox(&row),
        None => {
            get(store, caller, sandbox).await?;
            Err(DbError::conflict("the sandbox is over"))
        }
    }
}

pub(super) async fn get(store: &SqliteStore, caller: &Caller, sandbox: SandboxId) -> Result<Sandbox> {
    let row = sqlx::query("SELECT * FROM sandboxes WHERE id = ? AND tenant_id = ?")
        .bind(sandbox.to_string())
        .bind(caller.tenant.to_string())
        .fetch_optional(&store.readers)
        .await?
        .ok_or(DbError::NotFound)?;
    rows::sandbox(&row)
}

pub(super) async fn list(store: &SqliteStore, caller: &Caller, filter: SandboxFilter) -> Result<Vec<Sandbox>> {
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new("SELECT * FROM sandboxes WHERE tenant_id = ");
    query.push_bind(caller.tenant.to_string());
    if filter.statuses.is_empty() {
        query.push(" AND ended_at IS NULL");
    } else {
        query.push(" AND status IN (");
        let mut listed = query.separated(", ");
        for status in &filter.statuses {
            listed.push_bind(status.as_str());
        }
        query.push(")");
    }
    if let Some(after) = filter.after {
        query.push(" AND id < ").push_bind(after.to_string());
    }
    query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(filter.limit.clamp(1, MAX_PAGE)));
    let found = query.build().fetch_all(&store.readers).await?;
    found.iter().map(rows::sandbox).collect()
}

pub(super) async fn end_of_host(
    store: &SqliteStore,
    host: &str,
    status: SandboxStatus,
    reason: &str,
    now: Timestamp,
) -> Result<Vec<SandboxId>> {
    if !status.is_final() {
        return Err(DbError::conflict("a sandbox without a machine is over"));
    }
    let mut tx = store.write().await?;
    let found = sqlx::query(
        "UPDATE sandboxes SET status = ?, reason = ?, ended_at = ? WHERE host = ? AND ended_at IS NULL RETURNING id",
    )
    .bind(status.as_str())
    .bind(reason)
    .bind(now.as_microsecond())
    .bind(host)
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    found.iter().map(|row| Reader(row).parsed("id")).collect()
}
