//! Logs of builds: rows while a build runs, compressed segments later.
//!
//! ```text
//!   build_log_segments  │ 0 … 1800 │ 1801 … 3550 │
//!   build_log                                    │ 3551 │ 3552 │ 3553 │ …
//!                                     compact ──>  replaces the first rows by the next segment, in one transaction
//! ```
//! An entry is in one of the two tables. Segments come first, so a reader takes them and then the rows, as of one moment.

use jiff::Timestamp;
use nullspace_types::{BuildId, Caller};

use super::{
    DbRow, Store, Tx,
    rows::{self, Reader, integer},
};
use crate::{
    CompactedLog, DbError, LogEntry, Result,
    segments::{Described, Packed, Packer, compress, unpack},
};

/// Longest page of a log.
const MAX_PAGE: u32 = 1000;
/// Rows that are read at once to fill a segment.
const ROWS: usize = 64;

/// A segment's row.
struct Segment {
    described: Described,
    kept: Vec<u8>,
}

impl Segment {
    fn read(row: &DbRow) -> Result<Self> {
        let row = Reader(row);
        let described = Described {
            first: row.integer("first")?,
            last: row.integer("last")?,
            plain_bytes: row.integer("plain_bytes")?,
        };
        Ok(Self { described, kept: row.bytes("kept")? })
    }
}

pub(super) async fn entries(
    store: &Store,
    caller: &Caller,
    build: BuildId,
    from: u64,
    limit: u32,
) -> Result<Vec<LogEntry>> {
    let mut tx = store.read().await?;
    sqlx::query("SELECT 1 FROM builds WHERE id = $1 AND tenant_id = $2")
        .bind(build.to_string())
        .bind(caller.tenant.to_string())
        .fetch_optional(&mut *tx)
        .await?
        .ok_or(DbError::NotFound)?;
    let limit = limit.min(MAX_PAGE);
    // An offset that no log can reach is simply at the end.
    if limit == 0 || integer(from).is_err() {
        return Ok(Vec::new());
    }
    let segments = segments(&mut tx, build, from, limit).await?;
    let count = |segment: &Segment| segment.described.last - segment.described.first.max(from) + 1;
    let packed: u64 = segments.iter().map(count).fold(0, u64::saturating_add);
    let after = segments.last().map_or(from, |segment| segment.described.last + 1);
    let rows = match u64::from(limit).saturating_sub(packed) {
        0 => Vec::new(),
        left => {
            let found = "SELECT * FROM build_log WHERE build_id = $1 AND position >= $2 ORDER BY position LIMIT $3";
            let found = sqlx::query(found).bind(build.to_string()).bind(integer(after)?).bind(integer(left)?);
            found.fetch_all(&mut *tx).await?
        }
    };
    // The bytes may be elsewhere: nothing waits for them inside a transaction.
    drop(tx);
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut read = Vec::new();
    for Segment { described, kept } in segments {
        let bytes = store.segments.get(kept).await?;
        read.extend(unpack(described, &bytes, from, most - read.len())?);
    }
    for row in &rows {
        read.push(rows::log_entry(row)?);
    }
    Ok(read)
}

/// The segments that have the first `limit` entries from `from` on, in order; fewer when rows have the rest.
async fn segments(tx: &mut Tx, build: BuildId, from: u64, limit: u32) -> Result<Vec<Segment>> {
    const AROUND: &str =
        "SELECT * FROM build_log_segments WHERE build_id = $1 AND first <= $2 ORDER BY first DESC LIMIT 1";
    let mut next = one(tx, AROUND, build, from).await?.filter(|segment| segment.described.last >= from);
    if next.is_none() {
        next = following(tx, build, from).await?;
    }
    let mut found: Vec<Segment> = Vec::new();
    let mut entries: u64 = 0;
    while let Some(segment) = next {
        let Described { first, last, .. } = segment.described;
        entries = entries.saturating_add(last - first.max(from) + 1);
        found.push(segment);
        next = if entries < u64::from(limit) { following(tx, build, first).await? } else { None };
    }
    Ok(found)
}

async fn following(tx: &mut Tx, build: BuildId, offset: u64) -> Result<Option<Segment>> {
    const FOLLOWING: &str =
        "SELECT * FROM build_log_segments WHERE build_id = $1 AND first > $2 ORDER BY first LIMIT 1";
    one(tx, FOLLOWING, build, offset).await
}

async fn one(tx: &mut Tx, query: &'static str, build: BuildId, offset: u64) -> Result<Option<Segment>> {
    let row = sqlx::query(query).bind(build.to_string()).bind(integer(offset)?).fetch_optional(&mut **tx).await?;
    row.as_ref().map(Segment::read).transpose()
}

pub(super) async fn compact(store: &Store, finished_before: Timestamp) -> Result<Option<CompactedLog>> {
    let Some((build, packed)) = next_run(store, finished_before).await? else { return Ok(None) };
    let Some(Packed { first, last, plain }) = packed else {
        let mut tx = store.write().await?;
        let complete = mark(&mut tx, build).await?;
        tx.commit().await?;
        return Ok(Some(CompactedLog { build, entries: 0, plain_bytes: 0, stored_bytes: 0, complete }));
    };
    let plain_bytes = length(&plain);
    let compressed = tokio::task::spawn_blocking(move || compress(&plain)).await;
    let compressed = compressed.map_err(|error| DbError::Io {
        context: "compress a build log".to_owned(),
        source: std::io::Error::other(error),
    })??;
    let stored_bytes = length(&compressed);
    let kept = store.segments.put(compressed).await?;
    let mut tx = store.write().await?;
    sqlx::query(
        "INSERT INTO build_log_segments (build_id, first, last, plain_bytes, stored_bytes, kept) VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(build.to_string())
    .bind(first)
    .bind(last)
    .bind(integer(plain_bytes)?)
    .bind(integer(stored_bytes)?)
    .bind(kept)
    .execute(&mut *tx)
    .await?;
    let entries = u64::try_from(last - first + 1).map_err(|_| DbError::corrupt("build_log.position"))?;
    let replaced = sqlx::query("DELETE FROM build_log WHERE build_id = $1 AND position BETWEEN $2 AND $3")
        .bind(build.to_string())
        .bind(first)
        .bind(last)
        .execute(&mut *tx)
        .await?;
    if replaced.rows_affected() != entries {
        return Err(DbError::conflict("the log was changed while it was compressed"));
    }
    let complete = mark(&mut tx, build).await?;
    tx.commit().await?;
    Ok(Some(CompactedLog { build, entries, plain_bytes, stored_bytes, complete }))
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

/// Notes that a build's log has no rows, if so.
async fn mark(tx: &mut Tx, build: BuildId) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE builds SET log_compacted = 1
         WHERE id = $1 AND finished_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM build_log WHERE build_id = $1)",
    )
    .bind(build.to_string())
    .execute(&mut **tx)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// The first rows of the log that has waited longest, packed. They do not change any more.
async fn next_run(store: &Store, finished_before: Timestamp) -> Result<Option<(BuildId, Option<Packed>)>> {
    let mut tx = store.read().await?;
    let oldest = sqlx::query(
        "SELECT id FROM builds WHERE log_compacted = 0 AND finished_at IS NOT NULL AND finished_at <= $1
         ORDER BY finished_at LIMIT 1",
    )
    .bind(finished_before.as_microsecond())
    .fetch_optional(&mut *tx)
    .await?;
    let Some(oldest) = oldest else { return Ok(None) };
    let build: BuildId = Reader(&oldest).parsed("id")?;
    let mut packer = Packer::default();
    let mut next: i64 = 0;
    'full: loop {
        let rows = sqlx::query(
            "SELECT position, at, body FROM build_log WHERE build_id = $1 AND position >= $2 ORDER BY position LIMIT $3",
        )
        .bind(build.to_string())
        .bind(next)
        .bind(i64::try_from(ROWS).unwrap_or(i64::MAX))
        .fetch_all(&mut *tx)
        .await?;
        for row in &rows {
            let row = Reader(row);
            let position = row.integer("position")?;
            if !packer.add(position, row.integer("at")?, &row.text("body")?) {
                break 'full;
            }
            next = position.saturating_add(1);
        }
        if rows.len() < ROWS {
            break;
        }
    }
    Ok(Some((build, packer.finish())))
}
