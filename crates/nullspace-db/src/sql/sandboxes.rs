//! Sandboxes and their states.

use std::collections::BTreeMap;

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::{ArtifactId, Caller, SandboxId, TenantId};
use serde_json::{Value, json};
use sqlx::QueryBuilder;

use super::{
    Db, DbRow, Store, Tx, grants,
    rows::{self, Reader},
    snapshots, templates,
};
use crate::{DbError, Inserted, NewSandbox, Result, Sandbox, SandboxFilter, SandboxStatus, Sandboxes};

#[async_trait]
impl Sandboxes for Store {
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
        config: &Value,
        timeout_at: Option<Timestamp>,
    ) -> Result<Sandbox> {
        set_timeout(self, caller, sandbox, config, timeout_at).await
    }

    async fn touch_sandboxes(&self, used: &[(SandboxId, Timestamp)]) -> Result<()> {
        touch(self, used).await
    }

    async fn due_sandboxes(&self, host: &str, now: Timestamp, limit: u32) -> Result<Vec<Sandbox>> {
        due(self, host, now, limit).await
    }

    async fn end_due_sandbox(&self, sandbox: SandboxId, reason: &str, now: Timestamp) -> Result<Sandbox> {
        end_due(self, sandbox, reason, now).await
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
    ) -> Result<Vec<(SandboxId, TenantId)>> {
        end_of_host(self, host, status, reason, now).await
    }
}

/// Longest page of sandboxes.
const MAX_PAGE: u32 = 1000;

async fn insert(store: &Store, caller: &Caller, sandbox: NewSandbox, now: Timestamp) -> Result<Inserted> {
    let mut tx = store.write().await?;
    if let Some(repeat) = &sandbox.idempotency {
        let earlier = sqlx::query("SELECT * FROM sandboxes WHERE tenant_id = $1 AND idempotency_key = $2")
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
    check_origin(&mut tx, caller, &sandbox).await?;
    let (key, digest) = sandbox.idempotency.map(|repeat| (repeat.key, repeat.request_digest)).unzip();
    let row = sqlx::query(
        "INSERT INTO sandboxes (id, tenant_id, artifact_id, template_ref, status, config, metadata, created_at, timeout_at,
             host, sealed_envs, sealed_traffic_token, snapshot_id, idempotency_key, idempotency_digest, warm_pool_id)
         VALUES ($1, $2, $3, $4, 'creating', $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) RETURNING *",
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
    .bind(sandbox.sealed_envs)
    .bind(sandbox.sealed_traffic_token)
    .bind(sandbox.from_snapshot.map(|id| id.to_string()))
    .bind(key)
    .bind(digest)
    .bind(sandbox.warm_pool.map(|id| id.to_string()))
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(Inserted::New(rows::sandbox(&row)?))
}

/// Checks that what a sandbox is made from is the caller's to use, and there. The artifact of a snapshot or of another sandbox may
/// be of a template that was deleted since: they keep its files.
async fn check_origin(tx: &mut Tx, caller: &Caller, sandbox: &NewSandbox) -> Result<()> {
    let from = match (sandbox.from_snapshot, sandbox.forked_from) {
        (None, None) => {
            templates::visible_artifact(tx, caller, sandbox.artifact).await?.ok_or(DbError::NotFound)?;
            return Ok(());
        }
        (Some(_), Some(_)) => return Err(DbError::conflict("a sandbox is made from one snapshot or sandbox")),
        (Some(snapshot), None) => (
            "SELECT p.artifact_id AS artifact_id FROM snapshots p JOIN artifacts a ON a.id = p.artifact_id
             WHERE p.id = $1 AND p.tenant_id = $2 AND p.ended_at IS NULL AND a.purged_at IS NULL",
            snapshot.to_string(),
        ),
        (None, Some(source)) => (
            "SELECT s.artifact_id AS artifact_id FROM sandboxes s JOIN artifacts a ON a.id = s.artifact_id
             WHERE s.id = $1 AND s.tenant_id = $2 AND a.purged_at IS NULL",
            source.to_string(),
        ),
    };
    let (query, id) = from;
    let row = sqlx::query(query)
        .bind(id)
        .bind(caller.tenant.to_string())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(DbError::NotFound)?;
    let artifact: ArtifactId = Reader(&row).parsed("artifact_id")?;
    if artifact == sandbox.artifact {
        Ok(())
    } else {
        Err(DbError::conflict("a sandbox has the artifact of its origin"))
    }
}

async fn set_status(
    store: &Store,
    sandbox: SandboxId,
    status: SandboxStatus,
    reason: Option<&str>,
    now: Timestamp,
) -> Result<Sandbox> {
    let mut tx = store.write().await?;
    let before = in_tx(&mut tx, sandbox).await?;
    let row = match (before.status, status) {
        (SandboxStatus::Destroyed | SandboxStatus::Error, _) => return Err(DbError::conflict("the sandbox is over")),
        (_, SandboxStatus::Destroyed | SandboxStatus::Error) => end(&mut tx, &before, status, reason, now).await?,
        (SandboxStatus::Creating | SandboxStatus::Running, SandboxStatus::Running) => {
            sqlx::query(
                "UPDATE sandboxes SET status = 'running', reason = $1, started_at = coalesce(started_at, $2)
                 WHERE id = $3 RETURNING *",
            )
            .bind(reason)
            .bind(now.as_microsecond())
            .bind(sandbox.to_string())
            .fetch_one(&mut *tx)
            .await?
        }
        (before, status) => {
            return Err(DbError::conflict(format!("a sandbox that is {before} cannot become {status}")));
        }
    };
    tx.commit().await?;
    rows::sandbox(&row)
}

/// Any tenant's sandbox.
pub(super) async fn in_tx(tx: &mut Tx, sandbox: SandboxId) -> Result<Sandbox> {
    let row = sqlx::query("SELECT * FROM sandboxes WHERE id = $1")
        .bind(sandbox.to_string())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(DbError::NotFound)?;
    rows::sandbox(&row)
}

/// Ends a sandbox that has not ended. The snapshot that it is stored in is over then, and its variables, token and grants are gone.
pub(super) async fn end(
    tx: &mut Tx,
    sandbox: &Sandbox,
    status: SandboxStatus,
    reason: Option<&str>,
    now: Timestamp,
) -> Result<DbRow> {
    if let (SandboxStatus::Paused, Some(snapshot)) = (sandbox.status, sandbox.snapshot) {
        snapshots::end(tx, snapshot, now).await?;
    }
    grants::end_with(tx, sandbox.id).await?;
    let row = sqlx::query(
        "UPDATE sandboxes SET status = $1, reason = $2, ended_at = $3, sealed_envs = NULL, sealed_traffic_token = NULL,
             continues = 0, continue_ms = NULL
         WHERE id = $4 AND ended_at IS NULL RETURNING *",
    )
    .bind(status.as_str())
    .bind(reason)
    .bind(now.as_microsecond())
    .bind(sandbox.id.to_string())
    .fetch_one(&mut **tx)
    .await?;
    Ok(row)
}

async fn set_timeout(
    store: &Store,
    caller: &Caller,
    sandbox: SandboxId,
    config: &Value,
    timeout_at: Option<Timestamp>,
) -> Result<Sandbox> {
    let mut tx = store.write().await?;
    let row = sqlx::query(
        "UPDATE sandboxes SET config = $1, timeout_at = $2
         WHERE id = $3 AND tenant_id = $4 AND status IN ('running', 'paused') RETURNING *",
    )
    .bind(config.to_string())
    .bind(timeout_at.map(Timestamp::as_microsecond))
    .bind(sandbox.to_string())
    .bind(caller.tenant.to_string())
    .fetch_optional(&mut *tx)
    .await?;
    tx.commit().await?;
    match row {
        Some(row) => rows::sandbox(&row),
        None => {
            let status = get(store, caller, sandbox).await?.status;
            Err(DbError::conflict(format!("a sandbox that is {status} has no timeout to set")))
        }
    }
}

async fn touch(store: &Store, used: &[(SandboxId, Timestamp)]) -> Result<()> {
    if used.is_empty() {
        return Ok(());
    }
    let mut latest: BTreeMap<String, i64> = BTreeMap::new();
    for (id, at) in used {
        let at = at.as_microsecond();
        latest.entry(id.to_string()).and_modify(|latest| *latest = at.max(*latest)).or_insert(at);
    }
    let touch = sqlx::query(
        "UPDATE sandboxes SET last_active_at = max(coalesce(last_active_at, u.at), u.at)
         FROM (SELECT key AS id, CAST(value AS BIGINT) AS at FROM json_each($1)) AS u
         WHERE sandboxes.id = u.id AND ended_at IS NULL",
    );
    store.run(touch.bind(json!(latest).to_string())).await?;
    Ok(())
}

async fn due(store: &Store, host: &str, now: Timestamp, limit: u32) -> Result<Vec<Sandbox>> {
    let found = sqlx::query(
        "SELECT * FROM sandboxes WHERE status = 'paused' AND host = $1 AND timeout_at IS NOT NULL AND timeout_at <= $2
             AND continues = 0
         ORDER BY timeout_at LIMIT $3",
    )
    .bind(host)
    .bind(now.as_microsecond())
    .bind(i64::from(limit))
    .fetch_all(&store.readers)
    .await?;
    found.iter().map(rows::sandbox).collect()
}

async fn end_due(store: &Store, sandbox: SandboxId, reason: &str, now: Timestamp) -> Result<Sandbox> {
    let mut tx = store.write().await?;
    let found = in_tx(&mut tx, sandbox).await?;
    let continues = sqlx::query("SELECT 1 FROM sandboxes WHERE id = $1 AND continues = 1").bind(sandbox.to_string());
    let is_due = found.status == SandboxStatus::Paused
        && found.timeout_at.is_some_and(|at| at <= now)
        && continues.fetch_optional(&mut *tx).await?.is_none();
    if !is_due {
        return Err(DbError::conflict("the sandbox is not due any more"));
    }
    let row = end(&mut tx, &found, SandboxStatus::Destroyed, Some(reason), now).await?;
    tx.commit().await?;
    rows::sandbox(&row)
}

async fn get(store: &Store, caller: &Caller, sandbox: SandboxId) -> Result<Sandbox> {
    let row = sqlx::query("SELECT * FROM sandboxes WHERE id = $1 AND tenant_id = $2")
        .bind(sandbox.to_string())
        .bind(caller.tenant.to_string())
        .fetch_optional(&store.readers)
        .await?
        .ok_or(DbError::NotFound)?;
    rows::sandbox(&row)
}

async fn list(store: &Store, caller: &Caller, filter: SandboxFilter) -> Result<Vec<Sandbox>> {
    let mut query: QueryBuilder<Db> = QueryBuilder::new("SELECT * FROM sandboxes WHERE tenant_id = ");
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

async fn end_of_host(
    store: &Store,
    host: &str,
    status: SandboxStatus,
    reason: &str,
    now: Timestamp,
) -> Result<Vec<(SandboxId, TenantId)>> {
    if !status.is_final() {
        return Err(DbError::conflict("a sandbox without a machine is over"));
    }
    let mut tx = store.write().await?;
    let found = sqlx::query(
        "UPDATE sandboxes SET status = $1, reason = $2, ended_at = $3, sealed_envs = NULL, sealed_traffic_token = NULL
         WHERE host = $4 AND ended_at IS NULL AND status IN ('creating', 'running') RETURNING id, tenant_id",
    )
    .bind(status.as_str())
    .bind(reason)
    .bind(now.as_microsecond())
    .bind(host)
    .fetch_all(&mut *tx)
    .await?;
    let ended: Vec<(SandboxId, TenantId)> = found
        .iter()
        .map(|row| Ok((Reader(row).parsed("id")?, Reader(row).parsed("tenant_id")?)))
        .collect::<Result<_>>()?;
    for (sandbox, _) in &ended {
        grants::end_with(&mut tx, *sandbox).await?;
    }
    tx.commit().await?;
    Ok(ended)
}
