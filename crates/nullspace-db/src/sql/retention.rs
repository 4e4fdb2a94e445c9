//! Rules of retention: which rows are over and referred to by nothing.
//!
//! A rule is a query that lists rows, found without the write lock. It is repeated inside the transaction that removes them. Each
//! rule looks at rows that are over only, through an index, so rows in use cost nothing.

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::json;
use sqlx::{AssertSqlSafe, Row};

use super::{Store, Tx, dialect::TABLE_SIZES, logs, rows::Reader, space};
use crate::segments::FRAME;
use crate::{CompactedLog, Cutoffs, DbError, Due, Expiring, Growth, Result, Retention, Space, TableSize};

#[async_trait]
impl Retention for Store {
    async fn remove_expired(&self, kind: Expiring, before: Timestamp, limit: u32) -> Result<u32> {
        remove(self, kind, before, limit).await
    }

    async fn compact_log(&self, finished_before: Timestamp) -> Result<Option<CompactedLog>> {
        logs::compact(self, finished_before).await
    }

    async fn segments_elsewhere(&self) -> Result<Vec<Vec<u8>>> {
        let elsewhere = "SELECT kept FROM build_log_segments WHERE substr(kept, 1, 4) != $1";
        Ok(sqlx::query_scalar(elsewhere).bind(FRAME.to_vec()).fetch_all(&self.readers).await?)
    }

    async fn forget_removed(&self) -> Result<()> {
        self.run(sqlx::query("DELETE FROM removed_artifacts")).await?;
        Ok(())
    }

    async fn give_back(&self, pages: u32) -> Result<Space> {
        space::give_back(self, pages).await
    }

    async fn allow_give_back(&self, limit_bytes: u64) -> Result<bool> {
        space::allow_give_back(self, limit_bytes).await
    }

    async fn growth(&self, cutoffs: Cutoffs) -> Result<Growth> {
        growth(self, cutoffs).await
    }
}

/// Removed artifacts that are remembered until the next start; older ones are forgotten first.
const REMEMBERED: i64 = 100_000;

/// Nothing refers to build `b`. Its log must be compressed, so that few rows go with it. A retry of it is no reason to stay: a
/// chain of retries would never end. The newest build stays for a template that has tags: one without any has nothing that
/// could be used, and goes with its last build.
const UNREFERRED_BUILD: &str = "b.log_compacted = 1
    AND NOT EXISTS (SELECT 1 FROM template_tags g WHERE g.build_id = b.id)
    AND NOT EXISTS (SELECT 1 FROM sandboxes s WHERE s.artifact_id = b.artifact_id)
    AND NOT EXISTS (SELECT 1 FROM snapshots p WHERE p.artifact_id = b.artifact_id)
    AND NOT EXISTS (SELECT 1 FROM artifact_holds h WHERE h.artifact_id = b.artifact_id)
    AND (EXISTS (SELECT 1 FROM templates t WHERE t.id = b.template_id AND t.deleted_at IS NOT NULL)
         OR NOT EXISTS (SELECT 1 FROM template_tags g WHERE g.template_id = b.template_id)
         OR EXISTS (SELECT 1 FROM builds n WHERE n.template_id = b.template_id AND n.id > b.id))";

/// Which rows a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Among {
    /// All.
    All,
    /// Those whose ids are in the JSON array `$3`.
    These,
}

/// The rows of this kind that are over since `$1` or longer and that nothing refers to: `id`, and `since`.
fn over(kind: Expiring, among: Among) -> String {
    let these = |id: &str| match among {
        Among::All => String::new(),
        Among::These => format!("AND {id} IN (SELECT value FROM json_each($3))"),
    };
    match kind {
        Expiring::Sandboxes => format!(
            "SELECT id, ended_at AS since FROM sandboxes WHERE ended_at IS NOT NULL AND ended_at <= $1 {}",
            these("id")
        ),
        Expiring::Builds => format!(
            "SELECT b.id AS id, b.finished_at AS since FROM builds b
             WHERE b.status IN ('error', 'cancelled') AND b.finished_at <= $1 {these} AND {UNREFERRED_BUILD}
             UNION ALL
             SELECT b.id AS id, max(a.purged_at, b.finished_at) AS since FROM artifacts a JOIN builds b ON b.id = a.build_id
             WHERE a.purged_at IS NOT NULL AND a.purged_at <= $1 AND b.finished_at <= $1 {these} AND {UNREFERRED_BUILD}",
            these = these("b.id")
        ),
        Expiring::Templates => format!(
            "SELECT t.id AS id, t.deleted_at AS since FROM templates t
             WHERE t.deleted_at IS NOT NULL AND t.deleted_at <= $1 {}
               AND NOT EXISTS (SELECT 1 FROM builds b WHERE b.template_id = t.id)
               AND NOT EXISTS (SELECT 1 FROM template_tags g WHERE g.template_id = t.id)
               AND NOT EXISTS (SELECT 1 FROM template_aliases l WHERE l.template_id = t.id)",
            these("t.id")
        ),
        Expiring::Claims => format!(
            "SELECT hex(token_hash) AS id, expires_at AS since FROM name_claims WHERE expires_at <= $1 {}",
            these("hex(token_hash)")
        ),
        Expiring::IdempotencyKeys => format!(
            "SELECT id, finished_at AS since FROM builds WHERE idempotency_key IS NOT NULL AND finished_at <= $1 {these}
             UNION ALL
             SELECT id, ended_at AS since FROM sandboxes WHERE idempotency_key IS NOT NULL AND ended_at <= $1 {these}
             UNION ALL
             SELECT id, created_at AS since FROM snapshots WHERE idempotency_key IS NOT NULL AND created_at <= $1 {these}",
            these = these("id")
        ),
    }
}

/// The statements that remove the rows whose ids are in the JSON array `$1`, in this order.
fn removal(kind: Expiring) -> &'static [&'static str] {
    match kind {
        Expiring::Sandboxes => &["DELETE FROM sandboxes WHERE id IN (SELECT value FROM json_each($1))"],
        Expiring::Builds => &[
            "INSERT INTO removed_artifacts (artifact_id)
             SELECT artifact_id FROM builds WHERE id IN (SELECT value FROM json_each($1))",
            "DELETE FROM build_log_segments WHERE build_id IN (SELECT value FROM json_each($1))",
            "DELETE FROM artifacts WHERE build_id IN (SELECT value FROM json_each($1))",
            "UPDATE builds SET retry_of = NULL WHERE retry_of IN (SELECT value FROM json_each($1))",
            "UPDATE builds SET original = NULL WHERE original IN (SELECT value FROM json_each($1))",
            "DELETE FROM builds WHERE id IN (SELECT value FROM json_each($1))",
        ],
        Expiring::Templates => &["DELETE FROM templates WHERE id IN (SELECT value FROM json_each($1))"],
        Expiring::Claims => &["DELETE FROM name_claims WHERE hex(token_hash) IN (SELECT value FROM json_each($1))"],
        Expiring::IdempotencyKeys => &[
            "UPDATE builds SET idempotency_key = NULL, idempotency_digest = NULL
             WHERE id IN (SELECT value FROM json_each($1))",
            "UPDATE sandboxes SET idempotency_key = NULL, idempotency_digest = NULL
             WHERE id IN (SELECT value FROM json_each($1))",
            "UPDATE snapshots SET idempotency_key = NULL, idempotency_digest = NULL
             WHERE id IN (SELECT value FROM json_each($1))",
        ],
    }
}

/// Remove those of the templates in the JSON array `$1` that lost their last build and were not deleted: their names are free
/// again. Deleted ones wait for their own retention.
const EMPTY_TEMPLATES: [&str; 2] = [
    "DELETE FROM template_aliases WHERE template_id IN (
         SELECT t.id FROM templates t WHERE t.id IN (SELECT value FROM json_each($1)) AND t.deleted_at IS NULL
             AND NOT EXISTS (SELECT 1 FROM builds b WHERE b.template_id = t.id))",
    "DELETE FROM templates WHERE id IN (SELECT value FROM json_each($1)) AND deleted_at IS NULL
         AND NOT EXISTS (SELECT 1 FROM builds b WHERE b.template_id = templates.id)",
];

async fn remove(store: &Store, kind: Expiring, before: Timestamp, limit: u32) -> Result<u32> {
    // Mostly there is nothing: looked for without the write lock first.
    let found = listed(&mut store.read().await?, kind, before, limit, None).await?;
    if found.is_empty() {
        return Ok(0);
    }
    let mut tx = store.write().await?;
    let found = listed(&mut tx, kind, before, limit, Some(found)).await?;
    let ids = json!(found).to_string();
    let mut elsewhere: Vec<Vec<u8>> = Vec::new();
    if kind == Expiring::Builds && store.segments.outside() {
        let kept = "SELECT kept FROM build_log_segments WHERE build_id IN (SELECT value FROM json_each($1))";
        elsewhere = sqlx::query_scalar(kept).bind(&ids).fetch_all(&mut *tx).await?;
    }
    let mut templates: Vec<String> = Vec::new();
    if kind == Expiring::Builds {
        let of = "SELECT DISTINCT template_id FROM builds WHERE id IN (SELECT value FROM json_each($1))";
        templates = sqlx::query_scalar(of).bind(&ids).fetch_all(&mut *tx).await?;
    }
    for statement in removal(kind) {
        sqlx::query(*statement).bind(&ids).execute(&mut *tx).await?;
    }
    if kind == Expiring::Builds {
        let templates = json!(templates).to_string();
        for statement in EMPTY_TEMPLATES {
            sqlx::query(statement).bind(&templates).execute(&mut *tx).await?;
        }
        sqlx::query("DELETE FROM removed_artifacts WHERE number <= (SELECT max(number) FROM removed_artifacts) - $1")
            .bind(REMEMBERED)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    let mut left = elsewhere.len();
    for kept in elsewhere {
        // Nothing names them any more: what is left is the other store's to sweep. One that does not answer is not asked for each.
        if let Err(error) = store.segments.remove(kept).await {
            tracing::warn!(%error, left, "removed builds' logs are left where log segments are stored, until it is swept");
            break;
        }
        left -= 1;
    }
    Ok(u32::try_from(found.len()).unwrap_or(u32::MAX))
}

/// Ids of up to `limit` rows to remove; of these ids only, if they are given.
async fn listed(
    tx: &mut Tx,
    kind: Expiring,
    before: Timestamp,
    limit: u32,
    ids: Option<Vec<String>>,
) -> Result<Vec<String>> {
    let among = if ids.is_some() { Among::These } else { Among::All };
    let query = format!("SELECT id FROM ({}) AS listed LIMIT $2", over(kind, among));
    let query = sqlx::query_scalar(AssertSqlSafe(query)).bind(before.as_microsecond()).bind(i64::from(limit));
    let query = match ids {
        None => query,
        Some(ids) => query.bind(json!(ids).to_string()),
    };
    Ok(query.fetch_all(&mut **tx).await?)
}

/// Tables that grow with use.
const GROWING: [&str; 22] = [
    "api_keys",
    "artifact_holds",
    "artifacts",
    "attempts",
    "blob_holds",
    "blobs",
    "build_log",
    "build_log_segments",
    "builds",
    "deliveries",
    "events",
    "grants",
    "name_claims",
    "removed_artifacts",
    "rootfs",
    "rootfs_holds",
    "sandboxes",
    "snapshots",
    "template_aliases",
    "template_tags",
    "templates",
    "webhooks",
];

async fn growth(store: &Store, cutoffs: Cutoffs) -> Result<Growth> {
    let mut tx = store.read().await?;
    let sizes = sqlx::query(TABLE_SIZES).fetch_all(&mut *tx).await?;
    let mut tables = Vec::new();
    for table in GROWING {
        let mut bytes: u64 = 0;
        for row in &sizes {
            if Reader(row).text("name")? == table {
                bytes = Reader(row).integer("bytes")?;
            }
        }
        let count = format!("SELECT count(*) FROM {table}");
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut *tx).await?;
        tables.push(TableSize { table, rows: counted(rows)?, bytes });
    }
    tables.sort_by_key(|table| std::cmp::Reverse(table.bytes));
    let mut due = Vec::new();
    for kind in Expiring::ALL.iter().copied() {
        let query = format!(
            "SELECT count(*) FILTER (WHERE since <= $2), count(*), min(since) AS oldest FROM ({}) AS listed",
            over(kind, Among::All)
        );
        // Everything that is over, however short ago. A claim is over when it expires, not before.
        let all = if kind == Expiring::Claims { cutoffs.now.as_microsecond() } else { i64::MAX };
        let row = sqlx::query(AssertSqlSafe(query))
            .bind(all)
            .bind(cutoffs.of(kind).as_microsecond())
            .fetch_one(&mut *tx)
            .await?;
        let (now, together): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        let oldest = Reader(&row).optional_time("oldest")?;
        due.push(Due { kind, now: counted(now)?, later: counted(together - now)?, oldest });
    }
    let logs: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM builds WHERE log_compacted = 0 AND finished_at IS NOT NULL AND finished_at <= $1",
    )
    .bind(cutoffs.logs.as_microsecond())
    .fetch_one(&mut *tx)
    .await?;
    drop(tx);
    Ok(Growth { tables, space: space::measure(store).await?, due, logs_due: counted(logs)? })
}

fn counted(number: i64) -> Result<u64> {
    u64::try_from(number).map_err(|_| DbError::corrupt("a count"))
}
