//! One build inside a transaction: looked up, fenced by its lease, its log appended to.
//!
//! ```text
//!   builds   queue   finish   names   reuse
//!      └───────┴───────┼────────┴───────┘
//!                      │ their transaction
//!                      v
//!   get_in · get_any · fence · append
//! ```

use nullspace_types::{BuildId, Caller};

use super::{
    DbRow, Tx,
    dialect::kept,
    rows::{self, Reader, integer, select_build},
};
use crate::{Build, DbError, Lease, NewLogEntry, Result};

fn with_next_offset(row: Option<DbRow>) -> Result<(Build, u64)> {
    let row = row.ok_or(DbError::NotFound)?;
    Ok((rows::build(&row)?, Reader(&row).integer("log_next")?))
}

/// The caller's build, with its log's next offset.
pub(super) async fn get_in(tx: &mut Tx, caller: &Caller, build: BuildId) -> Result<(Build, u64)> {
    let row = sqlx::query(select_build!("WHERE b.id = $1 AND b.tenant_id = $2"))
        .bind(build.to_string())
        .bind(caller.tenant.to_string())
        .fetch_optional(&mut **tx)
        .await?;
    with_next_offset(row)
}

/// Any build, for the service itself.
pub(super) async fn get_any(tx: &mut Tx, build: BuildId) -> Result<(Build, u64)> {
    let row = sqlx::query(select_build!("WHERE b.id = $1")).bind(build.to_string()).fetch_optional(&mut **tx).await?;
    with_next_offset(row)
}

/// Fails with [`DbError::LeaseLost`] unless the lease is the build's current one. Within a write transaction this stays true
/// until the commit.
pub(super) async fn fence(tx: &mut Tx, lease: &Lease) -> Result<()> {
    sqlx::query(kept!(
        "SELECT 1 FROM builds WHERE id = $1 AND status = 'building' AND lease_owner = $2 AND lease_epoch = $3"
    ))
    .bind(lease.build.to_string())
    .bind(&lease.owner)
    .bind(integer(lease.epoch)?)
    .fetch_optional(&mut **tx)
    .await?
    .map(|_| ())
    .ok_or(DbError::LeaseLost)
}

/// Appends to a build's log without a check of its owner. Returns the offset of the first entry.
pub(super) async fn append(tx: &mut Tx, build: BuildId, entries: &[NewLogEntry]) -> Result<u64> {
    let count = i64::try_from(entries.len()).map_err(|_| DbError::conflict("too many log entries at once"))?;
    let row = sqlx::query("UPDATE builds SET log_next = log_next + $1 WHERE id = $2 RETURNING log_next - $1 AS first")
        .bind(count)
        .bind(build.to_string())
        .fetch_one(&mut **tx)
        .await?;
    let first: i64 = Reader(&row).integer("first")?;
    for (position, entry) in (first..).zip(entries) {
        sqlx::query("INSERT INTO build_log (build_id, position, at, body) VALUES ($1, $2, $3, $4)")
            .bind(build.to_string())
            .bind(position)
            .bind(entry.at.as_microsecond())
            .bind(entry.body.to_string())
            .execute(&mut **tx)
            .await?;
    }
    u64::try_from(first).map_err(|_| DbError::corrupt("builds.log_next"))
}
