//! The size of the database. PostgreSQL's own autovacuum reuses the space of removed rows; nothing here gives it back.

use super::PostgresStore;
use crate::{DbError, Result, Space};

pub(super) async fn measure(store: &PostgresStore) -> Result<Space> {
    let bytes: i64 =
        sqlx::query_scalar("SELECT pg_database_size(current_database())").fetch_one(&store.readers).await?;
    let file_bytes = u64::try_from(bytes).map_err(|_| DbError::corrupt("a count"))?;
    Ok(Space { file_bytes, ..Space::default() })
}

pub(super) async fn give_back(store: &PostgresStore, _most: u32) -> Result<Space> {
    measure(store).await
}

/// There is nothing to rewrite: autovacuum is always possible.
#[allow(clippy::unused_async, reason = "SQLite's has to ask")]
pub(super) async fn allow_give_back(_store: &PostgresStore, _limit_bytes: u64) -> Result<bool> {
    Ok(true)
}
