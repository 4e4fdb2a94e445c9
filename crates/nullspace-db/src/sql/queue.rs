//! The queue: builds are accepted, leased, renewed and given back.

use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use nullspace_types::{BuildId, Caller, TemplateId};
use sqlx::Row;

use super::{Store, Tx, blobs, claims, finish, one_build, rows::Reader};
use crate::{
    Build, DbError, FinishError, FinishReady, Finished, Heartbeat, Idempotency, Lease, Leased, NamespaceKind, NewBuild,
    NewLogEntry, Queue, QueueLimits, Release, Result, Visibility,
};

#[async_trait]
impl Queue for Store {
    async fn accept_build(
        &self,
        caller: &Caller,
        build: NewBuild,
        first: NewLogEntry,
        limits: QueueLimits,
        now: Timestamp,
    ) -> Result<Build> {
        accept(self, caller, build, first, limits, now).await
    }

    async fn lease_build(
        &self,
        owner: &str,
        ttl: Duration,
        running_per_tenant: u32,
        now: Timestamp,
    ) -> Result<Option<Leased>> {
        lease(self, owner, ttl, running_per_tenant, now).await
    }

    async fn heartbeat(&self, lease: &Lease, ttl: Duration, now: Timestamp) -> Result<Heartbeat> {
        heartbeat(self, lease, ttl, now).await
    }

    async fn take_over(&self, owner: &str, now: Timestamp) -> Result<Vec<BuildId>> {
        take_over(self, owner, now).await
    }

    async fn set_source_digest(&self, lease: &Lease, digest: &str, now: Timestamp) -> Result<()> {
        set_source_digest(self, lease, digest, now).await
    }

    async fn set_build_config(&self, lease: &Lease, config: serde_json::Value, now: Timestamp) -> Result<()> {
        set_build_config(self, lease, &config, now).await
    }

    async fn append_log(&self, lease: &Lease, entries: Vec<NewLogEntry>) -> Result<u64> {
        append_log(self, lease, entries).await
    }

    async fn release_build(
        &self,
        lease: &Lease,
        how: Release,
        entries: Vec<NewLogEntry>,
        now: Timestamp,
    ) -> Result<()> {
        release(self, lease, how, entries, now).await
    }

    async fn finish_ready(&self, lease: &Lease, result: FinishReady, now: Timestamp) -> Result<Finished> {
        finish::ready(self, lease, result, now).await
    }

    async fn finish_error(&self, lease: &Lease, error: FinishError, now: Timestamp) -> Result<Build> {
        finish::error(self, lease, error, now).await
    }

    async fn finish_cancelled(&self, lease: &Lease, entry: NewLogEntry, now: Timestamp) -> Result<Build> {
        finish::cancelled(self, lease, entry, now).await
    }
}

pub(super) async fn accept(
    store: &Store,
    caller: &Caller,
    build: NewBuild,
    first: NewLogEntry,
    limits: QueueLimits,
    now: Timestamp,
) -> Result<Build> {
    if build.tags.is_empty() {
        return Err(DbError::conflict("a build needs at least one tag"));
    }
    let mut tx = store.write().await?;
    if let Some(repeat) = &build.idempotency
        && let Some(earlier) = earlier(&mut tx, caller, repeat).await?
    {
        return Ok(earlier);
    }
    check_limits(&mut tx, caller, limits).await?;
    let accepted = insert(&mut tx, caller, build, first, now).await?;
    tx.commit().await?;
    Ok(accepted)
}

/// Inserts a build that waits, and its template if the name is new.
pub(super) async fn insert(
    tx: &mut Tx,
    caller: &Caller,
    build: NewBuild,
    first: NewLogEntry,
    now: Timestamp,
) -> Result<Build> {
    for earlier in [build.retry_of, build.original].into_iter().flatten() {
        one_build::get_in(tx, caller, earlier).await?;
    }
    let template = claim_name(tx, caller, &build, now).await?;
    let (key, digest) = build.idempotency.map(|repeat| (repeat.key, repeat.request_digest)).unzip();
    let micros = now.as_microsecond();
    sqlx::query(
        "INSERT INTO builds (id, tenant_id, template_id, artifact_id, status, name, namespace, description, tags, backend,
             source_type, definition, build_config, source_digest, context_digest, dockerfile_digest, triggered_by,
             retry_of, original, attempt, max_attempts, created_at, updated_at, queued_at, log_next, idempotency_key,
             idempotency_digest)
         VALUES ($1, $2, $3, $4, 'waiting', $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, 0, $19, $20, $21, $22, 0, $23, $24)",
    )
    .bind(build.id.to_string())
    .bind(caller.tenant.to_string())
    .bind(template.to_string())
    .bind(build.artifact_id.to_string())
    .bind(build.name.as_str())
    .bind(&caller.namespace)
    .bind(build.description)
    .bind(serde_json::json!(build.tags).to_string())
    .bind(build.backend.as_str())
    .bind(build.source_type.as_str())
    .bind(build.definition.0.to_string())
    .bind(build.build_config.to_string())
    .bind(build.source_digest)
    .bind(build.context_digest)
    .bind(build.dockerfile_digest)
    .bind(build.triggered_by)
    .bind(build.retry_of.map(|id| id.to_string()))
    .bind(build.original.map(|id| id.to_string()))
    .bind(i64::from(build.max_attempts.max(1)))
    .bind(micros)
    .bind(micros)
    .bind(micros)
    .bind(key)
    .bind(digest)
    .execute(&mut **tx)
    .await?;
    one_build::append(tx, build.id, &[first]).await?;
    blobs::hold(tx, caller, build.id, &build.blobs, now).await?;
    Ok(one_build::get_in(tx, caller, build.id).await?.0)
}

/// The answer to an earlier request with this idempotency key.
pub(super) async fn earlier(tx: &mut Tx, caller: &Caller, repeat: &Idempotency) -> Result<Option<Build>> {
    let row = sqlx::query("SELECT id, idempotency_digest FROM builds WHERE tenant_id = $1 AND idempotency_key = $2")
        .bind(caller.tenant.to_string())
        .bind(&repeat.key)
        .fetch_optional(&mut **tx)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let row = Reader(&row);
    if row.text("idempotency_digest")? != repeat.request_digest {
        return Err(DbError::conflict("this idempotency key was used for another request"));
    }
    Ok(Some(one_build::get_in(tx, caller, row.parsed("id")?).await?.0))
}

async fn check_limits(tx: &mut Tx, caller: &Caller, limits: QueueLimits) -> Result<()> {
    let row =
        sqlx::query("SELECT count(*), count(*) FILTER (WHERE tenant_id = $1) FROM builds WHERE finished_at IS NULL")
            .bind(caller.tenant.to_string())
            .fetch_one(&mut **tx)
            .await?;
    let (total, own): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
    if own >= i64::from(limits.per_tenant) {
        return Err(DbError::LimitReached { what: "too many unfinished builds", limit: limits.per_tenant });
    }
    if total >= i64::from(limits.total) {
        return Err(DbError::LimitReached { what: "the build queue is full", limit: limits.total });
    }
    Ok(())
}

/// The template of this name in the caller's namespace. Created if the name is free.
async fn claim_name(tx: &mut Tx, caller: &Caller, build: &NewBuild, now: Timestamp) -> Result<TemplateId> {
    let namespace = sqlx::query("SELECT kind FROM namespaces WHERE slug = $1 AND tenant_id = $2")
        .bind(&caller.namespace)
        .bind(caller.tenant.to_string())
        .fetch_optional(&mut **tx)
        .await?
        .ok_or(DbError::NotFound)?;
    let kind: NamespaceKind = Reader(&namespace).parsed("kind")?;
    claims::spend(tx, &caller.namespace, &build.name, build.claim, now).await?;
    claims::check_no_alias(tx, &caller.namespace, &build.name).await?;
    let found = sqlx::query("SELECT id FROM templates WHERE namespace = $1 AND name = $2 AND deleted_at IS NULL")
        .bind(&caller.namespace)
        .bind(build.name.as_str())
        .fetch_optional(&mut **tx)
        .await?;
    if let Some(row) = found {
        return Reader(&row).parsed("id");
    }
    let visibility = match kind {
        NamespaceKind::System => Visibility::Public,
        NamespaceKind::User | NamespaceKind::Deployment => Visibility::Private,
    };
    let id = TemplateId::new();
    sqlx::query(
        "INSERT INTO templates (id, tenant_id, namespace, name, visibility, description, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(id.to_string())
    .bind(caller.tenant.to_string())
    .bind(&caller.namespace)
    .bind(build.name.as_str())
    .bind(visibility.as_str())
    .bind(build.description.as_deref().unwrap_or_default())
    .bind(now.as_microsecond())
    .execute(&mut **tx)
    .await?;
    Ok(id)
}

pub(super) async fn lease(
    store: &Store,
    owner: &str,
    ttl: Duration,
    running_per_tenant: u32,
    now: Timestamp,
) -> Result<Option<Leased>> {
    // Most calls find nothing: look without the write lock first. What comes a moment later is found by the next call.
    if next_in_turn(&mut store.read().await?, running_per_tenant, now).await?.is_none() {
        return Ok(None);
    }
    let mut tx = store.write().await?;
    let Some(next) = next_in_turn(&mut tx, running_per_tenant, now).await? else {
        return Ok(None);
    };
    let expires = after(now, ttl)?;
    // A build that is `building` here lost its worker. When that was its last attempt the attempt is not counted again.
    let row = sqlx::query(
        "UPDATE builds SET
             status = 'building', lease_owner = $1, lease_expires_at = $2, lease_epoch = lease_epoch + 1,
             attempt = min(attempt + 1, max_attempts), not_before = NULL,
             started_at = coalesce(started_at, $3), updated_at = $3
         WHERE id = $4 RETURNING tenant_id, lease_epoch",
    )
    .bind(owner)
    .bind(expires.as_microsecond())
    .bind(now.as_microsecond())
    .bind(next.id.to_string())
    .fetch_one(&mut *tx)
    .await?;
    sqlx::query("UPDATE tenants SET last_served = (SELECT max(last_served) + 1 FROM tenants) WHERE id = $1")
        .bind(Reader(&row).text("tenant_id")?)
        .execute(&mut *tx)
        .await?;
    let lease = Lease { build: next.id, owner: owner.to_owned(), epoch: Reader(&row).integer("lease_epoch")? };
    let build = Box::new(one_build::get_any(&mut tx, next.id).await?.0);
    tx.commit().await?;
    Ok(Some(if next.spent { Leased::Spent { lease, build } } else { Leased::Run { lease, build } }))
}

/// Releases the builds of an owner that is known to be gone. Their epoch rises here already, so that a late write of that
/// owner finds its lease lost, even before another worker takes the build.
pub(super) async fn take_over(store: &Store, owner: &str, now: Timestamp) -> Result<Vec<BuildId>> {
    let mut tx = store.write().await?;
    let found = sqlx::query(
        "UPDATE builds SET lease_expires_at = min(lease_expires_at, $1), lease_epoch = lease_epoch + 1
         WHERE status = 'building' AND lease_owner = $2 RETURNING id",
    )
    .bind(now.as_microsecond())
    .bind(owner)
    .fetch_all(&mut *tx)
    .await?;
    let builds = found.iter().map(|row| Reader(row).parsed("id")).collect::<Result<_>>()?;
    tx.commit().await?;
    Ok(builds)
}

struct Next {
    id: BuildId,
    spent: bool,
}

async fn next_in_turn(tx: &mut Tx, running_per_tenant: u32, now: Timestamp) -> Result<Option<Next>> {
    let row = sqlx::query(
        "WITH running AS (
             SELECT tenant_id, count(*) AS builds FROM builds
             WHERE finished_at IS NULL AND lease_expires_at > $1 GROUP BY tenant_id)
         SELECT b.id AS id, b.status = 'building' AND b.attempt >= b.max_attempts AS spent
         FROM builds b
         JOIN tenants t ON t.id = b.tenant_id
         LEFT JOIN running r ON r.tenant_id = b.tenant_id
         WHERE b.finished_at IS NULL
           AND ((b.status = 'waiting' AND (b.not_before IS NULL OR b.not_before <= $1))
                OR (b.status = 'building' AND b.lease_expires_at <= $1))
           AND (coalesce(r.builds, 0) < $2 OR (b.status = 'building' AND b.attempt >= b.max_attempts))
         ORDER BY coalesce(r.builds, 0), t.last_served, b.queued_at, b.id
         LIMIT 1",
    )
    .bind(now.as_microsecond())
    .bind(i64::from(running_per_tenant))
    .fetch_optional(&mut **tx)
    .await?;
    row.map(|row| {
        let row = Reader(&row);
        Ok(Next { id: row.parsed("id")?, spent: row.flag("spent")? })
    })
    .transpose()
}

fn after(now: Timestamp, ttl: Duration) -> Result<Timestamp> {
    let ttl = SignedDuration::try_from(ttl).map_err(|_| DbError::conflict("the duration is too long"))?;
    now.checked_add(ttl).map_err(|_| DbError::conflict("the duration is too long"))
}

pub(super) async fn heartbeat(store: &Store, lease: &Lease, ttl: Duration, now: Timestamp) -> Result<Heartbeat> {
    let expires = after(now, ttl)?;
    let mut tx = store.write_build().await?;
    one_build::fence(&mut tx, lease).await?;
    let row = sqlx::query(
        "UPDATE builds SET lease_expires_at = max(lease_expires_at, $1) WHERE id = $2
         RETURNING lease_expires_at, cancel_requested_at",
    )
    .bind(expires.as_microsecond())
    .bind(lease.build.to_string())
    .fetch_one(&mut *tx)
    .await?;
    tx.commit().await?;
    let row = Reader(&row);
    Ok(Heartbeat {
        cancel_requested: row.optional_time("cancel_requested_at")?.is_some(),
        expires_at: row.time("lease_expires_at")?,
    })
}

pub(super) async fn set_source_digest(store: &Store, lease: &Lease, digest: &str, now: Timestamp) -> Result<()> {
    let mut tx = store.write_build().await?;
    one_build::fence(&mut tx, lease).await?;
    sqlx::query("UPDATE builds SET source_digest = $1, updated_at = $2 WHERE id = $3")
        .bind(digest)
        .bind(now.as_microsecond())
        .bind(lease.build.to_string())
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

pub(super) async fn set_build_config(
    store: &Store,
    lease: &Lease,
    config: &serde_json::Value,
    now: Timestamp,
) -> Result<()> {
    let mut tx = store.write_build().await?;
    one_build::fence(&mut tx, lease).await?;
    sqlx::query("UPDATE builds SET build_config = $1, updated_at = $2 WHERE id = $3")
        .bind(config.to_string())
        .bind(now.as_microsecond())
        .bind(lease.build.to_string())
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(())
}

pub(super) async fn append_log(store: &Store, lease: &Lease, entries: Vec<NewLogEntry>) -> Result<u64> {
    let mut tx = store.write_build().await?;
    one_build::fence(&mut tx, lease).await?;
    let first = one_build::append(&mut tx, lease.build, &entries).await?;
    tx.commit().await?;
    Ok(first)
}

pub(super) async fn release(
    store: &Store,
    lease: &Lease,
    how: Release,
    entries: Vec<NewLogEntry>,
    now: Timestamp,
) -> Result<()> {
    let (uncounted, not_before) = match how {
        Release::HandBack => (1_i64, None),
        Release::RetryAfter(delay) => (0, Some(after(now, delay)?.as_microsecond())),
    };
    let mut tx = store.write().await?;
    one_build::fence(&mut tx, lease).await?;
    one_build::append(&mut tx, lease.build, &entries).await?;
    let done = sqlx::query(
        "UPDATE builds SET
             status = 'waiting', lease_owner = NULL, lease_expires_at = NULL, attempt = max(attempt - $1, 0),
             not_before = $2, updated_at = $3
         WHERE id = $4 AND attempt - $1 < max_attempts",
    )
    .bind(uncounted)
    .bind(not_before)
    .bind(now.as_microsecond())
    .bind(lease.build.to_string())
    .execute(&mut *tx)
    .await?;
    if done.rows_affected() == 0 {
        return Err(DbError::conflict("this was the build's last attempt"));
    }
    tx.commit().await?;
    Ok(())
}
