//! Deliveries of events to webhooks.
//!
//! ```text
//!   queued ──take──> in progress ──done──> succeeded | dead letter | queued again
//!                         └── lease over ──take──> in progress, of another worker
//! ```
//! `due_at` is the time at which a delivery is to be taken next: of a queued one its next attempt, of one in progress the end of its
//! lease. A worker's report is fenced by the number of its attempt.

use jiff::Timestamp;
use nullspace_types::Caller;
use uuid::Uuid;

use super::{
    DbRow, Store, Tx,
    dialect::DUE,
    events,
    rows::{self, Reader},
    webhooks,
};
use crate::{Attempt, DbError, Delivery, Event, NewEvent, Result, TakenDelivery};

/// Unfinished deliveries of one webhook. One that does not answer must not make the table grow for ever.
const MOST_UNFINISHED: i64 = 2_000;
/// Longest page of deliveries.
const MAX_PAGE: u32 = 1000;

const QUEUED: &str = "queued";
const IN_PROGRESS: &str = "in_progress";
const SUCCEEDED: &str = "succeeded";
const DEAD_LETTER: &str = "dead_letter";

/// `SELECT …` of every column that [`delivery`] reads, followed by `$rest`.
macro_rules! select_delivery {
    ($rest:literal) => {
        concat!(
            "SELECT d.*, e.operation AS operation, e.status AS status FROM deliveries d JOIN events e ON e.id = d.event_id ",
            $rest
        )
    };
}

fn delivery(row: &DbRow) -> Result<Delivery> {
    let row = Reader(row);
    let delivery_status = row.text("delivery_status")?;
    Ok(Delivery {
        id: row.parsed("id")?,
        webhook: row.parsed("webhook_id")?,
        event: row.parsed("event_id")?,
        operation: row.text("operation")?,
        status: row.text("status")?,
        attempts: row.integer("attempts")?,
        created_at: row.time("created_at")?,
        next_attempt_at: if delivery_status == QUEUED { row.optional_time("due_at")? } else { None },
        last_attempt_at: row.optional_time("last_attempt_at")?,
        last_response_status: row.optional_integer("last_response_status")?,
        last_error: row.optional_text("last_error")?,
        delivery_status,
    })
}

/// Queues a new event for each webhook of its tenant that wants it.
pub(super) async fn queue(tx: &mut Tx, event: &NewEvent, now: Timestamp) -> Result<()> {
    let wanted = sqlx::query(
        "SELECT w.id AS id,
             (SELECT count(*) FROM (
                 SELECT 1 FROM deliveries d WHERE d.webhook_id = w.id AND d.due_at IS NOT NULL LIMIT $3) AS few) AS unfinished
         FROM webhooks w
         WHERE w.tenant_id = $1 AND w.deleted_at IS NULL AND w.enabled = 1
             AND EXISTS (SELECT 1 FROM json_each(w.operations) o WHERE o.value = $2)",
    )
    .bind(event.tenant.to_string())
    .bind(&event.operation)
    .bind(MOST_UNFINISHED)
    .fetch_all(&mut **tx)
    .await?;
    for webhook in &wanted {
        let webhook = Reader(webhook);
        let full = webhook.integer::<i64>("unfinished")? >= MOST_UNFINISHED;
        sqlx::query(
            "INSERT INTO deliveries (id, webhook_id, event_id, delivery_status, created_at, due_at, last_error)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(Uuid::now_v7().to_string())
        .bind(webhook.text("id")?)
        .bind(event.id.to_string())
        .bind(if full { DEAD_LETTER } else { QUEUED })
        .bind(now.as_microsecond())
        .bind((!full).then(|| now.as_microsecond()))
        .bind(full.then(|| format!("not sent: {MOST_UNFINISHED} deliveries of this webhook are waiting")))
        .execute(&mut **tx)
        .await?;
    }
    Ok(())
}

pub(super) async fn list(
    store: &Store,
    caller: &Caller,
    webhook: Uuid,
    offset: u64,
    limit: u32,
) -> Result<Vec<Delivery>> {
    let mut tx = store.read().await?;
    webhooks::get(&mut tx, caller, webhook).await?;
    let found = sqlx::query(select_delivery!("WHERE d.webhook_id = $1 ORDER BY d.id DESC LIMIT $2 OFFSET $3"))
        .bind(webhook.to_string())
        .bind(i64::from(limit.clamp(1, MAX_PAGE)))
        .bind(i64::try_from(offset).unwrap_or(i64::MAX))
        .fetch_all(&mut *tx)
        .await?;
    found.iter().map(delivery).collect()
}

pub(super) async fn get(
    store: &Store,
    caller: &Caller,
    webhook: Uuid,
    id: Uuid,
) -> Result<(Delivery, Event, Vec<Attempt>)> {
    let mut tx = store.read().await?;
    webhooks::get(&mut tx, caller, webhook).await?;
    let row = sqlx::query(select_delivery!("WHERE d.id = $1 AND d.webhook_id = $2"))
        .bind(id.to_string())
        .bind(webhook.to_string())
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(DbError::NotFound)?;
    let event = events::in_tx(&mut tx, &Reader(&row).text("event_id")?).await?;
    let attempts = sqlx::query("SELECT * FROM attempts WHERE delivery_id = $1 ORDER BY number")
        .bind(id.to_string())
        .fetch_all(&mut *tx)
        .await?;
    Ok((delivery(&row)?, event, attempts.iter().map(attempt).collect::<Result<_>>()?))
}

fn attempt(row: &DbRow) -> Result<Attempt> {
    let row = Reader(row);
    Ok(Attempt {
        id: row.parsed("id")?,
        number: row.integer("number")?,
        at: row.time("at")?,
        duration_ms: row.integer("duration_ms")?,
        response_status: row.optional_integer("response_status")?,
        error: row.optional_text("error_code")?.zip(row.optional_text("error_message")?),
    })
}

pub(super) async fn take(
    store: &Store,
    owner: &str,
    now: Timestamp,
    lease_until: Timestamp,
    limit: u32,
    each: u32,
) -> Result<Vec<TakenDelivery>> {
    // Mostly there is nothing: looked for without the write lock first.
    let due = "SELECT 1 FROM deliveries WHERE due_at <= $1 LIMIT 1";
    if sqlx::query(due).bind(now.as_microsecond()).fetch_optional(&store.readers).await?.is_none() {
        return Ok(Vec::new());
    }
    let mut tx = store.write().await?;
    // Only one that was in progress when its webhook was disabled can be due.
    sqlx::query(
        "UPDATE deliveries SET delivery_status = 'dead_letter', due_at = NULL, last_error = 'the webhook was disabled'
         WHERE due_at <= $1 AND EXISTS (SELECT 1 FROM webhooks w WHERE w.id = webhook_id AND w.enabled = 0)",
    )
    .bind(now.as_microsecond())
    .execute(&mut *tx)
    .await?;
    let due: Vec<String> = sqlx::query_scalar(DUE)
        .bind(now.as_microsecond())
        .bind(i64::from(limit))
        .bind(i64::from(each))
        .fetch_all(&mut *tx)
        .await?;
    let mut taken = Vec::new();
    for id in due {
        sqlx::query("UPDATE deliveries SET delivery_status = $1, due_at = $2, taken_by = $3 WHERE id = $4")
            .bind(IN_PROGRESS)
            .bind(lease_until.as_microsecond())
            .bind(owner)
            .bind(&id)
            .execute(&mut *tx)
            .await?;
        let row = sqlx::query(select_delivery!("WHERE d.id = $1")).bind(&id).fetch_one(&mut *tx).await?;
        taken.push(TakenDelivery {
            delivery: delivery(&row)?,
            webhook: webhooks::in_tx(&mut tx, &Reader(&row).text("webhook_id")?).await?,
            event: events::in_tx(&mut tx, &Reader(&row).text("event_id")?).await?,
        });
    }
    tx.commit().await?;
    Ok(taken)
}

pub(super) async fn take_over(store: &Store, owner: &str, now: Timestamp) -> Result<u64> {
    let mut tx = store.write().await?;
    let taken = sqlx::query(
        "UPDATE deliveries SET delivery_status = $1, due_at = $2, taken_by = NULL WHERE delivery_status = $3 AND taken_by = $4",
    )
    .bind(QUEUED)
    .bind(now.as_microsecond())
    .bind(IN_PROGRESS)
    .bind(owner)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(taken.rows_affected())
}

pub(super) async fn done(store: &Store, id: Uuid, attempt: Attempt, next: Option<Timestamp>) -> Result<()> {
    let mut tx = store.write().await?;
    let row = sqlx::query(
        "SELECT d.webhook_id AS webhook_id, d.attempts AS attempts, d.delivery_status AS delivery_status,
             w.enabled AS enabled
         FROM deliveries d JOIN webhooks w ON w.id = d.webhook_id WHERE d.id = $1 AND w.deleted_at IS NULL",
    )
    .bind(id.to_string())
    .fetch_optional(&mut *tx)
    .await?
    .ok_or(DbError::NotFound)?;
    let row = Reader(&row);
    let number = row.integer::<u32>("attempts")?.saturating_add(1);
    if row.text("delivery_status")? != IN_PROGRESS || number != attempt.number {
        return Err(DbError::conflict("another worker has reported this delivery"));
    }
    let enabled = row.integer::<i64>("enabled")? != 0;
    let (status, due) = match (&attempt.error, next) {
        (None, _) => (SUCCEEDED, None),
        (Some(_), Some(next)) if enabled => (QUEUED, Some(next)),
        (Some(_), _) => (DEAD_LETTER, None),
    };
    let (code, message) = attempt.error.unzip();
    let webhook = row.text("webhook_id")?;
    sqlx::query(
        "INSERT INTO attempts (id, delivery_id, number, at, duration_ms, response_status, error_code, error_message)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(attempt.id.to_string())
    .bind(id.to_string())
    .bind(i64::from(number))
    .bind(attempt.at.as_microsecond())
    .bind(rows::integer(attempt.duration_ms)?)
    .bind(attempt.response_status.map(i64::from))
    .bind(code)
    .bind(&message)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "UPDATE deliveries SET delivery_status = $1, due_at = $2, attempts = $3, last_attempt_at = $4,
             last_response_status = $5, last_error = $6, taken_by = NULL
         WHERE id = $7",
    )
    .bind(status)
    .bind(due.map(Timestamp::as_microsecond))
    .bind(i64::from(number))
    .bind(attempt.at.as_microsecond())
    .bind(attempt.response_status.map(i64::from))
    .bind(&message)
    .bind(id.to_string())
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "UPDATE webhooks SET last_at = $1, last_status = $2, last_error = $3
         WHERE id = $4 AND (last_at IS NULL OR last_at <= $1)",
    )
    .bind(attempt.at.as_microsecond())
    .bind(status)
    .bind(&message)
    .bind(webhook)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}

pub(super) async fn next(store: &Store) -> Result<Option<Timestamp>> {
    let row = sqlx::query("SELECT min(due_at) AS due_at FROM deliveries WHERE due_at IS NOT NULL")
        .fetch_one(&store.readers)
        .await?;
    Reader(&row).optional_time("due_at")
}
