//! The move of a database from SQLite to PostgreSQL.
//!
//! ```text
//!   SQLite, one read transaction ── table by table, what others refer to first ──> PostgreSQL, one write transaction
//! ```
//! The data folder stays what it is: the rows name its files. An interrupted copy leaves nothing.

use sqlx::{AssertSqlSafe, Postgres, QueryBuilder, Row, Sqlite, Transaction, sqlite::SqliteRow};

use crate::{DbError, PostgresStore, Result, SqliteStore};

/// All tables. None refers to a later one.
const TABLES: [&str; 27] = [
    "settings",
    "tenants",
    "namespaces",
    "api_keys",
    "templates",
    "builds",
    "build_log",
    "build_log_segments",
    "template_tags",
    "template_aliases",
    "name_claims",
    "rootfs",
    "artifacts",
    "rootfs_holds",
    "artifact_holds",
    "blobs",
    "blob_holds",
    "removed_artifacts",
    "warm_pools",
    "sandboxes",
    "snapshots",
    "grants",
    "ssh_accesses",
    "events",
    "webhooks",
    "deliveries",
    "attempts",
];
/// Columns with which a row refers to another of its table, which may come after it: set when all rows are there.
const OWN: [&str; 2] = ["retry_of", "original"];
/// Rows of one statement. A row of a log has up to a quarter of a MiB.
const ROWS: i64 = 64;

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Tables.
    pub tables: usize,
    /// Rows of all of them.
    pub rows: u64,
}

/// Copies a whole database into an empty one. No service may work on either.
///
/// # Errors
/// [`DbError::Conflict`] when the target has tenants or settings, or when PostgreSQL cannot store a text.
pub async fn copy(from: &SqliteStore, to: &PostgresStore) -> Result<Copied> {
    let mut source = from.begin_copy().await?;
    let mut target = to.begin_copy().await?;
    let used: i64 = sqlx::query_scalar("SELECT (SELECT count(*) FROM tenants) + (SELECT count(*) FROM settings)")
        .fetch_one(&mut *target)
        .await?;
    if used > 0 {
        return Err(DbError::conflict("the PostgreSQL database is not empty: another service has used it"));
    }
    let mut rows = 0;
    for table in TABLES {
        rows += copy_table(&mut source, &mut target, table).await?;
    }
    refer(&mut source, &mut target).await?;
    // The next number, which rows had chosen for them.
    sqlx::query(
        "SELECT setval(pg_get_serial_sequence('removed_artifacts', 'number'), coalesce(max(number), 0) + 1, false)
         FROM removed_artifacts",
    )
    .execute(&mut *target)
    .await?;
    target.commit().await?;
    Ok(Copied { tables: TABLES.len(), rows })
}

/// Type of a column.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Integer,
    Bytes,
}

async fn columns(source: &mut Transaction<'static, Sqlite>, table: &str) -> Result<Vec<(String, Kind)>> {
    let rows = sqlx::query("SELECT name, type FROM pragma_table_info($1)").bind(table).fetch_all(&mut **source).await?;
    rows.iter()
        .map(|row| {
            let kind = match row.try_get::<&str, _>(1)? {
                "TEXT" => Kind::Text,
                "INTEGER" => Kind::Integer,
                "BLOB" => Kind::Bytes,
                _ => return Err(DbError::corrupt(format!("table {table}"))),
            };
            Ok((row.try_get(0)?, kind))
        })
        .collect()
}

async fn copy_table(
    source: &mut Transaction<'static, Sqlite>,
    target: &mut Transaction<'static, Postgres>,
    table: &str,
) -> Result<u64> {
    let columns = columns(source, table).await?;
    let named: Vec<String> = columns.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    let named = named.join(", ");
    let select = format!("SELECT {named}, rowid AS at_row FROM {table} WHERE rowid > $1 ORDER BY rowid LIMIT {ROWS}");
    let (mut last, mut copied) = (i64::MIN, 0);
    loop {
        let rows = sqlx::query(AssertSqlSafe(select.clone())).bind(last).fetch_all(&mut **source).await?;
        let Some(newest) = rows.last() else { return Ok(copied) };
        last = newest.try_get("at_row")?;
        let mut insert: QueryBuilder<Postgres> = QueryBuilder::new(format!("INSERT INTO {table} ({named}) VALUES "));
        let mut rest = rows.iter().peekable();
        while let Some(row) = rest.next() {
            insert.push("(");
            for (index, (name, kind)) in columns.iter().enumerate() {
                insert.push(if index == 0 { "" } else { ", " });
                push(&mut insert, row, index, *kind, OWN.contains(&name.as_str()))?;
            }
            insert.push(if rest.peek().is_some() { "), " } else { ")" });
        }
        let done = insert.build().persistent(false).execute(&mut **target).await?;
        copied += done.rows_affected();
    }
}

fn push(insert: &mut QueryBuilder<Postgres>, row: &SqliteRow, index: usize, kind: Kind, later: bool) -> Result<()> {
    match kind {
        Kind::Text if later => insert.push_bind(None::<String>),
        Kind::Text => insert.push_bind(row.try_get::<Option<String>, _>(index)?),
        Kind::Integer => insert.push_bind(row.try_get::<Option<i64>, _>(index)?),
        Kind::Bytes => insert.push_bind(row.try_get::<Option<Vec<u8>>, _>(index)?),
    };
    Ok(())
}

/// Sets the columns [`OWN`].
async fn refer(source: &mut Transaction<'static, Sqlite>, target: &mut Transaction<'static, Postgres>) -> Result<()> {
    let referring = "SELECT id, retry_of, original, rowid AS at_row FROM builds
         WHERE rowid > $1 AND (retry_of IS NOT NULL OR original IS NOT NULL) ORDER BY rowid LIMIT 1000";
    let mut last = i64::MIN;
    loop {
        let rows = sqlx::query(referring).bind(last).fetch_all(&mut **source).await?;
        let Some(newest) = rows.last() else { return Ok(()) };
        last = newest.try_get("at_row")?;
        for row in &rows {
            sqlx::query("UPDATE builds SET retry_of = $1, original = $2 WHERE id = $3")
                .bind(row.try_get::<Option<String>, _>("retry_of")?)
                .bind(row.try_get::<Option<String>, _>("original")?)
                .bind(row.try_get::<String, _>("id")?)
                .execute(&mut **target)
                .await?;
        }
    }
}
