//! Lifecycle events: recorded with their deliveries, listed, and forgotten after their time.

use async_trait::async_trait;
use jiff::Timestamp;
use nullspace_types::Caller;
use serde_json::json;
use sqlx::QueryBuilder;
use uuid::Uuid;

use super::{Db, DbRow, Store, Tx, deliveries, dialect::UNINDEXED, rows::Reader, webhooks};
use crate::{Attempt, Delivery, Event, EventFilter, Events, NewEvent, Result, TakenDelivery, Webhook, WebhookChange};

#[async_trait]
impl Events for Store {
    async fn record_events(&self, events: Vec<NewEvent>, now: Timestamp) -> Result<()> {
        record(self, events, now).await
    }

    async fn list_events(&self, caller: &Caller, filter: EventFilter) -> Result<Vec<Event>> {
        list(self, caller, filter).await
    }

    async fn forget_events(&self, before: Timestamp, limit: u32) -> Result<u64> {
        forget(self, before, limit).await
    }

    async fn insert_webhook(&self, webhook: Webhook, most: u32) -> Result<Webhook> {
        webhooks::insert(self, webhook, most).await
    }

    async fn list_webhooks(&self, caller: &Caller) -> Result<Vec<Webhook>> {
        webhooks::list(self, caller).await
    }

    async fn get_webhook(&self, caller: &Caller, webhook: Uuid) -> Result<Webhook> {
        webhooks::get(&mut self.read().await?, caller, webhook).await
    }

    async fn update_webhook(
        &self,
        caller: &Caller,
        webhook: Uuid,
        change: WebhookChange,
        now: Timestamp,
    ) -> Result<Webhook> {
        webhooks::update(self, caller, webhook, change, now).await
    }

    async fn delete_webhook(&self, caller: &Caller, webhook: Uuid) -> Result<()> {
        webhooks::delete(self, caller, webhook).await
    }

    async fn list_deliveries(&self, caller: &Caller, webhook: Uuid, offset: u64, limit: u32) -> Result<Vec<Delivery>> {
        deliveries::list(self, caller, webhook, offset, limit).await
    }

    async fn get_delivery(
        &self,
        caller: &Caller,
        webhook: Uuid,
        delivery: Uuid,
    ) -> Result<(Delivery, Event, Vec<Attempt>)> {
        deliveries::get(self, caller, webhook, delivery).await
    }

    async fn take_deliveries(
        &self,
        owner: &str,
        now: Timestamp,
        lease_until: Timestamp,
        limit: u32,
        each: u32,
    ) -> Result<Vec<TakenDelivery>> {
        deliveries::take(self, owner, now, lease_until, limit, each).await
    }

    async fn take_over_deliveries(&self, owner: &str, now: Timestamp) -> Result<u64> {
        deliveries::take_over(self, owner, now).await
    }

    async fn delivery_done(&self, delivery: Uuid, attempt: Attempt, next: Option<Timestamp>) -> Result<()> {
        deliveries::done(self, delivery, attempt, next).await
    }

    async fn next_delivery(&self) -> Result<Option<Timestamp>> {
        deliveries::next(self).await
    }
}

/// Longest page of events: one more than a page of the API.
const MAX_PAGE: u32 = 1001;

async fn record(store: &Store, events: Vec<NewEvent>, now: Timestamp) -> Result<()> {
    let mut tx = store.write().await?;
    for event in events {
        let (code, message) = event.error.clone().unzip();
        let done = sqlx::query(
            "INSERT INTO events (id, tenant_id, occurred_at, operation, status, actor, sandbox_id, snapshot_id, source_id,
                 target_id, reason, error_code, error_message, metadata)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON CONFLICT (id) DO NOTHING",
        )
        .bind(event.id.to_string())
        .bind(event.tenant.to_string())
        .bind(event.occurred_at.as_microsecond())
        .bind(&event.operation)
        .bind(&event.status)
        .bind(&event.actor)
        .bind(event.sandbox.map(|id| id.to_string()))
        .bind(event.snapshot.map(|id| id.to_string()))
        .bind(event.source.map(|id| id.to_string()))
        .bind(event.target.map(|id| id.to_string()))
        .bind(&event.reason)
        .bind(code)
        .bind(message)
        .bind(event.metadata.to_string())
        .execute(&mut *tx)
        .await?;
        // Recorded before, its deliveries were queued, too.
        if done.rows_affected() > 0 {
            deliveries::queue(&mut tx, &event, now).await?;
        }
    }
    tx.commit().await?;
    Ok(())
}

/// Reads an event of a row with these columns.
pub(super) fn event(row: &DbRow) -> Result<Event> {
    let row = Reader(row);
    Ok(Event {
        id: row.parsed("id")?,
        tenant: row.parsed("tenant_id")?,
        occurred_at: row.time("occurred_at")?,
        operation: row.text("operation")?,
        status: row.text("status")?,
        actor: row.text("actor")?,
        sandbox: row.optional_parsed("sandbox_id")?,
        snapshot: row.optional_parsed("snapshot_id")?,
        source: row.optional_parsed("source_id")?,
        target: row.optional_parsed("target_id")?,
        reason: row.optional_text("reason")?,
        error: row.optional_text("error_code")?.zip(row.optional_text("error_message")?),
        metadata: row.json("metadata")?,
    })
}

async fn list(store: &Store, caller: &Caller, filter: EventFilter) -> Result<Vec<Event>> {
    let found = listing(caller, &filter).build().fetch_all(&store.readers).await?;
    found.iter().map(event).collect()
}

/// The query of a listing. One that names a sandbox or snapshot reads its events by their index and sorts those few: the unary
/// plus keeps the database from reading all of the tenant's in their order instead.
pub(super) fn listing(caller: &Caller, filter: &EventFilter) -> QueryBuilder<Db> {
    let mut query: QueryBuilder<Db> = QueryBuilder::new("SELECT * FROM events WHERE ");
    let named = [
        ("sandbox_id", filter.sandbox.map(|id| id.to_string())),
        ("snapshot_id", filter.snapshot.map(|id| id.to_string())),
        ("source_id", filter.source.map(|id| id.to_string())),
        ("target_id", filter.target.map(|id| id.to_string())),
    ];
    let mut one = filter.about.is_some();
    if let Some(about) = filter.about {
        let about = about.to_string();
        for (before, column) in [("id IN (", "sandbox_id"), (" UNION ALL ", "source_id"), (" UNION ALL ", "target_id")]
        {
            query.push(before).push("SELECT id FROM events WHERE ").push(column).push(" = ").push_bind(about.clone());
        }
        query.push(") AND ");
    }
    for (column, id) in named {
        if let Some(id) = id {
            // The first one chooses the index.
            query.push(if one { UNINDEXED } else { "" }).push(column).push(" = ").push_bind(id).push(" AND ");
            one = true;
        }
    }
    query.push(if one { UNINDEXED } else { "" }).push("tenant_id = ").push_bind(caller.tenant.to_string());
    for (column, word) in [("operation", &filter.operation), ("status", &filter.status)] {
        if let Some(word) = word {
            query.push(" AND ").push(column).push(" = ").push_bind(word.clone());
        }
    }
    for (test, time) in [("occurred_at >= ", filter.from), ("occurred_at <= ", filter.to)] {
        if let Some(time) = time {
            query.push(" AND ").push(UNINDEXED).push(test).push_bind(time.as_microsecond());
        }
    }
    if let Some(after) = filter.after {
        query.push(" AND ").push(if one { UNINDEXED } else { "" }).push("id > ").push_bind(after.to_string());
    }
    query.push(if filter.ascending { " ORDER BY id LIMIT " } else { " ORDER BY id DESC LIMIT " });
    query.push_bind(i64::from(filter.limit.clamp(1, MAX_PAGE)));
    query.push(" OFFSET ").push_bind(i64::try_from(filter.offset).unwrap_or(i64::MAX));
    query
}

async fn forget(store: &Store, before: Timestamp, limit: u32) -> Result<u64> {
    let over = "SELECT e.id FROM events e WHERE e.occurred_at < $1
            AND NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event_id = e.id AND d.due_at IS NOT NULL)
        ORDER BY e.occurred_at LIMIT $2";
    // Mostly there is nothing: looked for without the write lock first.
    let mut tx = store.read().await?;
    let some: Option<String> =
        sqlx::query_scalar(over).bind(before.as_microsecond()).bind(1_i64).fetch_optional(&mut *tx).await?;
    let deleted = webhooks::any_deleted(&mut tx).await?;
    drop(tx);
    if some.is_none() && !deleted {
        return Ok(0);
    }
    let mut tx = store.write().await?;
    let removed = webhooks::remove_deleted(&mut tx, limit).await?;
    let events: Vec<String> =
        sqlx::query_scalar(over).bind(before.as_microsecond()).bind(i64::from(limit)).fetch_all(&mut *tx).await?;
    let ids = json!(events).to_string();
    for statement in [
        "DELETE FROM attempts WHERE delivery_id IN (
             SELECT id FROM deliveries WHERE event_id IN (SELECT value FROM json_each($1)))",
        "DELETE FROM deliveries WHERE event_id IN (SELECT value FROM json_each($1))",
        "DELETE FROM events WHERE id IN (SELECT value FROM json_each($1))",
    ] {
        sqlx::query(statement).bind(&ids).execute(&mut *tx).await?;
    }
    tx.commit().await?;
    Ok(removed + events.len() as u64)
}

/// One event by its id.
pub(super) async fn in_tx(tx: &mut Tx, id: &str) -> Result<Event> {
    let row = sqlx::query("SELECT * FROM events WHERE id = $1").bind(id).fetch_one(&mut **tx).await?;
    event(&row)
}
